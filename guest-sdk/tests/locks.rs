//! A typed state machine with everything that the SDK offers: locks that expire.

use std::time::Duration;

use lockstep_guest::testing::{Explore, Harness, START_MS};
use lockstep_guest::*;
use serde::{Deserialize, Serialize};

/// Who holds each lock, and until when.
#[derive(Default)]
struct Locks {
    holders: DetMap<String, String>,
    expiry: Deadlines<String>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Command {
    Acquire { name: String, by: String, ttl_ms: u64 },
    Release { name: String, by: String },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Held {
    until_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Query {
    Holder(String),
}

impl Typed for Locks {
    const INFO: Info = Info::new("locks", "0.1.0");
    type Codec = Json;
    type Command = Command;
    type Answer = Held;
    type Query = Query;
    type Reply = Option<String>;

    fn init(_: &Context, config: &[u8]) -> Result<Self, Failure> {
        match config {
            [] => Ok(Self::default()),
            _ => Err(Failure::InvalidConfig("there is nothing to configure".to_owned())),
        }
    }

    fn apply(&mut self, ctx: &Context, command: Command) -> Result<Held, Rejection> {
        let due = self.expiry.take_due(ctx);
        self.expire(due);
        match command {
            Command::Acquire { name, by, ttl_ms } => {
                match self.holders.get(&name) {
                    Some(holder) if *holder != by => Err(format!("{holder} holds it"))?,
                    _ => {}
                }
                let until_ms = ctx.after(Duration::from_millis(ttl_ms));
                self.expiry.set(name.clone(), until_ms);
                self.holders.insert(name, by);
                Ok(Held { until_ms: Some(until_ms) })
            }
            Command::Release { name, by } => {
                let holder = self.holders.get(&name).ok_or("nobody holds it")?;
                if *holder != by {
                    return Err("somebody else holds it".into());
                }
                self.holders.remove(&name);
                self.expiry.remove(&name);
                Ok(Held { until_ms: None })
            }
        }
    }

    fn query(&self, _: &Context, query: Query) -> Result<Option<String>, Rejection> {
        match query {
            Query::Holder(name) if name.is_empty() => Err("a lock has a name")?,
            Query::Holder(name) => Ok(self.holders.get(&name).cloned()),
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        out.write_items::<Postcard, _>(&self.holders)?;
        Ok(out.write_items::<Postcard, _>(self.expiry.iter())?)
    }

    fn restore(_: &SnapshotHeader, _: &[u8], from: &mut SnapshotReader) -> Result<Self, Failure> {
        Ok(Self {
            holders: from.read_map::<Postcard, _, _>()?,
            expiry: from.read_items::<Postcard, _, _>()?,
        })
    }
}

impl Wake for Locks {
    fn wake(&mut self, ctx: &Context) {
        let due = self.expiry.woken(ctx);
        self.expire(due);
    }
}

impl Digest for Locks {
    fn digest(&self) -> Vec<u8> {
        self.holders.len().to_le_bytes().to_vec()
    }
}

impl SelfTest for Locks {
    const INDEPENDENT_OF_PACKING: bool = true;

    fn command(number: u64) -> Vec<u8> {
        let name = ["a", "b"][(number % 2) as usize].to_owned();
        let by = ["ann", "bob"][(number / 2 % 2) as usize].to_owned();
        let ttl_ms = [0, 50, 1_000][(number / 4 % 3) as usize];
        let command = match number / 12 % 4 {
            0 => Command::Release { name, by },
            _ => Command::Acquire { name, by, ttl_ms },
        };
        serde_json::to_vec(&command).expect("it has a form")
    }

    fn query(number: u64) -> Vec<u8> {
        format!("{{\"Holder\":\"{}\"}}", ["a", "b", ""][(number % 3) as usize]).into()
    }
}

impl Locks {
    fn expire(&mut self, due: Vec<String>) {
        for name in due {
            self.holders.remove(&name);
            emit(&format!("expired/{name}"), b"");
        }
    }
}

lockstep_guest::export!(Locks: wake, digest, self_test);

fn acquire(name: &str, by: &str, ttl_ms: u64) -> Command {
    Command::Acquire { name: name.to_owned(), by: by.to_owned(), ttl_ms }
}

#[test]
fn locks_expire() {
    let mut locks = Harness::<Locks>::new();
    let held = locks.run(acquire("a", "ann", 5_000));
    assert_eq!(held, Ok(Held { until_ms: Some(START_MS + 5_000) }));
    assert_eq!(locks.run(acquire("a", "bob", 1)), Err("ann holds it".to_owned()));
    assert_eq!(locks.ask(Query::Holder("a".to_owned())), Ok(Some("ann".to_owned())));
    locks.advance(5_000);
    locks.check_events(&["expired/a "]);
    assert_eq!(locks.ask(Query::Holder("a".to_owned())), Ok(None));
    // The wake is late: the command does what it would have done.
    locks.run(acquire("a", "ann", 100)).expect("nobody holds it");
    locks.at(locks.now_ms() + 200);
    locks.run(acquire("a", "bob", 100)).expect("nobody holds it any more");
    locks.check_events(&["expired/a "]);
    locks.check(r#"{"Release":{"name":"a","by":"bob"}}"#, r#"ok {"until_ms":null}"#);
    assert_eq!(locks.timer(), None);
    locks.verify();
}

/// What the codec cannot read is a rejection, and changes nothing.
#[test]
fn nonsense_is_rejected() {
    let mut locks = Harness::<Locks>::new();
    let why = "the command cannot be read: not the expected JSON";
    locks.check("{", &format!("rejected {why}: EOF while parsing an object at line 1 column 1"));
    let outcome = locks.apply(b"\xff").to_string();
    assert!(outcome.starts_with(&format!("rejected {why}")), "{outcome}");
    let why = "the query cannot be read: not the expected JSON: expected value at line 1 column 1";
    locks.check_query("what", &format!("rejected {why}"));
    locks.check_query(r#"{"Holder":""}"#, "rejected a lock has a name");
    locks.verify();
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let mut locks = Harness::<Locks>::new();
    for name in ["a", "b"] {
        locks.run(acquire(name, "ann", 5_000)).expect("nobody holds it");
    }
    let whole = locks.snapshot();
    for length in 0..whole.len() {
        let error = locks.restore(&whole[..length]).err().expect("it is cut short");
        assert!(matches!(error, Failure::Corrupt(_)), "{length}: {error}");
    }
    let same = whole.iter().map(|&byte| if byte == b'b' { b'a' } else { byte }).collect::<Vec<_>>();
    let error = locks.restore(&same).err().expect("it has a name twice");
    assert_eq!(error.to_string(), "corrupt snapshot: its keys are out of order");
}

/// Whatever is tried, no lock outlives its time once the machine was woken.
#[test]
fn explored() {
    Explore::<Locks>::new()
        .check(|locks| {
            let (now_ms, timer) = (locks.now_ms(), locks.timer());
            let machine = locks.machine();
            assert_eq!(machine.holders.len(), machine.expiry.len(), "each lock has a time");
            assert_eq!(machine.expiry.earliest(), timer, "the timer is the earliest at {now_ms}");
        })
        .run();
}

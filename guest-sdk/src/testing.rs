//! A native harness for a plugin's own unit tests.
//!
//! [`Harness`] plays the cluster: it has a clock, stamps contexts, keeps the log of what was
//! applied, wakes the machine when its timer's time has come, and records its events.
//! [`Harness::verify`] holds the machine to its contract:
//!
//! * replaying the log gives the same outcomes, events, timer, digests and snapshot each time;
//! * a machine restored from a snapshot at any point of the log writes the same snapshot again, and
//!   continues like the one that was never restored;
//! * a query changes nothing;
//! * if the machine claims so, it does not matter how commands are packed into entries.
//!
//! [`Explore`] makes up sequences of commands, verifies each, and shrinks one that fails.
//!
//! The harness knows what `export!` exports: a machine that sets the timer and does not export
//! `wake` fails here. It cannot test what only WebAssembly shows: limits, traps, fuel. Violations
//! panic, as tests expect.

mod explore;
mod replica;
mod shrink;
mod verify;

use std::fmt;

use crate::codec::{Decode, Encode};
use crate::{Context, Exports, Failure, Outcome, Typed};
use replica::{Done, Replica};

pub use explore::Explore;

/// The time of the log at which every harness starts. Before its first entry, thus in `init`, the
/// time is 0, as on a node.
pub const START_MS: u64 = 1_700_000_000_000;

/// The host calls `wake` at most ten times a second.
const WAKE_INTERVAL_MS: u64 = 100;

/// A state machine, with the log of everything that was applied to it.
pub struct Harness<M> {
    replica: Replica<M>,
    config: Vec<u8>,
    /// The context of the last entry, or that of `init`.
    last: Context,
    /// The time of the next entry.
    now_ms: u64,
    /// Before this time `wake` is not called again.
    next_wake_ms: u64,
    /// What `init` did.
    started: Done,
    log: Vec<Entry>,
    events: Vec<Event>,
    /// How many events `check_events` has seen.
    checked: usize,
}

/// One entry of the log.
struct Entry {
    ctx: Context,
    work: Work,
    done: Done,
}

/// What an entry asks of the machine.
enum Work {
    /// One call of `apply`.
    Commands(Vec<Vec<u8>>),
    /// The timer's time has come.
    Wake,
}

/// An entry that was applied, and what came of it: what an oracle compares a model with.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// The entry's context.
    pub ctx: &'a Context,
    /// Its commands; none if the timer's time had come.
    pub commands: &'a [Vec<u8>],
    /// Their outcomes.
    pub outcomes: &'a [Outcome],
    /// The topics and payloads of its events.
    pub events: &'a [(String, Vec<u8>)],
}

/// An event that the machine emitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Index of the entry.
    pub index: u64,
    /// Its number among the events of that entry, from 0 on.
    pub number: u32,
    /// What a client watches by prefix.
    pub topic: String,
    /// What the client is sent.
    pub payload: Vec<u8>,
}

/// `TOPIC PAYLOAD`, for people and tests.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.topic, String::from_utf8_lossy(&self.payload))
    }
}

impl<M: Exports> Harness<M> {
    /// A machine initialised with an empty configuration.
    pub fn new() -> Self {
        Self::with_config(b"").expect("the machine accepts an empty configuration")
    }

    /// A machine initialised with this configuration, or the failure of its `init`.
    pub fn with_config(config: &[u8]) -> Result<Self, Failure> {
        let last = beginning();
        let (replica, started) = Replica::init(&last, config)?;
        Ok(Self {
            replica,
            config: config.to_vec(),
            last,
            now_ms: START_MS,
            next_wake_ms: 0,
            started,
            log: Vec::new(),
            events: Vec::new(),
            checked: 0,
        })
    }

    /// Applies an entry of one command, at the present time.
    #[track_caller]
    pub fn apply(&mut self, command: impl AsRef<[u8]>) -> Outcome {
        let mut outcomes = self.apply_entry(&[command]);
        outcomes.pop().expect("as many outcomes as commands")
    }

    /// Applies an entry of several commands, at the present time.
    #[track_caller]
    pub fn apply_entry<C: AsRef<[u8]>>(&mut self, commands: &[C]) -> Vec<Outcome> {
        let commands = commands.iter().map(|command| command.as_ref().to_vec());
        self.append(Work::Commands(commands.collect()));
        self.log.last().map(|entry| entry.done.outcomes.clone()).unwrap_or_default()
    }

    /// Queries the machine as of the last entry, and checks that this changed nothing.
    #[track_caller]
    pub fn query(&self, request: impl AsRef<[u8]>) -> Result<Vec<u8>, Vec<u8>> {
        let before = self.snapshot();
        let answer = self.replica.query(&self.last, request.as_ref());
        assert!(before == self.snapshot(), "a query must not change the state");
        answer
    }

    /// Applies a command and compares its outcome, written `ok ANSWER` or `rejected REASON`.
    #[track_caller]
    pub fn check(&mut self, command: &str, expect: &str) {
        assert_eq!(self.apply(command).to_string(), expect, "outcome of {command:?}");
    }

    /// Queries the machine and compares the answer, written `ok ANSWER` or `rejected REASON`.
    #[track_caller]
    pub fn check_query(&self, request: &str, expect: &str) {
        let answer = match self.query(request) {
            Ok(answer) => Outcome::Ok(answer),
            Err(reason) => Outcome::Rejected(reason),
        };
        assert_eq!(answer.to_string(), expect, "answer to {request:?}");
    }

    /// All entries so far, in order, with what came of them.
    pub fn history(&self) -> impl ExactSizeIterator<Item = Applied<'_>> {
        self.log.iter().map(|Entry { ctx, work, done }| Applied {
            ctx,
            commands: match work {
                Work::Commands(commands) => commands,
                Work::Wake => &[],
            },
            outcomes: &done.outcomes,
            events: &done.events,
        })
    }

    /// All events so far.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Compares the events since the last call of this function, each written `TOPIC PAYLOAD`.
    #[track_caller]
    pub fn check_events(&mut self, expect: &[&str]) {
        let new: Vec<String> = self.events[self.checked..].iter().map(Event::to_string).collect();
        assert_eq!(new, expect, "events since the last check");
        self.checked = self.events.len();
    }

    /// The time of the log at which the next command is applied; [`START_MS`] at first. It stands
    /// still unless a test moves it.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The time of the log that the timer is set to.
    pub fn timer(&self) -> Option<u64> {
        self.replica.timer
    }

    /// Moves the clock on, and wakes the machine whenever its timer's time comes on the way.
    #[track_caller]
    pub fn advance(&mut self, ms: u64) {
        self.run_until(self.now_ms + ms);
    }

    /// Moves the clock to a time of the log, and wakes the machine whenever its timer's time comes
    /// on the way, at most every 100 ms.
    #[track_caller]
    pub fn run_until(&mut self, time_ms: u64) {
        self.check_clock(time_ms);
        while let Some(deadline) = self.replica.timer {
            let due = deadline.max(self.now_ms).max(self.next_wake_ms);
            if due > time_ms {
                break;
            }
            self.now_ms = due;
            self.next_wake_ms = due + WAKE_INTERVAL_MS;
            self.append(Work::Wake);
        }
        self.now_ms = time_ms;
    }

    /// Moves the clock to a time of the log without waking the machine, as if the entry that wakes
    /// it were late: the next command may find the timer's time passed. The next
    /// [`advance`](Harness::advance) wakes it.
    #[track_caller]
    pub fn at(&mut self, time_ms: u64) {
        self.check_clock(time_ms);
        self.now_ms = time_ms;
    }

    /// The machine's snapshot.
    #[track_caller]
    pub fn snapshot(&self) -> Vec<u8> {
        self.replica.snapshot()
    }

    /// The machine's digest, if it exports one.
    #[track_caller]
    pub fn digest(&self) -> Option<Vec<u8>> {
        self.replica.digest()
    }

    /// A machine restored from these bytes, as if this version had written them at the last entry.
    pub fn restore(&self, bytes: &[u8]) -> Result<M, Failure> {
        let timer = self.replica.timer;
        Replica::restore(&self.last, timer, &self.config, bytes).map(|replica| replica.machine)
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.replica.machine
    }

    #[track_caller]
    fn check_clock(&self, time_ms: u64) {
        let now_ms = self.now_ms;
        assert!(time_ms >= now_ms, "the log's time is {now_ms} and cannot go back to {time_ms}");
    }

    #[track_caller]
    fn append(&mut self, work: Work) {
        let ctx = context(self.last.index + 1, self.now_ms);
        let done = self.replica.execute(&ctx, &work);
        let index = ctx.index;
        self.events.extend((0..).zip(&done.events).map(|(number, (topic, payload))| Event {
            index,
            number,
            topic: topic.clone(),
            payload: payload.clone(),
        }));
        self.last = ctx;
        self.log.push(Entry { ctx, work, done });
    }
}

impl<M: Typed + Exports> Harness<M> {
    /// Applies an entry of one command; the error is the reason of its rejection.
    #[track_caller]
    pub fn run(&mut self, command: M::Command) -> Result<M::Answer, String>
    where
        M::Codec: Encode<M::Command> + Decode<M::Answer>,
    {
        match self.apply(encoded::<M::Codec, _>(&command)) {
            Outcome::Ok(answer) => {
                Ok(M::Codec::decode(&answer).expect("the codec reads what it wrote"))
            }
            Outcome::Rejected(reason) => Err(String::from_utf8_lossy(&reason).into_owned()),
            Outcome::TooLong { bytes } => Err(format!("an answer of {bytes} bytes is too long")),
        }
    }

    /// Queries the machine, and checks that this changed nothing; the error is the reason of the
    /// rejection.
    #[track_caller]
    pub fn ask(&self, query: M::Query) -> Result<M::Reply, String>
    where
        M::Codec: Encode<M::Query> + Decode<M::Reply>,
    {
        match self.query(encoded::<M::Codec, _>(&query)) {
            Ok(reply) => Ok(M::Codec::decode(&reply).expect("the codec reads what it wrote")),
            Err(reason) => Err(String::from_utf8_lossy(&reason).into_owned()),
        }
    }
}

impl<M: Exports> Default for Harness<M> {
    fn default() -> Self {
        Self::new()
    }
}

fn encoded<C: Encode<T>, T>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    C::encode(value, &mut bytes).expect("the codec writes what the test sends");
    bytes
}

/// The context of `init`.
fn beginning() -> Context {
    context(0, 0)
}

/// The context of the entry at `index`, with the same seed in every run.
fn context(index: u64, time_ms: u64) -> Context {
    Context { index, position: 0, time_ms, seed: (index, !index) }
}

#[cfg(test)]
mod tests;

//! The harness finds what it promises to find: a machine with each kind of bug fails in it, with
//! the message that names the bug.

use std::cell::Cell;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::{
    Digest, Info, SelfTest, SnapshotHeader, SnapshotReader, SnapshotWriter, StateMachine, Wake,
    emit, timer,
};

thread_local! {
    /// What a machine must not have: a memory beside its state.
    static BESIDE: Cell<u64> = const { Cell::new(0) };
}

/// Counts commands and wakes. Every command has a bug of its own, but for the first four.
#[derive(Default)]
struct Buggy {
    commands: u64,
    wakes: u64,
    forgotten: u64,
}

impl StateMachine for Buggy {
    const INFO: Info = Info::new("buggy", "0.1.0");

    fn init(_: &Context, _: &[u8]) -> Result<Self, Failure> {
        Ok(Self::default())
    }

    fn apply(&mut self, ctx: &Context, command: &[u8]) -> Outcome {
        self.commands += 1;
        match command {
            b"count" => {}
            b"emit" => emit("count", self.commands.to_string().as_bytes()),
            b"soon" => timer::wake_at(ctx.time_ms + 250),
            b"now" => timer::wake_at(0),
            b"forget" => self.forgotten += 1,
            b"recall" if self.forgotten > 0 => return Outcome::ok("I forgot"),
            b"beside" => return Outcome::ok(BESIDE.replace(BESIDE.get() + 1).to_string()),
            b"emit beside" => emit("b", BESIDE.replace(BESIDE.get() + 1).to_string().as_bytes()),
            b"wake beside" => timer::wake_at(u64::MAX - BESIDE.replace(BESIDE.get() + 1)),
            b"position" => return Outcome::ok(ctx.position.to_string()),
            _ => return Outcome::rejected("what?"),
        }
        Outcome::ok(self.commands.to_string())
    }

    fn query(&self, _: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        if request == b"emit" {
            emit("query", b"");
        }
        Ok(self.wakes.to_string().into())
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        out.write_u64(self.commands)?;
        Ok(out.write_all(&self.wakes.to_le_bytes())?)
    }

    fn restore(_: &SnapshotHeader, _: &[u8], from: &mut SnapshotReader) -> Result<Self, Failure> {
        Ok(Self { commands: from.read_u64()?, wakes: from.read_u64()?, forgotten: 0 })
    }
}

impl Wake for Buggy {
    fn wake(&mut self, ctx: &Context) {
        self.wakes += 1;
        emit("woken", (ctx.time_ms - START_MS).to_string().as_bytes());
        if !self.wakes.is_multiple_of(3) {
            timer::wake_at(ctx.time_ms);
        }
    }
}

impl Digest for Buggy {
    fn digest(&self) -> Vec<u8> {
        self.commands.to_le_bytes().to_vec()
    }
}

impl SelfTest for Buggy {
    const INDEPENDENT_OF_PACKING: bool = true;

    fn command(number: u64) -> Vec<u8> {
        let commands: [&[u8]; 5] = [b"count", b"emit", b"soon", b"forget", b"recall"];
        commands[(number % 5) as usize].to_vec()
    }

    fn query(number: u64) -> Vec<u8> {
        number.to_string().into()
    }
}

crate::export!(Buggy: wake, digest, self_test);

/// The message with which `work` panics.
fn panics(work: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(work)).expect_err("there is a bug");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().expect("a panic has a message")).to_owned(),
    }
}

fn check_finds(commands: &[&str], expect: &str) {
    let mut harness = Harness::<Buggy>::new();
    let message = panics(|| {
        for command in commands {
            harness.apply(command);
        }
        harness.verify();
    });
    assert!(message.contains(expect), "{commands:?}: {message}");
}

#[test]
fn bugs_are_found() {
    check_finds(&["forget", "count", "recall"], "outcomes of command 0 of entry 3 differ");
    check_finds(&["forget", "recall"], "differ: first `ok I forgot`, then `rejected what?`");
    check_finds(&["beside"], "replayed: outcomes of command 0 of entry 1 differ");
    check_finds(&["emit beside"], "replayed: events of entry 1 differ");
    check_finds(&["wake beside"], "the timer differs after entry 1");
    let mut harness = Harness::<Buggy>::new();
    harness.apply_entry(&["position", "position"]);
    let message = panics(|| harness.verify());
    assert!(message.contains("one command each: outcomes of command 1 of entry 1"), "{message}");
    let message = panics(|| drop(harness.query("emit")));
    assert!(message.contains("`emit` was called in Query"), "{message}");
}

/// Wakes come at the timer's time, at most every 100 ms, and late ones are made up for.
#[test]
fn wakes_come_when_they_should() {
    let mut harness = Harness::<Buggy>::new();
    harness.check("soon", "ok 1");
    assert_eq!(harness.timer(), Some(START_MS + 250));
    harness.advance(249);
    harness.check_events(&[]);
    harness.advance(1);
    harness.check_events(&["woken 250"]);
    harness.advance(1_000);
    harness.check_events(&["woken 350", "woken 450"]);
    assert_eq!((harness.timer(), harness.now_ms()), (None, START_MS + 1_250));

    harness.check("soon", "ok 2");
    harness.at(START_MS + 5_000);
    harness.check("emit", "ok 3");
    harness.check_events(&["count 3"]);
    harness.advance(0);
    harness.check_events(&["woken 5000"]);
    harness.check("now", "ok 4");
    harness.advance(99);
    harness.check_events(&[]);
    harness.run_until(START_MS + 5_100);
    harness.check_events(&["woken 5100"]);
    let event = harness.events().last().expect("it was woken");
    assert_eq!((event.index, event.number), (9, 0));
    assert!(panics(|| harness.at(START_MS)).contains("cannot go back"));
    harness.verify();
}

/// Of a sequence that fails, only the commands that matter are left.
#[test]
fn exploring_shrinks() {
    let message = panics(|| Explore::<Buggy>::new().run());
    assert!(message.contains("which SEED="), "{message}");
    let steps: Vec<&str> = message.lines().filter(|line| line.starts_with("  apply")).collect();
    assert_eq!(steps.len(), 2, "{message}");
    assert!(steps[0].ends_with("`forget`") && steps[1].ends_with("`recall`"), "{message}");

    let check = |harness: &mut Harness<Buggy>| assert!(harness.machine().commands < 3, "three");
    let message =
        panics(|| Explore::<Buggy>::new().commands(|_| b"count".into()).check(check).run());
    assert!(message.ends_with("three"), "{message}");
    assert_eq!(message.matches("`count`").count(), 3, "{message}");
    Explore::<Buggy>::new().sequences(3).commands(|_| b"count".into()).run();
}

/// Sets the timer and does not export `wake`.
struct Sleepless;

impl StateMachine for Sleepless {
    const INFO: Info = Info::new("sleepless", "0.1.0");

    fn init(_: &Context, _: &[u8]) -> Result<Self, Failure> {
        Ok(Self)
    }

    fn apply(&mut self, _: &Context, _: &[u8]) -> Outcome {
        timer::wake_at(1);
        Outcome::ok("")
    }

    fn apply_batch(&mut self, _: &Context, commands: crate::Commands<'_>, _: &mut crate::Answers) {
        match commands.get(0) {
            Some(b"too few") => {}
            _ => timer::wake_at(1),
        }
    }

    fn query(&self, _: &Context, _: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        Ok(Vec::new())
    }

    fn snapshot(&self, _: &mut SnapshotWriter) -> Result<(), Failure> {
        Ok(())
    }

    fn restore(_: &SnapshotHeader, _: &[u8], _: &mut SnapshotReader) -> Result<Self, Failure> {
        Ok(Self)
    }
}

crate::export!(Sleepless);

#[test]
fn what_is_not_exported_is_said() {
    let message = panics(|| drop(Harness::<Sleepless>::new().apply_entry::<&str>(&[])));
    assert!(message.contains("exports no `wake`"), "{message}");
    let message = panics(|| drop(Harness::<Sleepless>::new().apply("too few")));
    assert_eq!(message, "`apply_batch` gave 0 answers to 1 commands");
}

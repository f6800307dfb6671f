//! A native harness for a plugin's own unit tests.
//!
//! Plays the host: stamps contexts, keeps the log of what was applied, and in
//! [`Harness::verify`] holds the machine to its contract:
//!
//! * replaying the log twice gives the outcomes and the snapshot it gave the first time;
//! * a machine restored from a snapshot at any point of the log writes the same snapshot again,
//!   and goes on like the one that was never restored;
//! * a query changes nothing.
//!
//! It says nothing about what only WebAssembly can show: limits, traps, fuel. Failures panic, as
//! tests expect.

use crate::{
    Context, Failure, Outcome, SnapshotHeader, StateMachine, apply_entry, restore, snapshot,
};

/// How many points of the log [`Harness::verify`] restores at, at most: each costs a replay.
const CUTS_MAX: usize = 16;

/// A state machine, and the log of everything that was applied to it.
pub struct Harness<M> {
    machine: M,
    config: Vec<u8>,
    /// The context of the last entry, or that of `init`.
    now: Context,
    log: Vec<Entry>,
}

/// One entry of the log: one call of `apply`.
struct Entry {
    ctx: Context,
    commands: Vec<Vec<u8>>,
    outcomes: Vec<Outcome>,
}

impl<M: StateMachine> Harness<M> {
    /// A machine initialised with an empty configuration.
    pub fn new() -> Self {
        Self::with_config(b"").expect("the machine accepts an empty configuration")
    }

    /// A machine initialised with this configuration, or its refusal.
    pub fn with_config(config: &[u8]) -> Result<Self, Failure> {
        let now = context(0);
        let machine = M::init(&now, config)?;
        Ok(Self { machine, config: config.to_vec(), now, log: Vec::new() })
    }

    /// Applies an entry of one command.
    pub fn apply(&mut self, command: impl AsRef<[u8]>) -> Outcome {
        let mut outcomes = self.apply_entry(&[command.as_ref()]);
        outcomes.pop().expect("as many outcomes as commands")
    }

    /// Applies an entry of several commands.
    pub fn apply_entry(&mut self, commands: &[&[u8]]) -> Vec<Outcome> {
        self.now = context(self.now.index + 1);
        let outcomes = apply_entry(&mut self.machine, &self.now, commands.iter().copied());
        let commands = commands.iter().map(|command| command.to_vec()).collect();
        self.log.push(Entry { ctx: self.now, commands, outcomes: outcomes.clone() });
        outcomes
    }

    /// Asks the machine as of the last entry, and checks that asking changed nothing.
    pub fn query(&self, request: impl AsRef<[u8]>) -> Result<Vec<u8>, Vec<u8>> {
        let before = self.snapshot();
        let answer = self.machine.query(&self.now, request.as_ref());
        assert!(before == self.snapshot(), "a query must not change the state");
        answer
    }

    /// Applies a command and compares its outcome, written `ok ANSWER` or `rejected REASON`.
    #[track_caller]
    pub fn check(&mut self, command: &str, expect: &str) {
        assert_eq!(self.apply(command).to_string(), expect, "outcome of {command:?}");
    }

    /// Asks and compares the answer, written `ok ANSWER` or `rejected REASON`.
    #[track_caller]
    pub fn check_query(&self, request: &str, expect: &str) {
        let answer = match self.query(request) {
            Ok(answer) => Outcome::Ok(answer),
            Err(reason) => Outcome::Rejected(reason),
        };
        assert_eq!(answer.to_string(), expect, "answer to {request:?}");
    }

    /// The machine's snapshot.
    pub fn snapshot(&self) -> Vec<u8> {
        snapshot_of(&self.machine)
    }

    /// A machine restored from these bytes, as if this version had written them just now.
    pub fn restore(&self, bytes: &[u8]) -> Result<M, Failure> {
        self.restore_at(&self.now, bytes)
    }

    /// Holds the machine to its contract over everything that was applied so far; see the module.
    #[track_caller]
    pub fn verify(&self) {
        let last = self.snapshot();
        let step = self.log.len().div_ceil(CUTS_MAX).max(1);
        // Two replays from the beginning, then a restore at each cut, the end always among them.
        let cuts = (0..self.log.len()).step_by(step).chain([self.log.len()]);
        for cut in [0, 0].into_iter().chain(cuts) {
            let mut machine =
                M::init(&context(0), &self.config).expect("init succeeded the first time");
            self.replay(&mut machine, &self.log[..cut]);

            let bytes = snapshot_of(&machine);
            let at = cut.checked_sub(1).map_or(context(0), |last| self.log[last].ctx);
            let mut restored = self.restore_at(&at, &bytes).expect("a machine reads what it wrote");
            assert!(bytes == snapshot_of(&restored), "restored at entry {cut}: another snapshot");

            self.replay(&mut machine, &self.log[cut..]);
            assert!(last == snapshot_of(&machine), "replayed: another snapshot");
            self.replay(&mut restored, &self.log[cut..]);
            assert!(last == snapshot_of(&restored), "restored at entry {cut}: another end");
        }
    }

    #[track_caller]
    fn replay(&self, machine: &mut M, entries: &[Entry]) {
        for entry in entries {
            let commands = entry.commands.iter().map(Vec::as_slice);
            let outcomes = apply_entry(machine, &entry.ctx, commands);
            assert_eq!(outcomes, entry.outcomes, "replayed: another outcome of {:?}", entry.ctx);
        }
    }

    fn restore_at(&self, at: &Context, mut bytes: &[u8]) -> Result<M, Failure> {
        let info = M::describe();
        let header = SnapshotHeader {
            writer_name: info.name.to_owned(),
            writer_version: info.version.to_owned(),
            format: info.snapshot_format,
            index: at.index,
            time_ms: at.time_ms,
        };
        restore(&header, &self.config, &mut bytes)
    }
}

impl<M: StateMachine> Default for Harness<M> {
    fn default() -> Self {
        Self::new()
    }
}

fn snapshot_of<M: StateMachine>(machine: &M) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot(machine, &mut bytes).expect("a machine writes its state");
    bytes
}

/// The context that every run gives the entry at `index`.
fn context(index: u64) -> Context {
    let time_ms = 1_700_000_000_000 + 10 * index;
    Context { index, position: 0, time_ms, seed: (index, !index) }
}

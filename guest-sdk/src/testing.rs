//! A native harness for a plugin's own unit tests.
//!
//! The harness plays the host: it stamps contexts, keeps the log of what was applied, and
//! [`Harness::verify`] holds the machine to its contract:
//!
//! * replaying the log gives the same outcomes and the same snapshot each time;
//! * a machine restored from a snapshot at any point of the log writes the same snapshot again, and
//!   continues like the one that was never restored;
//! * a query changes nothing.
//!
//! It cannot test what only WebAssembly shows: limits, traps, fuel. Violations panic, as tests
//! expect.

use crate::{
    Context, Failure, Outcome, SnapshotHeader, StateMachine, apply_entry, restore, snapshot,
};

/// Most points of the log at which [`Harness::verify`] restores: each costs a replay.
const CUTS_MAX: usize = 16;

/// A state machine, with the log of everything that was applied to it.
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

    /// A machine initialised with this configuration, or the failure of its `init`.
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

    /// Queries the machine as of the last entry, and checks that this changed nothing.
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

    /// Queries the machine and compares the answer, written `ok ANSWER` or `rejected REASON`.
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

    /// A machine restored from these bytes, as if this version had written them at the last entry.
    pub fn restore(&self, bytes: &[u8]) -> Result<M, Failure> {
        self.restore_at(&self.now, bytes)
    }

    /// Holds the machine to its contract, see the module, for everything that was applied so far.
    #[track_caller]
    pub fn verify(&self) {
        let last = self.snapshot();
        let step = self.log.len().div_ceil(CUTS_MAX).max(1);
        // Two full replays with a restore of the initial state, then a restore at each cut, of
        // which the end is always one.
        let cuts = (0..self.log.len()).step_by(step).chain([self.log.len()]);
        for cut in [0, 0].into_iter().chain(cuts) {
            let mut machine =
                M::init(&context(0), &self.config).expect("init succeeded the first time");
            self.replay(&mut machine, &self.log[..cut]);

            let bytes = snapshot_of(&machine);
            let at = cut.checked_sub(1).map_or(context(0), |last| self.log[last].ctx);
            let mut restored = self.restore_at(&at, &bytes).expect("a machine reads what it wrote");
            assert!(bytes == snapshot_of(&restored), "restored at entry {cut}: snapshots differ");

            self.replay(&mut machine, &self.log[cut..]);
            assert!(last == snapshot_of(&machine), "replayed: snapshots differ");
            self.replay(&mut restored, &self.log[cut..]);
            assert!(last == snapshot_of(&restored), "restored at entry {cut}: final states differ");
        }
    }

    #[track_caller]
    fn replay(&self, machine: &mut M, entries: &[Entry]) {
        for entry in entries {
            let commands = entry.commands.iter().map(Vec::as_slice);
            let outcomes = apply_entry(machine, &entry.ctx, commands);
            assert_eq!(outcomes, entry.outcomes, "replayed: outcomes of {:?} differ", entry.ctx);
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

/// The context of the entry at `index`, the same in every run.
fn context(index: u64) -> Context {
    let time_ms = 1_700_000_000_000 + 10 * index;
    Context { index, position: 0, time_ms, seed: (index, !index) }
}

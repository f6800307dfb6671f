//! The trait that a plugin implements, and the values that it receives and returns.
//!
//! This is the Rust form of the world in `wit/fsm.wit`. Promises:
//!
//! * everything that a machine is given is equal on every replica;
//! * each command of an entry has a [`Context`] of its own, so that two commands of one entry do
//!   not draw the same random numbers;
//! * a snapshot is either read to its last byte or refused.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use crate::{Answers, Commands, Rng, SnapshotReader, SnapshotWriter};

/// A replicated state machine.
///
/// Every function must be deterministic: its effect and its answer depend on its arguments and on
/// the state, and on nothing else. A panic stops the replica; to refuse a command, answer
/// [`Outcome::Rejected`].
pub trait StateMachine: Sized + 'static {
    /// What this state machine is.
    const INFO: Info;

    /// Describes the state machine to the host.
    fn describe() -> Info {
        Self::INFO
    }

    /// Builds the initial state for this configuration. `ctx.time_ms` is 0: no entry
    /// has had a time yet.
    fn init(ctx: &Context, config: &[u8]) -> Result<Self, Failure>;

    /// Executes one command.
    fn apply(&mut self, ctx: &Context, command: &[u8]) -> Outcome;

    /// Executes the commands of one entry, in order, and answers each. The default calls
    /// [`apply`](StateMachine::apply) for each, with its position; override it to do for all what
    /// need not be done for each, or to write answers into place.
    fn apply_batch(&mut self, ctx: &Context, commands: Commands<'_>, answers: &mut Answers) {
        for (ctx, command) in commands.with_contexts(ctx) {
            answers.push(self.apply(&ctx, command));
        }
    }

    /// Answers a query; `ctx` is that of the last applied entry. `Err` rejects the query, with a
    /// reason.
    fn query(&self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>>;

    /// Writes the whole state. Equal states must write equal bytes.
    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure>;

    /// Reads the state that `snapshot` wrote. If it leaves bytes unread, the snapshot is reported
    /// as corrupt.
    fn restore(
        header: &SnapshotHeader,
        config: &[u8],
        from: &mut SnapshotReader,
    ) -> Result<Self, Failure>;
}

/// What a state machine says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// A short stable name, such as `kv`.
    pub name: &'static str,
    /// The plugin's version, for people: `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// The format that `snapshot` writes; raise it when the format changes.
    pub snapshot_format: u32,
    /// The oldest format that `restore` still reads.
    pub oldest_readable_format: u32,
}

impl Info {
    /// Describes a state machine whose snapshots always had the same format, 1.
    pub const fn new(name: &'static str, version: &'static str) -> Self {
        Self { name, version, snapshot_format: 1, oldest_readable_format: 1 }
    }
}

/// Everything that a state machine may know about "now"; equal on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Index of the entry in the log. Increases from entry to entry, with gaps.
    pub index: u64,
    /// Position of the command in its entry, starting at 0; 0 in all calls but `apply`.
    pub position: u32,
    /// Milliseconds since 1970, stamped by the leader; never decreases.
    pub time_ms: u64,
    /// A pseudo-random value, derived from the cluster's seed and the index. Not secret. See
    /// [`Context::rng`].
    pub seed: (u64, u64),
}

impl Context {
    /// A random number generator for this command: equal on every replica, different for each
    /// command.
    pub fn rng(&self) -> Rng {
        Rng::new(self.seed, self.position)
    }

    /// The time of the log after so long: a deadline, for instance. Whole milliseconds count.
    pub fn after(&self, duration: Duration) -> u64 {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.time_ms.saturating_add(ms)
    }

    /// How long ago a time of the log was; nothing if it is still to come.
    pub fn since(&self, time_ms: u64) -> Duration {
        Duration::from_millis(self.time_ms.saturating_sub(time_ms))
    }

    /// Whether the log's time has reached a deadline.
    pub fn has_reached(&self, time_ms: u64) -> bool {
        self.time_ms >= time_ms
    }
}

/// The longest answer to a command that reaches a client, in bytes. If an answer is longer, the
/// client is told only that the command was executed and how long the answer was.
pub const OUTCOME_BYTES_MAX: usize = 64 << 10;

/// The replicated answer to one command. At most [`OUTCOME_BYTES_MAX`] bytes of it reach a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command was executed; the bytes are the answer.
    Ok(Vec<u8>),
    /// The state machine's rules refuse the command; the bytes say why.
    Rejected(Vec<u8>),
    /// What the harness shows, and the client is told, instead of an answer over
    /// [`OUTCOME_BYTES_MAX`].
    #[non_exhaustive]
    TooLong {
        /// The length of the answer.
        bytes: u64,
    },
}

impl Outcome {
    /// The command was executed, with this answer.
    pub fn ok(answer: impl Into<Vec<u8>>) -> Self {
        Self::Ok(answer.into())
    }

    /// The command was refused, for this reason.
    pub fn rejected(reason: impl Into<Vec<u8>>) -> Self {
        Self::Rejected(reason.into())
    }
}

/// `ok ANSWER`, `rejected REASON` or `too long: BYTES bytes`, for people and tests.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (case, bytes) = match self {
            Self::Ok(bytes) => ("ok", bytes),
            Self::Rejected(bytes) => ("rejected", bytes),
            Self::TooLong { bytes } => return write!(f, "too long: {bytes} bytes"),
        };
        write!(f, "{case} {}", String::from_utf8_lossy(bytes))
    }
}

/// Why `init`, `snapshot` or `restore` failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The configuration is not what the machine expects.
    InvalidConfig(String),
    /// The snapshot has this format, which the machine does not read.
    UnsupportedFormat(u32),
    /// The snapshot's bytes are not what its format promises.
    Corrupt(String),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidConfig(why) => write!(f, "invalid configuration: {why}"),
            Self::UnsupportedFormat(format) => write!(f, "unsupported snapshot format {format}"),
            Self::Corrupt(why) => write!(f, "corrupt snapshot: {why}"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

/// An error of reading or writing a snapshot: input that is too short or malformed is corrupt.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Corrupt("it ends too early".to_owned()),
            io::ErrorKind::InvalidData => Self::Corrupt(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Who wrote the snapshot that is being restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// [`Info::name`] of the writer.
    pub writer_name: String,
    /// [`Info::version`] of the writer.
    pub writer_version: String,
    /// [`Info::snapshot_format`] of the writer.
    pub format: u32,
    /// Index of the last entry in the snapshot. For your logs only: the state must not depend on
    /// it. 0 if the state moves from one module to the next, in an upgrade.
    pub index: u64,
    /// [`Context::time_ms`] of that entry; 0 in an upgrade.
    pub time_ms: u64,
}

/// Executes the commands of one entry. A machine that does not answer each of them has a bug.
pub(crate) fn apply_entry<M: StateMachine>(
    machine: &mut M,
    ctx: &Context,
    commands: Commands<'_>,
) -> Answers {
    let mut answers = Answers::to(commands);
    machine.apply_batch(ctx, commands, &mut answers);
    let (answered, expected) = (answers.len(), commands.len());
    assert!(answered == expected, "`apply_batch` gave {answered} answers to {expected} commands");
    answers
}

/// Writes a machine's whole state to `sink`.
pub(crate) fn snapshot<M: StateMachine>(machine: &M, sink: &mut dyn Write) -> Result<(), Failure> {
    let mut out = SnapshotWriter::new(sink);
    machine.snapshot(&mut out)?;
    Ok(out.finish()?)
}

/// Builds a machine from all of `from`. Refuses formats outside of the machine's range and bytes
/// left over, so that machines do not have to.
pub(crate) fn restore<M: StateMachine>(
    header: &SnapshotHeader,
    config: &[u8],
    from: &mut SnapshotReader,
) -> Result<M, Failure> {
    let info = M::describe();
    if !(info.oldest_readable_format..=info.snapshot_format).contains(&header.format) {
        return Err(Failure::UnsupportedFormat(header.format));
    }
    let machine = M::restore(header, config, from)?;
    if !from.is_at_end()? {
        return Err(Failure::Corrupt("bytes are left over at its end".to_owned()));
    }
    Ok(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of the log end with 64 bits and do not wrap around.
    #[test]
    fn times_of_the_log() {
        let ctx = Context { index: 1, position: 0, time_ms: 1_000, seed: (0, 0) };
        assert_eq!(ctx.after(Duration::from_micros(2_999)), 1_002);
        assert_eq!(ctx.after(Duration::MAX), u64::MAX);
        assert_eq!(ctx.since(400), Duration::from_millis(600));
        assert_eq!(ctx.since(1_001), Duration::ZERO);
        assert!(ctx.has_reached(1_000) && !ctx.has_reached(1_001));
    }
}

//! The trait that a plugin implements, and the values that it receives and returns.
//!
//! This is the Rust form of the world in `wit/fsm.wit`. Promises:
//!
//! * everything that a machine is given is equal on every replica;
//! * each command of an entry has a [`Context`] of its own, so that two commands of one entry do
//!   not draw the same random numbers;
//! * a snapshot is either read to its last byte or refused.

use std::fmt;
use std::io::{self, Read, Write};

use crate::{Rng, SnapshotReader, SnapshotWriter};

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

    /// Builds the initial state for this configuration.
    fn init(ctx: &Context, config: &[u8]) -> Result<Self, Failure>;

    /// Executes one command.
    fn apply(&mut self, ctx: &Context, command: &[u8]) -> Outcome;

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
    /// Position of the command in its entry, starting at 0; 0 in `init` and `query`.
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
}

/// The longest answer to a command that reaches a client, in bytes. If an answer is longer, the
/// client is told only that the command was executed and how long the answer was.
pub const OUTCOME_BYTES_MAX: usize = 64 << 10;

/// Prefix of what the host receives in place of an answer that is too long; the answer's length
/// follows. See `outcome` in `wit/fsm.wit`.
#[cfg(any(target_arch = "wasm32", test))]
const TOO_LONG_MARKER: [u8; 16] = [
    0xd3, 0x1e, 0x9a, 0x47, 0x05, 0xc8, 0x6b, 0xf2, 0x7d, 0x30, 0xb4, 0x8c, 0xe9, 0x51, 0x26, 0xaf,
];

/// The replicated answer to one command. At most [`OUTCOME_BYTES_MAX`] bytes of it reach a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command was executed; the bytes are the answer.
    Ok(Vec<u8>),
    /// The state machine's rules refuse the command; the bytes say why.
    Rejected(Vec<u8>),
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

    /// The outcome to hand to the host: an answer that is too long is replaced by its length. Its
    /// bytes are freed at once, so that an entry of long answers takes no more memory than one of
    /// short ones.
    #[cfg(any(target_arch = "wasm32", test))]
    pub(crate) fn told(self) -> Self {
        let (Self::Ok(bytes) | Self::Rejected(bytes)) = &self;
        match bytes.len() {
            ..=OUTCOME_BYTES_MAX => self,
            length => {
                Self::Rejected([&TOO_LONG_MARKER[..], &(length as u64).to_le_bytes()].concat())
            }
        }
    }
}

/// `ok ANSWER` or `rejected REASON`, for people and tests.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (case, bytes) = match self {
            Self::Ok(bytes) => ("ok", bytes),
            Self::Rejected(bytes) => ("rejected", bytes),
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
    /// Index of the last entry in the snapshot.
    pub index: u64,
    /// [`Context::time_ms`] of that entry.
    pub time_ms: u64,
}

/// Executes the commands of one entry in order; returns an outcome for each.
pub fn apply_entry<'a, M: StateMachine>(
    machine: &mut M,
    ctx: &Context,
    commands: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<Outcome> {
    apply_each(machine, ctx, commands).collect()
}

/// Like [`apply_entry`], but executes a command only when its outcome is taken, so that the caller
/// can free each outcome before the next.
pub(crate) fn apply_each<'a, M: StateMachine>(
    machine: &mut M,
    ctx: &Context,
    commands: impl IntoIterator<Item = &'a [u8]>,
) -> impl Iterator<Item = Outcome> {
    let numbered = (0..).zip(commands);
    numbered.map(move |(position, command)| machine.apply(&Context { position, ..*ctx }, command))
}

/// Writes a machine's whole state to `sink`.
pub fn snapshot<M: StateMachine>(machine: &M, sink: &mut dyn Write) -> Result<(), Failure> {
    let mut out = SnapshotWriter::new(sink);
    machine.snapshot(&mut out)?;
    Ok(out.finish()?)
}

/// Builds a machine from all of `source`. Refuses formats outside the machine's range and bytes
/// left over, so that machines do not have to.
pub fn restore<M: StateMachine>(
    header: &SnapshotHeader,
    config: &[u8],
    source: &mut dyn Read,
) -> Result<M, Failure> {
    let mut from = SnapshotReader::new(source);
    restore_from(header, config, &mut from)
}

/// Like [`restore`], from an existing reader.
pub(crate) fn restore_from<M: StateMachine>(
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

    /// A long answer becomes the marker and its length, byte for byte as the host expects them.
    #[test]
    fn of_a_long_answer_the_length_is_told() {
        let longest = vec![b'a'; OUTCOME_BYTES_MAX];
        for whole in [Outcome::ok("a"), Outcome::Ok(longest.clone()), Outcome::Rejected(longest)] {
            assert_eq!(whole.clone().told(), whole);
        }
        let expect = [&TOO_LONG_MARKER[..], &[1, 0, 1, 0, 0, 0, 0, 0]].concat();
        for long in [Outcome::Ok, Outcome::Rejected] {
            let told = long(vec![b'a'; OUTCOME_BYTES_MAX + 1]).told();
            assert_eq!(told, Outcome::Rejected(expect.clone()));
        }
    }
}

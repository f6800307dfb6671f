//! The three kinds of failure, kept apart by type.
//!
//! - [`Rejection`]: deterministic, the same on every replica, an answer like any other.
//! - [`Refusal`]: this node did not do it, or cannot say; the caller may try again.
//! - [`Fault`]: this replica must stop serving. It is never turned into an answer.

use crate::ids::{Lineage, ModuleId, NodeId};

/// A replicated answer that says no.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rejection {
    /// The guest refused for a reason of its own.
    #[error("rejected by the state machine")]
    Guest(bytes::Bytes),
    #[error(
        "the session is unknown or was evicted: open a new one; outcomes of its unanswered calls \
         are unknown"
    )]
    SessionExpired,
    #[error(
        "the state machine's answer of {bytes} bytes is over the limit of {} bytes; the command \
         was applied: a query can ask for less of it",
        crate::limits::OUTCOME_BYTES_MAX
    )]
    AnswerTooLarge { bytes: u64 },
    /// Told to a repeated call only.
    #[error(
        "the command was applied, and its answer is gone: {bytes} bytes found no room among the \
         answers that sessions did not acknowledge; a query can ask what became of it"
    )]
    AnswerNotKept { bytes: u64 },
    #[error(
        "the session has {} unanswered calls, or as many bytes of unacknowledged answers as it \
         may: acknowledge answers by sending the lowest unanswered sequence",
        crate::limits::SESSION_OPEN_CALLS_MAX
    )]
    SessionFull,
    #[error(
        "the group has {} sessions, and none is old enough to make room: close sessions that are \
         needed no more, or try again in a while",
        crate::limits::SESSIONS_MAX
    )]
    TooManySessions,
}

/// Why this node did not do what was asked. Retryable.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("this node does not lead the group{}", leader.map(|n| format!("; node {n} \
        does")).unwrap_or_else(|| "; no leader is known".into()))]
    NotLeader { leader: Option<NodeId> },
    #[error("overloaded: too many requests wait in this group")]
    Overloaded,
    #[error("the command lost its place in the log and was not applied")]
    Lost,
    #[error("{why} while the command was under way: it may or may not have been applied")]
    Unknown { why: String },
    #[error(
        "the disk is full: {need} bytes are needed, {have} are free; commands are taken \
         again once there is room"
    )]
    DiskFull { need: u64, have: u64 },
    #[error(
        "the log behind the newest snapshot has {bytes} bytes and may have {bound}, and no next \
         one is made; commands are taken again once one is"
    )]
    LogFull { bytes: u64, bound: u64 },
    #[error(
        "the state machine has {bytes} bytes of memory and may have {most}; commands are refused \
         from {bound} on, but for those that make room"
    )]
    MemoryHigh { bytes: u64, bound: u64, most: u64 },
    #[error(
        "marks are asked for too often, or snapshots fail: the next one is taken in {} s",
        wait_ms.div_ceil(1000)
    )]
    MarkTooSoon { wait_ms: u64 },
    #[error("no quorum confirmed the read in time")]
    ReadTimeout,
    #[error("the group is {state}: {cause}")]
    NotServing { state: &'static str, cause: String },
    /// An entry, or the guest itself, keeps this replica from applying anything more.
    #[error("the group is halted: {cause}")]
    Halted { cause: String },
    #[error("the query is not put to the state machine for a minute: {cause}")]
    QueriesRefused { cause: String },
    #[error("the query faulted and was not answered: {cause}")]
    QueryFaulted { cause: String },
    #[error("the query takes too much and was not answered: {cause}")]
    QueryTooMuch { cause: String },
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// Who leads in this replica's stead, if that is why it refuses.
    pub fn leader(&self) -> Option<NodeId> {
        match self {
            Self::NotLeader { leader } => *leader,
            Self::Overloaded
            | Self::Lost
            | Self::Unknown { .. }
            | Self::DiskFull { .. }
            | Self::LogFull { .. }
            | Self::MemoryHigh { .. }
            | Self::MarkTooSoon { .. }
            | Self::ReadTimeout
            | Self::NotServing { .. }
            | Self::Halted { .. }
            | Self::QueriesRefused { .. }
            | Self::QueryFaulted { .. }
            | Self::QueryTooMuch { .. }
            | Self::ShuttingDown => None,
        }
    }
}

/// What a replica lacks to take commands, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// The log wants `need` free on its disk.
    Disk { need: u64, have: u64 },
    /// The log behind the newest snapshot is longer than its bound, and no next one succeeds, or
    /// none can be taken.
    Log { bytes: u64, bound: u64 },
}

impl Shortage {
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Disk { need, have } => Refusal::DiskFull { need, have },
            Self::Log { bytes, bound } => Refusal::LogFull { bytes, bound },
        }
    }

    /// How many bytes are lacking.
    pub fn lacks(self) -> u64 {
        let (Self::Disk { need: more, have: less } | Self::Log { bytes: more, bound: less }) = self;
        more.saturating_sub(less)
    }
}

/// An operation on the log's disk that has been under way for longer than an election takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stall {
    /// The directory in which it is.
    pub path: String,
}

impl std::fmt::Display for Stall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the disk of {} does not answer: an operation on it hangs; commands are taken again \
             once it comes back",
            self.path
        )
    }
}

/// Why a replica had to stop.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    #[error("{}; {}", .0, .0.class.way_out())]
    Guest(#[from] GuestFault),
    #[error(
        "wrong module: have {have}, want {want}; put the wanted component in place and restart"
    )]
    WrongModule { have: ModuleId, want: ModuleId },
    #[error(
        "wrong lineage: what lies here belongs to the group {have}, `lineage` says {want}; point \
         data-dir at the right directory, correct `lineage`, or start with --rejoin to join that \
         group as a new replica"
    )]
    WrongLineage { have: Lineage, want: Lineage },
    #[error(
        "the log could not be written: {0}; the file is abandoned, restart the node once the disk \
         is well"
    )]
    Log(String),
    #[error(
        "the log does not take what this replica wants to write: {0}; restart the node, and if it \
         comes again, start with --rejoin; please report it with its log"
    )]
    LogRefused(String),
    #[error("no recoverable snapshot: {0}; start with --rejoin to join as a new replica")]
    NoRecoverableSnapshot(String),
    #[error(
        "rolled back: this replica's log ends at {last}, but the leader saw {matched} made durable \
         here; the data directory is an old copy, start with --rejoin"
    )]
    RolledBack { last: u64, matched: u64 },
    #[error(
        "old copy: a peer knows this replica by another process, of start {known}, this one is of \
         start {boot}; go on with the newest data directory only, and start this one with --rejoin"
    )]
    OldCopy { boot: u64, known: u64 },
    #[error(
        "superseded: replica runs elsewhere, at {address}; two processes use copies of one data \
         directory, start this one with --rejoin"
    )]
    Superseded { address: String },
    #[error("snapshot could not be read: {0}")]
    Restore(String),
    #[error("cannot run: {0}")]
    Unusable(String),
    #[error("internal: {0}; restart the node, and please report it with its log")]
    Internal(String),
}

impl Fault {
    /// Whether the machine lacked something, which it may have later.
    pub fn is_machines(&self) -> bool {
        matches!(self, Self::Guest(fault) if fault.class == FaultClass::Host)
    }

    /// The entry that could not be applied, if it was one.
    pub fn entry(&self) -> Option<u64> {
        match self {
            Self::Guest(fault) if fault.call == "apply" => fault.index.filter(|index| *index > 1),
            Self::Guest(_)
            | Self::WrongModule { .. }
            | Self::WrongLineage { .. }
            | Self::Log(_)
            | Self::LogRefused(_)
            | Self::NoRecoverableSnapshot(_)
            | Self::RolledBack { .. }
            | Self::OldCopy { .. }
            | Self::Superseded { .. }
            | Self::Restore(_)
            | Self::Unusable(_)
            | Self::Internal(_) => None,
        }
    }
}

/// How a guest failed. Which class it is decides nothing about the outcome: all of them are faults.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{class} in {call}{}: {message}", index.map(|i| format!(" at index \
    {i}")).unwrap_or_default())]
pub struct GuestFault {
    pub class: FaultClass,
    /// The guest function: `init`, `apply`, `query`, `snapshot`, `restore`, `describe`.
    pub call: &'static str,
    pub index: Option<u64>,
    /// What the guest or the engine said, bounded, with the backtrace's first frames.
    pub message: String,
}

/// Classes of guest failure (WebAssembly side).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultClass {
    /// The guest trapped: panic, out-of-bounds access, division by zero, wrong number of outcomes.
    Trap,
    /// The guest used up its fuel.
    OutOfFuel,
    /// The guest asked for more memory than its limit.
    OutOfMemory,
    /// The guest's stack overflowed.
    StackOverflow,
    /// The guest returned an error where none may happen (`init`, `restore`).
    Refused,
    /// The host could not go on: the machine's memory, a bug.
    Host,
}

impl FaultClass {
    /// What an operator can do about a replica that halted so.
    fn way_out(self) -> &'static str {
        match self {
            Self::Trap | Self::OutOfFuel | Self::OutOfMemory | Self::StackOverflow => {
                "if every replica halts there, ask the state machine's author; one that halts \
                 alone goes on from another's snapshot"
            }
            Self::Refused => {
                "the state machine says why: found the group anew with another `config`, or ask \
                 its \
                 author"
            }
            Self::Host => "it is tried again when the machine may be well",
        }
    }
}

impl std::fmt::Display for FaultClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Trap => "trap",
            Self::OutOfFuel => "out of fuel",
            Self::OutOfMemory => "out of memory",
            Self::StackOverflow => "stack overflow",
            Self::Refused => "refused",
            Self::Host => "host failure",
        })
    }
}

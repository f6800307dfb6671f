//! The three kinds of failure, kept apart by type.
//!
//! - [`Rejection`]: deterministic and the same on every replica, an answer like any other.
//! - [`Refusal`]: this node did not carry out a request, or cannot say whether it did; the caller
//!   may try again.
//! - [`Fault`]: this replica halts or stops; a fault never becomes an answer.

use crate::ids::{Lineage, ModuleId, NodeId};
use crate::memory::MemoryUse;

/// A replicated answer that says no to a request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rejection {
    /// The guest refused for a reason of its own.
    #[error("rejected by the state machine")]
    Guest(bytes::Bytes),
    #[error(
        "the session is unknown or was evicted: open a new one; the outcomes of its unanswered \
         calls are unknown"
    )]
    SessionExpired,
    #[error(
        "the state machine's answer of {bytes} bytes is over the limit of {} bytes; the command \
         was applied, and a query can ask for less of its result",
        crate::limits::OUTCOME_BYTES_MAX
    )]
    AnswerTooLarge { bytes: u64 },
    /// The answer to a repeated call whose first answer was not kept.
    #[error(
        "the command was applied, but its answer of {bytes} bytes was not kept: sessions hold too \
         many unacknowledged answers; query the state machine for the result"
    )]
    AnswerNotKept { bytes: u64 },
    #[error(
        "the session has {} unanswered calls, or as many bytes of unacknowledged answers as it \
         may have: acknowledge answers by sending the lowest unanswered sequence",
        crate::limits::SESSION_OPEN_CALLS_MAX
    )]
    SessionFull,
    #[error(
        "the group has {} sessions, and none is old enough to be evicted: close sessions that are \
         no longer needed, or try again later",
        crate::limits::SESSIONS_MAX
    )]
    TooManySessions,
    #[error(
        "the command was skipped: the state machine failed on it, and it was decided that the \
         group \
         goes on without it; it had no effect"
    )]
    Skipped,
    #[error("the group is frozen: the command had no effect; send it again once it is unfrozen")]
    Frozen,
}

/// Why this node did not carry out a request. Retryable.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("this node does not lead the group{}", leader.map(|n| format!("; node {n} \
        does")).unwrap_or_else(|| "; no leader is known".into()))]
    NotLeader { leader: Option<NodeId> },
    #[error("overloaded: too many requests are waiting in this group")]
    Overloaded,
    #[error("another entry replaced the command in the log; it was not applied")]
    Lost,
    #[error("{why} while the command was under way: it may or may not have been applied")]
    Unknown { why: String },
    #[error("{}", disk_full(*need, *have))]
    DiskFull { need: u64, have: u64 },
    #[error(
        "the log since the newest snapshot has {bytes} bytes, limit {bound}; commands resume after \
         the next snapshot"
    )]
    LogFull { bytes: u64, bound: u64 },
    #[error(
        "the state machine has {bytes} bytes of memory, limit {most}; from {bound} on commands are \
         refused, {}", memory_exception(*bound, *most)
    )]
    MemoryHigh { bytes: u64, bound: u64, most: u64 },
    #[error(
        "checkpoints are requested too often, or snapshots fail: the next request is taken in {} s",
        wait_ms.div_ceil(1000)
    )]
    CheckpointTooSoon { wait_ms: u64 },
    #[error("no quorum confirmed the read in time")]
    ReadTimeout,
    #[error("the group is {state}: {cause}")]
    NotServing { state: &'static str, cause: String },
    /// An entry, or the guest itself, keeps this replica from applying anything more.
    #[error("the group is halted: {cause}")]
    Halted { cause: String },
    #[error("the group is frozen: an operator has stopped its commands; queries go on")]
    Frozen,
    /// An operator's request that does not fit the state of the group.
    #[error("{why}")]
    NotNow { why: String },
    #[error("the query is refused for a minute: {cause}")]
    QueriesRefused { cause: String },
    #[error("the state machine failed on the query: {cause}")]
    QueryFaulted { cause: String },
    #[error("the query exceeds a limit and was not answered: {cause}")]
    QueryTooMuch { cause: String },
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// The node that leads, if the request was refused because this one does not.
    pub fn leader(&self) -> Option<NodeId> {
        match self {
            Self::NotLeader { leader } => *leader,
            Self::Overloaded
            | Self::Lost
            | Self::Unknown { .. }
            | Self::DiskFull { .. }
            | Self::LogFull { .. }
            | Self::MemoryHigh { .. }
            | Self::CheckpointTooSoon { .. }
            | Self::ReadTimeout
            | Self::NotServing { .. }
            | Self::Halted { .. }
            | Self::Frozen
            | Self::NotNow { .. }
            | Self::QueriesRefused { .. }
            | Self::QueryFaulted { .. }
            | Self::QueryTooMuch { .. }
            | Self::ShuttingDown => None,
        }
    }
}

/// Why the log cannot get `need` bytes on a disk that reports `have` free.
fn disk_full(need: u64, have: u64) -> String {
    if have < need {
        return format!(
            "the disk is full: {need} bytes are needed, {have} are free; commands resume once \
             space is freed"
        );
    }
    format!(
        "the log got no file of {need} bytes although {have} are free: the node lacks descriptors \
         or memory, or a disk quota is used up; commands resume once it gets one"
    )
}

/// Says whether commands that free memory are refused above this bound.
fn memory_exception(bound: u64, most: u64) -> &'static str {
    if (MemoryUse { bytes: 0, most }).refuses_all_from(bound) {
        "those that free memory, too"
    } else {
        "except those that free memory"
    }
}

/// The bytes of disk or log that a replica lacks to take commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// The log needs `need` bytes free on its disk and has `have`.
    Disk { need: u64, have: u64 },
    /// The log since the newest snapshot is longer than its bound, and newer snapshots fail or
    /// cannot be taken.
    Log { bytes: u64, bound: u64 },
}

impl Shortage {
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Disk { need, have } => Refusal::DiskFull { need, have },
            Self::Log { bytes, bound } => Refusal::LogFull { bytes, bound },
        }
    }

    /// The number of bytes lacking.
    pub fn lacks(self) -> u64 {
        let (Self::Disk { need: more, have: less } | Self::Log { bytes: more, bound: less }) = self;
        more.saturating_sub(less)
    }
}

/// An operation on the log's disk that has been under way for longer than an election takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stall {
    /// The directory whose disk hangs.
    pub path: String,
}

impl std::fmt::Display for Stall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the disk of {} does not answer: an operation on it hangs; commands resume once it \
             answers",
            self.path
        )
    }
}

/// Why a replica halts or stops.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    #[error("{}; {}", .0, .0.class.way_out())]
    Guest(#[from] GuestFault),
    /// The group's module is not on this node.
    #[error(
        "the group runs module {module}, which this node cannot run: {why}; the replica tries \
         again after a while"
    )]
    NoModule { module: ModuleId, why: String },
    #[error(
        "wrong lineage: this data directory belongs to the group {have}, but `lineage` is {want}; \
         point data-dir at the right directory, correct `lineage`, or start with --rejoin to join \
         the group {want} as a new replica"
    )]
    WrongLineage { have: Lineage, want: Lineage },
    #[error(
        "the log could not be written: {0}; the file is abandoned: restart the node once the disk \
         works"
    )]
    Log(String),
    #[error(
        "the log does not take what this replica wants to write: {0}; restart the node; if it \
         happens again, start it with --rejoin, and please report this with its log"
    )]
    LogRefused(String),
    #[error("no recoverable snapshot: {0}; start with --rejoin to join as a new replica")]
    NoRecoverableSnapshot(String),
    #[error(
        "rolled back: this replica's log ends at entry {last}, but its leader knows that entry \
         {matched} was durable here; the data directory is an old copy: start with --rejoin"
    )]
    RolledBack { last: u64, matched: u64 },
    #[error(
        "old copy: a peer knows another process of this replica, with boot count {known}, and this \
         one has {boot}; keep only the newest data directory, and start this one with --rejoin"
    )]
    OldCopy { boot: u64, known: u64 },
    #[error(
        "superseded: this replica also runs at {address}; two processes use copies of one data \
         directory: start this one with --rejoin"
    )]
    Superseded { address: String },
    #[error("snapshot could not be read: {0}")]
    Restore(String),
    #[error("cannot run: {0}")]
    Unusable(String),
    #[error(
        "its snapshot at entry {index} is another one than that of a majority of the voters: its \
         state has diverged from theirs; {}", repair(*repairing)
    )]
    Diverged { index: u64, repairing: bool },
    #[error("internal: {0}; restart the node, and please report this with its log")]
    Internal(String),
}

impl Fault {
    /// Whether the machine lacked a resource that it may have later.
    pub fn lacks_resource(&self) -> bool {
        match self {
            Self::Guest(fault) => fault.class == FaultClass::Host,
            Self::NoModule { .. } => true,
            _other => false,
        }
    }

    /// The entry that could not be applied, if the entry is to blame and not the machine.
    pub fn entry(&self) -> Option<u64> {
        match self {
            // The calls that an entry causes, but for `init`: without it there is no state.
            Self::Guest(fault)
                if matches!(fault.call, "apply" | "wake" | "upgrade") && !self.lacks_resource() =>
            {
                fault.index.filter(|index| *index > 1)
            }
            Self::Guest(_)
            | Self::NoModule { .. }
            | Self::WrongLineage { .. }
            | Self::Log(_)
            | Self::LogRefused(_)
            | Self::NoRecoverableSnapshot(_)
            | Self::RolledBack { .. }
            | Self::OldCopy { .. }
            | Self::Superseded { .. }
            | Self::Restore(_)
            | Self::Unusable(_)
            | Self::Diverged { .. }
            | Self::Internal(_) => None,
        }
    }
}

/// What becomes of a replica that has diverged.
fn repair(repairing: bool) -> &'static str {
    if repairing {
        "it asks the others for a snapshot"
    } else {
        "find the cause with `lockstep replay`, then have it go on from another's snapshot with \
         `lockstep repair`"
    }
}

/// How a guest failed. A failure of any class is a fault; only [`FaultClass::Host`] passes by
/// itself.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{class} in {call}{}: {message}", index.map(|i| format!(" at index \
    {i}")).unwrap_or_default())]
pub struct GuestFault {
    pub class: FaultClass,
    /// The guest function: `init`, `apply`, `query`, `snapshot`, `restore`, `describe`; or
    /// `upgrade`, where `snapshot` of one module or `restore` of the next failed.
    pub call: &'static str,
    pub index: Option<u64>,
    /// The message of the guest or the engine, bounded, with the backtrace's first frames.
    pub message: String,
}

/// The classes of guest failure.
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
    /// The guest returned an error from `init` or `restore`.
    Refused,
    /// The host could not go on: it ran out of a resource, or has a bug.
    Host,
}

impl FaultClass {
    /// What an operator can do about a replica that halted for a failure of this class.
    fn way_out(self) -> &'static str {
        match self {
            Self::Trap | Self::OutOfFuel | Self::OutOfMemory | Self::StackOverflow => {
                "if every voter halts there, `lockstep faults` shows the ways on; one that halts \
                 alone at an entry continues from another's snapshot"
            }
            Self::Refused => {
                "the state machine says why: bootstrap the group again with another `config`, or \
                 ask its author"
            }
            Self::Host => "the replica tries again after a while",
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

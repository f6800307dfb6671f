//! [`Effect`]: everything a replica can ask its host to do. Effects of one lane keep their order.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::apply::Answer;
use crate::fault::{Fault, Refusal, Shortage, Stall};
use crate::group::frame::Frame;
use crate::ids::{NodeId, ReplicaId, Ticket};
use crate::memory::MemoryUse;
use crate::recovery_state::RecoveryState;
use crate::snapshot::chunk::{ObjectRef, Purpose};
use crate::snapshot::{Configuration, Hold, SnapshotDesc};
use crate::wal::LogJob;

#[derive(Debug)]
pub enum Effect {
    /// Log lane: make this durable, then say [`super::Event::Persisted`] with `seq`.
    Persist { seq: u64, job: LogJob },
    /// Log lane: read entries `[from, to)`, at most `bytes` of them, for a follower that lags.
    Fetch { from: u64, to: u64, bytes: u64 },
    /// Apply lane, in order.
    Apply(ApplyJob),
    /// Store lane: the log lists these durably. Whatever else lies there may go, but for objects
    /// that were promised to a follower; under `pressure` what is parked goes too. `holds` may be
    /// dropped after.
    List {
        snapshots: Vec<SnapshotDesc>,
        promised: Vec<SnapshotDesc>,
        pressure: bool,
        holds: Vec<Box<dyn Hold>>,
    },
    /// Bulk: read this listed object whole; one [`super::Event::Read`] follows.
    Prove { snapshot: SnapshotDesc },
    /// Transport: may be dropped, never blocks.
    Send { to: NodeId, frame: Box<Frame> },
    /// Bulk: send this object; exactly one [`super::Event::TransferEnded`] follows.
    SendSnapshot { to: ReplicaId, snapshot: SnapshotDesc, purpose: Purpose, insist: bool },
    /// What became of a received object: `taken`, or of no use.
    Judged { object: ObjectRef, taken: bool },
    /// The request of this ticket has its end.
    Answer { ticket: Ticket, answer: Result<Answer, Refusal> },
    /// The mark that was asked for is at this index; the request of this ticket has its end.
    Marked { ticket: Ticket, index: u64 },
    /// The replica's state changed; the one watch cell shows it.
    State(ReplicaState),
}

/// Work of the apply lane, the only holder of a live guest.
#[derive(Debug)]
pub enum ApplyJob {
    /// Build the guest from the newest recovery point that restores and replay to the floor.
    /// Builds are numbered, so that a failure is known by the build that it ended.
    Start { build: u64, state: Box<RecoveryState> },
    /// Apply `[first, last]`. `entries` is empty if they have to be read from the log; `bytes`
    /// comes back in the report. Only the answers of `awaited` entries are wanted.
    Range { first: u64, last: u64, bytes: usize, entries: Vec<Entry>, awaited: BTreeSet<u64> },
    /// Capture a snapshot of what has been applied: exactly `index`. The replica lets go of `gain`
    /// bytes of log then.
    Capture { term: u64, index: u64, configuration: Configuration, gain: u64 },
    /// Replace the guest by what this listed snapshot holds.
    Restore { build: u64, snapshot: SnapshotDesc },
    /// Build the guest of a halted replica as it was after `goal`, to be asked and nothing else.
    Stand { goal: u64 },
    /// Ask the guest, once it has applied everything up to `index`; a halted replica's as well, if
    /// that is 0.
    Query { ticket: Ticket, request: Bytes, index: u64 },
}

/// What a replica is, in one value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplicaState {
    Running(Running),
    Stopped(Stopped),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Running {
    /// Takes requests (whether it leads is another matter).
    Serving,
    /// Rebuilds its guest from a recovery point and the log.
    Restoring,
    /// Does so to give back memory that its guest freed; what the guest had before.
    Rebuilding(MemoryUse),
    /// Has no log yet, or is in no configuration yet.
    Joining,
    /// Votes and keeps the log, but has no object to start from; it asks its peers for one.
    NeedsSnapshot(String),
    /// Answers queries, votes, and takes no commands until the log has room again.
    DiskFull(Shortage),
    /// Answers queries; its log writes nothing until the disk answers, and it does not lead while
    /// another can.
    DiskStalled(Stall),
    /// Answers queries, votes, and takes no commands but those that make room.
    MemoryHigh(MemoryUse),
    /// Votes and keeps the log, but applies nothing more.
    Halted(Halt),
}

/// Why a replica applies nothing more, and what it can still be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Halt {
    pub fault: Fault,
    pub stands: Stands,
    /// Another replica applied the entry at which this one halted.
    pub applied_by: Option<ReplicaId>,
}

/// The state that a halted replica answers local queries from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stands {
    /// It is being built.
    Coming,
    /// As it was after this entry.
    At(u64),
    /// There is none.
    Nowhere,
}

impl Halt {
    /// The whole story.
    pub fn cause(&self) -> String {
        let mut text = match self.fault.entry() {
            Some(entry) => format!("entry {entry} cannot be applied: {}", self.fault),
            None => self.fault.to_string(),
        };
        text.push_str(&match self.stands {
            Stands::Coming => "; the state before it is being built, for local queries".to_owned(),
            Stands::At(index) => format!("; local queries are answered as of entry {index}"),
            Stands::Nowhere => "; there is no state to ask here".to_owned(),
        });
        if let Some(replica) = self.applied_by {
            let node = replica.node();
            text.push_str(&format!(
                "; node {node} applied it, so this replica differs from the others: it asks for a \
                 snapshot behind the entry"
            ));
        }
        text
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stopped {
    Requested,
    /// The group goes on without this replica.
    Removed,
    Failed(Fault),
}

impl ReplicaState {
    /// One word for tables and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Running(Running::Serving) => "serving",
            Self::Running(Running::Restoring) => "restoring",
            Self::Running(Running::Rebuilding(_)) => "rebuilding",
            Self::Running(Running::Joining) => "joining",
            Self::Running(Running::NeedsSnapshot(_)) => "needs snapshot",
            Self::Running(Running::DiskFull(Shortage::Disk { .. })) => "disk full",
            Self::Running(Running::DiskFull(Shortage::Log { .. })) => "log full",
            Self::Running(Running::Halted(_)) => "halted",
            Self::Running(Running::DiskStalled(_)) => "disk stalled",
            Self::Running(Running::MemoryHigh(_)) => "memory high",
            Self::Stopped(Stopped::Requested) => "stopped",
            Self::Stopped(Stopped::Removed) => "removed",
            Self::Stopped(Stopped::Failed(_)) => "failed",
        }
    }

    /// Why it does not serve, if there is a cause.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Running(Running::Halted(halt)) => Some(halt.cause()),
            Self::Stopped(Stopped::Failed(fault)) => Some(fault.to_string()),
            Self::Running(Running::Joining) => {
                Some("waiting for the group to take this replica in".to_owned())
            }
            Self::Running(Running::Rebuilding(MemoryUse { bytes, most })) => Some(format!(
                "the state machine had {bytes} bytes of memory and may have {most}; it is built \
                 anew from the newest snapshot, to give back what was freed"
            )),
            Self::Running(Running::NeedsSnapshot(why)) => Some(why.clone()),
            Self::Running(Running::DiskFull(shortage)) => Some(shortage.refusal().to_string()),
            Self::Running(Running::DiskStalled(stall)) => Some(stall.to_string()),
            Self::Running(Running::MemoryHigh(memory)) => Some(memory.refusal(false).to_string()),
            Self::Stopped(Stopped::Removed) => {
                Some("the group's configuration no longer holds this replica".to_owned())
            }
            Self::Running(Running::Serving | Running::Restoring)
            | Self::Stopped(Stopped::Requested) => None,
        }
    }

    /// How a local query is refused in this state; `None` when it is taken.
    pub fn local_refusal(&self) -> Option<Refusal> {
        match self {
            Self::Running(Running::Halted(Halt { stands: Stands::At(_), .. })) => None,
            other => other.query_refusal(),
        }
    }

    /// How a linearizable query is refused in this state; `None` when it is taken.
    pub fn query_refusal(&self) -> Option<Refusal> {
        match self {
            Self::Running(
                Running::DiskFull(_) | Running::DiskStalled(_) | Running::MemoryHigh(_),
            ) => None,
            other => other.refusal(),
        }
    }

    /// How a command is refused in this state; `None` when it is taken.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Running(Running::Serving) => None,
            Self::Running(Running::DiskFull(shortage)) => Some(shortage.refusal()),
            Self::Running(Running::Halted(halt)) => Some(Refusal::Halted { cause: halt.cause() }),
            Self::Running(Running::MemoryHigh(memory)) => Some(memory.refusal(false)),
            Self::Stopped(Stopped::Requested) => Some(Refusal::ShuttingDown),
            other => Some(Refusal::NotServing {
                state: other.name(),
                cause: other.cause().unwrap_or_else(|| "try again shortly".to_owned()),
            }),
        }
    }

    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped(_))
    }
}

//! [`Effect`]: everything a replica can ask its host to do. Effects for one lane keep their order.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::apply::Answer;
use crate::fault::{Fault, Refusal, Shortage, Stall};
use crate::group::frame::Frame;
use crate::group::trial::{Preparation, TrialId};
use crate::ids::{ModuleId, NodeId, ReplicaId, Ticket};
use crate::memory::MemoryUse;
use crate::recovery_state::RecoveryState;
use crate::snapshot::chunk::{ObjectRef, Purpose};
use crate::snapshot::{Configuration, Hold, SnapshotDesc};
use crate::wal::LogJob;

#[derive(Debug)]
pub enum Effect {
    /// Log lane: make this durable, then report [`super::Event::Persisted`] with `seq`.
    Persist { seq: u64, job: LogJob },
    /// Readers: read the entries `[from, to)` of the log, at most `bytes` of them, for a lagging
    /// follower.
    Fetch { from: u64, to: u64, bytes: u64 },
    /// Apply lane: do this, in order.
    Apply(ApplyJob),
    /// Store lane: the log durably lists these snapshots. Delete every other object, except those
    /// in `promised`, which are kept for followers. Under `pressure` delete what suspended
    /// transfers left as well. `holds` may be dropped afterwards.
    List {
        snapshots: Vec<SnapshotDesc>,
        promised: Vec<SnapshotDesc>,
        pressure: bool,
        holds: Vec<Box<dyn Hold>>,
    },
    /// Bulk: read this listed object in full; one [`super::Event::Read`] follows.
    Prove { snapshot: SnapshotDesc },
    /// Transport: send this frame, which may be lost; never block.
    Send { to: NodeId, frame: Box<Frame> },
    /// Bulk: send this object; exactly one [`super::Event::TransferEnded`] follows.
    SendSnapshot { to: ReplicaId, snapshot: SnapshotDesc, purpose: Purpose, insist: bool },
    /// Whether a received object was `taken`; if not, this replica did not need it.
    Judged { object: ObjectRef, taken: bool },
    /// Answer the request of this ticket, which ends with it.
    Answer { ticket: Ticket, answer: Result<Answer, Refusal> },
    /// Answer the request of this ticket: the checkpoint or the order that it asked for is
    /// committed at this index, or a snapshot taken there or later is asked for.
    Entered { ticket: Ticket, index: u64 },
    /// A worker: have a module ready. One [`super::Event::Tried`] follows, unless another such
    /// effect comes before.
    Prepare(Preparation),
    /// Publish the replica's state, which changed.
    State(ReplicaState),
}

/// Work for the apply lane, the only holder of a live guest.
#[derive(Debug)]
pub enum ApplyJob {
    /// Build the guest from the newest recovery point that restores, and replay the log to the
    /// floor.
    /// Builds are numbered: each report of the lane about how a guest began or ended names its
    /// build.
    Start { build: u64, state: Box<RecoveryState> },
    /// Apply `[first, last]`. If `entries` is empty, read them from the log. The report repeats
    /// `bytes`. Only answers to the `awaited` entries are needed.
    Range { first: u64, last: u64, bytes: usize, entries: Vec<Entry>, awaited: BTreeSet<u64> },
    /// Capture a snapshot of the state after entry `index`, exactly. It allows the replica to cut
    /// `gain` bytes of log.
    Capture { term: u64, index: u64, configuration: Configuration, gain: u64 },
    /// Replace the guest with the state in this listed snapshot.
    Restore { build: u64, snapshot: SnapshotDesc },
    /// Rebuild the guest of a halted replica as it was after `goal`, only to answer local queries.
    Stand { goal: u64 },
    /// Copy the guest's state into a guest of this module and keep that beside the live one, until
    /// it takes its place, or the live one is called; report [`super::Event::Tried`].
    Try { trial: TrialId, module: ModuleId },
    /// Drop the guest that was kept.
    DropTried,
    /// Query the guest once it has applied everything up to `index`. An index of 0 means a local
    /// query, which the guest of a halted replica answers as well.
    Query { ticket: Ticket, request: Bytes, index: u64 },
}

/// The state of a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplicaState {
    Running(Running),
    Stopped(Stopped),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Running {
    /// Accepts requests, whether it leads or not.
    Serving,
    /// Rebuilds its guest from a recovery point and the log.
    Restoring,
    /// Rebuilds its guest to release memory that the guest freed; holds the memory use before that.
    Rebuilding(MemoryUse),
    /// Has no log yet, or is in no configuration yet.
    Joining,
    /// Votes and keeps the log, but has no object to start from; it asks its peers for one.
    NeedsSnapshot(String),
    /// Answers queries and votes, but accepts no commands until the log has enough space again.
    DiskFull(Shortage),
    /// Answers queries, but its log writes nothing until the disk answers, and it does not lead
    /// while another replica can.
    DiskStalled(Stall),
    /// Answers queries and votes, but accepts no commands except those that free memory.
    MemoryHigh(MemoryUse),
    /// Answers queries and votes, but accepts no commands, because an operator has frozen the
    /// group.
    Frozen,
    /// Votes and keeps the log, but applies no further entry.
    Halted(Halt),
}

/// Why a replica applies no further entry, and which queries it can still answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Halt {
    pub fault: Fault,
    pub stands: Stands,
    /// Another replica that applied the entry at which this one halted.
    pub applied_by: Option<ReplicaId>,
    /// This replica has never applied the entry at which it halted; otherwise it may have, before
    /// it was started.
    pub is_first: bool,
}

/// The state from which a halted replica answers local queries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stands {
    /// The state is being built.
    Coming,
    /// The state after this entry.
    At(u64),
    /// There is no state.
    Nowhere,
}

impl Halt {
    /// Whether the replica has diverged from a majority of the voters.
    pub fn is_diverged(&self) -> bool {
        matches!(self.fault, Fault::Diverged { .. })
    }

    /// Whether the replica has diverged, and is not to go on before an operator says so.
    pub fn waits_for_repair(&self) -> bool {
        matches!(self.fault, Fault::Diverged { repairing: false, .. })
    }

    /// The entry at which the replica halted, if it has never applied it.
    pub fn never_applied(&self) -> Option<u64> {
        self.fault.entry().filter(|_| self.is_first)
    }

    /// In words: the fault, which queries are still answered, and which node applied the entry.
    pub fn cause(&self) -> String {
        let mut text = match self.fault.entry() {
            Some(entry) => format!("entry {entry} cannot be applied: {}", self.fault),
            None => self.fault.to_string(),
        };
        text.push_str(&match self.stands {
            Stands::Coming => "; the state before it is being rebuilt for local queries".to_owned(),
            Stands::At(index) => format!("; local queries are answered as of entry {index}"),
            Stands::Nowhere => "; local queries are refused: there is no state here".to_owned(),
        });
        if let Some(replica) = self.applied_by {
            let node = replica.node();
            text.push_str(&format!(
                "; node {node} applied it, so this replica has diverged from the others: it asks \
                 for a snapshot that includes the entry"
            ));
        }
        text
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stopped {
    Requested,
    /// The group's configuration no longer includes this replica.
    Removed,
    Failed(Fault),
}

impl ReplicaState {
    /// The state in a word or two, for tables and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Running(Running::Serving) => "serving",
            Self::Running(Running::Restoring) => "restoring",
            Self::Running(Running::Rebuilding(_)) => "rebuilding",
            Self::Running(Running::Joining) => "joining",
            Self::Running(Running::NeedsSnapshot(_)) => "needs snapshot",
            Self::Running(Running::DiskFull(Shortage::Disk { .. })) => "disk full",
            Self::Running(Running::DiskFull(Shortage::Log { .. })) => "log full",
            Self::Running(Running::Frozen) => "frozen",
            Self::Running(Running::Halted(_)) => "halted",
            Self::Running(Running::DiskStalled(_)) => "disk stalled",
            Self::Running(Running::MemoryHigh(_)) => "memory high",
            Self::Stopped(Stopped::Requested) => "stopped",
            Self::Stopped(Stopped::Removed) => "removed",
            Self::Stopped(Stopped::Failed(_)) => "failed",
        }
    }

    /// Why the replica does not fully serve; `None` if it does or was told to stop.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Running(Running::Halted(halt)) => Some(halt.cause()),
            Self::Stopped(Stopped::Failed(fault)) => Some(fault.to_string()),
            Self::Running(Running::Joining) => {
                Some("waiting for the group to take this replica in".to_owned())
            }
            Self::Running(Running::Rebuilding(MemoryUse { bytes, most })) => Some(format!(
                "the state machine had {bytes} bytes of memory and may have {most}; it is being \
                 rebuilt from the newest snapshot to release what it freed"
            )),
            Self::Running(Running::NeedsSnapshot(why)) => Some(why.clone()),
            Self::Running(Running::DiskFull(shortage)) => Some(shortage.refusal().to_string()),
            Self::Running(Running::DiskStalled(stall)) => Some(stall.to_string()),
            Self::Running(Running::MemoryHigh(memory)) => Some(memory.refusal(false).to_string()),
            Self::Running(Running::Frozen) => Some(Refusal::Frozen.to_string()),
            Self::Stopped(Stopped::Removed) => {
                Some("the group's configuration no longer includes this replica".to_owned())
            }
            Self::Running(Running::Serving | Running::Restoring)
            | Self::Stopped(Stopped::Requested) => None,
        }
    }

    /// The refusal of a local query in this state; `None` if it is accepted.
    pub fn local_refusal(&self) -> Option<Refusal> {
        match self {
            Self::Running(Running::Halted(Halt { stands: Stands::At(_), .. })) => None,
            other => other.query_refusal(),
        }
    }

    /// The refusal of a linearizable query in this state; `None` if it is accepted.
    pub fn query_refusal(&self) -> Option<Refusal> {
        match self {
            Self::Running(
                Running::DiskFull(_)
                | Running::DiskStalled(_)
                | Running::MemoryHigh(_)
                | Running::Frozen,
            ) => None,
            other => other.refusal(),
        }
    }

    /// The refusal of a command in this state; `None` if it is accepted.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Running(Running::Serving) => None,
            Self::Running(Running::DiskFull(shortage)) => Some(shortage.refusal()),
            Self::Running(Running::Halted(halt)) => Some(Refusal::Halted { cause: halt.cause() }),
            Self::Running(Running::MemoryHigh(memory)) => Some(memory.refusal(false)),
            Self::Running(Running::Frozen) => Some(Refusal::Frozen),
            Self::Stopped(Stopped::Requested) => Some(Refusal::ShuttingDown),
            other => Some(Refusal::NotServing {
                state: other.name(),
                cause: other.cause().unwrap_or_else(|| "try again shortly".to_owned()),
            }),
        }
    }

    /// The entry at which the replica is halted, if it has never applied it, and 0 otherwise;
    /// `None` if it is not halted.
    pub fn halted_at(&self) -> Option<u64> {
        match self {
            Self::Running(Running::Halted(halt)) => Some(halt.never_applied().unwrap_or(0)),
            _other => None,
        }
    }

    /// Whether the replica has diverged, and is not to go on before an operator says so.
    pub fn waits_for_repair(&self) -> bool {
        matches!(self, Self::Running(Running::Halted(halt)) if halt.waits_for_repair())
    }

    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped(_))
    }
}

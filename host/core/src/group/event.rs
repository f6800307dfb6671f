//! [`Event`]: everything that can happen to a replica. The list is closed.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::apply::{Applied, LogClock};
use crate::entry::Call;
use crate::fault::{Fault, Shortage, Stall};
use crate::group::frame::Inbound;
use crate::group::orders::Order;
use crate::group::trial::{Stage, TrialId};
use crate::ids::{NodeId, ReplicaId, Ticket};
use crate::memory::{Footprint, MemoryUse};
use crate::snapshot::chunk::{ObjectRef, Purpose};
use crate::snapshot::send::Report;
use crate::snapshot::{SnapshotDesc, SnapshotSpace, Verified};

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "frames are the common case, and moved at once")]
pub enum Event {
    /// Another [`crate::limits::TICK_MS`] passed. Ticks are the only clock of the core.
    Tick {
        wall_ms: u64,
    },
    Frame(Inbound),
    /// The transport lost its stream to a node; frames may have been dropped.
    Unreachable(NodeId),

    /// A client's command. With `relief` it is meant to free memory, and accepted while memory is
    /// high.
    Propose {
        ticket: Ticket,
        call: Call,
        relief: bool,
    },
    /// A client no longer needs a session.
    CloseSession {
        ticket: Ticket,
        session: u64,
    },
    /// A client requests a session; `nonce` tells its attempts apart.
    OpenSession {
        ticket: Ticket,
        nonce: u64,
    },
    /// A client's query. Linearizable ones wait for a read index.
    Query {
        ticket: Ticket,
        request: Bytes,
        linearizable: bool,
    },
    /// The clients of these requests no longer wait for an answer.
    Gone {
        tickets: BTreeSet<Ticket>,
    },
    /// An operator's order.
    Order {
        ticket: Ticket,
        order: Order,
    },
    /// An operator has this replica, which has diverged, go on from another's snapshot.
    Repair {
        ticket: Ticket,
    },
    /// A client asks for a snapshot of what has been applied.
    Checkpoint {
        ticket: Ticket,
    },

    /// The log lane made every batch up to `seq` durable.
    Persisted {
        seq: u64,
    },
    /// Entries read back from the log for a lagging follower; `None` if they could not be read.
    Fetched {
        from: u64,
        entries: Option<Vec<Entry>>,
    },

    /// Some or all entries below this index can no longer be read back from the log.
    LogDamaged {
        below: u64,
    },

    /// The apply lane rebuilt the guest up to `applied`; `clock` is the log's time there, and what
    /// the guest's timer is set to. `build`, here and below, is the number of the start or restore
    /// that the lane did last (see
    /// [`ApplyJob::Start`](super::ApplyJob::Start)).
    Started {
        build: u64,
        applied: u64,
        clock: LogClock,
    },
    /// A guest was built from the recovery point at `index`, or from scratch (0), with this
    /// footprint. Comes before the event of the job that built it.
    Built {
        index: u64,
        footprint: Footprint,
    },
    /// The apply lane applied entries.
    Applied(Applied),
    /// The guest was restored from an installed snapshot.
    Restored {
        build: u64,
        index: u64,
        clock: LogClock,
    },
    /// The guest wrote its local snapshot and may go on; the object still has to be sealed.
    CaptureWritten {
        index: u64,
    },
    /// The snapshot that was to replace the guest cannot be read, and the old guest is gone.
    NotRestored {
        build: u64,
        index: u64,
        why: String,
    },
    /// The guest of a halted replica was rebuilt up to this entry, where the ledger says this;
    /// `None` if that failed.
    Stands {
        at: Option<(u64, LogClock)>,
    },
    /// A snapshot fits only if the recovery point `unlist` is unlisted. The snapshot is the capture
    /// at index `capture`, which waits; or, for `None`, a peer's, which will be offered again, or
    /// that of another group of the host.
    SpaceWanted {
        unlist: SnapshotDesc,
        capture: Option<u64>,
    },
    /// The host already takes as many snapshots as it may: the capture at `index` waits for a
    /// place.
    NoPlace {
        index: u64,
        why: String,
    },
    /// A local snapshot was captured, sealed and read back.
    Captured(Verified),
    /// A local snapshot failed; the group goes on without it.
    CaptureFailed {
        index: u64,
        why: String,
        /// The failure is temporary: what the capture needed is in use and will be free again.
        postponed: bool,
    },
    /// A listed or promised object turned out to be corrupt in a restore, a transfer or a scrub.
    Corrupt {
        snapshot: SnapshotDesc,
        why: String,
    },
    /// The result of reading a recovery point in full.
    Read {
        snapshot: SnapshotDesc,
        found: Found,
    },
    /// The log was cut while the apply lane rebuilt its guest from it.
    Overtaken {
        build: u64,
    },
    /// No recovery point restores, because the objects are corrupt or the log since them cannot be
    /// read: a peer has to send one.
    NeedsSnapshot {
        build: u64,
        /// The index of the newest recovery point that was listed; 0 if none was.
        tried: u64,
        why: String,
    },
    /// The log failed, and the replica stops; or the module is not the group's, and the replica
    /// halts.
    Faulted(Fault),
    /// The guest failed or could not be built: the lane applies nothing more. The replica halts,
    /// unless the lane was given a newer build since.
    GuestFailed {
        build: u64,
        fault: Fault,
    },
    /// The guest's memory use changed. Comes before the event of the job that changed it.
    Memory(MemoryUse),
    /// The disk of the log is short of space, or no longer is.
    LogSpace(Option<Shortage>),
    /// The disk of the log hangs, or answers again.
    DiskStalled(Option<Stall>),
    /// The space for the next snapshot: reported while it is not enough, and once when it is again.
    SnapshotSpace(SnapshotSpace),

    /// A snapshot arrived from a peer and was sealed and read back.
    Received {
        snapshot: Verified,
    },
    /// A transfer ended; comes exactly once for each [`super::Effect::SendSnapshot`].
    TransferEnded {
        to: ReplicaId,
        purpose: Purpose,
        report: Report,
        /// The receiver holds a part of this other object and prefers to resume that.
        prefers: Option<ObjectRef>,
    },

    /// A worker has the module of this trial ready, or the lane has moved a copy of the state into
    /// it; or that failed.
    Tried {
        trial: TrialId,
        stage: Stage,
    },

    /// The process is about to stop: hand leadership over.
    HandOver,
}

/// The result of reading a recovery point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    Whole,
    /// The object is corrupt or can no longer be read.
    Bad(String),
    /// The machine lacked the means to read it, so nothing is known of the object.
    Unread(String),
}

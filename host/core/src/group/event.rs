//! [`Event`]: everything that can happen to a replica. A closed list.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::apply::Applied;
use crate::entry::Call;
use crate::fault::{Fault, Shortage, Stall};
use crate::group::frame::Inbound;
use crate::ids::{NodeId, ReplicaId, Ticket};
use crate::memory::{Footprint, MemoryUse};
use crate::snapshot::chunk::{ObjectRef, Purpose};
use crate::snapshot::{Room, SnapshotDesc, Verified};

#[derive(Debug)]
pub enum Event {
    /// Another [`crate::limits::TICK_MS`] passed; the only clock the core sees.
    Tick {
        wall_ms: u64,
    },
    Frame(Inbound),
    /// The transport lost its stream to a node; frames may have been dropped.
    Unreachable(NodeId),

    /// A client's command; `relief`: it is to make room, and is taken while memory is high.
    Propose {
        ticket: Ticket,
        call: Call,
        relief: bool,
    },
    /// A client needs a session no more.
    CloseSession {
        ticket: Ticket,
        session: u64,
    },
    /// A client wants a session; `nonce` tells its attempts apart.
    OpenSession {
        ticket: Ticket,
        nonce: u64,
    },
    /// A client's question. Linearizable ones wait for a read index.
    Query {
        ticket: Ticket,
        request: Bytes,
        linearizable: bool,
    },
    /// Whoever sent these requests waits for their answers no more.
    Gone {
        tickets: BTreeSet<Ticket>,
    },
    /// A client wants a snapshot of what is applied now.
    Mark {
        ticket: Ticket,
    },

    /// The log lane made every batch up to `seq` durable.
    Persisted {
        seq: u64,
    },
    /// Entries read back from the log for a follower that lags; `None` if they could not be read.
    Fetched {
        from: u64,
        entries: Option<Vec<Entry>>,
    },

    /// Entries below this index cannot be read back from the log any more, or not all of them.
    LogDamaged {
        below: u64,
    },

    /// The apply lane rebuilt the guest up to `applied`; the log's time there.
    Started {
        applied: u64,
        time_ms: u64,
    },
    /// A guest was built from the recovery point at `index`, or from nothing (0); how much memory
    /// that took. Told before whatever it was built for.
    Built {
        index: u64,
        footprint: Footprint,
    },
    /// The apply lane went on.
    Applied(Applied),
    /// An installed snapshot lives in the guest; the log's time there.
    Restored {
        index: u64,
        time_ms: u64,
    },
    /// The guest wrote its local snapshot and may go on; the object is still to be sealed.
    CaptureWritten {
        index: u64,
    },
    /// The snapshot that was to replace the guest cannot be read, and there is no guest now.
    NotRestored {
        index: u64,
        why: String,
    },
    /// The guest of a halted replica is as it was after this entry; `None`: it could not be built.
    Stands {
        at: Option<u64>,
    },
    /// A snapshot finds room only if this recovery point is unlisted: the capture at the mark
    /// `capture`, which waits, or a peer's, which will be offered again.
    RoomWanted {
        unlist: SnapshotDesc,
        capture: Option<u64>,
    },
    /// The host takes as many snapshots as it does at once: the capture at `index` waits.
    NoPlace {
        index: u64,
        why: String,
    },
    /// A local snapshot was captured, sealed and read back.
    Captured(Verified),
    /// A local snapshot was not made; the group goes on.
    CaptureFailed {
        index: u64,
        why: String,
        /// There will be room: it is in use.
        postponed: bool,
    },
    /// A listed object is not what it was: found while restoring, sending or scrubbing.
    Rotten {
        snapshot: SnapshotDesc,
        why: String,
    },
    /// A recovery point was to be read whole.
    Read {
        snapshot: SnapshotDesc,
        found: Found,
    },
    /// The log was cut while the lane rebuilt its guest from it.
    Overtaken,
    /// No recovery point restores, because their objects are rotten: a peer's object is needed.
    NeedsSnapshot {
        why: String,
    },
    /// The replica cannot go on: its log failed, or its module is another than the group's.
    Faulted(Fault),
    /// The lane applies nothing more with the guest that the build of this number led to, or was to
    /// lead to; the replica halts, unless the lane was told of a newer build.
    GuestFailed {
        build: u64,
        fault: Fault,
    },
    /// What the guest has of its memory changed. Told before whatever changed it.
    Memory(MemoryUse),
    /// The disk of the log has too little room, or room again.
    Room(Option<Shortage>),
    /// The disk of the log hangs, or answers again.
    DiskStalled(Option<Stall>),
    /// How the disk stands with the next snapshot: told while there is too little room, and once
    /// when there is enough again.
    SnapshotRoom(Room),

    /// A snapshot arrived from a peer, sealed and read back.
    Received {
        snapshot: Verified,
    },
    /// A transfer ended; comes exactly once for each [`super::Effect::SendSnapshot`].
    TransferEnded {
        to: ReplicaId,
        purpose: Purpose,
        ok: bool,
        /// Some of the payload went out.
        moved: bool,
        /// The receiver holds a part of another object, which it would rather have.
        prefers: Option<ObjectRef>,
    },

    /// Hand leadership over: the process is about to stop.
    HandOver,
}

/// What came of reading a recovery point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    Whole,
    /// It is not what it was, or cannot be read any more.
    Bad(String),
    /// The machine lacked what reading takes: nothing is known of the object.
    Unread(String),
}

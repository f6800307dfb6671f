//! The way into a group, [`GroupHandle`] with its bounded mailbox, and what comes out of it,
//! [`GroupReport`].
//!
//! - A client's request never waits for a full mailbox: it is refused at once with
//!   `Refusal::Overloaded`.
//! - A peer's frame is dropped when the mailbox is full; raft recovers from that.
//! - Events of lanes and of snapshot workers have a channel of their own, which drops none: their
//!   number is bounded by the work handed out.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use lockstep_core::apply::Answer;
use lockstep_core::entry::Call;
use lockstep_core::fault::Refusal;
use lockstep_core::group::{Event, GroupStatus, Inbound, Order, ReplicaState};
use lockstep_core::ids::{GroupId, Lineage};
use lockstep_core::mutant::planted;
use lockstep_core::snapshot::SnapshotDesc;
use prometheus_client::metrics::histogram::Histogram;
use raft::eraftpb::Entry;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::disk_watch::Hanging;
use crate::group::askers::Asker;
use crate::group::deliveries::Delivery;
use crate::group::event_board::{EventBoard, WatchReport};
use crate::group::line::{Line, Reply, StreamPermits, Told};
use crate::group::{Lanes, open_object};
use crate::metrics::{TransferTally, seconds_histogram};
use crate::store::{OpenError, SnapshotDisk, StoreHandle, StoreReport, Use};

/// Client requests that may wait in one group's mailbox.
pub(crate) const REQUESTS_MAX: usize = 65_536;
/// Frames that may wait in one group's mailbox.
pub(crate) const FRAMES_MAX: usize = 4_096;
/// Bytes of requests, and of frames, that may wait in one group's mailbox.
pub(crate) const REQUESTS_BYTES_MAX: usize = 64 << 20;
pub(crate) const FRAMES_BYTES_MAX: usize = 64 << 20;

/// A guest's answer to a query, and the applied index of the state that it describes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueryAnswer {
    /// `Err` if the guest rejected the query, with the guest's reason.
    pub result: Result<Bytes, Bytes>,
    pub applied: u64,
    /// Set if the replica is halted: the answer describes a state that no longer advances.
    pub halted: Option<HaltedAt>,
}

/// Where and why a replica halted, as told with its answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HaltedAt {
    /// Index of the entry that cannot be applied; 0 if no entry caused the halt.
    pub entry: u64,
    pub cause: String,
}

/// One client request, and where its answer goes.
pub(crate) enum Request {
    Propose {
        call: Call,
        /// The command is meant to free memory of the guest: it is taken while memory is high.
        relief: bool,
        answer: Reply,
    },
    OpenSession {
        nonce: u64,
        answer: Reply,
    },
    CloseSession {
        session: u64,
        answer: Reply,
    },
    Query {
        request: Bytes,
        linearizable: bool,
        asker: Asker,
        answer: oneshot::Sender<Result<QueryAnswer, Refusal>>,
    },
    /// Asks for a checkpoint, and is answered with its index.
    Checkpoint {
        answer: oneshot::Sender<Result<u64, Refusal>>,
    },
    /// Gives an operator's order, and is answered with the index of its entry.
    Order {
        order: Order,
        answer: oneshot::Sender<Result<u64, Refusal>>,
    },
    /// Has this replica, which has diverged, go on from another's snapshot; is answered with the
    /// least index of that.
    Repair {
        answer: oneshot::Sender<Result<u64, Refusal>>,
    },
    /// Asks for an entry of this node's log; `None` if it cannot be read.
    Entry {
        index: u64,
        answer: oneshot::Sender<Option<Entry>>,
    },
    /// Has the actor publish a report now.
    Report {
        done: oneshot::Sender<()>,
    },
}

impl Request {
    /// Answers the request with a refusal.
    pub(crate) fn refuse(self, refusal: Refusal) {
        match self {
            Self::Propose { answer, .. }
            | Self::OpenSession { answer, .. }
            | Self::CloseSession { answer, .. } => answer.send(Err(refusal)),
            Self::Query { answer, .. } => drop(answer.send(Err(refusal))),
            Self::Checkpoint { answer } | Self::Order { answer, .. } | Self::Repair { answer } => {
                drop(answer.send(Err(refusal)));
            }
            Self::Entry { answer, .. } => drop(answer),
            Self::Report { done } => drop(done),
        }
    }

    /// Whether the caller still waits for the answer.
    pub(crate) fn waits(&self) -> bool {
        match self {
            Self::Propose { answer, .. }
            | Self::OpenSession { answer, .. }
            | Self::CloseSession { answer, .. } => !answer.is_closed(),
            Self::Query { answer, .. } => !answer.is_closed(),
            Self::Checkpoint { answer } | Self::Order { answer, .. } | Self::Repair { answer } => {
                !answer.is_closed()
            }
            Self::Entry { answer, .. } => !answer.is_closed(),
            Self::Report { done } => !done.is_closed(),
        }
    }

    /// Bytes that the request holds in the mailbox.
    fn bytes(&self) -> usize {
        match self {
            Self::Propose { call, .. } => call.payload.len(),
            Self::OpenSession { .. }
            | Self::CloseSession { .. }
            | Self::Checkpoint { .. }
            | Self::Order { .. }
            | Self::Repair { .. }
            | Self::Entry { .. }
            | Self::Report { .. } => 0,
            Self::Query { request, .. } => request.len(),
        }
    }
}

/// An event that a lane or worker raises.
pub(crate) struct Inward {
    pub event: Event,
    /// Counts the bytes of the answers in the event, if it carries any.
    pub delivery: Option<Delivery>,
}

/// The status of one group on one node, as last published: at each tick and each change of state.
#[derive(Clone, Debug)]
pub struct GroupReport {
    pub status: GroupStatus,
    /// Bytes of the group's snapshot objects.
    pub snapshot_bytes: u64,
    /// Bytes of the node's log segments, shared by all groups.
    pub log_bytes: u64,
    /// Guest linear memory, bytes.
    pub guest_memory_bytes: u64,
    /// How long the last local snapshot kept the lane from applying entries, the wait for space or
    /// a place included, milliseconds.
    pub snapshot_stall_ms: u64,
    /// Syncs of the node's log since the start, of files and directories.
    pub log_fsyncs: u64,
    /// The name of the group whose entries keep the oldest log segment of the node.
    pub log_pinned_by: Option<String>,
    /// Damaged log segments of the node that are not deleted yet.
    pub log_damaged: u64,
    /// Bytes free on the filesystem of the node's log.
    pub log_disk_available: u64,
    /// The disk operation in which the node's log lane hangs.
    pub log_hangs: Option<Hanging>,
    /// The operation that has hung longest on the disk of the group's snapshots.
    pub snapshots_hang: Option<Hanging>,
    /// How long it took to finish, seal and read back the last local snapshot, from when the guest
    /// had written it; and when that was. Milliseconds.
    pub last_capture_ms: u64,
    pub last_snapshot_wall_ms: u64,
    /// How long the last restore took, milliseconds.
    pub last_restore_ms: u64,
    pub stored: StoreReport,
    pub transfers: TransferTally,
    /// Calls of the guest that faulted: entries, queries and snapshots.
    pub guest_faults: u64,
    /// Snapshots of the guest that trapped in a row, the last one included.
    pub snapshot_traps: u64,
    /// Log lines of the guest that were dropped, because there were too many.
    pub guest_log_dropped: u64,
    /// Sessions of the group now; since the bootstrap, sessions that were evicted for others, and
    /// openings that were refused because none could be evicted.
    pub sessions: u64,
    pub sessions_evicted: u64,
    pub sessions_refused: u64,
    /// Those who watch the group's events, when the report was asked for.
    pub watches: WatchReport,
    /// Time from a proposal to its commit, on a leader; and time to apply an entry. Seconds.
    pub commits: Histogram,
    pub applies: Histogram,
}

impl GroupReport {
    /// The report of a group whose lanes have done nothing yet.
    pub(crate) fn blank(status: GroupStatus) -> Self {
        Self {
            status,
            snapshot_bytes: 0,
            log_bytes: 0,
            guest_memory_bytes: 0,
            snapshot_stall_ms: 0,
            log_fsyncs: 0,
            log_pinned_by: None,
            log_damaged: 0,
            log_disk_available: 0,
            log_hangs: None,
            snapshots_hang: None,
            last_capture_ms: 0,
            last_snapshot_wall_ms: 0,
            last_restore_ms: 0,
            stored: Default::default(),
            transfers: Default::default(),
            guest_faults: 0,
            snapshot_traps: 0,
            guest_log_dropped: 0,
            sessions: 0,
            sessions_evicted: 0,
            sessions_refused: 0,
            watches: WatchReport::default(),
            commits: seconds_histogram(),
            applies: seconds_histogram(),
        }
    }

    /// Puts a report together from the core's status, the log, the store and the guest.
    pub(crate) fn of(lanes: &Lanes, status: GroupStatus) -> Self {
        use std::sync::atomic::Ordering::Relaxed;
        let log = lanes.log.stats();
        let gauges = &lanes.gauges;
        Self {
            stored: lanes.stored.now(),
            transfers: lanes.transfers.now(),
            snapshot_bytes: status.snapshots.iter().map(|desc| desc.length).sum(),
            status,
            log_bytes: log.bytes,
            guest_memory_bytes: gauges.guest_memory_bytes.load(Relaxed),
            snapshot_stall_ms: gauges.snapshot_stall_ms.load(Relaxed),
            log_fsyncs: log.fsyncs,
            log_pinned_by: log.pinned_by,
            log_damaged: log.damaged,
            log_disk_available: log.available,
            log_hangs: lanes.log.hanging(),
            snapshots_hang: gauges.snapshots_hang(),
            last_capture_ms: gauges.last_capture_ms.load(Relaxed),
            last_snapshot_wall_ms: gauges.last_snapshot_wall_ms.load(Relaxed),
            last_restore_ms: gauges.last_restore_ms.load(Relaxed),
            guest_faults: gauges.guest_faults.load(Relaxed),
            snapshot_traps: gauges.snapshot_traps.load(Relaxed),
            guest_log_dropped: gauges.guest_log_dropped.load(Relaxed),
            sessions: gauges.sessions.load(Relaxed),
            sessions_evicted: gauges.sessions_evicted.load(Relaxed),
            sessions_refused: gauges.sessions_refused.load(Relaxed),
            watches: WatchReport::default(),
            commits: gauges.commits.clone(),
            applies: gauges.applies.clone(),
        }
    }
}

/// A handle to one hosted group; cheap to clone.
#[derive(Clone)]
pub struct GroupHandle {
    inner: Arc<Inner>,
}

struct Inner {
    id: GroupId,
    name: String,
    requests: mpsc::Sender<Request>,
    frames: mpsc::Sender<Inbound>,
    events: mpsc::UnboundedSender<Inward>,
    state: watch::Receiver<ReplicaState>,
    report: watch::Receiver<GroupReport>,
    frames_dropped: AtomicU64,
    /// Space for commands of streams, which they hold from here until they are answered.
    stream_permits: StreamPermits,
    /// Bytes that wait in the two bounded channels.
    frame_bytes: AtomicUsize,
    request_bytes: AtomicUsize,
    /// The group's store lane, once it runs, and the disk that it works on.
    store: OnceLock<(Arc<dyn StoreHandle>, Arc<SnapshotDisk>)>,
    board: Arc<EventBoard>,
}

/// The receiving ends, owned by the group's actor.
pub(crate) struct Mailbox {
    pub requests: mpsc::Receiver<Request>,
    pub frames: mpsc::Receiver<Inbound>,
    pub events: mpsc::UnboundedReceiver<Inward>,
}

impl GroupHandle {
    pub(crate) fn new(
        id: GroupId,
        name: &str,
        state: watch::Receiver<ReplicaState>,
        report: watch::Receiver<GroupReport>,
    ) -> (Self, Mailbox) {
        let (requests_in, requests) = mpsc::channel(REQUESTS_MAX);
        let (frames_in, frames) = mpsc::channel(FRAMES_MAX);
        let (events_in, events) = mpsc::unbounded_channel();
        let inner = Inner {
            id,
            name: name.to_owned(),
            requests: requests_in,
            frames: frames_in,
            events: events_in,
            state,
            report,
            frames_dropped: AtomicU64::new(0),
            stream_permits: StreamPermits::default(),
            frame_bytes: AtomicUsize::new(0),
            request_bytes: AtomicUsize::new(0),
            store: OnceLock::new(),
            board: Arc::default(),
        };
        (Self { inner: Arc::new(inner) }, Mailbox { requests, frames, events })
    }

    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Submits a command; the answer comes through the receiver, and a dropped sender means
    /// shutdown. `relief`: the command is meant to free memory of the guest.
    pub fn submit(
        &self,
        call: Call,
        relief: bool,
    ) -> Result<oneshot::Receiver<Result<Answer, Refusal>>, Refusal> {
        let (answer, receiver) = Reply::alone();
        self.put(Request::Propose { call, relief, answer })?;
        Ok(receiver)
    }

    /// The group's events, as far as this replica has applied its entries.
    pub fn events(&self) -> &Arc<EventBoard> {
        &self.inner.board
    }

    /// The permits that commands of streams wait for.
    pub(crate) fn stream_permits(&self) -> StreamPermits {
        self.inner.stream_permits.clone()
    }

    /// Submits a command of a stream that waited for its `permit`.
    pub(crate) fn submit_in(
        &self,
        line: &Arc<Line>,
        call: Call,
        relief: bool,
        permit: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Told>, Refusal> {
        let (answer, receiver) = Reply::in_line(Arc::clone(line), permit);
        let put = self.put(Request::Propose { call, relief, answer });
        put.inspect_err(|refusal| line.break_at(refusal))?;
        Ok(receiver)
    }

    pub async fn propose(&self, call: Call) -> Result<Answer, Refusal> {
        self.submit(call, false)?.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    pub async fn open_session(&self, nonce: u64) -> Result<Answer, Refusal> {
        let (answer, receiver) = Reply::alone();
        self.put(Request::OpenSession { nonce, answer })?;
        receiver.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    pub async fn close_session(&self, session: u64) -> Result<Answer, Refusal> {
        let (answer, receiver) = Reply::alone();
        self.put(Request::CloseSession { session, answer })?;
        receiver.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// Queries the group for no caller in particular.
    pub async fn query(&self, request: Bytes, linearizable: bool) -> Result<QueryAnswer, Refusal> {
        self.query_by(Asker::default(), request, linearizable).await
    }

    pub async fn query_by(
        &self,
        asker: Asker,
        request: Bytes,
        linearizable: bool,
    ) -> Result<QueryAnswer, Refusal> {
        let (answer, receiver) = oneshot::channel();
        self.put(Request::Query { request, linearizable, asker, answer })?;
        receiver.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// Publishes a new report before it returns, unless the actor is gone or its mailbox is full.
    pub async fn freshen(&self) {
        let (done, fresh) = oneshot::channel();
        if self.put(Request::Report { done }).is_ok() {
            let _ = fresh.await;
        }
    }

    /// Asks for a checkpoint and returns its index.
    pub async fn checkpoint(&self) -> Result<u64, Refusal> {
        let (answer, receiver) = oneshot::channel();
        self.put(Request::Checkpoint { answer })?;
        receiver.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// Gives an operator's order and returns the index at which it is committed.
    pub async fn order(&self, order: Order) -> Result<u64, Refusal> {
        let (answer, receiver) = oneshot::channel();
        self.put(Request::Order { order, answer })?;
        receiver.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// Has this replica, which has diverged, go on from another's snapshot, taken at the returned
    /// index or later.
    pub async fn repair(&self) -> Result<u64, Refusal> {
        let (answer, receiver) = oneshot::channel();
        self.put(Request::Repair { answer })?;
        receiver.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// The entry at `index` of this node's log; `None` if it cannot be read.
    pub async fn entry(&self, index: u64) -> Option<Entry> {
        let (answer, receiver) = oneshot::channel();
        self.put(Request::Entry { index, answer }).ok()?;
        receiver.await.ok().flatten()
    }

    /// Delivers a frame from a peer; it is dropped, and counted, if too many wait.
    pub fn deliver(&self, inbound: Inbound) {
        let bytes = inbound.frame.bytes();
        let waiting = self.inner.frame_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting > FRAMES_BYTES_MAX || self.inner.frames.try_send(inbound).is_err() {
            self.inner.frame_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.inner.frames_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Releases the bytes of a frame that the actor took.
    pub(crate) fn took_frame(&self, inbound: &Inbound) {
        self.inner.frame_bytes.fetch_sub(inbound.frame.bytes(), Ordering::Relaxed);
    }

    /// Releases the bytes of a request that the actor took.
    pub(crate) fn took_request(&self, request: &Request) {
        self.inner.request_bytes.fetch_sub(request.bytes(), Ordering::Relaxed);
    }

    /// Raises an event on the channel that drops none.
    pub(crate) fn raise(&self, event: Event) {
        // The actor is gone only if the process ends or the group stopped.
        let _ = self.inner.events.send(Inward { event, delivery: None });
    }

    /// Raises an event that carries answers, on the same channel.
    pub(crate) fn raise_with(&self, event: Event, delivery: Delivery) {
        // The actor is gone only if the process ends or the group stopped.
        let _ = self.inner.events.send(Inward { event, delivery: Some(delivery) });
    }

    /// Sets the store lane, through which the group's objects are read, and its disk.
    pub(crate) fn set_store(&self, store: Arc<dyn StoreHandle>, disk: Arc<SnapshotDisk>) {
        // A group has one store lane, and it is set once.
        let _ = self.inner.store.set((store, disk));
    }

    /// The disk of the group's snapshots; for a group that does not run, a disk that never hangs.
    pub(crate) fn snapshot_disk(&self) -> Arc<SnapshotDisk> {
        self.inner.store.get().map(|(_, disk)| Arc::clone(disk)).unwrap_or_default()
    }

    /// Reads a listed object whole, calling `progress` after each block.
    pub(crate) fn scrub(
        &self,
        desc: &SnapshotDesc,
        progress: &mut dyn FnMut(),
    ) -> Result<(), OpenError> {
        let Some((store, _)) = self.inner.store.get() else { return Ok(()) };
        open_object(&**store, desc, Use::Scrubbing)?.verify(progress)
    }

    /// Whether the log lists the object, by the last report.
    pub(crate) fn lists(&self, desc: &SnapshotDesc) -> bool {
        self.report().status.snapshots.contains(desc)
    }

    /// Whether an object that could not be read is bad. An object that was unlisted meanwhile was
    /// deleted on purpose; a lack of descriptors or memory says nothing about the object.
    pub(crate) fn is_bad(&self, desc: &SnapshotDesc, error: &OpenError) -> bool {
        match error {
            OpenError::Short { .. } => false,
            OpenError::Missing { .. } => self.lists(desc),
            OpenError::Bad { .. } | OpenError::Disk { .. } => true,
        }
    }

    /// The replica's state, now and as it changes; any number may watch.
    pub fn watch(&self) -> watch::Receiver<ReplicaState> {
        self.inner.state.clone()
    }

    pub fn report(&self) -> GroupReport {
        let report = self.inner.report.borrow().clone();
        GroupReport { watches: self.inner.board.watches(), ..report }
    }

    /// The group's lineage, once it is known here.
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        self.inner.report.borrow().status.lineage
    }

    pub fn frames_dropped(&self) -> u64 {
        self.inner.frames_dropped.load(Ordering::Relaxed)
    }

    fn put(&self, request: Request) -> Result<(), Refusal> {
        use mpsc::error::TrySendError;
        let bytes = request.bytes();
        let waiting = self.inner.request_bytes.fetch_add(bytes, Ordering::Relaxed);
        let put = if waiting > REQUESTS_BYTES_MAX {
            Err(Refusal::Overloaded)
        } else {
            self.inner.requests.try_send(request).map_err(|e| match e {
                TrySendError::Full(_) => Refusal::Overloaded,
                TrySendError::Closed(_) => {
                    let cause = self.inner.state.borrow().refusal();
                    cause.filter(|_| !planted("lose_the_cause")).unwrap_or(Refusal::ShuttingDown)
                }
            })
        };
        put.inspect_err(|_| {
            self.inner.request_bytes.fetch_sub(bytes, Ordering::Relaxed);
        })
    }
}

//! The way into a group: a bounded mailbox, and the tickets that wait for their answers.
//!
//! - Client requests never wait to get in: a full mailbox is `Refusal::Overloaded` at once.
//! - Peers' frames may be dropped when the mailbox is full; raft makes that good.
//! - Lane events and snapshot events have a channel of their own that never drops: their number is
//!   bounded by the work that was given out.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use lockstep_core::apply::Answer;
use lockstep_core::entry::Call;
use lockstep_core::fault::Refusal;
use lockstep_core::group::{Event, GroupStatus, Inbound, ReplicaState};
use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::snapshot::SnapshotDesc;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::group::askers::Asker;
use crate::group::deliveries::Delivery;
use crate::group::disk_watch::Hanging;
use crate::group::line::{Line, Reply, StreamRoom, Told};
use crate::group::{Lanes, open_object};
use crate::metrics::{TransferTally, seconds_histogram};
use crate::store::{OpenError, StoreHandle, StoreReport, Use};

/// Client requests that may wait in one group's mailbox.
pub(crate) const REQUESTS_MAX: usize = 65_536;
/// Frames that may wait in one group's mailbox.
pub(crate) const FRAMES_MAX: usize = 4_096;
/// Bytes of requests, and of frames, that may wait there.
pub(crate) const REQUESTS_BYTES_MAX: usize = 64 << 20;
pub(crate) const FRAMES_BYTES_MAX: usize = 64 << 20;

/// What a guest said to a query, and the applied index it said it at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueryAnswer {
    /// `Err` is the guest's own "no".
    pub result: Result<Bytes, Bytes>,
    pub applied: u64,
    /// The replica is halted: what it answers from stands still.
    pub halted: Option<HaltedAt>,
}

/// What an answer of a halted replica comes with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HaltedAt {
    /// The entry that cannot be applied; 0: it is none.
    pub entry: u64,
    pub cause: String,
}

/// One client request, with the place its answer goes.
pub(crate) enum Request {
    Propose {
        call: Call,
        /// It is to make room.
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
    /// Asks for a mark, and is answered with its index.
    Mark {
        answer: oneshot::Sender<Result<u64, Refusal>>,
    },
    /// The report is to be as of now.
    Report {
        done: oneshot::Sender<()>,
    },
}

impl Request {
    /// Answers it with a no.
    pub(crate) fn refuse(self, refusal: Refusal) {
        match self {
            Self::Propose { answer, .. }
            | Self::OpenSession { answer, .. }
            | Self::CloseSession { answer, .. } => answer.send(Err(refusal)),
            Self::Query { answer, .. } => drop(answer.send(Err(refusal))),
            Self::Mark { answer } => drop(answer.send(Err(refusal))),
            Self::Report { done } => drop(done),
        }
    }

    /// Whether whoever sent it is still there.
    pub(crate) fn waits(&self) -> bool {
        match self {
            Self::Propose { answer, .. }
            | Self::OpenSession { answer, .. }
            | Self::CloseSession { answer, .. } => !answer.is_closed(),
            Self::Query { answer, .. } => !answer.is_closed(),
            Self::Mark { answer } => !answer.is_closed(),
            Self::Report { done } => !done.is_closed(),
        }
    }

    /// Bytes that it holds in the mailbox.
    fn bytes(&self) -> usize {
        match self {
            Self::Propose { call, .. } => call.payload.len(),
            Self::OpenSession { .. }
            | Self::CloseSession { .. }
            | Self::Mark { .. }
            | Self::Report { .. } => 0,
            Self::Query { request, .. } => request.len(),
        }
    }
}

/// What lanes and workers tell the actor.
pub(crate) struct Inward {
    pub event: Event,
    /// What the answers in it count as.
    pub delivery: Option<Delivery>,
}

/// A status of one group on one node, as last published (at least once a second).
#[derive(Clone, Debug)]
pub struct GroupReport {
    pub status: GroupStatus,
    /// Bytes of the group's snapshot objects.
    pub snapshot_bytes: u64,
    /// Bytes of the node's log segments, shared by all groups.
    pub log_bytes: u64,
    /// Guest linear memory, bytes.
    pub guest_memory_bytes: u64,
    /// For how long the last inline snapshot held up apply, waiting for room included,
    /// milliseconds.
    pub snapshot_stall_ms: u64,
    /// fdatasync calls of the node's log since the start.
    pub log_fsyncs: u64,
    /// The group that keeps the oldest log segment of the node.
    pub log_pinned_by: Option<GroupId>,
    /// Damaged log segments of the node that are still there.
    pub log_damaged: u64,
    /// Bytes that the filesystem of the node's log has left.
    pub log_disk_available: u64,
    /// The operation that the node's log hangs in.
    pub log_hangs: Option<Hanging>,
    /// The one that something hangs in at the disk of the group's snapshots.
    pub snapshots_hang: Option<Hanging>,
    /// How long the last snapshot took from the mark to the seal, and when it was sealed.
    pub last_capture_ms: u64,
    pub last_snapshot_wall_ms: u64,
    /// How long the last restore took.
    pub last_restore_ms: u64,
    pub stored: StoreReport,
    pub transfers: TransferTally,
    /// Inline `snapshot` traps, queries that trapped, rebuilds of the guest.
    pub guest_faults: u64,
    /// Snapshots of the guest that trapped in a row, up to now.
    pub snapshot_traps: u64,
    /// Lines of the guest that were too many for the node's log.
    pub guest_log_dropped: u64,
    /// Sessions of the group; those that made room for others, and openings that found none, since
    /// the founding.
    pub sessions: u64,
    pub sessions_evicted: u64,
    pub sessions_refused: u64,
    /// From proposals to their commit, on a leader; and applying an entry. Seconds.
    pub commits: Histogram,
    pub applies: Histogram,
}

impl GroupReport {
    /// Of a group whose lanes did nothing yet.
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
            commits: seconds_histogram(),
            applies: seconds_histogram(),
        }
    }

    /// What `status` shows of a group, put together from core, log, store and guest.
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
    /// For commands of streams, from here to their answers.
    stream_room: StreamRoom,
    /// Bytes that wait in the two bounded channels.
    frame_bytes: AtomicUsize,
    request_bytes: AtomicUsize,
    /// The group's store lane, from when it runs on.
    store: OnceLock<Arc<dyn StoreHandle>>,
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
            stream_room: StreamRoom::default(),
            frame_bytes: AtomicUsize::new(0),
            request_bytes: AtomicUsize::new(0),
            store: OnceLock::new(),
        };
        (Self { inner: Arc::new(inner) }, Mailbox { requests, frames, events })
    }

    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Puts a command in; the answer comes through the receiver. A dropped sender means shutdown.
    /// `relief`: it is to make room.
    pub fn submit(
        &self,
        call: Call,
        relief: bool,
    ) -> Result<oneshot::Receiver<Result<Answer, Refusal>>, Refusal> {
        let (answer, receiver) = Reply::alone();
        self.put(Request::Propose { call, relief, answer })?;
        Ok(receiver)
    }

    /// Where commands of streams wait for room.
    pub(crate) fn stream_room(&self) -> StreamRoom {
        self.inner.stream_room.clone()
    }

    /// Puts in a command of a stream, which has its room.
    pub(crate) fn submit_in(
        &self,
        line: &Arc<Line>,
        call: Call,
        relief: bool,
        room: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Told>, Refusal> {
        let (answer, receiver) = Reply::in_line(Arc::clone(line), room);
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

    /// Asks for nobody in particular.
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

    /// The report is as of now when this returns, unless the actor is gone or too busy to be asked.
    pub async fn freshen(&self) {
        let (done, fresh) = oneshot::channel();
        if self.put(Request::Report { done }).is_ok() {
            let _ = fresh.await;
        }
    }

    /// Asks for a mark; its index.
    pub async fn mark(&self) -> Result<u64, Refusal> {
        let (answer, receiver) = oneshot::channel();
        self.put(Request::Mark { answer })?;
        receiver.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// A frame from a peer; dropped (and counted) when too many wait.
    pub fn deliver(&self, inbound: Inbound) {
        let bytes = inbound.frame.bytes();
        let waiting = self.inner.frame_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting > FRAMES_BYTES_MAX || self.inner.frames.try_send(inbound).is_err() {
            self.inner.frame_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.inner.frames_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The actor took a frame out.
    pub(crate) fn took_frame(&self, inbound: &Inbound) {
        self.inner.frame_bytes.fetch_sub(inbound.frame.bytes(), Ordering::Relaxed);
    }

    /// The actor took a request out.
    pub(crate) fn took_request(&self, request: &Request) {
        self.inner.request_bytes.fetch_sub(request.bytes(), Ordering::Relaxed);
    }

    /// An event that must not be lost.
    pub(crate) fn raise(&self, event: Event) {
        // The actor is gone only when the process ends or the group stopped.
        let _ = self.inner.events.send(Inward { event, delivery: None });
    }

    /// One that brings answers.
    pub(crate) fn raise_with(&self, event: Event, delivery: Delivery) {
        // As above.
        let _ = self.inner.events.send(Inward { event, delivery: Some(delivery) });
    }

    /// Where the group's objects are.
    pub(crate) fn set_store(&self, store: Arc<dyn StoreHandle>) {
        // There is one store lane a group, and it is set once.
        let _ = self.inner.store.set(store);
    }

    /// Reads a listed object whole, calling `progress` after each block.
    pub(crate) fn scrub(
        &self,
        desc: &SnapshotDesc,
        progress: &mut dyn FnMut(),
    ) -> Result<(), OpenError> {
        let Some(store) = self.inner.store.get() else { return Ok(()) };
        open_object(&**store, desc, Use::Scrubbing)?.verify(progress)
    }

    /// Whether the log lists the object now.
    pub(crate) fn lists(&self, desc: &SnapshotDesc) -> bool {
        self.report().status.snapshots.contains(desc)
    }

    /// The replica's state, now and as it changes; any number may watch.
    pub fn watch(&self) -> watch::Receiver<ReplicaState> {
        self.inner.state.clone()
    }

    pub fn report(&self) -> GroupReport {
        self.inner.report.borrow().clone()
    }

    pub fn frames_dropped(&self) -> u64 {
        self.inner.frames_dropped.load(Ordering::Relaxed)
    }

    fn put(&self, request: Request) -> Result<(), Refusal> {
        use mpsc::error::TrySendError;
        let bytes = request.bytes();
        let waiting = self.inner.request_bytes.fetch_add(bytes, Ordering::Relaxed);
        let put = match waiting > REQUESTS_BYTES_MAX {
            true => Err(Refusal::Overloaded),
            false => self.inner.requests.try_send(request).map_err(|e| match e {
                TrySendError::Full(_) => Refusal::Overloaded,
                TrySendError::Closed(_) => {
                    let cause = self.inner.state.borrow().refusal();
                    cause.filter(|_| !planted("lose_the_cause")).unwrap_or(Refusal::ShuttingDown)
                }
            }),
        };
        put.inspect_err(|_| {
            self.inner.request_bytes.fetch_sub(bytes, Ordering::Relaxed);
        })
    }
}

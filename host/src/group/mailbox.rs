//! The way into a group: a bounded mailbox, and the tickets that wait for their answers.
//!
//! - Client requests never wait to get in: a full mailbox is `Refusal::Overloaded` at once.
//! - Peers' frames may be dropped when the mailbox is full; raft makes that good.
//! - Lane events and snapshot events have a channel of their own that never drops: their number is
//!   bounded by the work that was given out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lockstep_core::apply::Answer;
use lockstep_core::entry::{Call, MarkReason};
use lockstep_core::fault::Refusal;
use lockstep_core::group::{Event, GroupStatus, Inbound, ReplicaState};
use lockstep_core::ids::{GroupId, Ticket};
use tokio::sync::{mpsc, oneshot, watch};

/// Client requests that may wait in one group's mailbox.
pub(crate) const REQUESTS_MAX: usize = 65_536;
/// Frames that may wait in one group's mailbox.
pub(crate) const FRAMES_MAX: usize = 4_096;

/// What a guest said to a query, and the applied index it said it at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueryAnswer {
    /// `Err` is the guest's own "no".
    pub result: Result<Bytes, Bytes>,
    pub applied: u64,
}

/// One client request, with the place its answer goes.
pub(crate) enum Request {
    Propose {
        call: Call,
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    },
    OpenSession {
        nonce: u64,
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    },
    Query {
        request: Bytes,
        linearizable: bool,
        answer: oneshot::Sender<Result<QueryAnswer, Refusal>>,
    },
}

/// What lanes and workers tell the actor.
#[expect(clippy::large_enum_variant, reason = "events are the common case")]
pub(crate) enum Inward {
    Event(Event),
    /// The guest answered a query.
    Queried {
        ticket: Ticket,
        answer: Result<QueryAnswer, Refusal>,
    },
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
    /// The longest stall of apply by an inline snapshot so far, milliseconds.
    pub snapshot_stall_ms: u64,
    /// fdatasync calls of the node's log since the start.
    pub log_fsyncs: u64,
    /// Why marks were not captured, the last cause.
    pub last_capture_error: Option<String>,
    /// Inline `snapshot` traps, queries that trapped, rebuilds of the guest.
    pub guest_faults: u64,
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
    pub fn submit(
        &self,
        call: Call,
    ) -> Result<oneshot::Receiver<Result<Answer, Refusal>>, Refusal> {
        let (answer, receiver) = oneshot::channel();
        self.put(Request::Propose { call, answer })?;
        Ok(receiver)
    }

    pub async fn propose(&self, call: Call) -> Result<Answer, Refusal> {
        self.submit(call)?.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    pub async fn open_session(&self, nonce: u64) -> Result<Answer, Refusal> {
        let (answer, receiver) = oneshot::channel();
        self.put(Request::OpenSession { nonce, answer })?;
        receiver.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    pub async fn query(&self, request: Bytes, linearizable: bool) -> Result<QueryAnswer, Refusal> {
        let (answer, receiver) = oneshot::channel();
        self.put(Request::Query { request, linearizable, answer })?;
        receiver.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// Asks the leader for a mark; nothing happens on another node.
    pub fn mark(&self) {
        self.raise(Event::Mark { reason: MarkReason::Operator });
    }

    /// A frame from a peer; dropped (and counted) when too many wait.
    pub fn deliver(&self, inbound: Inbound) {
        if self.inner.frames.try_send(inbound).is_err() {
            self.inner.frames_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An event that must not be lost.
    pub(crate) fn raise(&self, event: Event) {
        // The actor is gone only when the process ends or the group stopped.
        let _ = self.inner.events.send(Inward::Event(event));
    }

    /// The apply lane's answer to a query.
    pub(crate) fn answer(&self, ticket: Ticket, answer: Result<QueryAnswer, Refusal>) {
        let _ = self.inner.events.send(Inward::Queried { ticket, answer });
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
        self.inner.requests.try_send(request).map_err(|e| match e {
            TrySendError::Full(_) => Refusal::Overloaded,
            TrySendError::Closed(_) => {
                self.inner.state.borrow().refusal().unwrap_or(Refusal::ShuttingDown)
            }
        })
    }
}

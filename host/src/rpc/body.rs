//! [`RequestBody`]: the bytes of one call's request, on their way to the decoder.
//!
//! - gRPC sends the length of a message before the message, so the message is refused, or charged
//!   to its connection, before a byte of it is kept. A call whose message finds no free memory
//!   waits, but not for long.
//! - A message that has begun must arrive whole in time; the message of a unary call, and the first
//!   message of a peer, must also begin in time.
//! - The flow-control window is given back as soon as bytes are read here, because the message's
//!   charge bounds them from then on. The charge is held until the next message begins or the call
//!   ends.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http_body::Frame;
use lockstep_core::limits;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use crate::budget::Charge;
use crate::modules::PIECE_BYTES_MAX;
use crate::rpc::links::{CallKind, Link};
use crate::rpc::port::patience_for;
use crate::rpc::refuse::Refused;

/// The flag and the length that gRPC puts in front of each message, bytes.
const HEAD_BYTES: usize = 5;
/// Allowance for all that a message holds beside its largest field.
const REST_BYTES: usize = 4 << 10;
/// Largest request of a call that carries names and numbers only.
const SMALL_BYTES: usize = 16 << 10;
/// How long the message of a unary call, and the first message of a peer, may take to begin; less
/// if the port's patience is shorter.
const CALL_FIRST_MAX: Duration = Duration::from_secs(10);
const PEER_FIRST_MAX: Duration = Duration::from_secs(5);
/// How long a call, and a stream, waits for the memory that its next message needs, and how often
/// it checks for that memory.
const CALL_MEMORY_WAIT_MAX: Duration = Duration::from_secs(1);
const STREAM_MEMORY_WAIT_MAX: Duration = Duration::from_secs(10);
const MEMORY_LOOK: Duration = Duration::from_millis(20);

/// What this node accepts from the caller of one method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Method {
    pub kind: CallKind,
    /// Largest first message, and largest later message, bytes.
    first: usize,
    later: usize,
    /// How long the first message may take to begin; `None` if it may take any time.
    first_max: Option<Duration>,
    /// Only peers call this method.
    pub peers: bool,
}

impl Method {
    pub(super) fn of(path: &str) -> Self {
        let call = |largest: usize| Self {
            kind: CallKind::Unary,
            first: largest,
            later: 0,
            first_max: Some(CALL_FIRST_MAX),
            peers: false,
        };
        let stream = |first, later| Self {
            kind: CallKind::Stream,
            first,
            later,
            first_max: None,
            ..call(0)
        };
        let peers = |later| Self {
            first_max: Some(PEER_FIRST_MAX),
            peers: true,
            ..stream(SMALL_BYTES, later)
        };
        const MESSAGE: usize = limits::GRPC_MESSAGE_BYTES_MAX;
        match path {
            "/lockstep.v1.Lockstep/Apply" | "/lockstep.v1.Lockstep/Query" => {
                call(limits::COMMAND_BYTES_MAX + REST_BYTES)
            }
            "/lockstep.v1.Lockstep/StageModule" => call(PIECE_BYTES_MAX + REST_BYTES),
            "/lockstep.v1.Lockstep/ApplyStream" => stream(MESSAGE, MESSAGE),
            // One small message, and then answers for as long as the call lives.
            "/lockstep.v1.Lockstep/Watch" => Self { kind: CallKind::Stream, ..call(SMALL_BYTES) },
            "/lockstep.peer.v1.Peer/Meet" => Self { peers: true, ..call(SMALL_BYTES) },
            "/lockstep.peer.v1.Peer/Frames" => peers(MESSAGE),
            "/lockstep.peer.v1.Peer/Bulk" => peers(limits::SNAPSHOT_BLOCK_BYTES + REST_BYTES),
            other if other.starts_with("/lockstep.v1.") => call(SMALL_BYTES),
            // Health and reflection.
            _other => stream(SMALL_BYTES, SMALL_BYTES),
        }
    }
}

/// The body of one call's request.
pub(super) struct RequestBody {
    source: RecvStream,
    link: Arc<Link>,
    method: Method,
    patience: Duration,
    /// The deadline that the caller of a unary call set.
    caller: Option<Instant>,
    /// When the first message must have begun, or the message under way must be complete.
    deadline: Option<Instant>,
    /// Bytes that were read and not yet passed on.
    pending: Bytes,
    /// The bytes of an incomplete message head that were already passed on.
    head: Vec<u8>,
    /// Bytes of the message under way that are still to come.
    missing: usize,
    /// How many messages have begun.
    begun: u64,
    /// Until when the next message waits for free memory.
    memory_until: Option<Instant>,
    charge: Option<Charge>,
    timer: Timer,
    /// Since when the decoder has not asked for more bytes.
    unasked: Option<Instant>,
}

/// A timer with one alarm at a time.
#[derive(Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready at `at`.
    fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }
}

impl RequestBody {
    /// `patience` is the port's, `timeout` the caller's own.
    pub(super) fn new(
        source: RecvStream,
        link: Arc<Link>,
        method: Method,
        patience: Duration,
        timeout: Option<Duration>,
    ) -> Self {
        let timeout = timeout.filter(|_| method.kind == CallKind::Unary);
        let now = Instant::now();
        let caller = timeout.and_then(|timeout| now.checked_add(timeout));
        let first = method.first_max.map(|most| now + most.min(patience));
        Self {
            source,
            link,
            method,
            patience,
            caller,
            deadline: first.into_iter().chain(caller).min(),
            pending: Bytes::new(),
            head: Vec::new(),
            missing: 0,
            begun: 0,
            memory_until: None,
            charge: None,
            timer: Timer::default(),
            unasked: None,
        }
    }

    /// Extends a stream's deadline by the time in which this node did not read from it.
    fn asked(&mut self) {
        let Some(since) = self.unasked.take() else { return };
        if self.method.kind == CallKind::Stream {
            self.deadline = self.deadline.map(|deadline| deadline + since.elapsed());
        }
    }

    /// How many of the pending bytes may be passed on: all before the head of a message that waits
    /// for free memory.
    fn look(&mut self) -> Result<usize, Status> {
        let mut at = 0;
        while at < self.pending.len() {
            let rest = self.pending.len() - at;
            if self.missing > 0 {
                let part = self.missing.min(rest);
                self.missing -= part;
                at += part;
                if self.missing == 0 {
                    self.deadline = None;
                }
                continue;
            }
            let part = HEAD_BYTES - self.head.len();
            if rest < part {
                self.head.extend_from_slice(&self.pending[at..]);
                return Ok(at + rest);
            }
            let mut head = [0; HEAD_BYTES];
            head[..self.head.len()].copy_from_slice(&self.head);
            head[HEAD_BYTES - part..].copy_from_slice(&self.pending[at..at + part]);
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let limit = if self.begun == 0 { self.method.first } else { self.method.later };
            if length > limit {
                return Err(Refused::too_large("message", length, limit).into_status());
            }
            if !self.begin(length)? {
                break;
            }
            self.head.clear();
            at += part;
        }
        Ok(at)
    }

    /// Charges a message to its connection and begins it; false while there is no memory for it, an
    /// error once that lasted too long.
    fn begin(&mut self, length: usize) -> Result<bool, Status> {
        self.charge = None;
        self.charge = self.link.share.take(length);
        let now = Instant::now();
        if self.charge.is_none() {
            let wait = match self.method.kind {
                CallKind::Unary => CALL_MEMORY_WAIT_MAX,
                CallKind::Stream => STREAM_MEMORY_WAIT_MAX,
            };
            let until = *self.memory_until.get_or_insert(now + wait.min(self.patience / 2));
            if now < until {
                return Ok(false);
            }
            return Err(Refused::no_memory(length).into_status());
        }
        self.memory_until = None;
        self.missing = length;
        self.begun += 1;
        let due = now + patience_for(self.patience, length);
        let due = self.caller.map_or(due, |caller| caller.min(due));
        self.deadline = (length > 0).then_some(due);
        Ok(true)
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            if self.pending.is_empty() {
                let bytes = match self.source.poll_data(cx) {
                    Poll::Ready(Some(Ok(bytes))) => bytes,
                    Poll::Ready(Some(Err(error))) => {
                        return Poll::Ready(Some(Err(Status::from_error(error.into()))));
                    }
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return self.poll_deadline(cx),
                };
                // The message's charge bounds what is kept. An error only means that the call is
                // over.
                let _ = self.source.flow_control().release_capacity(bytes.len());
                self.link.received(bytes.len());
                self.pending = bytes;
            }
            let ready = match self.look() {
                Ok(ready) => ready,
                Err(status) => return Poll::Ready(Some(Err(status))),
            };
            if ready > 0 {
                return Poll::Ready(Some(Ok(self.pending.split_to(ready))));
            }
            if !self.pending.is_empty()
                && self.timer.poll(Instant::now() + MEMORY_LOOK, cx).is_pending()
            {
                return Poll::Pending;
            }
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        match self.timer.poll(deadline, cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Refused::half_sent().into_status()))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.asked();
        let polled = self.poll_bytes(cx);
        self.unasked = polled.is_ready().then(Instant::now);
        polled.map(|bytes| bytes.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.pending.is_empty() && self.source.is_end_stream()
    }
}

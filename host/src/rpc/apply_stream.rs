//! [`ApplyStream`]: one client's stream of commands, and the stream of their answers.
//!
//! - No command has a task of its own: polling the answers reads commands, hands them to the
//!   group, and collects the answers that are there into one message.
//! - A group answers in the order of its log, and the log has a stream's commands in their order;
//!   so it suffices to wait for the oldest unanswered command.
//! - At most [`STREAM_INFLIGHT_MAX`] commands and [`STREAM_BYTES_MAX`] bytes of them are under way,
//!   and at most one message is held here; everything else waits at the client. A command also
//!   waits while the group has no capacity for it.
//! - A stream that nobody polls, because its client does not read, must not withhold capacity from
//!   others: while it has a message to send, it has no place in the group's queue. Afterwards it
//!   queues again, at most once for each command under way, because it takes no further commands
//!   before its turn.
//! - Commands are taken in their order. Once the group refused one, the stream ends after the
//!   answers to the commands before it: a command that has no answer by then was not taken.
//! - If the client leaves, the group learns this once for all commands of the stream, so the
//!   commands that it took have no gap.
//! - If answers are long, fewer commands are under way: a client that stops reading makes this node
//!   hold about [`STREAM_ANSWERS_BYTES`] of answers, all of it charged to its connection.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lockstep_core::apply::Answer;
use lockstep_core::entry::Call;
use lockstep_core::fault::Refusal;
use lockstep_core::limits;
use lockstep_core::mutant::planted;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use crate::budget::Share;
use crate::group::GroupHandle;
use crate::group::line::{Line, Told};
use crate::router::Router;
use crate::rpc::client_api::outcome;
use crate::rpc::proto::client as wire;
use crate::rpc::proto::client::stream_answer;
use crate::rpc::refuse::{Refused, check_command, check_sequence};
use crate::rpc::server::until;
use crate::rpc::{STREAM_BYTES_MAX, STREAM_COMMANDS_MAX, STREAM_INFLIGHT_MAX};

/// A message takes no more answers once it holds this many, or this many bytes of them.
const ANSWERS_MAX: usize = 1_024;
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The bytes of answers that the commands under way may be expected to produce.
const STREAM_ANSWERS_BYTES: usize = 8 << 20;
/// The expected length of an answer is an exponential mean in which each new answer has a weight of
/// one in this many; it begins with the longest possible answer.
const MEAN_OF: usize = 16;

/// The answers of one stream; polling them does all the work.
pub(super) struct ApplyStream {
    source: Streaming<wire::ApplyStreamRequest>,
    /// The memory share of the stream's connection.
    share: Arc<Share>,
    router: Router,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// True once the node is about to stop and refuses commands.
    closing: watch::Receiver<bool>,
    /// The group and the session that the stream's first message named.
    target: Option<Target>,
    /// Commands of the last message that were not yet handed to the group.
    held: VecDeque<Held>,
    /// The first held command's place in the queue for the group's capacity.
    permit: Option<Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>>,
    /// The last poll brought no message. tonic polls for the next message before it passes on those
    /// that it has, and polls again only once they are sent. So nothing is being sent if two polls
    /// in a row bring none, and the stream is polled whenever it is woken.
    pended: bool,
    waiting: VecDeque<Waiting>,
    /// Bytes of the commands in `waiting`.
    waiting_bytes: usize,
    /// The expected length of an answer, from those seen so far.
    answer_bytes_mean: usize,
    ready: Vec<wire::StreamAnswer>,
    ready_bytes: usize,
    /// No more commands are read: the client is done or broke a rule, a command was refused, or the
    /// node stops.
    ended: bool,
    /// The status to send after the last answer.
    failure: Option<Status>,
    /// The group already got one more turn to answer before the next message leaves.
    lingered: bool,
}

#[derive(Clone)]
struct Target {
    group: GroupHandle,
    session: u64,
    line: Arc<Line>,
}

struct Held {
    tag: u64,
    call: Call,
    relief: bool,
}

struct Waiting {
    tag: u64,
    bytes: usize,
    relief: bool,
    answer: oneshot::Receiver<Told>,
}

impl ApplyStream {
    pub(super) fn new(
        source: Streaming<wire::ApplyStreamRequest>,
        share: Arc<Share>,
        router: Router,
        closing: watch::Receiver<bool>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self {
            source,
            share,
            router,
            stopped: Box::pin(until(stopped)),
            closing,
            target: None,
            held: VecDeque::new(),
            permit: None,
            pended: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            answer_bytes_mean: limits::OUTCOME_BYTES_MAX,
            ready: Vec::new(),
            ready_bytes: 0,
            ended: false,
            failure: None,
            lingered: false,
        }
    }

    /// Reads commands and hands them to the group for as long as the bounds allow.
    fn read(&mut self, cx: &mut Context<'_>) {
        loop {
            self.hand_on(cx);
            if self.ended || !self.held.is_empty() || self.is_busy() || self.is_full() {
                break;
            }
            match Pin::new(&mut self.source).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    if let Err(refused) = self.take(message) {
                        self.end(Some(refused.into()));
                    }
                }
                Poll::Ready(Some(Err(status))) => self.end(Some(status)),
                Poll::Ready(None) => self.end(None),
                Poll::Pending => break,
            }
        }
        if !self.ended && self.stopped.as_mut().poll(cx).is_ready() {
            self.ended = true;
        }
    }

    /// Reads nothing more; commands that are held still go to the group.
    fn end(&mut self, failure: Option<Status>) {
        self.ended = true;
        self.failure = failure;
    }

    /// Whether as many commands are under way as may be.
    fn is_busy(&self) -> bool {
        let most = STREAM_ANSWERS_BYTES / self.answer_bytes_mean.max(1);
        self.waiting.len() >= most.min(STREAM_INFLIGHT_MAX)
            || self.waiting_bytes >= STREAM_BYTES_MAX
            || (!self.waiting.is_empty() && self.share.is_near())
    }

    /// Whether the next command waits for answers to those under way.
    fn waits_for_answers(&self, relief: bool) -> bool {
        // When memory is high, the group refuses waiting commands without `relief`, but not those
        // with it. So a command with `relief` must not wait in the group behind one without.
        let overtakes = relief && self.waiting.back().is_some_and(|last| !last.relief);
        self.is_busy() || (overtakes && !planted("relief_overtakes"))
    }

    /// Queues one message's commands; those that break a rule on their own are answered here.
    fn take(&mut self, message: wire::ApplyStreamRequest) -> Result<(), Refused> {
        let wire::ApplyStreamRequest { group, session, lowest_unanswered, commands, relief } =
            message;
        if commands.len() > STREAM_COMMANDS_MAX {
            return Err(Refused::malformed(format!(
                "a message of {} commands is over the limit of {STREAM_COMMANDS_MAX}",
                commands.len()
            )));
        }
        let Target { session, line, .. } = match &self.target {
            Some(target) => target.clone(),
            None => {
                let found = self.router.group(&group);
                let group = found.ok_or_else(|| Refused::unknown_group(&group, &self.router))?;
                let line = Arc::new(Line::new(Arc::clone(&self.share)));
                let target = Target { group: group.clone(), session, line };
                self.target.insert(target).clone()
            }
        };
        if *self.closing.borrow() {
            line.break_at(&Refusal::ShuttingDown);
        }
        for wire::StreamCommand { tag, sequence, command } in commands {
            match check_command(&command).and_then(|()| check_sequence(session, sequence)) {
                Ok(()) => {
                    let call = Call { session, sequence, lowest_unanswered, payload: command };
                    self.held.push_back(Held { tag, call, relief });
                }
                Err(refused) => self.push(tag, refusal(refused)),
            }
        }
        Ok(())
    }

    /// Hands the held commands to the group, as far as it has capacity for them.
    fn hand_on(&mut self, cx: &mut Context<'_>) {
        let Some(Target { group, line, .. }) = self.target.clone() else { return };
        loop {
            if let Some(refusal) = line.refusal() {
                return self.break_off(&group, &refusal);
            }
            let Some(first) = self.held.front() else { return };
            let (bytes, relief) = (first.call.payload.len(), first.relief);
            if self.waits_for_answers(relief) {
                self.permit = None;
                return;
            }
            let Poll::Ready(permit) = self.permit(&group, bytes, cx) else { return };
            let Some(Held { tag, call, relief }) = self.held.pop_front() else { return };
            match group.submit_in(&line, call, relief, permit) {
                Ok(answer) => {
                    self.waiting_bytes += bytes;
                    self.waiting.push_back(Waiting { tag, bytes, relief, answer });
                }
                Err(refused) => {
                    let refused = Refused::by_group(&refused, group.name(), &self.router);
                    self.push(tag, refusal(refused));
                }
            }
        }
    }

    /// Waits for the group's capacity for a command of `bytes` bytes; queues for it only if this
    /// stream is certain to be polled at its turn.
    fn permit(
        &mut self,
        group: &GroupHandle,
        bytes: usize,
        cx: &mut Context<'_>,
    ) -> Poll<OwnedSemaphorePermit> {
        if self.permit.is_none() {
            if let Some(permit) = group.stream_permits().try_take(bytes) {
                return Poll::Ready(permit);
            }
            if !self.pended && !planted("keep_an_unread_place") {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let waiting =
            self.permit.get_or_insert_with(|| Box::pin(group.stream_permits().take(bytes)));
        let permit = waiting.as_mut().poll(cx);
        if permit.is_ready() {
            self.permit = None;
        }
        permit
    }

    /// Refuses all held commands, because the group refused one before them, and ends the stream.
    fn break_off(&mut self, group: &GroupHandle, why: &Refusal) {
        self.permit = None;
        let refused = |router: &Router| Refused::by_group(why, group.name(), router);
        for held in std::mem::take(&mut self.held) {
            self.push(held.tag, refusal(refused(&self.router)));
        }
        if !self.ended {
            self.end(Some(refused(&self.router).into()));
        }
    }

    /// Collects the answers that have arrived, from the oldest command on.
    fn collect(&mut self, cx: &mut Context<'_>) {
        while !self.is_full()
            && let Some(oldest) = self.waiting.front_mut()
            && let Poll::Ready(answer) = Pin::new(&mut oldest.answer).poll(cx)
        {
            let tag = oldest.tag;
            self.waiting_bytes -= oldest.bytes;
            self.waiting.pop_front();
            let answer = answer.map(|told| told.answer);
            if let Ok(Ok(answer)) = &answer {
                self.answer_bytes_mean -= self.answer_bytes_mean / MEAN_OF;
                self.answer_bytes_mean += answer.bytes() / MEAN_OF;
            }
            let answer = self.to_wire(answer);
            self.push(tag, answer);
        }
    }

    fn to_wire(
        &self,
        answer: Result<Result<Answer, Refusal>, oneshot::error::RecvError>,
    ) -> stream_answer::Answer {
        use wire::apply_response::Outcome;
        let group = self.target.as_ref().map_or("", |target| target.group.name());
        match answer {
            Ok(Ok(answer)) => match outcome(answer) {
                Ok(Outcome::Ok(bytes)) => stream_answer::Answer::Ok(bytes),
                Ok(Outcome::Rejected(rejection)) => stream_answer::Answer::Rejected(rejection),
                Err(_of_another_call) => refusal(Refused::cut_off(group, &self.router)),
            },
            Ok(Err(refused)) => refusal(Refused::by_group(&refused, group, &self.router)),
            Err(_gone) => refusal(Refused::cut_off(group, &self.router)),
        }
    }

    fn push(&mut self, tag: u64, answer: stream_answer::Answer) {
        self.ready_bytes += match &answer {
            stream_answer::Answer::Ok(bytes) => bytes.len(),
            stream_answer::Answer::Rejected(rejection) => rejection.message.len(),
            stream_answer::Answer::Refused(refusal) => refusal.message.len(),
        };
        self.ready.push(wire::StreamAnswer { tag, answer: Some(answer) });
    }

    fn is_full(&self) -> bool {
        self.ready.len() >= ANSWERS_MAX || self.ready_bytes >= ANSWER_BYTES_MAX
    }

    /// The next message to the client.
    fn message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<wire::ApplyStreamResponse, Status>>> {
        self.read(cx);
        self.collect(cx);
        if self.ready.is_empty() {
            let over = self.ended && self.held.is_empty() && self.waiting.is_empty();
            return if over { Poll::Ready(self.failure.take().map(Err)) } else { Poll::Pending };
        }
        // The group answers all commands of an entry at once: after one more turn, this message
        // holds more than the first of these answers.
        if !self.lingered && !self.waiting.is_empty() && !self.is_full() {
            self.lingered = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.lingered = false;
        self.ready_bytes = 0;
        let answers = std::mem::take(&mut self.ready);
        Poll::Ready(Some(Ok(wire::ApplyStreamResponse { answers })))
    }
}

impl Stream for ApplyStream {
    type Item = Result<wire::ApplyStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = self.message(cx);
        self.pended = message.is_pending();
        if !self.pended && !planted("keep_an_unread_place") {
            self.permit = None;
        }
        message
    }
}

impl Drop for ApplyStream {
    /// Tells the group that the client is gone before the receivers of the answers are dropped, one
    /// after the other.
    fn drop(&mut self) {
        if let Some(target) = &self.target {
            target.line.leave();
        }
    }
}

fn refusal(refused: Refused) -> stream_answer::Answer {
    stream_answer::Answer::Refused(refused.into_stream())
}

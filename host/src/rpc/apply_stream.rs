//! [`ApplyStream`]: one client's stream of commands, and the stream of their answers.
//!
//! - There is no task and no channel per command: polling the answers reads commands, hands them to
//!   the group, and collects whatever has been answered into one message.
//! - A group answers in the order of its log, which is the order commands came in; so the oldest
//!   unanswered command is the one to wait for.
//! - At most [`STREAM_INFLIGHT_MAX`] commands, and [`STREAM_BYTES_MAX`], are under way, and one
//!   message is held; the rest waits with the client. So does a command that the group has no room
//!   for now.
//! - Commands are taken in their order. Once the group refused one, the stream ends behind the
//!   answers of those before it: what has no answer then was not taken.
//! - Where answers are long, fewer commands are under way: a reader that stops reading holds about
//!   [`STREAM_ANSWERS_BYTES`] and no more, all of it charged to its connection.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lockstep_core::apply::Answer;
use lockstep_core::entry::Call;
use lockstep_core::fault::Refusal;
use lockstep_core::limits;
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

/// A message takes no more answers once it has so many, or so many bytes.
const ANSWERS_MAX: usize = 1_024;
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Bytes of answers that the commands under way are expected to have.
const STREAM_ANSWERS_BYTES: usize = 8 << 20;
/// The length of an answer is expected to be the mean of the last ones, of so many by weight; of
/// the first, the longest.
const MEAN_OF: usize = 16;

/// The answers of one stream; polling them does all the work.
pub(super) struct ApplyStream {
    source: Streaming<wire::ApplyStreamRequest>,
    /// Of the connection that it came over.
    share: Arc<Share>,
    router: Router,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// True once commands are refused: the node is about to stop.
    closing: watch::Receiver<bool>,
    /// Where the first message said that commands go.
    target: Option<Target>,
    /// Commands of the last message that the group was not given yet.
    held: VecDeque<Held>,
    /// Room in the group for the first of them.
    room: Option<Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>>,
    waiting: VecDeque<Waiting>,
    /// Bytes of the commands that wait.
    waiting_bytes: usize,
    /// How long an answer is, as far as they were seen.
    answer_bytes_mean: usize,
    ready: Vec<wire::StreamAnswer>,
    ready_bytes: usize,
    /// No more commands: the client is done, broke the rules, or the node stops.
    ended: bool,
    /// Said behind the last answer.
    failure: Option<Status>,
    /// Gave the group one more turn to answer before this message leaves.
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
            room: None,
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

    /// Takes commands for as long as there is room.
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

    /// Nothing more is read; what is held still goes on.
    fn end(&mut self, failure: Option<Status>) {
        self.ended = true;
        self.failure = failure;
    }

    /// As many commands are under way as may be.
    fn is_busy(&self) -> bool {
        let most = STREAM_ANSWERS_BYTES / self.answer_bytes_mean.max(1);
        self.waiting.len() >= most.min(STREAM_INFLIGHT_MAX)
            || self.waiting_bytes >= STREAM_BYTES_MAX
            || (!self.waiting.is_empty() && self.share.is_near())
    }

    /// Puts one message's commands in line; those that no group takes are answered here.
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

    /// Gives the group what is held, as far as it has room.
    fn hand_on(&mut self, cx: &mut Context<'_>) {
        let Some(Target { group, line, .. }) = self.target.clone() else { return };
        loop {
            if let Some(refusal) = line.refusal() {
                return self.break_off(&group, &refusal);
            }
            let Some(first) = self.held.front() else { return };
            if self.is_busy() {
                return;
            }
            let bytes = first.call.payload.len();
            let Poll::Ready(room) = self.room(&group, bytes, cx) else { return };
            let Some(Held { tag, call, relief }) = self.held.pop_front() else { return };
            match group.submit_in(&line, call, relief, room) {
                Ok(answer) => {
                    self.waiting_bytes += bytes;
                    self.waiting.push_back(Waiting { tag, bytes, answer });
                }
                Err(refused) => {
                    let refused = Refused::by_group(&refused, group.name(), &self.router);
                    self.push(tag, refusal(refused));
                }
            }
        }
    }

    /// Room in the group for a command of so many bytes.
    fn room(
        &mut self,
        group: &GroupHandle,
        bytes: usize,
        cx: &mut Context<'_>,
    ) -> Poll<OwnedSemaphorePermit> {
        if self.room.is_none()
            && let Some(room) = group.stream_room().try_take(bytes)
        {
            return Poll::Ready(room);
        }
        let waiting = self.room.get_or_insert_with(|| Box::pin(group.stream_room().take(bytes)));
        let room = waiting.as_mut().poll(cx);
        if room.is_ready() {
            self.room = None;
        }
        room
    }

    /// A command was refused: so is all that is held behind it, and the stream ends with that.
    fn break_off(&mut self, group: &GroupHandle, why: &Refusal) {
        let refused = |router: &Router| Refused::by_group(why, group.name(), router);
        for held in std::mem::take(&mut self.held) {
            self.push(held.tag, refusal(refused(&self.router)));
        }
        if !self.ended {
            self.end(Some(refused(&self.router).into()));
        }
    }

    /// Collects answers from the oldest command on, as far as they are there.
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
}

impl Stream for ApplyStream {
    type Item = Result<wire::ApplyStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.read(cx);
        this.collect(cx);
        if this.ready.is_empty() {
            return match this.ended && this.held.is_empty() && this.waiting.is_empty() {
                true => Poll::Ready(this.failure.take().map(Err)),
                false => Poll::Pending,
            };
        }
        // The group answers a whole pack; it is given one turn to get further than its first
        // answer.
        if !this.lingered && !this.waiting.is_empty() && !this.is_full() {
            this.lingered = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.lingered = false;
        this.ready_bytes = 0;
        let answers = std::mem::take(&mut this.ready);
        Poll::Ready(Some(Ok(wire::ApplyStreamResponse { answers })))
    }
}

fn refusal(refused: Refused) -> stream_answer::Answer {
    stream_answer::Answer::Refused(refused.into_stream())
}

//! [`Line`]: the commands of one stream, which are taken in their order or not at all; and
//! [`Reply`], where the answer to a command goes.
//!
//! - Once a command of a line is refused, no later one is taken. So its client can send all of them
//!   again, in order, and none was applied before its turn.
//! - A line loses its client as a whole: once the group finds the client gone at one command, it
//!   drops every later command too. So the commands that it takes have no gap.
//! - Answers to a line's commands are charged to the line's connection until they are read. An
//!   answer that finds no space is dropped, and the client is told that its command's fate is
//!   unknown.
//! - A line's commands wait for permits, first come, first served: an overloaded group makes its
//!   streams wait instead of refusing their commands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::budget::{Charge, Share};
use lockstep_core::apply::Answer;
use lockstep_core::fault::Refusal;
use lockstep_core::limits;
use lockstep_core::mutant::{plant, planted};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Commands of streams that a group holds at once, bytes: less than the bound for all proposals, so
/// that other proposals still find space.
const STREAMS_BYTES_MAX: usize = 24 << 20;
/// The bytes that one permit covers; a command of n bytes takes n / `PERMIT_BYTES` + 1 permits.
const PERMIT_BYTES: usize = 1 << 10;

const _: () = assert!(STREAMS_BYTES_MAX < limits::PROPOSALS_WAITING_BYTES_MAX);
const _: () = assert!(STREAMS_BYTES_MAX / PERMIT_BYTES < limits::PROPOSALS_WAITING_MAX);

/// What an answer is charged in addition to its own bytes.
const ANSWER_OVERHEAD_BYTES: usize = 64;
/// An answer of at most this size is small beside its command; only the connection's own bound can
/// refuse it.
const LITTLE_BYTES: usize = 1 << 10;

/// The commands of one stream, in their order.
#[derive(Debug)]
pub(crate) struct Line {
    share: Arc<Share>,
    /// Set once a command of the line was refused: the reason. No later command is taken.
    broken: OnceLock<Refusal>,
    /// The client is gone. Never unset, so once the client of one command counts as gone, so does
    /// the client of every command that is checked later.
    left: AtomicBool,
}

/// The answer to a command of a line.
#[derive(Debug)]
pub(crate) struct Told {
    pub answer: Result<Answer, Refusal>,
    _charge: Option<Charge>,
}

impl Line {
    /// A line for commands that come over the connection with this share.
    pub(crate) fn new(share: Arc<Share>) -> Self {
        Self { share, broken: OnceLock::new(), left: AtomicBool::new(false) }
    }

    /// The refusal for the next command, if an earlier command of the line was refused.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.broken.get().map(|first| match first {
            // The refused command may have been applied. The commands after it were not.
            Refusal::Unknown { .. } => Refusal::Lost,
            other => other.clone(),
        })
    }

    /// Notes that a command of the line was refused; the first refusal counts.
    pub(crate) fn break_at(&self, refusal: &Refusal) {
        let _ = self.broken.set(refusal.clone());
    }

    /// Notes that the client waits for no answers any more.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Charges an answer to the connection; if there is no space for it, it is replaced by a
    /// refusal.
    fn charged(&self, answer: Result<Answer, Refusal>) -> Told {
        let bytes = ANSWER_OVERHEAD_BYTES + answer.as_ref().map_or(0, Answer::bytes);
        let charge = if bytes <= LITTLE_BYTES {
            self.share.take_little(bytes)
        } else {
            self.share.take(bytes)
        };
        match charge {
            Some(charge) => Told { answer, _charge: Some(charge) },
            None => {
                let why = "earlier answers on this connection were not read".to_owned();
                Told { answer: Err(Refusal::Unknown { why }), _charge: None }
            }
        }
    }
}

/// A group's permits for commands of streams.
#[derive(Clone, Debug)]
pub(crate) struct StreamPermits(Arc<Semaphore>);

impl Default for StreamPermits {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_BYTES_MAX / PERMIT_BYTES)))
    }
}

impl StreamPermits {
    /// Takes the permit for a command of `bytes` bytes, if there is enough now.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_many_owned(units(bytes)).ok()
    }

    /// Waits for the permit for a command of `bytes` bytes.
    pub(crate) async fn take(self, bytes: usize) -> OwnedSemaphorePermit {
        self.0.acquire_many_owned(units(bytes)).await.expect("nobody closes it")
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / PERMIT_BYTES + 1).unwrap_or(u32::MAX)
}

/// Where the answer to a command goes.
#[derive(Debug)]
pub(crate) enum Reply {
    /// To a call for this command alone.
    Alone(oneshot::Sender<Result<Answer, Refusal>>),
    /// To a stream.
    InLine {
        to: oneshot::Sender<Told>,
        line: Arc<Line>,
        /// The command's permit, given back with the answer.
        _permit: OwnedSemaphorePermit,
    },
}

impl Reply {
    /// The reply to a command that comes in a call of its own.
    pub(crate) fn alone() -> (Self, oneshot::Receiver<Result<Answer, Refusal>>) {
        let (to, receiver) = oneshot::channel();
        (Self::Alone(to), receiver)
    }

    /// The reply to a command of a stream.
    pub(crate) fn in_line(
        line: Arc<Line>,
        permit: OwnedSemaphorePermit,
    ) -> (Self, oneshot::Receiver<Told>) {
        let (to, receiver) = oneshot::channel();
        (Self::InLine { to, line, _permit: permit }, receiver)
    }

    /// Whether the caller is gone. A stream that ends drops its receivers one after the other, so
    /// they do not count.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Alone(to) => to.is_closed(),
            Self::InLine { to, .. } if planted("leave_one_by_one") => to.is_closed(),
            Self::InLine { line, .. } => line.left.load(Ordering::Relaxed),
        }
    }

    fn line(&self) -> Option<&Arc<Line>> {
        match self {
            Self::Alone(_) => None,
            Self::InLine { line, .. } => Some(line),
        }
    }

    /// Why the command must not be taken: an earlier one of its line was refused.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        plant!("pass_the_refused" does return None);
        self.line()?.refusal()
    }

    /// Notes that the command is refused: from now on, so are all later ones of its line.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        if let Some(line) = self.line() {
            line.break_at(refusal);
        }
    }

    pub(crate) fn send(self, answer: Result<Answer, Refusal>) {
        if let Err(refusal) = &answer {
            self.refused(refusal);
        }
        // If the receiver is gone, the caller gave up waiting.
        match self {
            Self::Alone(to) => drop(to.send(answer)),
            Self::InLine { to, line, _permit } => drop(to.send(line.charged(answer))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Budgets};

    /// A line of a connection that may hold 1,000 bytes.
    fn line() -> Line {
        let budgets = Budgets { clients: Budget::new(1 << 20), peers: Budget::new(0) };
        Line::new(Share::new(budgets, 1_000))
    }

    /// A client that reads no answers holds no more than its connection may.
    #[tokio::test]
    async fn answers_that_nobody_takes_have_a_bound() {
        let (line, permits) = (Arc::new(line()), StreamPermits::default());
        let mut told = Vec::new();
        for _ in 0..4 {
            let (reply, receiver) =
                Reply::in_line(Arc::clone(&line), permits.clone().take(1).await);
            reply.send(Ok(Answer::Ok(bytes::Bytes::from(vec![0; 400]))));
            told.push(receiver.await.expect("it was sent"));
        }
        let kept = told.iter().filter(|told| told.answer.is_ok()).count();
        assert_eq!((kept, line.share.used()), (2, 928));
        assert!(matches!(told[2].answer, Err(Refusal::Unknown { .. })));
        assert_eq!(line.refusal(), None, "it was applied in its turn");
        drop(told);
        assert_eq!(line.share.used(), 0);
    }

    #[test]
    fn what_comes_behind_a_refused_command_is_told_that_nothing_happened() {
        let rows = [
            (Refusal::Overloaded, Refusal::Overloaded),
            (Refusal::NotLeader { leader: None }, Refusal::NotLeader { leader: None }),
            (Refusal::Unknown { why: "it went".to_owned() }, Refusal::Lost),
        ];
        for (first, behind) in rows {
            let line = line();
            assert_eq!(line.refusal(), None);
            line.break_at(&first);
            line.break_at(&Refusal::ShuttingDown);
            assert_eq!(line.refusal(), Some(behind), "the first reason stays");
        }
    }

    /// While a stream ends, the group may look at its commands one by one.
    #[test]
    fn a_line_loses_its_client_as_a_whole() {
        let (line, permits) = (Arc::new(line()), StreamPermits::default());
        let mut replies = Vec::new();
        for _ in 0..3 {
            let permit = permits.try_take(1).expect("there is enough");
            let (reply, receiver) = Reply::in_line(Arc::clone(&line), permit);
            replies.push(reply);
            drop(receiver);
        }
        assert!(!replies.iter().any(Reply::is_closed), "its end was not told");
        line.leave();
        assert!(replies.iter().all(Reply::is_closed));
    }

    #[tokio::test]
    async fn a_permit_goes_back_with_the_answer() {
        let permits = StreamPermits::default();
        let all = permits.clone().take(STREAMS_BYTES_MAX - PERMIT_BYTES).await;
        let (reply, receiver) = Reply::in_line(Arc::new(line()), all);
        let mut waiting = std::pin::pin!(permits.take(0));
        let pending = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::future::Future::poll(waiting.as_mut(), cx).is_pending())
        });
        assert!(pending.await, "there is none");
        reply.send(Ok(Answer::Ok(bytes::Bytes::new())));
        drop(waiting.await);
        assert!(receiver.await.expect("it was sent").answer.is_ok());
    }
}

//! [`Line`]: the commands of one stream, which are taken in their order or not at all; and
//! [`Reply`], where the answer to a command goes.
//!
//! - Once a command of a line was refused, none behind it is taken. So its client can send them all
//!   again, in order, and finds none of them applied before its turn.
//! - Room for a line's commands is waited for, first come, first served: a group with more than it
//!   can do makes its streams wait instead of refusing them.

use std::sync::{Arc, OnceLock};

use lockstep_core::apply::Answer;
use lockstep_core::fault::Refusal;
use lockstep_core::limits;
use lockstep_core::mutant::planted;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Commands of streams that a group has in its hands, bytes. What others propose finds room beside
/// them.
const STREAMS_BYTES_MAX: usize = 24 << 20;
/// What room is counted in; a command takes one of these more than it fills.
const ROOM_UNIT_BYTES: usize = 1 << 10;

const _: () = assert!(STREAMS_BYTES_MAX < limits::PROPOSALS_WAITING_BYTES_MAX);
const _: () = assert!(STREAMS_BYTES_MAX / ROOM_UNIT_BYTES < limits::PROPOSALS_WAITING_MAX);

/// Where commands go one behind the other.
#[derive(Default, Debug)]
pub(crate) struct Line {
    /// Why one of them was refused: nothing behind it is taken.
    broken: OnceLock<Refusal>,
}

impl Line {
    /// What whoever comes now is told, if one before it was refused.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.broken.get().map(|first| match first {
            // The first may have been applied. What comes behind it is not.
            Refusal::Unknown { .. } => Refusal::Lost,
            other => other.clone(),
        })
    }

    /// A command of it was refused.
    pub(crate) fn break_at(&self, refusal: &Refusal) {
        let _ = self.broken.set(refusal.clone());
    }
}

/// Room in a group for commands of streams.
#[derive(Clone, Debug)]
pub(crate) struct StreamRoom(Arc<Semaphore>);

impl Default for StreamRoom {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_BYTES_MAX / ROOM_UNIT_BYTES)))
    }
}

impl StreamRoom {
    /// Waits for room for a command of so many bytes.
    pub(crate) async fn take(self, bytes: usize) -> OwnedSemaphorePermit {
        let units = u32::try_from(bytes / ROOM_UNIT_BYTES + 1).unwrap_or(u32::MAX);
        self.0.acquire_many_owned(units).await.expect("nobody closes it")
    }
}

/// Where the answer to a command goes.
#[derive(Debug)]
pub(crate) struct Reply {
    to: oneshot::Sender<Result<Answer, Refusal>>,
    line: Option<Arc<Line>>,
    /// Given back with the answer.
    _room: Option<OwnedSemaphorePermit>,
}

impl Reply {
    /// For a command that comes by itself.
    pub(crate) fn alone() -> (Self, oneshot::Receiver<Result<Answer, Refusal>>) {
        let (to, receiver) = oneshot::channel();
        (Self { to, line: None, _room: None }, receiver)
    }

    /// For a command of a stream.
    pub(crate) fn in_line(
        line: Arc<Line>,
        room: OwnedSemaphorePermit,
    ) -> (Self, oneshot::Receiver<Result<Answer, Refusal>>) {
        let (to, receiver) = oneshot::channel();
        (Self { to, line: Some(line), _room: Some(room) }, receiver)
    }

    /// Whether nobody waits for it.
    pub(crate) fn is_closed(&self) -> bool {
        self.to.is_closed()
    }

    /// Why the command must not be taken: one before it in its line was refused.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        if planted("pass_the_refused") {
            return None;
        }
        self.line.as_ref()?.refusal()
    }

    /// The command is refused: from now on, so is all that comes behind it.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        if let Some(line) = &self.line {
            line.break_at(refusal);
        }
    }

    pub(crate) fn send(self, answer: Result<Answer, Refusal>) {
        if let Err(refusal) = &answer {
            self.refused(refusal);
        }
        // A receiver that is gone gave up waiting.
        drop(self.to.send(answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_behind_a_refused_command_is_told_that_nothing_happened() {
        let rows = [
            (Refusal::Overloaded, Refusal::Overloaded),
            (Refusal::NotLeader { leader: None }, Refusal::NotLeader { leader: None }),
            (Refusal::Unknown { why: "it went".to_owned() }, Refusal::Lost),
        ];
        for (first, behind) in rows {
            let line = Line::default();
            assert_eq!(line.refusal(), None);
            line.break_at(&first);
            line.break_at(&Refusal::ShuttingDown);
            assert_eq!(line.refusal(), Some(behind), "the first reason stays");
        }
    }

    #[tokio::test]
    async fn room_goes_back_with_the_answer() {
        let room = StreamRoom::default();
        let all = room.clone().take(STREAMS_BYTES_MAX - ROOM_UNIT_BYTES).await;
        let (reply, receiver) = Reply::in_line(Arc::default(), all);
        let mut waiting = std::pin::pin!(room.take(0));
        let pending = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::future::Future::poll(waiting.as_mut(), cx).is_pending())
        });
        assert!(pending.await, "there is none");
        reply.send(Ok(Answer::Ok(bytes::Bytes::new())));
        drop(waiting.await);
        assert!(receiver.await.expect("it was sent").is_ok());
    }
}

//! [`Pipeline`]: many commands under way over one stream.
//!
//! - [`Pipeline::submit`] waits for room only; the outcome comes through the [`Pending`] it
//!   returns.
//! - A lost stream is opened again, at the new leader if there is one. Within a session all
//!   unanswered commands are sent again; outside of one, those that may have arrived end as
//!   [`Error::Unknown`].
//! - When the last handle is dropped, what was submitted is still brought to its end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::client::{Client, Reply, fits};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::session::{OpenCall, Session};

/// A handle to a stream of commands; cheap to clone.
#[derive(Clone)]
pub struct Pipeline {
    client: Client,
    session: Option<Session>,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

/// One command on its way.
pub(crate) struct Job {
    pub command: Bytes,
    /// Its sequence, within a session.
    pub call: Option<OpenCall>,
    pub deadline: Instant,
    pub answer: oneshot::Sender<Result<Reply>>,
    /// Returned when the command ends.
    pub room: OwnedSemaphorePermit,
}

/// The outcome of a submitted command, once it is there.
pub struct Pending {
    answer: oneshot::Receiver<Result<Reply>>,
}

impl Pipeline {
    pub(crate) fn start(client: Client, session: Option<Session>, limit: usize) -> Self {
        let (jobs, queue) = mpsc::channel(limit);
        let id = session.as_ref().map_or(0, Session::id);
        tokio::spawn(Driver::new(client.clone(), id, queue).run());
        Self { client, session, jobs, room: Arc::new(Semaphore::new(limit)) }
    }

    /// Hands a command in, waiting while too many are under way.
    pub async fn submit(&self, command: impl Into<Bytes>) -> Result<Pending> {
        let command = command.into();
        fits("command", &command)?;
        let deadline = Instant::now() + self.client.options().deadline;
        let room = Arc::clone(&self.room).acquire_owned();
        let room = tokio::time::timeout_at(deadline, room).await.map_err(|_elapsed| no_room())?;
        let room = room.map_err(|_| Error::Closed)?;
        let call = match &self.session {
            Some(session) => Some(session.begin_until(deadline).await?),
            None => None,
        };
        let (answer, receiver) = oneshot::channel();
        let job = Job { command, call, deadline, answer, room };
        self.jobs.send(job).await.map_err(|_| Error::Closed)?;
        Ok(Pending { answer: receiver })
    }
}

/// The pipeline was full for the whole of a command's time.
fn no_room() -> Error {
    let message = "nothing under way in the pipeline came to its end in time".to_owned();
    Error::Refused { refusal: "overloaded".to_owned(), message, attempts: 0 }
}

impl Future for Pending {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The driver answers every job unless the runtime ends.
        Pin::new(&mut self.answer).poll(cx).map(|answer| {
            answer.unwrap_or_else(|_| {
                Err(Error::Unknown { message: "the runtime ended".to_owned(), attempts: 0 })
            })
        })
    }
}

//! [`Pipeline`]: many commands under way over one stream.
//!
//! - [`Pipeline::submit`] waits for room only; the outcome comes through the [`Pending`] it
//!   returns.
//! - A lost stream is opened again, at the new leader if there is one. Within a session all
//!   unanswered commands are sent again; outside of one, those that may have arrived end as
//!   [`Error::Unknown`].
//! - Commands are applied in the order in which they were submitted, those that are applied at all.
//!   Outside of a session one that ended as [`Error::Unknown`] may be applied at any time, or
//!   never. What several tasks submit at once has no order.
//! - Nodes take a bounded number and length of commands at a time ([`STREAM_INFLIGHT_MAX`],
//!   [`STREAM_INFLIGHT_BYTES_MAX`]); so do pipelines, and `submit` waits beyond it.
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
use crate::{STREAM_INFLIGHT_BYTES_MAX, STREAM_INFLIGHT_MAX};

/// What the window's bytes are counted in; a command takes one of these more than it fills.
const ROOM_UNIT_BYTES: usize = 1 << 10;

/// A handle to a stream of commands; cheap to clone.
#[derive(Clone)]
pub struct Pipeline {
    client: Client,
    session: Option<Session>,
    jobs: mpsc::Sender<Job>,
    window: Window,
}

/// How much may be under way.
#[derive(Clone)]
struct Window {
    commands: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A command's part of the window, until it is dropped.
#[derive(Default)]
pub(crate) struct Room {
    _command: Option<OwnedSemaphorePermit>,
    _bytes: Option<OwnedSemaphorePermit>,
}

/// One command on its way.
pub(crate) struct Job {
    pub command: Bytes,
    /// Its sequence, within a session.
    pub call: Option<OpenCall>,
    pub deadline: Instant,
    pub answer: oneshot::Sender<Result<Reply>>,
    /// Returned when the command ends.
    pub room: Room,
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
        Self { client, session, jobs, window: Window::new(limit) }
    }

    /// Hands a command in, waiting while too many are under way.
    pub async fn submit(&self, command: impl Into<Bytes>) -> Result<Pending> {
        let command = command.into();
        fits("command", &command)?;
        let deadline = Instant::now() + self.client.options().deadline;
        let room = self.window.take(command.len());
        let room = tokio::time::timeout_at(deadline, room).await.map_err(|_elapsed| no_room())?;
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

impl Window {
    fn new(commands: usize) -> Self {
        let bytes = Semaphore::new(STREAM_INFLIGHT_BYTES_MAX / ROOM_UNIT_BYTES);
        let commands = Semaphore::new(commands.min(STREAM_INFLIGHT_MAX));
        Self { commands: Arc::new(commands), bytes: Arc::new(bytes) }
    }

    async fn take(&self, bytes: usize) -> Room {
        let units = u32::try_from(bytes / ROOM_UNIT_BYTES + 1).unwrap_or(u32::MAX);
        // Nobody closes them.
        let _command = Arc::clone(&self.commands).acquire_owned().await.ok();
        let _bytes = Arc::clone(&self.bytes).acquire_many_owned(units).await.ok();
        Room { _command, _bytes }
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

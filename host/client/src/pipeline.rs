//! [`Pipeline`]: many commands under way over one stream.
//!
//! - [`Pipeline::submit`] waits only until the pipeline can take the command; its outcome comes
//!   through the returned [`Pending`].
//! - A lost stream is opened again, at the new leader if there is one. Within a session all
//!   unanswered commands are sent again; outside of one, those that may have arrived end as
//!   [`Error::Unknown`].
//! - Commands that are applied are applied in the order in which they were submitted. The exception
//!   is a command outside of a session that ended as [`Error::Unknown`]: it may be applied at any
//!   time. Commands that several tasks submit concurrently have no order.
//! - Nodes bound the number and the bytes of commands in flight ([`STREAM_INFLIGHT_MAX`],
//!   [`STREAM_INFLIGHT_BYTES_MAX`](crate::STREAM_INFLIGHT_BYTES_MAX)); pipelines keep to these
//!   bounds, and `submit` waits at them.
//! - Submitted commands are completed even after the last handle is dropped.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::client::{Client, Reply, fits};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::window::{Job, Window};
use crate::{SESSION_OPEN_CALLS_MAX, STREAM_INFLIGHT_MAX};

/// A handle to a stream of commands; cheap to clone.
#[derive(Clone)]
pub struct Pipeline {
    client: Client,
    session: Option<Session>,
    jobs: mpsc::Sender<Job>,
    window: Window,
}

/// A future of the outcome of a submitted command.
pub struct Pending {
    answer: oneshot::Receiver<Result<Reply>>,
}

impl Client {
    /// Opens a pipeline of commands outside of any session.
    pub fn pipeline(&self) -> Pipeline {
        Pipeline::start(self.clone(), None, STREAM_INFLIGHT_MAX)
    }
}

impl Session {
    /// Opens a pipeline of commands within this session.
    pub fn pipeline(&self) -> Pipeline {
        let limit = STREAM_INFLIGHT_MAX.min(SESSION_OPEN_CALLS_MAX as usize);
        Pipeline::start(self.client().clone(), Some(self.clone()), limit)
    }
}

impl Pipeline {
    fn start(client: Client, session: Option<Session>, limit: usize) -> Self {
        let (jobs, queue) = mpsc::channel(limit);
        let id = session.as_ref().map_or(0, Session::id);
        tokio::spawn(Driver::new(client.clone(), id, queue).run());
        Self { client, session, jobs, window: Window::new(limit) }
    }

    /// Submits a command; waits while too many are in flight.
    pub async fn submit(&self, command: impl Into<Bytes>) -> Result<Pending> {
        let command = command.into();
        fits("command", &command)?;
        let deadline = Instant::now() + self.client.options().deadline;
        let permit = self.window.take(command.len());
        let permit =
            tokio::time::timeout_at(deadline, permit).await.map_err(|_elapsed| window_is_full())?;
        let call = match &self.session {
            Some(session) => Some(session.begin_until(deadline).await?),
            None => None,
        };
        let (answer, receiver) = oneshot::channel();
        let job = Job { command, call, deadline, answer, permit };
        self.jobs.send(job).await.map_err(|_| Error::Closed)?;
        Ok(Pending { answer: receiver })
    }
}

/// The error of a command for which the pipeline was full until its deadline.
fn window_is_full() -> Error {
    let message = "no command in flight in the pipeline ended in time".to_owned();
    Error::Refused { refusal: "overloaded".to_owned(), message, attempts: 0 }
}

impl Future for Pending {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The driver answers every job, unless the runtime shuts down.
        Pin::new(&mut self.answer).poll(cx).map(|answer| {
            answer.unwrap_or_else(|_| {
                Err(Error::Unknown { message: "the runtime shut down".to_owned(), attempts: 0 })
            })
        })
    }
}

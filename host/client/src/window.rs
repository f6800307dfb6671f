//! [`Window`]: the bounds for commands in flight; [`Job`]: what a pipeline gives its driver.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use crate::client::Reply;
use crate::error::Result;
use crate::session::OpenCall;
use crate::{STREAM_INFLIGHT_BYTES_MAX, STREAM_INFLIGHT_MAX};

/// The bytes that one permit covers; a command of n bytes takes n / `PERMIT_BYTES` + 1 permits.
const PERMIT_BYTES: usize = 1 << 10;

/// The bounds for commands in flight.
#[derive(Clone)]
pub(crate) struct Window {
    commands: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A command's part of the window, given back on drop.
#[derive(Default)]
pub(crate) struct Permit {
    _command: Option<OwnedSemaphorePermit>,
    _bytes: Option<OwnedSemaphorePermit>,
}

/// One command on its way to the driver.
pub(crate) struct Job {
    pub command: Bytes,
    /// The command's call, within a session.
    pub call: Option<OpenCall>,
    pub deadline: Instant,
    pub answer: oneshot::Sender<Result<Reply>>,
    /// The command's part of the window, until the command ends.
    pub permit: Permit,
}

impl Window {
    pub(crate) fn new(commands: usize) -> Self {
        let bytes = Semaphore::new(STREAM_INFLIGHT_BYTES_MAX / PERMIT_BYTES);
        let commands = Semaphore::new(commands.min(STREAM_INFLIGHT_MAX));
        Self { commands: Arc::new(commands), bytes: Arc::new(bytes) }
    }

    pub(crate) async fn take(&self, bytes: usize) -> Permit {
        let units = u32::try_from(bytes / PERMIT_BYTES + 1).unwrap_or(u32::MAX);
        // The semaphores are never closed, so both calls succeed.
        let _command = Arc::clone(&self.commands).acquire_owned().await.ok();
        let _bytes = Arc::clone(&self.bytes).acquire_many_owned(units).await.ok();
        Permit { _command, _bytes }
    }
}

//! [`Session`]: calls that are applied once, however often they are sent.
//!
//! - Each call has a sequence of its own; it is never used again, not even after a call was given
//!   up.
//! - Every attempt tells the lowest sequence that still waits; servers forget answers below it.
//! - The sequences under way span at most [`SESSION_OPEN_CALLS_MAX`]; further calls wait.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::{Client, Reply, fits};
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::{SESSION_OPEN_CALLS_MAX, STREAM_INFLIGHT_MAX};

/// A session; cheap to clone, and calls may be made concurrently. A group has room for 4,096: who
/// is done with one closes it ([`Session::close`]).
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    client: Client,
    calls: Mutex<Calls>,
    /// The lowest unanswered sequence moved.
    moved: Notify,
}

impl Session {
    pub(crate) fn new(id: u64, client: Client) -> Self {
        let inner = Inner { id, client, calls: Mutex::new(Calls::default()), moved: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Its name at the servers.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Applies a command once. Retried until the deadline; the first outcome is returned.
    pub async fn apply(&self, command: impl Into<Bytes>) -> Result<Reply> {
        let command = command.into();
        fits("command", &command)?;
        let until = Instant::now() + self.inner.client.options().deadline;
        let call = self.begin_until(until).await?;
        self.inner.client.apply_as(&call, command, until).await
    }

    /// Closes it: the group keeps nothing for it any more, and has room for another session. Calls
    /// that are under way end with [`Error::SessionExpired`].
    pub async fn close(self) -> Result<()> {
        self.inner.client.close_session(self.id()).await
    }

    /// A stream of commands within this session.
    pub fn pipeline(&self) -> Pipeline {
        let limit = STREAM_INFLIGHT_MAX.min(SESSION_OPEN_CALLS_MAX as usize);
        Pipeline::start(self.inner.client.clone(), Some(self.clone()), limit)
    }

    /// The same, but for no longer than that.
    pub(crate) async fn begin_until(&self, until: Instant) -> Result<OpenCall> {
        let begun = tokio::time::timeout_at(until, self.begin()).await;
        begun.map_err(|_elapsed| Error::SessionFull {
            message: "no earlier call of the session came to its end in time".to_owned(),
        })
    }

    /// Waits until the window has room, and opens a call.
    pub(crate) async fn begin(&self) -> OpenCall {
        loop {
            let moved = self.inner.moved.notified();
            let begun = self.lock().begin();
            match begun {
                Some(sequence) => return OpenCall { session: self.clone(), sequence },
                None => moved.await,
            }
        }
    }

    pub(crate) fn lowest_unanswered(&self) -> u64 {
        self.lock().lowest()
    }

    fn end(&self, sequence: u64) {
        let moved = self.lock().end(sequence);
        if moved {
            self.inner.moved.notify_waiters();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.inner.calls.lock().expect("no holder of this lock panics")
    }
}

/// A call under way. Dropped, its sequence no longer waits for an answer, and is never used again.
pub(crate) struct OpenCall {
    session: Session,
    sequence: u64,
}

impl OpenCall {
    pub(crate) fn session(&self) -> u64 {
        self.session.id()
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(crate) fn lowest_unanswered(&self) -> u64 {
        self.session.lowest_unanswered()
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.session.end(self.sequence);
    }
}

/// The sequences of a session.
#[derive(Debug)]
struct Calls {
    /// The next to be used.
    next: u64,
    open: BTreeSet<u64>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { next: 1, open: BTreeSet::new() }
    }
}

impl Calls {
    /// A new sequence, unless the window is full.
    fn begin(&mut self) -> Option<u64> {
        if self.next - self.lowest() >= SESSION_OPEN_CALLS_MAX {
            return None;
        }
        let sequence = self.next;
        self.next += 1;
        self.open.insert(sequence);
        Some(sequence)
    }

    /// The lowest sequence that waits for its answer; the next one if none does.
    fn lowest(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }

    /// `sequence` was answered or given up; whether the lowest moved.
    fn end(&mut self, sequence: u64) -> bool {
        let before = self.lowest();
        assert!(self.open.remove(&sequence), "a call ends once");
        self.lowest() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_follows_the_oldest_open_call() {
        let mut calls = Calls::default();
        assert_eq!(calls.lowest(), 1, "nothing below the first waits");
        let begun: Vec<u64> = (0..4).filter_map(|_| calls.begin()).collect();
        assert_eq!(begun, [1, 2, 3, 4]);
        assert!(!calls.end(2), "1 still waits");
        assert!(calls.end(1));
        assert_eq!(calls.lowest(), 3, "2 was answered before 1");
        assert!(!calls.end(4) && calls.end(3));
        assert_eq!(calls.lowest(), 5);
        assert_eq!(calls.begin(), Some(5), "no sequence is used twice");
    }

    #[test]
    fn the_window_is_a_span_not_a_count() {
        let mut calls = Calls::default();
        for sequence in 1..=SESSION_OPEN_CALLS_MAX {
            assert_eq!(calls.begin(), Some(sequence));
        }
        assert_eq!(calls.begin(), None);
        for sequence in 2..=SESSION_OPEN_CALLS_MAX {
            calls.end(sequence);
        }
        assert_eq!(calls.begin(), None, "servers count from the lowest unanswered call");
        calls.end(1);
        assert_eq!(calls.begin(), Some(SESSION_OPEN_CALLS_MAX + 1));
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_makes_room() {
        let options = crate::Options::default();
        let client = Client::connect(["127.0.0.1:1"], options).expect("a good endpoint");
        let session = Session::new(9, client);
        let mut calls = Vec::new();
        for _ in 0..SESSION_OPEN_CALLS_MAX {
            calls.push(session.begin().await);
        }
        let mut waiting = std::pin::pin!(session.begin());
        let pending = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::future::Future::poll(waiting.as_mut(), cx).is_pending())
        });
        assert!(pending.await, "the window is full");
        drop(calls.remove(0));
        assert_eq!(waiting.await.sequence(), SESSION_OPEN_CALLS_MAX + 1);
        assert_eq!(session.lowest_unanswered(), 2);
    }
}

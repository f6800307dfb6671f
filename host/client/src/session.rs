//! [`Session`]: calls that are applied once, however often they are sent.
//!
//! - Each call has its own sequence, which is never used again, not even after the call was given
//!   up.
//! - Every attempt names the lowest sequence that still waits for its answer; nodes forget the
//!   answers below it.
//! - The open sequences span at most [`SESSION_OPEN_CALLS_MAX`]; further calls wait.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::{Client, Reply, fits};
use crate::error::{Error, Result};
use crate::{SESSION_OPEN_CALLS_MAX, v1};

/// A session; cheap to clone, and calls may be made concurrently. A group has at most 4,096
/// sessions: close one that is no longer needed ([`Session::close`]).
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    client: Client,
    calls: Mutex<Calls>,
    /// Notified when the lowest unanswered sequence rises.
    moved: Notify,
}

impl Client {
    /// Opens a session.
    pub async fn open_session(&self) -> Result<Session> {
        Ok(Session::new(self.new_session().await?, self.clone()))
    }
}

impl Session {
    pub(crate) fn new(id: u64, client: Client) -> Self {
        let inner = Inner { id, client, calls: Mutex::new(Calls::default()), moved: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// The session's id in its group.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Applies a command once. Retries until the deadline, and returns the first outcome.
    pub async fn apply(&self, command: impl Into<Bytes>) -> Result<Reply> {
        self.apply_until(command, Instant::now() + self.inner.client.options().deadline).await
    }

    /// Like [`Session::apply`], with a deadline of its own.
    pub async fn apply_until(&self, command: impl Into<Bytes>, until: Instant) -> Result<Reply> {
        let command = command.into();
        fits("command", &command)?;
        let call = self.begin_until(until).await?;
        let client = &self.inner.client;
        let request = || v1::ApplyRequest {
            group: client.group(),
            session: call.session(),
            sequence: call.sequence(),
            lowest_unanswered: call.lowest_unanswered(),
            command: command.clone(),
            relief: client.options().relief,
        };
        client.apply_within(request, until).await
    }

    /// Closes the session: the group forgets its answers and can open another session. Calls that
    /// are under way end with [`Error::SessionExpired`].
    pub async fn close(self) -> Result<()> {
        self.inner.client.close_session(self.id()).await
    }

    pub(crate) fn client(&self) -> &Client {
        &self.inner.client
    }

    /// Like [`Session::begin`], but waits until `until` at most.
    pub(crate) async fn begin_until(&self, until: Instant) -> Result<OpenCall> {
        let begun = tokio::time::timeout_at(until, self.begin()).await;
        begun.map_err(|_elapsed| Error::SessionFull {
            message: "no earlier call of the session ended in time".to_owned(),
        })
    }

    /// Waits until the window of open sequences has space, and opens a call.
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

/// An open call. When it is dropped, its sequence no longer waits for an answer.
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
    /// The next unused sequence.
    next: u64,
    open: BTreeSet<u64>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { next: 1, open: BTreeSet::new() }
    }
}

impl Calls {
    /// Opens a new sequence; `None` if the window is full.
    fn begin(&mut self) -> Option<u64> {
        if self.next - self.lowest() >= SESSION_OPEN_CALLS_MAX {
            return None;
        }
        let sequence = self.next;
        self.next += 1;
        self.open.insert(sequence);
        Some(sequence)
    }

    /// The lowest open sequence; the next unused one if none is open.
    fn lowest(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }

    /// Notes that `sequence` was answered or given up; returns whether the lowest one rose.
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
        assert_eq!(calls.lowest(), 1, "the first sequence is the lowest");
        let begun: Vec<u64> = (0..4).filter_map(|_| calls.begin()).collect();
        assert_eq!(begun, [1, 2, 3, 4]);
        assert!(!calls.end(2), "1 is still open");
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
    async fn a_call_that_is_given_up_gives_way() {
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

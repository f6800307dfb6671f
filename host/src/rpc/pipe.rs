//! [`Pipe`]: a small bounded queue between a thread that blocks and a task that does not.
//!
//! - Either side may close it. After the writer closed it, the reader still gets what is queued;
//!   after the reader closed it, the writer gets an error at once.
//! - It does not depend on a runtime: if the runtime ends while a worker waits here, the worker
//!   wakes up and gets an error.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The queue that both ends share.
struct Pipe<T> {
    state: Mutex<State<T>>,
    /// Wakes the thread that blocks on this pipe.
    changed: Condvar,
    limit: usize,
}

struct State<T> {
    queue: VecDeque<T>,
    /// Set once the writer writes no more: `Err` says why its source broke off.
    finished: Option<Result<(), String>>,
    /// The reader was dropped.
    abandoned: bool,
    /// Wakes the task that waits on this pipe.
    waker: Option<Waker>,
}

/// Which end is dropped.
enum End {
    Reader,
    Writer,
}

/// A queue of at most `limit` items that a thread writes and a task reads.
pub(super) fn outward<T>(limit: usize) -> (BlockingWriter<T>, TaskReader<T>) {
    let pipe = Pipe::new(limit);
    (BlockingWriter(Arc::clone(&pipe)), TaskReader(pipe))
}

/// A queue of at most `limit` items that a task writes and a thread reads.
pub(super) fn inward<T>(limit: usize) -> (TaskWriter<T>, BlockingReader<T>) {
    let pipe = Pipe::new(limit);
    (TaskWriter(Arc::clone(&pipe)), BlockingReader(pipe))
}

pub(super) struct BlockingWriter<T>(Arc<Pipe<T>>);
pub(super) struct BlockingReader<T>(Arc<Pipe<T>>);
pub(super) struct TaskWriter<T>(Arc<Pipe<T>>);
pub(super) struct TaskReader<T>(Arc<Pipe<T>>);

impl<T> BlockingWriter<T> {
    /// Queues an item; waits at most `timeout` while the queue is full.
    pub(super) fn write(&mut self, item: T, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.lock();
        while state.queue.len() >= self.0.limit && !state.abandoned {
            state = self.0.wait(state, deadline).ok_or_else(|| {
                io::Error::new(io::ErrorKind::TimedOut, "the peer accepts no frames")
            })?;
        }
        if state.abandoned {
            return Err(broken("the peer closed the channel"));
        }
        state.queue.push_back(item);
        self.0.notify(state);
        Ok(())
    }
}

impl<T> BlockingReader<T> {
    /// The next item; `None` if none came within `timeout`; an error after the last one.
    pub(super) fn read(&mut self, timeout: Duration) -> io::Result<Option<T>> {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.lock();
        loop {
            if let Some(item) = state.queue.pop_front() {
                self.0.notify(state);
                return Ok(Some(item));
            }
            match &state.finished {
                Some(Ok(())) => return Err(broken("the peer closed the channel")),
                Some(Err(why)) => return Err(broken(why)),
                None => {}
            }
            match self.0.wait(state, deadline) {
                Some(woken) => state = woken,
                None => return Ok(None),
            }
        }
    }
}

impl<T> TaskWriter<T> {
    /// Queues an item, and waits while the queue is full; false once the reader was dropped.
    pub(super) async fn write(&mut self, item: T) -> bool {
        let mut item = Some(item);
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.abandoned {
                return Poll::Ready(false);
            }
            if state.queue.len() >= self.0.limit {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.queue.extend(item.take());
            self.0.notify(state);
            Poll::Ready(true)
        })
        .await
    }

    /// Ready once the reader was dropped.
    pub(super) async fn abandoned(&mut self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            state.waker = Some(cx.waker().clone());
            if state.abandoned { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Ends the queue: `Err` tells the reader why no more items come.
    pub(super) fn finish(self, end: Result<(), String>) {
        self.0.lock().finished.get_or_insert(end);
    }
}

impl<T> TaskReader<T> {
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock();
        if let Some(item) = state.queue.pop_front() {
            self.0.notify(state);
            return Poll::Ready(Some(item));
        }
        if state.finished.is_some() {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<T> Pipe<T> {
    fn new(limit: usize) -> Arc<Self> {
        let state = State { queue: VecDeque::new(), finished: None, abandoned: false, waker: None };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), limit })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Waits for a change; `None` once the deadline has passed.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State<T>>,
        deadline: Instant,
    ) -> Option<MutexGuard<'a, State<T>>> {
        let left = deadline.checked_duration_since(Instant::now())?;
        let (state, _) =
            self.changed.wait_timeout(state, left).expect("no holder of this lock panics");
        Some(state)
    }

    fn notify(&self, mut state: MutexGuard<'_, State<T>>) {
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn let_go(&self, end: End) {
        let mut state = self.lock();
        match end {
            End::Reader => {
                state.abandoned = true;
                state.queue.clear();
            }
            End::Writer => {
                state.finished.get_or_insert(Ok(()));
            }
        }
        self.notify(state);
    }
}

impl<T> Drop for BlockingWriter<T> {
    fn drop(&mut self) {
        self.0.let_go(End::Writer);
    }
}

impl<T> Drop for TaskWriter<T> {
    fn drop(&mut self) {
        self.0.let_go(End::Writer);
    }
}

impl<T> Drop for BlockingReader<T> {
    fn drop(&mut self) {
        self.0.let_go(End::Reader);
    }
}

impl<T> Drop for TaskReader<T> {
    fn drop(&mut self) {
        self.0.let_go(End::Reader);
    }
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_full_pipe_makes_the_writer_wait_and_a_gone_reader_stops_it() {
        let (mut writer, mut reader) = outward(1);
        writer.write(1, LONG).expect("there is space");
        let full = writer.write(2, Duration::ZERO).expect_err("the pipe is full");
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        let waiting = std::thread::spawn(move || (writer.write(2, LONG), writer));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(reader.poll_read(&mut cx), Poll::Ready(Some(1)));
        let (written, mut writer) = waiting.join().expect("the writer does not panic");
        written.expect("the reader made space");
        drop(reader);
        let gone = writer.write(3, LONG).expect_err("the reader was dropped");
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_was_written_is_read_before_the_end() {
        let (mut writer, mut reader) = outward(4);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(reader.poll_read(&mut cx).is_pending());
        writer.write("last", LONG).expect("there is space");
        drop(writer);
        assert_eq!(reader.poll_read(&mut cx), Poll::Ready(Some("last")));
        assert_eq!(reader.poll_read(&mut cx), Poll::Ready(None));
    }

    #[tokio::test]
    async fn a_blocked_reader_hears_items_and_the_reason_of_the_end() {
        let (mut writer, mut reader) = inward(1);
        let reading = std::thread::spawn(move || {
            let first = reader.read(LONG);
            let second = reader.read(LONG);
            (first, second, reader.read(LONG))
        });
        assert!(writer.write(1).await && writer.write(2).await);
        writer.finish(Err("the cable was cut".to_owned()));
        let (first, second, end) = reading.join().expect("the reader does not panic");
        assert_eq!((first.ok(), second.ok()), (Some(Some(1)), Some(Some(2))));
        assert_eq!(end.expect_err("it broke").to_string(), "the cable was cut");
    }

    #[tokio::test]
    async fn a_task_hears_that_its_reader_is_gone() {
        let (mut writer, mut reader) = inward(1);
        assert_eq!(reader.read(Duration::ZERO).ok(), Some(None), "nothing yet");
        assert!(writer.write(1).await);
        let dropping = std::thread::spawn(move || drop(reader));
        writer.abandoned().await;
        assert!(!writer.write(2).await);
        dropping.join().expect("it only drops");
    }
}

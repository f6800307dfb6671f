//! Clients that make one call after the other for a given time, and their results.
//!
//! - A call counts for rate and latency if its answer came within the window. Calls before it warm
//!   up; those after it are only waited for.
//! - Errors are counted apart, never as calls; after one, a client rests for a moment.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::{Channel, Endpoint};

use super::histogram::Histogram;
use crate::rng::Rng;

/// Keys that are written and read.
pub(crate) const KEYS: u64 = 10_000;
/// Bytes of each value.
pub(crate) const VALUE_BYTES: usize = 256;
/// How long answers are waited for after the window.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a client rests after an error.
const REST: Duration = Duration::from_millis(10);

/// When calls are made, and when they count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    begin: Instant,
    end: Instant,
}

/// The results of one client, or of all.
#[derive(Clone, Default, Debug)]
pub(crate) struct Tally {
    /// Answers within the window.
    pub times: Histogram,
    /// Answers at any time.
    pub answered: u64,
    pub errors: u64,
    /// The first error, as text.
    pub error: Option<String>,
}

/// A client that runs.
pub(crate) type Client = Pin<Box<dyn Future<Output = Tally> + Send>>;
/// A client that is ready to run, with its session open; it waits for the window.
pub(crate) type Ready = Box<dyn FnOnce(Window) -> Client + Send>;

/// Makes a client ready.
pub(crate) fn ready<F, C>(run: F) -> Ready
where
    F: FnOnce(Window) -> C + Send + 'static,
    C: Future<Output = Tally> + Send + 'static,
{
    Box::new(|window| Box::pin(run(window)))
}

impl Window {
    pub(crate) fn from_now(warm_up: Duration, length: Duration) -> Self {
        let begin = Instant::now() + warm_up;
        Self { begin, end: begin + length }
    }

    /// The time at which a call starts now; `None` if the window is over.
    pub(crate) fn start(&self) -> Option<Instant> {
        Some(Instant::now()).filter(|now| *now < self.end)
    }

    pub(crate) async fn begun(&self) {
        sleep_until(self.begin).await;
    }

    pub(crate) async fn ended(&self) {
        sleep_until(self.end).await;
    }

    pub(crate) fn length(&self) -> Duration {
        self.end - self.begin
    }
}

impl Tally {
    /// Counts a call that started at `since` and has its answer now.
    pub(crate) fn answered(&mut self, window: &Window, since: Instant) {
        let now = Instant::now();
        self.answered += 1;
        if (window.begin..window.end).contains(&now) {
            let micros = now.duration_since(since).as_micros();
            self.times.record(u64::try_from(micros).unwrap_or(u64::MAX));
        }
    }

    pub(crate) async fn failed(&mut self, why: impl std::fmt::Display) {
        self.errors += 1;
        self.error.get_or_insert_with(|| why.to_string());
        sleep(REST).await;
    }

    /// Counts a call that started at `since` and ended now, with an answer or an error.
    pub(crate) async fn ended<T>(
        &mut self,
        window: &Window,
        since: Instant,
        result: Result<T, impl std::fmt::Display>,
    ) {
        match result {
            Ok(_) => self.answered(window, since),
            Err(why) => self.failed(why).await,
        }
    }

    fn add(&mut self, other: Self) {
        self.times.add(&other.times);
        self.answered += other.answered;
        self.errors += other.errors;
        self.error = self.error.take().or(other.error);
    }
}

/// All clients that run.
pub(crate) struct Clients {
    tasks: JoinSet<Tally>,
}

impl Clients {
    pub(crate) fn start(clients: Vec<Ready>, window: Window) -> Self {
        let mut tasks = JoinSet::new();
        for client in clients {
            tasks.spawn(client(window));
        }
        Self { tasks }
    }

    /// Waits for the last answers. All clients that wait longer than [`DRAIN`] count as a single
    /// error.
    pub(crate) async fn finish(mut self) -> Tally {
        let mut sum = Tally::default();
        let deadline = Instant::now() + DRAIN;
        while !self.tasks.is_empty() {
            match tokio::time::timeout_at(deadline, self.tasks.join_next()).await {
                Ok(Some(Ok(tally))) => sum.add(tally),
                Ok(Some(Err(panic))) => sum.failed(panic).await,
                Ok(None) => break,
                Err(_elapsed) => {
                    let left = self.tasks.len();
                    sum.failed(format!("{left} clients without an answer for {DRAIN:?}")).await;
                    self.tasks.abort_all();
                    break;
                }
            }
        }
        sum
    }
}

/// The keys and values that one client uses.
pub(crate) struct Keys {
    rng: Rng,
    value: Vec<u8>,
}

impl Keys {
    pub(crate) fn of_client(number: usize) -> Self {
        Self { rng: Rng::new(number as u64), value: vec![b'v'; VALUE_BYTES] }
    }

    pub(crate) fn key(&mut self) -> String {
        key(self.rng.below(KEYS))
    }

    /// The next value, which differs from all before it.
    pub(crate) fn value(&mut self) -> &[u8] {
        let number = format!("{:016x}", self.rng.next());
        self.value[..number.len()].copy_from_slice(number.as_bytes());
        &self.value
    }

    /// The next command, `set K V`.
    pub(crate) fn set(&mut self) -> Bytes {
        let key = self.key();
        set(&key, self.value())
    }
}

pub(crate) fn key(number: u64) -> String {
    format!("key-{number:08}")
}

/// The command that sets a key.
pub(crate) fn set(key: &str, value: &[u8]) -> Bytes {
    let mut command = Vec::with_capacity(5 + key.len() + value.len());
    command.extend_from_slice(b"set ");
    command.extend_from_slice(key.as_bytes());
    command.push(b' ');
    command.extend_from_slice(value);
    command.into()
}

/// Opens this many connections to an address, the same way for every system.
pub(crate) async fn dial(address: &str, connections: usize) -> anyhow::Result<Vec<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20);
    let mut channels = Vec::new();
    for _ in 0..connections {
        channels.push(endpoint.connect().await?);
    }
    Ok(channels)
}

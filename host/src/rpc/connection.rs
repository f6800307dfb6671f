//! One connection: HTTP/2 with limits that suit clients with deadlines and withstand malicious
//! ones.
//!
//! - A connection begins with small flow-control windows. While it carries much traffic in large
//!   frames it is lent larger windows, charged to the budget; a peer's connection is lent them at
//!   once. A connection that goes quiet gives them back.
//! - A connection ends when it breaks, when a ping goes unanswered, when it had no call for long,
//!   when its place is needed, or when the node stops. Except in the first two cases the client is
//!   told that no further call is accepted, and calls under way have a moment to end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::Request;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::transport::server::TcpConnectInfo;

use crate::budget::Charge;
use crate::rpc::call;
use crate::rpc::links::{Link, Traffic};
use crate::rpc::port::Port;
use crate::rpc::server::until;
use crate::rpc::{
    CALLS_MAX, CONNECTION_WINDOW_BYTES, LOCAL_RESETS_MAX, PENDING_RESETS_MAX, STREAM_WINDOW_BYTES,
};

/// How long the HTTP/2 handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How often a connection is pinged; it is dead if a ping has no answer by the time of the next
/// one.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a client's connection may go without a call before it is closed.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// How long a connection on probation may take to say Hello.
const PROBATION_MAX: Duration = Duration::from_secs(5);
/// How long calls under way may take to end once the connection is to be closed.
const GRACE: Duration = Duration::from_secs(1);
/// The smallest window of a connection, bytes: unread data that every connection may have in
/// flight.
const WINDOW_BYTES_MIN: u32 = 256 << 10;
/// The largest window that HTTP/2 allows, bytes.
const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;
/// How many windows of a stream make up the window of its connection. Each open stream adds one
/// more, so that streams which are not read do not block the calls beside them.
const STREAMS_PER_WINDOW: u32 = CONNECTION_WINDOW_BYTES / STREAM_WINDOW_BYTES;
/// A larger window is lent if two windows' worth of data came within this time.
const BUSY: Duration = Duration::from_secs(1);
/// Least average size of DATA frames, bytes, for which a larger window is lent.
const DENSE_BYTES: u64 = 1 << 10;
/// h2's budget for unread small frames: each frame shorter than 256 bytes is charged the
/// difference. Enough for the windows of 16 streams whose frames are commands of a few bytes.
const SMALL_FRAMES_BUDGET: usize = 8 << 20;
/// Bytes of answers that may wait in h2 for the socket, for each call.
const SEND_BUFFER_BYTES: usize = 256 << 10;

type H2 = Connection<TcpStream, Bytes>;

/// Serves a connection to its end.
pub(super) async fn serve(
    socket: TcpStream,
    link: Arc<Link>,
    port: Arc<Port>,
    stopped: watch::Receiver<bool>,
) {
    // Lets small answers leave at once. This fails only on a socket that is no longer usable.
    let _ = socket.set_nodelay(true);
    let info = TcpConnectInfo {
        local_addr: socket.local_addr().ok(),
        remote_addr: socket.peer_addr().ok(),
    };
    if let Some(connection) = handshake(socket, &link).await {
        let mut served = Served::new(connection, link, port, info);
        served.run(stopped).await;
    }
}

/// Shakes hands; `None` if the other side does not speak HTTP/2, takes too long, or has to leave.
async fn handshake(socket: TcpStream, link: &Link) -> Option<H2> {
    let mut builder = Builder::new();
    builder
        .initial_window_size(WINDOW_BYTES_MIN / STREAMS_PER_WINDOW)
        .initial_connection_window_size(WINDOW_BYTES_MIN)
        .max_concurrent_streams(CALLS_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .max_concurrent_reset_streams(CALLS_MAX as usize)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .data_frame_budget(SMALL_FRAMES_BUDGET);
    let shaken = tokio::time::timeout(HANDSHAKE_MAX, builder.handshake(socket));
    tokio::select! {
        shaken = shaken => shaken.ok()?.ok(),
        () = link.wake.notified() => None,
    }
}

/// Largest headers of one call, bytes.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

struct Served {
    connection: H2,
    link: Arc<Link>,
    port: Arc<Port>,
    info: TcpConnectInfo,
    ping: Option<PingPong>,
    /// A ping was sent and has no answer yet.
    asked: bool,
    window: Window,
    /// The number of streams for which the window was last widened.
    streams: usize,
    /// The charge for the part of the window above the smallest one.
    lent: Option<Charge>,
    /// Set once the connection is to be closed: the latest time for that.
    closing: Option<Instant>,
}

/// What the connection's task has to handle.
#[expect(clippy::large_enum_variant, reason = "calls are the common case")]
enum Event {
    Call(Request<RecvStream>, SendResponse<Bytes>),
    Closed,
    Woken,
    Tick,
    Pong,
    Stop,
    Over,
}

impl Served {
    fn new(mut connection: H2, link: Arc<Link>, port: Arc<Port>, info: TcpConnectInfo) -> Self {
        let ping = connection.ping_pong();
        let window = Window::new(Instant::now());
        link.look_after(window.next_look());
        Self {
            connection,
            link,
            port,
            info,
            ping,
            asked: false,
            window,
            streams: 0,
            lent: None,
            closing: None,
        }
    }

    async fn run(&mut self, stopped: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped = std::pin::pin!(until(stopped));
        let mut stopping = false;
        let probation = Instant::now() + PROBATION_MAX;
        loop {
            let event = self.next(&mut ticks, stopped.as_mut(), stopping, probation).await;
            match event {
                Event::Call(request, respond) => {
                    let (port, link) = (Arc::clone(&self.port), Arc::clone(&self.link));
                    tokio::spawn(call::serve(request, respond, port, link, self.info.clone()));
                }
                Event::Closed | Event::Over => return,
                Event::Woken => self.look(),
                Event::Pong => self.asked = false,
                Event::Tick if self.is_dead() => return,
                Event::Tick => {
                    self.look();
                    let silent = self.link.silent_for(std::time::Instant::now());
                    if !self.link.has_calls() && silent > IDLE_MAX && !self.link.is_peer() {
                        self.close(Some(GRACE));
                    }
                }
                Event::Stop => {
                    stopping = true;
                    self.close(None);
                }
            }
        }
    }

    /// Waits for the next event; changes nothing but the state of HTTP/2.
    async fn next(
        &mut self,
        ticks: &mut Interval,
        stopped: std::pin::Pin<&mut impl Future<Output = ()>>,
        stopping: bool,
        probation: Instant,
    ) -> Event {
        let ping = &mut self.ping;
        let asked = self.asked;
        let pong = async {
            match ping {
                Some(ping) if asked => std::future::poll_fn(|cx| ping.poll_pong(cx)).await.is_ok(),
                Some(_) | None => std::future::pending().await,
            }
        };
        let over = match self.closing {
            Some(at) => Some(at),
            None => self.link.is_on_probation().then_some(probation),
        };
        tokio::select! {
            biased;
            call = self.connection.accept() => match call {
                Some(Ok((request, respond))) => Event::Call(request, respond),
                Some(Err(error)) => {
                    tracing::debug!(remote = %self.link.remote, %error, "connection failed");
                    Event::Closed
                }
                None => Event::Closed,
            },
            () = self.link.wake.notified() => Event::Woken,
            true = pong => Event::Pong,
            _ = ticks.tick() => Event::Tick,
            () = stopped, if !stopping => Event::Stop,
            () = tokio::time::sleep_until(over.unwrap_or(probation)), if over.is_some() => {
                Event::Over
            }
        }
    }

    /// Pings the client; true if the connection is dead, because the last ping has no answer yet.
    fn is_dead(&mut self) -> bool {
        let Some(ping) = &mut self.ping else { return false };
        if std::mem::replace(&mut self.asked, true) {
            tracing::debug!(remote = %self.link.remote, "connection is dead");
            return true;
        }
        ping.send_ping(Ping::opaque()).is_err()
    }

    /// Accepts no further call and closes the connection when the open ones have ended; after
    /// `grace` in any case, if that is given.
    fn close(&mut self, grace: Option<Duration>) {
        if self.closing.is_none() {
            self.connection.graceful_shutdown();
        }
        self.closing = grace.map(|grace| Instant::now() + grace).or(self.closing);
    }

    /// Closes the connection if it was told to leave, and adjusts its window to its streams and
    /// traffic.
    fn look(&mut self) {
        if self.link.is_leaving() && self.closing.is_none() {
            self.close(Some(GRACE));
        }
        let size = if self.link.is_peer() {
            self.window.open()
        } else {
            self.window.look(self.link.traffic(), Instant::now())
        };
        let streams = self.link.streams();
        if size.is_some() || streams != self.streams {
            self.streams = streams;
            self.lend(size.unwrap_or(self.window.size));
        }
        self.link.look_after(self.window.next_look());
    }

    /// Gives the connection a window of `size`, widened for its streams; the smallest window, if
    /// the budget does not allow that.
    fn lend(&mut self, size: u32) {
        let streams = u32::try_from(self.streams).unwrap_or(u32::MAX);
        let whole = |size: u32| {
            (size / STREAMS_PER_WINDOW)
                .saturating_mul(streams)
                .saturating_add(size)
                .min(WINDOW_BYTES_MAX)
        };
        let share = &self.link.share;
        // What was lent before is given back first.
        self.lent = None;
        let sizes = [size, WINDOW_BYTES_MIN];
        let lent = sizes.into_iter().find_map(|size| {
            let more = (whole(size) - WINDOW_BYTES_MIN) as usize;
            let charge = if self.link.is_peer() { Some(share.owe(more)) } else { share.lend(more) };
            charge.map(|charge| (size, whole(size), charge))
        });
        let (size, whole) = match lent {
            Some((size, whole, charge)) => {
                self.lent = Some(charge);
                (size, whole)
            }
            None => (WINDOW_BYTES_MIN, WINDOW_BYTES_MIN),
        };
        self.connection.set_target_window_size(whole);
        if std::mem::replace(&mut self.window.size, size) != size {
            // h2 refuses while an earlier change is unacknowledged: streams then keep the old size
            // until the next change.
            let _ = self.connection.set_initial_window_size(size / STREAMS_PER_WINDOW);
        }
    }
}

/// Decides how large a window the traffic of a connection deserves.
struct Window {
    size: u32,
    since: Instant,
    /// The traffic up to `since`.
    traffic: Traffic,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { size: WINDOW_BYTES_MIN, since: now, traffic: Traffic::default() }
    }

    /// The count of received bytes at which the size of the window is to be decided again.
    fn next_look(&self) -> u64 {
        if self.size < CONNECTION_WINDOW_BYTES {
            self.traffic.bytes + 2 * u64::from(self.size)
        } else {
            u64::MAX
        }
    }

    /// The largest window, if this one is smaller.
    fn open(&mut self) -> Option<u32> {
        (self.size < CONNECTION_WINDOW_BYTES).then_some(CONNECTION_WINDOW_BYTES)
    }

    /// The window's new size after this traffic; `None` if the size stays.
    fn look(&mut self, traffic: Traffic, now: Instant) -> Option<u32> {
        let came = traffic.bytes - self.traffic.bytes;
        let dense = came >= (traffic.frames - self.traffic.frames) * DENSE_BYTES;
        let took = now - self.since;
        let enough = came >= 2 * u64::from(self.size);
        if !enough && took < PING_INTERVAL / 2 {
            return None;
        }
        (self.since, self.traffic) = (now, traffic);
        if enough && took <= BUSY && dense {
            let more = (2 * self.size).min(CONNECTION_WINDOW_BYTES);
            return (more != self.size).then_some(more);
        }
        let quiet = came < u64::from(self.size) && self.size > WINDOW_BYTES_MIN;
        quiet.then_some(WINDOW_BYTES_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_with_dense_traffic_and_goes_back_in_silence() {
        let begin = Instant::now();
        let mut window = Window::new(begin);
        let at = |ms| begin + Duration::from_millis(ms);
        let of = |bytes, frames| Traffic { bytes, frames };
        let least = u64::from(WINDOW_BYTES_MIN);
        assert_eq!(window.look(of(least, 16), at(10)), None, "not yet two windows");
        let grown = window.look(of(2 * least, 32), at(20)).expect("two windows in a moment");
        assert_eq!(grown, 2 * WINDOW_BYTES_MIN);
        window.size = grown;
        assert_eq!(window.look(of(6 * least, 40_000), at(30)), None, "small frames earn no more");
        assert_eq!(window.look(of(10 * least, 40_100), at(2_000)), None, "not busy enough");
        assert_eq!(window.look(of(10 * least, 40_100), at(3_000)), None, "a pause is no silence");
        assert_eq!(window.look(of(10 * least, 40_100), at(8_000)), Some(WINDOW_BYTES_MIN));
        window.size = WINDOW_BYTES_MIN;
        assert_eq!(window.look(of(10 * least, 40_100), at(20_000)), None, "it is the smallest");
    }
}

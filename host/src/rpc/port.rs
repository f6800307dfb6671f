//! [`Port`]: accepts the connections of a node's port, and holds what they share.
//!
//! - A connection gets a place and a share of the budget before it costs anything else.
//! - No error ends the accepting: without free descriptors, the port closes an idle connection and
//!   tries again after a pause.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::budget::{Budget, Budgets, Share};
use crate::rpc::links::{Link, Links};
use crate::rpc::requests::Requests;
use crate::rpc::server::until;
use crate::rpc::{
    CONNECTION_WATCHES_MAX, FORWARDED_BYTES_MAX, WATCH_MESSAGE_BYTES_MAX, WATCHES_MAX, connection,
};

/// A message, or a chunk of an answer, gets the port's patience once, and once more per this many
/// bytes.
const BYTES_PER_PATIENCE: u32 = 640 << 10;
/// Memory that one connection may hold at a time, bytes.
const SHARE_BYTES: usize = 32 << 20;
const _: () = assert!(CONNECTION_WATCHES_MAX * WATCH_MESSAGE_BYTES_MAX <= SHARE_BYTES / 2);
/// Memory that each peer may hold at a time, bytes: for frames and a transfer, windows included.
const PEER_BYTES: usize = 2 * SHARE_BYTES;
/// How long accepting pauses after it failed, mostly for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(50);
/// Shortest time between two warnings that accepting failed.
const COMPLAIN: Duration = Duration::from_secs(10);

/// The resources that a port may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortLimits {
    /// Most connections of clients.
    pub connections: usize,
    /// Bytes of memory that the calls of all clients may hold together.
    pub client_bytes: usize,
    /// How long a message may take to arrive, and a chunk of an answer to be read; longer in
    /// proportion to its size.
    pub patience: Duration,
}

impl Default for PortLimits {
    fn default() -> Self {
        Self { connections: 4_096, client_bytes: 256 << 20, patience: Duration::from_secs(10) }
    }
}

/// What a port holds at the moment, and what happened on it since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortReport {
    /// Open connections of clients, and of peers.
    pub clients: u64,
    pub peers: u64,
    /// Bytes of memory that calls of clients hold.
    pub client_bytes: u64,
    /// Connections closed to make way for others, and newcomers that found no place.
    pub evicted: u64,
    pub turned_away: u64,
    /// How often clients' memory was exhausted when a message or an answer needed some; a message
    /// that waits for memory counts at each retry.
    pub no_memory: u64,
    /// Calls that were cut off because the caller did not read the answer.
    pub cut_off: u64,
}

/// The state of a port that its connections and the metrics share.
pub struct PortState {
    pub(super) links: Links,
    pub(super) budgets: Budgets,
    client_bytes: usize,
    pub(super) patience: Duration,
    pub(super) cut_off: AtomicU64,
    /// Watches that are open, and that may be.
    pub(super) watches: Arc<AtomicUsize>,
    pub(super) watches_max: usize,
    pub(crate) requests: Arc<Requests>,
}

impl PortState {
    /// The state of a port that serves this many peers.
    pub fn new(limits: PortLimits, peers: usize) -> Arc<Self> {
        let budgets = Budgets {
            clients: Budget::new(limits.client_bytes),
            peers: Budget::new(peers.max(1) * PEER_BYTES),
        };
        let links = Links::new(limits.connections.max(1));
        Arc::new(Self {
            links,
            budgets,
            client_bytes: limits.client_bytes,
            patience: limits.patience,
            cut_off: AtomicU64::new(0),
            watches: Arc::default(),
            watches_max: WATCHES_MAX.min(limits.connections / 2).max(1),
            requests: Arc::default(),
        })
    }

    /// Bytes that calls forwarded between two nodes may hold at a time, the longest possible
    /// answers included: at most half of what the calls of all clients may hold.
    pub(super) fn forwarded_bytes_max(&self) -> usize {
        FORWARDED_BYTES_MAX.min(self.client_bytes / 2)
    }

    pub fn now(&self) -> PortReport {
        let (clients, peers) = self.links.count();
        PortReport {
            clients: clients as u64,
            peers: peers as u64,
            client_bytes: self.budgets.clients.used() as u64,
            evicted: self.links.evicted.load(Ordering::Relaxed),
            turned_away: self.links.turned_away.load(Ordering::Relaxed),
            no_memory: self.budgets.clients.refused(),
            cut_off: self.cut_off.load(Ordering::Relaxed),
        }
    }
}

/// How long `bytes` bytes may take on their way.
pub(super) fn patience_for(patience: Duration, bytes: usize) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    patience + patience.mul_f64(f64::from(bytes) / f64::from(BYTES_PER_PATIENCE))
}

pub(super) struct Port {
    /// Health and reflection, which are answered from the first moment.
    early: Routes,
    /// All services, once the node has started.
    full: OnceLock<Routes>,
    pub state: Arc<PortState>,
}

impl Port {
    pub(super) fn new(early: Routes, state: Arc<PortState>) -> Arc<Self> {
        Arc::new(Self { early: early.prepare(), full: OnceLock::new(), state })
    }

    /// Serves all these routes from now on.
    pub(super) fn offer(&self, routes: Routes) {
        // A node starts once, so this is never set twice.
        let _ = self.full.set(routes.prepare());
    }

    /// The routes that answer a call to this path; `None` while the node is starting.
    pub(super) fn routes(&self, path: &str) -> Option<Routes> {
        let early = || path.starts_with("/grpc.").then_some(&self.early);
        self.full.get().or_else(early).cloned()
    }

    /// Accepts connections until `stopped` turns true, then waits for the open ones to end.
    pub(super) async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        stopped: watch::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        let mut complained: Option<Instant> = None;
        let mut over = std::pin::pin!(until(stopped.clone()));
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, remote)) => {
                        let port = Arc::clone(&self);
                        connections.spawn(port.serve(socket, remote.ip(), stopped.clone()));
                    }
                    Err(error) if is_of_the_connection(&error) => {}
                    Err(error) => {
                        self.state.links.make_way(Instant::now());
                        if complained.is_none_or(|at| at.elapsed() > COMPLAIN) {
                            complained = Some(Instant::now());
                            tracing::warn!(%error, "cannot accept connections for the moment; \
                                allow this process more descriptors, or lower `connections`");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(_ended) = connections.join_next() => {}
                () = &mut over => break,
            }
        }
        // Closed first, so that no client waits in a queue that is no longer read.
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn serve(
        self: Arc<Self>,
        socket: tokio::net::TcpStream,
        remote: IpAddr,
        stopped: watch::Receiver<bool>,
    ) {
        let share = Share::new(self.state.budgets.clone(), SHARE_BYTES);
        let link = self.state.links.admit(remote.to_canonical(), share, Instant::now());
        let here = Here { state: Arc::clone(&self.state), link: Arc::clone(&link) };
        connection::serve(socket, link, self, stopped).await;
        drop(here);
    }
}

/// The place of a connection; dropping it frees the place.
struct Here {
    state: Arc<PortState>,
    link: Arc<Link>,
}

impl Drop for Here {
    fn drop(&mut self) {
        self.state.links.gone(&self.link);
    }
}

/// Whether an error of `accept` concerns only the one connection that was to be accepted.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | Interrupted | TimedOut
    )
}

//! [`Port`]: what all connections of a node's port share, and how they come in.
//!
//! - A connection costs a place and a share of the budget before it costs anything else.
//! - Taking connections goes on whatever fails: without descriptors it waits until one is free, and
//!   sends an idle connection away.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::budget::{Budget, Budgets, Share};
use crate::rpc::connection;
use crate::rpc::links::{Link, Links};
use crate::rpc::requests::Requests;
use crate::rpc::server::until;

/// Bytes for which a message, or a part of an answer, gets the port's patience once more.
const BYTES_PER_PATIENCE: u32 = 640 << 10;
/// What one connection may hold at a time, bytes.
const SHARE_BYTES: usize = 32 << 20;
/// What each peer may hold at a time, bytes: frames and a transfer, their windows included.
const PEER_BYTES: usize = 2 * SHARE_BYTES;
/// How long taking connections pauses when this machine has none to give.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two complaints about it.
const COMPLAIN: Duration = Duration::from_secs(10);

/// What a port may take of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortLimits {
    /// Connections of clients.
    pub connections: usize,
    /// Bytes that calls of clients may hold, all together.
    pub client_bytes: usize,
    /// How long a message may take to come, and a part of an answer to be taken; as long again for
    /// each so many of its bytes.
    pub patience: Duration,
}

impl Default for PortLimits {
    fn default() -> Self {
        Self { connections: 4_096, client_bytes: 256 << 20, patience: Duration::from_secs(10) }
    }
}

/// What a port holds at the moment, and has done since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortReport {
    /// Connections of clients, and of peers.
    pub clients: u64,
    pub peers: u64,
    /// Bytes that calls of clients hold.
    pub client_bytes: u64,
    /// Connections that went for another's sake, and newcomers that found no place.
    pub evicted: u64,
    pub turned_away: u64,
    /// Messages that found no room.
    pub no_room: u64,
    /// Callers that did not take their answers.
    pub cut_off: u64,
}

/// The part of a port that others look at.
pub struct PortState {
    pub(super) links: Links,
    pub(super) budgets: Budgets,
    pub(super) patience: Duration,
    pub(super) cut_off: AtomicU64,
    pub(crate) requests: Arc<Requests>,
}

impl PortState {
    /// For a port with so many peers.
    pub fn new(limits: PortLimits, peers: usize) -> Arc<Self> {
        let budgets = Budgets {
            clients: Budget::new(limits.client_bytes),
            peers: Budget::new(peers.max(1) * PEER_BYTES),
        };
        let links = Links::new(limits.connections.max(1));
        Arc::new(Self {
            links,
            budgets,
            patience: limits.patience,
            cut_off: AtomicU64::new(0),
            requests: Arc::default(),
        })
    }

    pub fn now(&self) -> PortReport {
        let (clients, peers) = self.links.count();
        PortReport {
            clients: clients as u64,
            peers: peers as u64,
            client_bytes: self.budgets.clients.used() as u64,
            evicted: self.links.evicted.load(Ordering::Relaxed),
            turned_away: self.links.turned_away.load(Ordering::Relaxed),
            no_room: self.budgets.clients.refused(),
            cut_off: self.cut_off.load(Ordering::Relaxed),
        }
    }
}

/// How long so many bytes may take on their way.
pub(super) fn patience_for(patience: Duration, bytes: usize) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    patience + patience.mul_f64(f64::from(bytes) / f64::from(BYTES_PER_PATIENCE))
}

pub(super) struct Port {
    /// What is answered from the first moment.
    early: Routes,
    /// Everything, from when the node has started.
    full: OnceLock<Routes>,
    pub state: Arc<PortState>,
}

impl Port {
    pub(super) fn new(early: Routes, state: Arc<PortState>) -> Arc<Self> {
        Arc::new(Self { early: early.prepare(), full: OnceLock::new(), state })
    }

    /// From now on these are offered.
    pub(super) fn offer(&self, routes: Routes) {
        // A node starts once.
        let _ = self.full.set(routes.prepare());
    }

    /// What answers a call to this path; nothing does so far if the node starts.
    pub(super) fn routes(&self, path: &str) -> Option<Routes> {
        let early = || path.starts_with("/grpc.").then_some(&self.early);
        self.full.get().or_else(early).cloned()
    }

    /// Takes connections until `stopped` says so, then waits for those that are there to end.
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
                        self.state.links.make_room(Instant::now());
                        if complained.is_none_or(|at| at.elapsed() > COMPLAIN) {
                            complained = Some(Instant::now());
                            tracing::warn!(%error, "connections are not taken for the moment; \
                                let this process have more descriptors, or lower `connections`");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(_ended) = connections.join_next() => {}
                () = &mut over => break,
            }
        }
        // Nobody is to wait in a queue that is not read any more.
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

/// The place of a connection, until it is dropped.
struct Here {
    state: Arc<PortState>,
    link: Arc<Link>,
}

impl Drop for Here {
    fn drop(&mut self) {
        self.state.links.gone(&self.link);
    }
}

/// Whether an error of `accept` concerns only the one connection that was to be taken.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | Interrupted | TimedOut
    )
}

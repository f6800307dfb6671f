//! [`GrpcTransport`]: sends the frames of all groups to each peer, over one stream per peer.
//!
//! - `send` never blocks: a frame for a peer that is not connected, or whose queue is full, is
//!   dropped and counted; raft makes up for it.
//! - A task per peer keeps the stream up and batches all waiting frames into one message; raft's
//!   appends keep their order, and all other frames may overtake them.
//! - When a stream is lost, or frames were dropped because its queue was full, `unreachable` is
//!   called, and raft probes the peer before it streams to it again.
//! - Frames that waited when a stream was lost are dropped, not delivered late.
//! - If another node answers at a peer's address, that address is known to be wrong
//!   ([`WrongAddresses`]) until the peer itself answers there.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_client::cause::{root_cause, why};
use lockstep_core::group::Frame;
use lockstep_core::ids::NodeId;
use lockstep_core::limits;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::bulk::BulkChannel;
use crate::router::WrongAddresses;
use crate::rpc::convert;
use crate::rpc::peer_queue::{FrameReceiver, FrameSender, QueueFull, peer_queue};
use crate::rpc::proto::peer as wire;
use crate::rpc::proto::peer::peer_client::PeerClient;
use crate::rpc::versions::PeerVersions;
use crate::rpc::{
    BATCH_BYTES_MAX, BATCH_FRAMES_MAX, CALLS_MAX, CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES,
    HelloInfo, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, RECONNECT_MAX, RECONNECT_MIN,
    STREAM_WINDOW_BYTES, bulk_link,
};
use crate::transport::Transport;

/// A stream that was not refused within this time counts as accepted.
const SETTLED: Duration = Duration::from_millis(200);

/// The status code of a node that was called in place of another node, at a wrong address.
pub(super) const ANOTHER_NODE: Code = Code::NotFound;

/// Called with a node to which frames were lost.
pub type OnUnreachable = Arc<dyn Fn(NodeId) + Send + Sync>;

/// The production [`Transport`]. Its tasks end when it is dropped.
pub struct GrpcTransport {
    links: BTreeMap<NodeId, Link>,
    versions: PeerVersions,
    wrong: WrongAddresses,
    runtime: Handle,
}

/// The link to one peer, as senders see it.
struct Link {
    queue: FrameSender,
    address: String,
    shared: Arc<Shared>,
}

/// What senders and the link's task share.
struct Shared {
    node: NodeId,
    /// A stream is up, so frames are queued for it.
    up: AtomicBool,
    dropped: AtomicU64,
    /// Frames were dropped on a stream that is up, since the task last looked.
    overflowed: AtomicBool,
    /// The version that the peer and this node speak; 0 before they have met.
    version: AtomicU32,
    /// What went wrong last; `None` once a stream stays up.
    error: Mutex<Option<String>>,
    /// Records whether the peer itself, or another node, answers at its address.
    wrong: WrongAddresses,
}

impl GrpcTransport {
    /// Opens a link to each of `peers` (`host:port`; this node's own entry is ignored), on the
    /// runtime that this is called in.
    pub fn start(
        hello: HelloInfo,
        peers: &BTreeMap<NodeId, String>,
        unreachable: OnUnreachable,
    ) -> Self {
        let (runtime, wrong) = (Handle::current(), WrongAddresses::default());
        let peers = peers.iter().filter(|(node, _)| **node != hello.node);
        let links = peers.map(|(&node, address)| {
            let (queue, frames) = peer_queue();
            let shared = Arc::new(Shared::new(node, wrong.clone()));
            let task = LinkTask {
                hello: hello_to(&hello, node),
                versions: hello.versions,
                address: address.clone(),
                queue: frames,
                shared: Arc::clone(&shared),
                unreachable: Arc::clone(&unreachable),
            };
            runtime.spawn(task.run());
            (node, Link { queue, address: address.clone(), shared })
        });
        let links = links.collect();
        Self { links, versions: hello.versions, wrong, runtime }
    }

    /// The peers without a stream, each with the last error of the peer or of the network.
    pub fn peer_errors(&self) -> BTreeMap<NodeId, String> {
        let errors = self.links.iter().map(|(node, link)| (*node, link.shared.error()));
        errors.filter_map(|(node, error)| Some((node, error?))).collect()
    }

    /// The peers at whose addresses another node answers; kept up to date.
    pub fn wrong_addresses(&self) -> WrongAddresses {
        self.wrong.clone()
    }

    /// The version that is spoken with `node`; `None` before the nodes have met.
    pub fn version(&self, node: NodeId) -> Option<u32> {
        let version = self.links.get(&node)?.shared.version.load(Ordering::Relaxed);
        Some(version).filter(|version| *version != 0)
    }

    /// Frames that were dropped on their way to `node`.
    pub fn frames_dropped(&self, node: NodeId) -> u64 {
        self.links.get(&node).map_or(0, |link| link.shared.dropped.load(Ordering::Relaxed))
    }
}

impl Transport for GrpcTransport {
    fn send(&self, to: NodeId, frame: Box<Frame>) {
        let Some(link) = self.links.get(&to) else { return };
        let shared = &link.shared;
        if !shared.up.load(Ordering::Acquire) {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Err(QueueFull) = link.queue.try_send(frame) {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            shared.overflowed.store(true, Ordering::Relaxed);
        }
    }

    fn trouble_with(&self, peer: NodeId) -> Option<String> {
        self.links.get(&peer)?.shared.error()
    }

    fn bulk(&self, to: NodeId) -> io::Result<Box<dyn BulkChannel<BulkRequest, BulkReply> + Send>> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("no node {to}"));
        let link = self.links.get(&to).ok_or_else(unknown)?;
        let version = self.version(to).unwrap_or(self.versions.oldest);
        Ok(Box::new(bulk_link::open(&self.runtime, &link.address, version)?))
    }
}

impl Shared {
    fn new(node: NodeId, wrong: WrongAddresses) -> Self {
        Self {
            node,
            up: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            overflowed: AtomicBool::new(false),
            version: AtomicU32::new(0),
            error: Mutex::new(Some("not connected yet".to_owned())),
            wrong,
        }
    }

    fn error(&self) -> Option<String> {
        self.error.lock().expect("no holder of this lock panics").clone()
    }

    /// Sets the error; returns whether it differs from the one before.
    fn set_error(&self, error: Option<String>) -> bool {
        let mut current = self.error.lock().expect("no holder of this lock panics");
        let changed = *current != error;
        *current = error;
        changed
    }
}

/// Keeps one peer's stream up.
struct LinkTask {
    hello: wire::Hello,
    versions: PeerVersions,
    address: String,
    queue: FrameReceiver,
    shared: Arc<Shared>,
    unreachable: OnUnreachable,
}

/// The transport was dropped: there is nothing more to send.
struct Gone;

impl LinkTask {
    async fn run(mut self) {
        let mut wait = RECONNECT_MIN;
        loop {
            let began = Instant::now();
            let Err(status) = self.stream_once().await else { return };
            self.shared.up.store(false, Ordering::Release);
            (self.unreachable)(self.shared.node);
            self.tell(&status);
            wait = if began.elapsed() > RECONNECT_MAX {
                RECONNECT_MIN
            } else {
                (wait * 2).min(RECONNECT_MAX)
            };
            if let Err(Gone) = self.discard_for(jittered(wait)).await {
                return;
            }
        }
    }

    /// Connects and streams until the stream is lost, and returns why; `Ok` once the transport was
    /// dropped.
    async fn stream_once(&mut self) -> Result<(), Status> {
        let channel = connect(&self.address).await?;
        let mut client =
            PeerClient::new(channel).max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
        let version = self.meet(&mut client).await?;
        // One message waits here while the next one is gathered. Dropping `batches` ends the
        // stream.
        let (batches, body) = mpsc::channel(1);
        let hello = wire::Hello { version, ..self.hello.clone() };
        let hello = wire::FrameBatch { hello: Some(hello), frames: Vec::new() };
        let _ = batches.try_send(hello);
        let mut call = pin!(client.frames(ReceiverStream::new(body)));
        // A refusal comes at once, so a stream that lasts this long was accepted.
        let mut settled = pin!(tokio::time::sleep(SETTLED));
        self.shared.up.store(true, Ordering::Release);
        loop {
            tokio::select! {
                answer = &mut call => {
                    answer?;
                    return Err(Status::unavailable("the peer ended the stream"));
                }
                () = &mut settled, if !settled.is_elapsed() => self.connected(),
                batch = next_batch(&mut self.queue, &batches, &self.shared) => match batch {
                    Ok(()) => self.tell_overflow(),
                    Err(Gone) => return Ok(()),
                },
            }
        }
    }

    /// Agrees with the peer on a version.
    async fn meet(&self, client: &mut PeerClient<Channel>) -> Result<u32, Status> {
        let meeting = client.meet(self.hello.clone());
        let met = tokio::time::timeout(2 * CONNECT_TIMEOUT, meeting).await;
        let met = met.map_err(|_elapsed| Status::unavailable("the peer does not answer"))??;
        let version = met.into_inner().version;
        self.shared.wrong.remove(self.shared.node);
        if !self.versions.know(version) {
            return Err(Status::failed_precondition(format!(
                "the peer chose version {version} of the peers' protocol, but this node speaks {}",
                self.versions
            )));
        }
        self.shared.version.store(version, Ordering::Relaxed);
        Ok(version)
    }

    fn connected(&self) {
        if self.shared.set_error(None) {
            let (peer, version) = (self.shared.node, self.shared.version.load(Ordering::Relaxed));
            tracing::info!(%peer, address = %self.address, version, "peer connected");
        }
    }

    fn tell_overflow(&self) {
        if self.shared.overflowed.swap(false, Ordering::Relaxed) {
            (self.unreachable)(self.shared.node);
        }
    }

    fn tell(&self, status: &Status) {
        let (peer, address) = (self.shared.node, &self.address);
        if is_refusal(status) {
            if status.code() == ANOTHER_NODE {
                self.shared.wrong.add(peer, status.message());
            }
            let text = format!("refused by {address}: {}", status.message());
            if self.shared.set_error(Some(text)) {
                tracing::warn!(%peer, %address, why = status.message(), "peer refuses this node");
            }
            return;
        }
        let why = why(status);
        let text = format!("cannot reach {address}: {why}");
        if self.shared.set_error(Some(text)) {
            tracing::info!(%peer, %address, %why, "peer not connected");
        }
    }

    /// Waits for `wait`, and discards the frames that are queued meanwhile.
    async fn discard_for(&mut self, wait: Duration) -> Result<(), Gone> {
        let Self { queue, shared, .. } = self;
        let discard = async {
            while queue.recv().await.is_some() {
                shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        };
        match tokio::time::timeout(wait, discard).await {
            Ok(()) => Err(Gone),
            Err(_elapsed) => Ok(()),
        }
    }
}

/// Waits until a message may be sent and a frame is queued, then sends it with all other queued
/// frames, up to the bounds of a message.
async fn next_batch(
    queue: &mut FrameReceiver,
    batches: &mpsc::Sender<wire::FrameBatch>,
    shared: &Shared,
) -> Result<(), Gone> {
    let Ok(slot) = batches.reserve().await else {
        // The stream's call is about to end, and its status says why.
        return std::future::pending().await;
    };
    let Some(mut frame) = queue.recv().await else { return Err(Gone) };
    let (mut frames, mut bytes) = (Vec::new(), 0);
    loop {
        bytes += convert::frame_weight(&frame);
        frames.extend(shared.to_wire(*frame));
        if frames.len() >= BATCH_FRAMES_MAX || bytes >= BATCH_BYTES_MAX {
            break;
        }
        match queue.try_recv() {
            Ok(next) => frame = next,
            Err(_none) => break,
        }
    }
    if !frames.is_empty() {
        slot.send(wire::FrameBatch { hello: None, frames });
    }
    Ok(())
}

impl Shared {
    fn to_wire(&self, frame: Frame) -> Option<wire::Frame> {
        let group = frame.group;
        convert::frame_to_wire(frame)
            .inspect_err(|error| {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                self.overflowed.store(true, Ordering::Relaxed);
                tracing::error!(peer = %self.node, %group, %error, "frame not sent");
            })
            .ok()
    }
}

pub(super) fn hello_to(hello: &HelloInfo, to: NodeId) -> wire::Hello {
    wire::Hello {
        cluster: Bytes::copy_from_slice(&hello.cluster),
        cluster_name: hello.cluster_name.clone(),
        node: u32::from(hello.node.0),
        to_node: u32::from(to.0),
        oldest: hello.versions.oldest,
        newest: hello.versions.newest,
        version: 0,
    }
}

/// An endpoint with the timeouts and windows that nodes use among each other.
pub(super) fn endpoint(address: &str) -> Result<Endpoint, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Status::invalid_argument(format!("bad address {address}: {e}")))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        // Calls are given up at their deadlines while their answers are still under way: that must
        // never end a connection that other calls use.
        .http2_max_concurrent_reset_streams(CALLS_MAX as usize)
        .http2_max_local_error_reset_streams(None)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

/// Connects now, within twice [`CONNECT_TIMEOUT`], HTTP/2 included.
pub(super) async fn connect(address: &str) -> Result<Channel, Status> {
    let connecting = endpoint(address)?;
    let connected = tokio::time::timeout(2 * CONNECT_TIMEOUT, connecting.connect()).await;
    connected
        .map_err(|_elapsed| Status::unavailable("connecting took too long"))?
        .map_err(|e| Status::unavailable(root_cause(&e)))
}

/// Whether the peer itself refused, rather than the network failing.
fn is_refusal(status: &Status) -> bool {
    std::error::Error::source(status).is_none()
        && matches!(
            status.code(),
            Code::FailedPrecondition
                | ANOTHER_NODE
                | Code::PermissionDenied
                | Code::InvalidArgument
                | Code::Unimplemented
        )
}

/// Between three quarters of `wait` and all of it, so that nodes do not reconnect at the same
/// moment.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness the full wait is used.
    let part = getrandom::fill(&mut random).map_or(0, |()| u32::from(random[0]));
    wait - wait / 4 * part / 256
}

//! gRPC: the only place that knows prost and tonic.
//!
//! - [`server`] serves everything on one port: the client API (`lockstep.v1`), peers, health and
//!   reflection.
//! - [`peer_link::GrpcTransport`] implements the door [`crate::transport::Transport`] in
//!   production.
//! - [`convert`] is the only place where wire types become core types and back; what a peer sent is
//!   checked there.
//!
//! Nothing here takes a decision about raft: requests become tickets of a group, and answers become
//! messages.

pub(crate) mod convert;

mod apply_stream;
mod body;
mod bulk_link;
mod call;
mod client_api;
pub(crate) mod codec;
mod connection;
mod forward;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod links;
pub(crate) mod modules;
mod orders;
pub mod peer_api;
pub mod peer_link;
mod peer_queue;
mod pipe;
pub mod port;
mod refuse;
pub(crate) mod requests;
pub mod server;
pub(crate) mod status;
pub mod versions;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_core::ids::NodeId;
use lockstep_core::limits;

use crate::rpc::versions::PeerVersions;

/// The metadata key that names the protocol version of a transfer.
const VERSION_KEY: &str = "lockstep-peer-version";
/// Frames in one message to a peer.
const BATCH_FRAMES_MAX: usize = 256;
/// A batch takes no more frames once it has this many bytes.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Shortest and longest wait before this node reconnects to a peer.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a silent connection is pinged, and how long a ping may go unanswered before the
/// connection counts as dead.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// HTTP/2 flow-control windows: unread bytes that one stream, and one connection, may have in
/// flight.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Concurrent calls on one connection.
const CALLS_MAX: u32 = 4_096;
/// Bytes that the calls which one node forwards to another may hold at a time, answers included.
const FORWARDED_BYTES_MAX: usize = 128 << 20;
/// Calls of one connection that a client may have reset before this node accepted them. When a busy
/// node falls behind, all of a client's calls may pass their deadlines before the node reads them,
/// and so may as many calls that followed.
const PENDING_RESETS_MAX: usize = 2 * CALLS_MAX as usize;
/// Resets that this node sends in the life of one connection because frames arrived for calls that
/// had already ended here. This bounds the resets that a client can provoke without reading them.
const LOCAL_RESETS_MAX: usize = 16_384;
/// Commands in flight on one `ApplyStream`.
const STREAM_INFLIGHT_MAX: usize = 4_096;
/// Bytes of commands in flight on one `ApplyStream`; the last command may exceed the bound.
const STREAM_BYTES_MAX: usize = 8 << 20;
/// Commands in one message of an `ApplyStream`.
const STREAM_COMMANDS_MAX: usize = 1_024;
/// Watches that a node has at most. Each may have a connection to itself, and keeps it alive; so
/// watches are also at most half as many as connections may be.
pub(crate) const WATCHES_MAX: usize = 1_024;
/// Watches on one connection: together their messages are at most half of what it may hold.
pub(crate) const CONNECTION_WATCHES_MAX: usize = 64;
/// Bytes of events in one message of a watch; what an event counts covers its encoding.
pub(crate) const WATCH_MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Frames queued between a bulk worker and its connection, each way; a frame holds at most a block.
const BULK_FRAMES_MAX: usize = 2;
/// How long a shutdown waits for calls in flight.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

const _: () = assert!(lockstep_client::STREAM_INFLIGHT_BYTES_MAX < STREAM_BYTES_MAX);
const _: () = assert!(lockstep_client::STREAM_INFLIGHT_MAX <= STREAM_INFLIGHT_MAX);
const _: () = assert!(BATCH_BYTES_MAX + limits::FRAME_BYTES_MAX < limits::GRPC_MESSAGE_BYTES_MAX);

/// The generated types; `cargo xtask protos` writes them.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "the code generator emits them"
)]
pub(crate) mod proto {
    /// `client.proto`: the types of the client crate, and both ends of the service.
    #[expect(unreachable_pub, reason = "generated")]
    pub(crate) mod client {
        pub(crate) use ::lockstep_client::v1::*;

        include!("rpc/generated/lockstep.v1.rs");
    }
    /// `peer.proto`.
    #[expect(unreachable_pub, reason = "generated")]
    pub(crate) mod peer {
        include!("rpc/generated/lockstep.peer.v1.rs");
    }
    /// The descriptors of both files, which reflection serves.
    pub(crate) const DESCRIPTORS: &[u8] = include_bytes!("rpc/generated/descriptors.bin");
}

/// How this node introduces itself to its peers, and what it requires of them: the same cluster, a
/// configured node, a common version.
#[derive(Clone, Debug)]
pub struct HelloInfo {
    pub cluster: [u8; 16],
    pub cluster_name: String,
    pub node: NodeId,
    /// Every configured node, this one included.
    pub nodes: BTreeSet<NodeId>,
    pub versions: PeerVersions,
}

//! gRPC: the only place that knows prost and tonic.
//!
//! - [`server`] offers everything on one port: clients (`lockstep.v1`), peers, health,
//!   reflection.
//! - [`peer_link::GrpcTransport`] is the production door [`crate::transport::Transport`].
//! - [`convert`] is the one crossing between wire types and the core's; what a peer sent is checked
//!   there.
//!
//! Nothing here decides anything about raft: requests become tickets of a group, answers become
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
pub mod peer_api;
pub mod peer_link;
mod pipe;
pub mod port;
mod refuse;
pub(crate) mod requests;
pub mod server;
pub(crate) mod status;
pub mod versions;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_core::ids::NodeId;
use lockstep_core::limits;

use crate::rpc::versions::PeerVersions;

/// What names the version of a transfer.
const VERSION_KEY: &str = "lockstep-peer-version";
/// Frames that may wait for one peer.
const LINK_FRAMES_MAX: usize = 4_096;
/// Bytes of frames that may wait for one peer: what raft may have in flight to it in one group.
const LINK_BYTES_MAX: usize = limits::APPEND_INFLIGHT_MAX * limits::APPEND_BYTES_MAX as usize;
/// Frames in one message to a peer.
const BATCH_FRAMES_MAX: usize = 256;
/// A batch takes no more frames once it has this many bytes.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Shortest and longest wait before a peer is connected to again.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection is asked for a sign of life this often, and is dead without one for this
/// long.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// HTTP/2 windows: what one stream, and one connection, may have under way without being read,
/// bytes.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Concurrent calls on one connection.
const CALLS_MAX: u32 = 4_096;
/// Calls of one connection that may have been given up before this node came to them. Clients have
/// deadlines: all of their calls may end at once, and as many that followed, in what a busy node
/// reads in one piece.
const PENDING_RESETS_MAX: usize = 2 * CALLS_MAX as usize;
/// Calls of one connection that this node may have to reset in the life of the connection, because
/// frames came for what had ended here. It bounds what a client provokes and does not read.
const LOCAL_RESETS_MAX: usize = 16_384;
/// Commands under way on one `ApplyStream`.
const STREAM_INFLIGHT_MAX: usize = 4_096;
/// Bytes of them; the last one may go beyond.
const STREAM_BYTES_MAX: usize = 8 << 20;
/// Commands in one message of an `ApplyStream`.
const STREAM_COMMANDS_MAX: usize = 1_024;
/// Bulk frames between a bulk worker and its connection, each way; each is up to a block.
const BULK_FRAMES_MAX: usize = 2;
/// How long a shutdown waits for calls under way.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

const _: () = assert!(lockstep_client::STREAM_INFLIGHT_BYTES_MAX < STREAM_BYTES_MAX);
const _: () = assert!(lockstep_client::STREAM_INFLIGHT_MAX <= STREAM_INFLIGHT_MAX);
const _: () = assert!(BATCH_BYTES_MAX + limits::FRAME_BYTES_MAX < limits::GRPC_MESSAGE_BYTES_MAX);

/// The generated types; `cargo xtask protos` writes them.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "the code generator's own"
)]
pub(crate) mod proto {
    /// `client.proto`: the client's own types, and both ends of the service.
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
    /// Descriptors of both files, for reflection.
    pub(crate) const DESCRIPTORS: &[u8] = include_bytes!("rpc/generated/descriptors.bin");
}

/// Who this node is to its peers; a peer of another cluster is refused, and one without a common
/// version.
#[derive(Clone, Debug)]
pub struct HelloInfo {
    pub cluster: [u8; 16],
    pub cluster_name: String,
    pub node: NodeId,
    /// Every configured node, this one included.
    pub nodes: BTreeSet<NodeId>,
    pub versions: PeerVersions,
}

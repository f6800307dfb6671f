//! The door `Transport`: frames between replicas, and snapshot payloads on a channel of their own.

use std::io;

use lockstep_core::group::Frame;
use lockstep_core::ids::NodeId;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest};

use crate::bulk::BulkChannel;

/// How this node reaches its peers.
pub trait Transport: Send + Sync {
    /// Sends a frame. Never blocks: if too many frames wait, this one is dropped. Frames to one
    /// node keep their order.
    fn send(&self, to: NodeId, frame: Box<Frame>);
    /// Why a peer cannot be reached, if that is known.
    fn trouble_with(&self, _peer: NodeId) -> Option<String> {
        None
    }
    /// Opens a bulk channel on the peer's bulk connection: lossless until it breaks. Blocks; for
    /// bulk workers.
    fn bulk(&self, to: NodeId) -> io::Result<Box<dyn BulkChannel<BulkRequest, BulkReply> + Send>>;
}

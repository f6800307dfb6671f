//! [`Forward`]: sends a call that only the leader may answer to the leader, once.
//!
//! - One connection per node, opened at its first use and reopened after it broke.
//! - A call that was forwarded once is not forwarded again: two nodes that take each other for the
//!   leader must not pass it back and forth.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_client::cause::{never_connected, why};
use lockstep_core::ids::NodeId;
use lockstep_core::limits;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::router::Router;
use crate::rpc::peer_link;
use crate::rpc::proto::client::lockstep_client::LockstepClient;
use crate::rpc::refuse::{self, HOP, REFUSAL, Refused};

/// Connections to the other nodes' client side.
pub(super) struct Forward {
    clients: BTreeMap<NodeId, (LockstepClient<Channel>, Leader)>,
}

/// The node that a call is forwarded to, with the address at which clients reach it: the client is
/// told, so that it asks there directly the next time.
#[derive(Clone)]
pub(super) struct Leader {
    pub node: NodeId,
    pub address: AsciiMetadataValue,
}

impl Forward {
    pub(super) fn new(router: &Router) -> Self {
        let others = router.peers().iter().filter(|(node, _)| **node != router.node());
        let clients = others.filter_map(|(node, address)| {
            let channel = peer_link::endpoint(address).ok()?.connect_lazy();
            let client = LockstepClient::new(channel)
                .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
            let leader = Leader { node: *node, address: router.address(*node)?.parse().ok()? };
            Some((*node, (client, leader)))
        });
        Self { clients: clients.collect() }
    }

    /// The client to forward to, if the call with this metadata may be forwarded to `leader`.
    pub(super) fn to(
        &self,
        leader: NodeId,
        metadata: &MetadataMap,
    ) -> Option<(LockstepClient<Channel>, Leader)> {
        if metadata.contains_key(HOP) { None } else { self.clients.get(&leader).cloned() }
    }
}

/// The request to forward: marked as one hop, with what is left of the caller's deadline.
pub(super) fn request<T>(message: T, left: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(HOP, AsciiMetadataValue::from_static("1"));
    if let Some(left) = left {
        request.set_timeout(left);
    }
    request
}

/// The status to return to the client when forwarding its call failed.
pub(super) fn failed(status: &Status, leader: NodeId, group: &str) -> Status {
    if status.metadata().contains_key(REFUSAL) {
        return refuse::pass_on(status);
    }
    let unknown = !never_connected(status);
    Refused::unreachable(leader, group, &why(status), unknown).into_status()
}

//! [`Forward`]: a call that another node must answer, sent there once.
//!
//! - One connection per node, made at the first use and again when it broke.
//! - A call that was forwarded before is not forwarded again: two nodes that take each other for
//!   the leader must not play ball with it.

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

/// Where clients reach whom a call is forwarded to: said to the client, so that it asks there
/// itself the next time.
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
        match metadata.contains_key(HOP) {
            true => None,
            false => self.clients.get(&leader).cloned(),
        }
    }
}

/// The forwarded request: one hop, and what is left of the caller's time.
pub(super) fn request<T>(message: T, left: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(HOP, AsciiMetadataValue::from_static("1"));
    if let Some(left) = left {
        request.set_timeout(left);
    }
    request
}

/// What a failed forwarding means to this node's client.
pub(super) fn failed(status: &Status, leader: NodeId, group: &str) -> Status {
    if status.metadata().contains_key(REFUSAL) {
        return refuse::pass_on(status);
    }
    let unknown = !never_connected(status);
    Refused::unreachable(leader, group, &why(status), unknown).into_status()
}

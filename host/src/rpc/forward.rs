//! [`Forward`]: sends a call that only the leader may answer to the leader, once.
//!
//! - One connection per node, opened at its first use and reopened after it broke.
//! - A call that was forwarded once is not forwarded again: two nodes that take each other for the
//!   leader must not pass it back and forth.
//! - A forwarded call says which node forwards it, from which group and for which caller
//!   ([`Origin`]). The receiver refuses it if the sender means another node, cluster or group:
//!   where an address is wrong, no command reaches another cluster.
//! - All callers share the connection, so none may fill it: beyond its part of the places a caller
//!   is told where the leader is. The receiver tells them apart by the caller's number.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_client::cause::{never_connected, why};
use lockstep_core::ids::{Lineage, NodeId};
use lockstep_core::limits;
use lockstep_core::mutant::planted;
use prost::Message as _;
use tonic::metadata::{AsciiMetadataValue, BinaryMetadataValue, MetadataMap};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::group::GroupHandle;
use crate::group::askers::{Asker, Place, Places};
use crate::router::Router;
use crate::rpc::peer_api::check_hello;
use crate::rpc::peer_link::{self, hello_to};
use crate::rpc::proto::client::lockstep_client::LockstepClient;
use crate::rpc::proto::peer::Hello;
use crate::rpc::refuse::{self, HOP, REFUSAL, Refused};
use crate::rpc::{CALLS_MAX, HelloInfo};

/// Metadata of a forwarded call, see [`Origin`].
const HELLO: &str = "lockstep-hello-bin";
const LINEAGE: &str = "lockstep-lineage-bin";
const CALLER: &str = "lockstep-caller-bin";

/// Connections to the other nodes' client side.
pub(super) struct Forward {
    others: BTreeMap<NodeId, Other>,
}

struct Other {
    client: LockstepClient<Channel>,
    leader: Leader,
    hello: Hello,
    places: Places,
}

/// A call that may be forwarded: where to, what to say with it, and its place on the connection.
pub(super) struct Onward {
    pub client: LockstepClient<Channel>,
    pub leader: Leader,
    pub origin: Origin,
    /// Given back when this value is dropped.
    pub _place: Place,
}

/// The node that a call is forwarded to, with the address at which clients reach it: the client is
/// told, so that it asks there directly the next time.
#[derive(Clone)]
pub(super) struct Leader {
    pub node: NodeId,
    pub address: AsciiMetadataValue,
}

/// Where a forwarded call comes from.
pub(super) struct Origin {
    /// The node that forwards it, and the node that it means.
    hello: Hello,
    /// The group's lineage there, unless it is not known yet.
    lineage: Option<Lineage>,
    /// The number by which that node tells its callers apart.
    pub caller: Asker,
}

impl Forward {
    /// The calls forwarded to each node may hold `bytes` at a time.
    pub(super) fn new(router: &Router, me: &HelloInfo, bytes: usize) -> Self {
        let others = router.peers().iter().filter(|(node, _)| **node != router.node());
        let others = others.filter_map(|(node, address)| {
            let channel = peer_link::endpoint(address).ok()?.connect_lazy();
            let client = LockstepClient::new(channel)
                .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
            let leader = Leader { node: *node, address: router.address(*node)?.parse().ok()? };
            let places = Places::new(CALLS_MAX as usize, bytes);
            Some((*node, Other { client, leader, hello: hello_to(me, *node), places }))
        });
        Self { others: others.collect() }
    }

    /// How a call of `bytes` bytes with this metadata is forwarded to `leader`; `None` if it was
    /// forwarded before, or `caller` holds too many of the places.
    pub(super) fn to(
        &self,
        leader: NodeId,
        metadata: &MetadataMap,
        group: &GroupHandle,
        caller: Asker,
        bytes: usize,
    ) -> Option<Onward> {
        let other = self.others.get(&leader).filter(|_| !metadata.contains_key(HOP))?;
        let place = other.places.take(caller, bytes)?;
        let (client, leader) = (other.client.clone(), other.leader.clone());
        let origin = Origin { hello: other.hello.clone(), lineage: group.lineage(), caller };
        Some(Onward { client, leader, origin, _place: place })
    }
}

impl Origin {
    /// The request to forward: marked as one hop, with what is left of the caller's deadline.
    pub(super) fn request<T>(&self, message: T, left: Option<Duration>) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        let mut put =
            |key, bytes: &[u8]| metadata.insert_bin(key, BinaryMetadataValue::from_bytes(bytes));
        put(HELLO, &self.hello.encode_to_vec());
        put(CALLER, &self.caller.0.to_be_bytes());
        if let Some(Lineage(lineage)) = &self.lineage {
            put(LINEAGE, lineage);
        }
        metadata.insert(HOP, AsciiMetadataValue::from_static("1"));
        if let Some(left) = left {
            request.set_timeout(left);
        }
        request
    }

    /// What the metadata says of where the call comes from; `None` if no node forwarded it.
    pub(super) fn of(metadata: &MetadataMap) -> Option<Self> {
        let bytes = |key| metadata.get_bin(key)?.to_bytes().ok();
        let hello = Hello::decode(bytes(HELLO)?).ok()?;
        let lineage = bytes(LINEAGE).and_then(|bytes| bytes.as_ref().try_into().ok());
        let caller = u64::from_be_bytes(bytes(CALLER)?.as_ref().try_into().ok()?);
        Some(Self { hello, lineage: lineage.map(Lineage), caller: Asker(caller) })
    }

    /// Refuses a call that is meant for another node or cluster than this.
    pub(super) fn check_node(&self, me: &HelloInfo, group: &str) -> Result<(), Refused> {
        match check_hello(me, &self.hello) {
            Err(status) if !planted("answer_any_forwarded_call") => {
                Err(Refused::misdirected(group, status.message()))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Refuses a call that is meant for another group of this name.
    pub(super) fn check_lineage(&self, group: &GroupHandle) -> Result<(), Refused> {
        match (self.lineage, group.lineage()) {
            (Some(theirs), Some(ours)) if theirs != ours && !planted("any_forwarded_lineage") => {
                let why = format!(
                    "its group of this name is another one (lineage {theirs}, here {ours}); check \
                     the addresses in its configuration"
                );
                Err(Refused::misdirected(group.name(), &why))
            }
            _equal_or_unknown => Ok(()),
        }
    }
}

/// Whether a call claims to be forwarded by a node.
pub(super) fn is_forwarded(headers: &http::HeaderMap) -> bool {
    headers.contains_key(HELLO)
}

/// The status to return to the client when forwarding its call failed.
pub(super) fn failed(status: &Status, leader: NodeId, group: &str) -> Status {
    if status.metadata().contains_key(REFUSAL) {
        return refuse::pass_on(status);
    }
    let unknown = !never_connected(status);
    Refused::unreachable(leader, group, &why(status), unknown).into_status()
}

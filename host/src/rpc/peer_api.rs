//! The peers' side of the port: frames into mailboxes, offers of snapshots to whoever takes them
//! in.
//!
//! - A stream begins with Hello; another cluster, format or addressee is refused before a frame is
//!   read.
//! - A peer speaks for its own replicas only. A batch that breaks a rule ends the stream and is
//!   counted.
//! - Delivering never waits: a full mailbox drops, and raft makes that good.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_core::group::Inbound;
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest, Offer};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::bulk::BulkChannel;
use crate::router::Router;
use crate::rpc::bulk_link::{self, BulkReplies};
use crate::rpc::links::Link;
use crate::rpc::proto::peer as wire;
use crate::rpc::proto::peer::peer_server::Peer;
use crate::rpc::server::until;
use crate::rpc::{HelloInfo, PEER_FORMAT, convert};

/// The receiving end of a bulk channel.
pub type Inbox = Box<dyn BulkChannel<BulkReply, BulkRequest> + Send>;

/// Takes in what peers offer.
pub trait SnapshotInbox: Send + Sync {
    /// Carries out one transfer to its end; called on a thread that may block. The first frame, the
    /// offer, has been read from `channel`.
    fn begin(&self, group: GroupId, offer: Offer, channel: Inbox);
}

/// The service `lockstep.peer.v1.Peer`.
pub(super) struct PeerApi {
    router: Router,
    hello: HelloInfo,
    inbox: Arc<dyn SnapshotInbox>,
    stopped: watch::Receiver<bool>,
    refused: AtomicU64,
}

impl PeerApi {
    pub(super) fn new(
        router: Router,
        hello: HelloInfo,
        inbox: Arc<dyn SnapshotInbox>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self { router, hello, inbox, stopped, refused: AtomicU64::new(0) }
    }

    /// Reads frames until the peer ends the stream or breaks a rule.
    async fn read(
        &self,
        mut source: Streaming<wire::FrameBatch>,
        via: &Arc<str>,
        link: Option<Arc<Link>>,
    ) -> Result<(), Status> {
        let first = source.message().await?;
        let hello = first.and_then(|batch| batch.hello);
        let hello = hello.ok_or_else(|| Status::invalid_argument("a stream begins with Hello"))?;
        let node = check_hello(&self.hello, &hello)?;
        if let Some(link) = link {
            link.is_a_peers();
        }
        while let Some(batch) = source.message().await? {
            for frame in batch.frames {
                self.deliver(node, frame, via)?;
            }
        }
        Ok(())
    }

    fn deliver(&self, node: NodeId, frame: wire::Frame, via: &Arc<str>) -> Result<(), Status> {
        let frame = convert::frame_from_wire(frame)
            .map_err(|e| Status::invalid_argument(format!("frame of node {node}: {e}")))?;
        if frame.from.node() != node {
            return Err(Status::invalid_argument(format!(
                "node {node} sent a frame of replica {}, which is another node's",
                frame.from
            )));
        }
        // A group that is not hosted here is no error: configurations may differ for a while.
        if let Some(group) = self.router.group_by_id(frame.group) {
            group.deliver(Inbound { frame, via: Arc::clone(via) });
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Peer for PeerApi {
    async fn frames(
        &self,
        request: Request<Streaming<wire::FrameBatch>>,
    ) -> Result<Response<wire::FramesEnd>, Status> {
        let via: Arc<str> = remote(&request).into();
        let link = request.extensions().get::<Arc<Link>>().cloned();
        let ended = tokio::select! {
            ended = self.read(request.into_inner(), &via, link) => ended,
            () = until(self.stopped.clone()) => {
                return Err(Status::unavailable("the node is shutting down"));
            }
        };
        if let Err(status) = &ended
            && std::error::Error::source(status).is_none()
        {
            let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::debug!(%via, refused, why = status.message(), "peer stream refused");
        }
        ended.map(|()| Response::new(wire::FramesEnd {}))
    }

    type BulkStream = BulkReplies;

    async fn bulk(
        &self,
        request: Request<Streaming<wire::BulkFrame>>,
    ) -> Result<Response<BulkReplies>, Status> {
        let (mut channel, replies) = bulk_link::accept(request.into_inner());
        let inbox = Arc::clone(&self.inbox);
        let groups = self.router.clone();
        tokio::task::spawn_blocking(move || {
            let refusal = match first_offer(&mut channel) {
                Ok(offer) if groups.group_by_id(offer.group).is_some() => {
                    return inbox.begin(offer.group, offer, Box::new(channel));
                }
                Ok(_unknown) => BulkReply::WrongGroup,
                Err(Some(reply)) => reply,
                Err(None) => return,
            };
            // A peer that is gone needs no answer.
            let _ = channel.send(refusal);
        });
        Ok(Response::new(replies))
    }
}

/// The offer that a transfer begins with; or the reply to what came instead, if anything did.
fn first_offer(
    channel: &mut impl BulkChannel<BulkReply, BulkRequest>,
) -> Result<Offer, Option<BulkReply>> {
    match channel.recv(bulk_link::WRITE_TIMEOUT) {
        Ok(Some(frame)) => frame.into_offer().map_err(Some),
        Ok(None) => Err(None),
        Err(error) => {
            tracing::info!(%error, "bulk channel ended before its offer");
            Err(None)
        }
    }
}

/// Who speaks, if it may.
fn check_hello(me: &HelloInfo, hello: &wire::Hello) -> Result<NodeId, Status> {
    if hello.format != PEER_FORMAT {
        return Err(Status::failed_precondition(format!(
            "peer format {} is not {PEER_FORMAT}, which this node speaks; run the same version \
             everywhere",
            hello.format
        )));
    }
    if hello.cluster != me.cluster[..] {
        return Err(Status::failed_precondition(format!(
            "this is node {} of cluster \"{}\", not of \"{}\"; check the addresses, or the data \
             directory if the names are equal",
            me.node, me.cluster_name, hello.cluster_name
        )));
    }
    if hello.to_node != u32::from(me.node.0) {
        return Err(Status::failed_precondition(format!(
            "this is node {}, not node {}; check the addresses in the configuration",
            me.node, hello.to_node
        )));
    }
    let node = u16::try_from(hello.node).ok().map(NodeId);
    match node.filter(|node| me.nodes.contains(node) && *node != me.node) {
        Some(node) => Ok(node),
        None => Err(Status::failed_precondition(format!(
            "node {} is not a peer of node {}; add it to the configuration",
            hello.node, me.node
        ))),
    }
}

fn remote<T>(request: &Request<T>) -> String {
    request.remote_addr().map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

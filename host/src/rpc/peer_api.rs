//! The peers' side of the port: frames go to the mailboxes of groups, offers of snapshots to the
//! [`SnapshotInbox`].
//!
//! - A peer calls Meet, then opens a stream that begins with Hello. A Hello from another cluster or
//!   for another node is refused before a frame is read, and so is a version other than the newest
//!   common one.
//! - A peer sends frames of its own replicas only. A frame that breaks a rule ends the stream, and
//!   refused streams are counted.
//! - Delivery never waits: a full mailbox drops the frame, and raft makes up for it.
//! - A transfer gets a thread only after its offer was read and judged, and the number of these
//!   threads is bounded. A group whose disk hangs gets no thread, and the threads that it has are
//!   not counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_core::group::Inbound;
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::snapshot::chunk::{BUSY_RETRY_MS, BulkReply, BulkRequest, Offer};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::bulk::BulkChannel;
use crate::router::Router;
use crate::rpc::bulk_link::{self, BulkReplies, Opened};
use crate::rpc::links::Link;
use crate::rpc::peer_link::ANOTHER_NODE;
use crate::rpc::proto::peer as wire;
use crate::rpc::proto::peer::peer_server::Peer;
use crate::rpc::server::until;
use crate::rpc::versions::{PeerVersions, agree};
use crate::rpc::{HelloInfo, VERSION_KEY, convert};
use crate::store::{DiskPlace, DiskPlaces};

/// Transfers that may have a thread here at a time: more than the store admits, so that it is the
/// store that refuses, with its reason.
const TRANSFERS_MAX: usize = 16;

/// The receiving end of a bulk channel.
pub type Inbox = Box<dyn BulkChannel<BulkReply, BulkRequest> + Send>;

/// Receives the snapshots that peers offer.
pub trait SnapshotInbox: Send + Sync {
    /// Runs one transfer to its end; called on a thread that may block. The offer, which is the
    /// first frame, was already read from `channel`.
    fn begin(&self, group: GroupId, offer: Offer, channel: Inbox);
}

/// The service `lockstep.peer.v1.Peer`.
pub(super) struct PeerApi {
    router: Router,
    hello: HelloInfo,
    inbox: Arc<dyn SnapshotInbox>,
    stopped: watch::Receiver<bool>,
    refused: AtomicU64,
    /// A place for each transfer that has a thread.
    places: DiskPlaces,
}

impl PeerApi {
    pub(super) fn new(
        router: Router,
        hello: HelloInfo,
        inbox: Arc<dyn SnapshotInbox>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let places = DiskPlaces::new(TRANSFERS_MAX);
        Self { router, hello, inbox, stopped, refused: AtomicU64::new(0), places }
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
        let hello =
            hello.ok_or_else(|| Status::invalid_argument("a stream must begin with Hello"))?;
        let (node, version) = check_hello(&self.hello, &hello)?;
        if hello.version != version {
            return Err(Status::failed_precondition(format!(
                "the stream speaks version {} of the peers' protocol, but version {version} is the \
                 newest that both nodes know",
                hello.version
            )));
        }
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
                "node {node} sent a frame of replica {}, which belongs to another node",
                frame.from
            )));
        }
        // A group that this node does not host is no error: the nodes' configurations may differ
        // for a while.
        if let Some(group) = self.router.group_by_id(frame.group) {
            group.deliver(Inbound { frame, via: Arc::clone(via) });
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Peer for PeerApi {
    async fn meet(&self, request: Request<wire::Hello>) -> Result<Response<wire::Welcome>, Status> {
        let (_node, version) = check_hello(&self.hello, request.get_ref())?;
        Ok(Response::new(wire::Welcome { version }))
    }

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
        check_version(&self.hello, request.metadata())?;
        let link = request.extensions().get::<Arc<Link>>().cloned();
        let (mut opened, replies) = bulk_link::accept(request.into_inner());
        let intake = Intake {
            inbox: Arc::clone(&self.inbox),
            router: self.router.clone(),
            hello: self.hello.clone(),
            places: self.places.clone(),
        };
        // A task waits for the first frame; a thread is started only for the transfer itself.
        tokio::spawn(async move {
            let Some(first) = opened.first().await else { return };
            match intake.judge(first, link.as_deref()) {
                Ok((offer, place)) => intake.begin(offer, place, opened),
                Err(reply) => opened.refuse(reply),
            }
        });
        Ok(Response::new(replies))
    }
}

/// Decides which transfers get a thread, and starts it.
struct Intake {
    inbox: Arc<dyn SnapshotInbox>,
    router: Router,
    hello: HelloInfo,
    places: DiskPlaces,
}

impl Intake {
    /// Judges the first frame: the offer and a place for the transfer, or the reply that refuses
    /// it.
    fn judge(
        &self,
        first: BulkRequest,
        link: Option<&Link>,
    ) -> Result<(Offer, DiskPlace), BulkReply> {
        let offer = first.into_offer()?;
        let from = offer.from.node();
        let known = self.hello.nodes.contains(&from) && from != self.hello.node;
        let group = self.router.group_by_id(offer.group).filter(|_| known);
        let group = group.ok_or(BulkReply::WrongGroup)?;
        if let Some(link) = link
            && offer.cluster == self.hello.cluster
        {
            link.is_a_peers();
        }
        let busy = BulkReply::Busy { retry_after_ms: BUSY_RETRY_MS };
        let place = self.places.take(&group.snapshot_disk()).ok_or(busy)?;
        Ok((offer, place))
    }

    /// Runs the transfer on a thread of its own.
    fn begin(&self, offer: Offer, place: DiskPlace, opened: Opened) {
        let (inbox, channel) = (Arc::clone(&self.inbox), opened.into_channel());
        let builder = std::thread::Builder::new().name("receive".to_owned());
        let started = builder.spawn(move || {
            inbox.begin(offer.group, offer, Box::new(channel));
            drop(place);
        });
        // Without a thread the peer's channel ends, and the peer tries again.
        if let Err(error) = started {
            tracing::warn!(%error, "cannot receive a snapshot: its thread did not start");
        }
    }
}

/// Refuses a transfer in a version that this node does not know.
fn check_version(me: &HelloInfo, metadata: &MetadataMap) -> Result<(), Status> {
    let named = metadata.get(VERSION_KEY).map(|version| version.to_str().map(str::parse));
    let version = match named {
        None => Some(1),
        Some(Ok(Ok(version))) => Some(version),
        Some(_) => None,
    };
    if version.is_some_and(|version| me.versions.know(version)) {
        Ok(())
    } else {
        Err(Status::failed_precondition(format!(
            "node {} speaks {} of the peers' protocol, but the transfer is in another version",
            me.node, me.versions
        )))
    }
}

/// Checks a Hello: which node sent it, and the version to speak with that node.
pub(super) fn check_hello(me: &HelloInfo, hello: &wire::Hello) -> Result<(NodeId, u32), Status> {
    let theirs = PeerVersions { oldest: hello.oldest, newest: hello.newest };
    let version = agree(u32::from(me.node.0), me.versions, hello.node, theirs)?;
    if hello.cluster != me.cluster[..] {
        return Err(another_node(format!(
            "this is node {} of cluster \"{}\", not of \"{}\"; check the addresses, or the data \
             directory if the names are equal",
            me.node, me.cluster_name, hello.cluster_name
        )));
    }
    if hello.to_node != u32::from(me.node.0) {
        return Err(another_node(format!(
            "this is node {}, not node {}; check the addresses in the configuration",
            me.node, hello.to_node
        )));
    }
    let node = u16::try_from(hello.node).ok().map(NodeId);
    match node.filter(|node| me.nodes.contains(node) && *node != me.node) {
        Some(node) => Ok((node, version)),
        None => Err(Status::failed_precondition(format!(
            "node {} is not a peer of node {}; add it to the configuration",
            hello.node, me.node
        ))),
    }
}

/// The status for a peer that wanted to reach another node: the address that it used is wrong.
fn another_node(why: String) -> Status {
    Status::new(ANOTHER_NODE, why)
}

fn remote<T>(request: &Request<T>) -> String {
    request.remote_addr().map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use lockstep_core::group::{ReplicaState, Running};

    use super::*;
    use crate::group::GroupHandle;
    use crate::router::Addresses;
    use crate::store::tests::{CLUSTER, desc, offer};
    use crate::store::{SnapshotDisk, StoreHandle, StoreJob};

    struct Nowhere;

    impl StoreHandle for Nowhere {
        fn run(&self, _: StoreJob) {}
    }

    impl SnapshotInbox for Nowhere {
        fn begin(&self, _: GroupId, _: Offer, _: Inbox) {}
    }

    /// A group, and the disk of its snapshots.
    fn group(name: &str) -> (GroupHandle, Arc<SnapshotDisk>) {
        let (_, state) = watch::channel(ReplicaState::Running(Running::Serving));
        let (_, report) = watch::channel(crate::group::tests::blank(name));
        let (handle, _) = GroupHandle::new(GroupId::of_name(name), name, state, report);
        let disk = Arc::<SnapshotDisk>::default();
        handle.set_store(Arc::new(Nowhere), Arc::clone(&disk));
        (handle, disk)
    }

    /// A group whose disk hangs begins no transfer, and those that it has hold up no other group.
    #[test]
    fn transfers_into_a_disk_that_hangs_keep_no_other_group_from_receiving() {
        let ((slow, disk), (fine, _)) = (group("slow"), group("fine"));
        let hello = HelloInfo {
            cluster: CLUSTER,
            cluster_name: "test".to_owned(),
            node: NodeId(2),
            nodes: [NodeId(1), NodeId(2)].into(),
            versions: PeerVersions::OURS,
        };
        let router = Router::new(NodeId(2), [slow, fine], Addresses::default());
        let places = DiskPlaces::new(TRANSFERS_MAX);
        let intake = Intake { inbox: Arc::new(Nowhere), router, hello, places };
        let take = |name: &str| {
            let offer = Offer { group: GroupId::of_name(name), ..offer(&desc(9, b"x")) };
            intake.judge(BulkRequest::Offer(offer), None).map(|(_, place)| place)
        };
        let busy = Some(BulkReply::Busy { retry_after_ms: BUSY_RETRY_MS });

        let held = (0..TRANSFERS_MAX).map(|_| take("slow").expect("it is free"));
        let held: Vec<_> = held.collect();
        assert_eq!(take("fine").err(), busy, "the disk may only be slow");
        let hang = disk.hang();
        let others = (0..TRANSFERS_MAX).map(|_| take("fine").expect("its disk answers"));
        let others: Vec<_> = others.collect();
        assert_eq!(take("slow").err(), busy, "no more threads are lost to it");
        drop((hang, held, others));
        take("slow").expect("its disk answers again");
    }
}

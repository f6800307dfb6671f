//! Links between nodes: order, refusals, loss and recovery, and bulk channels.

use lockstep_core::group::{Body, Frame};
use lockstep_core::ids::{Digest, ModuleId};
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{Block, BulkReply, BulkRequest, Purpose};

use super::*;
use crate::bulk::BulkChannel;
use crate::transport::Transport;

/// A port for node 2 whose only peer is node 1.
async fn receiver(cluster: u8, inbox: Arc<dyn SnapshotInbox>) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    receiver_on(listener, cluster, inbox, PeerVersions::OURS)
}

fn receiver_on(
    listener: TcpListener,
    cluster: u8,
    inbox: Arc<dyn SnapshotInbox>,
    versions: PeerVersions,
) -> Node {
    let address = listener.local_addr().expect("it is bound").to_string();
    let nodes = BTreeMap::from([(NodeId(1), "127.0.0.1:1".to_owned()), (NodeId(2), address)]);
    let limits = PortLimits::default();
    let advertised = BTreeMap::new();
    let (node, lineage, linked) = (NodeId(2), None, false);
    let setup =
        Setup { node, cluster, lineage, nodes, advertised, inbox, limits, versions, linked };
    Node::start(setup, listener, Shared::default())
}

/// The sending side of node `me`, and the nodes that it reports as unreachable.
fn sender(me: u16, address: &str) -> (GrpcTransport, mpsc::UnboundedReceiver<NodeId>) {
    sender_to(me, 2, address)
}

pub(super) fn sender_to(
    me: u16,
    to: u16,
    address: &str,
) -> (GrpcTransport, mpsc::UnboundedReceiver<NodeId>) {
    sender_in(PeerVersions::OURS, me, to, address)
}

fn sender_in(
    versions: PeerVersions,
    me: u16,
    to: u16,
    address: &str,
) -> (GrpcTransport, mpsc::UnboundedReceiver<NodeId>) {
    let (lost_in, lost) = mpsc::unbounded_channel();
    let hello = HelloInfo {
        cluster: [1; 16],
        cluster_name: "cluster 1".to_owned(),
        node: NodeId(me),
        nodes: BTreeSet::from([NodeId(me), NodeId(to)]),
        versions,
    };
    let peers = BTreeMap::from([(NodeId(to), address.to_owned())]);
    let unreachable = Arc::new(move |node| {
        let _ = lost_in.send(node);
    });
    (GrpcTransport::start(hello, &peers, unreachable), lost)
}

pub(super) fn frame(from: u16, wall_ms: u64) -> Box<Frame> {
    let sender = ReplicaId::new(NodeId(from), 0);
    let plain = Frame::plain(GroupId::of_name(GROUP), sender, Body::Probe);
    Box::new(Frame { nonce: 2, wall_ms, ..plain })
}

/// Sends frames until one arrives: before the stream is up they are dropped.
async fn first_arrival(transport: &GrpcTransport, node: &mut Node) -> Inbound {
    let arrival = async {
        loop {
            transport.send(NodeId(2), frame(1, 0));
            let pause = Duration::from_millis(5);
            if let Ok(inbound) = tokio::time::timeout(pause, node.frames.recv()).await {
                return inbound.expect("the node runs");
            }
        }
    };
    patiently("a frame", arrival).await
}

async fn error_with(transport: &GrpcTransport, text: &str) {
    let error = async {
        loop {
            let errors = transport.peer_errors();
            if errors.get(&NodeId(2)).is_some_and(|error| error.contains(text)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    patiently(text, error).await;
}

#[tokio::test]
async fn frames_arrive_in_order() {
    let mut node = receiver(1, Arc::new(NoInbox)).await;
    let (transport, _lost) = sender(1, &node.address);
    let first = first_arrival(&transport, &mut node).await;
    assert!(first.via.starts_with("127.0.0.1:"), "{}", first.via);
    for n in 1..=2_000 {
        transport.send(NodeId(2), frame(1, n));
    }
    let mut next = 1;
    while next <= 2_000 {
        let inbound = patiently("a frame", node.frames.recv()).await.expect("the node runs");
        // Some frames of `first_arrival` may still come.
        if inbound.frame.wall_ms != 0 {
            assert_eq!(inbound.frame, *frame(1, next));
            next += 1;
        }
    }
    let connected = async {
        while !transport.peer_errors().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    patiently("the link counts as good", connected).await;
}

#[tokio::test]
async fn strangers_are_refused_with_a_reason() {
    let other = receiver(9, Arc::new(NoInbox)).await;
    let (transport, mut lost) = sender(1, &other.address);
    error_with(&transport, "node 2 of cluster \"cluster 9\", not of \"cluster 1\"").await;
    assert_eq!(patiently("the loss", lost.recv()).await, Some(NodeId(2)));

    let unconfigured = receiver(1, Arc::new(NoInbox)).await;
    let (transport, _lost) = sender(3, &unconfigured.address);
    error_with(&transport, "node 3 is not a peer of node 2").await;

    let (nodes, _) = cluster(3).await;
    let (transport, _lost) = sender(3, &nodes[0].address);
    error_with(&transport, "this is node 1, not node 2").await;
}

/// A peer's address counts as wrong from when another node answers there until the peer itself
/// does.
#[tokio::test]
async fn an_address_is_wrong_until_the_peer_answers_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let other = receiver_on(listener, 9, Arc::new(NoInbox), PeerVersions::OURS);
    let address = other.address.clone();
    let (transport, _lost) = sender(1, &address);
    let router = Router::new(NodeId(1), [], Addresses::default());
    let router = router.knowing(transport.wrong_addresses());
    let is_wrong = || router.wrong_address(NodeId(2)).is_some();
    assert!(!is_wrong(), "nothing is known yet");
    error_with(&transport, "cluster 9").await;
    assert!(is_wrong());
    other.stop().await;
    error_with(&transport, "cannot reach").await;
    assert!(is_wrong(), "who is silent proves nothing");

    let listener = TcpListener::bind(&address).await.expect("the port is free again");
    let mut right = receiver_on(listener, 1, Arc::new(NoInbox), PeerVersions::OURS);
    first_arrival(&transport, &mut right).await;
    assert!(!is_wrong());
}

/// A node that refuses this one as unknown still proves that its address is right.
#[tokio::test]
async fn a_node_that_does_not_know_us_is_the_right_one() {
    let unconfigured = receiver(1, Arc::new(NoInbox)).await;
    let (transport, _lost) = sender(3, &unconfigured.address);
    error_with(&transport, "node 3 is not a peer of node 2").await;
    let router = Router::new(NodeId(3), [], Addresses::default());
    assert_eq!(router.knowing(transport.wrong_addresses()).wrong_address(NodeId(2)), None);
}

/// A node of the next release and one of this release, each way round, exchange frames and
/// transfers in the older version. Two newer nodes speak the newer one.
#[tokio::test]
async fn nodes_speak_the_newest_version_that_both_know() {
    let versions = |(oldest, newest)| PeerVersions { oldest, newest };
    for (ours, theirs, spoken) in [((1, 2), (1, 1), 1), ((1, 1), (1, 2), 1), ((1, 2), (2, 3), 2)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut node = receiver_on(listener, 1, Arc::new(Echo), versions(theirs));
        let (transport, _lost) = sender_in(versions(ours), 1, 2, &node.address);
        first_arrival(&transport, &mut node).await;
        assert_eq!(transport.version(NodeId(2)), Some(spoken), "{ours:?} {theirs:?}");
        let transfer = tokio::task::spawn_blocking(move || {
            let mut channel = transport.bulk(NodeId(2)).expect("the node listens");
            channel.send(BulkRequest::Offer(offer(GROUP))).expect("sent");
            assert_eq!(reply(&mut channel), BulkReply::Proceed { offset: 0 });
        });
        patiently("the transfer", transfer).await.expect("the worker does not panic");
    }
}

#[tokio::test]
async fn nodes_without_a_common_version_are_told_both_and_the_way_out() {
    let (old, new) = (PeerVersions { oldest: 1, newest: 1 }, PeerVersions { oldest: 2, newest: 3 });
    for (ours, theirs, older) in [(old, new, 1), (new, old, 2)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let node = receiver_on(listener, 1, Arc::new(NoInbox), theirs);
        let (transport, _lost) = sender_in(ours, 1, 2, &node.address);
        let both = format!("node 2 speaks {theirs} of the peers' protocol, node 1 speaks {ours}");
        error_with(&transport, &both).await;
        error_with(&transport, &format!("a release on node {older} that speaks version 2")).await;
        let transfer = tokio::task::spawn_blocking(move || transport.bulk(NodeId(2)).err());
        let refused = patiently("the transfer", transfer).await.expect("it only fails");
        let refused = refused.expect("its version is not known there").to_string();
        assert!(refused.contains(&format!("node 2 speaks {theirs}")), "{refused}");
    }
}

#[tokio::test]
async fn a_peer_speaks_for_its_own_replicas_only() {
    let mut node = receiver(1, Arc::new(NoInbox)).await;
    let (transport, mut lost) = sender(1, &node.address);
    first_arrival(&transport, &mut node).await;
    transport.send(NodeId(2), frame(3, 7));
    assert_eq!(patiently("the loss", lost.recv()).await, Some(NodeId(2)));
    error_with(&transport, "belongs to another node").await;
    while let Ok(inbound) = node.frames.try_recv() {
        assert_ne!(inbound.frame.wall_ms, 7);
    }
}

#[tokio::test]
async fn a_lost_peer_is_reported_and_found_again() {
    let mut node = receiver(1, Arc::new(NoInbox)).await;
    let address = node.address.clone();
    let (transport, mut lost) = sender(1, &address);
    first_arrival(&transport, &mut node).await;
    node.stop().await;
    assert_eq!(patiently("the loss", lost.recv()).await, Some(NodeId(2)));
    error_with(&transport, "cannot reach").await;
    let dropped = transport.frames_dropped(NodeId(2));
    transport.send(NodeId(2), frame(1, 8));
    assert_eq!(transport.frames_dropped(NodeId(2)), dropped + 1, "not kept for later");

    let listener = TcpListener::bind(&address).await.expect("the port is free again");
    let mut again = receiver_on(listener, 1, Arc::new(NoInbox), PeerVersions::OURS);
    let first = first_arrival(&transport, &mut again).await;
    assert_ne!(first.frame.wall_ms, 8);
}

fn offer(group: &str) -> Offer {
    let from = ReplicaId::new(NodeId(1), 0);
    Offer {
        cluster: [1; 16],
        group: GroupId::of_name(group),
        from,
        to: ReplicaId::new(NodeId(2), 0),
        term: 3,
        desc: SnapshotDesc {
            term: 2,
            index: 9,
            length: 3 << 20,
            digest: Digest([1; 32]),
            module: ModuleId([2; 32]),
            format: 1,
            configuration: Configuration::of_voters([from]),
        },
        purpose: Purpose::Follow,
        insist: false,
    }
}

/// An inbox that gives a credit for each block and accepts at the end.
struct Echo;

impl SnapshotInbox for Echo {
    fn begin(&self, group: GroupId, offer: Offer, mut channel: Inbox) {
        assert_eq!(group, offer.group);
        let mut replies = vec![BulkReply::Proceed { offset: 0 }];
        loop {
            for reply in replies.drain(..) {
                if channel.send(reply).is_err() {
                    return;
                }
            }
            match channel.recv(PATIENCE) {
                Ok(Some(BulkRequest::Block(block))) => {
                    let blocks = u32::try_from(block.data.len() >> 20).unwrap_or(0);
                    replies.push(BulkReply::Credit { blocks });
                }
                Ok(Some(BulkRequest::End { .. })) => {
                    let _ = channel.send(BulkReply::Accepted);
                    return;
                }
                Ok(Some(BulkRequest::Offer(_)) | None) | Err(_) => return,
            }
        }
    }
}

type Channel = Box<dyn BulkChannel<BulkRequest, BulkReply> + Send>;

/// Runs `work` on a channel to a node with `inbox`, on a thread that may block.
async fn with_channel<T: Send + 'static>(
    inbox: Arc<dyn SnapshotInbox>,
    work: impl FnOnce(Channel) -> T + Send + 'static,
) -> T {
    let node = receiver(1, inbox).await;
    let (transport, _lost) = sender(1, &node.address);
    let working = tokio::task::spawn_blocking(move || {
        work(transport.bulk(NodeId(2)).expect("the node listens"))
    });
    let done = patiently("the transfer", working).await.expect("the worker does not panic");
    node.stop().await;
    done
}

fn reply(channel: &mut Channel) -> BulkReply {
    channel.recv(PATIENCE).expect("the channel is up").expect("an answer in time")
}

#[tokio::test]
async fn a_transfer_runs_to_its_last_reply() {
    with_channel(Arc::new(Echo), |mut channel| {
        channel.send(BulkRequest::Offer(offer(GROUP))).expect("sent");
        assert_eq!(reply(&mut channel), BulkReply::Proceed { offset: 0 });
        for n in 0..8 {
            let data = Bytes::from(vec![n as u8; 1 << 20]);
            let block = Block { offset: n << 20, crc: 5, data };
            channel.send(BulkRequest::Block(block)).expect("sent");
            assert_eq!(reply(&mut channel), BulkReply::Credit { blocks: 1 });
        }
        let end = BulkRequest::End { length: 8 << 20, digest: Digest([1; 32]) };
        channel.send(end).expect("sent");
        assert_eq!(reply(&mut channel), BulkReply::Accepted);
        let over = channel.recv(PATIENCE).expect_err("the receiver closed it");
        assert_eq!(over.kind(), std::io::ErrorKind::BrokenPipe);
        let unknown = channel.send(BulkRequest::Offer(offer(GROUP)));
        drop(unknown);
    })
    .await;
}

#[tokio::test]
async fn offers_that_nobody_takes_are_answered() {
    with_channel(Arc::new(Echo), |mut channel| {
        channel.send(BulkRequest::Offer(offer("bonk"))).expect("sent");
        assert_eq!(reply(&mut channel), BulkReply::WrongGroup);
    })
    .await;
    with_channel(Arc::new(Echo), |mut channel| {
        channel.send(BulkRequest::End { length: 0, digest: Digest([1; 32]) }).expect("sent");
        assert!(matches!(reply(&mut channel), BulkReply::Incompatible { .. }));
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_goes_away_breaks_the_channel() {
    with_channel(Arc::new(NoInbox), |mut channel| {
        channel.send(BulkRequest::Offer(offer(GROUP))).expect("sent");
        let gone = channel.recv(PATIENCE).expect_err("the receiver dropped it");
        assert_eq!(gone.kind(), std::io::ErrorKind::BrokenPipe);
    })
    .await;
}

#[tokio::test]
async fn a_node_that_is_not_there_has_no_channel() {
    let (transport, _lost) = sender(1, "127.0.0.1:1");
    let opening = tokio::task::spawn_blocking(move || {
        let refused = transport.bulk(NodeId(2)).err().expect("nobody listens").to_string();
        (refused, transport.bulk(NodeId(5)).err().expect("no such node").to_string())
    });
    let (refused, unknown) = opening.await.expect("it only fails");
    assert!(refused.contains("127.0.0.1:1"), "{refused}");
    assert!(unknown.contains("no node 5"), "{unknown}");
}

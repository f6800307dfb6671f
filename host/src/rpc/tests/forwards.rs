//! Calls that a node forwards to the leader: whose they are, how many may be on their way, and
//! where they do not go.

use std::collections::BTreeSet;

use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::metadata::BinaryMetadataValue;
use tonic::transport::Channel;

use super::calls::{apply, metadata, raw};
use super::*;
use crate::budget::Share;
use crate::rpc::links::Link;
use crate::rpc::peer_link::hello_to;
use crate::rpc::proto::client::lockstep_client::LockstepClient;
use crate::rpc::proto::client::stream_answer::Answer as Said;
use crate::rpc::proto::client::{ApplyStreamRequest, QueryRequest, StatusRequest, StreamCommand};

#[tokio::test]
async fn a_call_is_forwarded_once() {
    let (nodes, shared) = cluster(2).await;
    shared.lock().leader = Some(NodeId(2));
    let mut raw = raw(&nodes[0]).await;
    let mut request = Request::new(apply("a"));
    request.metadata_mut().insert("lockstep-hop", "1".parse().expect("a header value"));
    let status = raw.apply(request).await.expect_err("it was forwarded before");
    assert_eq!(metadata(&status, "lockstep-refusal"), "not-leader");
    assert_eq!(metadata(&status, "lockstep-leader"), nodes[1].address);
    assert_eq!(metadata(&status, "lockstep-leader-node"), "2");
    let response = raw.apply(apply("b")).await.expect("it is forwarded");
    let leader = response.metadata().get("lockstep-leader").expect("it was node 2");
    assert_eq!(leader.as_bytes(), nodes[1].address.as_bytes());
    assert_eq!(shared.lock().applied.len(), 1);
}

/// Registers a peer's connection with the node, from the address from which all calls of a test
/// come.
fn peer_of(node: &Node) -> Arc<Link> {
    let share = Share::new(node.port.budgets.clone(), 1);
    let link = node.port.links.admit([127, 0, 0, 1].into(), share, Instant::now());
    link.is_a_peers();
    link
}

fn asker() -> QueryRequest {
    let request = Bytes::from_static(b"asker");
    QueryRequest { group: GROUP.to_owned(), request, ..QueryRequest::default() }
}

/// The leader tells the clients of another node apart as callers if a peer is connected from that
/// node's address; otherwise they count as one caller.
#[tokio::test]
async fn a_forwarded_call_is_its_callers() {
    let (nodes, _shared) = cluster(2).await;
    let callers = async || {
        let mut askers = BTreeSet::new();
        for _ in 0..3 {
            let mut client = raw(&nodes[1]).await;
            for _ in 0..2 {
                let answer = client.query(asker()).await.expect("it is forwarded").into_inner();
                askers.insert(format!("{answer:?}"));
            }
        }
        askers.len()
    };
    assert_eq!(callers().await, 1, "anybody can say who they are");
    let _peer = peer_of(&nodes[0]);
    assert_eq!(callers().await, 3);
}

/// A client that claims to forward calls still counts as one caller.
#[tokio::test]
async fn who_says_no_hello_forwards_nothing() {
    let (nodes, _shared) = cluster(2).await;
    let _peer = peer_of(&nodes[0]);
    let mut direct = raw(&nodes[0]).await;
    let mut says = async |caller: u64| {
        let mut request = Request::new(asker());
        request.metadata_mut().insert("lockstep-hop", "1".parse().expect("a header value"));
        let caller = BinaryMetadataValue::from_bytes(&caller.to_be_bytes());
        request.metadata_mut().insert_bin("lockstep-caller-bin", caller);
        direct.query(request).await.expect("it is answered").into_inner().answer
    };
    assert_eq!(says(1).await, says(2).await);
}

/// One client cannot take the whole connection from its node to the leader: it is told where the
/// leader is, and another client's call is still forwarded.
#[tokio::test]
async fn one_caller_takes_half_of_the_way_to_the_leader() {
    let (nodes, shared) = cluster(2).await;
    let _peer = peer_of(&nodes[0]);
    shared.lock().held = Some(Vec::new());
    let held = || shared.lock().held.as_ref().map_or(0, Vec::len);
    let (greedy, mut calm) = (raw(&nodes[1]).await, raw(&nodes[1]).await);
    let mut calls = JoinSet::new();
    for _ in 0..1_500 {
        let mut greedy = greedy.clone();
        calls.spawn(async move { greedy.apply(apply("x")).await });
    }
    let mut refused = 0;
    while refused + held() < 1_500 {
        let call = patiently("a refusal", calls.join_next()).await.expect("some are left");
        let status = call.expect("it does not panic").expect_err("none is applied yet");
        assert_eq!(metadata(&status, "lockstep-refusal"), "not-leader");
        assert_eq!(metadata(&status, "lockstep-leader"), nodes[0].address);
        refused += 1;
    }
    let taken = held();
    assert!((800..1_000).contains(&taken), "{taken} calls take half of 128 MiB");
    let call = tokio::spawn(async move { calm.apply(apply("y")).await });
    patiently("the call of another client", async {
        while held() == taken {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    shared.release();
    call.await.expect("it does not panic").expect("it is answered");
    while let Some(call) = calls.join_next().await {
        call.expect("it does not panic").expect("it is answered");
    }
}

/// While all places are taken, a node that forwards calls is served although its connection got no
/// place.
#[tokio::test]
async fn a_full_leader_answers_what_is_forwarded() {
    let limits = PortLimits { connections: 1, ..PortLimits::default() };
    let (nodes, shared) = cluster_with(2, limits).await;
    let _peer = peer_of(&nodes[0]);
    shared.lock().held = Some(Vec::new());
    let mut busy = raw(&nodes[0]).await;
    let call = tokio::spawn(async move { busy.apply(apply("x")).await });
    patiently("the call to arrive", async {
        while shared.lock().held.as_ref().is_some_and(Vec::is_empty) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let direct = raw(&nodes[0]).await.query(asker()).await.expect_err("there is no place");
    assert_eq!(metadata(&direct, "lockstep-refusal"), "overloaded");
    raw(&nodes[1]).await.query(asker()).await.expect("it is forwarded and answered");
    shared.release();
    call.await.expect("it does not panic").expect("it is answered");
}

/// A wrong address in a node's configuration leads to another cluster, or to another group of the
/// same name. What the node forwards there is refused, not applied.
#[tokio::test]
async fn no_call_is_forwarded_into_another_cluster() {
    let told = "this is node 1 of cluster \"cluster 7\", not of \"cluster 1\"";
    check_misdirected(7, Some(1), GROUP, told).await;
    check_misdirected(7, None, "another", told).await;
    check_misdirected(1, Some(2), GROUP, "another one (lineage 01010101").await;
}

/// A node that takes node 1 for its leader, and the stranger that answers at the address configured
/// for node 1.
struct Astray {
    node: Node,
    nodes: BTreeMap<NodeId, String>,
    stranger: Node,
    theirs: Shared,
}

/// Starts node 2 of cluster 1, and at node 1's address a node of the given cluster and lineage.
async fn astray(cluster: u8, lineage: Option<u8>, linked: bool) -> Astray {
    let listener = async || TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (there, here) = (listener().await, listener().await);
    let address = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
    let nodes = BTreeMap::from([(NodeId(1), address(&there)), (NodeId(2), address(&here))]);
    let start = |node: u16, cluster: u8, lineage: Option<u8>, listener| {
        let shared = Shared::default();
        shared.lock().leader = Some(NodeId(1));
        let setup = Setup {
            node: NodeId(node),
            cluster,
            lineage: lineage.map(|byte| Lineage([byte; 16])),
            nodes: nodes.clone(),
            advertised: BTreeMap::new(),
            inbox: Arc::new(NoInbox),
            limits: PortLimits::default(),
            versions: PeerVersions::OURS,
            linked,
        };
        (Node::start(setup, listener, shared.clone()), shared)
    };
    let (stranger, theirs) = start(1, cluster, lineage, there);
    let (node, _ours) = start(2, 1, Some(1), here);
    Astray { node, nodes, stranger, theirs }
}

/// A node whose links show that another cluster's node stands at its leader's address: its clients
/// are told so, and nobody is told that address.
#[tokio::test]
async fn no_client_is_sent_into_another_cluster() {
    let Astray { node, nodes, stranger, theirs } = astray(7, Some(1), true).await;
    let (mut raw, wrong) = (raw(&node).await, &nodes[&NodeId(1)]);
    let told = "this is node 1 of cluster \"cluster 7\", not of \"cluster 1\"";
    let refused = async |raw: &mut LockstepClient<Channel>| {
        let status = raw.status(StatusRequest::default()).await.expect("it is answered");
        let status = status.into_inner();
        status.peer_errors.iter().any(|peer| peer.error.contains(told)).then_some(status)
    };
    let status = patiently("the link to be refused", async {
        loop {
            if let Some(status) = refused(&mut raw).await {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!((status.groups[0].leader_node, &*status.groups[0].leader_address), (1, ""));

    let status = raw.apply(apply("a")).await.expect_err("the leader is not there");
    assert_eq!(metadata(&status, "lockstep-refusal"), "leader-unreachable");
    assert_eq!(metadata(&status, "lockstep-leader"), "");
    assert!(status.message().contains(told) && !status.message().contains(wrong), "{status:?}");

    let command = StreamCommand { tag: 1, sequence: 0, command: Bytes::from_static(b"b") };
    let group = GROUP.to_owned();
    let message = ApplyStreamRequest { group, commands: vec![command], ..Default::default() };
    let answers = raw.apply_stream(tokio_stream::iter([message])).await.expect("it begins");
    let answer = patiently("an answer", answers.into_inner().message()).await;
    let answer = answer.expect("an answer comes first").expect("the stream goes on").answers;
    let Some(Said::Refused(refusal)) = &answer[0].answer else { panic!("{answer:?}") };
    assert_eq!((&*refusal.refusal, &*refusal.leader), ("not-leader", ""));
    assert!(refusal.message.contains(told) && !refusal.message.contains(wrong), "{refusal:?}");
    assert!(theirs.lock().applied.is_empty());
    drop(stranger);
}

/// Has node 2 forward a command to a stranger of this cluster and lineage, whose group may be
/// `group` or another one, and checks the refusal.
async fn check_misdirected(cluster: u8, lineage: Option<u8>, group: &str, told: &str) {
    let Astray { node, nodes, stranger, theirs } = astray(cluster, lineage, false).await;
    let mut to = apply("a");
    let known = group == GROUP;
    let refused = if known {
        raw(&node).await.apply(to).await
    } else {
        // Asks the stranger directly, for a group that it does not have.
        group.clone_into(&mut to.group);
        let hello = hello_to(&Setup::hello_of(1, 2, &nodes), NodeId(1)).encode_to_vec();
        let mut request = Request::new(to);
        let metadata = request.metadata_mut();
        metadata.insert_bin("lockstep-hello-bin", BinaryMetadataValue::from_bytes(&hello));
        metadata.insert_bin("lockstep-caller-bin", BinaryMetadataValue::from_bytes(&[0; 8]));
        raw(&stranger).await.apply(request).await
    };
    let refused = refused.expect_err("nobody here leads");
    assert_eq!(metadata(&refused, "lockstep-refusal"), "leader-unreachable");
    assert_eq!(metadata(&refused, "lockstep-outcome"), "nothing");
    assert!(refused.message().contains(told), "{refused:?}");
    assert!(theirs.lock().applied.is_empty());
}

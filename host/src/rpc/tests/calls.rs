//! Unary calls: forwarding, refusals, and the retries that a client makes.

use lockstep_client::{Consistency, Error, Outcome, v1};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::rpc::proto::client::StatusRequest;
use crate::rpc::proto::client::lockstep_client::LockstepClient;
use crate::rpc::proto::client::{ApplyRequest, QueryRequest};
use crate::rpc::refuse::REFUSAL;

fn ok(text: &str) -> Outcome {
    Outcome::Ok(Bytes::from(text.to_owned()))
}

#[tokio::test]
async fn a_follower_forwards_and_names_the_leader() {
    let (nodes, shared) = cluster(3).await;
    let client = client_of(&[&nodes[2]]);
    let session = client.open_session().await.expect("the leader opens one");
    assert_eq!(client.leader().as_ref(), Some(&nodes[0].address));

    let unaware = client_of(&[&nodes[1]]);
    let reply = unaware.apply("a").await.expect("it is forwarded");
    assert_eq!((reply.outcome, reply.attempts, reply.leader_changed), (ok("#1"), 1, false));
    assert_eq!(unaware.leader().as_ref(), Some(&nodes[0].address));

    let reply = session.apply("b").await.expect("it goes to the leader");
    assert_eq!(reply.outcome, ok("#2"));
    let rejected = session.apply("bad").await.expect("a no is an answer");
    assert_eq!(rejected.outcome, Outcome::Rejected(Bytes::from_static(b"no")));
    assert_eq!(shared.lock().applied[1].0, session.id(), "session and sequence are kept");
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let (nodes, shared) = cluster(2).await;
    let channel = Channel::from_shared(format!("http://{}", nodes[0].address));
    let channel = channel.expect("an address").connect().await.expect("it listens");
    let mut raw = LockstepClient::new(channel.clone());
    let request = |group: &str| ApplyRequest { group: group.to_owned(), ..ApplyRequest::default() };
    raw.apply(request(GROUP)).await.expect("it is applied");
    let unknown = raw.apply(request("nobody's")).await.expect_err("there is no such group");
    shared.lock().leader = None;
    raw.query(QueryRequest { group: GROUP.to_owned(), ..QueryRequest::default() })
        .await
        .expect_err("nobody leads");
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.expect("it answers");
    let counts = || -> Vec<(&str, &str, u64)> {
        nodes[0].port.requests.counts().filter(|(.., count)| *count > 0).collect()
    };
    // A call is counted after its last byte.
    let all = || counts().iter().map(|(.., count)| count).sum::<u64>() == 4;
    patiently("four calls counted", async {
        while !all() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(unknown.code(), Code::NotFound);
    let expected = [
        ("Apply", "OK", 1),
        ("Apply", "NOT_FOUND", 1),
        ("Query", "FAILED_PRECONDITION", 1),
        ("Health", "OK", 1),
    ];
    assert_eq!(counts(), expected);
    let timed = nodes[0].port.requests.times().map(|(method, _)| method);
    let calls = ["Apply", "Query", "OpenSession", "CloseSession", "Status", "Checkpoint"];
    let orders = ["Order", "Repair", "Fault"];
    assert_eq!(timed.collect::<Vec<_>>(), [&calls[..], &orders].concat());
}

#[tokio::test]
async fn queries_are_linearizable_unless_local() {
    let (nodes, shared) = cluster(2).await;
    shared.lock().leader = Some(NodeId(2));
    let client = client_of(&[&nodes[0]]);
    let local = client.query("who", Consistency::Local).await.expect("it answers itself");
    assert_eq!(local.outcome, ok("1"));
    assert_eq!(client.leader(), None, "a node that answers locally need not lead");
    let strong = client.query("who", Consistency::Linearizable).await.expect("forwarded");
    assert_eq!((strong.outcome, strong.applied_index), (ok("2"), 0));
    let rejected = client.query("bad", Consistency::Linearizable).await.expect("an answer");
    assert_eq!(rejected.outcome, Outcome::Rejected(Bytes::from_static(b"no")));
    let there = client.query_at(&nodes[0].address, "who").await.expect("that node");
    assert_eq!(there.outcome, ok("1"));
}

#[tokio::test]
async fn a_retry_in_a_session_returns_the_first_outcome() {
    let (nodes, shared) = cluster(3).await;
    let client = client_of(&[&nodes[0], &nodes[1], &nodes[2]]);
    let session = client.open_session().await.expect("it opens");
    session.apply("first").await.expect("it is applied");
    shared.lock().script.push_back(Turn::AppliedUnknown);
    let reply = session.apply("again").await.expect("retried");
    assert_eq!((reply.outcome, reply.attempts > 1), (ok("#2"), true));

    shared.lock().script.push_back(Turn::AppliedThenLeads(3));
    let reply = session.apply("across").await.expect("retried at the new leader");
    assert_eq!(reply.outcome, ok("#3"));
    assert!(reply.attempts > 1 && reply.leader_changed, "{reply:?}");
    assert!(shared.counts().values().all(|count| *count == 1), "{:?}", shared.counts());
    assert_eq!(shared.lock().lowest_seen, 3, "1 and 2 were answered when 3 was called");
}

#[tokio::test]
async fn outside_of_a_session_only_nothing_is_retried() {
    let (nodes, shared) = cluster(1).await;
    let client = client_of(&[&nodes[0]]);
    shared.lock().script.push_back(Turn::AppliedUnknown);
    let unknown = client.apply("a").await.expect_err("it may have been applied");
    assert!(matches!(unknown, Error::Unknown { attempts: 1, .. }), "{unknown:?}");
    let harmless: [fn() -> Refusal; 3] =
        [|| Refusal::Lost, || Refusal::Overloaded, || Refusal::NotLeader { leader: None }];
    for refusal in harmless {
        shared.lock().script.push_back(Turn::Refused(refusal));
    }
    let reply = client.apply("b").await.expect("nothing had happened");
    assert_eq!((reply.outcome, reply.attempts), (ok("#2"), 4));
}

/// A call whose time is over before it begins is not sent, and says so.
#[tokio::test]
async fn a_call_ends_without_effect_at_a_deadline_of_its_own() {
    let (nodes, shared) = cluster(1).await;
    let session = client_of(&[&nodes[0]]).open_session().await.expect("it opens");
    let late = session.apply_until("a", tokio::time::Instant::now()).await.expect_err("too late");
    assert!(matches!(late, Error::Refused { attempts: 0, .. }), "{late:?}");
    assert!(shared.lock().applied.is_empty());
    let in_time = tokio::time::Instant::now() + PATIENCE;
    let reply = session.apply_until("b", in_time).await.expect("it is applied");
    assert_eq!(reply.outcome, ok("#1"));
}

#[tokio::test]
async fn an_evicted_session_is_an_error_of_its_own() {
    let (nodes, shared) = cluster(1).await;
    let session = client_of(&[&nodes[0]]).open_session().await.expect("it opens");
    shared.lock().sessions.clear();
    let expired = session.apply("a").await.expect_err("nobody knows it");
    assert!(matches!(expired, Error::SessionExpired { .. }), "{expired:?}");
}

#[tokio::test]
async fn a_call_without_an_answer_ends_at_its_deadline() {
    let (nodes, shared) = cluster(1).await;
    let options = Options {
        group: GROUP.to_owned(),
        deadline: Duration::from_millis(100),
        ..Options::default()
    };
    let client = Client::connect([nodes[0].address.clone()], options).expect("good");
    shared.lock().script.extend([Turn::Silence, Turn::Silence]);
    let late = client.apply("a").await.expect_err("nobody answers");
    assert!(matches!(late, Error::Unknown { .. }), "{late:?}");

    let told = patiently("an end", told_at_deadline(&nodes[0], &apply("b"))).await;
    let said = |name: &str| told.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(said("grpc-status"), Some("4"), "deadline exceeded: {told:?}");
    assert_eq!(said(REFUSAL), Some("deadline"), "{told:?}");
}

/// The headers with which the node ends an unanswered call at the caller's deadline. The caller
/// sends the deadline but does not watch it, because it would end the call itself then.
async fn told_at_deadline(node: &Node, message: &ApplyRequest) -> http::HeaderMap {
    let socket = tokio::net::TcpStream::connect(&node.address).await.expect("it listens");
    let (mut calls, connection) = h2::client::handshake(socket).await.expect("a greeting");
    tokio::spawn(connection);
    let call = http::Request::post(format!("http://{}/lockstep.v1.Lockstep/Apply", node.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "100m");
    let call = call.body(()).expect("good headers");
    let (response, mut body) = calls.send_request(call, false).expect("it is sent");
    let message = prost::Message::encode_to_vec(message);
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    body.send_data(framed.into(), true).expect("it is sent");
    response.await.expect("an answer").headers().clone()
}

#[tokio::test]
async fn a_dead_leader_is_left() {
    let (mut nodes, shared) = cluster(2).await;
    let client = client_of(&[&nodes[0], &nodes[1]]);
    let session = client.open_session().await.expect("it opens");
    session.apply("a").await.expect("it is applied");
    shared.lock().leader = Some(NodeId(2));
    nodes.remove(0).stop().await;
    let reply = patiently("the other leads", session.apply("b")).await.expect("retried");
    assert_eq!(reply.outcome, ok("#2"));
    assert!(reply.attempts > 1 && reply.leader_changed, "{reply:?}");
}

pub(super) async fn raw(node: &Node) -> LockstepClient<tonic::transport::Channel> {
    LockstepClient::connect(format!("http://{}", node.address)).await.expect("it listens")
}

pub(super) fn apply(command: &str) -> ApplyRequest {
    let command = Bytes::from(command.to_owned());
    ApplyRequest { group: GROUP.to_owned(), command, ..ApplyRequest::default() }
}

pub(super) fn metadata(status: &Status, key: &str) -> String {
    let value = status.metadata().get(key).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

#[tokio::test]
async fn refusals_say_what_why_and_the_way_out() {
    let (nodes, shared) = cluster(2).await;
    let mut raw = raw(&nodes[0]).await;
    let check = |status: Status, code, refusal: &str, outcome: &str, text: &str| {
        assert_eq!(status.code(), code, "{status:?}");
        assert_eq!(metadata(&status, "lockstep-refusal"), refusal);
        assert_eq!(metadata(&status, "lockstep-outcome"), outcome);
        assert!(status.message().contains(text), "{}", status.message());
    };
    let large = "x".repeat(limits_command() + 1);
    let status = raw.apply(apply(&large)).await.expect_err("it is too large");
    check(status, Code::InvalidArgument, "too-large", "nothing", "1044481 bytes");
    let stranger = ApplyRequest { group: "bonk".to_owned(), ..apply("a") };
    let status = raw.apply(stranger).await.expect_err("there is no such group");
    check(status, Code::NotFound, "unknown-group", "nothing", "this node has bank");
    let query = QueryRequest { group: "bonk".to_owned(), ..QueryRequest::default() };
    assert_eq!(raw.query(query).await.expect_err("unknown").code(), Code::NotFound);

    type Row = (fn() -> Refusal, Code, &'static str, &'static str, &'static str);
    let refusals: [Row; 7] = [
        (|| Refusal::Overloaded, Code::ResourceExhausted, "overloaded", "nothing", "wait a little"),
        (
            || Refusal::DiskFull { need: 64, have: 3 },
            Code::ResourceExhausted,
            "disk-full",
            "nothing",
            "64 bytes are needed, 3 are free",
        ),
        (|| Refusal::Lost, Code::Aborted, "lost", "nothing", "try again"),
        (unknown, Code::Unknown, "unknown", "unknown", "same session"),
        (|| Refusal::ShuttingDown, Code::Unavailable, "shutting-down", "nothing", "another node"),
        (halted, Code::Unavailable, "not-serving", "nothing", "trap in apply"),
        (
            || Refusal::NotLeader { leader: None },
            Code::FailedPrecondition,
            "not-leader",
            "nothing",
            "no leader is known",
        ),
    ];
    for (refusal, code, word, outcome, text) in refusals {
        shared.lock().script.push_back(Turn::Refused(refusal));
        let status = raw.apply(apply("a")).await.expect_err("the script refuses");
        check(status, code, word, outcome, text);
    }
}

fn halted() -> Refusal {
    Refusal::NotServing { state: "halted", cause: "trap in apply".to_owned() }
}

fn limits_command() -> usize {
    lockstep_core::limits::COMMAND_BYTES_MAX
}

#[tokio::test]
async fn an_unreachable_leader_is_told_apart() {
    let (mut nodes, shared) = cluster(2).await;
    shared.lock().leader = Some(NodeId(2));
    nodes.remove(1).stop().await;
    let mut raw = raw(&nodes[0]).await;
    let status = raw.apply(apply("a")).await.expect_err("nobody listens there");
    assert_eq!(metadata(&status, "lockstep-refusal"), "leader-unreachable");
    assert_eq!(metadata(&status, "lockstep-outcome"), "nothing", "it was never sent: {status:?}");
}

#[tokio::test]
async fn status_and_health_answer() {
    use tonic_health::pb::health_client::HealthClient;
    let (nodes, _shared) = cluster(1).await;
    let client = client_of(&[&nodes[0]]);
    let status = client.status(&nodes[0].address).await.expect("it tells");
    assert_eq!((status.node, status.cluster.as_str()), (1, "cluster 1"));
    let [group] = &status.groups[..] else { panic!("one group, not {:?}", status.groups) };
    assert_eq!((group.name.as_str(), group.state.as_str()), (GROUP, "serving"));
    assert_eq!(group.role(), v1::group_status::Role::Follower);
    assert_eq!((group.term, group.last_index), (2, 4));

    let channel = crate::rpc::peer_link::connect(&nodes[0].address).await.expect("it listens");
    let mut health = HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: "lockstep.v1.Lockstep".into() };
    let answer = health.check(request).await.expect("it is registered").into_inner();
    assert_eq!(answer.status, tonic_health::ServingStatus::Serving as i32);
    assert!(nodes[0].handle.watch().borrow().refusal().is_none());
}

fn unknown() -> Refusal {
    Refusal::Unknown { why: "leadership was lost".to_owned() }
}

/// A node that is about to stop refuses clients' calls and streams without effect, so that clients
/// go to another node; it still answers status calls, and its health turns to not serving.
#[tokio::test]
async fn a_node_about_to_stop_turns_clients_away() {
    let (nodes, shared) = cluster(2).await;
    let address = format!("http://{}", nodes[0].address);
    let mut wire = LockstepClient::connect(address.clone()).await.expect("it listens");
    let channel = Channel::from_shared(address).expect("an address").connect().await;
    let health = HealthClient::new(channel.expect("it listens"));
    let pipeline = client_of(&[&nodes[0], &nodes[1]]).pipeline();
    let first = pipeline.submit("before").await.expect("it is taken");
    patiently("an answer", first).await.expect("applied");

    nodes[0].closing.send_replace(true);
    let request = QueryRequest { request: "q".into(), local: true, ..QueryRequest::default() };
    let refused = wire.query(request).await.expect_err("it is about to stop");
    let word = refused.metadata().get(REFUSAL).and_then(|word| word.to_str().ok());
    assert_eq!((refused.code(), word), (Code::Unavailable, Some("shutting-down")));
    assert!(refused.message().contains("try another node"), "{refused}");
    wire.status(StatusRequest::default()).await.expect("the status is told");
    let serving = async || {
        let request = HealthCheckRequest { service: String::new() };
        health.clone().check(request).await.map(|answer| answer.into_inner().status())
    };
    while serving().await.expect("it is answered") == ServingStatus::Serving {
        tokio::task::yield_now().await;
    }

    // Outside of a session, so that a command that may have been applied would end as unknown.
    let mut pending = Vec::new();
    for n in 0..50 {
        pending.push(pipeline.submit(format!("command {n}")).await.expect("it is taken"));
    }
    shared.lock().leader = Some(NodeId(2));
    for answer in pending {
        patiently("an answer", answer).await.expect("the other node applies it");
    }
    assert!(shared.counts().values().all(|count| *count == 1), "{:?}", shared.counts());
    assert_eq!(shared.counts().len(), 51);
}

/// A session's calls are numbered from 1; all calls with number 0 would be one call.
#[tokio::test]
async fn a_call_of_a_session_without_a_number_is_refused() {
    let (nodes, shared) = cluster(1).await;
    let mut raw = raw(&nodes[0]).await;
    let request = ApplyRequest { session: 7, sequence: 0, ..apply("a") };
    let status = raw.apply(request).await.expect_err("it has no number");
    assert_eq!(metadata(&status, "lockstep-refusal"), "malformed");
    assert!(shared.lock().applied.is_empty());
}

/// A refusal that only a person can resolve is reported soon, not after forty attempts.
#[tokio::test]
async fn a_hopeless_refusal_is_told_soon() {
    let (nodes, shared) = cluster(1).await;
    let client = client_of(&[&nodes[0]]);
    let full = || Refusal::DiskFull { need: 64, have: 3 };
    let halted = || Refusal::Halted { cause: "trap in apply".to_owned() };
    for refusal in [full as fn() -> Refusal, halted] {
        shared.lock().script.extend((0..4).map(|_| Turn::Refused(refusal)));
        let refused = client.apply("a").await.expect_err("it is refused");
        assert!(matches!(&refused, Error::Refused { attempts: 2, .. }), "{refused:?}");
        let pipeline = client.pipeline();
        let answer = pipeline.submit("b").await.expect("it is taken");
        let refused = patiently("an answer", answer).await.expect_err("it is refused");
        assert!(matches!(&refused, Error::Refused { attempts: 2, .. }), "{refused:?}");
    }
}

/// A command that no server takes is not sent, and the commands before and after it are.
#[tokio::test]
async fn an_oversized_command_harms_no_neighbour() {
    let (nodes, shared) = cluster(1).await;
    let session = client_of(&[&nodes[0]]).open_session().await.expect("it opens");
    let pipeline = session.pipeline();
    let before = pipeline.submit(vec![1; 500_000]).await.expect("it is taken");
    let refused = pipeline.submit(vec![2; 8_380_000]).await.err().expect("it is too large");
    assert!(matches!(&refused, Error::Refused { refusal, .. } if refusal == "too-large"));
    let after = pipeline.submit(vec![3; limits_command()]).await.expect("it is taken");
    patiently("an answer", before).await.expect("applied");
    patiently("an answer", after).await.expect("applied");
    assert_eq!(shared.lock().applied.len(), 2);
    assert_eq!(lockstep_client::COMMAND_BYTES_MAX, limits_command());
}

/// A group with as many sessions as it may have refuses to open another, and no open session is
/// affected.
#[tokio::test]
async fn a_session_finds_space_once_another_is_closed() {
    let (nodes, shared) = cluster(2).await;
    shared.lock().sessions_max = Some(1);
    let client = client_of(&[&nodes[1], &nodes[0]]);
    let first = client.open_session().await.expect("there is space for one");
    let full = with_enough_time(&nodes[1], async |hasty| match hasty.open_session().await {
        Err(Error::Refused { refusal, message, .. }) => Some((refusal, message)),
        Err(Error::Unknown { .. }) => None,
        other => panic!("it is full: {:?}", other.err()),
    });
    let (refusal, message) = patiently("an answer", full).await;
    assert_eq!(refusal, "sessions-full");
    assert!(message.contains("4096 sessions"), "{message}");

    let other = client.clone();
    let opening = tokio::spawn(async move { other.open_session().await });
    patiently("an answer", first.apply("a")).await.expect("it is as it was");
    patiently("an answer", first.close()).await.expect("it closes");
    let second = patiently("a session", opening).await.expect("no panic").expect("there is space");
    patiently("an answer", second.apply("b")).await.expect("it is applied");
}

/// Clients are told the leader's advertised address; nodes forward calls to its address among
/// nodes.
#[tokio::test]
async fn an_advertised_address_is_what_clients_are_told() {
    const NOWHERE: &str = "127.0.0.1:1";
    let (nodes, shared) = cluster_at(2, PortLimits::default(), &[(1, NOWHERE)]).await;
    let client = client_of(&[&nodes[1]]);
    let first = patiently("an answer", client.apply("a")).await.expect("it is forwarded");
    assert_eq!((first.attempts, client.leader().as_deref()), (1, Some(NOWHERE)));
    let status = client.status(&nodes[0].address).await.expect("it answers");
    assert_eq!(status.address, NOWHERE);

    // No node answers at that address: one call finds out, the others go where they are answered.
    let second = patiently("an answer", client.apply("b")).await.expect("it is forwarded");
    assert_eq!(second.attempts, 2);
    for _ in 0..10 {
        let reply = patiently("an answer", client.apply("c")).await.expect("it is forwarded");
        assert_eq!(reply.attempts, 1);
    }
    assert_eq!(shared.lock().applied.len(), 12);

    // A stream is not forwarded: its client is told where to go, and how to set that address.
    let told = with_enough_time(&nodes[1], async |hasty| {
        hasty.apply("d").await.ok()?;
        hasty.apply("e").await.ok()?;
        let submitted = hasty.pipeline().submit("f").await.ok()?;
        match submitted.await {
            Err(Error::Refused { message, .. }) => Some(message),
            Err(Error::Unknown { .. }) => None,
            other => panic!("nobody leads there: {other:?}"),
        }
    });
    let message = patiently("an answer", told).await;
    assert!(message.contains(NOWHERE) && message.contains("[advertise]"), "{message}");
}

/// The result of `attempt` by a client with a short deadline. On a loaded machine an attempt may
/// fail because of it; then the next one has twice the time.
async fn with_enough_time<T>(node: &Node, attempt: impl AsyncFn(Client) -> Option<T>) -> T {
    let mut deadline = Duration::from_millis(100);
    loop {
        let options = Options { group: GROUP.to_owned(), deadline, ..Options::default() };
        let client = Client::connect([node.address.clone()], options).expect("good");
        if let Some(done) = attempt(client).await {
            return done;
        }
        deadline *= 2;
    }
}

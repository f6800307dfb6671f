//! `ApplyStream` and the client's pipeline over it.

use lockstep_client::{Error, Outcome};
use tokio_stream::StreamExt;
use tonic::Code;

use super::raw::{DATA, Raw};
use super::*;
use crate::rpc::proto::client::lockstep_client::LockstepClient;
use crate::rpc::proto::client::stream_answer::Answer as Said;
use crate::rpc::proto::client::{ApplyStreamRequest, StreamAnswer, StreamCommand};
use crate::rpc::{STREAM_COMMANDS_MAX, STREAM_INFLIGHT_MAX};

fn command(n: u64) -> Bytes {
    Bytes::from(format!("command {n}"))
}

#[tokio::test]
async fn a_pipeline_in_a_session_applies_each_command_once() {
    const COMMANDS: u64 = 5_000;
    let (nodes, shared) = cluster(3).await;
    let client = client_of(&[&nodes[1], &nodes[0], &nodes[2]]);
    let session = client.open_session().await.expect("it opens");
    let pipeline = session.pipeline();
    let mut pending = Vec::new();
    let mut retried = 0;
    for n in 0..COMMANDS {
        if n % 1_000 == 500 {
            let mut machine = shared.lock();
            let next = (n / 1_000 % 3 + 1) as u16;
            machine.script.extend([Turn::AppliedUnknown, Turn::Refused(|| Refusal::Overloaded)]);
            machine.script.push_back(Turn::AppliedThenLeads(next));
        }
        pending.push(pipeline.submit(command(n)).await.expect("it is taken"));
    }
    for (n, answer) in pending.into_iter().enumerate() {
        let reply = patiently("an answer", answer).await.expect("retried until it has one");
        let Outcome::Ok(outcome) = reply.outcome else { panic!("no command is bad: {n}") };
        let place: usize = std::str::from_utf8(&outcome[1..])
            .ok()
            .and_then(|text| text.parse().ok())
            .expect("the place it was applied at");
        assert_eq!(shared.lock().applied[place - 1].2, command(n as u64));
        retried += u64::from(reply.attempts > 1);
    }
    assert_eq!(shared.counts().len() as u64, COMMANDS);
    assert!(shared.counts().values().all(|count| *count == 1));
    assert!(retried >= 15, "three commands of each of five changes: {retried}");
    // Neither a refusal nor a new leader lets a command overtake an earlier one.
    let machine = shared.lock();
    let order: Vec<&Bytes> = machine.applied.iter().map(|(_, _, command)| command).collect();
    let sent: Vec<Bytes> = (0..COMMANDS).map(command).collect();
    assert_eq!(order, sent.iter().collect::<Vec<_>>());
}

/// The group's queue takes 32 MiB. Longer pipelines wait for it: no command is refused or sent
/// twice.
#[tokio::test]
async fn a_pipeline_with_long_commands_waits_for_space() {
    const COMMANDS: u32 = 4_096;
    let (nodes, shared) = cluster(1).await;
    shared.lock().held = Some(Vec::new());
    let pipeline = client_of(&[&nodes[0]]).pipeline();
    let submitting = tokio::spawn(async move {
        let mut pending = Vec::new();
        for n in 0..COMMANDS {
            let mut command = vec![0; 64 << 10];
            command[..4].copy_from_slice(&n.to_be_bytes());
            pending.push(pipeline.submit(command).await.expect("it is taken"));
        }
        pending
    });
    while !submitting.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        shared.release();
        shared.lock().held = Some(Vec::new());
    }
    let pending = submitting.await.expect("no panic");
    shared.release();
    for answer in pending {
        let reply = patiently("an answer", answer).await.expect("it is applied");
        assert_eq!(reply.attempts, 1, "nothing is refused");
    }
    let machine = shared.lock();
    let order: Vec<&[u8]> = machine.applied.iter().map(|(_, _, command)| &command[..4]).collect();
    let sent: Vec<[u8; 4]> = (0..COMMANDS).map(u32::to_be_bytes).collect();
    assert_eq!(order, sent.iter().map(|n| &n[..]).collect::<Vec<_>>());
}

/// Streams with more commands than a group can take make their clients wait.
#[tokio::test]
async fn streams_of_a_busy_group_wait_and_are_not_refused() {
    const STREAMS: usize = 5;
    let (nodes, shared) = cluster(1).await;
    shared.lock().held = Some(Vec::new());
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let messages = (0..4).map(|n| {
            let tags = n * 64..(n + 1) * 64;
            let commands = tags.map(|tag| {
                let command = Bytes::from(vec![0; 64 << 10]);
                StreamCommand { tag, sequence: 0, command }
            });
            let commands = commands.collect();
            ApplyStreamRequest { group: GROUP.to_owned(), commands, ..Default::default() }
        });
        let address = nodes[0].address.clone();
        streams.spawn(send(address, messages.collect()));
    }
    let taken = || -> usize {
        let machine = shared.lock();
        let held = machine.held.iter().flatten();
        held.map(|(call, _)| call.payload.len()).sum()
    };
    // The group takes as much as it has capacity for, and no more.
    let (mut before, mut same) = (0, 0);
    while same < 50 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let now = taken();
        same = if now > 0 && now == before { same + 1 } else { 0 };
        before = now;
    }
    assert!((16 << 20..=24 << 20).contains(&before), "{before}");
    while !streams.is_empty() {
        shared.release();
        shared.lock().held = Some(Vec::new());
        while let Some(ended) = streams.try_join_next() {
            let (answers, status) = ended.expect("no panic");
            assert!(status.is_none(), "{status:?}");
            assert_eq!(answers.len(), 256);
            let ok = |answer: &StreamAnswer| matches!(answer.answer, Some(Said::Ok(_)));
            assert!(answers.iter().all(ok), "{answers:?}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Commands after a refused one are refused too, and the stream ends with that refusal.
#[tokio::test]
async fn nothing_behind_a_refused_command_is_taken() {
    let (nodes, shared) = cluster(1).await;
    let fine = || Refusal::ReadTimeout;
    shared.lock().script.push_back(Turn::Refused(fine));
    let messages: Vec<_> = (0..8).map(|n| message(n * 100..(n + 1) * 100)).collect();
    let (answers, status) = exchange(&nodes[0], messages).await;
    let status = status.expect("the stream ends with the reason");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(shared.lock().applied.is_empty(), "the first was refused");
    assert!(answers.iter().all(|answer| matches!(answer.answer, Some(Said::Refused(_)))));
    assert!(answers.iter().any(|answer| answer.tag == 0), "it is answered");
}

#[tokio::test]
async fn a_pipeline_outside_of_a_session_repeats_nothing_that_may_have_happened() {
    let (nodes, shared) = cluster(2).await;
    let client = client_of(&[&nodes[0], &nodes[1]]);
    let pipeline = client.pipeline();
    let mut pending = Vec::new();
    shared.lock().script.extend([Turn::Refused(|| Refusal::Lost), Turn::AppliedThenLeads(2)]);
    for n in 0..100 {
        pending.push(pipeline.submit(command(n)).await.expect("it is taken"));
    }
    let mut unknown = 0;
    for answer in pending {
        match patiently("an answer", answer).await {
            Ok(reply) => assert!(matches!(reply.outcome, Outcome::Ok(_))),
            Err(Error::Unknown { .. }) => unknown += 1,
            Err(other) => panic!("nothing else went wrong: {other:?}"),
        }
    }
    assert_eq!(unknown, 1, "the one whose leader left");
    let counts = shared.counts();
    assert_eq!(counts.len(), 100);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

#[tokio::test]
async fn a_pipeline_survives_the_death_of_its_node() {
    let (mut nodes, shared) = cluster(2).await;
    let client = client_of(&[&nodes[0], &nodes[1]]);
    let session = client.open_session().await.expect("it opens");
    let pipeline = session.pipeline();
    let first = pipeline.submit(command(0)).await.expect("it is taken");
    patiently("an answer", first).await.expect("applied");
    // The node applies the next command and stops before it answers.
    shared.lock().script.push_back(Turn::Silence);
    let second = pipeline.submit(command(1)).await.expect("it is taken");
    while shared.lock().applied.len() < 2 {
        tokio::task::yield_now().await;
    }
    shared.lock().leader = Some(NodeId(2));
    nodes.remove(0).stop().await;
    let reply = patiently("an answer", second).await.expect("sent again");
    assert_eq!(reply.outcome, Outcome::Ok(Bytes::from_static(b"#2")), "the first outcome");
    assert!(reply.attempts > 1 && reply.leader_changed, "{reply:?}");
}

#[tokio::test]
async fn dropping_a_pipeline_does_not_drop_its_commands() {
    let (nodes, shared) = cluster(1).await;
    let pipeline = client_of(&[&nodes[0]]).pipeline();
    let answer = pipeline.submit(command(7)).await.expect("it is taken");
    drop(pipeline);
    patiently("an answer", answer).await.expect("it is applied");
    assert_eq!(shared.counts().len(), 1);
}

#[tokio::test]
async fn an_unknown_group_ends_every_command_of_a_pipeline() {
    let (nodes, _shared) = cluster(1).await;
    let options = Options { group: "bonk".to_owned(), ..Options::default() };
    let client = Client::connect([nodes[0].address.clone()], options).expect("good");
    let answer = client.pipeline().submit("a").await.expect("it is taken");
    let refused = patiently("an answer", answer).await.expect_err("no such group");
    let Error::Refused { refusal, message, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(refusal, "unknown-group");
    assert!(message.contains("bank"), "{message}");
}

/// Sends `messages` over a raw stream and ends it; the answers, and the status at their end.
async fn exchange(
    node: &Node,
    messages: Vec<ApplyStreamRequest>,
) -> (Vec<StreamAnswer>, Option<tonic::Status>) {
    send(node.address.clone(), messages).await
}

async fn send(
    address: String,
    messages: Vec<ApplyStreamRequest>,
) -> (Vec<StreamAnswer>, Option<tonic::Status>) {
    let address = format!("http://{address}");
    let mut client = LockstepClient::connect(address).await.expect("it listens");
    let sent = client.apply_stream(tokio_stream::iter(messages)).await.expect("it opens");
    let mut stream = sent.into_inner();
    let mut answers = Vec::new();
    loop {
        match patiently("a message", stream.next()).await {
            Some(Ok(message)) => answers.extend(message.answers),
            Some(Err(status)) => return (answers, Some(status)),
            None => return (answers, None),
        }
    }
}

fn message(tags: std::ops::Range<u64>) -> ApplyStreamRequest {
    let commands = tags.map(|tag| StreamCommand { tag, sequence: 0, command: command(tag) });
    ApplyStreamRequest {
        group: GROUP.to_owned(),
        commands: commands.collect(),
        ..ApplyStreamRequest::default()
    }
}

#[tokio::test]
async fn every_command_of_a_stream_is_answered_by_its_tag() {
    let (nodes, shared) = cluster(1).await;
    let many = 3 * STREAM_INFLIGHT_MAX as u64;
    let messages: Vec<_> = (0..many / 512).map(|n| message(n * 512..(n + 1) * 512)).collect();
    let (answers, status) = exchange(&nodes[0], messages).await;
    assert!(status.is_none(), "{status:?}");
    let tags: BTreeSet<u64> = answers.iter().map(|answer| answer.tag).collect();
    assert_eq!((answers.len() as u64, tags.len() as u64), (many, many));
    assert!(answers.iter().all(|answer| matches!(answer.answer, Some(Said::Ok(_)))));
    assert_eq!(shared.counts().len() as u64, many);
}

#[tokio::test]
async fn one_bad_command_of_a_stream_is_refused_alone() {
    let (nodes, _shared) = cluster(2).await;
    let mut batch = message(0..3);
    let limit = lockstep_core::limits::COMMAND_BYTES_MAX;
    batch.commands[1].command = vec![0; limit + 1].into();
    let (answers, status) = exchange(&nodes[0], vec![batch]).await;
    assert!(status.is_none() && answers.len() == 3);
    let refused = answers.iter().find(|answer| answer.tag == 1).and_then(|a| a.answer.clone());
    let Some(Said::Refused(refusal)) = refused else { panic!("not {refused:?}") };
    assert_eq!(
        (refusal.code, refusal.refusal.as_str()),
        (Code::InvalidArgument as u32, "too-large")
    );
    assert!(!refusal.outcome_unknown);

    let (answers, _) = exchange(&nodes[1], vec![message(0..1)]).await;
    let Some(Said::Refused(refusal)) = &answers[0].answer else { panic!("not {answers:?}") };
    assert_eq!(refusal.refusal, "not-leader");
    assert_eq!(refusal.leader, nodes[0].address, "streams are not forwarded");
}

#[tokio::test]
async fn a_message_that_breaks_the_rules_ends_the_stream_behind_its_answers() {
    let (nodes, shared) = cluster(1).await;
    let huge = message(10..11 + STREAM_COMMANDS_MAX as u64);
    let (answers, status) = exchange(&nodes[0], vec![message(0..4), huge]).await;
    assert_eq!(answers.len(), 4);
    let status = status.expect("the stream ends with a reason");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("1025"), "{}", status.message());
    assert_eq!(shared.counts().len(), 4, "nothing of the bad message was taken");
}

/// Waits until the group holds commands back, and takes them.
async fn held_back(shared: &Shared) -> Vec<(Call, Reply)> {
    let some = async {
        loop {
            let held = shared.lock().held.replace(Vec::new()).unwrap_or_default();
            if !held.is_empty() {
                return held;
            }
            tokio::task::yield_now().await;
        }
    };
    patiently("commands", some).await
}

fn apply(shared: &Shared, call: Call, reply: Reply) {
    let applied = shared.lock().apply(&call);
    reply.send(Ok(applied));
}

/// The next command of a stream waits for space when its client stops reading. The space goes to
/// another stream, not to one that does not use it.
#[tokio::test]
async fn a_stream_that_is_not_read_keeps_no_space_from_others() {
    const APPLY_STREAM: &str = "/lockstep.v1.Lockstep/ApplyStream";
    /// What a connection takes unread.
    const WINDOW_BYTES: usize = 65_535;
    // Nobody is cut off in this test.
    let limits = PortLimits { patience: 100 * PATIENCE, ..PortLimits::default() };
    let (nodes, shared) = cluster_with(1, limits).await;
    let stream_of = |commands: &[Bytes]| {
        let commands = commands.iter().zip(0..).map(|(command, tag)| {
            let command = command.clone();
            StreamCommand { tag, sequence: 0, command }
        });
        let (group, commands) = (GROUP.to_owned(), commands.collect());
        ApplyStreamRequest { group, commands, ..Default::default() }
    };
    let mut raw = Raw::connect(&nodes[0].address).await;
    let full = raw.open(APPLY_STREAM, &[]);
    raw.message(full, &stream_of(&[Bytes::from_static(b"big")]), false);
    raw.flush().await;
    let mut read = 0;
    while read < WINDOW_BYTES {
        let frame = patiently("an answer", raw.next()).await.expect("the connection stays");
        read += if frame.kind == DATA { frame.payload.len() } else { 0 };
    }

    // There is space for the first two of three commands, and a little more.
    let permits = nodes[0].handle.stream_permits();
    let mut taken: Vec<_> = std::iter::from_fn(|| permits.try_take(0)).collect();
    taken.truncate(taken.len() - 8);
    shared.lock().held = Some(Vec::new());
    let unread = raw.open(APPLY_STREAM, &[]);
    let [little, long] = [vec![b'x'], vec![b'x'; 5 << 10]].map(Bytes::from);
    raw.message(unread, &stream_of(&[little, long.clone(), long]), false);
    raw.flush().await;
    let mut held = held_back(&shared).await;
    assert_eq!(held.len(), 2, "the third waits");
    let (call, reply) = held.remove(0);
    apply(&shared, call, reply);
    shared.lock().held = None;
    // After two pings, ten seconds each, the connection would count as dead and hold nothing more.
    let other = exchange(&nodes[0], vec![message(0..1)]);
    let other = tokio::time::timeout(Duration::from_secs(9), other).await;
    let (answers, status) = other.expect("another stream goes on");
    assert!(status.is_none() && answers.len() == 1, "{status:?}");
}

/// While memory is high, the group refuses waiting commands, except those with `relief`: these must
/// not be applied before earlier ones of their stream.
#[tokio::test]
async fn a_command_with_relief_waits_for_those_without_before_it() {
    let high = Refusal::MemoryHigh { bytes: 2, bound: 1, most: 3 };
    for refusal in [None, Some(high)] {
        let (nodes, shared) = cluster(1).await;
        shared.lock().held = Some(Vec::new());
        let messages = [(0, false), (1, true), (2, false)];
        let messages = messages
            .map(|(tag, relief)| ApplyStreamRequest { relief, ..message(tag..tag + 1) })
            .to_vec();
        let stream = tokio::spawn(send(nodes[0].address.clone(), messages));
        let mut first = held_back(&shared).await;
        assert_eq!(first.len(), 1, "the one with relief waits");
        let (call, reply) = first.remove(0);
        assert_eq!(call.payload, command(0));
        let is_high = refusal.is_some();
        if let Some(refusal) = refusal {
            reply.send(Err(refusal));
        } else {
            apply(&shared, call, reply);
            let rest = held_back(&shared).await;
            assert_eq!(rest.len(), 2, "the last one does not wait for it");
            rest.into_iter().for_each(|(call, reply)| apply(&shared, call, reply));
        }
        let (answers, status) = stream.await.expect("no panic");
        assert_eq!(status.is_some(), is_high, "{status:?}");
        // The last message is not read after a refusal.
        assert_eq!(answers.len(), if is_high { 2 } else { 3 });
        let order: Vec<Bytes> = shared.lock().applied.iter().map(|one| one.2.clone()).collect();
        let applied: Vec<Bytes> = (0..if is_high { 0 } else { 3 }).map(command).collect();
        assert_eq!(order, applied);
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_gone_for_all_its_commands() {
    let (nodes, shared) = cluster(1).await;
    shared.lock().held = Some(Vec::new());
    let stream = tokio::spawn(send(nodes[0].address.clone(), vec![message(0..3)]));
    let held = held_back(&shared).await;
    assert_eq!(held.len(), 3);
    assert!(!held.iter().any(|(_, reply)| reply.is_closed()), "it is there");
    stream.abort();
    let gone = async {
        while !held.iter().all(|(_, reply)| reply.is_closed()) {
            tokio::task::yield_now().await;
        }
    };
    patiently("its commands to be given up", gone).await;
}

//! Streams of commands to a real group: leaders are killed meanwhile, and commands are long.

use std::collections::BTreeSet;

use lockstep_client::{Error, Outcome, Pending};
use lockstep_tests::cluster::{Cluster, Spec};

use crate::solo::query;

const COMMANDS: u64 = 6_000;
/// The leader is killed after this many answers.
const BEFORE: usize = 1_500;

async fn three() -> Cluster {
    let mut cluster = Cluster::start(Spec::of_guest("kv", 3).expect("it is built"));
    let started = cluster.as_mut().expect("it starts");
    started.wait_serving("kv").await.expect("it serves");
    cluster.expect("it started")
}

/// Waits for all answers; returns the counts in them, and how many commands may or may not have
/// been applied. With `kill`, the leader is killed after [`BEFORE`] answers.
async fn answers(cluster: &mut Cluster, pending: Vec<Pending>, kill: bool) -> (BTreeSet<u64>, u64) {
    let (mut counts, mut unknown) = (BTreeSet::new(), 0);
    for (number, answer) in pending.into_iter().enumerate() {
        if kill && number == BEFORE {
            let leader = cluster.leader("kv").await.expect("one answered so far");
            cluster.kill(leader).expect("it runs");
        }
        match answer.await {
            Ok(reply) => {
                let Outcome::Ok(count) = reply.outcome else { panic!("got {:?}", reply.outcome) };
                let count = std::str::from_utf8(&count).ok().and_then(|text| text.parse().ok());
                assert!(counts.insert(count.expect("a count")), "two got the count {count:?}");
            }
            Err(Error::Unknown { .. }) => unknown += 1,
            Err(other) => panic!("command {number}: {other}"),
        }
    }
    (counts, unknown)
}

/// In a session every command is applied once, even if the leader changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_a_session_outlives_the_leader() {
    let mut cluster = three().await;
    let client = cluster.client().expect("good addresses");
    let session = client.open_session().await.expect("a session");
    let pipeline = session.pipeline();
    let mut pending = Vec::new();
    let mut submitted = async |count: u64| {
        for _ in 0..count {
            pending.push(pipeline.submit("incr n").await.expect("it is taken"));
        }
        std::mem::take(&mut pending)
    };
    let first = submitted(COMMANDS / 2).await;
    let (mut counts, unknown) = answers(&mut cluster, first, true).await;
    assert_eq!(unknown, 0, "a session knows what became of each");
    let second = submitted(COMMANDS / 2).await;
    let (more, unknown) = answers(&mut cluster, second, false).await;
    assert_eq!(unknown, 0);
    counts.extend(more);
    assert_eq!(counts, (1..=COMMANDS).collect(), "each was applied once");
    assert_eq!(query(&client, "get n").await, COMMANDS.to_string());
    cluster.stop_all().await.expect("they stop");
}

/// Outside of a session a command that may have been applied is not sent again: the final count
/// lies between the number of answered commands and the number of all that may have been applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outside_of_a_session_repeats_nothing() {
    let mut cluster = three().await;
    let client = cluster.client().expect("good addresses");
    let pipeline = client.pipeline();
    let mut pending = Vec::new();
    for _ in 0..COMMANDS {
        pending.push(pipeline.submit("incr n").await.expect("it is taken"));
    }
    let (counts, unknown) = answers(&mut cluster, pending, true).await;
    assert_eq!(counts.len() as u64 + unknown, COMMANDS, "each has an end");
    let applied: u64 = query(&client, "get n").await.parse().expect("a count");
    let answered = counts.len() as u64;
    assert!((answered..=answered + unknown).contains(&applied), "{answered} {unknown} {applied}");
    cluster.stop_all().await.expect("they stop");
}

/// Each command of a session sees the effect of the one before it, although the leader is killed
/// meanwhile: the order is kept across streams and leaders.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_a_session_keeps_its_order_over_leaders() {
    let mut cluster = three().await;
    let client = cluster.client().expect("good addresses");
    let pipeline = client.open_session().await.expect("a session").pipeline();
    let mut pending = Vec::new();
    for number in 1..=COMMANDS {
        pending.push(pipeline.submit(format!("set x {number}")).await.expect("it is taken"));
    }
    for (number, answer) in pending.into_iter().enumerate() {
        if number == BEFORE {
            let leader = cluster.leader("kv").await.expect("one answered so far");
            cluster.kill(leader).expect("it runs");
        }
        let reply = answer.await.expect("a session knows what became of each");
        let before = if number == 0 { String::new() } else { number.to_string() };
        assert_eq!(reply.outcome, Outcome::Ok(before.into()), "after command {number}");
    }
    cluster.stop_all().await.expect("they stop");
}

/// A pipeline never has more under way than fits into a group's queue, so nothing is refused and
/// nothing is sent twice, however long commands and answers are.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_long_commands_is_refused_nothing() {
    const LONG: u64 = 1_024;
    let mut cluster = Cluster::start(Spec::of_guest("kv", 1).expect("it is built"));
    let started = cluster.as_mut().expect("it starts");
    started.wait_serving("kv").await.expect("it serves");
    let pipeline = started.client().expect("a good address").pipeline();
    let value = |number: u64| format!("{number} {}", "v".repeat(60 << 10));
    let submitting = tokio::spawn(async move {
        let mut pending = Vec::new();
        for number in 1..=LONG {
            let command = format!("set x {}", value(number));
            pending.push(pipeline.submit(command).await.expect("it is taken"));
        }
        pending
    });
    let pending = submitting.await.expect("no panic");
    for (number, answer) in (0..).zip(pending) {
        let reply = answer.await.expect("it is applied");
        let before = if number == 0 { String::new() } else { value(number) };
        assert_eq!((reply.outcome, reply.attempts), (Outcome::Ok(before.into()), 1));
    }
    cluster.expect("it started").stop_all().await.expect("they stop");
}

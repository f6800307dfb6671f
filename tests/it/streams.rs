//! Streams of commands against a real group, whose leader is killed under them.

use std::collections::BTreeSet;

use lockstep_client::{Error, Outcome, Pending};
use lockstep_tests::cluster::{Cluster, Spec};

use crate::solo::query;

const COMMANDS: u64 = 6_000;
/// The leader is killed behind so many answers.
const BEFORE: usize = 1_500;

async fn three() -> Cluster {
    let mut cluster = Cluster::start(Spec::of_guest("kv", 3).expect("it is built"));
    let started = cluster.as_mut().expect("it starts");
    started.wait_serving("kv").await.expect("it serves");
    cluster.expect("it was there")
}

/// The counts that were answered, and how many commands may or may not have been applied.
async fn answers(cluster: &mut Cluster, pending: Vec<Pending>, kill: bool) -> (BTreeSet<u64>, u64) {
    let (mut counts, mut unknown) = (BTreeSet::new(), 0);
    for (number, answer) in pending.into_iter().enumerate() {
        if kill && number == BEFORE {
            let leader = cluster.leader("kv").await.expect("one answered so far");
            cluster.kill(leader).expect("it runs");
        }
        match answer.await {
            Ok(reply) => {
                let Outcome::Ok(count) = reply.outcome else { panic!("not {:?}", reply.outcome) };
                let count = std::str::from_utf8(&count).ok().and_then(|text| text.parse().ok());
                assert!(counts.insert(count.expect("a count")), "two have one count: {count:?}");
            }
            Err(Error::Unknown { .. }) => unknown += 1,
            Err(other) => panic!("command {number}: {other}"),
        }
    }
    (counts, unknown)
}

/// In a session every command is applied once, whoever leads.
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

/// Outside of one nothing that may have been applied is sent again: the count is between what was
/// answered and what may have been.
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

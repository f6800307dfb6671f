//! Timers of a guest across a change of leader, as watchers at the other nodes see them.

use std::time::Duration;

use lockstep_client::{Client, Event, Options, Position, Watch};
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;

use crate::solo::{apply, assert_says, lockstep, query};

const GROUP: &str = "lock";
/// How long the first lease is: an election ends before it as a rule, but need not.
const LEASE: Duration = Duration::from_secs(4);

/// The next events of a watch, as many as are asked for.
async fn next(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let reading = async {
        while events.len() < count {
            events.extend(watch.next().await.expect("the node runs").events);
        }
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    assert!(read.is_ok(), "{count} events were due, and {events:?} came");
    events
}

fn text(event: &Event) -> String {
    format!("{} {}", event.topic, String::from_utf8_lossy(&event.payload))
}

/// The end of a lease, as the event that grants it has it.
fn until_ms(granted: &Event) -> u64 {
    let text = text(granted);
    let until = text.rsplit(' ').next().and_then(|word| word.parse().ok());
    until.unwrap_or_else(|| panic!("`{text}` ends with a time"))
}

/// What `lockstep status` says once the node has reported the timer.
async fn status_with_timer(node: &str) -> String {
    let looking = async {
        loop {
            let json = lockstep(&["status", "--endpoint", node, "--json"]).await.stdout;
            let rows: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
            let mut rows = rows.as_array().into_iter().flatten();
            if rows.any(|row| row["wakes_at_ms"].is_u64()) {
                return lockstep(&["status", "--endpoint", node]).await.stdout;
            }
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("the timer is set")
}

/// A lease is granted, then the leader is killed: the next leader ends the lease, not before its
/// time, and the next one in the queue gets the lock. Watchers at both nodes that are left see this
/// alike.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_expires_though_the_leader_is_killed() {
    let spec = Spec::of_guest(GROUP, 3).expect("it is built");
    let mut cluster = Cluster::start(spec).expect("it starts");
    let leader = cluster.wait_serving(GROUP).await.expect("it serves");
    let mut watches = Vec::new();
    for node in cluster.nodes().into_iter().filter(|node| *node != leader) {
        let only = Client::connect([cluster.address(node)], Options::default());
        let only = only.expect("its address is valid");
        watches.push(only.watch("lock/", Some(Position::default())));
    }
    let client = cluster.client().expect("good addresses");
    let acquire = format!("acquire db ann {}", LEASE.as_millis());
    assert_eq!(apply(&client, &acquire).await, "1");
    assert_eq!(apply(&client, "wait db bob 1000").await, "waiting 1");

    let told = status_with_timer(cluster.address(leader)).await;
    let mut seen = Vec::new();
    for watch in &mut watches {
        seen.push(next(watch, 1).await);
    }
    cluster.kill(leader).expect("it runs");
    for (watch, seen) in watches.iter_mut().zip(&mut seen) {
        seen.extend(next(watch, 3).await);
    }
    let texts: Vec<String> = seen[0].iter().map(text).collect();
    let (ann, bob) = (until_ms(&seen[0][0]), until_ms(&seen[0][2]));
    let expected = [
        format!("lock/db granted ann 1 {ann}"),
        "lock/db expired ann 1".to_owned(),
        format!("lock/db granted bob 2 {bob}"),
        "lock/db expired bob 2".to_owned(),
    ];
    assert_eq!(texts, expected);
    assert_says(&told, &[&format!("lock has a timer set, to {ann} ms of log time: it is due in ")]);
    assert!(seen[0][1].time_ms >= ann && seen[0][3].time_ms >= bob, "before its time: {seen:?}");
    assert_eq!(seen[0], seen[1], "both nodes have the same events at the same positions");
    assert_eq!(query(&client, "who db").await, "free");
    cluster.stop_all().await.expect("they stop");
}

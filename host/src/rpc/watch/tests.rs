//! What a watch says, and when, without a port.

use lockstep_core::fault::Fault;
use lockstep_core::group::{Halt, Stands, Stopped};
use lockstep_core::ids::{GroupId, NodeId};
use tokio_stream::StreamExt as _;

use super::*;
use crate::group::event_board::tests::{Author, LARGE, WINDOW};
use crate::group::mailbox::Mailbox;
use crate::router::Addresses;
use crate::rpc::tests::{PATIENCE, report};

/// A long time and a short one: what is to happen after the long one does not happen in a test.
const NEVER: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_millis(50);

/// A replica whose events are watched.
struct Desk {
    author: Author,
    handle: GroupHandle,
    state: watch::Sender<ReplicaState>,
    closing: watch::Sender<bool>,
    _mailbox: Mailbox,
}

impl Desk {
    fn new() -> Self {
        let (state, told) = watch::channel(ReplicaState::Running(Running::Serving));
        let (_, reported) = watch::channel(report(NodeId(1)));
        let (handle, mailbox) = GroupHandle::new(GroupId::of_name("g"), "g", told, reported);
        let (author, closing) = (Author::new(WINDOW), watch::Sender::new(false));
        author.tell(handle.events());
        Self { author, handle, state, closing, _mailbox: mailbox }
    }

    /// Applies an entry with events of these topics.
    fn entry(&mut self, topics: &[&str]) {
        let events: Vec<_> = topics.iter().map(|topic| (*topic, 1)).collect();
        self.author.entry(&events).tell(self.handle.events());
    }

    fn watch(&self, prefix: &str, start: Option<(u64, u32)>, times: Times) -> WatchStream {
        let start = start.map(|(index, number)| wire::Position { index, number });
        let router = Router::new(NodeId(1), [self.handle.clone()], Addresses::default());
        let (handle, closing) = (self.handle.clone(), self.closing.subscribe());
        let watcher = Watcher::new(handle, router, prefix.to_owned(), start, closing);
        WatchStream::new(Watcher {
            times,
            ..watcher.map_err(Status::from).expect("a short prefix")
        })
    }

    fn be(&self, state: ReplicaState) {
        self.state.send_replace(state);
    }
}

/// Pulses, or the end of the wait for a replica that lags, come soon; or neither does.
const PULSES: Times = Times { pulse: SOON, look: Duration::ZERO, catch_up_max: NEVER };
const HASTE: Times = Times { pulse: NEVER, look: Duration::ZERO, catch_up_max: SOON };
const CALM: Times = Times { pulse: NEVER, look: Duration::ZERO, catch_up_max: NEVER };

/// The next message of the watch is this one: the positions of its events, and where it ends; or
/// its refusal.
async fn check(watch: &mut WatchStream, want: &str) {
    let said = tokio::time::timeout(PATIENCE, watch.next()).await.expect("it says something");
    let text = |status: &Status, key: &str| {
        status.metadata().get(key).and_then(|it| it.to_str().ok()).unwrap_or("").to_owned()
    };
    let said = match said {
        None => "end".to_owned(),
        Some(Ok(wire::WatchResponse { events, applied_index, next })) => {
            let wire::Position { index, number } = next.expect("where it ends");
            assert_eq!(applied_index, index - 1);
            let events = events.iter().map(|event| format!("{}.{} ", event.index, event.number));
            format!("{}to {index}.{number}", events.collect::<String>())
        }
        Some(Err(status)) => {
            assert!(!status.message().is_empty());
            let said = [text(&status, "lockstep-refusal"), text(&status, "lockstep-begin")];
            said.join(" ").trim_end().to_owned()
        }
    };
    assert_eq!(said, want);
}

/// Nothing is said unless something happens.
async fn check_silent(watch: &mut WatchStream) {
    let waited = tokio::time::timeout(SOON, watch.next()).await;
    assert!(waited.is_err(), "{waited:?}");
}

fn halted() -> ReplicaState {
    let fault = Fault::Restore("why".to_owned());
    let stands = Stands::At(2);
    ReplicaState::Running(Running::Halted(Halt { fault, stands, applied_by: None, is_first: true }))
}

#[tokio::test]
async fn from_now_on_or_from_a_position() {
    let mut desk = Desk::new();
    desk.entry(&["a", "b"]);
    let mut now = desk.watch("", None, CALM);
    check(&mut now, "to 3.0").await;
    let mut all = desk.watch("", Some((0, 0)), CALM);
    check(&mut all, "2.0 2.1 to 3.0").await;
    check(&mut desk.watch("", Some((2, 1)), CALM), "2.1 to 3.0").await;
    check(&mut desk.watch("b", Some((1, 0)), CALM), "2.1 to 3.0").await;
    check_silent(&mut now).await;
    desk.entry(&["b"]);
    desk.entry(&[]);
    for watch in [&mut now, &mut all] {
        check(watch, "3.0 to 5.0").await;
        check_silent(watch).await;
    }
    assert_eq!(desk.handle.events().watches().sent, 6);
}

/// A client whose prefix is quiet keeps a position that the window still holds.
#[tokio::test]
async fn a_quiet_watch_says_how_far_it_is() {
    let mut desk = Desk::new();
    let mut watch = desk.watch("b", None, PULSES);
    let began = Instant::now();
    check(&mut watch, "to 2.0").await;
    for next in 3..6 {
        desk.entry(&["a"]);
        check(&mut watch, &format!("to {next}.0")).await;
    }
    assert!(began.elapsed() >= 3 * SOON, "it does not say so at each entry");
    let mut silent = desk.watch("b", None, CALM);
    check(&mut silent, "to 5.0").await;
    desk.entry(&["a"]);
    check_silent(&mut silent).await;
}

#[tokio::test]
async fn a_replica_that_lags_has_time_to_catch_up() {
    let mut desk = Desk::new();
    check(&mut desk.watch("", Some((2, 0)), HASTE), "to 2.0").await;
    for beyond in [(2, 1), (3, 0), (u64::MAX, u32::MAX)] {
        let mut watch = desk.watch("", Some(beyond), HASTE);
        check(&mut watch, "from-future").await;
        check(&mut watch, "end").await;
    }
    let mut watch = desk.watch("", Some((3, 1)), CALM);
    check_silent(&mut watch).await;
    desk.entry(&["a"]);
    check_silent(&mut watch).await;
    desk.entry(&["a", "b", "c"]);
    check(&mut watch, "3.1 3.2 to 4.0").await;
}

#[tokio::test]
async fn who_is_slower_than_the_window_is_told_where_it_begins() {
    let mut desk = Desk::new();
    let mut slow = desk.watch("", None, CALM);
    let mut quick = desk.watch("", None, CALM);
    check(&mut slow, "to 2.0").await;
    check(&mut quick, "to 2.0").await;
    for index in 2..22 {
        desk.author.entry(&[("a", LARGE)]).tell(desk.handle.events());
        check(&mut quick, &format!("{index}.0 to {}.0", index + 1)).await;
    }
    check(&mut slow, "compacted 6.1").await;
    check(&mut slow, "end").await;
    check(&mut desk.watch("none", Some((6, 0)), CALM), "compacted 6.1").await;
    assert_eq!(desk.handle.events().watches().compacted, 2);
    // A message has a bound.
    let mut again = desk.watch("", Some((6, 1)), CALM);
    for want in ["7.0 8.0 9.0 to 9.1", "10.0 11.0 12.0 to 12.1", "13.0 14.0 15.0 to 15.1"] {
        check(&mut again, want).await;
    }
    assert_eq!(desk.handle.events().watches().open, 2, "those that ended are not open");
}

/// What a halted or stopped replica has is sent, and then the client has to go elsewhere.
#[tokio::test]
async fn a_replica_that_applies_nothing_more_says_so_at_the_end() {
    let removed = ReplicaState::Stopped(Stopped::Removed);
    let stopped = ReplicaState::Stopped(Stopped::Requested);
    for (state, word) in
        [(halted(), "halted"), (removed, "not-serving"), (stopped, "shutting-down")]
    {
        let mut desk = Desk::new();
        let mut watch = desk.watch("", None, CALM);
        check(&mut watch, "to 2.0").await;
        desk.entry(&["a"]);
        desk.be(state);
        check(&mut watch, "2.0 to 3.0").await;
        check(&mut watch, word).await;
        let mut late = desk.watch("", Some((2, 0)), CALM);
        check(&mut late, "2.0 to 3.0").await;
        check(&mut late, word).await;
        check(&mut desk.watch("", None, CALM), word).await;
        check(&mut desk.watch("", Some((9, 0)), CALM), word).await;
    }
}

#[tokio::test]
async fn a_replica_without_a_state_has_no_now() {
    let restoring = || ReplicaState::Running(Running::Restoring);
    let mut desk = Desk::new();
    desk.be(restoring());
    check(&mut desk.watch("", None, HASTE), "to 2.0").await;
    check(&mut desk.watch("", Some((9, 0)), HASTE), "not-serving").await;
    // A new one.
    let (state, told) = watch::channel(restoring());
    let (_, reported) = watch::channel(report(NodeId(1)));
    let (handle, _mailbox) = GroupHandle::new(GroupId::of_name("g"), "g", told, reported);
    (desk.state, desk.handle) = (state, handle);
    check(&mut desk.watch("", None, CALM), "not-serving").await;
    let mut watch = desk.watch("", Some((2, 0)), CALM);
    check_silent(&mut watch).await;
    desk.entry(&["a"]);
    check(&mut watch, "2.0 to 3.0").await;
}

#[tokio::test]
async fn a_node_that_stops_ends_its_watches() {
    let desk = Desk::new();
    let mut begun = desk.watch("", None, CALM);
    check(&mut begun, "to 2.0").await;
    let mut waiting = desk.watch("", Some((9, 0)), CALM);
    check_silent(&mut waiting).await;
    desk.closing.send_replace(true);
    for watch in [&mut begun, &mut waiting] {
        check(watch, "shutting-down").await;
        check(watch, "end").await;
    }
    let desk = Desk::new();
    let mut left = desk.watch("", None, CALM);
    check(&mut left, "to 2.0").await;
    drop(desk.closing);
    check(&mut left, "shutting-down").await;
}

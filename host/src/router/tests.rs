//! How groups end, and what becomes of the node that hosts them.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use lockstep_core::group::Running;
use tokio::sync::watch;

use super::*;
use crate::group::tests::blank;

const FAULT: fn() -> Fault = || Fault::Log("the disk is gone".to_owned());

/// The state of a group that failed.
fn failed() -> ReplicaState {
    ReplicaState::Stopped(Stopped::Failed(FAULT()))
}

const SERVING: ReplicaState = ReplicaState::Running(Running::Serving);
const REMOVED: ReplicaState = ReplicaState::Stopped(Stopped::Removed);
const REQUESTED: ReplicaState = ReplicaState::Stopped(Stopped::Requested);

/// Groups "a", "b", ... in these states, and the senders that change their states.
fn router(states: Vec<ReplicaState>) -> (Router, Vec<watch::Sender<ReplicaState>>) {
    let (mut handles, mut ends) = (Vec::new(), Vec::new());
    for (state, name) in states.into_iter().zip(["a", "b", "c"]) {
        let (end, state) = watch::channel(state);
        let (_, report) = watch::channel(blank(name));
        handles.push(GroupHandle::new(GroupId::of_name(name), name, state, report).0);
        ends.push(end);
    }
    (Router::new(NodeId(1), handles, Addresses::default()), ends)
}

/// How the groups ended, if they have by now.
fn look(ended: impl Future<Output = Ended>) -> Option<Ended> {
    match pin!(ended).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    }
}

/// A node without groups has nothing to wait for, and finds no group by any name or id.
/// Covers L3 L8.
#[test]
fn an_absent_group_is_over_and_holds_nobody_up() {
    let (router, _ends) = router(Vec::new());
    assert_eq!(look(router.ended()), Some(Ended::Removed));
    assert!(router.group("").is_none());
    assert!(router.group("a").is_none());
    assert!(router.group_by_id(GroupId::of_name("a")).is_none());
}

/// The ways to stop differ in their name, in their cause, and in what they mean for the node.
/// Covers L4 L5 L11.
#[test]
fn each_end_is_told_apart() {
    let of_a = |fault: Fault| Some(Ended::Failed(vec![("a".to_owned(), fault)]));
    let rows = [
        (vec![SERVING], None),
        (vec![REQUESTED], Some(Ended::Removed)),
        (vec![REMOVED], Some(Ended::Removed)),
        (vec![failed()], of_a(FAULT())),
        // A group that ended, in whatever way, ends no other.
        (vec![REMOVED, SERVING], None),
        (vec![failed(), SERVING], None),
        (vec![SERVING, failed()], None),
        (vec![failed(), REMOVED], of_a(FAULT())),
        (vec![REMOVED, REMOVED, REQUESTED], Some(Ended::Removed)),
    ];
    for (states, want) in rows {
        let names: Vec<_> = states.iter().map(ReplicaState::name).collect();
        let (router, _ends) = router(states);
        assert_eq!(look(router.ended()), want, "{names:?}");
    }
    let ends = [REQUESTED, REMOVED, failed()];
    assert_eq!(ends.clone().map(|end| end.name()), ["stopped", "removed", "failed"]);
    assert!(ends.iter().all(|end| end.is_stopped() && end.refusal().is_some()));
    assert!(failed().cause().expect("it has one").contains("the disk is gone"));
}

/// A group that failed before the first call is reported like any other, and by each call.
/// Covers L9.
#[test]
fn a_late_caller_hears_it_as_well() {
    let (router, mut ends) = router(vec![failed(), SERVING]);
    let second = ends.pop().expect("there are two");
    // The actor of the first is gone.
    drop(ends);
    assert_eq!(look(router.ended()), None);
    second.send_replace(failed());
    drop(second);
    for _ in 0..3 {
        let Some(Ended::Failed(faults)) = look(router.ended()) else { panic!("it is over") };
        assert_eq!(faults.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["a", "b"]);
    }
}

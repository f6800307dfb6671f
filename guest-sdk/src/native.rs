//! What stands in for the host on native targets: it records events and the timer, and refuses them
//! where the host would trap.
//!
//! A thread has one call at a time, as an instance does. [`during`] makes it.

use std::cell::RefCell;

use crate::events::{PAYLOAD_BYTES_MAX, TOPIC_BYTES_MAX};

/// Which function of the machine is being called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Init,
    Apply,
    Wake,
    Query,
    Snapshot,
    Restore,
    Digest,
}

/// What a call did beside its result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// The topics and payloads of events, in order.
    pub(crate) events: Vec<(String, Vec<u8>)>,
    /// What the timer is set to after the call.
    pub(crate) timer: Option<u64>,
}

thread_local! {
    /// The call that this thread is in.
    static CALL: RefCell<Option<(Call, Effects)>> = const { RefCell::new(None) };
}

/// Does `work` as this call, with the timer set to `timer` before it.
pub(crate) fn during<R>(call: Call, timer: Option<u64>, work: impl FnOnce() -> R) -> (R, Effects) {
    /// Also ends a call that panics.
    struct Ended;
    impl Drop for Ended {
        fn drop(&mut self) {
            CALL.set(None);
        }
    }
    CALL.set(Some((call, Effects { events: Vec::new(), timer })));
    let ended = Ended;
    let result = work();
    let effects = CALL.take().map(|(_, effects)| effects).unwrap_or_default();
    drop(ended);
    (result, effects)
}

/// Records an event.
pub(crate) fn emit(topic: &str, payload: &[u8]) {
    within("emit", &[Call::Apply, Call::Wake], |effects| {
        assert!(
            topic.len() <= TOPIC_BYTES_MAX,
            "a topic of {} bytes; the limit is {TOPIC_BYTES_MAX}",
            topic.len(),
        );
        assert!(
            payload.len() <= PAYLOAD_BYTES_MAX,
            "a payload of {} bytes; the limit is {PAYLOAD_BYTES_MAX}",
            payload.len(),
        );
        effects.events.push((topic.to_owned(), payload.to_vec()));
    });
}

/// Records what the timer is set to.
pub(crate) fn set_timer(function: &str, time_ms: Option<u64>) {
    within(function, &[Call::Init, Call::Apply, Call::Wake], |effects| effects.timer = time_ms);
}

fn within(function: &str, allowed: &[Call], work: impl FnOnce(&mut Effects)) {
    CALL.with_borrow_mut(|now| match now {
        Some((call, effects)) if allowed.contains(call) => work(effects),
        Some((call, _)) => panic!(
            "`{function}` was called in {call:?}, where the host traps; it may be called in \
             {allowed:?}"
        ),
        None => panic!(
            "`{function}` was called outside of the harness: test with `testing::Harness`, which \
             records it"
        ),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{emit, timer};

    #[test]
    fn effects_are_recorded() {
        let (result, effects) = during(Call::Apply, Some(5), || {
            emit("a", b"1");
            emit("b", b"2");
            3
        });
        assert_eq!(result, 3);
        assert_eq!(effects.events, [("a".into(), b"1".into()), ("b".into(), b"2".into())]);
        assert_eq!(effects.timer, Some(5));
        assert_eq!(during(Call::Init, None, || timer::wake_at(7)).1.timer, Some(7));
        assert_eq!(during(Call::Wake, Some(7), timer::cancel).1.timer, None);
    }

    fn check(call: Call, work: fn(), expect: &str) {
        let panic = std::panic::catch_unwind(|| during(call, None, work)).expect_err(expect);
        let message = panic.downcast::<String>().expect("it is formatted");
        assert!(message.contains(expect), "{message}");
    }

    #[test]
    fn what_the_host_refuses_panics() {
        check(Call::Query, || emit("a", b""), "`emit` was called in Query");
        check(Call::Init, || emit("a", b""), "`emit` was called in Init");
        check(Call::Snapshot, timer::cancel, "`timer::cancel` was called in Snapshot");
        check(Call::Restore, || timer::wake_at(1), "`timer::wake_at` was called in Restore");
        check(Call::Apply, || emit(&"t".repeat(257), b""), "topic of 257 bytes");
        check(Call::Apply, || emit("t", &[0; 65_537]), "payload of 65537 bytes");
        let outside = std::panic::catch_unwind(timer::cancel).expect_err("outside");
        let message = outside.downcast::<String>().expect("it is formatted");
        assert!(message.contains("outside of the harness"), "{message}");
    }
}

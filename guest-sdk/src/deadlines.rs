//! Many deadlines on one timer.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use crate::{Context, timer};

/// Deadlines by key, of which the timer is always set to the earliest.
///
/// It is part of the state, hence of the snapshot: write [`iter`](Deadlines::iter), and collect
/// what was written to restore it. A machine that uses it leaves the [`timer`] to it, and calls
/// [`woken`](Deadlines::woken) or [`woken_up_to`](Deadlines::woken_up_to) in `wake`.
///
/// The wake may come late: a command may find that a deadline has passed for which nobody was woken
/// yet. If that matters, `apply` asks [`get`](Deadlines::get) for the keys that the command is
/// about, or calls [`take_due`](Deadlines::take_due).
///
/// ```
/// # use lockstep_guest::*;
/// # use std::time::Duration;
/// struct Sessions(Deadlines<String>);
///
/// impl Sessions {
///     fn renew(&mut self, ctx: &Context, name: &str) {
///         self.0.set(name.to_owned(), ctx.after(Duration::from_secs(10)));
///     }
///     fn wake(&mut self, ctx: &Context) {
///         for name in self.0.woken(ctx) {
///             emit("expired", name.as_bytes());
///         }
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines<K> {
    times: BTreeMap<K, u64>,
    /// The same, by time.
    order: BTreeSet<(u64, K)>,
}

impl<K: Ord + Clone> Deadlines<K> {
    /// No deadlines.
    pub const fn new() -> Self {
        Self { times: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// How many deadlines there are.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// The deadline of this key, a time of the log.
    pub fn get<Q>(&self, key: &Q) -> Option<u64>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.times.get(key).copied()
    }

    /// The earliest deadline.
    pub fn earliest(&self) -> Option<u64> {
        self.order.first().map(|&(time_ms, _)| time_ms)
    }

    /// All deadlines, by key.
    pub fn iter(&self) -> std::collections::btree_map::Iter<'_, K, u64> {
        self.times.iter()
    }

    /// Gives this key a deadline, instead of the one that it had. For `init`, `apply` and `wake`.
    pub fn set(&mut self, key: K, time_ms: u64) {
        let before = self.earliest();
        self.put(key, time_ms);
        self.rearm(before);
    }

    /// Takes the deadline of this key away; returns it. For `init`, `apply` and `wake`.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<u64>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let before = self.earliest();
        let (key, time_ms) = self.times.remove_entry(key)?;
        self.order.remove(&(time_ms, key));
        self.rearm(before);
        Some(time_ms)
    }

    /// For `wake`: takes away all deadlines that the log's time has reached; returns their keys,
    /// the earliest first. Sets the timer again, which the host has unset.
    #[must_use = "these deadlines are gone"]
    pub fn woken(&mut self, ctx: &Context) -> Vec<K> {
        self.woken_up_to(ctx, usize::MAX)
    }

    /// For a `wake` that does much for each key: takes at most `count` of them, because an entry
    /// that takes too much fuel stops every replica. If more are due, the timer stays in the past,
    /// so that the next wake takes them, 100 ms later.
    #[must_use = "these deadlines are gone"]
    pub fn woken_up_to(&mut self, ctx: &Context, count: usize) -> Vec<K> {
        let due = self.pop_due(ctx, count);
        self.arm();
        due
    }

    /// For an `apply` that must not see what has expired and was not woken for yet: does the same
    /// as [`woken`](Deadlines::woken), but leaves the timer alone if no deadline was reached.
    #[must_use = "these deadlines are gone"]
    pub fn take_due(&mut self, ctx: &Context) -> Vec<K> {
        let before = self.earliest();
        let due = self.pop_due(ctx, usize::MAX);
        self.rearm(before);
        due
    }

    fn pop_due(&mut self, ctx: &Context, count: usize) -> Vec<K> {
        let mut due = Vec::new();
        while due.len() < count && self.earliest().is_some_and(|time_ms| ctx.has_reached(time_ms)) {
            let (_, key) = self.order.pop_first().expect("there is an earliest one");
            self.times.remove(&key);
            due.push(key);
        }
        due
    }

    fn put(&mut self, key: K, time_ms: u64) {
        if let Some(before) = self.times.insert(key.clone(), time_ms) {
            self.order.remove(&(before, key.clone()));
        }
        self.order.insert((time_ms, key));
    }

    /// Sets the timer if the earliest deadline is not what it was. A host call costs as much fuel
    /// as hundreds of map operations.
    fn rearm(&self, before: Option<u64>) {
        if self.earliest() != before {
            self.arm();
        }
    }

    fn arm(&self) {
        match self.earliest() {
            Some(time_ms) => timer::wake_at(time_ms),
            None => timer::cancel(),
        }
    }
}

impl<K: Ord + Clone> Default for Deadlines<K> {
    fn default() -> Self {
        Self::new()
    }
}

/// For `restore`: the timer is left alone, because the host restores it.
impl<K: Ord + Clone> FromIterator<(K, u64)> for Deadlines<K> {
    fn from_iter<I: IntoIterator<Item = (K, u64)>>(deadlines: I) -> Self {
        let mut set = Self::new();
        deadlines.into_iter().for_each(|(key, time_ms)| set.put(key, time_ms));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::{Call, during};

    fn at(time_ms: u64) -> Context {
        Context { index: 1, position: 0, time_ms, seed: (0, 0) }
    }

    fn check(timer: &mut Option<u64>, call: Call, expect: Option<u64>, work: impl FnOnce()) {
        let before = if call == Call::Wake { None } else { *timer };
        *timer = during(call, before, work).1.timer;
        assert_eq!(*timer, expect);
    }

    #[test]
    fn the_timer_is_the_earliest() {
        let mut set = Deadlines::new();
        let timer = &mut None;
        check(timer, Call::Apply, Some(50), || set.set("b", 50));
        check(timer, Call::Apply, Some(30), || set.set("a", 30));
        check(timer, Call::Apply, Some(30), || set.set("c", 30));
        check(timer, Call::Apply, Some(30), || set.set("a", 70));
        check(timer, Call::Apply, Some(50), || assert_eq!(set.remove("c"), Some(30)));
        check(timer, Call::Apply, Some(50), || assert_eq!(set.remove("c"), None));
        check(timer, Call::Wake, Some(70), || assert_eq!(set.woken(&at(50)), ["b"]));
        check(timer, Call::Wake, Some(70), || assert!(set.woken(&at(60)).is_empty()));
        assert_eq!((set.len(), set.get("a")), (1, Some(70)));
        let again: Deadlines<&str> = set.iter().map(|(key, time)| (*key, *time)).collect();
        assert_eq!(again, set);
        check(timer, Call::Query, Some(70), || assert!(set.take_due(&at(69)).is_empty()));
        check(timer, Call::Apply, None, || assert_eq!(set.take_due(&at(70)), ["a"]));
        assert!(set.is_empty());
    }
    /// What is left over stays due, and so does the timer. Keys are found in their borrowed form.
    #[test]
    fn not_more_than_that_many_are_taken() {
        let mut set = Deadlines::<String>::new();
        let timer = &mut None;
        check(timer, Call::Init, Some(10), || {
            for (key, time_ms) in [("a", 20), ("b", 10), ("c", 30), ("d", 90)] {
                set.set(key.to_owned(), time_ms);
            }
        });
        check(timer, Call::Wake, Some(30), || {
            assert_eq!(set.woken_up_to(&at(50), 2), ["b", "a"]);
        });
        check(timer, Call::Wake, Some(90), || {
            assert_eq!(set.woken_up_to(&at(50), 2), ["c"]);
        });
        check(timer, Call::Apply, None, || assert_eq!(set.remove("d"), Some(90)));
    }
}

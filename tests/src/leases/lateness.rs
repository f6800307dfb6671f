//! How late timers are: the log's time at an event, minus the deadline.
//!
//! A timer counts as one of an election if any part of its lateness lies in the time from a fault
//! to the leader that follows. These are times of this machine's clock, which all nodes stamp.

use std::fmt;

/// A time during which a group had no leader, perhaps; ms since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Election {
    pub(super) from_ms: u64,
    pub(super) to_ms: u64,
}

/// One timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    pub(super) deadline_ms: u64,
    /// The log's time at the event that it led to.
    pub(super) at_ms: u64,
}

/// The lateness of some timers, sorted, ms.
#[derive(Clone, Debug, Default)]
pub struct Lateness(Vec<u64>);

impl Timer {
    fn is_in(&self, election: &Election) -> bool {
        self.deadline_ms <= election.to_ms && election.from_ms <= self.at_ms
    }
}

impl Lateness {
    /// Of the timers outside of all elections, and of the others.
    pub(super) fn split(timers: &[Timer], elections: &[Election]) -> (Self, Self) {
        let in_one = |timer: &&Timer| elections.iter().any(|election| timer.is_in(election));
        let (during, calm): (Vec<&Timer>, Vec<&Timer>) = timers.iter().partition(in_one);
        (Self::of(&calm), Self::of(&during))
    }

    fn of(timers: &[&Timer]) -> Self {
        let mut late: Vec<u64> =
            timers.iter().map(|timer| timer.at_ms.saturating_sub(timer.deadline_ms)).collect();
        late.sort_unstable();
        Self(late)
    }

    /// The lateness below which this many in a hundred are.
    fn percentile(&self, percent: usize) -> u64 {
        let place = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0.get(place).copied().unwrap_or(0)
    }
}

impl fmt::Display for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "none");
        }
        let [median, most, max] = [50, 99, 100].map(|percent| self.percentile(percent));
        let count = self.0.len();
        write!(f, "{count} late by {median} ms in the median, p99 {most} ms, at most {max} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_split_by_elections() {
        let timer = |deadline_ms, at_ms| Timer { deadline_ms, at_ms };
        let timers = [timer(100, 150), timer(900, 910), timer(990, 2_100), timer(1_500, 2_000)];
        let elections = [Election { from_ms: 1_000, to_ms: 1_800 }];
        let (calm, during) = Lateness::split(&timers, &elections);
        assert_eq!((calm.0, during.0), (vec![10, 50], vec![500, 1_110]));
    }

    #[test]
    fn percentiles_are_of_what_there_is() {
        let lateness = Lateness((1..=200).collect());
        assert_eq!([50, 99, 100].map(|percent| lateness.percentile(percent)), [100, 198, 200]);
        assert_eq!(Lateness(vec![7]).percentile(50), 7);
        assert_eq!(Lateness::default().to_string(), "none");
    }
}

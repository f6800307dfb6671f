//! [`Commits`]: how long a leader's proposals take to be committed.
//!
//! The core has no clock, so after each turn the actor notes the last index of the log: the entries
//! that one turn appended were proposed together, and are timed together.

use std::collections::VecDeque;
use std::time::Duration;

use lockstep_core::group::Leads;

/// Turns timed at the same time; proposals of further turns are not timed.
const WAITING_MAX: usize = 1_024;

/// The turns in which a leader appended entries that it does not yet know to be committed.
#[derive(Default)]
pub(super) struct Commits {
    term: u64,
    /// The last index of the log after a turn, and when that was; ascending.
    waiting: VecDeque<(u64, Duration)>,
    last_index: u64,
}

impl Commits {
    /// Notes the last index of a leader's log at `now`, and returns how long each turn took to
    /// commit that was committed since the last call.
    pub(super) fn look(&mut self, leads: Option<Leads>, now: Duration) -> Vec<Duration> {
        let Some(Leads { term, last_index, commit }) = leads else {
            *self = Self::default();
            return Vec::new();
        };
        if term != self.term {
            // It is unknown when the log's entries from before this term were proposed.
            *self = Self { term, last_index, ..Self::default() };
        }
        if last_index > self.last_index && self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((last_index, now));
        }
        self.last_index = last_index;
        let done = self.waiting.iter().take_while(|(index, _)| *index <= commit).count();
        self.waiting.drain(..done).map(|(_, since)| now.saturating_sub(since)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(commits: &mut Commits, term: u64, last_index: u64, commit: u64, ms: u64) -> Vec<u128> {
        let leads = (term > 0).then_some(Leads { term, last_index, commit });
        let took = commits.look(leads, Duration::from_millis(ms));
        took.iter().map(Duration::as_millis).collect()
    }

    #[test]
    fn what_a_turn_appended_is_timed_until_all_of_it_is_committed() {
        let mut commits = Commits::default();
        assert_eq!(look(&mut commits, 2, 10, 8, 0), [], "from before it led");
        assert_eq!(look(&mut commits, 2, 13, 10, 5), []);
        assert_eq!(look(&mut commits, 2, 13, 12, 7), [], "a part of it is not all");
        assert_eq!(look(&mut commits, 2, 14, 12, 9), []);
        assert_eq!(look(&mut commits, 2, 14, 14, 15), [10, 6]);
        assert_eq!(look(&mut commits, 2, 14, 14, 99), []);
    }

    #[test]
    fn what_another_leader_commits_is_not_counted() {
        let mut commits = Commits::default();
        look(&mut commits, 2, 10, 10, 0);
        look(&mut commits, 2, 11, 10, 1);
        assert_eq!(look(&mut commits, 0, 0, 0, 2), []);
        assert_eq!(look(&mut commits, 5, 12, 12, 3), []);
        assert_eq!(look(&mut commits, 5, 13, 13, 4), [0], "a group of one commits at once");
        look(&mut commits, 5, 14, 13, 5);
        assert_eq!(look(&mut commits, 7, 15, 15, 6), [], "it led again, without a look in between");
    }

    #[test]
    fn waiting_is_bounded() {
        let mut commits = Commits::default();
        look(&mut commits, 1, 0, 0, 0);
        for index in 1..=2 * WAITING_MAX as u64 {
            look(&mut commits, 1, index, 0, index);
        }
        assert_eq!(commits.waiting.len(), WAITING_MAX);
        assert_eq!(look(&mut commits, 1, 9_999, 9_999, 9_999).len(), WAITING_MAX);
    }
}

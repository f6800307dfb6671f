//! Queries that take the live guest with them, and whom that is refused to.
//!
//! It happens only to guests that cannot be copied, and costs a rebuild each time. For as long as
//! [`WINDOW`] the same question is not put again, nor any other of the caller who asked it. Once
//! rebuilding took [`COST_MAX`] of a window, only callers whose questions were answered before are
//! asked for: whoever comes new waits.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::group::askers::Asker;

const WINDOW: Duration = Duration::from_secs(60);
/// Time of a window that may go into rebuilding.
const COST_MAX: Duration = Duration::from_secs(6);
/// Rebuilds in a window, at most, however short they are.
const REBUILDS_MAX: usize = 16;
/// Callers that are remembered to have been answered.
const KNOWN_MAX: usize = 1_024;

#[derive(Default)]
pub(super) struct Spoilers {
    /// Those of the present window, oldest first.
    spoilt: VecDeque<Spoilt>,
    /// When each caller was last answered, before or since.
    known: BTreeMap<Asker, Duration>,
}

struct Spoilt {
    at: Duration,
    asker: Asker,
    request: blake3::Hash,
    cost: Duration,
}

impl Spoilers {
    /// Why a question is not put to the guest at this time, if it is not.
    pub(super) fn refusal(
        &mut self,
        now: Duration,
        asker: Asker,
        request: &[u8],
    ) -> Option<String> {
        while self.spoilt.front().is_some_and(|spoilt| now >= spoilt.at.saturating_add(WINDOW)) {
            self.spoilt.pop_front();
        }
        if self.spoilt.is_empty() {
            return None;
        }
        let request = blake3::hash(request);
        if self.spoilt.iter().any(|spoilt| spoilt.request == request) {
            return Some("this very query took the state machine with it".to_owned());
        }
        if self.spoilt.iter().any(|spoilt| spoilt.asker == asker) {
            return Some("a query of this caller took the state machine with it".to_owned());
        }
        let cost: Duration = self.spoilt.iter().map(|spoilt| spoilt.cost).sum();
        let much = cost >= COST_MAX || self.spoilt.len() >= REBUILDS_MAX;
        (much && !self.known.contains_key(&asker)).then(|| {
            let count = self.spoilt.len();
            format!("{count} queries took the state machine with them, and this caller is new")
        })
    }

    /// The guest answered.
    pub(super) fn answered(&mut self, now: Duration, asker: Asker) {
        self.known.insert(asker, now);
        if self.known.len() > KNOWN_MAX {
            let oldest = self.known.iter().min_by_key(|(asker, at)| (**at, **asker));
            if let Some(oldest) = oldest.map(|(asker, _)| *asker) {
                self.known.remove(&oldest);
            }
        }
    }

    /// It did not, and to build it anew took `cost`.
    pub(super) fn spoilt(&mut self, now: Duration, asker: Asker, request: &[u8], cost: Duration) {
        self.known.remove(&asker);
        self.spoilt.push_back(Spoilt { at: now, asker, request: blake3::hash(request), cost });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn refused(spoilers: &mut Spoilers, now: u64, asker: u64, request: &str) -> String {
        spoilers.refusal(at(now), Asker(asker), request.as_bytes()).unwrap_or_default()
    }

    #[test]
    fn the_query_and_its_caller_are_refused_and_nobody_else() {
        let mut spoilers = Spoilers::default();
        assert_eq!(refused(&mut spoilers, 1, 1, "bad"), "");
        spoilers.spoilt(at(1), Asker(1), b"bad", at(2));
        assert!(refused(&mut spoilers, 2, 2, "bad").contains("this very query"));
        assert!(refused(&mut spoilers, 2, 1, "good").contains("this caller"));
        assert_eq!(refused(&mut spoilers, 2, 2, "good"), "");
        assert!(!refused(&mut spoilers, 60, 1, "good").is_empty());
        assert_eq!(refused(&mut spoilers, 61, 1, "bad"), "", "the window is over");
    }

    #[test]
    fn what_rebuilding_takes_is_bounded_and_the_known_go_on() {
        for (cost, count) in [(at(2), 3), (Duration::ZERO, REBUILDS_MAX as u64)] {
            let mut spoilers = Spoilers::default();
            spoilers.answered(at(0), Asker(1_000));
            for asker in 0..count {
                let request = asker.to_string();
                assert_eq!(refused(&mut spoilers, asker, asker, &request), "", "number {asker}");
                spoilers.spoilt(at(asker), Asker(asker), request.as_bytes(), cost);
            }
            assert!(refused(&mut spoilers, count, 2_000, "new").contains("this caller is new"));
            assert_eq!(refused(&mut spoilers, count, 1_000, "good"), "");
        }
    }

    /// The clock may be anything: it only goes forward.
    #[test]
    fn times_near_the_end_do_not_overflow() {
        let mut spoilers = Spoilers::default();
        spoilers.spoilt(Duration::MAX, Asker(1), b"bad", Duration::ZERO);
        let refused = spoilers.refusal(Duration::MAX, Asker(1), b"bad");
        assert_eq!(refused, None, "its window ends with time itself");
    }

    #[test]
    fn callers_are_forgotten_one_by_one() {
        let mut spoilers = Spoilers::default();
        (0..2 * KNOWN_MAX as u64).for_each(|n| spoilers.answered(at(n), Asker(n)));
        assert_eq!(spoilers.known.len(), KNOWN_MAX);
        assert!(!spoilers.known.contains_key(&Asker(0)));
    }
}

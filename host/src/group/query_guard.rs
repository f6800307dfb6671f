//! [`QueryGuard`]: refuses queries that are likely to destroy the live guest.
//!
//! A query can destroy only a guest that cannot be copied, and then costs a rebuild. For [`WINDOW`]
//! afterwards that query is refused, and so is any other of its caller. Once rebuilds have taken
//! [`COST_MAX`] of a window, or there were [`REBUILDS_MAX`] of them, callers that were never
//! answered before are refused as well.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::group::askers::Asker;

const WINDOW: Duration = Duration::from_secs(60);
/// Time that rebuilds may take in a window.
const COST_MAX: Duration = Duration::from_secs(6);
/// Most rebuilds in a window, however short they are.
const REBUILDS_MAX: usize = 16;
/// Callers remembered as having been answered.
const KNOWN_MAX: usize = 1_024;

#[derive(Default)]
pub(super) struct QueryGuard {
    /// Queries that destroyed the guest in the present window, oldest first.
    offences: VecDeque<Offence>,
    /// When each caller was last answered, in this window or before.
    known: BTreeMap<Asker, Duration>,
}

struct Offence {
    at: Duration,
    asker: Asker,
    request: blake3::Hash,
    cost: Duration,
}

impl QueryGuard {
    /// The reason why the guest must not be asked this query now; `None` if it may be asked.
    pub(super) fn refusal(
        &mut self,
        now: Duration,
        asker: Asker,
        request: &[u8],
    ) -> Option<String> {
        while self.offences.front().is_some_and(|offence| now >= offence.at.saturating_add(WINDOW))
        {
            self.offences.pop_front();
        }
        if self.offences.is_empty() {
            return None;
        }
        let request = blake3::hash(request);
        if self.offences.iter().any(|offence| offence.request == request) {
            return Some("this very query crashed the state machine".to_owned());
        }
        if self.offences.iter().any(|offence| offence.asker == asker) {
            return Some("a query of this caller crashed the state machine".to_owned());
        }
        let cost: Duration = self.offences.iter().map(|offence| offence.cost).sum();
        let much = cost >= COST_MAX || self.offences.len() >= REBUILDS_MAX;
        (much && !self.known.contains_key(&asker)).then(|| {
            let count = self.offences.len();
            format!("{count} queries crashed the state machine, and this caller is new")
        })
    }

    /// Records that the guest answered a query of this caller.
    pub(super) fn answered(&mut self, now: Duration, asker: Asker) {
        self.known.insert(asker, now);
        if self.known.len() > KNOWN_MAX {
            let oldest = self.known.iter().min_by_key(|(asker, at)| (**at, **asker));
            if let Some(oldest) = oldest.map(|(asker, _)| *asker) {
                self.known.remove(&oldest);
            }
        }
    }

    /// Records that a query destroyed the guest, and that the rebuild took `cost`.
    pub(super) fn note(&mut self, now: Duration, asker: Asker, request: &[u8], cost: Duration) {
        self.known.remove(&asker);
        self.offences.push_back(Offence { at: now, asker, request: blake3::hash(request), cost });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn refused(guard: &mut QueryGuard, now: u64, asker: u64, request: &str) -> String {
        guard.refusal(at(now), Asker(asker), request.as_bytes()).unwrap_or_default()
    }

    #[test]
    fn the_query_and_its_caller_are_refused_and_nobody_else() {
        let mut guard = QueryGuard::default();
        assert_eq!(refused(&mut guard, 1, 1, "bad"), "");
        guard.note(at(1), Asker(1), b"bad", at(2));
        assert!(refused(&mut guard, 2, 2, "bad").contains("this very query"));
        assert!(refused(&mut guard, 2, 1, "good").contains("this caller"));
        assert_eq!(refused(&mut guard, 2, 2, "good"), "");
        assert!(!refused(&mut guard, 60, 1, "good").is_empty());
        assert_eq!(refused(&mut guard, 61, 1, "bad"), "", "the window is over");
    }

    #[test]
    fn what_rebuilding_takes_is_bounded_and_the_known_go_on() {
        for (cost, count) in [(at(2), 3), (Duration::ZERO, REBUILDS_MAX as u64)] {
            let mut guard = QueryGuard::default();
            guard.answered(at(0), Asker(1_000));
            for asker in 0..count {
                let request = asker.to_string();
                assert_eq!(refused(&mut guard, asker, asker, &request), "", "number {asker}");
                guard.note(at(asker), Asker(asker), request.as_bytes(), cost);
            }
            assert!(refused(&mut guard, count, 2_000, "new").contains("this caller is new"));
            assert_eq!(refused(&mut guard, count, 1_000, "good"), "");
        }
    }

    /// Times near the greatest that a clock can show do not overflow.
    #[test]
    fn times_near_the_end_do_not_overflow() {
        let mut guard = QueryGuard::default();
        guard.note(Duration::MAX, Asker(1), b"bad", Duration::ZERO);
        let refused = guard.refusal(Duration::MAX, Asker(1), b"bad");
        assert_eq!(refused, None, "its window ends with time itself");
    }

    #[test]
    fn callers_are_forgotten_one_by_one() {
        let mut guard = QueryGuard::default();
        (0..2 * KNOWN_MAX as u64).for_each(|n| guard.answered(at(n), Asker(n)));
        assert_eq!(guard.known.len(), KNOWN_MAX);
        assert!(!guard.known.contains_key(&Asker(0)));
    }
}

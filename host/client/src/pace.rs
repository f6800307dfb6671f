//! [`Pace`]: where and when the next attempt is made.
//!
//! - After a refusal that names the leader, the next attempt goes there at once, but only a few
//!   times in a row.
//! - Otherwise the next attempt follows after a pause, at another node. Only an overloaded leader
//!   is asked again, a few times.

use std::time::Duration;

use crate::attempt::{Failed, Verdict};
use crate::routes::{REST_MAX, REST_MIN, Routes};

/// First and longest pause between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Longest pause where another attempt can succeed only after a while, or after a person acted.
const LONG_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Least pause after a refusal that only a person or another leader can resolve: a leader that
/// cannot go on hands over within this time.
const HAND_OVER: Duration = Duration::from_millis(200);
/// Attempts in a row that may go to a newly named leader without a pause.
const JUMPS_MAX: u32 = 2;
/// Refusals in a row after which an overloaded leader is left: another node may have a place for
/// this client, and forwards its calls.
const OVERLOADS_MAX: u32 = 3;

/// The pace of the attempts of a call or of a pipeline.
pub(crate) struct Pace {
    /// A named leader that could not be reached is tried again after this time at the latest.
    rest_max: Duration,
    pause: Duration,
    /// Attempts in a row that went to a named leader.
    jumps: u32,
    /// Attempts in a row that a node refused as overloaded.
    overloads: u32,
}

impl Pace {
    /// For calls. Other nodes forward them to a leader that this client cannot reach.
    pub(crate) fn of_calls() -> Self {
        Self::new(REST_MAX)
    }

    /// For streams, which only the leader takes.
    pub(crate) fn of_streams() -> Self {
        Self::new(REST_MIN)
    }

    fn new(rest_max: Duration) -> Self {
        Self { rest_max, pause: PAUSE_MIN, jumps: 0, overloads: 0 }
    }

    /// Learns from a failed attempt at `asked`, which was taken for the leader if `led`; returns
    /// the pause before the next one.
    pub(crate) fn after(
        &mut self,
        routes: &Routes,
        asked: &str,
        led: bool,
        failed: &Failed,
    ) -> Duration {
        let overloaded = failed.verdict == Verdict::Overloaded;
        self.overloads = if overloaded { self.overloads + 1 } else { 0 };
        let stays = overloaded && led && self.overloads < OVERLOADS_MAX;
        if self.steer(routes, asked, stays, failed) && self.jumps < JUMPS_MAX {
            self.jumps += 1;
            return Duration::ZERO;
        }
        if failed.verdict == Verdict::Once {
            self.pause = self.pause.max(HAND_OVER);
        }
        let rest = jittered(self.pause);
        (self.jumps, self.pause) = (0, longer(self.pause, failed.verdict));
        rest
    }

    /// Chooses the next node; true if the failure named another leader and that one can be tried at
    /// once.
    fn steer(&self, routes: &Routes, asked: &str, stays: bool, failed: &Failed) -> bool {
        if failed.unreachable {
            routes.rest(asked);
        }
        let named = failed.leader.as_ref().filter(|leader| *leader != asked);
        if named.is_some_and(|leader| routes.lead_after(leader, self.rest_max)) {
            return true;
        }
        if !stays {
            routes.avoid(asked);
        }
        false
    }
}

/// The pause that follows a pause of this length.
fn longer(pause: Duration, verdict: Verdict) -> Duration {
    match verdict {
        Verdict::Slowly | Verdict::Once => (pause * 4).min(LONG_PAUSE_MAX),
        Verdict::Nothing
        | Verdict::Overloaded
        | Verdict::Unknown
        | Verdict::Final
        | Verdict::Foreign => (pause * 2).min(PAUSE_MAX),
    }
}

/// A random duration between half and all of `pause`, so that clients do not retry in step.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness the full pause will do.
    let part = getrandom::fill(&mut random).map_or(0, |()| u32::from(random[0]));
    pause - pause / 2 * part / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        let endpoints = ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec();
        Routes::new(endpoints, Duration::from_secs(1)).expect("good endpoints")
    }

    fn refused(refusal: &'static str, leader: Option<&'static str>) -> Failed {
        let mut status = tonic::Status::unavailable("why");
        status.metadata_mut().insert("lockstep-refusal", refusal.parse().expect("a value"));
        if let Some(leader) = leader {
            status.metadata_mut().insert("lockstep-leader", leader.parse().expect("a value"));
        }
        Failed::of_status(&status)
    }

    /// Another node may have a place for the client, and the leader may have one soon.
    #[tokio::test]
    async fn an_overloaded_node_is_left_unless_it_leads() {
        let (routes, mut pace) = (routes(), Pace::of_calls());
        let overloaded = refused("overloaded", None);
        let first = routes.target().address;
        assert!(!pace.after(&routes, &first, false, &overloaded).is_zero());
        assert_ne!(routes.target().address, first);

        let mut pace = Pace::of_calls();
        assert!(routes.lead("d:1"));
        for _ in 1..OVERLOADS_MAX {
            assert!(!pace.after(&routes, "d:1", true, &overloaded).is_zero());
            assert_eq!(routes.target().address, "d:1");
        }
        pace.after(&routes, "d:1", true, &overloaded);
        assert!(!routes.target().is_leader, "it had its attempts");
    }

    /// A leader that halts or whose disk is full hands over; the next attempt comes after that.
    #[tokio::test]
    async fn who_hands_over_has_time_to() {
        for refusal in ["halted", "disk-full"] {
            let (routes, mut pace) = (routes(), Pace::of_calls());
            let pause = pace.after(&routes, "a:1", true, &refused(refusal, None));
            assert!((HAND_OVER / 2..=HAND_OVER).contains(&pause), "{refusal}: {pause:?}");
        }
    }

    /// Two nodes that name each other are not asked without a pause for ever.
    #[tokio::test]
    async fn jumps_are_bounded() {
        let (routes, mut pace) = (routes(), Pace::of_streams());
        let mut pauses = Vec::new();
        for (asked, named) in [("a:1", "b:1"), ("b:1", "a:1"), ("a:1", "b:1"), ("b:1", "a:1")] {
            let failed = refused("not-leader", Some(named));
            pauses.push(pace.after(&routes, asked, true, &failed).is_zero());
            assert_eq!(routes.target().address, named);
        }
        assert_eq!(pauses, [true, true, false, true]);
    }
}

//! Log time: what a leader stamps, and whether this node's own clock can be trusted.
//!
//! - For stamps, another replica's clock counts as what it said last plus the ticks since, so that
//!   a jump of this node's own clock does not shift it. A clock that was not heard for ten election
//!   timeouts does not count.
//! - *The voters' clock* is the time that a majority of the voters' clocks has reached; in a joint
//!   configuration, a majority of both. A leader stamps its own clock while that is within
//!   [`limits::CLOCK_SKEW_MS_MAX`] of the voters' clock, otherwise the voters' clock.
//! - Stamps never go back. While log time is ahead of what may be stamped, it advances at half
//!   speed, so that whatever waits for a time is not held up for as long as the clocks were wrong.
//!   When it is behind, it advances by at most [`limits::LOG_TIME_TICK_MS_MAX`] a tick, except for
//!   a leader's first stamp. That is all the protection that a group of one has against a clock
//!   that jumps.
//! - While no majority of the clocks is heard, log time advances with the ticks.

use crate::group::{Seen, Shared};
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::plant;

/// The time of the log, as far as this replica knows it.
#[derive(Default)]
pub(super) struct LogTime {
    /// The time of the last entries that the guest applied.
    applied_ms: u64,
    /// The time that this leader stamped last, advanced with each tick since; 0 while it does not
    /// lead.
    stamp_ms: u64,
    /// Whether this leader's stamps have followed the clocks at least once.
    follows: bool,
}

impl LogTime {
    /// The apply lane applied entries up to this log time.
    pub(super) fn applied(&mut self, time_ms: u64) {
        self.applied_ms = self.applied_ms.max(time_ms);
    }

    pub(super) fn applied_ms(&self) -> u64 {
        self.applied_ms
    }

    /// Leadership was lost.
    pub(super) fn stepped_down(&mut self) {
        (self.stamp_ms, self.follows) = (0, false);
    }

    /// Returns the stamp after another `ticks`, where `clock` is what the clocks allow.
    fn go_on(&mut self, clock: Option<u64>, ticks: u64) -> u64 {
        let base = self.stamp_ms.max(self.applied_ms);
        let after = |tick_ms: u64| base.saturating_add(ticks.saturating_mul(tick_ms));
        self.stamp_ms = match clock {
            None => after(limits::TICK_MS),
            Some(clock) if self.follows => {
                clock.clamp(after(limits::TICK_MS / 2), after(limits::LOG_TIME_TICK_MS_MAX))
            }
            // A new leader's first stamp follows the clocks at once, however many ticks have passed
            // since the last entry.
            Some(clock) => clock.max(base),
        };
        self.follows |= clock.is_some();
        self.stamp_ms
    }
}

impl Shared {
    /// The stamp for an entry that is proposed now.
    pub(super) fn stamp(&mut self) -> u64 {
        let clock = self.clock_to_stamp();
        self.log_time.go_on(clock, 0)
    }

    /// Advances a leader's log time by a tick.
    pub(super) fn tick_log_time(&mut self) {
        let clock = self.clock_to_stamp();
        self.log_time.go_on(clock, 1);
    }

    /// How far the log's time is ahead of the clocks, ms.
    pub(super) fn log_time_ahead_ms(&self) -> u64 {
        let own = Some(self.wall_ms).filter(|wall_ms| *wall_ms != 0);
        let clock = self.voters_clock().or(own);
        clock.map_or(0, |clock| self.log_time.applied_ms.saturating_sub(clock))
    }

    /// Whether this node's clock is far from the median of the members' clocks heard recently, its
    /// own included. Each pair of clocks is compared as of when the frame arrived, so that the
    /// missing ticks of a process that was stopped for a while do not count against its clock. If
    /// there are two medians, the nearer one counts. A follower hears only its leader's clock,
    /// which alone proves nothing: otherwise all followers would refuse to take over from a leader
    /// whose clock is slow.
    pub(super) fn clock_is_off(&self) -> bool {
        let members = &self.recovery.configuration;
        let seen = self.seen.iter().filter(|(replica, _)| members.contains(**replica));
        let heard = seen.map(|(_, seen)| seen).filter(|seen| self.is_fresh(seen));
        let known =
            heard.map(|seen| seen.clocks).filter(|(theirs, ours)| *theirs != 0 && *ours != 0);
        let offset = |(theirs, ours)| i128::from(theirs) - i128::from(ours);
        let mut offsets: Vec<i128> = known.map(offset).chain([0]).collect();
        offsets.sort_unstable();
        let (lower, upper) = (offsets[(offsets.len() - 1) / 2], offsets[offsets.len() / 2]);
        lower.abs().min(upper.abs()) > i128::from(limits::CLOCK_SKEW_MS_MAX)
    }

    fn clock_to_stamp(&self) -> Option<u64> {
        let voters = self.voters_clock();
        plant!("stamp_own_clock" does return voters.map(|_| self.wall_ms));
        let near = |clock: &u64| clock.abs_diff(self.wall_ms) <= limits::CLOCK_SKEW_MS_MAX;
        voters.map(|clock| if near(&clock) { self.wall_ms } else { clock })
    }

    /// The time that a majority of the voters' clocks has reached, if a majority was heard
    /// recently.
    fn voters_clock(&self) -> Option<u64> {
        let configuration = &self.recovery.configuration;
        let reached = |voters: &std::collections::BTreeSet<ReplicaId>| {
            let mut clocks: Vec<u64> =
                voters.iter().filter_map(|voter| self.clock_of(*voter)).collect();
            clocks.sort_unstable_by(|one, other| other.cmp(one));
            clocks.get(voters.len() / 2).copied()
        };
        let now = reached(&configuration.voters)?;
        if configuration.is_joint() {
            Some(now.min(reached(&configuration.voters_outgoing)?))
        } else {
            Some(now)
        }
    }

    /// What a replica's clock shows now, if it was heard recently. A clock of 0 has not been read
    /// yet.
    fn clock_of(&self, replica: ReplicaId) -> Option<u64> {
        if replica == self.me() {
            return Some(self.wall_ms).filter(|wall_ms| *wall_ms != 0);
        }
        let seen = self.seen.get(&replica).filter(|seen| self.is_fresh(seen))?;
        let (wall_ms, _) = seen.clocks;
        let since_ms = (self.now - seen.tick) * limits::TICK_MS;
        (wall_ms != 0).then(|| wall_ms.saturating_add(since_ms))
    }

    fn is_fresh(&self, seen: &Seen) -> bool {
        self.now - seen.tick <= 10 * limits::ELECTION_TICKS_MAX as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps are (what the clocks allow, the expected stamp), one a tick.
    fn check(applied_ms: u64, steps: &[(Option<u64>, u64)]) {
        let mut time = LogTime { applied_ms, ..LogTime::default() };
        for (step, (clock, stamp)) in steps.iter().enumerate() {
            assert_eq!(time.go_on(*clock, 1), *stamp, "step {step} of {steps:?}");
        }
    }

    #[test]
    fn stamps_follow_the_clocks() {
        check(0, &[(Some(1_000_000), 1_000_000), (Some(1_000_100), 1_000_100)]);
        // The log is ahead: half speed until the clock has caught up.
        check(1_000, &[(Some(900), 1_000), (Some(1_000), 1_050), (Some(1_100), 1_100)]);
        // No clock was heard: log time advances with the ticks.
        check(1_000, &[(None, 1_100), (None, 1_200), (Some(9_000_000), 9_000_000)]);
        // A clock that jumps is followed, but not at once.
        check(0, &[(Some(1_000), 1_000), (Some(u64::MAX), 11_000), (Some(1_200), 11_050)]);
        check(u64::MAX, &[(Some(1), u64::MAX), (Some(u64::MAX), u64::MAX), (None, u64::MAX)]);
    }

    #[test]
    fn a_deposed_leader_forgets_its_own_stamps() {
        let mut time = LogTime::default();
        time.go_on(Some(5_000), 1);
        time.stepped_down();
        time.applied(2_000);
        assert_eq!(time.go_on(Some(3_000), 1), 3_000, "only what was applied is the log's");
    }
}

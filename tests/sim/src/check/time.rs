//! Log time is never more than 5 s past what a majority of the voters' clocks has reached. A clock
//! has reached what it showed at a tick of its node, advanced since then, for as long as other
//! nodes may still rely on having heard it. Planted: `stamp_own_clock`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_core::ids::{GroupId, NodeId, ReplicaId};
use lockstep_core::limits;
use lockstep_core::snapshot::Configuration;

use super::{Checked, violated};
use crate::world::{MS, SECOND};

/// How long other nodes may rely on a clock that they heard: ten election timeouts of a slow clock,
/// after a frame that waited for the end of a pause.
const HEARD_US: u64 = 90 * SECOND;
/// How far a leader's stamps may be past the ceiling that was computed last, ms.
const SLACK_MS: u64 = limits::CLOCK_SKEW_MS_MAX + 2 * limits::TICK_MS;

#[derive(Default)]
pub struct Times {
    /// For each node, readings of its clock and when they were taken; only those that may be the
    /// highest later.
    clocks: BTreeMap<NodeId, VecDeque<(u64, u64)>>,
    /// When each group's ceiling was computed, and the ceiling, ms.
    ceilings: BTreeMap<GroupId, (u64, u64)>,
}

impl Times {
    /// A node ticks, and reads its clock.
    pub fn ticks(&mut self, node: NodeId, now: u64, wall_ms: u64) {
        let clock = self.clocks.entry(node).or_default();
        while clock.back().is_some_and(|(at, then)| then + gone(now - at) <= wall_ms) {
            clock.pop_back();
        }
        clock.push_back((now, wall_ms));
        while clock.front().is_some_and(|(at, _)| at + HEARD_US < now) {
            clock.pop_front();
        }
    }

    /// Raises the ceiling of a group to what the clocks of this configuration, which a replica
    /// knows, allow now.
    pub fn lift(&mut self, group: GroupId, now: u64, configuration: &Configuration) {
        let reached = |voters: &BTreeSet<ReplicaId>| {
            let mut clocks: Vec<u64> =
                voters.iter().filter_map(|voter| self.reached(voter.node(), now)).collect();
            clocks.sort_unstable_by(|one, other| other.cmp(one));
            clocks.get(voters.len() / 2).copied()
        };
        let mut allowed = reached(&configuration.voters).unwrap_or(0);
        if configuration.is_joint() {
            allowed = allowed.min(reached(&configuration.voters_outgoing).unwrap_or(0));
        }
        let (at, ceiling) = self.ceilings.entry(group).or_insert((now, 0));
        *ceiling = allowed.max(*ceiling + gone(now - *at));
        *at = now;
    }

    fn reached(&self, node: NodeId, now: u64) -> Option<u64> {
        self.clocks.get(&node)?.iter().map(|(at, then)| then + gone(now - at)).max()
    }

    /// Entries up to this log time were applied.
    pub fn applied(&self, group: GroupId, time_ms: u64) -> Checked {
        let ceiling = self.ceilings.get(&group).map_or(0, |(_, ceiling)| *ceiling);
        if time_ms <= ceiling + SLACK_MS {
            Ok(())
        } else {
            violated(
                "time",
                format!(
                    "group {group}: the log is at {time_ms} ms, but a majority of the clocks has \
                     only reached {ceiling}"
                ),
            )
        }
    }
}

/// How far a clock that is a tenth too fast advances in `us` microseconds, ms.
fn gone(us: u64) -> u64 {
    us * 11 / (10 * MS)
}

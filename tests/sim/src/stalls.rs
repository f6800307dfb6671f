//! Stories in which one disk hangs and the group goes on; nothing else goes wrong.
//!
//! In the first, the leader's disk hangs for a minute, then a follower's. Commands are answered
//! throughout, but for the election that replaces the leader. In the second, the separate disk of
//! the leader's snapshots hangs: the leader goes on leading, and its apply lane waits only once.

use lockstep_core::entry::Profile;
use lockstep_core::group::{ApplyJob, Role, SnapshotPolicy};
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_host::fs::mem::LateFull;
use lockstep_host::group::apply_lane::restores;

use crate::check::{Checked, violated};
use crate::node::StoreHang;
use crate::setup::Setup;
use crate::world::{MS, SECOND, World};

const GROUP: &str = "a";
/// How long a disk hangs.
const HANGS: u64 = 60 * SECOND;
/// Ticks that may pass without an answer while the leader's disk hangs: one second until it is
/// noticed, an election, and the time in which clients find the new leader.
const LEADER_TICKS_MAX: u64 = 60;
/// Ticks that may pass without an answer while a follower's disk hangs, which delays nobody.
const FOLLOWER_TICKS_MAX: u64 = 20;

/// The story in which the disk of the leader's snapshots hangs.
pub fn story_of_snapshots(seed: u64) -> Checked {
    let mut world = World::with_setup(seed, Setup { apart: true, ..setup() });
    world.calm = true;
    world.until("sixty commands", |world| world.acknowledged() >= 60)?;
    let leader = world.leads().expect("commands were answered");
    world.nodes.get_mut(&leader).expect("a node").store_hangs = StoreHang::Unnoticed;
    world.answers(LEADER_TICKS_MAX)?;
    if world.leads() != Some(leader) {
        return violated("stalls", "leadership moved while the disk of its snapshots hung");
    }
    if world.counters.get("captures given up for a disk that hangs") == 0 {
        return violated("stalls", "no checkpoint came while the disk of its snapshots hung");
    }
    world.nodes.get_mut(&leader).expect("a node").store_hangs = StoreHang::No;
    world.converge()?;
    world.finish()
}

/// The story in which the disks of a leader and a follower hang.
pub fn story(seed: u64) -> Checked {
    let mut world = World::with_setup(seed, setup());
    world.calm = true;
    world.until("sixty commands", |world| world.acknowledged() >= 60)?;
    let leader = world.leads().expect("commands were answered");
    world.hangs(leader, LEADER_TICKS_MAX)?;
    let led = world.leads();
    if led.is_none_or(|led| led == leader) {
        let what = format!("{led:?} leads while the disk of {leader} hangs: {}", world.describe());
        return violated("stalls", what);
    }
    world.until("old leader that serves", |world| {
        world.member_ids().into_iter().all(|node| world.serves(node))
    })?;
    let leader = world.leads();
    let follower = world.member_ids().into_iter().find(|node| Some(*node) != leader);
    world.hangs(follower.expect("two of them follow"), FOLLOWER_TICKS_MAX)?;
    if world.leads() != leader {
        return violated("stalls", "leadership moved while a follower's disk hung".to_owned());
    }
    world.converge()?;
    world.finish()
}

fn setup() -> Setup {
    Setup {
        nodes: 3,
        groups: vec![GROUP.to_owned()],
        segment_bytes: 64 << 10,
        policy: SnapshotPolicy { entries: 100, log_bytes: 64 << 10, catch_up: 20 },
        ballast: 0,
        command_bytes: 0,
        grows: 0,
        emits: true,
        strays: 0,
        memory_bytes: Profile::default().memory_bytes,
        budget_bytes: 16 << 20,
        cap_bytes: u64::MAX,
        places: 2,
        disk_bytes: 64 << 20,
        apart: false,
        initial_voters: 3,
        late: LateFull::default(),
    }
}

impl World {
    /// Lets the disk of `node` hang for a minute, in which no more than `ticks` may pass from one
    /// answer to any client to the next.
    fn hangs(&mut self, node: NodeId, ticks: u64) -> Checked {
        self.nodes.get_mut(&node).expect("a node").hangs_since = Some(self.now);
        self.answers(ticks)?;
        self.nodes.get_mut(&node).expect("a node").hangs_since = None;
        Ok(())
    }

    /// Runs for a minute, in which no more than `ticks` may pass from one answer to any client to
    /// the next.
    fn answers(&mut self, ticks: u64) -> Checked {
        let until = self.now + HANGS;
        let (mut answered, mut at) = (self.acknowledged(), self.now);
        while self.now < until {
            self.step()?;
            if self.acknowledged() > answered {
                (answered, at) = (self.acknowledged(), self.now);
            }
            if self.now > at + ticks * 100 * MS {
                let waited = (self.now - at) / MS;
                let what = format!("{waited} ms without an answer: {}", self.describe());
                return violated("stalls", what);
            }
        }
        Ok(())
    }

    /// The node that considers itself the leader, in the highest term.
    fn leads(&self) -> Option<NodeId> {
        let group = GroupId::of_name(GROUP);
        let statuses = self
            .nodes
            .values()
            .filter_map(|node| Some(node.process.as_ref()?.replicas.get(&group)?.group.status()));
        let leaders = statuses.filter(|status| status.role == Role::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.node)
    }

    fn serves(&self, node: NodeId) -> bool {
        let group = GroupId::of_name(GROUP);
        let process = self.nodes[&node].process.as_ref();
        let replica = process.and_then(|process| process.replicas.get(&group));
        replica.is_some_and(|replica| replica.group.state().refusal().is_none())
    }
}

/// Whether a job of the apply lane hangs with the disk of snapshots: it takes or restores one.
pub(crate) fn needs_disk(job: &ApplyJob) -> bool {
    restores(job) || matches!(job, ApplyJob::Capture { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hanging_disk_of_snapshots_holds_nobody_up() {
        for seed in 1..=10 {
            if let Err(violation) = story_of_snapshots(seed) {
                panic!("seed {seed}: {}: {}", violation.checker, violation.what);
            }
        }
    }

    #[test]
    fn a_hanging_disk_holds_nobody_up() {
        for seed in 1..=10 {
            if let Err(violation) = story(seed) {
                panic!("seed {seed}: {}: {}", violation.checker, violation.what);
            }
        }
    }
}

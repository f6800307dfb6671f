//! A majority is lost, and an operator makes one replica the whole group, as `recover
//! --keep-only-me` does: the one with the newest log, so that nothing acknowledged is lost. The
//! other nodes come back with empty disks and join it.

use lockstep_core::group::alone::alone;
use lockstep_core::ids::{GroupId, Lineage, NodeId};
use lockstep_core::snapshot::Configuration;
use lockstep_core::wal::LogJob;
use lockstep_host::recover::rest;

use crate::world::{Action, MS, SECOND, World};

impl World {
    pub(crate) fn lose_the_majority(&mut self, node: NodeId) {
        if self.members < 2 || !self.all_are_sound(node) {
            return;
        }
        let ids = self.member_ids();
        for id in &ids {
            let killed = self.rng.percent(50);
            self.fall(*id, killed);
            let down = self.rng.between(100 * MS, 5 * SECOND);
            self.after(down, Action::Start { node: *id });
        }
        // If no node has the newest log of every group, all nodes just restart.
        let Some(keeper) = self.newest(&ids) else { return };
        if self.nodes[&keeper].rotted {
            // No other replica would be left to repair its snapshot from.
            return;
        }
        if !self.keep_only(keeper) {
            return;
        }
        self.counters.add("majorities lost");
        for id in ids.into_iter().filter(|id| *id != keeper) {
            self.lose_disk(id);
        }
    }

    /// The node that has the newest log of every group, if there is one.
    fn newest(&self, ids: &[NodeId]) -> Option<NodeId> {
        let groups = self.setup.groups.iter().map(|name| GroupId::of_name(name));
        let newest_of_each = groups.map(|group| {
            let of = |id: &NodeId| {
                let view = self.checks.down.get(id)?.get(&group)?;
                Some((view.terms.last()?.1, view.last_index, *id))
            };
            let logs: Option<Vec<_>> = ids.iter().map(of).collect();
            logs?.into_iter().max().map(|(_, _, id)| id)
        });
        let newest = newest_of_each.collect::<Option<Vec<NodeId>>>()?;
        newest.iter().all(|id| *id == newest[0]).then_some(newest[0])
    }

    /// Does what `recover --keep-only-me` does. False if the disk failed.
    fn keep_only(&mut self, id: NodeId) -> bool {
        let nonce = self.rng.next_u64();
        let Ok((mut wal, groups)) = self.nodes[&id].open(&self.setup, nonce) else { return false };
        let mut jobs: Vec<LogJob> = Vec::new();
        for found in groups.into_values() {
            let mut lineage = [0; 16];
            lineage[..8].copy_from_slice(&self.rng.next_u64().to_le_bytes());
            let (state, last) = (&found.state, found.last_index);
            let Ok(rest) = rest(&wal.reader(), &state.group, state.floor, last) else {
                return false;
            };
            jobs.extend(alone(state, last, &rest, Lineage(lineage)));
        }
        if wal.append(&jobs, &mut |_jobs| {}).is_err() {
            return false;
        }
        // An older image of its disk belongs to the old group.
        self.nodes.get_mut(&id).expect("a node").image = None;
        for LogJob { group, state, .. } in jobs {
            let alone = Configuration::of_voters([state.replica]);
            self.checks.configurations.replaced(group, state.configuration_index, alone);
            self.checks.elections.replaced(group);
        }
        true
    }
}

//! Log entries that can no longer be read back: the replica cuts them off.
//!
//! A replica whose log has a damaged segment keeps serving, because recent entries are in memory,
//! but a restart would refuse the log. So the replica takes a snapshot after the damage, lists none
//! that needs entries below it, and keeps none of these entries for a follower: a follower that
//! lacks them gets the snapshot. Then the segment can be deleted. A replica without a guest gets
//! the snapshot from a peer.

use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::hosting::Hosting;
use crate::group::ready;
use crate::mutant::planted;
use crate::retention;

impl Hosting {
    /// Entries below this index may be unreadable.
    pub(super) fn log_is_damaged(&mut self, below: u64) {
        self.raw.mut_store().set_unreadable(below);
    }

    pub(super) fn tick_damage(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        // All recovery points are kept while the apply lane may still have to open one: the newest
        // may be corrupt.
        if planted("keep_damaged_log")
            || self.raw.store().unreadable() <= shared.recovery.first_index
            || self.pipeline.is_reading()
        {
            return;
        }
        match retention::past(&shared.recovery, &self.pins(shared), self.wants.corrupt()) {
            Some(plan) if self.is_proven(shared, effects) => {
                ready::list_local(self, shared, plan, None, effects);
            }
            Some(_) => {}
            None => drop(self.capture_here(shared)),
        }
    }
}

//! Entries of the log that cannot be read back any more: the replica cuts them off.
//!
//! A log with a damaged segment serves on, for what is new is in memory; but a start would refuse
//! it. So the replica takes a snapshot behind what is damaged, lists nothing that needs entries
//! below it, and keeps none of them for anybody: whoever lacks them gets the snapshot. Then the
//! segment goes. Without a guest the snapshot comes from a peer.

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
        // Until the newest one proved good the others are needed.
        if planted("keep_damaged_log")
            || self.raw.store().unreadable() <= shared.recovery.first_index
            || self.pipeline.is_reading()
        {
            return;
        }
        match retention::past(&shared.recovery, &self.pins(shared), self.wants.rotten()) {
            Some(plan) if self.is_proven(shared, effects) => {
                ready::list_local(self, shared, plan, None, effects);
            }
            Some(_) => {}
            None => drop(self.capture_here(shared)),
        }
    }
}

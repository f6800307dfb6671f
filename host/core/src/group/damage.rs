//! Log entries that can no longer be read back: the replica cuts them off.
//!
//! A replica whose log has a damaged segment keeps serving, because recent entries are in memory,
//! but a restart would refuse the log. So the replica takes a snapshot after the damage, lists none
//! that needs entries below it, and keeps none of these entries for a follower: a follower that
//! lacks them gets the snapshot. Then the segment can be deleted. A replica without a guest gets
//! the snapshot from a peer.

use crate::group::Shared;
use crate::group::hosting::Hosting;
use crate::mutant::planted;
use crate::retention;

impl Hosting {
    /// Entries below this index may be unreadable.
    pub(super) fn log_is_damaged(&mut self, below: u64) {
        self.raw.mut_store().set_unreadable(below);
    }

    /// Whether log that cannot be read has yet to be cut off.
    pub(super) fn is_damaged(&self, shared: &Shared) -> bool {
        let damaged = self.raw.store().unreadable() > shared.recovery.first_index;
        damaged && !planted("keep_damaged_log")
    }

    /// Takes the snapshot with which the damaged log can be cut off.
    pub(super) fn tick_damage(&mut self, shared: &Shared) {
        let listed = &shared.recovery.snapshots;
        let (corrupt, unreadable) = (self.retention.corrupt(), self.raw.store().unreadable());
        if self.is_damaged(shared)
            && !self.pipeline.is_reading()
            && !retention::survives_damage(listed, corrupt, unreadable)
        {
            let _ = self.capture_here(shared);
        }
    }
}

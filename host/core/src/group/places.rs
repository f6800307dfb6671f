//! A host takes only a few snapshots at once: what a replica does whose capture gets no place.
//!
//! - At a checkpoint it waits briefly for a place, because objects of one checkpoint are equal on
//!   all nodes, and that is useful. The guest applies nothing meanwhile.
//! - Then it lets the checkpoint pass and asks again between checkpoints, for whatever index it has
//!   reached. The intervals are random, so that the groups of a host do not all ask at the same
//!   time.
//! - This is not a failed capture: the log does not count as stuck, and the next checkpoint is not
//!   delayed.
//!
//! The host decides which capture gets a place, by the bytes of log that each one allows to cut.

use crate::group::Shared;
use crate::group::checkpoint::Checkpoints;
use crate::group::effect::Effect;
use crate::group::hosting::Hosting;
use crate::limits;
use crate::mutant::planted;

/// What becomes of a capture that got no place.
pub(super) enum PlaceWait {
    /// It is tried again at the next tick, at this same index.
    Here(u64),
    /// It was given up; another one is tried from this tick on.
    Later(u64),
}

impl Checkpoints {
    /// Whether it is too early to ask for a place again.
    pub(super) fn asks_later(&self, now: u64) -> bool {
        matches!(self.place, Some(PlaceWait::Later(tick)) if now < tick)
    }
}

impl Hosting {
    /// The capture at `index` got no place.
    pub(super) fn no_place(&mut self, shared: &mut Shared, index: u64, why: String) {
        if !self.checkpoints.is_capturing_at(index) {
            return self.pipeline.captured(index);
        }
        let at_checkpoint = self.checkpoints.last() == index;
        if at_checkpoint && shared.now < self.checkpoints.began() + limits::CHECKPOINT_PLACE_TICKS {
            self.checkpoints.place = Some(PlaceWait::Here(index));
            return;
        }
        self.pipeline.captured(index);
        self.checkpoints.gave_up_for_a_place(why);
        let wait = limits::PLACE_RETRY_TICKS + shared.chance.below(limits::PLACE_RETRY_TICKS);
        self.checkpoints.place = Some(PlaceWait::Later(shared.now + wait));
    }

    pub(super) fn tick_places(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        match self.checkpoints.place {
            Some(PlaceWait::Here(index)) => {
                self.checkpoints.place = None;
                self.pipeline.capture_again(index, effects);
            }
            Some(PlaceWait::Later(tick)) if shared.now >= tick => {
                self.checkpoints.place = None;
                // If there is nothing to capture, or no guest, the next checkpoint takes its place.
                if !planted("wait_for_a_checkpoint") {
                    let _ = self.capture_here(shared);
                }
            }
            Some(PlaceWait::Later(_)) | None => {}
        }
    }
}

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

use crate::group::chance::Chance;
use crate::limits;
use crate::mutant::planted;

/// What becomes of a capture that got no place.
#[derive(Default)]
pub(super) struct PlaceWait(Wait);

#[derive(Default)]
enum Wait {
    #[default]
    Nothing,
    /// The capture is tried again at the next tick, at this same index.
    Here(u64),
    /// The capture was given up; another one is tried from this tick on.
    Later(u64),
}

/// What to do at a tick.
pub(super) enum PlaceTry {
    /// Give the lane the capture at this index again.
    Again(u64),
    /// Capture wherever the replica is now.
    Anew,
}

impl PlaceWait {
    /// Whether it is too early to ask for a place again.
    pub(super) fn asks_later(&self, now: u64) -> bool {
        matches!(self.0, Wait::Later(tick) if now < tick)
    }

    /// The capture at the checkpoint `index` waits for a place.
    pub(super) fn stays(&mut self, index: u64) {
        self.0 = Wait::Here(index);
    }

    /// The capture is given up; another one is tried after a random while.
    pub(super) fn comes_back(&mut self, now: u64, chance: &mut Chance) {
        let wait = limits::PLACE_RETRY_TICKS + chance.below(limits::PLACE_RETRY_TICKS);
        self.0 = Wait::Later(now + wait);
    }

    pub(super) fn next(&mut self, now: u64) -> Option<PlaceTry> {
        let due = match self.0 {
            Wait::Here(index) => PlaceTry::Again(index),
            Wait::Later(tick) if now >= tick => PlaceTry::Anew,
            Wait::Later(_) | Wait::Nothing => return None,
        };
        self.0 = Wait::Nothing;
        // The caller may find nothing to capture, or no guest. Then the next checkpoint brings the
        // capture.
        let waits = matches!(due, PlaceTry::Anew) && planted("wait_for_a_checkpoint");
        Some(due).filter(|_| !waits)
    }
}

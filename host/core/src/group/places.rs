//! A host takes only so many snapshots at once: what a replica does whose capture finds no place.
//!
//! - At a mark it waits there for a moment, for objects of one mark are equal everywhere, and that
//!   is worth something. The guest applies nothing meanwhile.
//! - Then it lets the mark pass, and asks again between marks, where it is by then: now and then,
//!   by chance, so that the groups of a host do not all ask at once.
//! - That is no failure: its log is not taken to be stuck, and nobody's next mark comes later.
//!
//! Who gets a place is the host's to say, by the bytes of log that each capture names.

use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::hosting::Hosting;
use crate::group::mark::Marks;
use crate::limits;
use crate::mutant::planted;

/// A capture that found no place.
pub(super) enum PlaceWait {
    /// It is asked for again at the next tick, at the same index.
    Here(u64),
    /// It was given up; another one is tried from this tick on.
    Later(u64),
}

impl Marks {
    /// Whether it is not the time to ask for a place again.
    pub(super) fn asks_later(&self, now: u64) -> bool {
        matches!(self.place, Some(PlaceWait::Later(tick)) if now < tick)
    }
}

impl Hosting {
    /// The capture at `index` found no place.
    pub(super) fn no_place(&mut self, shared: &mut Shared, index: u64, why: String) {
        if !self.marks.is_capturing_at(index) {
            return self.pipeline.captured(index);
        }
        let at_mark = self.marks.last() == index;
        if at_mark && shared.now < self.marks.began() + limits::MARK_PLACE_TICKS {
            self.marks.place = Some(PlaceWait::Here(index));
            return;
        }
        self.pipeline.captured(index);
        self.marks.gave_up_for_a_place(why);
        let wait = limits::PLACE_RETRY_TICKS + shared.chance.below(limits::PLACE_RETRY_TICKS);
        self.marks.place = Some(PlaceWait::Later(shared.now + wait));
    }

    pub(super) fn tick_places(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        match self.marks.place {
            Some(PlaceWait::Here(index)) => {
                self.marks.place = None;
                self.pipeline.capture_again(index, effects);
            }
            Some(PlaceWait::Later(tick)) if shared.now >= tick => {
                self.marks.place = None;
                // If there is nothing to capture, or no guest, the next mark will do.
                if !planted("wait_for_a_mark") {
                    let _ = self.capture_here(shared);
                }
            }
            Some(PlaceWait::Later(_)) | None => {}
        }
    }
}

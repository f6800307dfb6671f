//! Nothing is deleted to free space before what stays has been verified.
//!
//! A snapshot that was whole when it was sealed may have become corrupt since, and the scrubber may
//! not have reached it yet. So the newest good recovery point is read in full before an older one
//! is unlisted to free space, or before log is cut that could replace it. If it turns out corrupt,
//! the older one stays and the corrupt one is deleted instead. A recovery point that was read
//! within the last [`limits::PROOF_TICKS`] is not read again, and a new snapshot was read when it
//! was sealed.

use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::event::Found;
use crate::group::hosting::Hosting;
use crate::limits;
use crate::mutant::planted;
use crate::retention::{self, ObjectName};
use crate::snapshot::SnapshotDesc;

/// What is known of the recovery point that is to stay.
#[derive(Default)]
pub(super) struct Proof {
    /// The recovery point that was last read whole, and the tick at which that was.
    whole: Option<(ObjectName, u64)>,
    /// The recovery point that is being read.
    reading: Option<ObjectName>,
    /// What waits for that: the recovery point to unlist, and the capture that needs its space.
    waiting: Option<(SnapshotDesc, Option<u64>)>,
}

impl Proof {
    /// Notes that the object was read whole.
    pub(super) fn is_whole(&mut self, snapshot: &SnapshotDesc, now: u64) {
        self.whole = Some((retention::name(snapshot), now));
    }

    /// Notes what waits. A peer's object does not displace a capture, because it will be offered
    /// again.
    pub(super) fn wait(&mut self, unlist: &SnapshotDesc, capture: Option<u64>) {
        if capture.is_some() || self.waiting.is_none() {
            self.waiting = Some((unlist.clone(), capture));
        }
    }
}

impl Hosting {
    /// Whether the recovery point that stays was read whole recently. If not, reading it starts
    /// now, and the caller tries again after that.
    pub(super) fn is_proven(&mut self, shared: &Shared, effects: &mut Vec<Effect>) -> bool {
        // If every recovery point is corrupt, there is none to verify, and the log is not cut.
        let stays = retention::newest_good(&shared.recovery, self.wants.corrupt());
        let Some(stays) = stays.filter(|_| !planted("give_up_unread")) else { return true };
        let name = retention::name(stays);
        let lately = |(of, at): (ObjectName, u64)| {
            of == name && shared.now < at.saturating_add(limits::PROOF_TICKS)
        };
        let proven = self.proof.whole.is_some_and(lately);
        if !proven && self.proof.reading != Some(name) {
            self.proof.reading = Some(name);
            effects.push(Effect::Prove { snapshot: stays.clone() });
        }
        proven
    }

    /// A recovery point was to be read. If it could not be, nothing is deleted: what needed the
    /// space fails for now and is tried again later.
    pub(super) fn was_read(
        &mut self,
        shared: &mut Shared,
        snapshot: &SnapshotDesc,
        found: Found,
        effects: &mut Vec<Effect>,
    ) {
        self.proof.reading.take_if(|name| *name == retention::name(snapshot));
        let waiting = self.proof.waiting.take();
        match found {
            Found::Unread(why) if !planted("unread_is_whole") => {
                if let Some(index) = waiting.and_then(|(_, capture)| capture) {
                    let why = format!("no space, and the newest snapshot could not be read: {why}");
                    self.capture_failed(shared, index, why, true);
                }
                return;
            }
            Found::Whole | Found::Unread(_) => self.proof.is_whole(snapshot, shared.now),
            Found::Bad(_) => self.found_corrupt(shared, snapshot),
        }
        if let Some((unlist, capture)) = waiting {
            self.room_wanted(shared, &unlist, capture, effects);
        }
        if shared.short.is_some() {
            self.shed(shared, effects);
        }
    }
}

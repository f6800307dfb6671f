//! Nothing is given up for room before what stays was read again.
//!
//! A snapshot that was whole when it was sealed may have rotted since, and the scrubber may not
//! have come by. So the newest good recovery point is read whole before an older one is unlisted to
//! make room, or log is cut that could stand in for it; if it turns out bad the older one stays,
//! and the bad one makes room. One that was read in the last [`limits::PROOF_TICKS`] is not read
//! again, and a new snapshot was when it was sealed.

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
    /// What was last read whole, and at which tick.
    whole: Option<(ObjectName, u64)>,
    /// What is being read.
    reading: Option<ObjectName>,
    /// Who waits for that: the recovery point that is to go, and the capture that needs its room.
    waiting: Option<(SnapshotDesc, Option<u64>)>,
}

impl Proof {
    /// The object was read whole.
    pub(super) fn is_whole(&mut self, snapshot: &SnapshotDesc, now: u64) {
        self.whole = Some((retention::name(snapshot), now));
    }

    /// A capture is not forgotten for the sake of a peer's object, which will be offered again.
    pub(super) fn wait(&mut self, unlist: &SnapshotDesc, capture: Option<u64>) {
        if capture.is_some() || self.waiting.is_none() {
            self.waiting = Some((unlist.clone(), capture));
        }
    }
}

impl Hosting {
    /// Whether what stays was read whole lately. If not it is read now, and whoever gives something
    /// up tries again behind that.
    pub(super) fn is_proven(&mut self, shared: &Shared, effects: &mut Vec<Effect>) -> bool {
        // If every one is bad the log stays whole in its place.
        let stays = retention::newest_good(&shared.recovery, self.wants.rotten());
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

    /// A recovery point was to be read. If it was not, nothing goes: whoever wanted room has none,
    /// and tries again later.
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
                    let why = format!("no room, and what stays was not read: {why}");
                    self.capture_failed(shared, index, why, true);
                }
                return;
            }
            Found::Whole | Found::Unread(_) => self.proof.is_whole(snapshot, shared.now),
            Found::Bad(_) => self.found_rotten(shared, snapshot),
        }
        if let Some((unlist, capture)) = waiting {
            self.room_wanted(shared, &unlist, capture, effects);
        }
        if shared.short.is_some() {
            self.shed(shared, effects);
        }
    }
}

//! Nothing is deleted to free space before what stays has been verified.
//!
//! A snapshot that was whole when it was sealed may have become corrupt since, and the scrubber may
//! not have reached it yet. So the newest good recovery point is read in full before an older one
//! is unlisted to free space, or before log is cut that could replace it. If it turns out corrupt,
//! the older one stays and the corrupt one is deleted instead. A recovery point that was read
//! within the last [`limits::PROOF_TICKS`] is not read again, and a new snapshot was read when it
//! was sealed.
//!
//! A capture that waits for such a reading holds up the guest. If the reading takes longer than on
//! any healthy disk, the capture fails for now; when the reading ends, another one is taken at
//! once.

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
    waiting: Option<Waiting>,
    /// A capture was given up because this reading took too long.
    gave_up: bool,
}

/// What waits for a recovery point to be read.
struct Waiting {
    /// The recovery point to unlist, and the capture that needs its space.
    unlist: SnapshotDesc,
    capture: Option<u64>,
    since: u64,
}

/// Ticks that a capture waits for the reading of a small object, and how many bytes of a larger one
/// add one more: 10 MiB a second.
const PATIENCE_TICKS: u64 = 30;
const BYTES_PER_TICK: u64 = 1 << 20;

impl Proof {
    /// Notes that the object was read whole.
    pub(super) fn is_whole(&mut self, snapshot: &SnapshotDesc, now: u64) {
        self.whole = Some((retention::name(snapshot), now));
    }

    /// Notes what waits. A peer's object does not displace a capture, because it will be offered
    /// again.
    pub(super) fn wait(&mut self, unlist: &SnapshotDesc, capture: Option<u64>, now: u64) {
        if capture.is_some() || self.waiting.is_none() {
            self.waiting = Some(Waiting { unlist: unlist.clone(), capture, since: now });
        }
    }
}

impl Hosting {
    /// Whether the recovery point that stays was read whole recently. If not, reading it starts
    /// now, and the caller tries again after that.
    pub(super) fn is_proven(&mut self, shared: &Shared, effects: &mut Vec<Effect>) -> bool {
        // If every recovery point is corrupt, there is none to verify, and the log is not cut.
        let stays = retention::newest_good(&shared.recovery.snapshots, self.wants.corrupt());
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
        let (waiting, gave_up) = (self.proof.waiting.take(), self.proof.gave_up);
        self.proof.gave_up = false;
        match found {
            Found::Unread(why) if !planted("unread_is_whole") => {
                if let Some(index) = waiting.and_then(|waiting| waiting.capture) {
                    let why = format!("no space, and the newest snapshot could not be read: {why}");
                    self.capture_failed(shared, index, why, true);
                }
                return;
            }
            Found::Whole | Found::Unread(_) => self.proof.is_whole(snapshot, shared.now),
            Found::Bad(_) => self.found_corrupt(shared, snapshot),
        }
        if let Some(Waiting { unlist, capture, .. }) = waiting {
            self.room_wanted(shared, &unlist, capture, effects);
        } else if gave_up {
            // What was read is known to be whole for a short time only: so the next capture comes
            // now.
            self.checkpoints.wait_no_more();
            let _ = self.capture_here(shared);
        }
        if shared.short.is_some() {
            self.shed(shared, effects);
        }
    }

    /// Ends the wait of a capture whose reading takes too long.
    pub(super) fn tick_proof(&mut self, shared: &Shared) {
        let largest = shared.recovery.snapshots.iter().map(|desc| desc.length).max().unwrap_or(0);
        let patience = PATIENCE_TICKS + largest / BYTES_PER_TICK;
        let too_long = |waiting: &mut Waiting| {
            waiting.capture.is_some() && shared.now >= waiting.since + patience
        };
        let waiting = self.proof.waiting.take_if(too_long).filter(|_| !planted("read_for_ever"));
        if let Some(index) = waiting.and_then(|waiting| waiting.capture) {
            self.proof.gave_up = true;
            let why = "no space, and the newest snapshot is still being read: its disk is slow";
            self.capture_failed(shared, index, why.to_owned(), true);
        }
    }
}

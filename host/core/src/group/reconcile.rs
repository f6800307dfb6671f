//! What is listed, and where the log begins: events change facts, and [`Hosting::reconcile`]
//! compares the goal that follows from them with what there is, and does the next thing.
//!
//! 1. *Verify.* Nothing is given up before what stays has been read: a snapshot that was whole when
//!    it was sealed may have become corrupt since, and the scrubber may not have reached it yet.
//!    If the newest good recovery point turns out corrupt, an older one stays and the corrupt one
//!    is given up instead. One that was read within the last [`limits::PROOF_TICKS`] is not read
//!    again, and a new snapshot was read when it was sealed.
//! 2. *Persist.* List and first index change in a batch of their own.
//! 3. *Tell.* Once that is durable, the store lane learns the list and may delete the rest. It
//!    waits while the apply lane may still have to open an object that it was given earlier: the
//!    newest may be corrupt.
//!
//! A capture that waits for a reading holds up the guest. If the reading takes longer than on any
//! healthy disk, the capture fails for now; when the reading ends, another one is taken at once.

use std::collections::BTreeSet;

use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::event::Found;
use crate::group::hosting::Hosting;
use crate::group::outgoing::Outgoing;
use crate::group::raft_log::RaftLog;
use crate::group::ready;
use crate::limits;
use crate::mutant::planted;
use crate::retention::{self, Facts, ObjectName, Plan, Short};
use crate::snapshot::{Hold, SnapshotDesc, Verified};

/// The facts about recovery points that no other room has.
#[derive(Default)]
pub(super) struct Retention {
    /// Listed objects that turned out to be corrupt.
    corrupt: BTreeSet<ObjectName>,
    /// The recovery point that was last read whole, and the tick at which that was.
    whole: Option<(ObjectName, u64)>,
    /// The recovery point that is being read.
    reading: Option<ObjectName>,
    /// The tick at which a reading last failed for a passing reason.
    unread: Option<u64>,
    /// An object that is not listed yet, read whole when it was sealed.
    new: Option<Verified>,
    need: Option<Need>,
    /// The log asks for space.
    asked: bool,
    /// A capture was given up because a reading took too long.
    gave_up: bool,
    untold: Untold,
}

/// An object that fits only if a recovery point is unlisted.
struct Need {
    victim: SnapshotDesc,
    /// The index of the capture; `None` if a peer sends the object.
    capture: Option<u64>,
    since: u64,
}

/// What the store lane was not told yet.
#[derive(Default)]
struct Untold {
    /// What the log durably lists, or what is promised, changed.
    list: bool,
    /// The disk is full: what suspended transfers left is to be deleted.
    pressure: bool,
    /// Holds on new objects that may be dropped once the store lane knows that they are listed.
    holds: Vec<Box<dyn Hold>>,
}

/// Ticks that a capture waits for the reading of a small object, and how many bytes of a larger one
/// add one more: 10 MiB a second.
const PATIENCE_TICKS: u64 = 30;
const BYTES_PER_TICK: u64 = 1 << 20;

impl Retention {
    pub(super) fn corrupt(&self) -> &BTreeSet<ObjectName> {
        &self.corrupt
    }

    pub(super) fn is_corrupt(&self, snapshot: &SnapshotDesc) -> bool {
        self.corrupt.contains(&retention::name(snapshot))
    }

    pub(super) fn is_bad(&mut self, snapshot: &SnapshotDesc) {
        self.corrupt.insert(retention::name(snapshot));
    }

    /// A peer's copy took the place of the object; returns whether it was corrupt.
    pub(super) fn is_repaired(&mut self, snapshot: &SnapshotDesc) -> bool {
        self.corrupt.remove(&retention::name(snapshot))
    }

    /// A guest was restored from the object at this index, so it is not corrupt.
    pub(super) fn restored(&mut self, index: u64) {
        self.corrupt.retain(|(_, corrupt, _)| *corrupt != index);
    }

    pub(super) fn is_whole(&mut self, snapshot: &SnapshotDesc, now: u64) {
        self.whole = Some((retention::name(snapshot), now));
    }

    /// An object is to be listed. Of two, the newer one is.
    pub(super) fn add(&mut self, snapshot: Verified) {
        let newer = |before: &Verified| snapshot.desc.index > before.desc.index;
        if self.new.as_ref().is_none_or(newer) {
            self.new = Some(snapshot);
        }
    }

    /// An object fits only if `victim` is unlisted. One that a peer sends does not displace a
    /// capture, because it will be offered again.
    pub(super) fn room_wanted(&mut self, victim: SnapshotDesc, capture: Option<u64>, now: u64) {
        if capture.is_some() || self.need.is_none() {
            self.need = Some(Need { victim, capture, since: now });
        }
    }

    /// The log durably lists these; `hold` belongs to the one that is new among them.
    pub(super) fn listed(&mut self, snapshots: &[SnapshotDesc], hold: Option<Box<dyn Hold>>) {
        self.corrupt.retain(|name| snapshots.iter().any(|desc| retention::name(desc) == *name));
        self.untold.list = true;
        self.untold.holds.extend(hold);
    }

    /// What is promised changed: the store lane has to know.
    pub(super) fn promises_changed(&mut self) {
        self.untold.list = true;
    }

    /// The log asks for space.
    pub(super) fn log_asks(&mut self) {
        self.asked = true;
    }

    /// The disk is full: the store lane has to know.
    pub(super) fn press(&mut self) {
        (self.untold.list, self.untold.pressure) = (true, true);
    }

    fn tell(&mut self, log: &RaftLog, outgoing: &Outgoing, effects: &mut Vec<Effect>) {
        if std::mem::take(&mut self.untold.list) {
            let Untold { pressure, holds, .. } = std::mem::take(&mut self.untold);
            let (snapshots, promised) = (log.listed().to_vec(), outgoing.promised());
            effects.push(Effect::List { snapshots, promised, pressure, holds });
        }
    }
}

impl Hosting {
    /// Does the next thing toward what should be listed.
    pub(super) fn reconcile(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        self.forget_stale_need();
        let Retention { new, need, asked, .. } = &self.retention;
        if new.is_none() && need.is_none() && !asked && !self.is_damaged(shared) {
            return;
        }
        let goal = self.goal(shared);
        self.retention.asked &= goal.is_some();
        let shrinks = |plan: &Plan| plan.snapshots != shared.recovery.snapshots;
        if self.retention.new.is_none() && !goal.as_ref().is_some_and(shrinks) {
            self.refuse_need(shared);
        }
        if let Some(Verified { mut hold, .. }) = self.retention.new.take() {
            hold.disarm();
            let plan = goal.unwrap_or_else(|| Plan::of(&shared.recovery));
            self.list(shared, plan, Some(hold), effects);
        } else if let Some(plan) = goal
            && self.is_proven(shared, effects)
        {
            self.list(shared, plan, None, effects);
        }
    }

    fn goal(&self, shared: &Shared) -> Option<Plan> {
        let Retention { corrupt, new, need, asked, .. } = &self.retention;
        let reads = self.pipeline.is_reading();
        if reads && new.is_none() {
            return None;
        }
        retention::goal(&Facts {
            state: &shared.recovery,
            corrupt,
            pins: &self.pins(shared),
            short: shared.gives_up(),
            asked: *asked,
            new: new.as_ref().map(|new| &new.desc),
            victim: need.as_ref().map(|need| &need.victim).filter(|_| !reads),
        })
    }

    /// Has the list and the first index persisted. What waited for space is tried again once they
    /// are durable.
    fn list(
        &mut self,
        shared: &mut Shared,
        plan: Plan,
        hold: Option<Box<dyn Hold>>,
        effects: &mut Vec<Effect>,
    ) {
        if plan.snapshots != shared.recovery.snapshots
            && let Some(capture) = self.retention.need.take().and_then(|need| need.capture)
        {
            self.checkpoints.waits_for_room(capture);
        }
        ready::list_local(self, shared, plan, hold, effects);
    }

    /// The recovery point that would have to go must stay.
    fn refuse_need(&mut self, shared: &Shared) {
        if let Some(Need { victim, capture: Some(index), .. }) = self.retention.need.take() {
            let why = format!("no space, and the recovery point at {} must stay", victim.index);
            self.capture_failed(shared, index, why, false);
        }
    }

    fn forget_stale_need(&mut self) {
        let checkpoints = &self.checkpoints;
        let is_stale =
            |need: &mut Need| need.capture.is_some_and(|index| !checkpoints.is_capturing_at(index));
        if let Some(gone) = self.retention.need.take_if(is_stale).and_then(|need| need.capture) {
            self.pipeline.captured(gone);
        }
    }

    pub(super) fn tell_list(&mut self, effects: &mut Vec<Effect>) {
        if !self.pipeline.is_reading() {
            self.retention.tell(self.raw.store(), &self.outgoing, effects);
        }
    }

    pub(super) fn found_corrupt(&mut self, shared: &Shared, snapshot: &SnapshotDesc) {
        if shared.recovery.snapshots.contains(snapshot) {
            self.retention.is_bad(snapshot);
        } else {
            self.promise_rotted(snapshot);
        }
    }

    /// Whether the newest good recovery point was read whole recently. If not, reading it starts
    /// now, and the caller tries again after that.
    pub(super) fn is_proven(&mut self, shared: &Shared, effects: &mut Vec<Effect>) -> bool {
        let retention = &mut self.retention;
        // If every recovery point is corrupt, there is none to verify, and the log is not cut.
        let stays = retention::newest_good(&shared.recovery.snapshots, &retention.corrupt);
        let Some(stays) = stays.filter(|_| !planted("give_up_unread")) else { return true };
        let name = retention::name(stays);
        let lately = |(of, at): (ObjectName, u64)| {
            of == name && shared.now < at.saturating_add(limits::PROOF_TICKS)
        };
        let proven = retention.whole.is_some_and(lately);
        // A reading that failed for a passing reason begins again at the next tick at the earliest.
        let begins = retention.reading != Some(name) && retention.unread != Some(shared.now);
        if !proven && begins {
            retention.reading = Some(name);
            effects.push(Effect::Prove { snapshot: stays.clone() });
        }
        proven
    }

    /// A recovery point was to be read. If it could not be, nothing is deleted: what needed the
    /// space fails for now and is tried again later.
    pub(super) fn was_read(&mut self, shared: &Shared, snapshot: &SnapshotDesc, found: Found) {
        self.retention.reading.take_if(|name| *name == retention::name(snapshot));
        let gave_up = std::mem::take(&mut self.retention.gave_up);
        match found {
            Found::Unread(why) if !planted("unread_is_whole") => {
                (self.retention.asked, self.retention.unread) = (false, Some(shared.now));
                let need = self.retention.need.take();
                if let Some(index) = need.and_then(|need| need.capture) {
                    let why = format!("no space, and the newest snapshot could not be read: {why}");
                    self.capture_failed(shared, index, why, true);
                }
                return;
            }
            Found::Whole | Found::Unread(_) => self.retention.is_whole(snapshot, shared.now),
            Found::Bad(_) => self.found_corrupt(shared, snapshot),
        }
        self.retention.asked |= shared.short.is_some();
        if gave_up && self.retention.need.is_none() {
            // What was read is known to be whole for a short time only: so the next capture comes
            // now.
            self.checkpoints.wait_no_more();
            let _ = self.capture_here(shared);
        }
    }

    /// Ends the wait of a capture whose reading takes too long.
    pub(super) fn tick_proof(&mut self, shared: &Shared) {
        let largest = shared.recovery.snapshots.iter().map(|desc| desc.length).max().unwrap_or(0);
        let patience = PATIENCE_TICKS + largest / BYTES_PER_TICK;
        let too_long =
            |need: &mut Need| need.capture.is_some() && shared.now >= need.since + patience;
        let need = self.retention.need.take_if(too_long).filter(|_| !planted("read_for_ever"));
        if let Some(index) = need.and_then(|need| need.capture) {
            self.retention.gave_up = true;
            let why = "no space, and the newest snapshot is still being read: its disk is slow";
            self.capture_failed(shared, index, why.to_owned(), true);
        }
    }
}

impl Shared {
    /// What has to be given up for space. If snapshots have a disk of their own and one is overdue,
    /// that is only log.
    fn gives_up(&self) -> Short {
        let shares = self.config.snapshots_share_log_disk;
        if self.log_short.is_some() || (shares && self.short.is_some()) {
            Short::Disk
        } else if self.short.is_some() {
            Short::Log
        } else {
            Short::Nothing
        }
    }
}

//! Which recovery points are listed, and where the log begins. Events change facts;
//! [`Retention::reconcile`] derives the goal from these facts, compares it with the present list,
//! and takes the next step.
//!
//! 1. *Verify.* No recovery point is given up before the one that stays has been read: a snapshot
//!    that was whole when it was sealed may have become corrupt since, and the scrubber may not
//!    have reached it yet. If the newest good recovery point turns out corrupt, an older one stays
//!    and the corrupt one is given up instead. One that was read within the last
//!    [`limits::PROOF_TICKS`] is not read again, and a new snapshot was read when it was sealed.
//! 2. *Persist.* List and first index change in a batch of their own.
//! 3. *Tell.* Once that is durable, the store lane learns the list and may delete the rest. It
//!    waits while the apply lane may still have to open an object that it was given earlier: the
//!    newest may be corrupt.
//!
//! While a capture waits for a reading, the guest applies nothing. If the reading takes longer than
//! on any healthy disk, the capture fails for now; when the reading ends, another one is taken at
//! once.

use std::collections::BTreeSet;

use crate::group::catch_up::CatchUps;
use crate::group::checkpoint::{CaptureFailed, Checkpoints};
use crate::group::effect::Effect;
use crate::group::event::Found;
use crate::group::outgoing::Outgoing;
use crate::group::persist::{Listing, Promise};
use crate::group::pipeline::Pipeline;
use crate::group::raft_log::RaftLog;
use crate::group::raft_node::RaftNode;
use crate::group::{Shared, damage};
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::recovery_state::RecoveryState;
use crate::retention::{self, Facts, ObjectName, Pins, Plan, Short};
use crate::snapshot::{Hold, SnapshotDesc, Verified};

/// What is known about recovery points beyond the list itself, and who needs the space of one.
#[derive(Default)]
pub(super) struct Retention {
    /// Listed objects that turned out to be corrupt.
    corrupt: BTreeSet<ObjectName>,
    /// The recovery point that was last read whole, and the tick at which that was.
    whole: Option<(ObjectName, u64)>,
    /// The recovery point that is being read.
    reading: Option<ObjectName>,
    /// The tick at which a reading last failed for a temporary reason.
    unread: Option<u64>,
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
    /// The index of the capture; `None` if a peer sends the object, or another group needs the
    /// space.
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

/// What decides, together with [`Retention`], which recovery points are listed.
pub(super) struct Around<'a> {
    pub(super) raw: &'a RaftNode,
    pub(super) pipeline: &'a mut Pipeline,
    pub(super) checkpoints: &'a mut Checkpoints,
    pub(super) outgoing: &'a Outgoing,
    pub(super) catch_ups: &'a CatchUps,
}

/// Ticks that a capture waits for the reading of a small object, and how many bytes of a larger one
/// add one tick: 10 MiB a second.
const PATIENCE_TICKS: u64 = 30;
const BYTES_PER_TICK: u64 = 1 << 20;

impl Retention {
    pub(super) fn corrupt(&self) -> &BTreeSet<ObjectName> {
        &self.corrupt
    }

    pub(super) fn is_corrupt(&self, snapshot: &SnapshotDesc) -> bool {
        self.corrupt.contains(&retention::name(snapshot))
    }

    /// Recovery points that contain what is skipped, and those of a replica that has diverged,
    /// count as corrupt: nobody starts from them.
    pub(super) fn distrust(&mut self, state: &RecoveryState) {
        let bad = state.snapshots.iter().filter(|desc| state.distrusts(desc.index));
        self.corrupt.extend(bad.map(retention::name));
    }

    /// A peer's copy took the place of the object: forgets that it was corrupt, and returns whether
    /// it was.
    pub(super) fn repaired(&mut self, snapshot: &SnapshotDesc) -> bool {
        self.corrupt.remove(&retention::name(snapshot))
    }

    /// A guest was restored from the object at this index, so it is not corrupt.
    pub(super) fn restored(&mut self, index: u64) {
        self.corrupt.retain(|(_, corrupt, _)| *corrupt != index);
    }

    pub(super) fn note_whole(&mut self, snapshot: &SnapshotDesc, now: u64) {
        self.whole = Some((retention::name(snapshot), now));
    }

    /// An object fits only if `victim` is unlisted. One that a peer sends does not displace a
    /// capture, because it will be offered again.
    pub(super) fn space_wanted(&mut self, victim: SnapshotDesc, capture: Option<u64>, now: u64) {
        if capture.is_some() || self.need.is_none() {
            self.need = Some(Need { victim, capture, since: now });
        }
    }

    /// The log durably lists `snapshots`; `hold` belongs to the new one among them.
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

    /// The disk is full: with the next list, the store lane deletes the suspended transfer as well.
    pub(super) fn press(&mut self) {
        (self.untold.list, self.untold.pressure) = (true, true);
    }

    /// Tells the store lane what is listed and promised, unless the apply lane still reads.
    pub(super) fn tell(
        &mut self,
        pipeline: &Pipeline,
        log: &RaftLog,
        outgoing: &Outgoing,
        effects: &mut Vec<Effect>,
    ) {
        if !pipeline.is_reading() && std::mem::take(&mut self.untold.list) {
            let Untold { pressure, holds, .. } = std::mem::take(&mut self.untold);
            let (snapshots, promised) = (log.listed().to_vec(), outgoing.promised());
            effects.push(Effect::List { snapshots, promised, pressure, holds });
        }
    }

    /// Lists an object that was read whole when it was sealed.
    pub(super) fn list_new(
        &mut self,
        around: &mut Around<'_>,
        shared: &mut Shared,
        snapshot: Verified,
        effects: &mut Vec<Effect>,
    ) {
        let Verified { desc, mut hold } = snapshot;
        hold.disarm();
        let goal = self.goal(around, shared, Some(&desc));
        let plan = goal.unwrap_or_else(|| Plan::of(&shared.recovery));
        self.list(around, shared, plan, Some(hold), effects);
    }

    /// Takes the next step from the present list to the list that should be.
    pub(super) fn reconcile(
        &mut self,
        around: &mut Around<'_>,
        shared: &mut Shared,
        effects: &mut Vec<Effect>,
    ) {
        self.forget_stale_need(around);
        let damaged = damage::is_to_be_cut_off(around.raw.store(), &shared.recovery);
        if self.need.is_none() && !self.asked && !damaged {
            return;
        }
        let goal = self.goal(around, shared, None).filter(|_| !around.pipeline.is_reading());
        self.asked &= goal.is_some();
        let shrinks = |plan: &Plan| plan.snapshots != shared.recovery.snapshots;
        if !goal.as_ref().is_some_and(shrinks) {
            self.refuse_need(around, shared.now);
        }
        if let Some(plan) = goal
            && self.is_proven(shared, effects)
        {
            self.list(around, shared, plan, None, effects);
        }
    }

    /// The plan that lists `new`, an object that was just read; without one, the plan that frees
    /// the space that was asked for.
    fn goal(
        &self,
        around: &Around<'_>,
        shared: &Shared,
        new: Option<&SnapshotDesc>,
    ) -> Option<Plan> {
        let victim = self.need.as_ref().map(|need| &need.victim);
        retention::goal(&Facts {
            state: &shared.recovery,
            corrupt: &self.corrupt,
            pins: &pins(around.raw, around.outgoing, around.catch_ups, shared),
            short: shared.gives_up(),
            asked: self.asked && new.is_none(),
            new,
            victim: victim.filter(|_| new.is_none()),
        })
    }

    /// Has the list and the first index persisted, in a batch of their own. What waited for space
    /// is tried again once they are durable.
    fn list(
        &mut self,
        around: &mut Around<'_>,
        shared: &mut Shared,
        plan: Plan,
        hold: Option<Box<dyn Hold>>,
        effects: &mut Vec<Effect>,
    ) {
        let Plan { snapshots, first_index } = plan;
        if snapshots != shared.recovery.snapshots
            && let Some(capture) = self.need.take().and_then(|need| need.capture)
        {
            around.checkpoints.waits_for_unlisting(capture);
        }
        if planted("delete_before_unlist") {
            let (promised, pressure, holds) = (Vec::new(), false, Vec::new());
            let snapshots = snapshots.clone();
            effects.push(Effect::List { snapshots, promised, pressure, holds });
        }
        let previous_term = around.raw.store().term_before(first_index);
        shared.recovery.list(snapshots.clone(), first_index, previous_term);
        let seq = shared.persist_now(Vec::new(), effects);
        let listing = Some(Listing { snapshots, first_index, hold, installed: false });
        let term = shared.recovery.term;
        let promise = Promise { seq, term, ready: None, messages: Vec::new(), listing };
        shared.persist.promise(promise);
    }

    /// Fails the capture that needs space, because the recovery point in its way must stay.
    fn refuse_need(&mut self, around: &mut Around<'_>, now: u64) {
        if let Some(Need { victim, capture: Some(index), .. }) = self.need.take() {
            let why = format!("no space, and the recovery point at {} must stay", victim.index);
            let failed = CaptureFailed { index, why, postponed: false };
            around.checkpoints.capture_failed(around.pipeline, failed, now);
        }
    }

    fn forget_stale_need(&mut self, around: &mut Around<'_>) {
        let checkpoints = &around.checkpoints;
        let is_stale =
            |need: &mut Need| need.capture.is_some_and(|index| !checkpoints.is_capturing_at(index));
        if let Some(gone) = self.need.take_if(is_stale).and_then(|need| need.capture) {
            around.pipeline.captured(gone);
        }
    }

    /// An object turned out to be corrupt. Returns whether it is listed, so that a peer's copy can
    /// repair it.
    pub(super) fn found_corrupt(&mut self, shared: &Shared, snapshot: &SnapshotDesc) -> bool {
        let listed = shared.recovery.snapshots.contains(snapshot);
        if listed {
            self.corrupt.insert(retention::name(snapshot));
        }
        listed
    }

    /// Whether the newest good recovery point was read whole recently. If not, reading it starts
    /// now, and the caller tries again after that.
    pub(super) fn is_proven(&mut self, shared: &Shared, effects: &mut Vec<Effect>) -> bool {
        // If every recovery point is corrupt, there is none to verify, and the log is not cut.
        let stays = retention::newest_good(&shared.recovery.snapshots, &self.corrupt);
        let Some(stays) = stays.filter(|_| !planted("give_up_unread")) else { return true };
        let name = retention::name(stays);
        let lately = |(of, at): (ObjectName, u64)| {
            of == name && shared.now < at.saturating_add(limits::PROOF_TICKS)
        };
        let proven = self.whole.is_some_and(lately);
        // After a temporary failure, the reading begins again at the next tick at the earliest.
        if !proven && self.reading != Some(name) && self.unread != Some(shared.now) {
            self.reading = Some(name);
            effects.push(Effect::Prove { snapshot: stays.clone() });
        }
        proven
    }

    /// The reading of a recovery point ended. If the object could not be read, nothing is deleted:
    /// the capture that needed the space fails for now and is tried again later.
    pub(super) fn was_read(
        &mut self,
        around: &mut Around<'_>,
        shared: &Shared,
        snapshot: &SnapshotDesc,
        found: Found,
    ) {
        self.reading.take_if(|name| *name == retention::name(snapshot));
        let gave_up = std::mem::take(&mut self.gave_up);
        match found {
            Found::Unread(why) if !planted("unread_is_whole") => {
                (self.asked, self.unread) = (false, Some(shared.now));
                if let Some(index) = self.need.take().and_then(|need| need.capture) {
                    let why = format!(
                        "no space: an older snapshot may be deleted only after the newest was \
                         read, which failed: {why}"
                    );
                    let failed = CaptureFailed { index, why, postponed: true };
                    around.checkpoints.capture_failed(around.pipeline, failed, shared.now);
                }
                return;
            }
            Found::Whole | Found::Unread(_) => self.note_whole(snapshot, shared.now),
            // The older recovery point that stays instead must be read now; it gets as much time.
            Found::Bad(_) => self.need.iter_mut().for_each(|need| need.since = shared.now),
        }
        self.asked |= shared.space.shortage().is_some();
        if gave_up && self.need.is_none() {
            // The proof that the object is whole holds for a short time only, so the next capture
            // comes now.
            around.checkpoints.wait_no_more();
            let log = around.raw.store();
            let _ = around.checkpoints.capture_here(around.pipeline, log, shared);
        }
    }

    /// Ends the wait of a capture whose reading takes too long; returns that capture.
    pub(super) fn tick(&mut self, shared: &Shared) -> Option<CaptureFailed> {
        let largest = shared.recovery.snapshots.iter().map(|desc| desc.length).max().unwrap_or(0);
        let patience = PATIENCE_TICKS + largest / BYTES_PER_TICK;
        let too_long =
            |need: &mut Need| need.capture.is_some() && shared.now >= need.since + patience;
        let need = self.need.take_if(too_long).filter(|_| !planted("read_for_ever"));
        let index = need.and_then(|need| need.capture)?;
        self.gave_up = true;
        let why = "no space, and the newest snapshot is still being read: its disk is slow";
        Some(CaptureFailed { index, why: why.to_owned(), postponed: true })
    }
}

/// What needs the log or an object besides the recovery points.
pub(super) fn pins(
    raw: &RaftNode,
    outgoing: &Outgoing,
    catch_ups: &CatchUps,
    shared: &Shared,
) -> Pins {
    let (log, raft, policy) = (raw.store(), &raw.raft, &shared.config.snapshot_policy);
    let followers = raft
        .prs()
        .iter()
        .filter(|(id, peer)| raw.is_leader() && **id != raft.id && peer.recent_active)
        .map(|(id, peer)| (ReplicaId(*id), peer.matched));
    Pins {
        sending: outgoing.pins().into_iter().chain(catch_ups.pins(raw, shared)).collect(),
        slowest_follower: followers.min_by_key(|(id, matched)| (*matched, *id)),
        outgrown: log.outgrown(),
        unreadable: log.unreadable(),
        catch_up: policy.catch_up,
        budget: log.within(policy.log_pin_bytes()),
        sent_budget: log.within(catch_ups.log_bytes(policy)),
    }
}

impl Shared {
    /// What has to be given up for space. If snapshots have a disk of their own and one is overdue,
    /// only log is given up.
    fn gives_up(&self) -> Short {
        let shares = self.config.snapshots_share_log_disk;
        let short = self.space.shortage().is_some();
        if self.space.log_is_short() || (shares && short) {
            Short::Disk
        } else if short {
            Short::Log
        } else {
            Short::Nothing
        }
    }
}

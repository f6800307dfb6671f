//! Snapshots at marks: the log names the indexes at which every replica captures.
//!
//! So the objects of one mark are equal on all nodes: any peer can serve any other, a transfer
//! survives a change of leader, and unequal digests at a mark would tell of divergence. A replica
//! that is still capturing when the next mark comes lets that one pass, and so does one that finds
//! no place in time; a failed capture costs nothing but the chance. One that is short of room, or
//! would soon be, does not wait for a mark.

use raft::Storage as _;
use raft::eraftpb::{Entry, EntryType};

use crate::entry::{self, EntryBody, MarkReason, footprint};
use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::hosting::Hosting;
use crate::group::pipeline::Capture;
use crate::group::places::PlaceWait;
use crate::group::ready;
use crate::ids::ReplicaId;
use crate::limits;
use crate::retention::{self, Pins};
use crate::snapshot::{Room, SnapshotDesc, Verified};

/// What has been written since the last mark, and what is being captured.
pub(super) struct Marks {
    /// The last mark's index, or the snapshot this replica started from.
    last: u64,
    handed: u64,
    /// The last entry with commands.
    command: u64,
    bytes: u64,
    /// Entries that may have changed something.
    changes: u64,
    wanted: Option<MarkReason>,
    /// A mark this leader proposed and has not seen come back, by (term, index).
    proposed: Option<(u64, u64)>,
    /// Index of the mark being captured here.
    capturing: Option<u64>,
    /// The tick at which that began, and the ticks that the last one took.
    began: u64,
    took: u64,
    /// Marks that passed while another was being captured, or there was no place.
    skipped: u64,
    failed: u64,
    /// Why the last capture failed; `None` once one succeeded.
    failure: Option<String>,
    /// That was only because of room that is in use.
    postponed: bool,
    /// How the disk stands with the next one, as it was told last.
    room: Option<Room>,
    /// The tick at which the next one became overdue.
    overdue_since: Option<u64>,
    /// The index of a capture that waits for a recovery point to be unlisted.
    waiting_for_room: Option<u64>,
    /// What becomes of a capture that found no place.
    pub(super) place: Option<PlaceWait>,
    /// Captures that failed in a row, and the tick before which no further mark is proposed.
    failed_in_a_row: u32,
    not_before: u64,
}

/// Ticks between a failed capture and the next mark this leader proposes; doubled with each
/// failure.
const RETRY_TICKS: u64 = 10;
/// Doublings of that wait, at most: half a minute, for room may be there again at any time and
/// somebody may be waiting for the snapshot.
const RETRY_DOUBLINGS_MAX: u32 = 5;

impl Marks {
    /// `bytes` are of the log behind the snapshot at `index`, as far as it was handed over.
    pub(super) fn since(index: u64, bytes: u64) -> Self {
        Self {
            // What the log holds behind it is not known.
            changes: 1,
            began: 0,
            took: 0,
            last: index,
            handed: index,
            // What it holds was not looked at.
            command: index + u64::from(bytes > 0),
            bytes,
            wanted: None,
            proposed: None,
            capturing: None,
            skipped: 0,
            failed: 0,
            failure: None,
            postponed: false,
            room: None,
            overdue_since: None,
            waiting_for_room: None,
            place: None,
            failed_in_a_row: 0,
            not_before: 0,
        }
    }

    /// The last mark that passed, or the snapshot that stands in for it.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Whether a mark is on its way through the log, or its snapshot is being taken here.
    pub(super) fn is_under_way(&self) -> bool {
        self.proposed.is_some() || self.capturing.is_some()
    }

    /// Whether one is to come.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether one is on its way through the log.
    pub(super) fn is_proposed(&self) -> bool {
        self.proposed.is_some()
    }

    /// The last mark, if nothing changed since.
    pub(super) fn settled(&self) -> Option<u64> {
        (self.changes == 0 && self.capturing.is_none() && self.last > 0).then_some(self.last)
    }

    /// Ticks until another one is proposed, because captures fail.
    pub(super) fn rests_for(&self, now: u64) -> Option<u64> {
        self.not_before.checked_sub(now).filter(|ticks| *ticks > 0)
    }

    /// Ticks that the last capture took.
    pub(super) fn took(&self) -> u64 {
        self.took
    }

    pub(super) fn want(&mut self, reason: MarkReason) {
        self.wanted.get_or_insert(reason);
    }

    /// Counts a committed entry.
    pub(super) fn passed(&mut self, entry: &Entry) {
        self.handed = entry.index;
        if entry::is_pack(&entry.data) {
            self.command = entry.index;
        }
        self.bytes += footprint(entry) as u64;
        // A leader begins its term with an empty one.
        self.changes += u64::from(!entry.data.is_empty());
        if entry.get_entry_type() == EntryType::EntryNormal && entry::is_mark(&entry.data) {
            self.last = entry.index;
            (self.bytes, self.changes) = (0, 0);
            self.proposed = None;
        }
    }

    /// A mark was committed: whether this replica captures it.
    pub(super) fn begin_capture(&mut self, index: u64, now: u64) -> bool {
        if self.capturing.is_some() {
            self.skipped += 1;
            return false;
        }
        (self.capturing, self.place) = (Some(index), None);
        self.began = now;
        true
    }

    /// A capture failed at tick `now`.
    fn capture_failed(&mut self, index: u64, why: String, postponed: bool, now: u64) {
        if self.capturing == Some(index) {
            self.abandon_capture();
            self.failed += 1;
            (self.failure, self.postponed) = (Some(why), postponed);
            self.not_before = now + (RETRY_TICKS << self.failed_in_a_row);
            self.failed_in_a_row = (self.failed_in_a_row + 1).min(RETRY_DOUBLINGS_MAX);
        }
    }

    /// An installed snapshot stands in for every mark below it; captures queued before it are gone.
    pub(super) fn installed(&mut self, index: u64) {
        self.last = self.last.max(index);
        self.handed = self.handed.max(index);
        (self.bytes, self.changes) = (0, 0);
        self.abandon_capture();
    }

    /// The lane lost its guest, and the capture with it.
    pub(super) fn abandon_capture(&mut self) {
        self.capturing = None;
        self.waiting_for_room = None;
        self.place = None;
    }

    /// The last entry with commands, if it is behind the last mark.
    pub(super) fn unmarked(&self) -> Option<u64> {
        Some(self.command).filter(|index| *index > self.last)
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.capturing.is_some()
    }

    pub(super) fn is_capturing_at(&self, index: u64) -> bool {
        self.capturing == Some(index)
    }

    /// The tick at which the capture under way was due.
    pub(super) fn began(&self) -> u64 {
        self.began
    }

    /// The capture under way found no place for too long; what failed before still counts.
    pub(super) fn gave_up_for_a_place(&mut self, why: String) {
        self.skipped += u64::from(self.capturing == Some(self.last));
        self.abandon_capture();
        if !self.fails() {
            (self.failure, self.postponed) = (Some(why), true);
        }
    }

    /// How the disk stands with the next snapshot, if that is known.
    pub(super) fn room(&self) -> Option<Room> {
        self.room
    }

    pub(super) fn told_of_room(&mut self, room: Room) {
        self.room = Some(room);
    }

    /// Since when the next one is overdue.
    pub(super) fn overdue_since(&mut self, overdue: bool, now: u64) -> Option<u64> {
        self.overdue_since = self.overdue_since.or(Some(now)).filter(|_| overdue);
        self.overdue_since
    }

    /// Why the last capture failed.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether the last capture failed, and not only for now.
    pub(super) fn fails(&self) -> bool {
        self.failure.is_some() && !self.postponed
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.skipped, self.failed)
    }

    /// Whether a mark is due, `patience` times later than usual.
    fn due(&self, shared: &Shared, patience: u64) -> Option<MarkReason> {
        let policy = shared.config.snapshot_policy;
        let entries = policy.entries.saturating_mul(patience);
        let bytes = policy.log_bytes.saturating_mul(patience);
        self.wanted
            .or_else(|| (self.handed - self.last >= entries).then_some(MarkReason::Entries))
            .or_else(|| (self.bytes >= bytes).then_some(MarkReason::LogBytes))
    }
}

impl Hosting {
    /// A leader proposes a mark when one is due; a follower in need of a snapshot makes one due.
    pub(super) fn tick_marks(&mut self, shared: &mut Shared) {
        if !self.is_leader() {
            self.marks.proposed = None;
            return;
        }
        let term = self.raw.raft.term;
        let under_way = self.marks.proposed.is_some_and(|(proposed, _)| proposed == term);
        let too_soon = shared.now < self.marks.not_before;
        if under_way || too_soon || self.marks.capturing.is_some() {
            return;
        }
        if self.raw.store().take_wanted_snapshot().is_some() {
            self.marks.want(MarkReason::Learner);
        }
        // A snapshot on its way stays of use the longer, the later the next one comes.
        let patience = if self.outgoing.is_busy() { limits::MARK_PATIENCE } else { 1 };
        let Some(reason) = self.marks.due(shared, patience) else { return };
        let body = EntryBody::Mark { time_ms: shared.stamp(), reason };
        if let Some((index, term)) = self.propose(&body) {
            self.marks.proposed = Some((term, index));
            self.marks.wanted = None;
        }
    }

    /// The guest wrote a local snapshot, and goes on.
    pub(super) fn capture_written(&mut self, shared: &mut Shared, index: u64) {
        self.pipeline.captured(index);
        // From here on and not from a common beginning: groups that took turns stay apart.
        shared.tries_at = shared.now + limits::SHORT_CAPTURE_TICKS;
    }

    /// A local snapshot is whole: list it and cut the log, unless an installed one overtook it.
    pub(super) fn captured(
        &mut self,
        shared: &mut Shared,
        snapshot: Verified,
        effects: &mut Vec<Effect>,
    ) {
        let Verified { desc, hold } = snapshot;
        if self.marks.capturing == Some(desc.index) {
            self.marks.capturing = None;
            self.marks.took = shared.now - self.marks.began;
        }
        self.marks.failed_in_a_row = 0;
        self.marks.failure = None;
        self.rebuilds.captured(&desc, shared.memory);
        self.proof.is_whole(&desc, shared.now);
        if shared.recovery.newest().is_some_and(|newest| newest.index >= desc.index) {
            return;
        }
        let (pins, rotten) = (self.pins(shared), self.wants.rotten());
        let plan = match shared.keeps_one() {
            true => retention::plan_alone(&shared.recovery, desc, &pins),
            false => retention::plan(&shared.recovery, desc, &pins, rotten),
        };
        ready::list_local(self, shared, plan, Some(hold), effects);
    }

    /// A snapshot finds room only without `unlist`: it goes if it may, once what stays was read.
    pub(super) fn room_wanted(
        &mut self,
        shared: &mut Shared,
        unlist: &SnapshotDesc,
        capture: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(gone) = capture.filter(|index| self.marks.capturing != Some(*index)) {
            return self.pipeline.captured(gone);
        }
        // Until the newest one proved good the others are needed.
        let plan = match self.pipeline.is_reading() {
            true => None,
            false => {
                retention::unlist(&shared.recovery, unlist, &self.pins(shared), self.wants.rotten())
            }
        };
        match (plan, capture) {
            (Some(_), _) if !self.is_proven(shared, effects) => self.proof.wait(unlist, capture),
            (Some(plan), _) => {
                self.marks.waiting_for_room = capture.or(self.marks.waiting_for_room);
                ready::list_local(self, shared, plan, None, effects);
            }
            (None, Some(index)) => {
                let why = format!("no room, and the recovery point at {} stays", unlist.index);
                self.capture_failed(shared, index, why, false);
            }
            (None, None) => {}
        }
    }

    pub(super) fn capture_failed(
        &mut self,
        shared: &Shared,
        index: u64,
        why: String,
        postponed: bool,
    ) {
        self.pipeline.captured(index);
        self.marks.capture_failed(index, why, postponed, shared.now);
    }

    /// Captures where this replica is now, between two marks: the log has to be cut before it takes
    /// the room for that, or behind what is damaged. False if it does not.
    pub(super) fn capture_here(&mut self, shared: &Shared) -> bool {
        let index = shared.recovery.floor;
        let newest = shared.recovery.newest().map_or(0, |desc| desc.index);
        let waits = self.marks.capturing.is_some()
            || shared.now < self.marks.not_before
            || self.marks.asks_later(shared.now);
        if waits || index <= newest || !self.pipeline.captures() {
            return false;
        }
        let Ok(term) = self.raw.store().term(index) else { return false };
        self.marks.begin_capture(index, shared.now);
        self.push_capture(shared, term, index);
        true
    }

    /// Has the lane capture at `index`, which is where it gets to next.
    pub(super) fn push_capture(&mut self, shared: &Shared, term: u64, index: u64) {
        let newest = shared.recovery.newest().map_or(0, |desc| desc.index);
        let gain = self.raw.store().bytes_between(newest, index);
        let configuration = shared.recovery.configuration.clone();
        self.pipeline.push_capture(Capture { term, index, configuration, gain });
    }

    /// The store lane was told what is listed: a capture that waits for that is tried again.
    pub(super) fn retry_capture(&mut self, effects: &mut Vec<Effect>) {
        if let Some(index) = self.marks.waiting_for_room.take() {
            self.pipeline.capture_again(index, effects);
        }
    }

    pub(super) fn pins(&self, shared: &Shared) -> Pins {
        let raft = &self.raw.raft;
        let followers = raft
            .prs()
            .iter()
            .filter(|(id, peer)| self.is_leader() && **id != raft.id && peer.recent_active)
            .map(|(id, peer)| (ReplicaId(*id), peer.matched));
        Pins {
            sending: self.outgoing.pins().into_iter().chain(self.catching_up(shared)).collect(),
            slowest_follower: followers.min_by_key(|(id, matched)| (*matched, *id)),
            outgrown: self.raw.store().outgrown(),
            unreadable: self.raw.store().unreadable(),
            catch_up: self.catch_up,
            budget: self.raw.store().within(self.log_pin_bytes),
            sent_budget: self.raw.store().within(self.catch_up_bytes()),
        }
    }
}

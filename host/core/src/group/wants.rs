//! Objects that this replica asks its peers for, and those that peers ask it for.
//!
//! A listed object that turned out *corrupt* is asked for by its name: the objects of one
//! checkpoint are equal on all nodes, so a peer's copy repairs it. A replica with no recovery point
//! that restores *needs* any object within its log; until one arrives it votes and appends, but
//! applies nothing. raft takes no part in either.
//!
//! - Peers are asked one after the other: at once when there is something new to ask for, and at
//!   growing intervals while no peer has it.
//! - A replica that needs any object also tries its own again, because what it could not read once
//!   may be readable now: see [`super::retry`].
//! - A leader that does not have the object either makes a checkpoint, whose object takes its
//!   place. It makes one for each replica and object, and another only if that checkpoint's
//!   snapshot failed here.
//! - If that checkpoint's snapshot failed on the replica that asks, it captures one by itself after
//!   it has asked all peers several times in vain.

use std::collections::BTreeMap;

use raft::Storage as _;

use crate::entry::CheckpointReason;
use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::frame::Body;
use crate::group::hosting::Hosting;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::recovery_state::RecoveryState;
use crate::retention;
use crate::snapshot::chunk::{ObjectRef, Want};
use crate::snapshot::{SnapshotDesc, Verified};

/// The way out for a group of one.
const NOBODY_TO_ASK: &str = "there is no peer to ask for a snapshot, so this replica tries its own \
    again; if that does not help, restore this group's files from a copy, or remove the group from \
    the configuration and give it up with `lockstep group drop`";

/// How often all peers are asked for a corrupt object before the replica captures a snapshot
/// itself.
const ROUNDS_IN_VAIN: u32 = 3;

#[derive(Default)]
pub(super) struct Wants {
    /// Why no recovery point restores.
    needs: Option<String>,
    /// The last request.
    asked: Option<Asked>,
    /// The peer that was asked last, by its place among the peers.
    turn: usize,
    /// An object that ends the need is being listed.
    listing: bool,
    /// The index of the newest object that could not be restored.
    lacked: u64,
    /// What this leader made checkpoints for, by the replica that asked, and the newest snapshot
    /// that was listed here at that time.
    checkpoints: BTreeMap<ReplicaId, (About, u64)>,
}

struct Asked {
    want: Want,
    about: About,
    /// The tick of the last request, and how many there were.
    at: u64,
    times: u32,
}

/// What tells one need from another: the lowest index, the object, and for a need of any object the
/// last checkpoint, because its object is a further one to ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct About {
    low: u64,
    exactly: Option<ObjectRef>,
    checkpoint: u64,
}

impl About {
    fn of(want: &Want, checkpoint: u64) -> Self {
        let Want { low, exactly, .. } = *want;
        Self { low, exactly, checkpoint: exactly.map_or(checkpoint, |_| 0) }
    }
}

impl Asked {
    /// How often all peers had been asked before the last request.
    fn rounds(&self, peers: usize) -> u32 {
        self.times.saturating_sub(1) / u32::try_from(peers.max(1)).unwrap_or(u32::MAX)
    }

    /// The tick of the next request; the interval grows each time all peers were asked.
    fn next(&self, peers: usize) -> u64 {
        let rounds = if planted("ask_without_end") { 0 } else { self.rounds(peers) };
        self.at + (limits::WANT_RETRY_TICKS << rounds.min(limits::WANT_RETRY_DOUBLINGS_MAX))
    }
}

impl Wants {
    pub(super) fn needs(&self) -> Option<&str> {
        self.needs.as_deref()
    }

    /// The current request, by which offers are judged.
    pub(super) fn asked(&self) -> Option<Want> {
        self.asked.as_ref().map(|asked| asked.want)
    }

    /// There is a guest, or a snapshot to build one from. Returns whether one was needed.
    pub(super) fn met(&mut self) -> bool {
        (self.asked, self.listing) = (None, false);
        self.needs.take().is_some()
    }

    /// The guest is built again from what this replica has. What is being listed is part of that.
    pub(super) fn tries(&mut self, state: &RecoveryState) {
        self.lacked = state.snapshots.first().map_or(0, |desc| desc.index);
    }

    /// The guest failed for good. A snapshot that is being listed still takes the replica further.
    pub(super) fn guest_failed(&mut self) {
        (self.asked, self.needs) = (None, None);
    }

    /// The next leader makes its own checkpoints.
    pub(super) fn stepped_down(&mut self) {
        self.checkpoints.clear();
    }
}

impl Hosting {
    /// There is no guest and nothing to build one from: requests that wait cannot be answered here.
    fn needs_snapshot(
        &mut self,
        shared: &mut Shared,
        tried: u64,
        why: String,
        effects: &mut Vec<Effect>,
    ) {
        let alone = shared.recovery.configuration.replicas().all(|id| id == shared.me());
        self.wants.needs = Some(if alone {
            format!("{NOBODY_TO_ASK}: {why}")
        } else {
            format!("asking the peers for a snapshot: {why}")
        });
        self.wants.lacked = tried;
        if !planted("rely_on_peers") {
            self.retry.failed(shared.now);
        }
        self.pipeline.wait_for_snapshot();
        self.checkpoints.abandon_capture();
        self.settle_state(shared, effects);
        self.refuse_everything(shared, effects);
    }

    /// Asks one peer after the other for what this replica needs.
    pub(super) fn tick_wants(&mut self, shared: &Shared, effects: &mut Vec<Effect>) {
        let want = self.want(shared).filter(|_| !planted("never_ask"));
        let Some(want) = want else {
            self.wants.asked = None;
            return;
        };
        let me = shared.me();
        let mut peers: Vec<ReplicaId> =
            shared.recovery.configuration.replicas().filter(|id| *id != me).collect();
        peers.sort_unstable();
        peers.dedup();
        let about = About::of(&want, self.checkpoints.last());
        let before = self.wants.asked.as_ref().filter(|asked| asked.about == about);
        if before.is_some_and(|asked| shared.now < asked.next(peers.len())) {
            return;
        }
        let times = before.map_or(0, |asked| asked.times);
        let in_vain = want.exactly.is_some()
            && before.is_some_and(|asked| asked.rounds(peers.len()) >= ROUNDS_IN_VAIN);
        if times > 0 && self.wants.needs.is_none() {
            // It may be that no peer has the object any more.
            self.checkpoint_for(me, &want, shared.now);
        }
        if in_vain {
            let _ = self.capture_here(shared);
        }
        self.wants.asked = Some(Asked { want, about, at: shared.now, times: times + 1 });
        if peers.is_empty() {
            return;
        }
        self.wants.turn = (self.wants.turn + 1) % peers.len();
        let peer = peers[self.wants.turn];
        shared.send(peer.node(), Some(peer), Body::Want(want), effects);
    }

    fn want(&self, shared: &Shared) -> Option<Want> {
        if self.wants.listing {
            return None;
        }
        if let Some(want) = self.need(shared) {
            return Some(want);
        }
        let (term, index, digest) = *self.retention.corrupt().last()?;
        let exactly = Some(ObjectRef { term, index, digest });
        Some(Want { low: index, high: index, exactly })
    }

    /// A need of any object that the log here continues from, because there is no guest to go on
    /// with.
    fn need(&self, shared: &Shared) -> Option<Want> {
        let least = match self.applied_elsewhere(shared) {
            Some(entry) => entry,
            None if self.wants.needs.is_some() => 1,
            None => return None,
        };
        let readable = shared.recovery.first_index.max(self.raw.store().unreadable());
        let low = if planted("need_below_the_log") { least } else { least.max(readable - 1) };
        // A snapshot above the floor would cut entries that raft has not handed over yet.
        Some(Want { low, high: shared.recovery.floor, exactly: None })
    }

    /// A peer asks for an object.
    pub(super) fn asked_for(
        &mut self,
        from: ReplicaId,
        want: Want,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        let serves = |desc: &&SnapshotDesc| want.fits(desc) && !self.retention.is_corrupt(desc);
        let found = self.raw.store().listed().iter().find(serves).cloned();
        match found {
            Some(snapshot) => self.outgoing.serve(from, snapshot, effects),
            None => self.checkpoint_for(from, &want, now),
        }
    }

    /// Makes a checkpoint for an object that is not here. Every log that reaches the checkpoint
    /// holds its index, so its object will do.
    fn checkpoint_for(&mut self, replica: ReplicaId, want: &Want, now: u64) {
        if !self.is_leader() || self.checkpoints.is_under_way(now) {
            return;
        }
        let newest = self.raw.store().listed().first().map_or(0, |desc| desc.index);
        let about = About::of(want, 0);
        let done = |(of, then): &(About, u64)| *of == about && *then != newest;
        if self.wants.checkpoints.get(&replica).is_some_and(done)
            && !planted("checkpoint_for_each_want")
        {
            return;
        }
        self.wants.checkpoints.insert(replica, (about, newest));
        self.checkpoints.want(CheckpointReason::Learner);
    }

    /// An object arrived, sealed and read back: a repair, one that is needed, or one for raft.
    pub(super) fn received(
        &mut self,
        shared: &mut Shared,
        snapshot: Verified,
        effects: &mut Vec<Effect>,
    ) {
        let object = ObjectRef::of(&snapshot.desc);
        if self.retention.is_repaired(&snapshot.desc) {
            self.wants.asked = None;
            effects.push(Effect::Judged { object, taken: true });
            if self.wants.needs.is_some() {
                self.restart(shared, effects);
            }
        } else if self.is_needed(shared, &snapshot.desc) {
            effects.push(Effect::Judged { object, taken: true });
            // It is listed, and the replica starts from it once that is durable.
            self.wants.listing = true;
            self.retention.add(snapshot);
        } else {
            self.installs.received(snapshot, effects);
        }
    }

    /// Whether a replica that needs a snapshot can go on from this one, which it did not take
    /// itself.
    fn is_needed(&self, shared: &Shared, desc: &SnapshotDesc) -> bool {
        self.need(shared).is_some_and(|want| want.fits(desc))
            && self.raw.store().term(desc.index).is_ok_and(|term| term == desc.term)
    }

    /// A list became durable: if it holds the object that was needed, the replica starts from it.
    /// It may be one of its own, that was not listed yet when the guest was lost.
    pub(super) fn list_is_durable(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        let needs = self.wants.needs.is_some() && !planted("wait_for_a_peers_snapshot");
        if self.wants.listing || (needs && self.newest_listed() > self.wants.lacked) {
            self.restart(shared, effects);
        }
    }

    /// The index of the newest object that the log durably lists and that is not corrupt; 0 if
    /// there is none.
    fn newest_listed(&self) -> u64 {
        let newest = retention::newest_good(self.raw.store().listed(), self.retention.corrupt());
        newest.map_or(0, |desc| desc.index)
    }

    /// A build found no recovery point that restores; `tried` is the newest one that it knew of.
    pub(super) fn cannot_restore(
        &mut self,
        shared: &mut Shared,
        (build, tried): (u64, u64),
        why: String,
        effects: &mut Vec<Effect>,
    ) {
        if !self.pipeline.ended(build) {
            return;
        }
        self.tell_list(effects);
        if self.pipeline.is_halted() {
            // It stood before the entry that halted it, and a query took its guest.
            self.stands(shared, None, effects);
        } else if self.pipeline.is_restoring() {
            // A newer snapshot is being installed anyway.
        } else if self.newest_listed() > tried && !planted("wait_for_a_peers_snapshot") {
            // A newer one was listed meanwhile.
            self.restart(shared, effects);
        } else {
            self.needs_snapshot(shared, tried, why, effects);
        }
    }

    /// The lane has no guest. If a snapshot is being installed, the guest comes from that;
    /// otherwise the list changed during the rebuild, which begins again with what is listed now.
    pub(super) fn overtaken(&mut self, shared: &mut Shared, build: u64, effects: &mut Vec<Effect>) {
        if self.pipeline.ended(build) && !self.pipeline.is_restoring() {
            self.restart(shared, effects);
        }
    }

    /// A build ended with a guest that has applied everything up to this index.
    pub(super) fn has_guest(
        &mut self,
        shared: &mut Shared,
        (build, applied): (u64, u64),
        time_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.pipeline.progressed(applied, 0);
        if !self.pipeline.ended(build) {
            return;
        }
        shared.log_time.applied(time_ms);
        self.wants.met();
        self.retry.over();
        self.rebuilds.is_over(shared);
        self.tell_list(effects);
        self.settle_state(shared, effects);
    }

    /// Rebuilds the guest up to the floor.
    pub(super) fn restart(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        self.wants.met();
        self.build(shared, effects);
        self.settle_state(shared, effects);
    }

    pub(super) fn build(&mut self, shared: &Shared, effects: &mut Vec<Effect>) {
        self.checkpoints.abandon_capture();
        // The rebuild applies these entries, but produces no answers.
        self.pass(shared.recovery.floor, effects);
        self.pipeline.start_again(&shared.recovery, effects);
    }
}

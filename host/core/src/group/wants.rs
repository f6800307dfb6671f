//! Objects that this replica needs from whoever has them, and those that others ask it for.
//!
//! A listed object that turned out *rotten* is asked for as it was: objects of one mark are equal
//! on all nodes, so a peer's copy repairs it. A replica none of whose recovery points restores
//! *needs* any object within its log; until one came it votes and appends, and applies nothing.
//! raft takes no part in either.
//!
//! - Peers are asked one after the other, at once whenever there is something new to ask for, and
//!   ever more seldom while nobody has it.
//! - A leader that has it neither makes a mark, whose object takes its place: one for each replica
//!   and object, unless that mark's snapshot failed here.
//! - Where that mark's snapshot failed on the replica that asked, it takes one by itself, once it
//!   has asked everybody some times in vain.

use std::collections::{BTreeMap, BTreeSet};

use raft::Storage as _;

use crate::entry::MarkReason;
use crate::group::Shared;
use crate::group::effect::{ApplyJob, Effect};
use crate::group::frame::Body;
use crate::group::hosting::Hosting;
use crate::group::ready;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::retention::{self, ObjectName};
use crate::snapshot::chunk::{ObjectRef, Want};
use crate::snapshot::{SnapshotDesc, Verified};

/// The way out of a group of one.
const NOBODY_TO_ASK: &str = "there is no peer to ask for a snapshot; restart the node if its disk \
    is well again, put this \
     group's files back from a copy, or take it out of the configuration and give it up with \
     `lockstep group drop`";

/// How often everybody is asked for a rotten object before a snapshot of one's own takes its place.
const ROUNDS_IN_VAIN: u32 = 3;

#[derive(Default)]
pub(super) struct Wants {
    /// Listed objects that are not what they were.
    rotten: BTreeSet<ObjectName>,
    /// Why no recovery point restores.
    needs: Option<String>,
    /// What was last asked for.
    asked: Option<Asked>,
    /// Whose turn it is to be asked.
    turn: usize,
    /// An object that ends the need is being listed.
    listing: bool,
    /// What this leader made marks for, by who asked, and the newest snapshot that was listed here
    /// then.
    marked: BTreeMap<ReplicaId, (About, u64)>,
}

struct Asked {
    want: Want,
    about: About,
    /// The last request, and how many there were.
    at: u64,
    times: u32,
}

/// What tells one need from another: the least index, the object, and for a need of any object the
/// last mark, whose object is one more to ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct About {
    low: u64,
    exactly: Option<ObjectRef>,
    mark: u64,
}

impl About {
    fn of(want: &Want, mark: u64) -> Self {
        let Want { low, exactly, .. } = *want;
        Self { low, exactly, mark: exactly.map_or(mark, |_| 0) }
    }
}

impl Asked {
    /// How often everybody was asked, but for the last request.
    fn rounds(&self, peers: usize) -> u32 {
        self.times.saturating_sub(1) / u32::try_from(peers.max(1)).unwrap_or(u32::MAX)
    }

    /// The tick of the next request: later and later once all peers were asked.
    fn next(&self, peers: usize) -> u64 {
        let rounds = if planted("ask_without_end") { 0 } else { self.rounds(peers) };
        self.at + (limits::WANT_RETRY_TICKS << rounds.min(limits::WANT_RETRY_DOUBLINGS_MAX))
    }
}

impl Wants {
    pub(super) fn rotten(&self) -> &BTreeSet<ObjectName> {
        &self.rotten
    }

    pub(super) fn needs(&self) -> Option<&str> {
        self.needs.as_deref()
    }

    /// What an offer is judged by.
    pub(super) fn asked(&self) -> Option<Want> {
        self.asked.as_ref().map(|asked| asked.want)
    }

    /// Only what is listed can be rotten.
    pub(super) fn listed(&mut self, listed: &[SnapshotDesc]) {
        self.rotten.retain(|name| listed.iter().any(|desc| retention::name(desc) == *name));
    }

    /// There is a snapshot to build a guest from, or a guest. Returns whether one was needed.
    pub(super) fn met(&mut self) -> bool {
        (self.asked, self.listing) = (None, false);
        self.needs.take().is_some()
    }

    /// Whoever leads now makes marks of its own.
    pub(super) fn stepped_down(&mut self) {
        self.marked.clear();
    }
}

impl Hosting {
    pub(super) fn found_rotten(&mut self, shared: &Shared, snapshot: &SnapshotDesc) {
        match shared.recovery.snapshots.contains(snapshot) {
            true => drop(self.wants.rotten.insert(retention::name(snapshot))),
            false => self.promise_rotted(snapshot),
        }
    }

    /// There is no guest and nothing to build one from: what waits cannot be answered here.
    pub(super) fn needs_snapshot(
        &mut self,
        shared: &mut Shared,
        why: String,
        effects: &mut Vec<Effect>,
    ) {
        if self.pipeline.is_superseded() {
            // A newer snapshot is being installed anyway.
            return self.pipeline.give_up_rebuilding();
        }
        let alone = shared.recovery.configuration.replicas().all(|id| id == shared.me());
        self.wants.needs = Some(match alone {
            true => format!("{NOBODY_TO_ASK}: {why}"),
            false => format!("asking the peers for a snapshot: {why}"),
        });
        self.wants.listing = false;
        self.pipeline.wait_for_snapshot();
        self.marks.abandon_capture();
        self.settle_state(shared, effects);
        self.refuse_everything(shared, effects);
    }

    /// Asks one peer after the other for what is needed.
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
        let about = About::of(&want, self.marks.last());
        let before = self.wants.asked.as_ref().filter(|asked| asked.about == about);
        if before.is_some_and(|asked| shared.now < asked.next(peers.len())) {
            return;
        }
        let times = before.map_or(0, |asked| asked.times);
        let in_vain = want.exactly.is_some()
            && before.is_some_and(|asked| asked.rounds(peers.len()) >= ROUNDS_IN_VAIN);
        if times > 0 && self.wants.needs.is_none() {
            // Perhaps nobody has it any more.
            self.mark_for(me, &want);
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
        let (term, index, digest) = *self.wants.rotten.last()?;
        let exactly = Some(ObjectRef { term, index, digest });
        Some(Want { low: index, high: index, exactly })
    }

    /// Any object that the log here goes on from would do: there is no guest to go on with.
    fn need(&self, shared: &Shared) -> Option<Want> {
        let least = match self.applied_elsewhere(shared) {
            Some(entry) => entry,
            None if self.wants.needs.is_some() => 1,
            None => return None,
        };
        let readable = shared.recovery.first_index.max(self.raw.store().unreadable());
        let low = match planted("need_below_the_log") {
            true => least,
            false => least.max(readable - 1),
        };
        // What raft has not handed over yet must not be cut off the log under it.
        Some(Want { low, high: shared.recovery.floor, exactly: None })
    }

    /// A peer asks for an object.
    pub(super) fn asked_for(&mut self, from: ReplicaId, want: Want, effects: &mut Vec<Effect>) {
        let rotten = &self.wants.rotten;
        let serves =
            |desc: &&SnapshotDesc| want.fits(desc) && !rotten.contains(&retention::name(desc));
        let found = self.raw.store().listed().iter().find(serves).cloned();
        match found {
            Some(snapshot) => self.outgoing.serve(from, snapshot, effects),
            None => self.mark_for(from, &want),
        }
    }

    /// What a replica wants is not here: a new mark's object lies in every log that reaches it.
    fn mark_for(&mut self, replica: ReplicaId, want: &Want) {
        if !self.is_leader() || self.marks.is_under_way() {
            return;
        }
        let newest = self.raw.store().listed().first().map_or(0, |desc| desc.index);
        let about = About::of(want, 0);
        let done = |(of, then): &(About, u64)| *of == about && *then != newest;
        if self.wants.marked.get(&replica).is_some_and(done) && !planted("mark_for_each_want") {
            return;
        }
        self.wants.marked.insert(replica, (about, newest));
        self.marks.want(MarkReason::Learner);
    }

    /// Something arrived, sealed and read back: a repair, what is needed, or raft's.
    pub(super) fn received(
        &mut self,
        shared: &mut Shared,
        snapshot: Verified,
        effects: &mut Vec<Effect>,
    ) {
        let object = ObjectRef::of(&snapshot.desc);
        let repairs = self.wants.rotten.contains(&retention::name(&snapshot.desc));
        if repairs {
            self.wants.rotten.remove(&retention::name(&snapshot.desc));
            self.wants.asked = None;
            effects.push(Effect::Judged { object, taken: true });
            if self.wants.needs.is_some() {
                self.restart(shared, effects);
            }
        } else if self.is_needed(shared, &snapshot.desc) {
            effects.push(Effect::Judged { object, taken: true });
            self.list_needed(shared, snapshot, effects);
        } else {
            self.installs.received(snapshot, effects);
        }
    }

    /// Whether an object that this replica did not take itself lets it go on.
    fn is_needed(&self, shared: &Shared, desc: &SnapshotDesc) -> bool {
        self.need(shared).is_some_and(|want| want.fits(desc))
            && self.raw.store().term(desc.index).is_ok_and(|term| term == desc.term)
    }

    /// Lists an object that this replica did not take, and starts from it once that is durable.
    fn list_needed(&mut self, shared: &mut Shared, snapshot: Verified, effects: &mut Vec<Effect>) {
        let Verified { desc, hold } = snapshot;
        self.wants.listing = true;
        let plan = retention::plan(&shared.recovery, desc, &self.pins(shared), &self.wants.rotten);
        ready::list_local(self, shared, plan, Some(hold), effects);
    }

    /// What is listed became durable: a need that it ends is over.
    pub(super) fn list_is_durable(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        if self.wants.listing {
            self.restart(shared, effects);
        }
    }

    /// The lane has no guest. If a snapshot is being installed that one brings it; else the list
    /// changed under the rebuild, and it begins with what is listed now.
    pub(super) fn overtaken(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        match self.pipeline.is_superseded() {
            true => self.pipeline.give_up_rebuilding(),
            false => self.restart(shared, effects),
        }
    }

    /// A start or a restore came to its end: there is a guest.
    pub(super) fn has_guest(
        &mut self,
        shared: &mut Shared,
        time_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        shared.log_time.applied(time_ms);
        self.rebuilds.is_over(shared);
        self.tell_list(effects);
        self.settle_state(shared, effects);
    }

    /// Builds the guest anew, up to what was handed over.
    pub(super) fn restart(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        self.wants.met();
        let state = shared.recovery.clone();
        self.marks.abandon_capture();
        self.pipeline.start_again(state.floor);
        // The rebuild applies these, and has answers for nobody.
        self.pass(state.floor, effects);
        let (build, state) = (self.pipeline.build(), Box::new(state));
        effects.push(Effect::Apply(ApplyJob::Start { build, state }));
        self.settle_state(shared, effects);
    }
}

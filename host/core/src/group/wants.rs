//! Objects that this replica asks its peers for, and those that peers ask it for.
//!
//! A listed object that turned out *corrupt* is asked for by its name: the objects of one
//! checkpoint are equal on all nodes, so a peer's copy repairs it. A replica with no recovery point
//! that restores *needs* any object within its log; until one arrives it votes and appends, but
//! applies nothing. A replica that halted at an entry which another one applied needs one taken at
//! or after that entry. raft takes part in none of this.
//!
//! - Peers are asked one after the other: at once when there is something new to ask for, and at
//!   growing intervals while no peer has it.
//! - A replica that needs any object also tries its own again, because what it could not read once
//!   may be readable now: see [`super::retry`].
//! - A leader that does not have the object either makes a checkpoint, whose object takes its
//!   place. It makes one for each replica and object, and others, at growing intervals, only if
//!   that checkpoint's snapshot failed here.
//! - If that checkpoint's snapshot failed on the replica that asks, it captures one by itself after
//!   it has asked all peers several times in vain.

use std::collections::{BTreeMap, BTreeSet};

use raft::Storage as _;

use crate::entry::CheckpointReason;
use crate::fault::Fault;
use crate::group::Shared;
use crate::group::checkpoint::Checkpoints;
use crate::group::effect::Effect;
use crate::group::frame::Body;
use crate::group::guest::Missing;
use crate::group::halt;
use crate::group::pipeline::Pipeline;
use crate::group::raft_log::RaftLog;
use crate::group::raft_node::RaftNode;
use crate::group::space::Concerns;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::retention::{self, ObjectName};
use crate::snapshot::chunk::{ObjectRef, Want};
use crate::snapshot::{SnapshotDesc, Verified};

/// What an operator of a group of one can do when no recovery point restores.
const NOBODY_TO_ASK: &str = "there is no peer to ask for a snapshot, so this replica tries its own \
    snapshots and log again; if that does not help, restore this group's files from a copy, or \
    remove the group from the configuration and give it up with `lockstep group drop`";

/// How often all peers are asked for a corrupt object before the replica captures a snapshot
/// itself.
const ROUNDS_IN_VAIN: u32 = 3;

#[derive(Default)]
pub(super) struct Wants {
    /// The last request.
    asked: Option<Asked>,
    /// The peer that was asked last, by its place among the peers.
    turn: usize,
    /// An object that ends the need is being listed.
    listing: bool,
    /// What this leader made checkpoints for, by the replica that asked.
    checkpoints: BTreeMap<ReplicaId, Made>,
}

/// Ticks until the next try after `in_vain` tries.
fn interval(in_vain: u32) -> u64 {
    limits::WANT_RETRY_TICKS << in_vain.min(limits::WANT_RETRY_DOUBLINGS_MAX)
}

/// A checkpoint that was made for an object.
struct Made {
    about: About,
    /// The newest snapshot that was listed here at that time.
    newest: u64,
    /// The tick of the last checkpoint for the object, and how many there were.
    at: u64,
    times: u32,
}

impl Made {
    /// Whether another checkpoint is of no use now: the snapshot of the last one is listed here, or
    /// the last one is too recent. Only a newer snapshot that is not too old is that snapshot:
    /// others may have been received from a peer.
    fn suffices(&self, want: &Want, newest: u64, now: u64) -> bool {
        now < self.at + interval(self.times) || (newest != self.newest && newest >= want.low)
    }
}

struct Asked {
    want: Want,
    about: About,
    /// The tick of the last request, and how many there were.
    at: u64,
    times: u32,
}

/// What tells one need from another: the lowest index, the object, and for a need of any object the
/// last checkpoint, because its snapshot is another object to ask for.
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
        self.at + interval(rounds)
    }
}

impl Wants {
    /// The current request, by which offers are judged.
    pub(super) fn asked(&self) -> Option<Want> {
        self.asked.as_ref().map(|asked| asked.want)
    }

    /// There is a guest, or a snapshot to build one from.
    pub(super) fn met(&mut self) {
        (self.asked, self.listing) = (None, false);
    }

    /// The guest failed for good. Asking ends, but a snapshot that is being listed still lets the
    /// replica go on.
    pub(super) fn guest_failed(&mut self) {
        self.asked = None;
    }

    /// The next leader makes its own checkpoints.
    pub(super) fn stepped_down(&mut self) {
        self.checkpoints.clear();
    }

    /// Asks one peer after the other for what this replica needs.
    pub(super) fn tick(&mut self, concerns: &mut Concerns<'_>, shared: &Shared) {
        let want = self.want(concerns, shared).filter(|_| !planted("never_ask"));
        let Some(want) = want else {
            self.asked = None;
            return;
        };
        let me = shared.me();
        let mut peers: Vec<ReplicaId> =
            shared.recovery.configuration.replicas().filter(|id| *id != me).collect();
        peers.sort_unstable();
        peers.dedup();
        let about = About::of(&want, concerns.checkpoints.last());
        let before = self.asked.as_ref().filter(|asked| asked.about == about);
        if before.is_some_and(|asked| shared.now < asked.next(peers.len())) {
            return;
        }
        let times = before.map_or(0, |asked| asked.times);
        let in_vain = want.exactly.is_some()
            && before.is_some_and(|asked| asked.rounds(peers.len()) >= ROUNDS_IN_VAIN);
        if times > 0 && concerns.pipeline.missing().is_none() {
            // It may be that no peer has the object any more.
            self.checkpoint_for(concerns.raw, concerns.checkpoints, me, &want, shared.now);
        }
        if in_vain {
            let _ = concerns.capture_here(shared);
        }
        self.asked = Some(Asked { want, about, at: shared.now, times: times + 1 });
        if peers.is_empty() {
            return;
        }
        self.turn = (self.turn + 1) % peers.len();
        let peer = peers[self.turn];
        shared.send(peer.node(), Some(peer), Body::Want(want), concerns.effects);
    }

    fn want(&self, concerns: &Concerns<'_>, shared: &Shared) -> Option<Want> {
        if self.listing {
            return None;
        }
        if let Some(want) = Self::any_want(concerns, shared) {
            return Some(want);
        }
        if shared.recovery.diverged > 0 {
            // No peer has this replica's objects, and they are evidence.
            return None;
        }
        let (term, index, digest) = *concerns.retention.corrupt().last()?;
        let exactly = Some(ObjectRef { term, index, digest });
        Some(Want { low: index, high: index, exactly })
    }

    /// A need of any object that the log here continues from, because there is no guest to go on
    /// with.
    fn any_want(concerns: &Concerns<'_>, shared: &Shared) -> Option<Want> {
        let halt = concerns.pipeline.halt();
        let least = match halt::applied_elsewhere(concerns.pipeline) {
            Some(entry) => entry,
            None if let Some(Fault::Diverged { index, repairing: true }) =
                halt.map(|halt| &halt.fault) =>
            {
                *index
            }
            None if concerns.pipeline.missing().is_some() => 1,
            None => return None,
        };
        let readable = shared.recovery.first_index.max(concerns.raw.store().unreadable());
        let low = if planted("need_below_the_log") { least } else { least.max(readable - 1) };
        // A snapshot above the floor would cut entries that raft has not handed over yet.
        Some(Want { low, high: shared.recovery.floor, exactly: None })
    }

    /// Makes a checkpoint for an object that is not here. Every log that reaches the checkpoint
    /// holds its index, so its object will do.
    pub(super) fn checkpoint_for(
        &mut self,
        raw: &RaftNode,
        checkpoints: &mut Checkpoints,
        replica: ReplicaId,
        want: &Want,
        now: u64,
    ) {
        if !raw.is_leader() || checkpoints.is_under_way(now) {
            return;
        }
        let newest = raw.store().listed().first().map_or(0, |desc| desc.index);
        let about = About::of(want, 0);
        let before = self.checkpoints.get(&replica).filter(|made| made.about == about);
        if before.is_some_and(|made| made.suffices(want, newest, now))
            && !planted("checkpoint_for_each_want")
        {
            return;
        }
        let times = before.map_or(0, |made| made.times + 1);
        self.checkpoints.insert(replica, Made { about, newest, at: now, times });
        checkpoints.want(CheckpointReason::Learner);
    }

    /// An object arrived, sealed and read back: a repair, one that is needed, or one for raft.
    /// Returns it in the last case.
    pub(super) fn received(
        &mut self,
        concerns: &mut Concerns<'_>,
        shared: &Shared,
        snapshot: Verified,
    ) -> Received {
        let object = ObjectRef::of(&snapshot.desc);
        if concerns.retention.repaired(&snapshot.desc) {
            self.asked = None;
            concerns.effects.push(Effect::Judged { object, taken: true });
            let missing = concerns.pipeline.missing().is_some();
            if missing { Received::Restarts } else { Received::Kept }
        } else if Self::is_needed(concerns, shared, &snapshot.desc) {
            concerns.effects.push(Effect::Judged { object, taken: true });
            // The replica starts from it once it is durably listed.
            self.listing = true;
            Received::IsToBeListed(snapshot)
        } else {
            Received::IsForRaft(snapshot)
        }
    }

    /// Whether a replica that needs a snapshot can go on from this one, which it did not take
    /// itself.
    fn is_needed(concerns: &Concerns<'_>, shared: &Shared, desc: &SnapshotDesc) -> bool {
        Self::any_want(concerns, shared).is_some_and(|want| want.fits(desc))
            && concerns.raw.store().term(desc.index).is_ok_and(|term| term == desc.term)
    }

    /// A list became durable. Returns whether the replica starts from it, because it holds the
    /// object that was needed. That may be a snapshot of its own that was not listed yet when the
    /// guest was lost.
    pub(super) fn is_met_by(
        &self,
        pipeline: &Pipeline,
        log: &RaftLog,
        corrupt: &BTreeSet<ObjectName>,
    ) -> bool {
        let missing = pipeline.missing().filter(|_| !planted("wait_for_a_peers_snapshot"));
        self.listing || missing.is_some_and(|it| newest_listed(log, corrupt) > it.lacked)
    }
}

/// Describes what this replica lacks to build a guest; `tried` is the index of the newest recovery
/// point that the failed build knew of.
pub(super) fn missing(shared: &Shared, tried: u64, why: &str) -> Missing {
    let alone = shared.recovery.configuration.replicas().all(|id| id == shared.me());
    let why = if alone {
        format!("{NOBODY_TO_ASK}: {why}")
    } else {
        format!("asking the peers for a snapshot: {why}")
    };
    Missing { why, lacked: tried }
}

/// What becomes of an object that arrived.
pub(super) enum Received {
    Kept,
    /// The replica needs it, and starts from it once it is listed.
    IsToBeListed(Verified),
    /// The object repairs a recovery point, from which the replica can start.
    Restarts,
    IsForRaft(Verified),
}

/// The index of the newest object that the log durably lists and that is not corrupt; 0 if there is
/// none.
pub(super) fn newest_listed(log: &RaftLog, corrupt: &BTreeSet<ObjectName>) -> u64 {
    retention::newest_good(log.listed(), corrupt).map_or(0, |desc| desc.index)
}

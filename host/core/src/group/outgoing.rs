//! Snapshots on their way to other replicas, and those promised to them.
//!
//! - A replica receives at most one transfer for each purpose at a time; raft asks again if it
//!   must.
//! - An object that was offered to a follower stays *promised* if its transfer breaks: the object
//!   and the log since it are kept ([`crate::limits::SUSPEND_MS`]), and it is offered first, so
//!   that the receiver can resume. The promise ends early when the follower is past the object, or
//!   another replica leads. Only a transfer that broke off after data moved extends it: after other
//!   failures there is usually nothing to resume, for example because the receiver refused the
//!   object once it was complete.
//! - A promised object that turns out corrupt after the log stopped listing it cannot be repaired,
//!   so its promise ends.
//! - A receiver that holds a part of another object says so. If that object is here, it is offered;
//!   if not, the next offer insists.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::group::effect::Effect;
use crate::group::raft_log::RaftLog;
use crate::group::raft_node::RaftNode;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::snapshot::SnapshotDesc;
use crate::snapshot::chunk::{ObjectRef, Purpose};
use crate::snapshot::send::Report;

#[derive(Default)]
pub(super) struct Outgoing {
    /// Transfers that raft asked for, by receiver.
    following: BTreeMap<ReplicaId, SnapshotDesc>,
    /// Transfers that their receivers asked for.
    wanted: BTreeMap<ReplicaId, SnapshotDesc>,
    /// The object promised to each follower, and the tick until which it is kept.
    promised: BTreeMap<ReplicaId, (SnapshotDesc, u64)>,
    /// Receivers that prefer an object that is not here.
    insist: BTreeSet<ReplicaId>,
    /// Objects under way that are no longer listed and turned out to be corrupt: they cannot be
    /// repaired.
    corrupt: Vec<ObjectRef>,
}

/// How a transfer ended.
pub(super) struct TransferEnded {
    pub(super) to: ReplicaId,
    pub(super) purpose: Purpose,
    pub(super) report: Report,
    /// The receiver prefers this other object, of which it holds a part.
    pub(super) prefers: Option<ObjectRef>,
}

const SUSPEND_TICKS: u64 = limits::SUSPEND_MS / limits::TICK_MS;

impl Outgoing {
    /// Whether a follower is being sent a snapshot or was promised the rest of one.
    pub(super) fn is_busy(&self) -> bool {
        !self.following.is_empty() || !self.promised.is_empty()
    }

    pub(super) fn is_sending_to(&self, to: ReplicaId) -> bool {
        self.following.contains_key(&to)
    }

    /// Each receiver, and the index of the snapshot after which it will need the log.
    pub(super) fn pins(&self) -> Vec<(ReplicaId, u64)> {
        let promised = self.promised.iter().map(|(to, (desc, _))| (*to, desc.index));
        self.following.iter().map(|(to, desc)| (*to, desc.index)).chain(promised).collect()
    }

    /// Objects that are kept even if the log does not list them.
    pub(super) fn promised(&self) -> Vec<SnapshotDesc> {
        self.promised.values().map(|(desc, _)| desc.clone()).collect()
    }

    /// Begins a transfer that raft asked for, unless one is under way.
    pub(super) fn follow(
        &mut self,
        to: ReplicaId,
        snapshot: SnapshotDesc,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        if self.following.contains_key(&to) {
            return;
        }
        self.following.insert(to, snapshot.clone());
        // A receiver that refuses the same object again and again does not extend its promise.
        let before = self.promised.get(&to).filter(|(desc, _)| *desc == snapshot);
        let until = before.map_or(now + SUSPEND_TICKS, |(_, until)| *until);
        self.promised.insert(to, (snapshot.clone(), until));
        let insist = self.insist.remove(&to);
        effects.push(Effect::SendSnapshot { to, snapshot, purpose: Purpose::Follow, insist });
    }

    /// Begins a transfer that its receiver asked for, unless one is under way.
    pub(super) fn serve(
        &mut self,
        to: ReplicaId,
        snapshot: SnapshotDesc,
        effects: &mut Vec<Effect>,
    ) {
        if let Entry::Vacant(free) = self.wanted.entry(to) {
            free.insert(snapshot.clone());
            let purpose = Purpose::Wanted;
            effects.push(Effect::SendSnapshot { to, snapshot, purpose, insist: true });
        }
    }

    fn ended(&mut self, to: ReplicaId, purpose: Purpose, report: Report, now: u64) {
        match purpose {
            Purpose::Wanted => drop(self.wanted.remove(&to)),
            Purpose::Follow => {
                let sent = self.following.remove(&to);
                let goes_on = |desc: &SnapshotDesc| !self.corrupt.contains(&ObjectRef::of(desc));
                match (sent.filter(goes_on), report) {
                    (Some(_), Report::Finish) | (None, _) => drop(self.promised.remove(&to)),
                    // The promise keeps its time of expiry.
                    (Some(_), Report::Failure) if !planted("promise_for_ever") => {}
                    (Some(desc), Report::Interrupted | Report::Failure) => {
                        self.promised.insert(to, (desc, now + SUSPEND_TICKS));
                    }
                }
                let under_way = |object: &ObjectRef| {
                    self.following.values().any(|desc| ObjectRef::of(desc) == *object)
                };
                self.corrupt.retain(under_way);
            }
        }
    }

    /// A promised object that the log does not list is corrupt: all promises of it end.
    fn note_corrupt(&mut self, snapshot: &SnapshotDesc) {
        let object = ObjectRef::of(snapshot);
        self.promised.retain(|_, (desc, _)| ObjectRef::of(desc) != object);
        if !self.corrupt.contains(&object) {
            self.corrupt.push(object);
        }
    }

    /// The receiver prefers `object`. It is promised if it is listed, or promised to some follower
    /// with the log since it still here; otherwise the next offer insists.
    fn prefers(&mut self, to: ReplicaId, object: ObjectRef, log: &RaftLog, now: u64) {
        let listed = log.listed();
        let promised = self.promised.values().map(|(desc, _)| desc);
        let usable = promised.filter(|desc| log.goes_on_behind(desc));
        let found = listed.iter().chain(usable).find(|desc| ObjectRef::of(desc) == object);
        match found.cloned() {
            Some(desc) => drop(self.promised.insert(to, (desc, now + SUSPEND_TICKS))),
            None => drop(self.insist.insert(to)),
        }
    }

    /// Ends promises whose time is over or whose receiver no longer needs them; says whether there
    /// were any.
    fn expire(&mut self, now: u64, needs: impl Fn(ReplicaId, &SnapshotDesc) -> bool) -> bool {
        let before = self.promised.len();
        let following = &self.following;
        self.promised.retain(|to, (desc, until)| {
            following.contains_key(to) || (*until > now && needs(*to, desc))
        });
        self.promised.len() < before
    }

    /// A transfer ended: tells raft, and promises the object if the transfer can be resumed.
    pub(super) fn transfer_ended(&mut self, ended: &TransferEnded, raw: &mut RaftNode, now: u64) {
        let TransferEnded { to, purpose, report, prefers } = *ended;
        self.ended(to, purpose, report, now);
        if let Some(object) = prefers {
            self.prefers(to, object, raw.store(), now);
        }
        self.offer_promised(raw);
        if purpose == Purpose::Follow {
            let status = match report {
                Report::Finish => raft::SnapshotStatus::Finish,
                Report::Interrupted | Report::Failure => raft::SnapshotStatus::Failure,
            };
            raw.report_snapshot(to.0, status);
        }
    }

    /// A corrupt object that is no longer listed: its receivers are offered another one.
    pub(super) fn promised_is_corrupt(&mut self, snapshot: &SnapshotDesc, raw: &mut RaftNode) {
        self.note_corrupt(snapshot);
        self.offer_promised(raw);
    }

    /// Returns whether a promise ended. Promises hold only while this replica leads; the next
    /// leader makes its own.
    pub(super) fn tick(&mut self, raw: &mut RaftNode, now: u64) -> bool {
        let needs = |to: ReplicaId, desc: &SnapshotDesc| {
            let follower = raw.raft.prs().get(to.0);
            raw.is_leader() && follower.is_some_and(|progress| progress.matched < desc.index)
        };
        let ended = self.expire(now, needs);
        if ended {
            self.offer_promised(raw);
        }
        ended
    }

    /// Lets raft offer what was promised.
    pub(super) fn offer_promised(&self, raw: &mut RaftNode) {
        let promised = self.promised.iter().map(|(to, (desc, _))| (*to, desc.clone())).collect();
        raw.mut_store().set_promised(promised);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::tests::desc;

    /// A transfer breaks because its object is corrupt and no longer listed: the object is not
    /// offered again, while any other one whose transfer breaks is.
    #[test]
    fn a_promise_that_rots_ends() {
        let (to, mut effects) = (ReplicaId(7), Vec::new());
        let mut outgoing = Outgoing::default();
        outgoing.follow(to, desc(10), 0, &mut effects);
        outgoing.ended(to, Purpose::Follow, Report::Interrupted, 1);
        assert_eq!(outgoing.promised(), [desc(10)], "it broke, and may go on");

        outgoing.follow(to, desc(10), 2, &mut effects);
        outgoing.note_corrupt(&desc(10));
        outgoing.ended(to, Purpose::Follow, Report::Interrupted, 3);
        assert_eq!(outgoing.promised(), [], "there is nothing to go on with");
        assert_eq!(outgoing.corrupt, [], "it is forgotten with its transfer");

        outgoing.follow(to, desc(20), 4, &mut effects);
        outgoing.ended(to, Purpose::Follow, Report::Interrupted, 5);
        assert_eq!(outgoing.promised(), [desc(20)], "another one is promised as usual");
    }

    /// A receiver that refuses every offer, at its beginning or at its end, is promised the object
    /// for a limited time; one that can resume now and then, for as long as it does.
    /// Covers C5.
    #[test]
    fn a_promise_lasts_as_long_as_there_is_something_to_resume() {
        for report in [Report::Failure, Report::Interrupted] {
            let (to, mut effects) = (ReplicaId(7), Vec::new());
            let mut outgoing = Outgoing::default();
            let mut now = 0;
            while now < 3 * SUSPEND_TICKS {
                outgoing.follow(to, desc(10), now, &mut effects);
                now += SUSPEND_TICKS / 2;
                outgoing.ended(to, Purpose::Follow, report, now);
                outgoing.expire(now, |_, _| true);
                if outgoing.promised().is_empty() {
                    break;
                }
            }
            let goes_on = report == Report::Interrupted;
            let lasted = if goes_on { 3 * SUSPEND_TICKS } else { SUSPEND_TICKS };
            assert_eq!(now, lasted, "{report:?}");
        }
    }
}

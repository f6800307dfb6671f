//! Snapshots that came from a peer, from arrival to the guest.
//!
//! An object is whole and read back before it comes here. raft decides whether it is of use: it is
//! stepped as if the present leader had sent it in the present term, because it holds only
//! committed state and an old term would throw the transfer away. Whatever raft does not take is
//! dropped, and the drop discards the object.

use raft::RawNode;
use raft::eraftpb::{Message, MessageType};

use crate::group::effect::Effect;
use crate::group::outgoing::Outgoing;
use crate::group::raft_log::{RaftLog, to_raft};
use crate::snapshot::chunk::ObjectRef;
use crate::snapshot::{Hold, SnapshotDesc, Verified};

#[derive(Default)]
pub(super) struct Installs {
    /// Arrived, and waiting for a leader to be known.
    arrived: Option<Verified>,
    /// Taken by raft; its ready will carry it.
    pending: Option<Verified>,
    /// Installs whose guest is not restored yet.
    restoring: usize,
    /// What the log lists durably and the store lane was not told yet, with the objects' holds.
    listed: Option<List>,
    /// The disk is full: what is parked goes with the next list.
    pressure: bool,
}

/// Recovery points that the log lists, and the holds that may be dropped once the lane knows.
#[derive(Default)]
struct List {
    snapshots: Vec<SnapshotDesc>,
    holds: Vec<Box<dyn Hold>>,
}

impl Installs {
    pub(super) fn received(&mut self, snapshot: Verified, effects: &mut Vec<Effect>) {
        if let Some(before) = self.arrived.replace(snapshot) {
            judge(&before, false, effects);
        }
    }

    /// Steps what arrived, once a leader is known.
    pub(super) fn offer(&mut self, raw: &mut RawNode<RaftLog>, effects: &mut Vec<Effect>) {
        if raw.raft.leader_id == raw.raft.id
            && let Some(unneeded) = self.arrived.take()
        {
            // A leader has it all; the object goes, and its place is free.
            judge(&unneeded, false, effects);
        }
        if self.arrived.is_none() || raw.raft.leader_id == 0 {
            return;
        }
        let snapshot = self.arrived.take().expect("something arrived");
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        message.from = raw.raft.leader_id;
        message.to = raw.raft.id;
        message.term = raw.raft.term;
        message.set_snapshot(to_raft(&snapshot.desc));
        let _ = raw.step(message);
        let data = snapshot.desc.to_bytes();
        let taken = raw.snap().is_some_and(|taken| taken.data == data);
        judge(&snapshot, taken, effects);
        if taken {
            // One that was pending is superseded by this: its drop discards it.
            self.pending = Some(snapshot);
        }
    }

    /// raft's ready carries the snapshot with this descriptor: it is the pending one.
    pub(super) fn accepted(&mut self, data: &[u8]) -> Verified {
        let snapshot = self.pending.take().expect("raft takes only what was offered");
        assert_eq!(snapshot.desc.to_bytes(), data, "raft installs the snapshot that is pending");
        self.restoring += 1;
        snapshot
    }

    /// The log lists these durably.
    pub(super) fn list(&mut self, snapshots: Vec<SnapshotDesc>, hold: Option<Box<dyn Hold>>) {
        let list = self.listed.get_or_insert_default();
        list.snapshots = snapshots;
        list.holds.extend(hold);
    }

    /// What is promised changed: the store lane is told of `listed` once more.
    pub(super) fn relist(&mut self, listed: &[SnapshotDesc]) {
        let list = self.listed.get_or_insert_default();
        list.snapshots = listed.to_vec();
    }

    /// The disk is full: the store lane is told so, with `listed` once more.
    pub(super) fn press(&mut self, listed: &[SnapshotDesc]) {
        self.pressure = true;
        self.relist(listed);
    }

    /// Tells the store lane what is listed, unless the apply lane still has to open an object that
    /// it was given earlier: the list would let that go.
    pub(super) fn tell_list(
        &mut self,
        reading: bool,
        outgoing: &Outgoing,
        effects: &mut Vec<Effect>,
    ) {
        if !reading && let Some(List { snapshots, holds }) = self.listed.take() {
            let (promised, pressure) = (outgoing.promised(), std::mem::take(&mut self.pressure));
            effects.push(Effect::List { snapshots, promised, pressure, holds });
        }
    }

    pub(super) fn restored(&mut self) {
        self.restoring = self.restoring.saturating_sub(1);
    }

    /// There is no guest, and none is restored any more.
    pub(super) fn give_up_restoring(&mut self) {
        self.restoring = 0;
    }

    pub(super) fn is_restoring(&self) -> bool {
        self.restoring > 0
    }
}

fn judge(snapshot: &Verified, taken: bool, effects: &mut Vec<Effect>) {
    effects.push(Effect::Judged { object: ObjectRef::of(&snapshot.desc), taken });
}

//! Snapshots that came from a peer, from their arrival until the guest is restored.
//!
//! An object is complete and read back before it gets here. raft decides whether it is useful: it
//! is stepped as if the current leader had sent it in the current term. That is safe because it
//! holds only committed state, and needed because raft would ignore a message of an older term. An
//! object that raft does not accept is dropped, and the drop discards it.

use raft::RawNode;
use raft::eraftpb::{Message, MessageType};

use crate::group::effect::Effect;
use crate::group::outgoing::Outgoing;
use crate::group::raft_log::{RaftLog, to_raft};
use crate::snapshot::chunk::ObjectRef;
use crate::snapshot::{Hold, SnapshotDesc, Verified};

#[derive(Default)]
pub(super) struct Installs {
    /// The object that arrived and waits until a leader is known.
    arrived: Option<Verified>,
    /// The object that raft accepted and that its ready will carry.
    pending: Option<Verified>,
    /// What the log durably lists and the store lane was not told yet, with the objects' holds.
    listed: Option<List>,
    /// The disk is full: the next list tells the store lane to delete what suspended transfers
    /// left.
    pressure: bool,
}

/// Recovery points that the log lists, and holds that may be dropped once the store lane knows
/// them.
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

    /// Offers raft the object that arrived, once a leader is known.
    pub(super) fn offer(&mut self, raw: &mut RawNode<RaftLog>, effects: &mut Vec<Effect>) {
        if raw.raft.leader_id == raw.raft.id
            && let Some(unneeded) = self.arrived.take()
        {
            // A leader lacks nothing: the object is discarded, and its space is free again.
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
            // This object supersedes the pending one, which is discarded when it is dropped.
            self.pending = Some(snapshot);
        }
    }

    /// raft's ready carries the snapshot with this descriptor: returns the pending object, which it
    /// is.
    pub(super) fn accepted(&mut self, data: &[u8]) -> Verified {
        let snapshot = self.pending.take().expect("raft takes only what was offered");
        assert_eq!(snapshot.desc.to_bytes(), data, "raft installs the snapshot that is pending");
        snapshot
    }

    /// Notes that the log durably lists `snapshots`.
    pub(super) fn list(&mut self, snapshots: Vec<SnapshotDesc>, hold: Option<Box<dyn Hold>>) {
        let list = self.listed.get_or_insert_default();
        list.snapshots = snapshots;
        list.holds.extend(hold);
    }

    /// Has the store lane told of `listed` again, because what is promised changed.
    pub(super) fn relist(&mut self, listed: &[SnapshotDesc]) {
        let list = self.listed.get_or_insert_default();
        list.snapshots = listed.to_vec();
    }

    /// Has the store lane told of `listed` again, and that the disk is full.
    pub(super) fn press(&mut self, listed: &[SnapshotDesc]) {
        self.pressure = true;
        self.relist(listed);
    }

    /// Tells the store lane what is listed. It waits while the apply lane still has to open an
    /// object that it was given earlier, because the lane would delete an object that is no longer
    /// listed.
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
}

fn judge(snapshot: &Verified, taken: bool, effects: &mut Vec<Effect>) {
    effects.push(Effect::Judged { object: ObjectRef::of(&snapshot.desc), taken });
}

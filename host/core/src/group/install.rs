//! Snapshots that came from a peer, from their arrival until the guest is restored.
//!
//! An object is complete and read back before it gets here. raft decides whether it is useful: it
//! is stepped as if the current leader had sent it in the current term. That is safe because it
//! holds only committed state, and needed because raft would ignore a message of an older term. An
//! object that raft does not accept is dropped, and the drop discards it.

use raft::eraftpb::{Message, MessageType};

use crate::group::effect::Effect;
use crate::group::raft_log::to_raft;
use crate::group::raft_node::RaftNode;
use crate::snapshot::Verified;
use crate::snapshot::chunk::ObjectRef;

#[derive(Default)]
pub(super) struct Installs {
    /// The object that arrived and waits until a leader is known.
    arrived: Option<Verified>,
    /// The object that raft accepted and that its ready will carry.
    pending: Option<Verified>,
}

impl Installs {
    pub(super) fn received(&mut self, snapshot: Verified, effects: &mut Vec<Effect>) {
        if let Some(before) = self.arrived.replace(snapshot) {
            judge(&before, false, effects);
        }
    }

    /// Offers raft the object that arrived, once a leader is known.
    pub(super) fn offer(&mut self, raw: &mut RaftNode, effects: &mut Vec<Effect>) {
        if raw.raft.leader_id == raw.raft.id
            && let Some(unneeded) = self.arrived.take()
        {
            // A leader needs no snapshot: the object is discarded, which frees its space.
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

    /// Returns the pending object, which is the snapshot that raft's ready carries with the
    /// descriptor `data`.
    pub(super) fn accepted(&mut self, data: &[u8]) -> Verified {
        let snapshot = self.pending.take().expect("raft takes only what was offered");
        assert_eq!(snapshot.desc.to_bytes(), data, "raft installs the snapshot that is pending");
        snapshot
    }
}

fn judge(snapshot: &Verified, taken: bool, effects: &mut Vec<Effect>) {
    effects.push(Effect::Judged { object: ObjectRef::of(&snapshot.desc), taken });
}

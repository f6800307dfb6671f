//! A replica votes at most once a term, restarts included, and a replica whose disk is lost sends
//! nothing any more. Planted: `wiped_replica_votes`, `two_votes`.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::group::{Body, Frame};
use lockstep_core::ids::{GroupId, ReplicaId};
use raft::eraftpb::MessageType;

use super::{Checked, violated};

#[derive(Default)]
pub struct Votes {
    given: BTreeMap<(GroupId, ReplicaId, u64), u64>,
    gone: BTreeSet<ReplicaId>,
}

impl Votes {
    pub fn wiped(&mut self, replica: ReplicaId) {
        self.gone.insert(replica);
    }

    pub fn sends(&mut self, frame: &Frame) -> Checked {
        if self.gone.contains(&frame.from) {
            return violated(
                "votes",
                format!("{} sends a frame, though its disk is lost", frame.from),
            );
        }
        let Body::Raft(message) = &frame.body else { return Ok(()) };
        let to = match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => message.to,
            // A candidate votes for itself.
            MessageType::MsgRequestVote => message.from,
            _other => return Ok(()),
        };
        let key = (frame.group, frame.from, message.term);
        let given = *self.given.entry(key).or_insert(to);
        if given == to {
            Ok(())
        } else {
            let (from, term) = (frame.from, message.term);
            violated("votes", format!("{from} voted twice in term {term}"))
        }
    }
}

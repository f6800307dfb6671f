//! What must hold after every command of every script.
//!
//! - one leader a term; committed entries agree; equal applied indexes mean equal state digests;
//! - a ticket is answered once; an acknowledged command stays on a majority's disks;
//! - a message that promises durability leaves only when the disk holds what it promises.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_core::entry::EntryBody;
use lockstep_core::group::Frame;
use lockstep_core::group::frame::Body;
use lockstep_core::ids::{Digest, ReplicaId, Ticket};
use lockstep_core::snapshot::Configuration;
use raft::eraftpb::{Entry, Message, MessageType};

use super::disk::Image;

#[derive(Default)]
pub(crate) struct Checks {
    leaders: BTreeMap<u64, ReplicaId>,
    /// Committed entries by index: term and data.
    committed: BTreeMap<u64, (u64, Bytes)>,
    digests: BTreeMap<u64, Digest>,
    /// The highest index of each command that was applied.
    payloads: BTreeMap<Bytes, u64>,
    answered: BTreeSet<Ticket>,
    /// The highest index whose command was acknowledged.
    acknowledged: u64,
    configuration: (u64, Configuration),
}

impl Checks {
    /// What follows is another group's.
    pub(crate) fn begin_anew(&mut self) {
        *self = Self { answered: std::mem::take(&mut self.answered), ..Self::default() };
    }

    pub(crate) fn leads(&mut self, term: u64, replica: ReplicaId) {
        let leader = *self.leaders.entry(term).or_insert(replica);
        assert_eq!(leader, replica, "one leader in term {term}");
    }

    pub(crate) fn applied(&mut self, entry: &Entry, state: Option<Digest>) {
        let (index, here) = (entry.index, (entry.term, entry.data.clone()));
        let known = self.committed.entry(index).or_insert_with(|| here.clone());
        assert!(*known == here, "committed entries agree at {index}");
        if let Some(state) = state {
            let known = *self.digests.entry(entry.index).or_insert(state);
            assert_eq!(known, state, "states agree at {}", entry.index);
        }
        if let Ok(EntryBody::Pack(pack)) = EntryBody::decode(entry.data.clone()) {
            for call in pack.calls {
                let highest = self.payloads.entry(call.payload).or_default();
                *highest = entry.index.max(*highest);
            }
        }
    }

    pub(crate) fn has_answer(&self, ticket: Ticket) -> bool {
        self.answered.contains(&ticket)
    }

    pub(crate) fn answered(&mut self, ticket: Ticket) {
        assert!(self.answered.insert(ticket), "{ticket:?} is answered once");
    }

    /// The client of `payload` was told that it is done.
    pub(crate) fn acknowledged(&mut self, payload: &[u8]) {
        let index = self.payloads.get(payload).copied().expect("it was applied somewhere");
        self.acknowledged = self.acknowledged.max(index);
    }

    pub(crate) fn configured(&mut self, index: u64, configuration: &Configuration) -> bool {
        let news = index > self.configuration.0;
        if news {
            self.configuration = (index, configuration.clone());
        }
        news
    }

    /// An acknowledged command is on the disks of a majority, lost replicas not counted.
    pub(crate) fn nothing_is_lost(&self, disks: &[(ReplicaId, Option<&Image>)]) {
        let index = self.acknowledged;
        let Some((term, _)) = self.committed.get(&index) else { return };
        for voters in [&self.configuration.1.voters, &self.configuration.1.voters_outgoing] {
            let lost =
                voters.iter().filter(|id| disks.iter().all(|(there, _)| there != *id)).count();
            let keeps = |image: &Image| {
                image.state().first_index > index || image.term(index) == Some(*term)
            };
            let have = disks
                .iter()
                .filter(|(id, image)| voters.contains(id) && image.is_some_and(keeps))
                .count();
            let majority = voters.len() / 2 + 1;
            assert!(voters.is_empty() || have + lost >= majority, "{index} is on {have} disks");
        }
    }

    /// A frame is about to leave a node with this disk.
    pub(crate) fn sends(frame: &Frame, image: Option<&Image>) {
        let image = image.expect("the replica's id is durable before its first frame");
        assert!(frame.bytes() > carried(frame), "a frame counts what it carries and its head");
        match &frame.body {
            // It echoes the count of the process that it is about.
            Body::Superseded { .. } => return,
            Body::Raft(message) => promises_are_kept(message, image),
            Body::Probe
            | Body::Nothing
            | Body::Have
            | Body::Join
            | Body::NotMember { .. }
            | Body::Stranger
            | Body::Want(_) => {}
        }
        assert_eq!(image.state().boot, frame.boot, "the boot count is durable before a frame");
    }
}

/// Bytes of a frame's commands.
fn carried(frame: &Frame) -> usize {
    match &frame.body {
        Body::Raft(message) => message.entries.iter().map(|entry| entry.data.len()).sum(),
        _other => 0,
    }
}

fn promises_are_kept(message: &Message, image: &Image) {
    let state = image.state();
    match message.get_msg_type() {
        MessageType::MsgAppendResponse if !message.reject => {
            assert!(state.term >= message.term, "an acknowledgement's term is durable");
            assert!(image.last() >= message.index, "acknowledged entries are durable");
        }
        MessageType::MsgRequestVoteResponse if !message.reject => {
            assert!(has_voted(image, message.term, message.to), "a vote is durable");
        }
        MessageType::MsgRequestVote => {
            assert!(has_voted(image, message.term, message.from), "a candidate's vote is durable");
        }
        MessageType::MsgAppend | MessageType::MsgHeartbeat => {
            assert!(state.term >= message.term, "a leader's term is durable");
        }
        _other => {}
    }
}

fn has_voted(image: &Image, term: u64, vote: u64) -> bool {
    let state = image.state();
    state.term > term || (state.term == term && state.vote == vote)
}

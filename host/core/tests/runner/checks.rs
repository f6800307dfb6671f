//! What must hold after every command of every script.
//!
//! - a term has one leader; committed entries agree; equal applied indexes mean equal states;
//! - a ticket is answered once; an acknowledged command stays on the disks of a majority;
//! - a message that promises durability leaves only when the disk holds what it promises.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_core::amendment::{Amendment, Amendments, Change};
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
    /// Entries that are skipped, and the entry that ordered it.
    skipped: BTreeMap<u64, u64>,
    /// Entries that do something else than they did, and the entries that ordered it.
    changed: BTreeSet<(u64, u64)>,
    /// The highest index at which each command was applied.
    payloads: BTreeMap<Bytes, u64>,
    answered: BTreeSet<Ticket>,
    /// The highest index whose command was acknowledged.
    acknowledged: u64,
    configuration: (u64, Configuration),
}

impl Checks {
    /// Forgets the group: another one is bootstrapped.
    pub(crate) fn begin_anew(&mut self) {
        *self = Self { answered: std::mem::take(&mut self.answered), ..Self::default() };
    }

    pub(crate) fn leads(&mut self, term: u64, replica: ReplicaId) {
        let leader = *self.leaders.entry(term).or_insert(replica);
        assert_eq!(leader, replica, "two leaders in term {term}");
    }

    pub(crate) fn applied(&mut self, entry: &Entry, state: Option<Digest>) {
        let (index, here) = (entry.index, (entry.term, entry.data.clone()));
        let known = self.committed.entry(index).or_insert_with(|| here.clone());
        assert!(*known == here, "committed entries differ at {index}");
        if let Some(state) = state {
            let known = *self.digests.entry(entry.index).or_insert(state);
            assert_eq!(known, state, "states differ at {}", entry.index);
        }
        if let Ok(EntryBody::Commands(commands)) = EntryBody::decode(entry.data.clone()) {
            for call in commands.calls {
                let highest = self.payloads.entry(call.payload).or_default();
                *highest = entry.index.max(*highest);
            }
        }
    }

    /// A replica knows which entries are skipped, or applied by another module. Replicas that were
    /// abandoned may have applied such an entry, and more of them up to the one that orders it.
    pub(crate) fn amended(&mut self, amendments: &Amendments) {
        for Amendment { at: by, change } in amendments.iter() {
            let Some(index) = change.reaches_back_to() else { continue };
            if self.changed.insert((index, *by)) {
                self.digests.retain(|at, _| !(index..*by).contains(at));
            }
            if matches!(change, Change::Skip { .. }) {
                let known = *self.skipped.entry(index).or_insert(*by);
                assert_eq!(known, *by, "entry {index} is skipped by two entries");
            }
        }
    }

    pub(crate) fn has_answer(&self, ticket: Ticket) -> bool {
        self.answered.contains(&ticket)
    }

    pub(crate) fn answered(&mut self, ticket: Ticket) {
        assert!(self.answered.insert(ticket), "{ticket:?} is answered twice");
    }

    /// The client of the command `payload` was told that it is applied.
    pub(crate) fn acknowledged(&mut self, payload: &[u8]) {
        let index = self.payloads.get(payload).copied().expect("some replica applied it");
        self.acknowledged = self.acknowledged.max(index);
    }

    pub(crate) fn configured(&mut self, index: u64, configuration: &Configuration) -> bool {
        let news = index > self.configuration.0;
        if news {
            self.configuration = (index, configuration.clone());
        }
        news
    }

    /// The last acknowledged command is on the disks of a majority. Lost replicas count as if they
    /// had it.
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
            assert!(voters.is_empty() || have + lost >= majority, "only {have} disks have {index}");
        }
    }

    /// A node with this disk is about to send a frame.
    pub(crate) fn sends(frame: &Frame, image: Option<&Image>) {
        let image = image.expect("the replica's id is durable before its first frame");
        assert!(frame.bytes() > carried(frame), "a frame does not count all of its bytes");
        match &frame.body {
            // Its boot count is the one of the process that it answers.
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
        assert_eq!(image.state().boot, frame.boot, "the boot count is not durable");
    }
}

/// The bytes of a frame's entries.
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
            assert!(state.term >= message.term, "an acknowledgement's term is not durable");
            assert!(image.last() >= message.index, "acknowledged entries are not durable");
        }
        MessageType::MsgRequestVoteResponse if !message.reject => {
            assert!(has_voted(image, message.term, message.to), "a vote is not durable");
        }
        MessageType::MsgRequestVote => {
            assert!(has_voted(image, message.term, message.from), "a candidacy is not durable");
        }
        MessageType::MsgAppend | MessageType::MsgHeartbeat => {
            assert!(state.term >= message.term, "a leader's term is not durable");
        }
        _other => {}
    }
}

fn has_voted(image: &Image, term: u64, vote: u64) -> bool {
    let state = image.state();
    state.term > term || (state.term == term && state.vote == vote)
}

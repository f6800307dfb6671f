//! Linearizable reads by ReadIndex (raft thesis 6.4).
//!
//! - Waiting reads share a *round*: one context, one exchange of heartbeats.
//! - A context is (replica, boot, counter). It is never used twice or sent again, so a late answer
//!   to an old attempt cannot confirm a new one (the stale reads of etcd#20418).
//! - raft silently drops requests when it loses leadership, and heartbeats may be lost. So the
//!   reads of a round that is not confirmed within [`limits::READ_RETRY_TICKS`] go into a new one
//!   with a new context, until their deadline. No round starts before the first commit of a
//!   leader's term.
//! - A read index is taken after the reads of its round have arrived, never before.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use crate::fault::Refusal;
use crate::group::effect::Effect;
use crate::ids::Ticket;
use crate::limits;
use crate::mutant::planted;

/// The reads of one group, by their stage.
#[derive(Default)]
pub(super) struct Reads {
    /// Reads in no round yet.
    waiting: Vec<Read>,
    /// Rounds that raft was asked to confirm, oldest first.
    rounds: VecDeque<Round>,
    /// Confirmed reads that wait until the apply lane was given everything up to their index.
    confirmed: VecDeque<(u64, Read)>,
    counter: u64,
}

pub(super) struct Read {
    pub ticket: Ticket,
    pub request: Bytes,
    /// The tick at which the read arrived.
    pub since: u64,
}

struct Round {
    context: Vec<u8>,
    asked: u64,
    reads: Vec<Read>,
}

/// Most rounds under way at once: the next one may start before the last one is answered.
const ROUNDS_MAX: usize = 2;

impl Reads {
    pub(super) fn push(&mut self, read: Read) -> Result<(), Refusal> {
        let rounds: usize = self.rounds.iter().map(|round| round.reads.len()).sum();
        if self.waiting.len() + rounds + self.confirmed.len() >= limits::READS_WAITING_MAX {
            return Err(Refusal::Overloaded);
        }
        self.waiting.push(read);
        Ok(())
    }

    /// Starts a round if reads wait and one may start; returns a context for raft that no
    /// other process of any replica uses.
    pub(super) fn start_round(&mut self, replica: u64, boot: u64, now: u64) -> Option<Vec<u8>> {
        if self.waiting.is_empty() || self.rounds.len() >= ROUNDS_MAX {
            return None;
        }
        self.counter += 1;
        let mut context = Vec::with_capacity(24);
        for part in [replica, boot, self.counter] {
            context.extend_from_slice(&part.to_le_bytes());
        }
        let reads = std::mem::take(&mut self.waiting);
        self.rounds.push_back(Round { context: context.clone(), asked: now, reads });
        Some(context)
    }

    /// raft confirmed leadership for this context: its reads may be served at `index`.
    pub(super) fn confirm(&mut self, context: &[u8], index: u64) {
        let Some(place) = self.rounds.iter().position(|round| round.context == context) else {
            return;
        };
        let round = self.rounds.remove(place).expect("the place was just found");
        self.confirmed.extend(round.reads.into_iter().map(|read| (index, read)));
    }

    /// Takes the confirmed reads whose index the apply lane was given, each with that index.
    pub(super) fn ready(&mut self, dispatched: u64) -> Vec<(u64, Read)> {
        let mut ready = Vec::new();
        let mut rest = VecDeque::new();
        for (index, read) in self.confirmed.drain(..) {
            if index <= dispatched || planted("read_before_applied") {
                ready.push((index, read));
            } else {
                rest.push_back((index, read));
            }
        }
        self.confirmed = rest;
        ready
    }

    /// Puts the reads of unanswered rounds back in line, and refuses reads past their deadline.
    pub(super) fn tick(&mut self, now: u64, effects: &mut Vec<Effect>) {
        while let Some(round) = self.rounds.front() {
            if now < round.asked + limits::READ_RETRY_TICKS {
                break;
            }
            let round = self.rounds.pop_front().expect("there is a first round");
            self.waiting.extend(round.reads);
        }
        let late = |read: &Read| now >= read.since + limits::READ_DEADLINE_TICKS;
        let mut refuse = |read: Read| {
            effects.push(Effect::Answer { ticket: read.ticket, answer: Err(Refusal::ReadTimeout) });
        };
        self.waiting.extract_if(.., |read| late(read)).for_each(&mut refuse);
        let (gone, kept) =
            std::mem::take(&mut self.confirmed).into_iter().partition(|(_, r)| late(r));
        self.confirmed = kept;
        let gone: VecDeque<(u64, Read)> = gone;
        gone.into_iter().map(|(_, read)| read).for_each(&mut refuse);
    }

    /// Drops the reads whose clients are gone.
    pub(super) fn forget(&mut self, gone: &BTreeSet<Ticket>, effects: &mut Vec<Effect>) {
        let gone = |read: &Read| gone.contains(&read.ticket);
        let mut dropped: Vec<Read> = self.waiting.extract_if(.., |read| gone(read)).collect();
        for round in &mut self.rounds {
            dropped.extend(round.reads.extract_if(.., |read| gone(read)));
        }
        let (left, kept): (VecDeque<_>, _) =
            std::mem::take(&mut self.confirmed).into_iter().partition(|(_, read)| gone(read));
        self.confirmed = kept;
        for read in dropped.into_iter().chain(left.into_iter().map(|(_, read)| read)) {
            effects.push(Effect::Answer { ticket: read.ticket, answer: Err(Refusal::ReadTimeout) });
        }
    }

    /// Refuses all reads: this replica no longer leads or serves, but another one may answer them.
    pub(super) fn abandon(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        let rounds = self.rounds.drain(..).flat_map(|round| round.reads);
        let confirmed = self.confirmed.drain(..).map(|(_, read)| read);
        for read in self.waiting.drain(..).chain(rounds).chain(confirmed) {
            effects.push(Effect::Answer { ticket: read.ticket, answer: Err(refusal.clone()) });
        }
    }
}

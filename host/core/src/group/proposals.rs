//! Commands on their way into the log, and the tickets that wait for their answers.
//!
//! A ticket is paired with its answer by (index, term), never by an id of its own, so an answer can
//! only match its own proposal. Every ticket is answered exactly once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::Entry;

use crate::apply::{Answer, EntryAnswers};
use crate::entry::{Call, Commands, EntryBody};
use crate::fault::Refusal;
use crate::group::effect::Effect;
use crate::ids::Ticket;
use crate::limits;
use crate::mutant::{plant, planted};

/// A group's commands and its openings and closings of sessions, waiting or under way.
#[derive(Default)]
pub(super) struct Proposals {
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Entries that were proposed and are not applied yet, by index.
    proposed: BTreeMap<u64, Proposed>,
    /// Bytes of the commands in those entries.
    proposed_bytes: usize,
    /// How many accepted commands are meant to free memory.
    relieved: u64,
}

enum Waiting {
    Call { ticket: Ticket, call: Call, relief: bool },
    Open(Ticket, u64),
    Close(Ticket, u64),
}

/// An entry that was proposed, and the tickets that wait for it.
struct Proposed {
    term: u64,
    /// In the order of the entry's commands.
    tickets: Vec<Ticket>,
    bytes: usize,
}

impl Waiting {
    fn ticket(&self) -> Ticket {
        let (Self::Call { ticket, .. } | Self::Open(ticket, _) | Self::Close(ticket, _)) = self;
        *ticket
    }

    /// How many bytes the request counts toward the limit of waiting requests.
    fn cost(&self) -> usize {
        match self {
            Self::Call { call, .. } => cost(call),
            Self::Open(..) | Self::Close(..) => limits::COMMAND_OVERHEAD_BYTES_MAX,
        }
    }

    /// Whether the request is accepted while memory is high. Sessions take none of the guest's
    /// memory.
    fn needs_no_memory(&self) -> bool {
        matches!(self, Self::Call { relief: true, .. } | Self::Open(..) | Self::Close(..))
    }
}

/// The next entry to propose and the tickets it answers.
pub(super) struct Proposal {
    pub body: EntryBody,
    pub tickets: Vec<Ticket>,
    /// Bytes that its commands count toward the limit of an entry.
    pub bytes: usize,
}

impl Proposals {
    /// Queues a command, or returns why it is refused.
    pub(super) fn push_call(
        &mut self,
        ticket: Ticket,
        call: Call,
        relief: bool,
    ) -> Result<(), Refusal> {
        self.admit(call.payload.len())?;
        self.relieved += u64::from(relief);
        self.waiting.push_back(Waiting::Call { ticket, call, relief });
        Ok(())
    }

    pub(super) fn push_open(&mut self, ticket: Ticket, nonce: u64) -> Result<(), Refusal> {
        self.admit(0)?;
        self.waiting.push_back(Waiting::Open(ticket, nonce));
        Ok(())
    }

    pub(super) fn push_close(&mut self, ticket: Ticket, session: u64) -> Result<(), Refusal> {
        self.admit(0)?;
        self.waiting.push_back(Waiting::Close(ticket, session));
        Ok(())
    }

    fn admit(&mut self, bytes: usize) -> Result<(), Refusal> {
        let bytes = self.waiting_bytes + bytes + limits::COMMAND_OVERHEAD_BYTES_MAX;
        if bytes > limits::PROPOSALS_WAITING_BYTES_MAX
            || self.waiting.len() >= limits::PROPOSALS_WAITING_MAX
        {
            return Err(Refusal::Overloaded);
        }
        self.waiting_bytes = bytes;
        Ok(())
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many proposed entries are above `index`.
    pub(super) fn above(&self, index: u64) -> usize {
        self.proposed.range(index + 1..).count()
    }

    /// Bytes of commands that are proposed and not applied yet.
    pub(super) fn bytes(&self) -> usize {
        self.proposed_bytes
    }

    pub(super) fn relieved(&self) -> u64 {
        self.relieved
    }

    /// Takes as many waiting commands as fit in one entry, at most `commands_max`. Opening or
    /// closing a session takes an entry of its own.
    pub(super) fn next(&mut self, time_ms: u64, commands_max: usize) -> Option<Proposal> {
        let most = commands_max.min(limits::ENTRY_COMMANDS_MAX);
        let mut calls = Vec::new();
        let mut tickets = Vec::new();
        let mut bytes = 0;
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting {
                Waiting::Open(ticket, nonce) if calls.is_empty() => {
                    self.waiting_bytes -= limits::COMMAND_OVERHEAD_BYTES_MAX;
                    let body = EntryBody::Open { time_ms, nonce };
                    return Some(Proposal { body, tickets: vec![ticket], bytes: 0 });
                }
                Waiting::Close(ticket, session) if calls.is_empty() => {
                    self.waiting_bytes -= limits::COMMAND_OVERHEAD_BYTES_MAX;
                    let body = EntryBody::Close { time_ms, session };
                    return Some(Proposal { body, tickets: vec![ticket], bytes: 0 });
                }
                Waiting::Call { ticket, call, relief: _ }
                    if calls.len() < most
                        && bytes + cost(&call) <= limits::COMMANDS_ENTRY_BYTES_MAX =>
                {
                    bytes += cost(&call);
                    self.waiting_bytes -= cost(&call);
                    calls.push(call);
                    tickets.push(ticket);
                }
                full @ (Waiting::Open(..) | Waiting::Close(..) | Waiting::Call { .. }) => {
                    self.waiting.push_front(full);
                    break;
                }
            }
        }
        let body = EntryBody::Commands(Commands { time_ms, calls });
        (!tickets.is_empty()).then_some(Proposal { body, tickets, bytes })
    }

    /// Drops the waiting requests whose clients are gone. What is already proposed goes on.
    pub(super) fn forget(&mut self, gone: &BTreeSet<Ticket>, effects: &mut Vec<Effect>) {
        plant!("propose_for_nobody" does return);
        let (left, kept): (VecDeque<_>, _) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| gone.contains(&waiting.ticket()));
        self.waiting = kept;
        for waiting in left {
            self.waiting_bytes -= waiting.cost();
            let answer = Err(Refusal::Overloaded);
            effects.push(Effect::Answer { ticket: waiting.ticket(), answer });
        }
    }

    /// Notes that the entry with these tickets' commands is at `index` of this leader's log, in
    /// `term`.
    pub(super) fn proposed(&mut self, index: u64, term: u64, tickets: Vec<Ticket>, bytes: usize) {
        self.proposed_bytes += bytes;
        if let Some(before) = self.proposed.insert(index, Proposed { term, tickets, bytes }) {
            self.proposed_bytes -= before.bytes;
        }
    }

    /// The indexes of those entries that tickets wait for.
    pub(super) fn awaited(&self, entries: &[Entry]) -> BTreeSet<u64> {
        plant!("await_nothing" does return BTreeSet::new());
        let indexes = entries.iter().map(|entry| entry.index);
        indexes.filter(|index| self.proposed.contains_key(index)).collect()
    }

    /// Pairs answers with tickets. If the entry at a ticket's index has another term, the command
    /// was lost and not applied.
    pub(super) fn applied(&mut self, entry: EntryAnswers, effects: &mut Vec<Effect>) {
        let Some(Proposed { term, tickets, bytes }) = self.proposed.remove(&entry.index) else {
            return;
        };
        self.proposed_bytes -= bytes;
        if term != entry.term {
            refuse_all(tickets, &Refusal::Lost, effects);
            return;
        }
        assert_eq!(tickets.len(), entry.answers.len(), "an entry answers each of its commands");
        for (ticket, answer) in tickets.into_iter().zip(entry.answers) {
            effects.push(Effect::Answer { ticket, answer: Ok::<Answer, Refusal>(answer) });
        }
    }

    /// Ends the tickets at or below `index`, to which no answer will come. A command is lost only
    /// if `term_at` says that the log holds another entry in its place; otherwise its fate is
    /// unknown.
    pub(super) fn passed(
        &mut self,
        index: u64,
        term_at: impl Fn(u64) -> Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        let above = self.proposed.split_off(&(index + 1));
        let gone = std::mem::replace(&mut self.proposed, above);
        for (index, Proposed { term, tickets, bytes, .. }) in gone {
            self.proposed_bytes -= bytes;
            let replaced = term_at(index).is_some_and(|there| there != term);
            let lost = replaced || planted("not_answered_is_lost");
            let why = "the state machine was rebuilt".to_owned();
            let refusal = if lost { Refusal::Lost } else { Refusal::Unknown { why } };
            refuse_all(tickets, &refusal, effects);
        }
    }

    /// This replica no longer leads or serves. Proposed commands may still commit; waiting ones
    /// never will.
    pub(super) fn abandon(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        let unknown = if planted("lost_if_unknown") { Refusal::Lost } else { unknown(refusal) };
        self.proposed_bytes = 0;
        for Proposed { tickets, .. } in std::mem::take(&mut self.proposed).into_values() {
            refuse_all(tickets, &unknown, effects);
        }
        self.refuse_waiting(refusal, effects);
    }

    /// Memory is high: refuses the waiting commands that could take more of it.
    pub(super) fn refuse_all_but_relief(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        self.refuse_those(refusal, |waiting| !waiting.needs_no_memory(), effects);
    }

    /// Memory has reached its second bound: refuses all waiting commands.
    pub(super) fn refuse_calls(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        self.refuse_those(refusal, |waiting| matches!(waiting, Waiting::Call { .. }), effects);
    }

    fn refuse_those(
        &mut self,
        refusal: &Refusal,
        which: impl Fn(&Waiting) -> bool,
        effects: &mut Vec<Effect>,
    ) {
        let (refused, kept): (VecDeque<_>, _) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| which(waiting));
        self.waiting = refused;
        self.refuse_waiting(refusal, effects);
        self.waiting = kept;
        self.waiting_bytes = self.waiting.iter().map(Waiting::cost).sum();
    }

    pub(super) fn refuse_waiting(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        self.waiting_bytes = 0;
        for waiting in self.waiting.drain(..) {
            let (ticket, answer) = (waiting.ticket(), Err(refusal.clone()));
            effects.push(Effect::Answer { ticket, answer });
        }
    }
}

/// The answer to commands under way, whose fate is unknown, when new ones get `refusal`.
fn unknown(refusal: &Refusal) -> Refusal {
    let why = match refusal {
        Refusal::NotLeader { .. } => "leadership was lost".to_owned(),
        other => other.to_string(),
    };
    Refusal::Unknown { why }
}

fn cost(call: &Call) -> usize {
    call.payload.len() + limits::COMMAND_OVERHEAD_BYTES_MAX
}

fn refuse_all(tickets: Vec<Ticket>, refusal: &Refusal, effects: &mut Vec<Effect>) {
    for ticket in tickets {
        effects.push(Effect::Answer { ticket, answer: Err(refusal.clone()) });
    }
}

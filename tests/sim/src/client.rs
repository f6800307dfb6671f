//! Clients, each with one operation at a time. Most have a session and repeat a command until they
//! know its fate; the others have none and send each command once.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_core::apply::Answer;
use lockstep_core::entry::Call;
use lockstep_core::fault::{Refusal, Rejection};
use lockstep_core::ids::{GroupId, NodeId};

use crate::rng::Rng;

/// An operation, and what its client knows of its fate.
#[derive(Clone, Debug)]
pub struct Record {
    pub id: u64,
    pub group: GroupId,
    pub key: u64,
    /// The value to write; `None` for a read.
    pub value: Option<u64>,
    /// The operation is a read of the state that the asked node has.
    pub local: bool,
    pub start_us: u64,
    /// When the answer came.
    pub end_us: Option<u64>,
    /// The value before a write, or the value read.
    pub answer: Option<u64>,
    /// Applied index at which a read was served.
    pub applied: u64,
    /// How often it was sent.
    pub tries: u32,
    /// The refusal that told the client that it was not applied.
    pub refused: Option<String>,
}

/// What a client does next.
pub enum Request {
    Open { nonce: u64 },
    Close { session: u64 },
    Write { call: Call, relief: bool },
    Read { request: Bytes, linearizable: bool },
}

pub struct Client {
    pub group: GroupId,
    rng: Rng,
    /// The client has no session, and sends each command once.
    plain: bool,
    session: Option<u64>,
    sequence: u64,
    /// The number of writes after which it closes the session and opens another one.
    writes: u64,
    /// The record of the operation under way.
    record: Option<usize>,
    /// The records of commands that were sent once and have no answer yet, by attempt.
    once: BTreeMap<u64, usize>,
    pub target: NodeId,
    /// Number of the current attempt, which tells its answer from late ones.
    pub attempt: u64,
    /// Bytes of each command, at least.
    command_bytes: usize,
    /// The next command is to free memory.
    relief: bool,
    /// The client is about to end: it begins only `more` operations.
    pub done: bool,
    /// Operations that the client still has to begin.
    pub more: u32,
}

/// All clients use the same few keys.
const KEYS: u64 = 5;
/// A session has from one to this many writes.
const WRITES_MAX: u64 = 64;

impl Client {
    pub fn new(
        group: GroupId,
        target: NodeId,
        rng: Rng,
        plain: bool,
        command_bytes: usize,
    ) -> Self {
        Self {
            group,
            rng,
            plain,
            // Session 0 means no session.
            session: plain.then_some(0),
            sequence: 0,
            writes: 0,
            record: None,
            once: BTreeMap::new(),
            target,
            attempt: 0,
            command_bytes,
            relief: false,
            done: false,
            more: 0,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.record.is_none() && self.more == 0
    }

    /// Lets the client do one last operation, which a healed cluster must serve.
    pub fn end(&mut self) {
        (self.done, self.more) = (true, 1);
    }

    /// Begins the next attempt: of the operation under way, or of a new one.
    pub fn next(&mut self, now_us: u64, records: &mut Vec<Record>) -> Option<Request> {
        let closing = self.is_closing();
        if self.record.is_none() && self.done && self.session.is_some() && !closing {
            self.more = self.more.checked_sub(1)?;
        }
        self.attempt += 1;
        let Some(session) = self.session else {
            let nonce = self.rng.next_u64();
            self.writes = nonce % WRITES_MAX + 1;
            return Some(Request::Open { nonce });
        };
        if closing {
            return Some(Request::Close { session });
        }
        let at = *self.record.get_or_insert_with(|| {
            let id = records.len() as u64 + 1;
            let write = self.rng.percent(70);
            records.push(Record {
                id,
                group: self.group,
                key: self.rng.below(KEYS),
                value: write.then_some(id),
                local: !write && !self.done && self.rng.percent(25),
                start_us: now_us,
                end_us: None,
                answer: None,
                applied: 0,
                tries: 0,
                refused: None,
            });
            self.sequence += u64::from(write && !self.plain);
            records.len() - 1
        });
        if self.plain && records[at].value.is_some() {
            self.once.insert(self.attempt, at);
        }
        let record = &mut records[at];
        record.tries += 1;
        Some(match record.value {
            Some(value) => {
                let relief = std::mem::take(&mut self.relief);
                let numbers = [record.id, record.key, value, u64::from(relief)];
                let mut payload: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
                payload.resize(payload.len().max(self.command_bytes), 0);
                let (sequence, lowest_unanswered) = (self.sequence, self.sequence);
                let payload = payload.into();
                let call = Call { session, sequence, lowest_unanswered, payload };
                Request::Write { call, relief }
            }
            None => Request::Read {
                request: Bytes::copy_from_slice(&record.key.to_le_bytes()),
                linearizable: !record.local,
            },
        })
    }

    /// Takes the answer to the current attempt. False if the request has to be sent again.
    pub fn answered(
        &mut self,
        answer: Result<Answer, Refusal>,
        now_us: u64,
        records: &mut [Record],
    ) -> bool {
        match answer {
            Ok(Answer::Opened(session)) => {
                (self.session, self.sequence) = (Some(session), 0);
                true
            }
            Ok(Answer::Ok(_)) if self.is_closing() => {
                self.session = None;
                true
            }
            Ok(Answer::Ok(old)) => self.ended(&old, 0, now_us, records),
            Ok(Answer::Rejected(Rejection::SessionExpired | Rejection::SessionFull)) => {
                // The fate of the operation stays unknown.
                (self.session, self.record) = (None, None);
                true
            }
            Ok(Answer::Rejected(Rejection::Frozen)) => {
                self.give_up(records);
                false
            }
            Ok(Answer::Rejected(Rejection::Skipped)) => {
                if let Some(at) = self.record.take() {
                    records[at].refused = Some("skipped".to_owned());
                }
                true
            }
            Ok(Answer::Rejected(
                Rejection::Guest(_)
                | Rejection::AnswerTooLarge { .. }
                | Rejection::AnswerNotKept { .. }
                | Rejection::TooManySessions,
            )) => {
                unreachable!(
                    "the guest rejects nothing, answers with eight bytes, and clients are few"
                )
            }
            Err(refusal) => {
                self.relief = matches!(refusal, Refusal::MemoryHigh { .. });
                if let Refusal::NotLeader { leader: Some(leader) } = refusal {
                    self.target = leader;
                }
                self.give_up(records);
                false
            }
        }
    }

    /// Takes the refusal of any attempt, late ones included. True if the refusal proves that a
    /// command that was sent once was not applied.
    pub fn told(&mut self, attempt: u64, refusal: &Refusal, records: &mut [Record]) -> bool {
        let Some(at) = self.once.remove(&attempt) else { return false };
        if matches!(refusal, Refusal::Unknown { .. }) {
            return false;
        }
        records[at].refused = Some(refusal.to_string());
        true
    }

    /// The attempt failed: a client without a session drops its command, which it must not repeat.
    pub fn give_up(&mut self, records: &[Record]) {
        if self.plain && self.record.take_if(|at| records[*at].value.is_some()).is_some() {
            self.more += u32::from(self.done);
        }
    }

    /// Whether all writes of the session are done: the client then asks to close the session until
    /// that succeeds.
    pub fn is_closing(&self) -> bool {
        let open = self.session.is_some() && !self.plain;
        open && self.record.is_none() && self.sequence >= self.writes
    }

    /// A read was served.
    pub fn read(&mut self, value: &Bytes, applied: u64, now_us: u64, records: &mut [Record]) {
        self.ended(value, applied, now_us, records);
    }

    fn ended(&mut self, bytes: &Bytes, applied: u64, now: u64, records: &mut [Record]) -> bool {
        let Some(at) = self.record.take() else { return true };
        let record = &mut records[at];
        record.answer = bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        (record.end_us, record.applied) = (Some(now), applied);
        true
    }

    pub fn record(&self) -> Option<usize> {
        self.record
    }
}

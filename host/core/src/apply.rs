//! What a committed entry means to the state machine: sessions, log time, and the guest call it
//! becomes.
//!
//! [`Ledger`] is owned by the apply lane. It is replicated state: every replica that applied the
//! same entries holds the same one, and it opens a snapshot's payload (the *envelope*), before the
//! guest's stream.
//!
//! - An entry becomes at most one guest call ([`Work::Apply`]).
//! - A call whose (session, sequence) was answered before gets the first answer and does not reach
//!   the guest.
//! - Log time never goes back, whatever leaders stamp.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};

use crate::codec::{DecodeError, Reader, Write};
use crate::entry::{Call, EntryBody, Install, Pack};
use crate::fault::Rejection;
use crate::limits;

mod sessions;

use sessions::Admission;
pub use sessions::Sessions;

const ENVELOPE_VERSION: u8 = 1;
/// Largest envelope: kept answers (what is lent, and each session's own), the session table, the
/// install record.
pub const ENVELOPE_BYTES_MAX: usize = limits::SESSION_ANSWER_BYTES_MAX
    + limits::SESSIONS_MAX * (limits::SESSION_OWN_ANSWER_BYTES + 64)
    + 2 * limits::GUEST_CONFIG_BYTES_MAX;

/// A replicated answer to a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Ok(Bytes),
    Rejected(Rejection),
    /// A session was opened; its id.
    Opened(u64),
}

impl Answer {
    /// Bytes that it holds of what the guest said.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Ok(bytes) | Self::Rejected(Rejection::Guest(bytes)) => bytes.len(),
            Self::Rejected(_) | Self::Opened(_) => 0,
        }
    }
}

/// What the apply lane reports after a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// The guest's applied index now.
    pub last: u64,
    /// The log's time there.
    pub time_ms: u64,
    /// Bytes of the entries just applied; returns them to the lane's allowance.
    pub bytes: usize,
    /// Answers of the entries that carried commands, by (index, term).
    pub answers: Vec<EntryAnswers>,
}

/// Answers of one entry, in the order of its commands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryAnswers {
    pub index: u64,
    pub term: u64,
    pub answers: Vec<Answer>,
}

/// What to do for one entry.
#[derive(Debug)]
pub enum Work {
    /// The guest is not concerned; `answers` may still be owed.
    Done(Vec<Answer>),
    /// Initialise the guest with this record.
    Init(Moment),
    /// Call the guest's `apply`, then [`Ledger::settle`].
    Apply(Plan),
}

/// Context of a guest call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    pub index: u64,
    pub time_ms: u64,
    pub seed: (u64, u64),
}

/// One guest call under way, and where its outcomes go.
#[derive(Debug)]
pub struct Plan {
    pub moment: Moment,
    /// What the guest is given: the calls that were not answered before.
    pub commands: Vec<Bytes>,
    slots: Vec<Slot>,
}

#[derive(Debug)]
enum Slot {
    /// The guest's next outcome answers this call.
    Run {
        session: u64,
        sequence: u64,
    },
    /// A repeated call of the same pack: answered like the earlier slot.
    Same(usize),
    Known(Answer),
}

/// What the guest said to one command.
pub enum Outcome {
    Ok(Bytes),
    Rejected(Bytes),
    /// So many bytes, which nobody took.
    TooLong {
        bytes: u64,
    },
}

/// The replicated state that the host keeps beside the guest's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    install: Option<Install>,
    applied: u64,
    log_time_ms: u64,
    sessions: Sessions,
}

impl Ledger {
    /// Index of the last entry admitted.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    pub fn install(&self) -> Option<&Install> {
        self.install.as_ref()
    }

    pub fn log_time_ms(&self) -> u64 {
        self.log_time_ms
    }

    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The context of the last applied entry, for queries.
    pub fn moment(&self) -> Moment {
        Moment { index: self.applied, time_ms: self.log_time_ms, seed: self.seed(self.applied) }
    }

    /// Takes the next entry; they come without gaps.
    pub fn admit(&mut self, entry: &Entry) -> Result<Work, DecodeError> {
        assert_eq!(entry.index, self.applied + 1, "entries are applied without gaps");
        let body = match entry.get_entry_type() {
            EntryType::EntryNormal => EntryBody::decode(entry.data.clone())?,
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => EntryBody::Empty,
        };
        self.applied = entry.index;
        Ok(match body {
            EntryBody::Empty => Work::Done(Vec::new()),
            EntryBody::Install(install) => {
                self.install = Some(install);
                Work::Init(self.moment())
            }
            EntryBody::Mark { time_ms, .. } => {
                self.advance_time(time_ms);
                Work::Done(Vec::new())
            }
            EntryBody::Open { time_ms, nonce } => {
                self.advance_time(time_ms);
                let place = (entry.index, entry.term);
                let id = self.sessions.open(place, nonce, self.log_time_ms);
                let full = Answer::Rejected(Rejection::TooManySessions);
                Work::Done(vec![id.map_or(full, Answer::Opened)])
            }
            EntryBody::Close { time_ms, session } => {
                self.advance_time(time_ms);
                self.sessions.close(session);
                Work::Done(vec![Answer::Ok(Bytes::new())])
            }
            EntryBody::Pack(pack) => self.admit_pack(pack),
        })
    }

    /// Pairs the guest's outcomes with the calls of `plan`; `None` if their number is wrong.
    pub fn settle(&mut self, plan: Plan, outcomes: Vec<Outcome>) -> Option<Vec<Answer>> {
        if outcomes.len() != plan.commands.len() {
            return None;
        }
        let mut outcomes = outcomes.into_iter();
        let mut answers: Vec<Answer> = Vec::with_capacity(plan.slots.len());
        for slot in plan.slots {
            let answer = match slot {
                Slot::Known(answer) => answer,
                Slot::Same(earlier) => answers[earlier].clone(),
                Slot::Run { session, sequence } => {
                    let answer = bounded(outcomes.next()?, self.outcome_bytes_max());
                    self.sessions.keep(session, sequence, &answer, self.log_time_ms);
                    answer
                }
            };
            answers.push(answer);
        }
        Some(answers)
    }

    fn admit_pack(&mut self, pack: Pack) -> Work {
        self.advance_time(pack.time_ms);
        let mut plan = Plan { moment: self.moment(), commands: Vec::new(), slots: Vec::new() };
        let mut running = std::collections::BTreeMap::new();
        for call in pack.calls {
            let Call { session, sequence, lowest_unanswered, payload } = call;
            let now_ms = self.log_time_ms;
            let slot = match self.sessions.admit(now_ms, session, sequence, lowest_unanswered) {
                Admission::Refused(rejection) => Slot::Known(Answer::Rejected(rejection)),
                Admission::Answered(answer) => Slot::Known(answer),
                Admission::New => match running.get(&(session, sequence)) {
                    Some(&earlier) if session != 0 => Slot::Same(earlier),
                    Some(_) | None => {
                        running.insert((session, sequence), plan.slots.len());
                        plan.commands.push(payload);
                        self.sessions.begin(session);
                        Slot::Run { session, sequence }
                    }
                },
            };
            plan.slots.push(slot);
        }
        if plan.commands.is_empty() {
            let answers = self.settle(plan, Vec::new()).expect("no command, no outcome");
            return Work::Done(answers);
        }
        Work::Apply(plan)
    }

    fn advance_time(&mut self, time_ms: u64) {
        self.log_time_ms = self.log_time_ms.max(time_ms);
    }

    fn outcome_bytes_max(&self) -> usize {
        self.install
            .as_ref()
            .map_or(limits::OUTCOME_BYTES_MAX, |install| install.profile.outcome_bytes as usize)
    }

    /// PRF(cluster seed, index): keyed BLAKE3.
    fn seed(&self, index: u64) -> (u64, u64) {
        let root = self.install.as_ref().map_or([0; 16], |install| install.seed);
        let mut key = [0; 32];
        key[..16].copy_from_slice(&root);
        let mut halves = [[0; 8]; 2];
        let digest = blake3::keyed_hash(&key, &index.to_le_bytes());
        halves[0].copy_from_slice(&digest.as_bytes()[..8]);
        halves[1].copy_from_slice(&digest.as_bytes()[8..16]);
        (u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1]))
    }

    /// The envelope that opens a snapshot's payload; the same bytes on every replica at one index.
    ///
    /// `envelope = length u32 · version u8 · log time u64 · install bytes · sessions`
    pub fn encode_envelope(&self) -> Vec<u8> {
        let mut body = vec![ENVELOPE_VERSION];
        body.put_u64(self.log_time_ms);
        let mut install = Vec::new();
        if let Some(record) = &self.install {
            record.encode(&mut install);
        }
        body.put_bytes(&install);
        self.sessions.encode(&mut body);
        let mut out = Vec::with_capacity(body.len() + 4);
        out.put_bytes(&body);
        out
    }

    /// Reads an envelope's body (behind its length); the snapshot was taken at `index`.
    pub fn decode_envelope(body: Bytes, index: u64) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, "snapshot envelope");
        reader.version(ENVELOPE_VERSION)?;
        let log_time_ms = reader.u64()?;
        let install = reader.bytes(limits::GUEST_CONFIG_BYTES_MAX + 4096)?;
        let install = match install.is_empty() {
            true => None,
            false => {
                let mut inner = Reader::new(install, "install record");
                let record = Install::decode(&mut inner)?;
                inner.finish()?;
                Some(record)
            }
        };
        let sessions = Sessions::decode(&mut reader)?;
        reader.finish()?;
        Ok(Self { install, applied: index, log_time_ms, sessions })
    }
}

fn bounded(outcome: Outcome, limit: usize) -> Answer {
    match outcome {
        Outcome::Ok(bytes) | Outcome::Rejected(bytes) if bytes.len() > limit => {
            Answer::Rejected(Rejection::AnswerTooLarge { bytes: bytes.len() as u64 })
        }
        Outcome::TooLong { bytes } => Answer::Rejected(Rejection::AnswerTooLarge { bytes }),
        Outcome::Ok(bytes) => Answer::Ok(bytes),
        Outcome::Rejected(bytes) => Answer::Rejected(Rejection::Guest(bytes)),
    }
}

//! What a committed entry means to the state machine: sessions, log time, and the guest call that
//! it becomes.
//!
//! The apply lane owns a [`Ledger`]. It is replicated state: all replicas that applied the same
//! entries hold the same one. In a snapshot's payload it is the *envelope*, before the guest's
//! stream.
//!
//! - An entry becomes at most one guest call ([`Work::Apply`]).
//! - A call whose (session, sequence) was answered before gets the first answer and does not reach
//!   the guest.
//! - Log time never decreases, whatever leaders stamp.
//! - What a guest emits, events and a setting of its timer, becomes part of the ledger once its
//!   call returned well ([`Ledger::settle`], [`Ledger::emitted`]).

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};

use crate::amendment::Amendments;
use crate::codec::{DecodeError, Reader, Write};
use crate::entry::{Bootstrap, Call, Commands, EntryBody, Limits, OnFault, Profile};
use crate::fault::Rejection;
use crate::ids::ModuleId;
use crate::limits;
use crate::mutant::{plant, planted};

mod events;
mod sessions;
mod timer;

pub use events::{Emitted, EventWindow, GuestEvent, KeptEvent, Position};
use sessions::Admission;
pub use sessions::Sessions;
pub use timer::{Deadline, LogClock, Setting};

const ENVELOPE_VERSION: u8 = 4;
/// Names no earlier module. Of all versions the lowest is written that holds what there is, so that
/// replicas of this release and of earlier ones write equal snapshots.
const ENVELOPE_VERSION_WITHOUT_UPGRADE: u8 = 3;
/// Has no switches: all of them are as at the bootstrap.
const ENVELOPE_VERSION_WITHOUT_SWITCHES: u8 = 2;
/// Largest envelope, bytes: kept answers (lent ones, and each session's own), the session table,
/// the events, the bootstrap record.
pub const ENVELOPE_BYTES_MAX: usize = limits::SESSION_ANSWER_BYTES_MAX
    + limits::SESSIONS_MAX * (limits::SESSION_OWN_ANSWER_BYTES + 64)
    + limits::EVENT_WINDOW_BYTES_MAX as usize
    + 2 * limits::GUEST_CONFIG_BYTES_MAX;

/// A replicated answer to a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Ok(Bytes),
    Rejected(Rejection),
    /// A session with this id was opened.
    Opened(u64),
}

impl Answer {
    /// Bytes of the guest's outcome in the answer.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Ok(bytes) | Self::Rejected(Rejection::Guest(bytes)) => bytes.len(),
            Self::Rejected(_) | Self::Opened(_) => 0,
        }
    }
}

/// What the apply lane reports after it applied a range of entries.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// The last entry that the guest applied.
    pub last: u64,
    /// The log's time at that entry, and what the guest's timer is set to; `None` if no entry was
    /// applied.
    pub clock: Option<LogClock>,
    /// Bytes of the entries just applied; the lane may be given as many again.
    pub bytes: usize,
    /// The answers of those entries that tickets wait for.
    pub answers: Vec<EntryAnswers>,
}

/// The answers of one entry, in the order of its commands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryAnswers {
    pub index: u64,
    pub term: u64,
    pub answers: Vec<Answer>,
}

/// What to do for one entry.
#[derive(Debug)]
pub enum Work {
    /// The guest is not called; these are the answers, if the entry has any.
    Done(Vec<Answer>),
    /// Call the guest's `init` with the bootstrap record.
    Init(Moment),
    /// Call the guest's `apply`, then [`Ledger::settle`].
    Apply(Plan),
    /// Call the guest's `wake`: its deadline was reached.
    Wake(Moment),
    /// The guest is not called; it has the limits of this profile from now on.
    Limit(Profile),
    /// Move the guest's state into one of this module, then [`Ledger::moved`].
    Move(ModuleId),
}

/// The context of a guest call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    pub index: u64,
    pub time_ms: u64,
    pub seed: (u64, u64),
}

/// A guest call under way, and which calls its outcomes answer.
#[derive(Debug)]
pub struct Plan {
    pub moment: Moment,
    /// The commands for the guest: those of the calls that were not answered before.
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
    /// The call repeats an earlier one of the same entry and gets the answer of the slot at this
    /// position.
    Same(usize),
    Known(Answer),
}

/// The guest's outcome of one command.
pub enum Outcome {
    Ok(Bytes),
    Rejected(Bytes),
    /// An answer of this many bytes, too long to be copied.
    TooLong {
        bytes: u64,
    },
    /// The entry is skipped.
    Skipped,
}

/// The replicated state that the host keeps beside the guest's state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    bootstrap: Option<Bootstrap>,
    applied: u64,
    log_time_ms: u64,
    /// What the guest's timer is set to.
    deadline: Option<Deadline>,
    switches: Switches,
    /// The module before the last upgrade.
    previous: Option<ModuleId>,
    sessions: Sessions,
    events: EventWindow,
}

/// What an operator has set for the whole group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Switches {
    /// No command and no wake-up reaches the guest.
    pub frozen: bool,
    pub on_fault: OnFault,
}

impl Ledger {
    /// The index of the last entry that was admitted.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    pub fn bootstrap(&self) -> Option<&Bootstrap> {
        self.bootstrap.as_ref()
    }

    pub fn log_time_ms(&self) -> u64 {
        self.log_time_ms
    }

    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub fn events(&self) -> &EventWindow {
        &self.events
    }

    /// The log's time, and what the guest's timer is set to.
    pub fn clock(&self) -> LogClock {
        LogClock {
            time_ms: self.log_time_ms,
            deadline: self.deadline,
            switches: self.switches,
            module: self.bootstrap.as_ref().map(|record| record.module),
            previous: self.previous,
        }
    }

    /// The context of the last admitted entry, for queries.
    pub fn moment(&self) -> Moment {
        Moment { index: self.applied, time_ms: self.log_time_ms, seed: self.seed(self.applied) }
    }

    /// Admits the next entry and says what to do for it, with the amendments that are known.
    /// Entries come without gaps.
    ///
    /// An entry that is skipped advances time and counts for sessions like any other, and a
    /// deadline that it is for is no longer pending.
    pub fn admit(&mut self, entry: &Entry, amendments: &Amendments) -> Result<Work, DecodeError> {
        let work = self.admit_as_written(entry)?;
        Ok(match work {
            Work::Apply(plan) if amendments.skips(entry.index) => {
                let skipped = plan.commands.iter().map(|_| Outcome::Skipped).collect();
                Work::Done(self.settle(plan, skipped).expect("each command has an outcome"))
            }
            Work::Wake(_) | Work::Move(_) if amendments.skips(entry.index) => {
                Work::Done(Vec::new())
            }
            Work::Limit(profile) => Work::Limit(amendments.lift(&profile, entry.index)),
            other => other,
        })
    }

    fn admit_as_written(&mut self, entry: &Entry) -> Result<Work, DecodeError> {
        assert_eq!(entry.index, self.applied + 1, "entries are applied without gaps");
        let body = match entry.get_entry_type() {
            EntryType::EntryNormal => EntryBody::decode(entry.data.clone())?,
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => EntryBody::Empty,
        };
        self.applied = entry.index;
        Ok(match body {
            EntryBody::Empty => Work::Done(Vec::new()),
            EntryBody::Bootstrap(bootstrap) => {
                self.bootstrap = Some(bootstrap);
                Work::Init(self.moment())
            }
            EntryBody::Checkpoint { time_ms, .. } => {
                self.advance_time(time_ms);
                Work::Done(Vec::new())
            }
            EntryBody::Open { time_ms, nonce } => {
                self.advance_time(time_ms);
                let now_ms = self.log_time_ms;
                let id = self.sessions.open(entry.index, entry.term, nonce, now_ms);
                let full = Answer::Rejected(Rejection::TooManySessions);
                Work::Done(vec![id.map_or(full, Answer::Opened)])
            }
            EntryBody::Close { time_ms, session } => {
                self.advance_time(time_ms);
                self.sessions.close(session);
                Work::Done(vec![Answer::Ok(Bytes::new())])
            }
            EntryBody::Commands(commands) => self.admit_commands(commands),
            EntryBody::Wake { time_ms, set_by } => {
                self.advance_time(time_ms);
                self.admit_wake(set_by)
            }
            EntryBody::Skip { time_ms, .. } => {
                self.advance_time(time_ms);
                Work::Done(Vec::new())
            }
            EntryBody::Limits { time_ms, limits } => {
                self.advance_time(time_ms);
                self.admit_limits(&limits)
            }
            EntryBody::Freeze { time_ms, frozen } => {
                self.advance_time(time_ms);
                self.switches.frozen = frozen;
                Work::Done(Vec::new())
            }
            EntryBody::OnFault { time_ms, on_fault } => {
                self.advance_time(time_ms);
                self.switches.on_fault = on_fault;
                Work::Done(Vec::new())
            }
            EntryBody::Verdict { time_ms, .. } => {
                self.advance_time(time_ms);
                Work::Done(Vec::new())
            }
            EntryBody::Upgrade { time_ms, module, resume_at } => {
                self.advance_time(time_ms);
                if resume_at == 0 { Work::Move(module) } else { Work::Done(Vec::new()) }
            }
        })
    }

    /// The guest is one of this module from now on.
    pub fn moved(&mut self, module: ModuleId) {
        if let Some(record) = &mut self.bootstrap {
            self.previous = Some(std::mem::replace(&mut record.module, module));
        }
    }

    /// Takes in what the guest emitted in the call for the last admitted entry.
    pub fn emitted(&mut self, emitted: Emitted) {
        match emitted.timer {
            Some(Setting::At(at_ms)) => {
                self.deadline = Some(Deadline { at_ms, set_by: self.applied });
            }
            Some(Setting::Never) => self.deadline = None,
            None => {}
        }
        let bytes_max = self.event_window_bytes();
        self.events.add(self.applied, self.log_time_ms, emitted, bytes_max);
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

    fn admit_commands(&mut self, commands: Commands) -> Work {
        self.advance_time(commands.time_ms);
        let mut plan = Plan { moment: self.moment(), commands: Vec::new(), slots: Vec::new() };
        let mut running = std::collections::BTreeMap::new();
        for call in commands.calls {
            if self.is_frozen() {
                plan.slots.push(Slot::Known(Answer::Rejected(Rejection::Frozen)));
                continue;
            }
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

    /// Whether the guest is to be called for the deadline that the entry `set_by` set: it must be
    /// pending still, and reached.
    fn admit_wake(&mut self, set_by: u64) -> Work {
        let now_ms = self.log_time_ms;
        if self.is_frozen() {
            return Work::Done(Vec::new());
        }
        if !self.deadline.is_some_and(|it| it.set_by == set_by && it.at_ms <= now_ms) {
            return Work::Done(Vec::new());
        }
        plant!("wake_again" skips self.deadline = None);
        Work::Wake(self.moment())
    }

    fn is_frozen(&self) -> bool {
        self.switches.frozen && !planted("apply_while_frozen")
    }

    fn admit_limits(&mut self, limits: &Limits) -> Work {
        match &mut self.bootstrap {
            Some(record) => {
                record.profile = record.profile.with(limits);
                Work::Limit(record.profile)
            }
            None => Work::Done(Vec::new()),
        }
    }

    fn advance_time(&mut self, time_ms: u64) {
        self.log_time_ms = self.log_time_ms.max(time_ms);
    }

    fn outcome_bytes_max(&self) -> usize {
        self.bootstrap
            .as_ref()
            .map_or(limits::OUTCOME_BYTES_MAX, |bootstrap| bootstrap.profile.outcome_bytes as usize)
    }

    /// The bound of the window of events, bytes.
    pub fn event_window_bytes(&self) -> usize {
        let bytes = |bootstrap: &Bootstrap| bootstrap.profile.event_window_bytes;
        self.bootstrap.as_ref().map_or(limits::EVENT_WINDOW_BYTES, bytes) as usize
    }

    /// The seed of an entry: a pseudo-random function of cluster seed and index (keyed BLAKE3).
    fn seed(&self, index: u64) -> (u64, u64) {
        let root = self.bootstrap.as_ref().map_or([0; 16], |bootstrap| bootstrap.seed);
        let mut key = [0; 32];
        key[..16].copy_from_slice(&root);
        let mut halves = [[0; 8]; 2];
        let digest = blake3::keyed_hash(&key, &index.to_le_bytes());
        halves[0].copy_from_slice(&digest.as_bytes()[..8]);
        halves[1].copy_from_slice(&digest.as_bytes()[8..16]);
        (u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1]))
    }

    /// The envelope, with which a snapshot's payload begins. At one index it has the same bytes on
    /// every replica.
    ///
    /// ```text
    /// envelope = length u32 · version u8 · log time u64 · timer · switches · previous ·
    ///            bootstrap bytes · sessions · events
    /// timer    = 0 u8, or 1 u8 · at ms u64 · set by u64
    /// switches = nothing in version 2, or frozen u8 · on fault u8
    /// previous = nothing before version 4, or module 32
    /// ```
    pub fn encode_envelope(&self) -> Vec<u8> {
        let switched = self.switches != Switches::default();
        let version = match (self.previous, switched) {
            (Some(_), _) => ENVELOPE_VERSION,
            (None, true) => ENVELOPE_VERSION_WITHOUT_UPGRADE,
            (None, false) => ENVELOPE_VERSION_WITHOUT_SWITCHES,
        };
        let mut body = vec![version];
        body.put_u64(self.log_time_ms);
        match self.deadline {
            Some(Deadline { at_ms, set_by }) if !planted("timer_not_in_envelope") => {
                body.put_u8(1);
                body.put_u64(at_ms);
                body.put_u64(set_by);
            }
            Some(_) | None => body.put_u8(0),
        }
        if version >= ENVELOPE_VERSION_WITHOUT_UPGRADE {
            body.put_u8(u8::from(self.switches.frozen));
            self.switches.on_fault.encode(&mut body);
        }
        if let Some(module) = self.previous {
            body.put_raw(&module.0);
        }
        let mut bootstrap = Vec::new();
        if let Some(record) = &self.bootstrap {
            record.encode(&mut bootstrap);
        }
        body.put_bytes(&bootstrap);
        self.sessions.encode(&mut body);
        self.events.encode(&mut body);
        let mut out = Vec::with_capacity(body.len() + 4);
        out.put_bytes(&body);
        out
    }

    /// Decodes an envelope without its length; the snapshot was taken at `index`.
    pub fn decode_envelope(body: Bytes, index: u64) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, "snapshot envelope");
        let version = reader.version_from(ENVELOPE_VERSION_WITHOUT_SWITCHES, ENVELOPE_VERSION)?;
        let log_time_ms = reader.u64()?;
        let deadline = match reader.u8()? {
            0 => None,
            1 => Some(Deadline { at_ms: reader.u64()?, set_by: reader.u64()? }),
            other => return Err(reader.unknown(u64::from(other))),
        };
        let switches = match version {
            ENVELOPE_VERSION_WITHOUT_SWITCHES => Switches::default(),
            _newer => Switches { frozen: reader.flag()?, on_fault: OnFault::decode(&mut reader)? },
        };
        let previous = match version {
            ENVELOPE_VERSION => Some(ModuleId(reader.array()?)),
            _older => None,
        };
        let encoded = reader.bytes(limits::GUEST_CONFIG_BYTES_MAX + 4096)?;
        let bootstrap = if encoded.is_empty() {
            None
        } else {
            let mut inner = Reader::new(encoded, "bootstrap record");
            let record = Bootstrap::decode(&mut inner)?;
            inner.finish()?;
            Some(record)
        };
        let sessions = Sessions::decode(&mut reader)?;
        let events = EventWindow::decode(&mut reader)?;
        reader.finish()?;
        Ok(Self {
            bootstrap,
            applied: index,
            log_time_ms,
            deadline,
            switches,
            previous,
            sessions,
            events,
        })
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
        Outcome::Skipped => Answer::Rejected(Rejection::Skipped),
    }
}

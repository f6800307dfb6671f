//! Sessions: why a retried command is applied once.
//!
//! A session's id is a digest of the index and term of the entry that opened it and of a nonce that
//! its client drew. The nonce matters where a lost majority was given up: another client's entry
//! may then take the same index and term, and its session must not be confused with the lost one.
//!
//! A client numbers its calls and says with each the lowest sequence whose answer it waits for; the
//! group keeps answers from there on.
//!
//! - A sequence is new, or its answer is kept, or it is below the client's lowest. In the last case
//!   the call is refused, never applied again.
//! - Whole sessions are evicted, never single answers: the client of an evicted session is told
//!   `SessionExpired`, and knows that the outcomes of its unanswered calls are unknown.
//! - No session is evicted before its time, which is log time; opening another session, or keeping
//!   more answers, is refused instead. So a client that calls now and then never loses its session
//!   to others.
//! - Kept answers have a bound in bytes. Each session owns a part of it; the rest is lent, and
//!   never more of it to one session than remains for the others.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::apply::Answer;
use crate::codec::{DecodeError, Reader, Write};
use crate::fault::Rejection;
use crate::limits;
use crate::mutant::{plant, planted};

/// Bytes that the shortest and the longest answer count.
const SHORTEST: usize = limits::SESSION_ANSWER_OVERHEAD_BYTES;
const LONGEST: usize = SHORTEST + limits::OUTCOME_BYTES_MAX;

/// All sessions of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sessions {
    sessions: BTreeMap<u64, Session>,
    /// (expiry, id) of every session: the first is evicted next.
    by_expiry: std::collections::BTreeSet<(u64, u64)>,
    answer_bytes: usize,
    /// Sessions evicted, and openings refused, since the bootstrap.
    evicted: u64,
    refused: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Session {
    /// The log's time from which the session may be evicted, ms.
    expires_ms: u64,
    /// Bytes that the session's kept answers count, plus the least that the answers of its calls
    /// under way will count.
    answer_bytes: usize,
    /// The client has the answers of all sequences below this one.
    lowest: u64,
    answers: BTreeMap<u64, Answer>,
}

pub(super) enum Admission {
    New,
    Answered(Answer),
    Refused(Rejection),
}

impl Sessions {
    pub fn count(&self) -> usize {
        self.sessions.len()
    }

    /// Bytes that all kept answers count against [`limits::SESSION_ANSWER_BYTES_MAX`].
    pub fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// Sessions evicted so far.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Openings refused so far.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Opens a session for the entry of `term` at `index`; returns the session's id, or `None` if
    /// there are too many sessions and none may be evicted.
    pub(super) fn open(&mut self, index: u64, term: u64, nonce: u64, now_ms: u64) -> Option<u64> {
        if self.sessions.len() >= limits::SESSIONS_MAX && !self.evict(now_ms) {
            self.refused += 1;
            return None;
        }
        let free = |id: &u64| *id != 0 && !self.sessions.contains_key(id);
        let ids = (0..).map(|attempt| session_id([index, term, nonce, attempt]));
        let id = ids.into_iter().find(free).expect("there are more ids than sessions");
        let expires_ms = now_ms.saturating_add(limits::SESSION_UNUSED_MS);
        self.sessions.insert(id, Session { expires_ms, ..Session::default() });
        self.by_expiry.insert((expires_ms, id));
        Some(id)
    }

    /// Closes a session that its client no longer needs. An unknown one counts as closed.
    pub(super) fn close(&mut self, id: u64) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.by_expiry.remove(&(session.expires_ms, id));
        self.answer_bytes -= session.answer_bytes;
    }

    /// Judges a call at log time `now_ms`. Calls outside of any session, with id 0, are always new.
    pub(super) fn admit(&mut self, now_ms: u64, id: u64, sequence: u64, lowest: u64) -> Admission {
        if id == 0 {
            return Admission::New;
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return Admission::Refused(Rejection::SessionExpired);
        };
        self.by_expiry.remove(&(session.expires_ms, id));
        session.expires_ms = now_ms.saturating_add(limits::SESSION_KEPT_MS);
        self.by_expiry.insert((session.expires_ms, id));
        if lowest > session.lowest {
            session.lowest = lowest;
            let kept = session.answers.split_off(&lowest);
            let acknowledged = std::mem::replace(&mut session.answers, kept);
            let freed = acknowledged.values().map(cost).sum::<usize>();
            session.answer_bytes -= freed;
            self.answer_bytes -= freed;
        }
        if sequence < session.lowest {
            return Admission::Refused(Rejection::SessionExpired);
        }
        if let Some(answer) = session.answers.get(&sequence)
            && !planted("apply_repeated_calls")
        {
            return Admission::Answered(answer.clone());
        }
        if sequence - session.lowest >= limits::SESSION_OPEN_CALLS_MAX as u64 {
            return Admission::Refused(Rejection::SessionFull);
        }
        if !self.has_space(id, SHORTEST..=LONGEST, now_ms) {
            return Admission::Refused(Rejection::SessionFull);
        }
        Admission::New
    }

    /// Notes that a call admitted as new is under way: it counts like the shortest answer for now.
    pub(super) fn begin(&mut self, id: u64) {
        self.charge(id, SHORTEST);
    }

    /// Keeps the answer of a call under way, unless a later call of the same entry acknowledged it
    /// already, so that kept answers lie within one window of open calls.
    pub(super) fn keep(&mut self, id: u64, sequence: u64, answer: &Answer, now_ms: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.answer_bytes -= SHORTEST;
        self.answer_bytes -= SHORTEST;
        if sequence < session.lowest {
            return;
        }
        let kept = if self.has_space(id, cost(answer)..=cost(answer), now_ms) {
            answer.clone()
        } else {
            Answer::Rejected(Rejection::AnswerNotKept { bytes: answer.bytes() as u64 })
        };
        self.charge(id, cost(&kept));
        let session = self.sessions.get_mut(&id).expect("a session just called is not evicted");
        session.answers.insert(sequence, kept);
    }

    fn charge(&mut self, id: u64, bytes: usize) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.answer_bytes += bytes;
        self.answer_bytes += bytes;
    }

    /// Whether a session may keep an answer with a cost in this range: the least cost fits in the
    /// part that it owns, or the greatest in what it may be lent. Evicts expired sessions until
    /// there is space.
    fn has_space(&mut self, id: u64, cost: RangeInclusive<usize>, now_ms: u64) -> bool {
        loop {
            let left = limits::SESSION_ANSWER_BYTES_MAX.saturating_sub(self.answer_bytes);
            let own = self.sessions.get(&id).map_or(0, |session| session.answer_bytes);
            if own + cost.start() <= limits::SESSION_OWN_ANSWER_BYTES || own + cost.end() <= left {
                return true;
            }
            if !self.evict(now_ms) {
                return false;
            }
        }
    }

    /// Evicts the session that expired first; false if none has expired.
    fn evict(&mut self, now_ms: u64) -> bool {
        let Some(&(expires_ms, id)) = self.by_expiry.first() else { return false };
        if expires_ms > now_ms && !planted("evict_young_sessions") {
            return false;
        }
        self.close(id);
        self.evicted += 1;
        true
    }

    /// `evicted u64 · refused u64 · count u32 · { id · expires ms · lowest · count u32 ·
    /// { sequence · kind u8 · ... } }`
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.evicted);
        out.put_u64(self.refused);
        out.put_count_within(self.sessions.len(), limits::SESSIONS_MAX);
        for (id, session) in &self.sessions {
            out.put_u64(*id);
            out.put_u64(session.expires_ms);
            out.put_u64(session.lowest);
            out.put_count_within(session.answers.len(), limits::SESSION_OPEN_CALLS_MAX);
            for (sequence, answer) in &session.answers {
                out.put_u64(*sequence);
                encode_answer(answer, out);
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let (evicted, refused) = (reader.u64()?, reader.u64()?);
        let mut all = Self { evicted, refused, ..Self::default() };
        for _ in 0..reader.count(limits::SESSIONS_MAX)? {
            let id = reader.u64()?;
            let mut session = Session {
                expires_ms: reader.u64()?,
                answer_bytes: 0,
                lowest: reader.u64()?,
                answers: BTreeMap::new(),
            };
            for _ in 0..reader.count(limits::SESSION_OPEN_CALLS_MAX)? {
                let sequence = reader.u64()?;
                let answer = decode_answer(reader)?;
                session.answer_bytes += cost(&answer);
                session.answers.insert(sequence, answer);
            }
            all.answer_bytes += session.answer_bytes;
            all.by_expiry.insert((session.expires_ms, id));
            all.sessions.insert(id, session);
        }
        plant!("sessions_forget" does return Ok(Self::default()));
        Ok(all)
    }
}

fn session_id(parts: [u64; 4]) -> u64 {
    plant!("session_is_its_index" does return parts[0]);
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part.to_le_bytes());
    }
    let mut head = [0; 8];
    head.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(head)
}

/// Bytes that an answer counts against the group's limit.
fn cost(answer: &Answer) -> usize {
    SHORTEST + answer.bytes()
}

fn encode_answer(answer: &Answer, out: &mut Vec<u8>) {
    match answer {
        Answer::Ok(bytes) => {
            out.put_u8(0);
            out.put_bytes(bytes);
        }
        Answer::Rejected(Rejection::Guest(bytes)) => {
            out.put_u8(1);
            out.put_bytes(bytes);
        }
        Answer::Rejected(Rejection::AnswerTooLarge { bytes }) => {
            out.put_u8(2);
            out.put_u64(*bytes);
        }
        Answer::Rejected(Rejection::SessionExpired) => out.put_u8(3),
        Answer::Rejected(Rejection::SessionFull) => out.put_u8(4),
        Answer::Opened(id) => {
            out.put_u8(5);
            out.put_u64(*id);
        }
        Answer::Rejected(Rejection::TooManySessions) => out.put_u8(6),
        Answer::Rejected(Rejection::AnswerNotKept { bytes }) => {
            out.put_u8(7);
            out.put_u64(*bytes);
        }
        Answer::Rejected(Rejection::Skipped) => out.put_u8(8),
        Answer::Rejected(Rejection::Frozen) => out.put_u8(9),
    }
}

fn decode_answer(reader: &mut Reader) -> Result<Answer, DecodeError> {
    Ok(match reader.u8()? {
        0 => Answer::Ok(reader.bytes(limits::OUTCOME_BYTES_MAX)?),
        1 => Answer::Rejected(Rejection::Guest(reader.bytes(limits::OUTCOME_BYTES_MAX)?)),
        2 => Answer::Rejected(Rejection::AnswerTooLarge { bytes: reader.u64()? }),
        3 => Answer::Rejected(Rejection::SessionExpired),
        4 => Answer::Rejected(Rejection::SessionFull),
        5 => Answer::Opened(reader.u64()?),
        6 => Answer::Rejected(Rejection::TooManySessions),
        7 => Answer::Rejected(Rejection::AnswerNotKept { bytes: reader.u64()? }),
        8 => Answer::Rejected(Rejection::Skipped),
        9 => Answer::Rejected(Rejection::Frozen),
        other => return Err(reader.unknown(u64::from(other))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a lost majority was given up, an entry with the index and even the term of a lost one
    /// may open another client's session.
    #[test]
    fn a_session_at_a_lost_ones_place_is_another() {
        let (mut lost, mut kept) = (Sessions::default(), Sessions::default());
        let first = lost.open(17, 6, 0x51, 0).expect("there are few sessions");
        let second = kept.open(17, 6, 0x52, 0).expect("there are few sessions");
        assert_ne!(first, second);
        let admission = kept.admit(1, first, 1, 1);
        assert!(matches!(admission, Admission::Refused(Rejection::SessionExpired)));
        assert!(matches!(kept.admit(1, second, 1, 1), Admission::New));
    }
}

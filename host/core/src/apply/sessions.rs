//! Sessions: why a retried command is applied once.
//!
//! A session's id is a digest of the index and term of the entry that opened it and of the nonce
//! that its client drew: where a lost majority was given up, another client's entry may come to
//! stand at the same place, and its session must not be taken for the lost one.
//!
//! A client numbers its calls and says with each the lowest sequence it still waits for; answers
//! from there on are kept.
//!
//! - A sequence is new, kept, or below the client's own lowest: the last is refused, never applied
//!   again.
//! - Only whole sessions are evicted (oldest last call first), never single answers: an evicted
//!   client is told `SessionExpired` and knows that it does not know.

use std::collections::BTreeMap;

use crate::apply::Answer;
use crate::codec::{DecodeError, Reader, Write};
use crate::fault::Rejection;
use crate::limits;
use crate::mutant::planted;

/// All sessions of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sessions {
    sessions: BTreeMap<u64, Session>,
    /// (last call, id) of every session: the first is the next to go.
    by_age: std::collections::BTreeSet<(u64, u64)>,
    answer_bytes: usize,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Session {
    /// Index of the entry that last called in it.
    last_call: u64,
    /// Sequences below it are answered and acknowledged.
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

    /// Bytes that the kept answers count against [`limits::SESSION_ANSWER_BYTES_MAX`].
    pub fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// Opens a session by the entry at (`index`, `term`); its id.
    pub(super) fn open(&mut self, index: u64, term: u64, nonce: u64) -> u64 {
        let free = |id: &u64| *id != 0 && !self.sessions.contains_key(id);
        let ids = (0..).map(|attempt| session_id([index, term, nonce, attempt]));
        let id = ids.into_iter().find(free).expect("there are more ids than sessions");
        while self.sessions.len() >= limits::SESSIONS_MAX {
            self.evict_oldest(None);
        }
        self.sessions.insert(id, Session { last_call: index, ..Session::default() });
        self.by_age.insert((index, id));
        id
    }

    /// Judges a call that the entry at `index` carries. Session 0 is nobody's: always new.
    pub(super) fn admit(&mut self, index: u64, id: u64, sequence: u64, lowest: u64) -> Admission {
        if id == 0 {
            return Admission::New;
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return Admission::Refused(Rejection::SessionExpired);
        };
        self.by_age.remove(&(session.last_call, id));
        session.last_call = index;
        self.by_age.insert((index, id));
        if lowest > session.lowest {
            session.lowest = lowest;
            let kept = session.answers.split_off(&lowest);
            let gone = std::mem::replace(&mut session.answers, kept);
            self.answer_bytes -= gone.values().map(cost).sum::<usize>();
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
        Admission::New
    }

    /// Keeps the answer of a call that was admitted as new, unless a later call of its pack said
    /// that nobody waits for it: kept answers lie within one window of open calls.
    pub(super) fn keep(&mut self, id: u64, sequence: u64, answer: &Answer) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if sequence < session.lowest {
            return;
        }
        session.answers.insert(sequence, answer.clone());
        self.answer_bytes += cost(answer);
        while self.answer_bytes > limits::SESSION_ANSWER_BYTES_MAX && self.sessions.len() > 1 {
            self.evict_oldest(Some(id));
        }
    }

    fn evict_oldest(&mut self, spare: Option<u64>) {
        let oldest = self.by_age.iter().find(|(_, id)| Some(*id) != spare).copied();
        let (last_call, id) = oldest.expect("there is another session to evict");
        self.by_age.remove(&(last_call, id));
        let session = self.sessions.remove(&id).expect("both indexes name the same sessions");
        self.answer_bytes -= session.answers.values().map(cost).sum::<usize>();
    }

    /// `count u32 · { id · last call · lowest · count u32 · { sequence · kind u8 · ... } }`
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_count_within(self.sessions.len(), limits::SESSIONS_MAX);
        for (id, session) in &self.sessions {
            out.put_u64(*id);
            out.put_u64(session.last_call);
            out.put_u64(session.lowest);
            out.put_count_within(session.answers.len(), limits::SESSION_OPEN_CALLS_MAX);
            for (sequence, answer) in &session.answers {
                out.put_u64(*sequence);
                encode_answer(answer, out);
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut all = Self::default();
        for _ in 0..reader.count(limits::SESSIONS_MAX)? {
            let id = reader.u64()?;
            let mut session = Session {
                last_call: reader.u64()?,
                lowest: reader.u64()?,
                answers: BTreeMap::new(),
            };
            for _ in 0..reader.count(limits::SESSION_OPEN_CALLS_MAX)? {
                let sequence = reader.u64()?;
                let answer = decode_answer(reader)?;
                all.answer_bytes += cost(&answer);
                session.answers.insert(sequence, answer);
            }
            all.by_age.insert((session.last_call, id));
            all.sessions.insert(id, session);
        }
        if planted("sessions_forget") {
            return Ok(Self::default());
        }
        Ok(all)
    }
}

fn session_id(parts: [u64; 4]) -> u64 {
    if planted("session_is_its_index") {
        return parts[0];
    }
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part.to_le_bytes());
    }
    let mut head = [0; 8];
    head.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(head)
}

/// Bytes an answer counts against the group's limit.
fn cost(answer: &Answer) -> usize {
    32 + match answer {
        Answer::Ok(bytes) | Answer::Rejected(Rejection::Guest(bytes)) => bytes.len(),
        Answer::Rejected(_) | Answer::Opened(_) => 0,
    }
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
        other => return Err(reader.unknown(u64::from(other))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a lost majority was given up, another client's session is opened by an entry at the
    /// place of the lost one, in the same term even.
    #[test]
    fn d2_a_session_at_a_lost_ones_place_is_another() {
        let (mut lost, mut kept) = (Sessions::default(), Sessions::default());
        let first = lost.open(17, 6, 0x51);
        let second = kept.open(17, 6, 0x52);
        assert_ne!(first, second);
        let admission = kept.admit(18, first, 1, 1);
        assert!(matches!(admission, Admission::Refused(Rejection::SessionExpired)));
        assert!(matches!(kept.admit(19, second, 1, 1), Admission::New));
    }
}

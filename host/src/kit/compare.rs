//! What differs between two replicas that should be equal, in words.

use lockstep_core::apply::{Answer, GuestEvent, Setting};
use lockstep_core::fault::Rejection;

use super::player::Trace;
use super::text::{around, first_difference, show};
use crate::guest::{NoAnswer, Outcome};
use bytes::Bytes;

/// The first thing that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    pub what: String,
    /// As the first instance has it, which only applied the entries.
    pub first: String,
    /// As the other one has it.
    pub other: String,
}

impl Difference {
    pub(super) fn of(what: impl Into<String>, first: String, other: String) -> Self {
        Self { what: what.into(), first, other }
    }
}

/// Compares what an entry brought about. Fuel may differ.
pub fn traces(first: &Trace, other: &Trace) -> Option<Difference> {
    if first.woken != other.woken {
        let woken = |trace: &Trace| if trace.woken { "woken" } else { "not woken" }.to_owned();
        return Some(Difference::of("whether it is woken", woken(first), woken(other)));
    }
    let answers = first.outcomes.iter().zip(&other.outcomes).zip(1..);
    for ((one, two), number) in answers {
        if one != two {
            let what = format!("the answer to command {number}");
            return Some(Difference::of(what, outcome(one), outcome(two)));
        }
    }
    if first.outcomes.len() != other.outcomes.len() {
        let count = |trace: &Trace| trace.outcomes.len().to_string();
        return Some(Difference::of("the number of answers", count(first), count(other)));
    }
    for (place, number) in (0..first.events.len().max(other.events.len())).zip(1..) {
        let (one, two) = (first.events.get(place), other.events.get(place));
        if one != two {
            return Some(Difference::of(format!("event {number}"), event(one), event(two)));
        }
    }
    if first.set != other.set {
        let what = "what the timer is set to";
        return Some(Difference::of(what, setting(first.set), setting(other.set)));
    }
    if first.deadline_ms != other.deadline_ms {
        let deadline = |trace: &Trace| trace.deadline_ms.map(Setting::At);
        let (one, two) = (setting(deadline(first)), setting(deadline(other)));
        return Some(Difference::of("the deadline", one, two));
    }
    None
}

/// Compares two strings of bytes, such as snapshots.
pub fn bytes(what: &str, first: &[u8], other: &[u8]) -> Option<Difference> {
    let place = first_difference(first, other)?;
    let what = format!("{what}, from byte {place} on");
    Some(Difference::of(what, around(first, place), around(other, place)))
}

/// Compares two digests; a guest without any has nothing to compare.
pub fn digests(first: Option<&Bytes>, other: Option<&Bytes>) -> Option<Difference> {
    let digest = |it: Option<&Bytes>| it.map_or_else(|| "none".to_owned(), |it| show(it));
    (first != other).then(|| Difference::of("the digest", digest(first), digest(other)))
}

/// Compares the answers to one query.
pub fn answers(
    first: &Result<Bytes, NoAnswer>,
    other: &Result<Bytes, NoAnswer>,
) -> Option<Difference> {
    (first != other)
        .then(|| Difference::of("the answer to the query", answer(first), answer(other)))
}

pub fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Ok(bytes) => show(bytes),
        Outcome::Rejected(bytes) => rejected(bytes),
        Outcome::TooLong { bytes } => too_long(*bytes),
    }
}

/// What the ledger answers to a call.
pub fn answered(answer: &Answer) -> String {
    match answer {
        Answer::Ok(bytes) => show(bytes),
        Answer::Rejected(Rejection::Guest(bytes)) => rejected(bytes),
        Answer::Rejected(rejection) => format!("rejected: {rejection}"),
        Answer::Opened(session) => format!("session {session}"),
    }
}

pub fn answer(answer: &Result<Bytes, NoAnswer>) -> String {
    match answer {
        Ok(bytes) => show(bytes),
        Err(NoAnswer::Rejected(bytes)) => rejected(bytes),
        Err(NoAnswer::TooLong { bytes }) => too_long(*bytes),
    }
}

fn rejected(reason: &[u8]) -> String {
    format!("rejected: {}", show(reason))
}

fn too_long(bytes: u64) -> String {
    format!("an answer of {bytes} bytes, which is too long")
}

pub fn event(event: Option<&GuestEvent>) -> String {
    match event {
        Some(event) => format!("{} {}", show(event.topic.as_bytes()), show(&event.payload)),
        None => "none".to_owned(),
    }
}

pub fn setting(setting: Option<Setting>) -> String {
    match setting {
        Some(Setting::At(ms)) => format!("{ms} ms"),
        Some(Setting::Never) => "no time".to_owned(),
        None => "not set".to_owned(),
    }
}

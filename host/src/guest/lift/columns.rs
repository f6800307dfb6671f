//! The outcomes of an entry as a guest returns them: in columns, checked before a byte is copied.
//!
//! - A guest says where each answer ends, so its length is known first: of one that is too long,
//!   only the length is taken.
//! - Columns that contradict each other are the guest's mistake, and are described in a sentence
//!   ([`Columns::Malformed`]).
//!
//! wasmtime's own types would copy all answers before anything is checked, so [`Columns`]
//! implements wasmtime's traits by hand, as [`super`] does.

use bytes::Bytes;
use lockstep_core::limits;
use wasmtime::ValRaw;
use wasmtime::component::__internal::{CanonicalAbiInfo, InstanceType, InterfaceType, LiftContext};
use wasmtime::component::{ComponentType, Lift};

use super::Place;
use crate::guest::Outcome;

/// The record `outcomes` as wasmtime knows it, for its type and layout.
#[derive(ComponentType)]
#[component(record)]
#[expect(dead_code, reason = "only its type is used")]
struct Shape {
    ends: Vec<u32>,
    data: Vec<u8>,
    rejected: Vec<u32>,
    omitted: Vec<Omission>,
}

#[derive(ComponentType)]
#[component(record)]
#[expect(dead_code, reason = "only its type is used")]
struct Omission {
    position: u32,
    bytes: u64,
}

/// The outcomes of an entry.
pub(crate) enum Columns {
    Outcomes(Vec<Outcome>),
    /// What is wrong with the columns.
    Malformed(String),
}

// SAFETY: type and layout are those of `Shape`, which wasmtime derives.
unsafe impl ComponentType for Columns {
    /// Four pairs of a pointer and a length.
    type Lower = [ValRaw; 8];
    const ABI: CanonicalAbiInfo = Shape::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        Shape::typecheck(ty, types)
    }
}

// SAFETY: memory is only read through slices.
unsafe impl Lift for Columns {
    fn linear_lift_from_flat(
        _: &mut LiftContext<'_>,
        _: InterfaceType,
        _: &Self::Lower,
    ) -> wasmtime::Result<Self> {
        Err(wasmtime::Error::msg("a record of lists is returned in memory"))
    }

    fn linear_lift_from_memory(
        cx: &mut LiftContext<'_>,
        _: InterfaceType,
        record: &[u8],
    ) -> wasmtime::Result<Self> {
        const MAX: usize = limits::ENTRY_COMMANDS_MAX;
        let column = |at: usize| record.get(8 * at..8 * at + 8).unwrap_or_default();
        let (ends, data) = (Place::in_memory(column(0))?, Place::in_memory(column(1))?);
        let (rejected, omitted) = (Place::in_memory(column(2))?, Place::in_memory(column(3))?);
        if ends.length() > MAX {
            return Ok(Self::Malformed(count(ends.length())));
        }
        if rejected.length() > ends.length() || omitted.length() > ends.length() {
            let why = "more commands are rejected or omitted than there are outcomes";
            return Ok(Self::Malformed(why.to_owned()));
        }
        let number = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
        let ends = ends.elements(cx, u32::ALIGN32)?.iter().map(number);
        let rejected = rejected.elements(cx, u32::ALIGN32)?.iter().map(number);
        let omitted = omitted.elements(cx, Omission::ALIGN32)?.iter().map(omission);
        Ok(match outcomes(ends, data.all(cx)?, rejected, omitted) {
            Ok(outcomes) => {
                let copied = |outcome: &Outcome| match outcome {
                    Outcome::Ok(answer) | Outcome::Rejected(answer) => answer.len(),
                    Outcome::TooLong { .. } => 0,
                };
                cx.consume_fuel(outcomes.iter().map(copied).sum())?;
                Self::Outcomes(outcomes)
            }
            Err(why) => Self::Malformed(why),
        })
    }
}

/// What is wrong with a number of outcomes that no entry can have.
fn count(outcomes: usize) -> String {
    format!("{outcomes} outcomes, and an entry has at most {} commands", limits::ENTRY_COMMANDS_MAX)
}

/// The position and the length of an [`Omission`], as it lies in memory.
fn omission(bytes: &[u8; Omission::SIZE32]) -> (u32, u64) {
    let [a, b, c, d, _, _, _, _, length @ ..] = *bytes;
    (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(length))
}

/// The outcomes that the columns hold, or what is wrong with them.
fn outcomes(
    ends: impl ExactSizeIterator<Item = u32>,
    data: &[u8],
    rejected: impl Iterator<Item = u32>,
    omitted: impl Iterator<Item = (u32, u64)>,
) -> Result<Vec<Outcome>, String> {
    let (mut rejected, mut omitted) = (rejected.peekable(), omitted.peekable());
    let mut outcomes = Vec::with_capacity(ends.len());
    let mut start = 0;
    for (position, end) in (0..).zip(ends) {
        let end = end as usize;
        let answer = data.get(start..end).ok_or_else(|| {
            let bytes = data.len();
            format!("answer {position} goes from {start} to {end}, in data of {bytes} bytes")
        })?;
        start = end;
        let refused = rejected.next_if_eq(&position).is_some();
        let left_out = omitted.next_if(|(at, _)| *at == position).map(|(_, bytes)| bytes);
        outcomes.push(match left_out {
            Some(_) if !answer.is_empty() => {
                return Err(format!("answer {position} is omitted, and there nonetheless"));
            }
            Some(bytes) => Outcome::TooLong { bytes },
            None if answer.len() > limits::OUTCOME_BYTES_MAX => {
                Outcome::TooLong { bytes: answer.len() as u64 }
            }
            None if refused => Outcome::Rejected(Bytes::copy_from_slice(answer)),
            None => Outcome::Ok(Bytes::copy_from_slice(answer)),
        });
    }
    if start != data.len() {
        return Err(format!("the answers end at {start}, in data of {} bytes", data.len()));
    }
    if let Some(position) = rejected.next().or(omitted.next().map(|(position, _)| position)) {
        let which = "the positions of rejected or omitted commands";
        return Err(format!("{which} do not ascend, or there is no command {position}"));
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `expect` lists the outcomes: `+answer`, `-reason`, a length; or a part of what is wrong.
    fn check(
        ends: &[u32],
        data: &str,
        rejected: &[u32],
        omitted: &[(u32, u64)],
        expect: Result<&str, &str>,
    ) {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let shown = |outcome: &Outcome| match outcome {
            Outcome::Ok(answer) => format!("+{}", text(answer)),
            Outcome::Rejected(reason) => format!("-{}", text(reason)),
            Outcome::TooLong { bytes } => bytes.to_string(),
        };
        let (of_ends, of_rejected) = (ends.iter().copied(), rejected.iter().copied());
        let of_omitted = omitted.iter().copied();
        match (outcomes(of_ends, data.as_bytes(), of_rejected, of_omitted), expect) {
            (Ok(found), Ok(expect)) => {
                let found: Vec<_> = found.iter().map(shown).collect();
                assert_eq!(found.join(" "), expect);
            }
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (found, _) => panic!("{ends:?} {data:?} {rejected:?} {omitted:?}: {found:?}"),
        }
    }

    #[test]
    fn columns_are_taken_apart() {
        check(&[], "", &[], &[], Ok(""));
        check(&[2, 2, 5], "okwhy", &[2], &[], Ok("+ok + -why"));
        check(&[1, 1], "a", &[0], &[(1, 70_000)], Ok("-a 70000"));
        check(&[0], "", &[0], &[(0, 9)], Ok("9"));
        let long = "x".repeat(limits::OUTCOME_BYTES_MAX + 1);
        check(&[long.len() as u32], &long, &[], &[], Ok("65537"));
        let longest = "x".repeat(limits::OUTCOME_BYTES_MAX);
        check(&[longest.len() as u32], &longest, &[], &[], Ok(&format!("+{longest}")));
    }

    #[test]
    fn columns_that_contradict_each_other_are_described() {
        check(&[2, 1], "ab", &[], &[], Err("answer 1 goes from 2 to 1"));
        check(&[3], "ab", &[], &[], Err("answer 0 goes from 0 to 3, in data of 2 bytes"));
        check(&[1], "ab", &[], &[], Err("the answers end at 1, in data of 2 bytes"));
        check(&[], "ab", &[], &[], Err("the answers end at 0"));
        check(&[1, 2], "ab", &[1, 0], &[], Err("no command 0"));
        check(&[1, 2], "ab", &[0, 0], &[], Err("no command 0"));
        check(&[1, 2], "ab", &[2], &[], Err("no command 2"));
        check(&[1, 1], "a", &[], &[(7, 1)], Err("no command 7"));
        check(&[1, 2], "ab", &[], &[(0, 70_000)], Err("answer 0 is omitted, and there"));
    }
}

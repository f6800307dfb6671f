//! A case: a list of steps to try on a state machine, and how it is made up and shown.
//!
//! - A case is a function of seed, number and source: it can be repeated.
//! - Cases grow with their number, so that what fails at once fails in a small case.
//! - Every case has a snapshot in it.

use std::fmt;

use bytes::Bytes;
use serde_json::{Value, json};

use super::player::entry_space;
use super::source::{Source, SourceError};
use super::text::{show, text_or_hex};
use crate::rng::Rng;

/// Most steps in a case.
const STEPS_MAX: u64 = 40;
/// Steps of the first case.
const STEPS_MIN: u64 = 4;
/// Most commands in an entry of a case: more find no other bugs, and cost time.
const COMMANDS_MAX: u64 = 16;
/// Longest that a case waits in a step, ms of the log's time.
const WAIT_MS_MAX: u64 = 20_000;

/// What happens next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// An entry with these commands, stamped so much later than what was before. A deadline that is
    /// reached by it is not woken yet: a server does not look at each moment.
    Entry { after_ms: u64, commands: Vec<Bytes> },
    /// A query.
    Query(Bytes),
    /// Time passes, and wakes the guest whenever its deadline is reached.
    Wait { ms: u64 },
    /// Time passes up to the deadline that is set, if one is.
    Due,
    /// A snapshot is taken. From here on an instance that restored it must do as the first one.
    Snapshot,
    /// An instance is dropped, and rebuilt from the last snapshot and the entries after it.
    Kill,
}

/// A list of steps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Case {
    pub steps: Vec<Step>,
}

impl Case {
    /// Makes up the case of this number.
    pub fn make(seed: u64, number: u64, source: &mut Source) -> Result<Self, SourceError> {
        let mut rng = Rng::of_case(seed, number);
        let most = (STEPS_MIN + number / 2).min(STEPS_MAX);
        let count = STEPS_MIN + rng.below(most - STEPS_MIN + 1);
        let mut steps = Vec::new();
        for _ in 0..count {
            steps.push(Step::make(&mut rng, source)?);
        }
        if !steps.contains(&Step::Snapshot) {
            let place = rng.below(steps.len() as u64 + 1) as usize;
            steps.insert(place, Step::Snapshot);
        }
        Ok(Self { steps })
    }

    /// The number of commands in all steps.
    pub fn commands(&self) -> usize {
        let commands = |step: &Step| match step {
            Step::Entry { commands, .. } => commands.len(),
            Step::Query(_) | Step::Wait { .. } | Step::Due | Step::Snapshot | Step::Kill => 0,
        };
        self.steps.iter().map(commands).sum()
    }

    pub fn to_json(&self) -> Value {
        self.steps.iter().map(Step::to_json).collect()
    }
}

impl Step {
    fn make(rng: &mut Rng, source: &mut Source) -> Result<Self, SourceError> {
        Ok(match rng.below(100) {
            0..55 => Self::entry(rng, source)?,
            55..68 => match source.query(rng)? {
                Some(query) => Self::Query(query),
                None => Self::entry(rng, source)?,
            },
            68..76 => Self::Wait { ms: rng.below(WAIT_MS_MAX) },
            76..87 => Self::Due,
            87..95 => Self::Snapshot,
            _rest => Self::Kill,
        })
    }

    fn entry(rng: &mut Rng, source: &mut Source) -> Result<Self, SourceError> {
        let after_ms = match rng.below(4) {
            0 => rng.below(WAIT_MS_MAX),
            _soon => rng.below(10),
        };
        let count = match rng.below(4) {
            0 => 1 + rng.below(COMMANDS_MAX),
            1 => 2 + rng.below(3),
            _one => 1,
        };
        let mut fits = entry_space();
        let made = (0..count).map(|_| source.command(rng));
        let commands = made.take_while(|made| made.as_ref().map_or(true, &mut fits));
        Ok(Self::Entry { after_ms, commands: commands.collect::<Result<_, _>>()? })
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Entry { after_ms, commands } => {
                let commands: Vec<_> =
                    commands.iter().map(|command| text_or_hex(command)).collect();
                json!({ "step": "entry", "after_ms": after_ms, "commands": commands })
            }
            Self::Query(request) => json!({ "step": "query", "request": text_or_hex(request) }),
            Self::Wait { ms } => json!({ "step": "wait", "ms": ms }),
            Self::Due => json!({ "step": "due" }),
            Self::Snapshot => json!({ "step": "snapshot" }),
            Self::Kill => json!({ "step": "kill" }),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry { after_ms, commands } => {
                let commands: Vec<_> = commands.iter().map(|command| show(command)).collect();
                write!(f, "entry     {}", commands.join(", "))?;
                if *after_ms > 0 {
                    write!(f, "   ({after_ms} ms later)")?;
                }
                Ok(())
            }
            Self::Query(request) => write!(f, "query     {}", show(request)),
            Self::Wait { ms } => write!(f, "wait      {ms} ms"),
            Self::Due => write!(f, "wait      up to the deadline, if one is set"),
            Self::Snapshot => write!(f, "snapshot"),
            Self::Kill => write!(f, "kill      and rebuild from the last snapshot"),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "  {number:>2}  {step}")?;
        }
        Ok(())
    }
}

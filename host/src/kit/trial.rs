//! A trial: many cases, until one fails, which is shrunk.

use std::sync::Arc;

use super::case::Case;
use super::player::{ConfigRefused, Maker};
use super::property::{Broken, Checker, Property, Stop};
use super::seen::Seen;
use super::shrink::shrink;
use super::source::{Source, SourceError};
use lockstep_core::fault::GuestFault;

/// What to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// The number of the first case.
    pub first: u64,
    pub cases: u64,
    /// Whether the author claims it, in addition to what the source says.
    pub independent_of_packing: bool,
}

/// What a trial found.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The cases that were carried out, the failing one included.
    pub cases: u64,
    pub properties: Vec<Property>,
    pub seen: Seen,
    pub failure: Option<Failure>,
}

/// A case that fails.
#[derive(Clone, Debug)]
pub struct Failure {
    pub number: u64,
    /// The steps that the case had before it was shrunk.
    pub steps: usize,
    pub case: Case,
    pub broken: Broken,
}

/// Why there is no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TrialError {
    #[error("{0}")]
    Source(#[from] SourceError),
    #[error(transparent)]
    Refused(ConfigRefused),
    #[error(
        "this machine could not run the state machine: {0}; try again with fewer programs beside"
    )]
    Host(GuestFault),
}

impl Tried {
    /// What an author may want to know if nothing failed.
    pub fn notes(&self, exports_wake: bool) -> Vec<String> {
        let Self { seen, properties, .. } = self;
        let mut notes = Vec::new();
        if self.failure.is_some() {
            return notes;
        }
        if seen.fuel_drift_max > 0 {
            notes.push(format!(
                "after a restore, an entry took up to {} more or less fuel than without: no bug, \
                 but a limit of fuel may then be met on one replica only",
                seen.fuel_drift_max
            ));
        }
        if exports_wake && seen.timers_set == 0 {
            notes.push(
                "`wake` is exported, and no case set the timer: it was not tested; add commands \
                 that set it"
                    .to_owned(),
            );
        }
        if seen.commands > 0 && seen.rejected * 10 > seen.commands * 9 {
            notes.push(format!(
                "{} of {} commands were rejected: make up commands that are accepted more often",
                seen.rejected, seen.commands
            ));
        }
        if seen.queries == 0 {
            notes.push("no query was tried: add some, as lines that begin with ?".to_owned());
        }
        if !properties.contains(&Property::Packing) {
            notes.push(
                "that packing does not matter is not claimed, and was not tested: claim it with \
                 --independent-of-packing, in `self-test`, or in the file of templates"
                    .to_owned(),
            );
        }
        notes
    }
}

/// Tries cases until one fails.
pub fn run(maker: &Arc<Maker>, source: &mut Source, plan: Plan) -> Result<Tried, TrialError> {
    let claimed = source.claims_independence_of_packing()?;
    let independent_of_packing = claimed || plan.independent_of_packing;
    let checker = Checker { maker, independent_of_packing };
    let properties = checker.properties().collect();
    let mut tried = Tried { cases: 0, properties, seen: Seen::default(), failure: None };
    for number in (plan.first..).take(plan.cases as usize) {
        let case = Case::make(plan.seed, number, source)?;
        tried.cases += 1;
        match checker.check(&case) {
            Ok(seen) => tried.seen.add(&seen),
            Err(Stop::Host(fault)) => return Err(TrialError::Host(fault)),
            Err(Stop::Broken(broken)) => {
                if let Some(refused) = refused_config(&broken) {
                    return Err(TrialError::Refused(refused));
                }
                tried.failure = Some(shrunk(&checker, number, case, *broken));
                break;
            }
        }
    }
    Ok(tried)
}

/// An `init` that says no is no bug.
fn refused_config(broken: &Broken) -> Option<ConfigRefused> {
    use super::property::How;
    match &broken.how {
        How::Fault(fault) => ConfigRefused::of(fault.clone()).ok(),
        How::Differs(_) => None,
    }
}

fn shrunk(checker: &Checker<'_>, number: u64, case: Case, broken: Broken) -> Failure {
    let (steps, mut last) = (case.steps.len(), broken.clone());
    let case = shrink(case, |smaller| match checker.check_only(smaller, broken.property) {
        Err(Stop::Broken(found)) if found.resembles(&broken) => {
            last = *found;
            true
        }
        Err(Stop::Broken(_) | Stop::Host(_)) | Ok(_) => false,
    });
    Failure { number, steps, case, broken: last }
}

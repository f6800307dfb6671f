//! `lockstep test`: looks for cases in which a state machine breaks its contract.

use std::fmt::Write as _;
use std::sync::Arc;

use lockstep_core::entry::Profile;
use serde_json::{Value, json};

use crate::cli::format::size;
use crate::cli::kit::{ComponentArgs, GroupArgs, SourceArgs, TEMPLATES_HELP, component, quoted};
use crate::cli::{Failure, Outcome};
use crate::guest::check::WAKE;
use crate::kit::property::{How, Property};
use crate::kit::seen::Seen;
use crate::kit::trial::{self, Plan, TrialError, Tried};
use crate::logging::out;

const EXAMPLES: &str = "\
Examples:
  lockstep test target/guests/kv.wasm
  lockstep test kv.wasm --commands kv.commands --cases 1000
  lockstep test kv.wasm --seed 7 --case 17      repeats one case

Exit codes: 0 every case holds; 1 a case fails; 2 usage, or `init` refuses the configuration.";

/// Look for cases in which a state machine breaks its contract.
///
/// Each case is a list of entries, queries, waits, snapshots and restarts, carried out in this
/// process with the server's engine and limits. A case that fails is shrunk and shown.
#[derive(clap::Args)]
#[command(after_help = format!("{TEMPLATES_HELP}\n\n{EXAMPLES}"))]
pub(crate) struct Args {
    #[command(flatten)]
    of: ComponentArgs,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    group: GroupArgs,
    /// Number from which all cases follow; by default another one each time.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Number of cases.
    #[arg(long, value_name = "N", default_value_t = 200)]
    cases: u64,
    /// Carry out this case only.
    #[arg(long, value_name = "K")]
    case: Option<u64>,
    /// Test, too, that it does not matter how commands are packed into entries.
    #[arg(long)]
    independent_of_packing: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let module = Arc::new(component(&args.of.module)?);
    let mut source = args.source.source(&*module)?;
    let seed = match args.seed {
        Some(seed) => seed,
        None => u64::from(getrandom::u32().map_err(no_seed)?),
    };
    let maker = args.group.maker(Arc::clone(&module) as _, seed)?;
    let plan = Plan {
        seed,
        first: args.case.unwrap_or(0),
        cases: if args.case.is_some() { 1 } else { args.cases },
        independent_of_packing: args.independent_of_packing,
    };
    let tried = trial::run(&maker, &mut source, plan).map_err(|error| match error {
        TrialError::Refused(_) => Failure::Usage(error.to_string()),
        TrialError::Source(_) | TrialError::Host(_) => Failure::Failed(error.to_string()),
    })?;
    let report = module.report();
    let told = Told {
        name: format!("{} {}", report.info.name, report.info.version),
        seed,
        limits: maker.bootstrap.profile,
        notes: tried.notes(report.exports(WAKE)),
        repeat: tried.failure.as_ref().map(|failure| args.repeat(seed, failure.number)),
        tried,
    };
    if args.of.json {
        out!("{}", told.to_json());
    } else {
        out!("{}", told.to_text().trim_end());
    }
    match told.tried.failure {
        Some(_) => Err(Failure::Unwell(1)),
        None => Ok(()),
    }
}

fn no_seed(error: getrandom::Error) -> Failure {
    Failure::Failed(format!("no seed can be drawn: {error}; give one with --seed"))
}

impl Args {
    /// The line that repeats a case.
    fn repeat(&self, seed: u64, case: u64) -> String {
        let module = quoted(&self.of.module.display().to_string());
        let packing = if self.independent_of_packing { " --independent-of-packing" } else { "" };
        let (source, group) = (self.source.repeated(), self.group.repeated());
        format!("lockstep test {module}{source}{group}{packing} --seed {seed} --case {case}")
    }
}

/// All that is told.
struct Told {
    name: String,
    seed: u64,
    limits: Profile,
    tried: Tried,
    notes: Vec<String>,
    repeat: Option<String>,
}

impl Told {
    fn to_text(&self) -> String {
        if let Some(text) = self.failure_to_text() {
            return text;
        }
        let (name, cases, seed) = (&self.name, self.tried.cases, self.seed);
        let mut text = format!("{name}: {cases} cases hold (seed {seed})\n");
        let names: Vec<_> = self.tried.properties.iter().map(|it| it.name()).collect();
        // Writing to a string does not fail.
        let _ = writeln!(text, "  properties  {}", names.join(", "));
        let Profile { memory_bytes, fuel_entry, fuel_command, .. } = self.limits;
        let memory = size(memory_bytes);
        let _ = writeln!(
            text,
            "  limits      memory {memory}; fuel {fuel_entry} for an entry and {fuel_command} for \
             each command"
        );
        seen_to_text(&mut text, &self.tried.seen);
        for note in &self.notes {
            let _ = writeln!(text, "  note        {note}");
        }
        text
    }

    fn failure_to_text(&self) -> Option<String> {
        let failure = self.tried.failure.as_ref()?;
        let broken = &failure.broken;
        let mut text = format!(
            "{}: case {} fails (seed {}): {}\n\n{}\n\n{}\n",
            self.name,
            failure.number,
            self.seed,
            broken.property.name(),
            broken.means(),
            failure.case,
        );
        let step = match broken.step {
            0 => "in `init`".to_owned(),
            step => format!("at step {step}"),
        };
        match &broken.how {
            How::Fault(fault) => {
                let _ = writeln!(text, "{step}, {}:\n  {fault}", broken.who);
            }
            How::Differs(difference) => {
                let first = "the first instance";
                let width = first.len().max(broken.who.len());
                let _ = writeln!(text, "{step}, {} differs:", difference.what);
                let _ = writeln!(text, "  {first:width$}  {}", difference.first);
                let _ = writeln!(text, "  {:width$}  {}", broken.who, difference.other);
            }
        }
        let steps = failure.steps;
        let _ = writeln!(text, "\nshrunk from {steps} steps; to repeat it:");
        let _ = writeln!(text, "  {}", self.repeat.as_deref().unwrap_or_default());
        Some(text)
    }

    fn to_json(&self) -> Value {
        let Tried { cases, properties, seen, failure } = &self.tried;
        let failure = failure.as_ref().map(|failure| {
            let broken = &failure.broken;
            let mut told = json!({
                "case": failure.number,
                "property": broken.property.name(),
                "means": broken.means(),
                "step": broken.step,
                "instance": broken.who,
                "steps": failure.case.to_json(),
                "steps_before_shrinking": failure.steps,
                "repeat": self.repeat,
            });
            match &broken.how {
                How::Fault(fault) => told["fault"] = fault.to_string().into(),
                How::Differs(difference) => {
                    told["differs"] = json!({
                        "what": difference.what,
                        "first": difference.first,
                        "other": difference.other,
                    });
                }
            }
            told
        });
        json!({
            "name": self.name,
            "seed": self.seed,
            "ok": failure.is_none(),
            "cases": cases,
            "limits": {
                "memory_bytes": self.limits.memory_bytes,
                "entry_fuel": self.limits.fuel_entry,
                "command_fuel": self.limits.fuel_command,
            },
            "properties": properties.iter().copied().map(Property::name).collect::<Vec<_>>(),
            "seen": seen_to_json(seen),
            "notes": self.notes,
            "failure": failure,
        })
    }
}

fn seen_to_text(text: &mut String, seen: &Seen) {
    if seen.entries == 0 {
        return;
    }
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:10}  {value}");
    };
    line(
        "commands",
        format!(
            "{} in {} entries, {} of them rejected; {} queries, {} restores",
            seen.commands, seen.entries, seen.rejected, seen.queries, seen.restores
        ),
    );
    line(
        "fuel",
        format!(
            "a command took {} on average, {} at most",
            seen.fuel_command_mean(),
            seen.fuel_command_max
        ),
    );
    line(
        "memory",
        format!(
            "{} at most; the largest snapshot has {}",
            size(seen.memory_bytes_max),
            size(seen.snapshot_bytes_max)
        ),
    );
    line(
        "events",
        format!(
            "{}; the timer was set {} times and fired {} times",
            seen.events, seen.timers_set, seen.timers_fired
        ),
    );
}

fn seen_to_json(seen: &Seen) -> Value {
    json!({
        "entries": seen.entries,
        "commands": seen.commands,
        "rejected": seen.rejected,
        "queries": seen.queries,
        "restores": seen.restores,
        "command_fuel_mean": seen.fuel_command_mean(),
        "command_fuel_max": seen.fuel_command_max,
        "fuel_drift_max": seen.fuel_drift_max,
        "memory_bytes_max": seen.memory_bytes_max,
        "snapshot_bytes_max": seen.snapshot_bytes_max,
        "events": seen.events,
        "timers_set": seen.timers_set,
        "timers_fired": seen.timers_fired,
    })
}

//! `lockstep replay`: replays what happened in a group against a component, from a stopped node's
//! log or an export of it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::cli::kit::component;
use crate::cli::serve::LinesArg;
use crate::cli::{Failure, Outcome};
use crate::config::NodeConfig;
use crate::fs::DiskFs;
use crate::guest::{GuestLog, GuestModule, Module};
use crate::kit::export::{self, Export, ExportError};
use crate::kit::past::{Past, PastError, StoppedLog};
use crate::kit::replay::{End, Plan, Replay, ReplayError, Step, Who};
use crate::logging::{self, out};

mod json;
mod text;

/// Entries before the end that are shown, unless others are asked for.
const LAST_SHOWN: usize = 20;

/// Replay what happened in a group, to see why a state machine trapped or diverged.
///
/// Reads the log of a stopped node, or an export of it, and changes nothing. Begins with the newest
/// snapshot before the entries in question, or with entry 1.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lockstep replay kv.wasm --data-dir data/1 --group kv
  lockstep replay kv.wasm --data-dir data/1 --group kv --entries 4100..4120
  lockstep replay old.wasm --data-dir data/1 --group kv --against new.wasm
  lockstep replay --export kv.lockstep --data-dir data/1 --group kv
  lockstep replay kv.wasm kv.lockstep

Exit codes: 0 the entries were applied; 1 a call fails, the modules differ, or the log lists a
snapshot with another digest; 2 usage.")]
pub(crate) struct Args {
    /// The component; it need not be the one with which the group was bootstrapped.
    #[arg(value_name = "FSM.wasm", required_unless_present = "export", conflicts_with = "export")]
    module: Option<PathBuf>,
    /// A file that --export wrote, instead of a data directory.
    #[arg(value_name = "EXPORT", conflicts_with_all = ["data_dir", "config", "group"])]
    file: Option<PathBuf>,
    /// The data directory of a stopped node.
    #[arg(long, value_name = "DIR", requires = "group")]
    data_dir: Option<PathBuf>,
    /// The node's configuration, instead of --data-dir: finds snapshots outside of it, too.
    #[arg(long, value_name = "FILE", requires = "group", conflicts_with = "data_dir")]
    config: Option<PathBuf>,
    /// The group.
    #[arg(long)]
    group: Option<String>,
    /// The last entry; by default the last one that is known to be committed.
    #[arg(long, value_name = "INDEX")]
    until: Option<u64>,
    /// Apply entries, too, that are in the log and not known to be committed.
    #[arg(long)]
    uncommitted: bool,
    /// Begin with this snapshot, 0 for entry 1; `lockstep snapshot list` shows them.
    #[arg(long, value_name = "INDEX")]
    from_snapshot: Option<u64>,
    /// Show these entries, such as 7, 7..9 (all three) or `..` (all); by default the last 20.
    #[arg(long, value_name = "A..B")]
    entries: Option<Shown>,
    /// Give this component the same entries, and stop where the two differ.
    #[arg(long, value_name = "OTHER.wasm", conflicts_with = "export")]
    against: Option<PathBuf>,
    /// Write the entries and the snapshot before them to this new file, to be replayed elsewhere.
    #[arg(long, value_name = "FILE", requires = "group")]
    export: Option<PathBuf>,
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    lines: LinesArg,
}

/// Entries to show, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shown {
    first: u64,
    last: u64,
}

impl FromStr for Shown {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str, default| match text {
            "" => Ok(default),
            text => text.parse().map_err(|_| format!("{text:?} is no index; write 7, 7..9 or ..")),
        };
        let (first, last) = match text.split_once("..") {
            Some((first, last)) => (number(first, 0)?, number(last, u64::MAX)?),
            None if text.is_empty() => return Err("write 7, 7..9 or ..".to_owned()),
            None => (number(text, 0)?, number(text, 0)?),
        };
        if last < first {
            return Err(format!("{last} is before {first}"));
        }
        Ok(Self { first, last })
    }
}

/// The components, and the names under which they are shown.
pub(super) struct Names {
    pub(super) first: String,
    pub(super) other: String,
    /// What the first one says of itself.
    pub(super) title: String,
    /// The id of the first one.
    pub(super) id: lockstep_core::ids::ModuleId,
}

impl Names {
    fn of(&self, who: Who) -> &str {
        match who {
            Who::First => &self.first,
            Who::Other => &self.other,
        }
    }
}

pub(crate) fn run(args: &Args) -> Outcome {
    logging::start("warn", &args.lines.filter, logging::Format::Text)?;
    let past = args.past()?;
    if let Some(file) = &args.export {
        return args.write(&*past, file);
    }
    let path = args.module.as_deref().ok_or_else(|| {
        Failure::Usage("give the component to replay against, FSM.wasm, or --export".to_owned())
    })?;
    let module = component(path)?;
    let report = module.report();
    let names = Names {
        first: path.display().to_string(),
        other: args.against.as_deref().map(|it| it.display().to_string()).unwrap_or_default(),
        title: format!("{} {}", report.info.name, report.info.version),
        id: module.id(),
    };
    let module: Module = Arc::new(module);
    let against = match &args.against {
        Some(path) => Some(Arc::new(component(path)?) as Module),
        None => None,
    };
    let log = GuestLog::of_no_group();
    let plan = args.plan();
    let replay = Replay::begin(&*past, &module, against.as_ref(), &plan, &log);
    let replay = replay.map_err(|error| failed(&error))?;
    if args.json {
        out!("{}", json::begun(&names, past.facts(), replay.begun()));
    } else {
        out!("{}", text::begun(&names, past.facts(), &plan, replay.begun()).trim_end());
    }
    let end = args.follow(replay)?;
    if args.json {
        out!("{}", json::end(&names, &end));
    } else {
        out!("{}", text::end(&names, &end).trim_end());
    }
    match end {
        End::Reached(_) => Ok(()),
        End::Faulted { .. } | End::Differs { .. } | End::Diverged { .. } => Err(Failure::Unwell(1)),
    }
}

impl Args {
    fn plan(&self) -> Plan {
        Plan {
            until: self.until,
            uncommitted: self.uncommitted,
            from_snapshot: self.from_snapshot,
            look: self.entries.map(|shown| shown.first.max(1)),
        }
    }

    fn past(&self) -> Result<Box<dyn Past>, Failure> {
        if let Some(file) = &self.file {
            let export = Export::open(&DiskFs, file);
            let refused = |error| Failure::Failed(format!("{}: {error}", file.display()));
            return Ok(Box::new(export.map_err(refused)?));
        }
        let group = self.group.as_deref().ok_or_else(nothing_given)?;
        let (data, apart) = match (&self.data_dir, &self.config) {
            (Some(data), _) => (data.clone(), None),
            (None, Some(file)) => {
                let config = NodeConfig::load(file).map_err(|e| Failure::Usage(e.to_string()))?;
                let spec = config.groups.into_iter().find(|spec| spec.name == group);
                (config.data_dir, spec.and_then(|spec| spec.snapshot_dir))
            }
            (None, None) => return Err(nothing_given()),
        };
        let stopped = StoppedLog::open(Arc::new(DiskFs), &data, group, apart);
        Ok(Box::new(stopped.map_err(|error| refused(&error))?))
    }

    /// Applies the entries, and prints those that are to be shown.
    fn follow(&self, replay: Replay<'_>) -> Result<End, Failure> {
        let print = |step: &Step| {
            if self.json {
                out!("{}", json::step(step));
            } else {
                out!("{}", text::step(step).trim_end());
            }
        };
        let mut last = VecDeque::new();
        let end = replay.run(&mut |step| match self.entries {
            Some(Shown { first, last }) if (first..=last).contains(&step.index) => print(&step),
            Some(_) => {}
            None => {
                if last.len() == LAST_SHOWN {
                    last.pop_front();
                }
                last.push_back(step);
            }
        });
        last.iter().for_each(print);
        end.map_err(|error| failed(&error))
    }

    fn write(&self, past: &dyn Past, path: &Path) -> Outcome {
        let shown = path.display();
        let refuse = |error: std::io::Error| {
            Failure::Failed(format!("{shown}: {error}; give the name of a file that can be made"))
        };
        let file = std::fs::File::create_new(path).map_err(refuse)?;
        let mut file = std::io::BufWriter::new(file);
        match export::write(past, &self.plan(), &mut file) {
            Ok(exported) if self.json => out!("{}", json::exported(path, &exported)),
            Ok(exported) => out!("{}", text::exported(path, &exported).trim_end()),
            Err(error) => {
                drop(file);
                let _ = std::fs::remove_file(path);
                return Err(match error {
                    ExportError::Replay(error) => failed(&error),
                    ExportError::Snapshot { .. }
                    | ExportError::Write(_)
                    | ExportError::Read(_)
                    | ExportError::TooLarge { .. }
                    | ExportError::Decode(_) => Failure::Failed(format!("{shown}: {error}")),
                });
            }
        }
        Ok(())
    }
}

fn nothing_given() -> Failure {
    Failure::Usage("give --data-dir and --group, or a file that --export wrote".to_owned())
}

fn refused(error: &PastError) -> Failure {
    match error {
        PastError::Log(_) => Failure::Failed(format!("the log cannot be replayed: {error}")),
        PastError::NoLog(_)
        | PastError::DataDir(_)
        | PastError::UnknownGroup { .. }
        | PastError::Nothing { .. } => Failure::Usage(error.to_string()),
    }
}

fn failed(error: &ReplayError) -> Failure {
    match error {
        ReplayError::Until { .. }
        | ReplayError::NoSuchSnapshot { .. }
        | ReplayError::NoneBelow { .. }
        | ReplayError::Cut { .. } => Failure::Usage(error.to_string()),
        ReplayError::NoBeginning(_)
        | ReplayError::NoBootstrap
        | ReplayError::Module(_)
        | ReplayError::Entry { .. } => Failure::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::entry::{EntryBody, Limits, OnFault};
    use serde_json::Value;

    use super::*;
    use crate::kit::player::Trace;
    use crate::kit::replay::Kind;

    /// How an order is told: in text, and what its object has beside what every entry has.
    #[test]
    fn orders_are_told() {
        let check = |body: EntryBody, says: &str, more: Value| {
            let (kind, trace) = (Kind::Body(body), Trace::default());
            let step = Step { index: 7, term: 2, kind, time_ms: 30, trace, snapshot: None };
            assert_eq!(text::step(&step), format!("entry 7, term 2, 30 ms: {says}\n"));
            let told = json::step(&step);
            let told = told.as_object().expect("it is an object").iter();
            let of_all =
                ["entry", "term", "time_ms", "kind", "fuel", "events", "woken", "deadline_ms"];
            let own = told.filter(|(name, _)| !of_all.contains(&name.as_str()));
            let own: serde_json::Map<_, _> = own.map(|(k, v)| (k.clone(), v.clone())).collect();
            assert_eq!(Value::Object(own), more, "{says}");
        };
        let time_ms = 30;
        let skip = EntryBody::Skip { time_ms, index: 5 };
        check(skip, "entry 5 is skipped", serde_json::json!({ "skips": 5 }));
        let on_fault = |on_fault| EntryBody::OnFault { time_ms, on_fault };
        let always = "from here on, an entry at which all replicas halt";
        check(
            on_fault(OnFault::Skip),
            &format!("{always} is skipped"),
            serde_json::json!({ "on_fault": "skip" }),
        );
        check(
            on_fault(OnFault::Halt),
            &format!("{always} waits for an operator"),
            serde_json::json!({ "on_fault": "halt" }),
        );
        let limits = |limits| EntryBody::Limits { time_ms, limits };
        let all = Limits {
            memory_bytes: Some(2 << 30),
            fuel_entry: Some(10_000_000),
            fuel_command: Some(7),
        };
        check(
            limits(all),
            "the group has other limits: memory 2.0 GiB, fuel of an entry 10000000, fuel of each \
             command 7",
            serde_json::json!({
                "memory_bytes": 2_u64 << 30, "entry_fuel": 10_000_000, "command_fuel": 7,
            }),
        );
        check(
            limits(Limits { memory_bytes: Some(1 << 30), ..Limits::default() }),
            "the group has other limits: memory 1.0 GiB",
            serde_json::json!({
                "memory_bytes": 1 << 30, "entry_fuel": null, "command_fuel": null,
            }),
        );
        let freeze = |frozen| EntryBody::Freeze { time_ms, frozen };
        check(freeze(true), "the group is frozen", serde_json::json!({ "frozen": true }));
        check(freeze(false), "the group goes on", serde_json::json!({ "frozen": false }));
    }

    #[test]
    fn entries_are_named_with_both_ends() {
        let check = |text: &str, expect: Option<(u64, u64)>| {
            let shown = text.parse::<Shown>().ok().map(|it| (it.first, it.last));
            assert_eq!(shown, expect, "{text}");
        };
        check("7", Some((7, 7)));
        check("7..9", Some((7, 9)));
        check("7..", Some((7, u64::MAX)));
        check("..9", Some((0, 9)));
        check("..", Some((0, u64::MAX)));
        check("9..7", None);
        check("", None);
        check("x", None);
    }
}

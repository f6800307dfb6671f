//! A replay as people read it.

use std::fmt::Write as _;
use std::path::Path;

use lockstep_core::apply::Answer;
use lockstep_core::entry::{Call, CheckpointReason, EntryBody, Limits, OnFault};
use lockstep_core::fault::GuestFault;

use super::Names;
use crate::cli::format::{one_line, size};
use crate::kit::compare::{self, Difference};
use crate::kit::export::Exported;
use crate::kit::past::Facts;
use crate::kit::replay::{Begun, End, Kind, Place, Plan, Standing, Start, Step, Who};
use crate::kit::text::show;

/// Commands and events of an entry that are shown.
const SHOWN_MAX: usize = 16;

/// Writes a line; writing to a string does not fail.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => {
        let _ = writeln!($text, $($arg)*);
    };
}

pub(super) fn begun(names: &Names, facts: &Facts, plan: &Plan, begun: &Begun) -> String {
    let mut text = String::new();
    let Facts { group, replica, last_index, .. } = facts;
    let group = one_line(group.as_bytes());
    line!(text, "{}, group {group} as replica {replica} has it", names.title);
    if begun.bootstrapped != names.id {
        line!(text, "  module     {} is another than the group's:", names.first);
        line!(text, "             {}, not {}", names.id, begun.bootstrapped);
    }
    for (index, why) in &begun.passed {
        line!(text, "  passed     the snapshot at {index}: {why}");
    }
    let first = match begun.start {
        Start::First => {
            line!(text, "  begins     with entry 1");
            1
        }
        Start::Snapshot { index, digest } => {
            line!(text, "  begins     with the snapshot at {index}, {digest}");
            index + 1
        }
    };
    match begun.until {
        until if until < first => {
            line!(text, "  entries    none");
        }
        until => {
            line!(text, "  entries    {first} to {until}");
        }
    }
    if begun.left > 0 {
        let not_these = match begun.left {
            1 => format!("entry {last_index}"),
            _more => format!("entries {} to {last_index}", begun.until + 1),
        };
        let why = match plan.until {
            Some(_) => "after --until",
            None => "not known to be committed; --uncommitted applies them",
        };
        line!(text, "  left out   {not_these}: {why}");
    }
    if !names.other.is_empty() && !begun.compares_snapshots {
        line!(text, "  note       snapshots of different formats are not compared");
    }
    text
}

pub(super) fn exported(path: &Path, exported: &Exported) -> String {
    let mut text = String::new();
    for (index, why) in &exported.passed {
        line!(text, "passed over the snapshot at {index}: {why}");
    }
    let begin = match exported.snapshot {
        Some(index) => format!("the snapshot at {index}"),
        None => "no snapshot".to_owned(),
    };
    let entries = match (exported.first, exported.last) {
        (first, last) if last < first => "no entry".to_owned(),
        (first, last) => format!("the entries {first} to {last}"),
    };
    line!(text, "{}: {begin} and {entries}, {}", path.display(), size(exported.bytes));
    if exported.left > 0 {
        let last = exported.last + exported.left;
        line!(text, "the log goes on up to entry {last}, which is not in the file");
    }
    line!(text, "the file holds commands, events and state as they are: see to whom you give it");
    text
}

pub(super) fn step(step: &Step) -> String {
    let mut text = head(step);
    let trace = &step.trace;
    commands(&mut text, &step.kind, &trace.answers);
    for event in trace.events.iter().take(SHOWN_MAX) {
        line!(text, "  event     {}", compare::event(Some(event)));
    }
    more(&mut text, trace.events.len(), "events");
    if trace.set.is_some() {
        line!(text, "  timer     set to {}", compare::setting(trace.set));
    }
    if let Some(digest) = step.snapshot {
        line!(text, "  snapshot  {digest}");
    }
    text
}

pub(super) fn end(names: &Names, end: &End) -> String {
    let mut text = String::new();
    match end {
        End::Reached(reached) => standing(&mut text, reached),
        End::Faulted { place, faults } => {
            place_to_text(&mut text, place);
            for (who, fault) in faults {
                fault_to_text(&mut text, names, *who, fault);
            }
            if !names.other.is_empty() && faults.len() == 1 {
                let well = if faults[0].0 == Who::First { Who::Other } else { Who::First };
                let name = names.of(well);
                line!(text, "\n{name} does not fail there");
            }
        }
        End::Differs { place, difference } => {
            place_to_text(&mut text, place);
            let Difference { what, first, other } = difference;
            let width = names.first.len().max(names.other.len());
            line!(text, "\n{}, {what} differs:", place_name(place));
            line!(text, "  {:width$}  {first}", names.first);
            line!(text, "  {:width$}  {other}", names.other);
        }
        End::Diverged { step: at, listed } => {
            text.push_str(&step(at));
            line!(text, "\nafter entry {}, the state is not that of the snapshot there:", at.index);
            let replayed = at.snapshot.map(|digest| digest.to_string()).unwrap_or_default();
            line!(text, "  replayed  {replayed}");
            line!(text, "  listed    {}", listed.digest);
        }
    }
    text
}

fn standing(text: &mut String, reached: &Standing) {
    let Standing { applied, time_ms, events, digest, .. } = reached;
    let digest = digest.as_deref().map_or_else(|| "none of its own".to_owned(), show);
    let timer = reached.deadline_ms.map_or("no time".to_owned(), |ms| format!("{ms} ms"));
    line!(text, "applied up to entry {applied}");
    line!(text, "  log time   {time_ms} ms");
    line!(text, "  events     {events} in the window");
    line!(text, "  timer      {timer}");
    line!(text, "  digest     {digest}");
    line!(text, "  snapshot   {} ({})", reached.snapshot, size(reached.snapshot_bytes));
    line!(text, "  memory     {}", size(reached.memory_bytes));
    line!(text, "  fuel       {}", reached.fuel);
}

fn place_to_text(text: &mut String, place: &Place) {
    match place {
        Place::Entry(at) => text.push_str(&step(at)),
        Place::After(_) => {}
    }
}

fn place_name(place: &Place) -> String {
    match place {
        Place::Entry(step) => format!("at entry {}", step.index),
        Place::After(index) => format!("after entry {index}, the last one"),
    }
}

/// The message of a fault ends with the innermost functions.
fn fault_to_text(text: &mut String, names: &Names, who: Who, fault: &GuestFault) {
    let name = names.of(who);
    let GuestFault { class, call, index, message } = fault;
    let index = index.map(|index| format!(" at index {index}")).unwrap_or_default();
    line!(text, "\n{name}: {class} in {call}{index}:");
    let (message, frames) = match message.rsplit_once("; in ") {
        Some((message, frames)) => (message, frames),
        None => (message.as_str(), ""),
    };
    for said in message.lines() {
        line!(text, "  {}", one_line(said.as_bytes()));
    }
    for frame in frames.split(" < ").filter(|frame| !frame.is_empty()) {
        line!(text, "    in {}", one_line(frame.as_bytes()));
    }
}

fn head(step: &Step) -> String {
    let Step { index, term, time_ms, trace, .. } = step;
    let fuel = if trace.fuel > 0 { format!(", fuel {}", trace.fuel) } else { String::new() };
    format!("entry {index}, term {term}, {time_ms} ms: {}{fuel}\n", name(step))
}

/// What an entry is, in words.
fn name(step: &Step) -> String {
    match &step.kind {
        Kind::Members => "a change of the members".to_owned(),
        Kind::Body(EntryBody::Empty) => "a leader's first, without content".to_owned(),
        Kind::Body(EntryBody::Bootstrap(_)) => "the bootstrap record".to_owned(),
        Kind::Body(EntryBody::Commands(commands)) => match commands.calls.len() {
            1 => "1 command".to_owned(),
            count => format!("{count} commands"),
        },
        Kind::Body(EntryBody::Open { .. }) => match step.trace.answers.first() {
            Some(Answer::Opened(session)) => format!("session {session} is opened"),
            Some(Answer::Rejected(rejection)) => format!("no session is opened: {rejection}"),
            Some(Answer::Ok(_)) | None => "a session is opened".to_owned(),
        },
        Kind::Body(EntryBody::Close { session, .. }) => format!("session {session} is closed"),
        Kind::Body(EntryBody::Checkpoint { reason, .. }) => {
            format!("a checkpoint ({})", reason_name(*reason))
        }
        Kind::Body(EntryBody::Wake { set_by, .. }) if step.trace.woken => {
            format!("a wake, for the timer that entry {set_by} set")
        }
        Kind::Body(EntryBody::Skip { index, .. }) => format!("entry {index} is skipped"),
        Kind::Body(EntryBody::Limits { limits, .. }) => {
            format!("the group has other limits: {}", changed(limits))
        }
        Kind::Body(EntryBody::Freeze { frozen: true, .. }) => "the group is frozen".to_owned(),
        Kind::Body(EntryBody::Freeze { frozen: false, .. }) => "the group goes on".to_owned(),
        Kind::Body(EntryBody::OnFault { on_fault: OnFault::Skip, .. }) => {
            "from here on, an entry at which all replicas halt is skipped".to_owned()
        }
        Kind::Body(EntryBody::OnFault { on_fault: OnFault::Halt, .. }) => {
            "from here on, an entry at which all replicas halt waits for an operator".to_owned()
        }
        Kind::Body(EntryBody::Verdict { index, against, .. }) => {
            let nodes: Vec<String> = against.iter().map(|it| it.node().to_string()).collect();
            format!("the snapshot at entry {index} of node {} is another one", nodes.join(", "))
        }
        Kind::Body(EntryBody::Upgrade { module, resume_at: 0, .. }) => {
            format!("the group goes over to module {module}")
        }
        Kind::Body(EntryBody::Upgrade { module, resume_at, .. }) => {
            format!("module {module} applies from entry {resume_at} on")
        }
        Kind::Body(EntryBody::Wake { set_by, .. }) => {
            format!("a wake, for the timer that entry {set_by} set; it is not pending")
        }
    }
}

/// The limits that are changed.
fn changed(limits: &Limits) -> String {
    let Limits { fuel_entry, fuel_command, memory_bytes } = limits;
    let changed = [
        memory_bytes.map(|bytes| format!("memory {}", size(bytes))),
        fuel_entry.map(|fuel| format!("fuel of an entry {fuel}")),
        fuel_command.map(|fuel| format!("fuel of each command {fuel}")),
    ];
    changed.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

pub(super) fn reason_name(reason: CheckpointReason) -> &'static str {
    match reason {
        CheckpointReason::Entries => "entries",
        CheckpointReason::LogBytes => "log bytes",
        CheckpointReason::Learner => "learner",
        CheckpointReason::Operator => "operator",
        CheckpointReason::Memory => "memory",
    }
}

/// The commands of an entry, with their answers if there are any.
fn commands(text: &mut String, kind: &Kind, answers: &[Answer]) {
    let Kind::Body(EntryBody::Commands(commands)) = kind else { return };
    for (place, call) in commands.calls.iter().enumerate().take(SHOWN_MAX) {
        let Call { session, sequence, payload, .. } = call;
        let number = place + 1;
        let whose = match session {
            0 => String::new(),
            session => format!("session {session}, sequence {sequence}: "),
        };
        let answer = answers.get(place).map(compare::answered);
        let answer = answer.map(|answer| format!(" → {answer}")).unwrap_or_default();
        line!(text, "  {number:<8}  {whose}{}{answer}", show(payload));
    }
    more(text, commands.calls.len(), "commands");
}

fn more(text: &mut String, count: usize, what: &str) {
    if count > SHOWN_MAX {
        line!(text, "  …         {} more {what}; --json shows all", count - SHOWN_MAX);
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::ids::{ModuleId, ReplicaId};

    use super::*;

    /// Why the last entries of a log of twelve are left out.
    fn check(plan: Plan, until: u64, says: &str) {
        let names = Names {
            first: "kv.wasm".to_owned(),
            other: String::new(),
            title: "kv 1".to_owned(),
            id: ModuleId([0; 32]),
        };
        let facts = Facts {
            group: "kv".to_owned(),
            replica: ReplicaId(1),
            commit: 9,
            first_index: 1,
            last_index: 12,
            snapshots: Vec::new(),
            listed: Vec::new(),
            amendments: Default::default(),
        };
        let begun_with = Begun {
            start: Start::First,
            passed: Vec::new(),
            bootstrapped: names.id,
            until,
            left: 12 - until,
            compares_snapshots: false,
        };
        let text = begun(&names, &facts, &plan, &begun_with);
        assert!(text.contains(says), "{text}");
    }

    #[test]
    fn what_is_left_out_has_a_reason_that_helps() {
        let plan = Plan::default();
        check(plan, 9, "entries 10 to 12: not known to be committed; --uncommitted applies them");
        check(Plan { until: Some(5), ..plan }, 5, "entries 6 to 12: after --until");
        let both = Plan { until: Some(11), uncommitted: true, ..plan };
        check(both, 11, "entry 12: after --until");
    }
}

//! A replay as programs read it: an object per line.

use std::path::Path;

use lockstep_core::apply::{Answer, GuestEvent, Setting};
use lockstep_core::entry::{Call, EntryBody, OnFault};
use lockstep_core::fault::{GuestFault, Rejection};
use lockstep_core::ids::hex;
use serde_json::{Value, json};

use super::Names;
use super::text::reason_name;
use crate::kit::compare::Difference;
use crate::kit::export::Exported;
use crate::kit::past::Facts;
use crate::kit::replay::{Begun, End, Kind, Place, Standing, Start, Step, Who};
use crate::kit::text::text_or_hex;

pub(super) fn begun(names: &Names, facts: &Facts, begun: &Begun) -> Value {
    let (snapshot, digest) = match begun.start {
        Start::First => (None, None),
        Start::Snapshot { index, digest } => (Some(index), Some(digest.to_string())),
    };
    json!({
        "name": names.title,
        "module": names.id.to_string(),
        "bootstrapped": begun.bootstrapped.to_string(),
        "group": facts.group,
        "replica": facts.replica.to_string(),
        "commit": facts.commit,
        "last": facts.last_index,
        "snapshot": snapshot,
        "snapshot_digest": digest,
        "passed": passed(&begun.passed),
        "until": begun.until,
        "left": begun.left,
    })
}

pub(super) fn exported(path: &Path, exported: &Exported) -> Value {
    json!({
        "file": path.display().to_string(),
        "snapshot": exported.snapshot,
        "passed": passed(&exported.passed),
        "first": exported.first,
        "until": exported.last,
        "left": exported.left,
        "bytes": exported.bytes,
    })
}

pub(super) fn step(step: &Step) -> Value {
    let mut told = json!({
        "entry": step.index,
        "term": step.term,
        "time_ms": step.time_ms,
        "kind": kind(&step.kind),
        "fuel": step.trace.fuel,
        "events": step.trace.events.iter().map(event).collect::<Vec<_>>(),
        "woken": step.trace.woken,
        "deadline_ms": step.trace.deadline_ms,
    });
    match step.trace.set {
        Some(Setting::At(at_ms)) => told["timer"] = at_ms.into(),
        Some(Setting::Never) => told["timer"] = "never".into(),
        None => {}
    }
    if let Some(digest) = step.snapshot {
        told["snapshot"] = digest.to_string().into();
    }
    match &step.kind {
        Kind::Body(EntryBody::Commands(commands)) => {
            let answers = step.trace.answers.iter().map(Some).chain(std::iter::repeat(None));
            let calls = commands.calls.iter().zip(answers);
            told["commands"] = calls.map(|(call, answered)| command(call, answered)).collect();
        }
        Kind::Body(EntryBody::Open { .. }) => {
            told["answer"] = step.trace.answers.first().map(answer).into();
        }
        Kind::Body(EntryBody::Checkpoint { reason, .. }) => {
            told["reason"] = reason_name(*reason).into();
        }
        Kind::Body(EntryBody::Close { session, .. }) => told["session"] = (*session).into(),
        Kind::Body(EntryBody::Wake { set_by, .. }) => told["set_by"] = (*set_by).into(),
        Kind::Body(EntryBody::Skip { index, .. }) => told["skips"] = (*index).into(),
        Kind::Body(EntryBody::Limits { limits, .. }) => {
            told["memory_bytes"] = limits.memory_bytes.into();
            told["entry_fuel"] = limits.fuel_entry.into();
            told["command_fuel"] = limits.fuel_command.into();
        }
        Kind::Body(EntryBody::Freeze { frozen, .. }) => told["frozen"] = (*frozen).into(),
        Kind::Body(EntryBody::OnFault { on_fault, .. }) => {
            told["on_fault"] = match on_fault {
                OnFault::Halt => "halt".into(),
                OnFault::Skip => "skip".into(),
            };
        }
        Kind::Body(EntryBody::Verdict { index, against, .. }) => {
            told["snapshot_index"] = (*index).into();
            told["against"] = against.iter().map(|it| it.node().0).collect();
        }
        Kind::Body(EntryBody::Upgrade { module, resume_at, .. }) => {
            told["module"] = module.to_string().into();
            told["resume_at"] = Some(*resume_at).filter(|index| *index > 0).into();
        }
        Kind::Members | Kind::Body(EntryBody::Empty | EntryBody::Bootstrap(_)) => {}
    }
    told
}

pub(super) fn end(names: &Names, end: &End) -> Value {
    match end {
        End::Reached(standing) => reached(standing),
        End::Faulted { place, faults } => {
            let faults = faults.iter().map(|(who, it)| fault(names, *who, it));
            let faults: Vec<_> = faults.collect();
            json!({ "end": "fault", "at": place_to_json(place), "faults": faults })
        }
        End::Differs { place, difference } => {
            let Difference { what, first, other } = difference;
            json!({
                "end": "differs",
                "at": place_to_json(place),
                "what": what,
                "first": first,
                "other": other,
            })
        }
        End::Diverged { step: at, listed } => json!({
            "end": "diverged",
            "at": step(at),
            "listed": listed.digest.to_string(),
        }),
    }
}

fn reached(standing: &Standing) -> Value {
    json!({
        "end": "reached",
        "applied": standing.applied,
        "time_ms": standing.time_ms,
        "events": standing.events,
        "deadline_ms": standing.deadline_ms,
        "digest": standing.digest.as_deref().map(hex),
        "snapshot": standing.snapshot.to_string(),
        "snapshot_bytes": standing.snapshot_bytes,
        "memory_bytes": standing.memory_bytes,
        "fuel": standing.fuel,
    })
}

fn fault(names: &Names, who: Who, fault: &GuestFault) -> Value {
    json!({
        "module": names.of(who),
        "class": fault.class.to_string(),
        "call": fault.call,
        "index": fault.index,
        "message": fault.message,
    })
}

fn place_to_json(place: &Place) -> Value {
    match place {
        Place::Entry(at) => step(at),
        Place::After(index) => json!({ "after": index }),
    }
}

fn passed(passed: &[(u64, String)]) -> Value {
    passed.iter().map(|(index, why)| json!({ "snapshot": index, "why": why })).collect()
}

fn kind(kind: &Kind) -> &'static str {
    match kind {
        Kind::Members => "members",
        Kind::Body(EntryBody::Empty) => "empty",
        Kind::Body(EntryBody::Bootstrap(_)) => "bootstrap",
        Kind::Body(EntryBody::Commands(_)) => "commands",
        Kind::Body(EntryBody::Open { .. }) => "open",
        Kind::Body(EntryBody::Close { .. }) => "close",
        Kind::Body(EntryBody::Checkpoint { .. }) => "checkpoint",
        Kind::Body(EntryBody::Wake { .. }) => "wake",
        Kind::Body(EntryBody::Skip { .. }) => "skip",
        Kind::Body(EntryBody::Limits { .. }) => "limits",
        Kind::Body(EntryBody::Freeze { .. }) => "freeze",
        Kind::Body(EntryBody::OnFault { .. }) => "on-fault",
        Kind::Body(EntryBody::Verdict { .. }) => "verdict",
        Kind::Body(EntryBody::Upgrade { .. }) => "upgrade",
    }
}

fn command(call: &Call, answered: Option<&Answer>) -> Value {
    let mut told = json!({ "command": text_or_hex(&call.payload) });
    if call.session != 0 {
        told["session"] = call.session.into();
        told["sequence"] = call.sequence.into();
    }
    if let Some(answered) = answered {
        told["answer"] = answer(answered);
    }
    told
}

fn answer(answer: &Answer) -> Value {
    match answer {
        Answer::Ok(bytes) => json!({ "ok": text_or_hex(bytes) }),
        Answer::Rejected(Rejection::Guest(bytes)) => json!({ "rejected": text_or_hex(bytes) }),
        Answer::Rejected(rejection) => json!({ "refused": rejection.to_string() }),
        Answer::Opened(session) => json!({ "session": session }),
    }
}

fn event(event: &GuestEvent) -> Value {
    json!({ "topic": &*event.topic, "payload": text_or_hex(&event.payload) })
}

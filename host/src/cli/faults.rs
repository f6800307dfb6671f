//! `lockstep faults`: why replicas are halted, and what takes them on.

use std::collections::BTreeSet;

use lockstep_client::v1::FaultResponse;
use lockstep_core::ids::hex;

use crate::cli::remote::{Target, call_failed};
use crate::cli::status::ask_all;
use crate::cli::{Failure, Outcome};
use crate::kit::text::text_or_hex;
use crate::logging::out;

/// Show why replicas are halted: the entry, how the state machine failed, and the ways on.
#[derive(clap::Args)]
#[command(after_help = "\
Example: lockstep faults --endpoint 127.0.0.1:7101,127.0.0.1:7102 --commands

Exit codes: 0 no replica is halted; 1 no node answers; 2 usage; 4 a replica is halted.")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Show the entry's commands, too.
    #[arg(long)]
    commands: bool,
    /// Print one JSON object for each halted replica, on a line of its own.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Outcome {
    let client = args.target.client()?;
    let (answers, errors) = ask_all(&client).await;
    if answers.is_empty() {
        let errors: Vec<String> = errors.iter().map(|(at, why)| format!("{at}: {why}")).collect();
        return Err(Failure::Failed(errors.join("; ")));
    }
    let mut halted = Vec::new();
    for answer in answers {
        let at = answer.address;
        let told = client.fault(&at, args.commands).await.map_err(call_failed)?;
        halted.extend(Some(told).filter(|told| !told.cause.is_empty()));
    }
    halted.sort_by_key(|told| told.node);
    let silent = errors.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    for told in &halted {
        if args.json {
            out!("{}", in_json(told));
        } else {
            out!("{}", in_text(told));
        }
    }
    if !args.json {
        if !silent.is_empty() {
            out!("no answer: {silent}");
        }
        out!("{}", ways_on(&halted, !silent.is_empty()));
    }
    if halted.is_empty() { Ok(()) } else { Err(Failure::Unwell(4)) }
}

fn in_text(told: &FaultResponse) -> String {
    if told.entry == 0 {
        return format!("node {}: {}", told.node, told.cause);
    }
    let mut text = format!("node {} is halted at entry {}", told.node, told.entry);
    text += &format!("\n  fault    {} in {}: {}", told.class, told.call, told.message);
    text += &format!("\n  module   {}", hex(&told.module));
    text += &match told.stands_at {
        0 => "\n  queries  none are answered".to_owned(),
        index => format!("\n  queries  local ones are answered, as of entry {index}"),
    };
    if !told.never_applied {
        text += "\n  before   the replica may have applied the entry before it was last started";
    }
    if told.applied_by > 0 {
        text += &format!("\n  diverged node {} applied the entry", told.applied_by);
    }
    if told.command_count > 0 {
        text += &format!("\n  commands {}", told.command_count);
    }
    for command in &told.commands {
        text += &format!("\n    {}", text_or_hex(command));
    }
    text
}

fn in_json(told: &FaultResponse) -> serde_json::Value {
    serde_json::json!({
        "node": told.node,
        "cause": told.cause,
        "entry": told.entry,
        "class": told.class,
        "call": told.call,
        "message": told.message,
        "module": hex(&told.module),
        "never_applied": told.never_applied,
        "stands_at": told.stands_at,
        "applied_by": told.applied_by,
        "command_count": told.command_count,
        "commands": told.commands.iter().map(|command| text_or_hex(command)).collect::<Vec<_>>(),
    })
}

/// What an operator can do.
fn ways_on(halted: &[FaultResponse], silent: bool) -> String {
    let entries: BTreeSet<u64> = halted.iter().map(|told| told.entry).collect();
    let diverged = halted.iter().any(|told| told.applied_by > 0);
    let limited = halted.iter().find(|told| told.class.starts_with("out of "));
    match entries.into_iter().collect::<Vec<_>>().as_slice() {
        [] => "no replica is halted".to_owned(),
        [entry] if *entry > 0 && !diverged => {
            let raise = match limited.map(|told| told.class.as_str()) {
                Some("out of memory") => "\n  lockstep limits --memory SIZE    with more memory",
                Some(_) => "\n  lockstep limits --command-fuel N  with more fuel",
                None => "",
            };
            let unsure = silent || halted.iter().any(|told| !told.never_applied);
            let abandon = if unsure { " --abandon NODE" } else { "" };
            format!(
                "ways on:{raise}\n  lockstep skip --index {entry}{abandon}    without the entry"
            )
        }
        _ if diverged => {
            "a replica that halts where another one goes on has diverged from it, and continues \
             from its snapshot by itself"
                .to_owned()
        }
        _several => "the replicas are halted for different reasons: see each one's".to_owned(),
    }
}

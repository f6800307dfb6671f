//! `lockstep bench`: measures a state machine's commands and snapshots.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::cli::format::{size, table};
use crate::cli::kit::{ComponentArgs, GroupArgs, SourceArgs, TEMPLATES_HELP, component};
use crate::cli::{Failure, Outcome};
use crate::kit::bench::{self, BenchError, Measured};
use crate::logging::out;

const EXAMPLES: &str = "\
Examples:
  lockstep bench target/guests/kv.wasm
  lockstep bench kv.wasm --commands kv.commands --json

Fuel is the same on every machine; nanoseconds are of this one, without network, log and raft.";

/// Measure a state machine: time and fuel of a command in entries of 1, 16 and 128, and snapshots.
#[derive(clap::Args)]
#[command(after_help = format!("{TEMPLATES_HELP}\n\n{EXAMPLES}"))]
pub(crate) struct Args {
    #[command(flatten)]
    of: ComponentArgs,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    group: GroupArgs,
    /// Number from which the commands follow.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// How long entries of each size are measured.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    each_ms: u64,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let module = Arc::new(component(&args.of.module)?);
    let mut source = args.source.source(&*module)?;
    let maker = args.group.maker(module, args.seed)?;
    let each = Duration::from_millis(args.each_ms);
    let measured =
        bench::run(&maker, &mut source, args.seed, each).map_err(|error| match error {
            BenchError::Refused(_) => Failure::Usage(error.to_string()),
            BenchError::Source(_) | BenchError::Guest(_) => Failure::Failed(error.to_string()),
        })?;
    if args.of.json {
        out!("{}", to_json(&measured));
    } else {
        print(&measured);
    }
    Ok(())
}

fn print(measured: &Measured) {
    let heading = ["COMMANDS/ENTRY", "NS/COMMAND", "FUEL/COMMAND", "COMMANDS"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for batch in &measured.batches {
        rows.push(vec![
            batch.commands_in_entry.to_string(),
            format!("{:.0}", batch.ns_per_command),
            batch.fuel_per_command.to_string(),
            batch.commands.to_string(),
        ]);
    }
    out!("{}", table(&rows));
    let shown = |duration: Duration| format!("{:.3} ms", duration.as_secs_f64() * 1000.0);
    let Measured { snapshot, restore, snapshot_bytes, memory_bytes, .. } = measured;
    out!("snapshot  {} bytes in {}", snapshot_bytes, shown(*snapshot));
    out!("restore   in {}", shown(*restore));
    out!("memory    {}", size(*memory_bytes));
    if let Some(refusal) = &measured.refusal {
        let Measured { rejected, commands, .. } = measured;
        out!("note      {rejected} of {commands} commands were refused, such as: {refusal}");
    }
}

fn to_json(measured: &Measured) -> serde_json::Value {
    let batches = measured.batches.iter().map(|batch| {
        json!({
            "commands_in_entry": batch.commands_in_entry,
            "commands": batch.commands,
            "ns_per_command": batch.ns_per_command,
            "fuel_per_command": batch.fuel_per_command,
        })
    });
    json!({
        "batches": batches.collect::<Vec<_>>(),
        "commands": measured.commands,
        "rejected": measured.rejected,
        "snapshot_bytes": measured.snapshot_bytes,
        "snapshot_seconds": measured.snapshot.as_secs_f64(),
        "restore_seconds": measured.restore.as_secs_f64(),
        "memory_bytes": measured.memory_bytes,
    })
}

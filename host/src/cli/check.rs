//! `lockstep check`: tells whether a node would accept a component.

use std::path::PathBuf;

use crate::cli::Outcome;
use crate::cli::kit::component;
use crate::kit::inspect::report_to_json;
use crate::logging::out;

/// Check a component, with the engine that nodes use.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep check target/guests/kv.wasm")]
pub(crate) struct Args {
    /// The component.
    #[arg(value_name = "FSM.wasm")]
    module: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let module = component(&args.module)?;
    if args.json {
        out!("{}", report_to_json(module.report()));
    } else {
        out!("{}", module.report());
    }
    Ok(())
}

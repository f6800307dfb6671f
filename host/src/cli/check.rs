//! `lockstep check`: tells whether a node would accept a component.

use crate::cli::Outcome;
use crate::cli::kit::{ComponentArgs, component};
use crate::kit::inspect::report_to_json;
use crate::logging::out;

/// Check a component, with the engine that nodes use.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep check target/guests/kv.wasm")]
pub(crate) struct Args {
    #[command(flatten)]
    of: ComponentArgs,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let ComponentArgs { module, json } = &args.of;
    let module = component(module)?;
    if *json {
        out!("{}", report_to_json(module.report()));
    } else {
        out!("{}", module.report());
    }
    Ok(())
}

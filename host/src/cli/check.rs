//! `lockstep check`: tells whether a node would accept a component.

use std::path::PathBuf;

use crate::cli::{Failure, Outcome};
use crate::logging::out;
use crate::node::load_component;

/// Check a component, with the engine that nodes use.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep check target/guests/kv.wasm")]
pub(crate) struct Args {
    /// The component.
    #[arg(value_name = "FSM.wasm")]
    module: PathBuf,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let path = args.module.display();
    let module = load_component(&args.module).map_err(|e| {
        Failure::Failed(format!("{path}: {e}; give the path of the .wasm that the build produced"))
    })?;
    let module = module.map_err(|why| Failure::Failed(format!("{path}: {why}")))?;
    out!("{}", module.report());
    Ok(())
}

//! `lockstep check`: would a node take this component?

use std::path::PathBuf;

use crate::cli::{Failure, Outcome};
use crate::guest::check::check;
use crate::node::read_module;

/// Check a component with the engine that nodes use.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep check target/guests/kv.wasm")]
pub(crate) struct Args {
    /// The component.
    #[arg(value_name = "FSM.wasm")]
    module: PathBuf,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let path = args.module.display();
    let bytes = read_module(&args.module).map_err(|e| Failure::Failed(format!("{path}: {e}")))?;
    let report = check(&bytes).map_err(|e| Failure::Failed(format!("{path}: {e}")))?;
    println!("{report}");
    Ok(())
}

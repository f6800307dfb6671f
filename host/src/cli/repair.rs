//! `lockstep repair`: a replica that has diverged goes on from another's snapshot.

use crate::cli::remote::{Target, call_failed};
use crate::cli::{Failure, Outcome};
use crate::logging::out;

/// Have a replica that has diverged go on from the snapshot of another. Its own snapshots are
/// deleted then: look for the cause before.
///
/// A replica has diverged if its snapshot at a checkpoint is another one than that of a majority of
/// the voters. It halts, and stays halted over restarts.
#[derive(clap::Args)]
#[command(after_help = "\
Example: lockstep repair --endpoint 127.0.0.1:7103

`lockstep replay --data-dir`, on the stopped node, shows whether the log leads to the snapshots that
the node has. The group has no need of the replica meanwhile, if the others are a majority.")]
pub(crate) struct Args {
    /// Its endpoint is that of the one node whose replica is to be repaired.
    #[command(flatten)]
    target: Target,
    /// Print one JSON object with `index`: the snapshot was taken at this index or later.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Outcome {
    let endpoint = args.target.only_endpoint().ok_or_else(|| {
        Failure::Usage("give --endpoint one address: that of the node to repair".to_owned())
    })?;
    let client = args.target.client()?;
    let index = client.repair(endpoint).await.map_err(call_failed)?;
    if args.json {
        out!("{}", serde_json::json!({ "index": index }));
    } else {
        out!("the replica asks the others for a snapshot from entry {index} on");
    }
    Ok(())
}

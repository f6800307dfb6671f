//! `lockstep query`: runs one query.

use std::io::Write as _;

use lockstep_client::Consistency;

use crate::cli::Outcome;
use crate::cli::remote::{Target, argument_or_stdin, call_failed, print_outcome};

/// Run a query. Unless --local is given, the query is linearizable: it sees every command that was
/// acknowledged before it.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep query --endpoint 127.0.0.1:7101 'get city'")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Answer from the state that the contacted node has applied so far, however old that is.
    #[arg(long)]
    local: bool,
    /// Print one JSON object: ok, answer, applied_index, halted.
    #[arg(long)]
    json: bool,
    /// The query; read from standard input if omitted.
    question: Option<String>,
}

pub(crate) async fn run(args: Args) -> Outcome {
    let question = argument_or_stdin(args.question)?;
    let client = args.target.client()?;
    let consistency = if args.local { Consistency::Local } else { Consistency::Linearizable };
    let reply = client.query(question, consistency).await.map_err(call_failed)?;
    if let Some(cause) = &reply.halted {
        let aside = format!("the replica is halted at {}: {cause}\n", reply.applied_index);
        // If this note cannot be written, the answer is still printed.
        let _ = std::io::stderr().write_all(aside.as_bytes());
    }
    let json = args.json.then(
        || serde_json::json!({ "applied_index": reply.applied_index, "halted": reply.halted }),
    );
    print_outcome(&reply.outcome, json)
}

//! `lockstep apply`: one command, applied once.

use crate::cli::remote::{Target, argument_or_stdin, call_failed, print_outcome};
use crate::cli::{Failure, Outcome};

/// Apply a command. It is sent under a session of its own, so a retry never applies it twice.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep apply --endpoint 127.0.0.1:7101 'set city Basel'")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// The command makes room: it is taken, up to a bound, while commands are refused because the
    /// state machine has little memory left (`memory-high`).
    #[arg(long)]
    relief: bool,
    /// Print one JSON object: ok, answer, attempts, leader_changed.
    #[arg(long)]
    json: bool,
    /// The command's bytes; standard input if left out.
    command: Option<String>,
}

pub(crate) async fn run(args: Args) -> Outcome {
    let command = argument_or_stdin(args.command)?;
    let client = args.target.client_with(|options| options.relief = args.relief)?;
    let once = async {
        let session = client.open_session().await?;
        session.apply(command).await
    };
    // Each of the two calls has the whole time; together they have no more.
    let reply = match tokio::time::timeout(client.options().deadline, once).await {
        Ok(reply) => reply.map_err(call_failed)?,
        Err(_elapsed) => {
            let why = "no outcome in time: the command may have been applied, or may yet be";
            return Err(Failure::Failed(why.to_owned()));
        }
    };
    let json = args.json.then(|| {
        serde_json::json!({ "attempts": reply.attempts, "leader_changed": reply.leader_changed })
    });
    print_outcome(&reply.outcome, json)
}

//! `lockstep apply`: one command, applied once.

use std::time::Duration;

use lockstep_client::Session;
use tokio::time::Instant;

use crate::cli::remote::{Target, argument_or_stdin, call_failed, print_outcome};
use crate::cli::{Failure, Outcome};

/// Apply a command. It is sent in a session of its own, so that a retry never applies it twice.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep apply --endpoint 127.0.0.1:7101 'set city Basel'")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// The command frees memory: accept it, within limits, even while other commands are refused
    /// because the state machine is short of memory (`memory-high`).
    #[arg(long)]
    relief: bool,
    /// Print one JSON object: ok, answer, attempts, leader_changed.
    #[arg(long)]
    json: bool,
    /// The command; read from standard input if omitted.
    command: Option<String>,
}

/// How long closing the session may take.
const CLOSE_MAX: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Args) -> Outcome {
    let command = argument_or_stdin(args.command)?;
    let client = args.target.client_with(|options| options.relief = args.relief)?;
    // Each call may use the client's whole deadline, but together they may not exceed it.
    let until = Instant::now() + client.options().deadline;
    let once = async {
        let session = client.open_session().await?;
        let reply = session.apply(command).await;
        Ok((session, reply?))
    };
    let (session, reply) = match tokio::time::timeout_at(until, once).await {
        Ok(done) => done.map_err(call_failed)?,
        Err(_elapsed) => {
            let why = "no outcome in time: the command may have been applied, or may still be";
            return Err(Failure::Failed(why.to_owned()));
        }
    };
    close(session, until).await;
    let json = args.json.then(|| {
        serde_json::json!({ "attempts": reply.attempts, "leader_changed": reply.leader_changed })
    });
    print_outcome(&reply.outcome, json)
}

/// Closes the session. A failure is ignored: the outcome is known, and an open session expires.
async fn close(session: Session, until: Instant) {
    let until = until.min(Instant::now() + CLOSE_MAX);
    let _ = tokio::time::timeout_at(until, session.close()).await;
}

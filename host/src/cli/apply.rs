//! `lockstep apply`: one command, applied once.

use std::time::Duration;

use lockstep_client::{Error, Session};
use lockstep_core::mutant::planted;
use tokio::time::{Instant, timeout_at};

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

/// How long closing the session may take, even if that exceeds the command's timeout.
pub(crate) const CLOSE_MAX: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Args) -> Outcome {
    let command = argument_or_stdin(args.command)?;
    let client = args.target.client_with(|options| options.relief = args.relief)?;
    // Each call may use the client's whole deadline, but together they may not exceed it.
    let until = Instant::now() + client.options().deadline;
    // If this call fails, the session may still be opened later; as it is never used, the group can
    // soon evict it.
    let session = client.open_session().await.map_err(not_sent)?;
    let replied = session.apply_until(command, until).await;
    if replied.is_ok() || !planted("leave_sessions_open") {
        close(session, until).await;
    }
    let reply = replied.map_err(not_applied)?;
    let json = args.json.then(|| {
        serde_json::json!({ "attempts": reply.attempts, "leader_changed": reply.leader_changed })
    });
    print_outcome(&reply.outcome, json)
}

/// The failure of a command for which no session was opened.
fn not_sent(error: Error) -> Failure {
    Failure::Failed(format!("no session was opened, and the command was not sent: {error}"))
}

/// The failure of a command without an outcome.
fn not_applied(error: Error) -> Failure {
    match error {
        Error::Unknown { .. } => {
            let open = "the command may have been applied, or may still be";
            Failure::Failed(format!("{error}; {open}"))
        }
        refused => call_failed(refused),
    }
}

/// Closes the session, whatever the outcome of its command, even an unknown one: the command is not
/// sent again. A failure to close is ignored, because a session left open expires.
async fn close(session: Session, until: Instant) {
    let until = until.min(Instant::now()) + CLOSE_MAX;
    let _ = timeout_at(until, session.close()).await;
}

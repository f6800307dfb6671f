//! `lockstep serve`: runs one node until it is told to stop.

use std::path::PathBuf;

use lockstep_core::mutant::plant;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Failure, Outcome};
use crate::config::NodeConfig;
use crate::logging;
use crate::node::{Node, StartError};
use crate::router::Ended;

/// Run one node of a cluster.
#[derive(clap::Args)]
#[command(after_help = "\
Example node.toml:
  cluster = \"demo\"
  node = 1
  data-dir = \"data/1\"
  [nodes]
  1 = \"127.0.0.1:7101\"
  2 = \"127.0.0.1:7102\"
  3 = \"127.0.0.1:7103\"
  [[groups]]
  name = \"kv\"
  module = \"kv.wasm\"
  config = \"\"                 # given to `init` when the group begins; later changes do nothing")]
pub(crate) struct Args {
    /// The node's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Move this node's old data aside, and join its groups as new replicas.
    #[arg(long)]
    rejoin: bool,
    #[command(flatten)]
    log: LogArgs,
}

/// Logging options of the commands that run nodes.
#[derive(clap::Args)]
pub(crate) struct LogArgs {
    /// Format of the log, which goes to standard error.
    #[arg(long = "log-format", value_enum, default_value_t, env = "LOCKSTEP_LOG_FORMAT")]
    pub format: logging::Format,
    #[command(flatten)]
    pub lines: LinesArg,
}

/// Which log lines are written.
#[derive(clap::Args)]
pub(crate) struct LinesArg {
    /// Level of the log, for all modules or for some: `warn`, or `info,lockstep_host::wal=debug`.
    #[arg(
        long = "log-filter",
        value_name = "FILTER",
        env = "LOCKSTEP_LOG",
        default_value = "",
        hide_default_value = true
    )]
    pub filter: logging::Filter,
}

pub(crate) async fn run(args: Args) -> Outcome {
    // Comes before anything that takes time: until the first process of a container handles
    // signals, the kernel drops them.
    let mut told = StopSignal::listen();
    // Comes before anything that may fail, so that the reason is logged.
    logging::start("info", &args.log.lines.filter, args.log.format)?;
    let config = NodeConfig::load(&args.config).map_err(|e| Failure::Usage(e.to_string()))?;
    let (name, id) = (config.cluster.clone(), config.node);
    let node = tokio::select! {
        biased;
        () = told.wait() => {
            tracing::info!("told to stop before the node had started");
            return Ok(());
        }
        node = Node::start(config, args.rejoin) => node.map_err(not_started)?,
    };
    tracing::info!(cluster = name, node = %id, listening = %node.listening(), "node started");
    let ended = first_of(told.wait(), node.router().ended()).await;
    stop_all([node], &mut told).await?;
    match ended {
        None | Some(Ended::Removed) => {
            tracing::info!("node stopped");
            Ok(())
        }
        Some(Ended::Failed(faults)) => {
            let faults: Vec<String> =
                faults.iter().map(|(group, fault)| format!("group {group:?}: {fault}")).collect();
            Err(Failure::Failed(format!("no group can serve: {}", faults.join("; "))))
        }
    }
}

/// Stops the nodes. A second signal cuts this short, so that the process can exit at once.
pub(crate) async fn stop_all(
    nodes: impl IntoIterator<Item = Node>,
    told: &mut StopSignal,
) -> Outcome {
    let all = async {
        for node in nodes {
            node.stop().await;
        }
    };
    unless_told(all, told.wait()).await
}

async fn unless_told(all: impl Future<Output = ()>, told: impl Future<Output = ()>) -> Outcome {
    tokio::select! {
        biased;
        () = all => Ok(()),
        () = told => Err(Failure::Failed(
            "told to stop a second time: stopped at once; a start recovers what the log holds"
                .to_owned(),
        )),
    }
}

/// Waits for a stop signal (`None`) or the end of all groups; if both are there, the signal wins.
async fn first_of(
    told: impl Future<Output = ()>,
    ended: impl Future<Output = Ended>,
) -> Option<Ended> {
    let told = async {
        plant!("failure_before_stop" does tokio::task::yield_now().await);
        told.await;
    };
    tokio::select! {
        biased;
        () = told => None,
        ended = ended => Some(ended),
    }
}

/// Maps a failed start to an exit code: a refused module is a failed operation; anything else is a
/// fault of the configuration.
pub(crate) fn not_started(error: StartError) -> Failure {
    match error {
        StartError::Module { .. } => Failure::Failed(error.to_string()),
        other => Failure::Usage(other.to_string()),
    }
}

/// Receives SIGTERM and Ctrl-C from its creation on. SIGHUP, which tells a daemon to reload its
/// files or that its terminal is gone, does not stop the process: there is nothing to reload.
pub(crate) struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl StopSignal {
    pub(crate) fn listen() -> Self {
        let signal = |kind| signal(kind).expect("signals can be handled");
        Self {
            terminate: signal(SignalKind::terminate()),
            interrupt: signal(SignalKind::interrupt()),
            hangup: signal(SignalKind::hangup()),
        }
    }

    pub(crate) async fn wait(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => tracing::info!("SIGHUP changes nothing: node.toml is \
                    only read at a start"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    /// A second signal does not wait for the stop that the first one asked for.
    #[tokio::test]
    async fn a_second_signal_ends_a_stop_at_once() {
        assert!(unless_told(ready(()), ready(())).await.is_ok(), "it had ended by itself");
        assert!(unless_told(ready(()), pending()).await.is_ok());
        assert!(matches!(unless_told(pending(), ready(())).await, Err(Failure::Failed(_))));
    }

    /// A requested stop is not a failure, even if groups fail at the same moment.
    /// Covers L6 L7.
    #[tokio::test]
    async fn a_stop_that_was_asked_for_comes_first() {
        let failed = || ready(Ended::Failed(Vec::new()));
        assert_eq!(first_of(ready(()), failed()).await, None, "both at once");
        assert_eq!(first_of(ready(()), pending()).await, None);
        assert_eq!(first_of(pending(), failed()).await, Some(Ended::Failed(Vec::new())));
        assert_eq!(first_of(pending(), ready(Ended::Removed)).await, Some(Ended::Removed));
    }
}

//! `lockstep recover` and `lockstep group drop`: an operator's interventions on a stopped node.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::serve::LinesArg;
use crate::cli::{Failure, Outcome};
use crate::config::NodeConfig;
use crate::fs::DiskFs;
use crate::logging::{self, out};
use crate::recover::{RecoverError, StoppedGroup};

/// Make this stopped node's replica the whole group, when a majority is lost for good.
#[derive(clap::Args)]
#[command(after_help = "\
Choose the survivor whose last term and index are the highest: this command shows them before it \
    asks for confirmation.
Run it on that one node only. Start the others with --rejoin afterwards, never with their old data.

Example: lockstep recover --config node.toml --group kv --keep-only-me")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// Keep only this node's replica: required, as there is no other way to recover.
    #[arg(long, required = true)]
    keep_only_me: bool,
}

#[derive(clap::Subcommand)]
pub(crate) enum GroupCommand {
    /// Delete a group that is no longer in this stopped node's configuration, with its snapshots.
    #[command(after_help = "Example: lockstep group drop --config node.toml --group old")]
    Drop(Which),
}

/// A group of a stopped node.
#[derive(clap::Args)]
pub(crate) struct Which {
    /// The node's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The group.
    #[arg(long)]
    group: String,
    /// The group's name once more, to confirm here instead of at the prompt.
    #[arg(long, value_name = "GROUP")]
    confirm: Option<String>,
    #[command(flatten)]
    lines: LinesArg,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let (stopped, _) = args.which.open()?;
    let (term, index) = stopped.last();
    out!("group {}: this node is replica {}", args.which.group, stopped.replica());
    out!("  its log ends at index {index} of term {term}");
    match stopped.starts_from().map_err(|error| failed(&error))? {
        Some(snapshot) => {
            out!("  it starts from the snapshot at {snapshot}, which was read whole")
        }
        None => out!("  it starts from the first entry of its log"),
    }
    let voters: Vec<String> =
        stopped.configuration().voters.iter().map(ToString::to_string).collect();
    out!("  the group's voters are {}; this replica will be the only one", voters.join(", "));
    args.which.confirm()?;
    stopped.keep_only_me().map_err(|error| failed(&error))?;
    out!("done: start this node; start the others with --rejoin");
    Ok(())
}

pub(crate) fn drop_group(command: &GroupCommand) -> Outcome {
    let GroupCommand::Drop(which) = command;
    let (stopped, config) = which.open()?;
    out!("group {} and its snapshots will be deleted from this node", which.group);
    which.confirm()?;
    stopped.forget(&config).map_err(|error| failed(&error))?;
    out!("done");
    Ok(())
}

impl Which {
    fn open(&self) -> Result<(StoppedGroup, NodeConfig), Failure> {
        // The log's warnings about a lack of space concern only a running node, which waits for
        // space.
        let default = "warn,lockstep_host::wal::write=error";
        logging::start(default, &self.lines.filter, logging::Format::Text)?;
        let config = NodeConfig::load(&self.config).map_err(|e| Failure::Usage(e.to_string()))?;
        let stopped = StoppedGroup::open(Arc::new(DiskFs), &config, &self.group);
        Ok((stopped.map_err(|error| failed(&error))?, config))
    }

    /// Has the operator confirm by typing the group's name, before anything is changed.
    fn confirm(&self) -> Outcome {
        let typed = match &self.confirm {
            Some(typed) => typed.clone(),
            None => {
                if std::io::stdin().is_terminal() {
                    let mut out = std::io::stdout();
                    write!(out, "type the group's name to go on: ")?;
                    out.flush()?;
                }
                let mut line = String::new();
                std::io::stdin().read_line(&mut line)?;
                line.trim().to_owned()
            }
        };
        if typed == self.group {
            Ok(())
        } else {
            Err(Failure::Usage(format!(
                "not confirmed: {typed:?} is not {:?}; nothing was changed",
                self.group
            )))
        }
    }
}

fn failed(error: &RecoverError) -> Failure {
    match error {
        RecoverError::Files { .. }
        | RecoverError::Full { .. }
        | RecoverError::HalfForgotten { .. } => Failure::Failed(error.to_string()),
        RecoverError::DataDir(_)
        | RecoverError::Log(_)
        | RecoverError::NoData(_)
        | RecoverError::NoSnapshot { .. }
        | RecoverError::UnknownGroup { .. }
        | RecoverError::Nothing { .. }
        | RecoverError::Unreadable { .. }
        | RecoverError::Configured { .. } => Failure::Usage(error.to_string()),
    }
}

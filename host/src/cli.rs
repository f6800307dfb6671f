//! The command line, one file per command. The exit codes are 0 (success), 1 (the operation
//! failed), 2 (usage or configuration error), and those of `status` and `faults`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::logging;

pub(crate) mod apply;
mod bench;
mod build;
mod check;
mod dev;
mod faults;
mod format;
mod inspect;
mod kit;
mod limits;
mod new;
mod orders;
mod query;
mod recover;
mod remote;
mod repair;
mod replay;
mod run;
mod sdk;
mod serve;
mod snapshot;
pub(crate) mod status;
mod test;
mod upgrade;
mod watch;

/// Replicates a state machine that you ship as a WebAssembly component.
#[derive(Parser)]
#[command(name = "lockstep", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  lockstep dev target/guests/kv.wasm            a cluster of three on loopback, to try things
  lockstep serve --config node.toml             one node of a real cluster
  lockstep apply --endpoint 127.0.0.1:7101 'set city Basel'
  lockstep query --endpoint 127.0.0.1:7101 'get city'
  lockstep watch --endpoint 127.0.0.1:7101 orders/
  lockstep status --endpoint 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103
  lockstep new my-machine                       a project for a state machine of your own
  lockstep build                                makes its component, and checks it
  lockstep check my-machine.wasm
  lockstep test my-machine.wasm                 look for what breaks the contract
  lockstep run                                  a prompt; builds the project when it changes
  lockstep upgrade start my-machine-2.wasm      a new version, without losing the state
  lockstep replay my-machine.wasm --data-dir data/1 --group kv
  lockstep snapshot list --data-dir data/1
  lockstep recover --config node.toml --group kv --keep-only-me

Exit codes: 0 success; 1 the operation failed; 2 usage or configuration error; `status` and
`faults` have more.";

#[derive(Subcommand)]
enum Command {
    /// Run one node.
    Serve(serve::Args),
    /// Run a whole cluster on loopback in this process, to try a state machine.
    Dev(dev::Args),
    /// Apply a command, given as an argument or on standard input.
    Apply(apply::Args),
    /// Run a query, given as an argument or on standard input.
    Query(query::Args),
    /// Print the events of the state machine as they come.
    Watch(watch::Args),
    /// Show each replica: role, state, applied index, lag, log and snapshots.
    Status(status::Args),
    /// Write a project for a state machine, in Rust, C, JavaScript or Python.
    New(new::Args),
    /// Build a state machine's component from its sources, and check it.
    Build(build::Args),
    /// Check whether a node would accept a component as a state machine.
    Check(check::Args),
    /// Look for cases in which a state machine breaks its contract, and shrink them.
    Test(test::Args),
    /// Try a state machine at a prompt, on one node in memory.
    Run(run::Args),
    /// Measure a state machine's commands and snapshots.
    Bench(bench::Args),
    /// Show what is in a component: interfaces, sizes, formats, limits.
    Inspect(inspect::Args),
    /// Replay what happened in a group, from a stopped node's log, against a component.
    Replay(replay::Args),
    /// Show why replicas are halted, and the ways to go on.
    Faults(faults::Args),
    /// Skip the entry at which all replicas are halted.
    Skip(orders::SkipArgs),
    /// Change the limits of a group.
    Limits(orders::LimitsArgs),
    /// Stop the commands of a group; queries go on.
    Freeze(orders::FreezeArgs),
    /// Let the commands of a frozen group go on.
    Unfreeze(orders::FreezeArgs),
    /// Set what becomes of entries at which all replicas halt.
    OnFault(orders::OnFaultArgs),
    /// Have a replica that has diverged go on from another's snapshot.
    Repair(repair::Args),
    /// Have a group run another module.
    #[command(subcommand)]
    Upgrade(upgrade::Command),
    /// List and verify the snapshots on a node's disk.
    #[command(subcommand, after_help = "Example: lockstep snapshot list --data-dir data/1")]
    Snapshot(snapshot::Command),
    /// Recover a group whose majority is lost for good, from one replica.
    Recover(recover::Args),
    /// Manage the groups of a stopped node.
    #[command(subcommand, after_help = "Example: lockstep group drop --config node.toml --group g")]
    Group(recover::GroupCommand),
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The operation failed: exit code 1.
    Failed(String),
    /// The arguments or the configuration are wrong: exit code 2.
    Usage(String),
    /// The command did its work and printed bad news: exit with this code.
    Unwell(u8),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

pub(crate) type Outcome = Result<(), Failure>;

/// Parses the arguments, runs the command, and returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let (code, why) = match (run(cli.command), logging::unwritten()) {
        (Ok(()), None) => (0, None),
        (Ok(()) | Err(Failure::Unwell(_)), Some(error)) => {
            (1, Some(format!("standard output: {error}")))
        }
        (Err(Failure::Failed(why)), _) => (1, Some(why)),
        (Err(Failure::Usage(why)), _) => (2, Some(why)),
        (Err(Failure::Unwell(code)), None) => (code, None),
    };
    logging::last_words(why.as_deref());
    ExitCode::from(code)
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Serve(args) => block_on(serve::run(args))?,
        Command::Dev(args) => block_on(dev::run(args))?,
        Command::Apply(args) => block_on(apply::run(args))?,
        Command::Query(args) => block_on(query::run(args))?,
        Command::Watch(args) => block_on(watch::run(args))?,
        Command::Status(args) => block_on(status::run(args))?,
        Command::New(args) => new::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Faults(args) => block_on(faults::run(args))?,
        Command::Skip(args) => block_on(orders::skip(args))?,
        Command::Limits(args) => block_on(orders::limits(args))?,
        Command::Freeze(args) => block_on(orders::freeze(args, true))?,
        Command::Unfreeze(args) => block_on(orders::freeze(args, false))?,
        Command::OnFault(args) => block_on(orders::on_fault(args))?,
        Command::Repair(args) => block_on(repair::run(args))?,
        Command::Upgrade(command) => block_on(upgrade::run(command))?,
        Command::Snapshot(command) => block_on(async move { snapshot::run(&command).await })?,
        Command::Recover(args) => recover::run(&args),
        Command::Group(command) => recover::drop_group(&command),
    }
}

/// Runs a command on a tokio runtime. The outer `Err` means that the runtime did not start.
fn block_on(command: impl Future<Output = Outcome>) -> Result<Outcome, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    Ok(outcome)
}

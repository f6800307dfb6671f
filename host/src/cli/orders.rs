//! `lockstep skip`, `limits`, `freeze`, `unfreeze`, `on-fault`: an operator's orders to a group.

use lockstep_client::v1;
use lockstep_client::v1::order_request::Order;

use crate::cli::remote::{Target, call_failed};
use crate::cli::{Failure, Outcome};
use crate::config::parse_size;
use crate::logging::out;

/// Skip the entry at which all replicas of a group are halted: its commands have no effect, and the
/// group goes on after it. Clients that ask again are told that their command was skipped.
///
/// Refused unless every voter reports that it is halted at this entry.
#[derive(clap::Args)]
#[command(after_help = "\
Example: lockstep skip --endpoint 127.0.0.1:7101 --index 4711

`lockstep faults` shows the entry. If the limits are too low for it, `lockstep limits` raises them
instead.")]
pub(crate) struct SkipArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// The index of the entry.
    #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u64).range(2..))]
    index: u64,
    /// Go on without this node, which does not answer. If it applied the entry, what it
    /// acknowledged since then is undone when it comes back. Can be given several times.
    #[arg(long, value_name = "NODE")]
    abandon: Vec<u32>,
}

/// Change limits of a group. Raising them takes a group on that halted because one was too low. The
/// memory limit is lowered only if every voter uses at most 80 % of the new one.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lockstep limits --endpoint 127.0.0.1:7101 --memory 2GiB
  lockstep limits --endpoint 127.0.0.1:7101 --command-fuel 200000000

Each machine must have the memory: a replica on one that has not halts when it is used, and tries
again after a while.")]
pub(crate) struct LimitsArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Most memory of the state machine, 32MiB to 64GiB.
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_size("memory", text))]
    memory: Option<u64>,
    /// Fuel for an entry.
    #[arg(long, value_name = "FUEL", value_parser = clap::value_parser!(u64).range(1..))]
    entry_fuel: Option<u64>,
    /// Fuel for each command of an entry, in addition.
    #[arg(long, value_name = "FUEL", value_parser = clap::value_parser!(u64).range(1..))]
    command_fuel: Option<u64>,
}

/// Stop the commands and wake-ups of a group, or let them go on. Queries and snapshots go on in any
/// case, and no restart or election ends it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lockstep freeze --endpoint 127.0.0.1:7101
  lockstep unfreeze --endpoint 127.0.0.1:7101")]
pub(crate) struct FreezeArgs {
    #[command(flatten)]
    order: OrderArgs,
}

/// Set what becomes of an entry at which all replicas of a group halt.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep on-fault --endpoint 127.0.0.1:7101 skip")]
pub(crate) struct OnFaultArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// halt: the group waits for an operator, as it does if nothing is set. skip: the leader has
    /// the entry skipped, once every voter is halted there.
    #[arg(value_enum)]
    policy: Policy,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Policy {
    Halt,
    Skip,
}

/// What all orders take.
#[derive(clap::Args)]
struct OrderArgs {
    #[command(flatten)]
    target: Target,
    /// Print one JSON object: index, that of the entry that orders it.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn skip(args: SkipArgs) -> Outcome {
    let SkipArgs { order, index, abandon } = args;
    let done = format!("entry {index} is skipped");
    give(order, Order::Skip(v1::Skip { index, abandon }), &done).await
}

pub(crate) async fn limits(args: LimitsArgs) -> Outcome {
    let LimitsArgs { order, memory, entry_fuel, command_fuel } = args;
    if memory.is_none() && entry_fuel.is_none() && command_fuel.is_none() {
        let why = "give --memory, --entry-fuel or --command-fuel: nothing is to be changed";
        return Err(Failure::Usage(why.to_owned()));
    }
    let limits = v1::Limits {
        fuel_entry: entry_fuel.unwrap_or(0),
        fuel_command: command_fuel.unwrap_or(0),
        memory_bytes: memory.unwrap_or(0),
    };
    give(order, Order::Limits(limits), "the limits are changed").await
}

pub(crate) async fn freeze(args: FreezeArgs, freeze: bool) -> Outcome {
    let done = if freeze { "the group is frozen" } else { "the group goes on" };
    give(args.order, Order::Freeze(freeze), done).await
}

pub(crate) async fn on_fault(args: OnFaultArgs) -> Outcome {
    let (policy, done) = match args.policy {
        Policy::Halt => (v1::OnFault::Halt, "the group halts at entries that cannot be applied"),
        Policy::Skip => (v1::OnFault::Skip, "entries at which all replicas halt are skipped"),
    };
    give(args.order, Order::OnFault(policy.into()), done).await
}

/// Gives the order, and says what is done.
async fn give(args: OrderArgs, order: Order, done: &str) -> Outcome {
    let client = args.target.client()?;
    let index = client.order(order).await.map_err(call_failed)?;
    if args.json {
        out!("{}", serde_json::json!({ "index": index }));
    } else {
        out!("{done}, as entry {index} orders");
    }
    Ok(())
}

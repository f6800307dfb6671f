//! `lockstep skip`, `limits`, `freeze`, `unfreeze`, `on-fault`: an operator's orders to a group.

use lockstep_client::v1;
use lockstep_client::v1::order_request::Order;

use crate::cli::limits::LimitArgs;
use crate::cli::remote::{Target, call_failed};
use crate::cli::{Failure, Outcome};
use crate::config::GuestLimits;
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

/// Change limits of a group. A group that halted because a limit was too low goes on once it is
/// raised. The memory limit is lowered only if every voter uses at most 80 % of the new one.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lockstep limits --endpoint 127.0.0.1:7101 --memory 2GiB
  lockstep limits --endpoint 127.0.0.1:7101 --command-fuel 200000000

Each machine must have the memory. On a machine with less, the replica halts once it needs the
memory, and tries again after a while.")]
pub(crate) struct LimitsArgs {
    #[command(flatten)]
    order: OrderArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Stop the commands and wake-ups of a group, or let them go on. Queries and snapshots go on in any
/// case. A freeze outlasts restarts and elections.
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
    /// Print one JSON object with `index`, the index of the entry that holds the order.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn skip(args: SkipArgs) -> Outcome {
    let SkipArgs { order, index, abandon } = args;
    let done = format!("entry {index} is skipped");
    give(order, Order::Skip(v1::Skip { index, abandon }), &done).await
}

pub(crate) async fn limits(args: LimitsArgs) -> Outcome {
    let LimitsArgs { order, limits } = args;
    let changed = Order::Limits(changed(&limits)?);
    give(order, changed, "the limits are changed").await
}

/// The limits as they are ordered, where 0 leaves one as it is.
fn changed(limits: &LimitArgs) -> Result<v1::Limits, Failure> {
    let limits = limits.limits()?;
    let GuestLimits { memory_bytes, entry_fuel, command_fuel, event_window_bytes: _ } = limits;
    let usage = |why: &str| Err(Failure::Usage(why.to_owned()));
    if limits == GuestLimits::default() {
        return usage("give --memory, --entry-fuel or --command-fuel: nothing is to be changed");
    }
    if command_fuel == Some(0) {
        return usage("command-fuel is 0; an order can set it to 1 or more");
    }
    Ok(v1::Limits {
        fuel_entry: entry_fuel.unwrap_or(0),
        fuel_command: command_fuel.unwrap_or(0),
        memory_bytes: memory_bytes.unwrap_or(0),
    })
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitArgs,
    }

    /// What is wrong is told before anybody is asked.
    #[test]
    fn limits_are_checked_before_they_are_ordered() {
        let check = |words: &str, expect: Result<[u64; 3], &str>| {
            let line = std::iter::once("lockstep").chain(words.split_whitespace());
            let line = Line::try_parse_from(line).expect("its words are known");
            match (changed(&line.limits), expect) {
                (Ok(v1::Limits { memory_bytes, fuel_entry, fuel_command }), Ok(expect)) => {
                    assert_eq!([memory_bytes, fuel_entry, fuel_command], expect, "{words}");
                }
                (Err(Failure::Usage(why)), Err(expect)) => {
                    assert!(why.starts_with(expect), "{words}: {why}");
                }
                (other, _) => panic!("{words}: {other:?}"),
            }
        };
        check("--memory 2GiB", Ok([2 << 30, 0, 0]));
        check("--entry-fuel 20000000 --command-fuel 1", Ok([0, 20_000_000, 1]));
        check("--fuel 7", Ok([0, 0, 7]));
        check("", Err("give --memory, --entry-fuel or --command-fuel"));
        check("--memory 1MiB", Err("memory is 1048576; use 33554432 to"));
        check("--memory much", Err("memory: \"much\" is not a size"));
        check("--entry-fuel 0", Err("entry-fuel is 0; use 10000000 to"));
        check("--command-fuel 5000000001", Err("command-fuel is 5000000001; use 0 to"));
        check("--command-fuel 0", Err("command-fuel is 0; an order can set it to 1 or more"));
    }
}

//! `lockstep upgrade`: another module for a group that serves, or that is halted at an entry.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_client::v1::order_request::Order;
use lockstep_client::v1::{self, StagedModule};
use lockstep_client::{Client, Error};
use lockstep_core::ids::{ModuleId, hex, unhex};
use lockstep_core::limits;
use sha2::{Digest as _, Sha256};

use crate::cli::remote::{Target, call_failed};
use crate::cli::status::ask_all;
use crate::cli::{Failure, Outcome};
use crate::fs::DiskFs;
use crate::logging::{out, say};
use crate::modules::PIECE_BYTES_MAX;
use crate::node::read_component;

/// How long a node may take to check and compile a module.
const STAGING_MAX: Duration = Duration::from_secs(600);
/// How long an upgrade may take: each of its two steps has its own bound, which ends it.
const UPGRADE_MAX: Duration = Duration::from_millis(
    (limits::UPGRADE_PREPARE_TICKS + 2 * limits::UPGRADE_MOVE_TICKS) * limits::TICK_MS,
);
/// Time between two looks at how far an upgrade is.
const LOOK: Duration = Duration::from_millis(500);

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Give a module to a node, which checks and compiles it. Nothing changes for any group.
    #[command(after_help = "\
Example: lockstep upgrade stage --endpoint 127.0.0.1:7101 kv-2.wasm

Prints the module's SHA-256, by which `start` can name it. The other nodes get it from that node.")]
    Stage(StageArgs),
    /// Have a group run another module, without losing its state.
    ///
    /// Each node prepares the module; then each moves a copy of the state into it, while commands
    /// wait; then all go over to it at one entry of the log. If any of them cannot, nothing has
    /// changed, and the old module goes on.
    #[command(after_help = "\
Examples:
  lockstep upgrade start --endpoint 127.0.0.1:7101 kv-2.wasm
  lockstep upgrade start --endpoint 127.0.0.1:7101 kv-fixed.wasm --resume-at 4711

The new module has to read the snapshots that the old one writes: `lockstep inspect` shows the
formats. Commands wait for as long as a snapshot and a restore of the state take; at most a \
    minute.")]
    Start(StartArgs),
    /// Show which module a group runs, and how far an upgrade is.
    #[command(after_help = "Example: lockstep upgrade status --endpoint 127.0.0.1:7101")]
    Status(PlainArgs),
    /// End an upgrade before the group has gone over.
    #[command(after_help = "Example: lockstep upgrade abort --endpoint 127.0.0.1:7101")]
    Abort(PlainArgs),
    /// Go back to the module before the last upgrade, with the state as it is now.
    #[command(after_help = "\
Example: lockstep upgrade rollback --endpoint 127.0.0.1:7101

Works like `start`: the older module has to read what the newer one writes, so it is refused if the
newer one writes another format.")]
    Rollback(PlainArgs),
}

#[derive(clap::Args)]
pub(crate) struct StageArgs {
    #[command(flatten)]
    target: Target,
    /// The component.
    file: PathBuf,
    /// Print one JSON object with what the module says of itself.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    target: Target,
    /// The component, which is staged first; or the SHA-256 of one that is staged.
    module: String,
    /// The entry at which all replicas are halted, which the new module is to apply: `lockstep
    /// faults` shows it.
    #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u64).range(2..))]
    resume_at: Option<u64>,
    /// With --resume-at, go on without this node, which does not answer. If it applied the entry,
    /// what it acknowledged since then is undone when it comes back. Can be given several times.
    #[arg(long, value_name = "NODE", requires = "resume_at")]
    abandon: Vec<u32>,
    /// Print one JSON object with `module` and `index`, the entry at which the group went over.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct PlainArgs {
    #[command(flatten)]
    target: Target,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(command: Command) -> Outcome {
    match command {
        Command::Stage(args) => stage(args).await,
        Command::Start(args) => start(args).await,
        Command::Status(args) => status(args).await,
        Command::Abort(args) => abort(args).await,
        Command::Rollback(args) => rollback(args).await,
    }
}

async fn stage(args: StageArgs) -> Outcome {
    let client = args.target.client_with(|options| options.deadline = STAGING_MAX)?;
    let (id, staged) = staged(&client, &args.file).await?;
    let StagedModule { name, version, snapshot_format, oldest_readable_format, .. } = &staged;
    if args.json {
        let object = serde_json::json!({
            "module": id.to_string(), "name": name, "version": version,
            "snapshot_format": snapshot_format, "oldest_readable_format": oldest_readable_format,
            "compiled_ms": staged.compiled_ms,
        });
        out!("{object}");
    } else {
        out!(
            "{name} {version} is staged: it reads snapshots of the formats \
             {oldest_readable_format} to {snapshot_format}\n{id}"
        );
    }
    Ok(())
}

/// Gives the component in this file to a node.
async fn staged(client: &Client, file: &Path) -> Result<(ModuleId, StagedModule), Failure> {
    let unread = |error| Failure::Usage(format!("{}: {error}", file.display()));
    let bytes = read_component(&DiskFs, file).map_err(unread)?;
    let bytes = bytes.map_err(|why| Failure::Failed(format!("{}: {why}", file.display())))?;
    let id = ModuleId(Sha256::digest(&bytes).into());
    let refused = |error: Error| Failure::Failed(format!("{}: {error}", file.display()));
    let staged = client.stage_module(id.0, &bytes, PIECE_BYTES_MAX).await.map_err(refused)?;
    Ok((id, staged))
}

async fn start(args: StartArgs) -> Outcome {
    let client = upgrading(&args.target)?;
    let id = match unhex(&args.module).map(ModuleId) {
        Some(id) => id,
        None => staged(&client, Path::new(&args.module)).await?.0,
    };
    let order = v1::Upgrade {
        module: id.0.to_vec().into(),
        resume_at: args.resume_at.unwrap_or(0),
        abandon: args.abandon,
    };
    go_over(&client, id, order, args.json).await
}

/// A client that waits for as long as an upgrade takes, in one attempt.
fn upgrading(target: &Target) -> Result<Client, Failure> {
    target.client_with(|options| (options.deadline, options.attempt) = (UPGRADE_MAX, UPGRADE_MAX))
}

async fn go_over(client: &Client, id: ModuleId, order: v1::Upgrade, json: bool) -> Outcome {
    let began = Instant::now();
    let ordered = client.order(Order::Upgrade(order));
    let mut told = String::new();
    tokio::pin!(ordered);
    let index = loop {
        tokio::select! {
            index = &mut ordered => break index.map_err(call_failed)?,
            () = tokio::time::sleep(LOOK) => {
                let now = progress(client).await.unwrap_or_default();
                if now != told && !now.is_empty() {
                    say(&now);
                    told = now;
                }
            }
        }
    };
    if json {
        out!("{}", serde_json::json!({ "module": id.to_string(), "index": index }));
    } else {
        let seconds = began.elapsed().as_secs_f64();
        out!("the group runs module {id} from entry {index} on; it took {seconds:.1} s");
    }
    Ok(())
}

/// How far the upgrade is, as the leader says.
async fn progress(client: &Client) -> Option<String> {
    let (answers, _) = ask_all(client).await.ok()?;
    let mut groups = answers.into_iter().flat_map(|node| node.groups);
    groups.find(|group| !group.upgrade.is_empty()).map(|group| group.upgrade)
}

async fn status(args: PlainArgs) -> Outcome {
    let client = args.target.client()?;
    let (answers, errors) = ask_all(&client).await?;
    for node in &answers {
        for group in &node.groups {
            let (name, module) = (&group.name, hex(&group.module));
            if args.json {
                let given = |bytes: &[u8]| Some(hex(bytes)).filter(|id| !id.is_empty());
                let object = serde_json::json!({
                    "group": name, "node": node.node, "module": module,
                    "previous": given(&group.previous_module),
                    "upgrade": Some(&group.upgrade).filter(|told| !told.is_empty()),
                });
                out!("{object}");
                continue;
            }
            out!("{name} node {}: module {module}", node.node);
            if !group.previous_module.is_empty() {
                out!("  before: module {}", hex(&group.previous_module));
            }
            if !group.upgrade.is_empty() {
                out!("  {}", group.upgrade);
            }
        }
    }
    for (endpoint, why) in &errors {
        if args.json {
            out!("{}", crate::cli::status::unreachable(endpoint, why));
        } else {
            out!("no answer from {endpoint}: {why}");
        }
    }
    Ok(())
}

async fn abort(args: PlainArgs) -> Outcome {
    let client = args.target.client()?;
    let order = Order::AbortUpgrade(v1::AbortUpgrade {});
    let index = client.order(order).await.map_err(call_failed)?;
    if args.json {
        out!("{}", serde_json::json!({ "index": index }));
    } else {
        out!("the upgrade is aborted; the group goes on with the module that it runs");
    }
    Ok(())
}

async fn rollback(args: PlainArgs) -> Outcome {
    let client = upgrading(&args.target)?;
    let (answers, _) = ask_all(&client).await?;
    let groups: Vec<_> = answers.iter().flat_map(|node| &node.groups).collect();
    let wanted = client.options().group.as_str();
    let of_group = |name: &str| wanted.is_empty() || name == wanted;
    let furthest = groups.iter().filter(|group| of_group(&group.name));
    let furthest = furthest.max_by_key(|group| group.applied);
    let previous = furthest.map(|group| group.previous_module.clone()).unwrap_or_default();
    let Ok(id) = <[u8; 32]>::try_from(&*previous) else {
        return Err(Failure::Failed(
            "the group was not upgraded yet: there is no module to go back to".to_owned(),
        ));
    };
    let order = v1::Upgrade { module: previous, resume_at: 0, abandon: Vec::new() };
    go_over(&client, ModuleId(id), order, args.json).await
}

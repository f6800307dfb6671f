//! `lockstep dev`: a whole cluster on loopback in this process, with real files and sockets.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_core::group::{ReplicaState, Running, SnapshotPolicy};
use lockstep_core::ids::NodeId;

use crate::cli::kit::GroupArgs;
use crate::cli::serve::{LogArgs, StopSignal, not_started, stop_all};
use crate::cli::{Failure, Outcome};
use crate::config::{ClientSettings, GroupSpec, GuestLimits, ModuleSource, NodeConfig};
use crate::group::GroupHandle;
use crate::logging::{self, say};
use crate::node::Node;

/// Run a cluster on loopback to try a state machine.
#[derive(clap::Args)]
#[command(after_help = "Example: lockstep dev target/guests/kv.wasm --data-dir data")]
pub(crate) struct Args {
    /// The state machine, a WebAssembly component.
    #[arg(value_name = "FSM.wasm")]
    module: PathBuf,
    /// Number of nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,
    /// Where the nodes keep their data; by default a temporary directory, removed at the end.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    group: GroupArgs,
    #[command(flatten)]
    log: LogArgs,
}

pub(crate) async fn run(args: Args) -> Outcome {
    logging::start("warn", &args.log.lines.filter, args.log.format)?;
    let limits = args.group.limits()?;
    let temporary = match &args.data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir()?),
    };
    let given = args.data_dir.as_deref().or(temporary.as_ref().map(tempfile::TempDir::path));
    let data = given.expect("a temporary directory was made if none is given");
    let mut told = StopSignal::listen();
    let sockets: Vec<TcpListener> = (0..args.nodes).map(listen_near).collect::<Result<_, _>>()?;
    let numbered = (1..).map(NodeId).zip(&sockets);
    let addresses: BTreeMap<NodeId, String> = numbered
        .map(|(id, socket)| Ok((id, socket.local_addr()?.to_string())))
        .collect::<std::io::Result<_>>()?;
    let mut nodes = Vec::new();
    for (id, socket) in addresses.keys().zip(sockets) {
        let config = node_config(*id, &args, limits, &addresses, data);
        let node = tokio::select! {
            biased;
            () = told.wait() => return stop(nodes, &mut told).await,
            node = Node::start_on(socket, config) => node.map_err(not_started)?,
        };
        nodes.push(node);
    }
    let (module, data) = (args.module.display(), data.display());
    say(&format!("{} nodes of {module} are starting; data in {data}", args.nodes));
    let any_serves = tokio::select! {
        any_serves = all_settled(&nodes) => any_serves,
        () = told.wait() => return stop(nodes, &mut told).await,
    };
    if !any_serves {
        stop(nodes, &mut told).await?;
        return Err(Failure::Failed("no replica can serve; see above".to_owned()));
    }
    let stem = args.module.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    print_what_to_try(&addresses, &stem.unwrap_or_default());
    tokio::select! {
        () = told.wait() => {}
        never = tell_of_faults(&nodes) => match never {},
    }
    say("stopping");
    stop(nodes, &mut told).await
}

async fn stop(nodes: Vec<Node>, told: &mut StopSignal) -> Outcome {
    stop_all(nodes, told).await?;
    say("stopped");
    Ok(())
}

fn node_config(
    id: NodeId,
    args: &Args,
    limits: GuestLimits,
    addresses: &BTreeMap<NodeId, String>,
    data: &Path,
) -> NodeConfig {
    NodeConfig {
        cluster: "dev".to_owned(),
        node: id,
        data_dir: data.join(format!("node-{id}")),
        listen: addresses[&id].clone(),
        nodes: addresses.clone(),
        log_segment_bytes: 16 << 20,
        snapshot_budget: None,
        snapshot_rate_bytes: 0,
        scrub_seconds: 0,
        metrics_listen: None,
        clients: ClientSettings::default(),
        groups: vec![GroupSpec {
            name: "dev".to_owned(),
            lineage: None,
            module: ModuleSource::File(args.module.clone()),
            nodes: addresses.keys().copied().collect(),
            limits,
            config: args.group.config.clone(),
            snapshot_policy: SnapshotPolicy::default(),
            snapshot_dir: None,
            snapshot_cap: None,
        }],
        clock_offset_ms: 0,
    }
}

/// Listens on port 7101 + `number` if it is free, so that the defaults of other commands find the
/// cluster; else on any free port.
fn listen_near(number: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", 7101 + number)).or_else(|_| TcpListener::bind("127.0.0.1:0"))
}

/// Time between two looks at the replicas' states.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until each replica either serves or cannot serve, and returns whether any serves. A
/// replica that has applied nothing yet is waited for: its `init` may still refuse the
/// configuration.
async fn all_settled(nodes: &[Node]) -> bool {
    let settled = |group: &GroupHandle| match &*group.watch().borrow() {
        ReplicaState::Running(Running::Serving) => group.report().status.applied > 0,
        ReplicaState::Running(Running::Restoring | Running::Joining) => false,
        ReplicaState::Running(_) | ReplicaState::Stopped(_) => true,
    };
    let mut any_serves = false;
    for (node, group) in replicas(nodes) {
        while !settled(group) {
            tokio::time::sleep(LOOK).await;
        }
        let state = group.watch().borrow().clone();
        any_serves |= state.refusal().is_none();
        tell_of(node, &state);
    }
    any_serves
}

/// Reports every change of a replica to a state that has a cause; never returns.
async fn tell_of_faults(nodes: &[Node]) -> std::convert::Infallible {
    let mut watches: Vec<_> = replicas(nodes).map(|(node, group)| (node, group.watch())).collect();
    // `all_settled` has already reported the present states.
    watches.iter_mut().for_each(|(_, watch)| drop(watch.borrow_and_update()));
    loop {
        for (node, watch) in &mut watches {
            if watch.has_changed().unwrap_or(false) {
                tell_of(node, &watch.borrow_and_update());
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Each replica, and the address of its node.
fn replicas(nodes: &[Node]) -> impl Iterator<Item = (&str, &GroupHandle)> {
    nodes.iter().flat_map(|node| {
        let router = node.router();
        let address = router.address(router.node()).unwrap_or_default();
        router.groups().map(move |group| (address, group))
    })
}

fn tell_of(node: &str, state: &ReplicaState) {
    if let Some(cause) = state.cause() {
        say(&format!("the replica at {node} is {}: {cause}", state.name()));
    }
}

fn print_what_to_try(addresses: &BTreeMap<NodeId, String>, guest: &str) {
    let endpoints: Vec<&str> = addresses.values().map(String::as_str).collect();
    let (first, all) = (endpoints[0], endpoints.join(","));
    let (command, question) = match guest {
        "kv" => ("set city Basel", "get city"),
        "counter" => ("incr", "get"),
        "bank" => ("open alice 100", "balance alice"),
        _other => ("COMMAND", "QUESTION"),
    };
    say("\nready; in another terminal try:");
    say(&format!("  lockstep apply  --endpoint {first} '{command}'"));
    say(&format!("  lockstep query  --endpoint {first} '{question}'"));
    say(&format!("  lockstep status --endpoint {all}"));
    say("\nCtrl-C stops the cluster.");
}

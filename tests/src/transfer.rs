//! What a snapshot transfer costs in memory: a large state streams to a follower that lost its
//! disk.
//!
//! For every host that takes part: the most memory seen during the transfer, minus what it had
//! before, minus the growth of the guest's linear memory, which is the state itself.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lockstep_client::v1::group_status::Role;
use lockstep_client::{Client, Outcome};

use crate::cluster::{Cluster, Spec};
use crate::process::MemoryWatch;
use crate::tell::{Teller, mebibytes, thousands};
use crate::writers::{Load, Writers};

const GROUP: &str = "kv";
const VALUE_BYTES: u64 = 4 << 10;
/// Values under way while the store is filled.
const UNDER_WAY: usize = 512;
/// How many small writes are made between two checkpoints until the logs are cut.
const PADDING: u64 = 3_000;
/// How many times these writes are made at most.
const PADDINGS_MAX: u32 = 10;
const PADDING_LOAD: Load = Load { writers: 32, keys: 10, value_bytes: 8 };
/// How long the state may take to arrive and be restored.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(600);

/// How large the state is, and what its transfer may cost.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub state_bytes: u64,
    /// Memory that each host may take, beside its guest's.
    pub limit_bytes: u64,
}

/// What the transfer cost.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The snapshot's length.
    pub snapshot_bytes: u64,
    pub by_node: BTreeMap<u16, Cost>,
    pub sender: u16,
    pub receiver: u16,
}

/// The memory of one host, bytes.
#[derive(Clone, Copy, Default, Debug)]
pub struct Cost {
    pub before: u64,
    pub peak: u64,
    pub guest_before: u64,
    pub guest_after: u64,
}

impl Cost {
    /// What the transfer took beside the guest's own memory.
    pub fn beside_guest(&self) -> i128 {
        let grown = i128::from(self.guest_after) - i128::from(self.guest_before);
        i128::from(self.peak) - i128::from(self.before) - grown
    }
}

/// Runs the plan on a cluster of three; a broken promise is an error.
pub async fn run(plan: Plan, tell: &mut Teller) -> Result<Figures> {
    tell.step(&format!("Fill three nodes with {}", mebibytes(plan.state_bytes.into())));
    // Checkpoints are taken only when they are asked for.
    let mut spec = Spec::of_guest("kv", 3)?.with_snapshot_entries(1_000_000_000);
    spec.settings = vec!["log-segment = \"64MiB\"".to_owned()];
    spec.groups[0].settings.push("snapshot-log-bytes = \"1000GiB\"".to_owned());
    let mut cluster = Cluster::start(spec)?;
    let done = measure(&mut cluster, plan, tell).await;
    if done.is_err() {
        cluster.keep_files();
    }
    done.with_context(|| format!("logs in {}", cluster.root().display()))
}

async fn measure(cluster: &mut Cluster, plan: Plan, tell: &mut Teller) -> Result<Figures> {
    cluster.wait_serving(GROUP).await?;
    let client = cluster.client()?;
    let values = plan.state_bytes.div_ceil(VALUE_BYTES);
    fill(&client, values).await?;
    tell.shown(format!("{} values of {VALUE_BYTES} bytes", thousands(values)));
    cut_logs(cluster, &client).await?;
    tell.shown("every log begins after what a new node needs: it has to get a snapshot");

    let sender = cluster.wait_serving(GROUP).await?;
    let receiver = *cluster.nodes().iter().find(|node| **node != sender).expect("there are three");
    tell.step(&format!("Wipe node {receiver}; node {sender} streams the state to it"));
    let old = cluster.group(receiver, GROUP).await.context("the follower's status")?.replica;
    cluster.kill(receiver)?;
    cluster.wipe(receiver)?;
    let mut watched = BTreeMap::new();
    for node in cluster.running() {
        watched.insert(node, before(cluster, node).await?);
    }
    cluster.start_node(receiver)?;
    let answers = async |cluster: &Cluster| cluster.group(receiver, GROUP).await;
    let joining = cluster.wait_for("the wiped node to answer", TRANSFER_PATIENCE, answers).await?;
    ensure!(joining.replica != old, "the wiped node has its old replica id");
    ensure!(
        joining.state == "joining",
        "the wiped node is {} at its start, not joining",
        joining.state
    );
    watched.insert(receiver, before(cluster, receiver).await?);

    let index = cluster.settled_index(&client).await?;
    let back = async |cluster: &Cluster| {
        let status = cluster.group(receiver, GROUP).await?;
        let voter = status.role() == Role::Follower;
        (voter && status.state == "serving" && status.applied >= index).then_some(status)
    };
    let status = cluster.wait_for("the wiped node to serve again", TRANSFER_PATIENCE, back).await?;
    ensure!(status.first_index > 1, "the wiped node came back by the log, not by a snapshot");
    let mut by_node = BTreeMap::new();
    for (node, (mut cost, watch)) in watched {
        cost.peak = watch.peak();
        let group = cluster.group(node, GROUP).await.context("a node's status")?;
        cost.guest_after = group.guest_memory_bytes;
        by_node.insert(node, cost);
    }
    let leader = cluster.leader(GROUP).await;
    ensure!(leader == Some(sender), "the leader changed meanwhile, to {leader:?}");
    let snapshot = status.snapshots.first().context("the wiped node lists no snapshot")?;
    let snapshot_bytes = snapshot.length;
    tell.shown(format!("back, after a snapshot of {}", mebibytes(snapshot_bytes.into())));
    report(plan, sender, receiver, &by_node, tell)?;

    tell.step("Compare the nodes");
    cluster.capture(&client, GROUP).await?.equal()?;
    cluster.stop_all().await?;
    tell.shown(
        "the snapshots of all nodes at one checkpoint are equal; all stopped with exit code 0",
    );
    Ok(Figures { snapshot_bytes, by_node, sender, receiver })
}

fn report(
    plan: Plan,
    sender: u16,
    receiver: u16,
    by_node: &BTreeMap<u16, Cost>,
    tell: &Teller,
) -> Result<()> {
    for (node, cost) in by_node {
        let part = match *node {
            node if node == sender => "sends",
            node if node == receiver => "receives",
            _bystander => "looks on",
        };
        let line = format!(
            "node {node} {part}: {} before, {} at most; guest {} before, {} after; beside the \
             guest {}",
            mebibytes(cost.before.into()),
            mebibytes(cost.peak.into()),
            mebibytes(cost.guest_before.into()),
            mebibytes(cost.guest_after.into()),
            mebibytes(cost.beside_guest()),
        );
        let limit = plan.limit_bytes;
        ensure!(cost.beside_guest() <= limit.into(), "{line}; {} allowed", mebibytes(limit.into()));
        tell.shown(line);
    }
    Ok(())
}

async fn before(cluster: &Cluster, node: u16) -> Result<(Cost, MemoryWatch)> {
    let group = cluster.group(node, GROUP).await.context("a node's status")?;
    let process = cluster.process(node)?;
    let cost = Cost {
        before: process.memory_bytes()?,
        guest_before: group.guest_memory_bytes,
        ..Cost::default()
    };
    Ok((cost, process.watch_memory()))
}

/// Stores this many different values.
async fn fill(client: &Client, values: u64) -> Result<()> {
    let pipeline = client.open_session().await?.pipeline();
    let mut pending = VecDeque::new();
    for value in 0..values {
        let filling = format!("{value:016x}").repeat(VALUE_BYTES as usize / 16);
        pending.push_back(pipeline.submit(format!("set v{value:08} {filling}")).await?);
        if pending.len() >= UNDER_WAY {
            stored(pending.pop_front().expect("it is not empty").await)?;
        }
    }
    for rest in pending {
        stored(rest.await)?;
    }
    Ok(())
}

fn stored(reply: Result<lockstep_client::Reply, lockstep_client::Error>) -> Result<()> {
    let reply = reply.context("a value was not stored")?;
    ensure!(matches!(reply.outcome, Outcome::Ok(_)), "a value was answered {reply:?}");
    Ok(())
}

/// Makes small writes and takes checkpoints until no node's log reaches back to the first entry.
pub(crate) async fn cut_logs(cluster: &mut Cluster, client: &Client) -> Result<()> {
    for _ in 0..PADDINGS_MAX {
        let writers = Writers::start_some(|| cluster.client(), PADDING_LOAD, PADDING)?;
        writers.finish().await?;
        cluster.capture(client, GROUP).await?;
        let mut firsts = Vec::new();
        for node in cluster.running() {
            firsts.push(cluster.group(node, GROUP).await.map_or(1, |group| group.first_index));
        }
        if firsts.iter().all(|first| *first > 1) {
            return Ok(());
        }
    }
    anyhow::bail!("no log was cut by {PADDINGS_MAX} checkpoints and {PADDING} writes before each")
}

//! Disks that are hardly larger than two snapshots, each a filesystem of its own: many snapshots
//! are taken under load while followers lose their disks; then the disks are filled.
//!
//! - While snapshots are taken no node may run out of space: neither a command nor a snapshot is
//!   refused for lack of it. A snapshot may be postponed while an older object is still being sent.
//! - When the disks are full commands stop, and they resume by themselves later; nothing
//!   acknowledged is lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lockstep_client::v1::group_status::Role;
use lockstep_client::{Client, Options};

use crate::cluster::{Cluster, Spec};
use crate::disk::{Disk, Filesystem};
use crate::steady::Steady;
use crate::tell::{Teller, mebibytes, thousands};

const GROUP: &str = "ballast";
const SEGMENT_BYTES: u64 = 16 << 20;
/// How long a checkpoint and the snapshots of three nodes may take on a busy machine.
const CYCLE_PATIENCE: Duration = Duration::from_secs(240);
/// How long a wiped follower may take to get the state and become a voter.
const REJOIN_PATIENCE: Duration = Duration::from_secs(600);
/// Cycles between two lost disks.
const WIPE_EVERY: u32 = 10;
const COMMAND_BYTES: usize = 64 << 10;
/// The pause between two commands, except while the disks are being filled.
const PAUSE_MS: u64 = 2;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub state_bytes: u64,
    pub cycles: u32,
    /// How often the disks are filled.
    pub fills: u32,
}

impl Plan {
    /// 2.3 times the state.
    fn disk_bytes(self) -> u64 {
        self.state_bytes * 23 / 10
    }

    /// Bytes of log between two snapshots, at most: 5 % of the state.
    fn log_bytes(self) -> u64 {
        self.state_bytes / 20
    }
}

/// What the cycles showed.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    highest_use: u64,
    postponed: u64,
    wipes: u32,
    /// Bytes of commands in the longest cycle.
    most_logged: u64,
}

pub async fn run(plan: Plan, tell: &mut Teller) -> Result<()> {
    let state = mebibytes(plan.state_bytes.into());
    tell.step(&format!("Start three nodes with a state of {state}"));
    let module = format!("native:ballast:{}", plan.state_bytes);
    let mut spec = Spec::of_module(GROUP, &module, 3).with_snapshot_entries(1_000_000_000);
    spec.settings = vec![format!("log-segment = \"{}MiB\"", SEGMENT_BYTES >> 20)];
    // The test asks for its checkpoints; if the log outgrows this limit, the leader makes one by
    // itself.
    let log_kib = plan.log_bytes() >> 10;
    spec.groups[0].settings.push(format!("snapshot-log-bytes = \"{log_kib}KiB\""));
    let mut cluster = Cluster::prepare(spec)?;
    let mut disks = Vec::new();
    for node in cluster.nodes() {
        let dir = cluster.data_dir(node);
        disks.push(Disk::mount(&dir, Filesystem::Tmpfs, plan.disk_bytes())?);
    }
    let done = all(&mut cluster, &disks, plan, tell).await;
    if done.is_err() {
        cluster.keep_files();
    }
    done.with_context(|| format!("logs in {}", cluster.root().display()))
}

async fn all(cluster: &mut Cluster, disks: &[Disk], plan: Plan, tell: &mut Teller) -> Result<()> {
    for node in cluster.nodes() {
        cluster.start_node(node)?;
    }
    cluster.wait_serving(GROUP).await?;
    let disk = mebibytes(plan.disk_bytes().into());
    tell.shown(format!(
        "each node on a disk of {disk}, of which its log segment and two spares take 48 MiB"
    ));
    let client = cluster.client_of(GROUP, patient())?;
    let writer = Steady::start(cluster.client_of(GROUP, patient())?, COMMAND_BYTES, PAUSE_MS);

    tell.step(&format!("Take {} snapshots under load; every tenth time wipe a node", plan.cycles));
    let seen = cycles(cluster, disks, plan, &client, &writer, tell).await?;
    no_shortage(cluster, &writer)?;
    tell.shown(format!(
        "{} commands; no node ran out of space; {} nodes lost their disks and came back; a \
         snapshot was postponed {} times",
        thousands(writer.acknowledged()),
        seen.wipes,
        seen.postponed,
    ));
    let share = seen.most_logged as f64 * 100.0 / plan.state_bytes as f64;
    tell.shown(format!(
        "the highest use of a disk was {} of {disk}; a cycle had at most {} of commands, \
         {share:.1} % of the state",
        mebibytes(seen.highest_use.into()),
        mebibytes(seen.most_logged.into()),
    ));

    tell.step(&format!("Fill the disks, {} times", plan.fills));
    for fill in 1..=plan.fills {
        fill_up(cluster, disks, &writer).await.with_context(|| format!("fill {fill}"))?;
    }
    tell.shown(format!("in {0} of {0} fills commands stopped and resumed", plan.fills));

    writer.account(cluster, &client, GROUP, tell).await
}

/// Calls outlast a change of leader, and a guest that is busy with a snapshot.
fn patient() -> Options {
    let (deadline, attempt) = (Duration::from_secs(60), Duration::from_secs(20));
    Options { deadline, attempt, ..Options::default() }
}

async fn cycles(
    cluster: &mut Cluster,
    disks: &[Disk],
    plan: Plan,
    client: &Client,
    writer: &Steady,
    tell: &Teller,
) -> Result<Seen> {
    let mut seen = Seen::default();
    for cycle in 1..=plan.cycles {
        let before = writer.acknowledged();
        // One more command may be under way.
        writer.rest_at(before + plan.log_bytes() / COMMAND_BYTES as u64 - 1);
        if cycle % WIPE_EVERY == 0 {
            wipe_one(cluster, disks, cycle).await.with_context(|| format!("cycle {cycle}"))?;
            seen.wipes += 1;
        }
        // Without a command since the last one, no checkpoint is made.
        let changed = async |_: &Cluster| (writer.acknowledged() > before).then_some(());
        cluster.wait_for("a command", CYCLE_PATIENCE, changed).await?;
        let postponed = one_cycle(cluster, disks, client, &mut seen.highest_use).await;
        seen.postponed += postponed.with_context(|| format!("cycle {cycle}"))?;
        let logged = (writer.acknowledged() - before) * COMMAND_BYTES as u64;
        seen.most_logged = seen.most_logged.max(logged);
        if cycle % 20 == 0 {
            let most = mebibytes(seen.highest_use.into());
            let commands = thousands(writer.acknowledged());
            tell.say(format!("cycle {cycle}: {commands} commands, at most {most} in use"));
        }
    }
    writer.rest_at(u64::MAX);
    Ok(seen)
}

/// Wipes a follower's disk, once the one wiped before is a voter again.
async fn wipe_one(cluster: &mut Cluster, disks: &[Disk], cycle: u32) -> Result<()> {
    let leader = cluster.wait_serving_within(GROUP, REJOIN_PATIENCE).await?;
    let followers: Vec<u16> = cluster.nodes().into_iter().filter(|node| *node != leader).collect();
    let node = followers[(cycle / WIPE_EVERY) as usize % followers.len()];
    cluster.kill(node)?;
    disks[usize::from(node) - 1].wipe()?;
    cluster.start_node(node)
}

/// Takes a checkpoint and waits until each voter has captured, skipped or postponed it; returns how
/// many have postponed it.
async fn one_cycle(
    cluster: &mut Cluster,
    disks: &[Disk],
    client: &Client,
    highest: &mut u64,
) -> Result<u64> {
    let mut before = Vec::new();
    for node in cluster.nodes() {
        before.push(cluster.group(node, GROUP).await);
    }
    let floor = cluster.settled_index(client).await?;
    client.checkpoint().await.context("asking for a checkpoint")?;
    let watched = std::cell::Cell::new(0);
    let done = async |cluster: &Cluster| {
        for disk in disks {
            watched.set(watched.get().max(disk.used().unwrap_or(0)));
        }
        let mut postponed = 0;
        for (node, before) in cluster.nodes().into_iter().zip(&before) {
            let Some(now) = cluster.group(node, GROUP).await else { continue };
            // A node that joins has no snapshot of its own to take yet.
            if !matches!(now.role(), Role::Leader | Role::Follower) || now.state != "serving" {
                continue;
            }
            let (failed, skipped) = before
                .as_ref()
                .map_or((0, 0), |was| (was.captures_failed, was.checkpoints_skipped));
            let taken = now.snapshots.first().is_some_and(|s| s.index > floor);
            match (taken, now.captures_failed > failed, now.checkpoints_skipped > skipped) {
                (true, _, _) | (false, false, true) => {}
                (false, true, _) => postponed += 1,
                (false, false, false) => return None,
            }
        }
        Some(postponed)
    };
    let postponed = cluster.wait_for("all to capture the checkpoint", CYCLE_PATIENCE, done).await?;
    *highest = (*highest).max(watched.get());
    Ok(postponed)
}

/// Checks that no node reported a lack of space.
fn no_shortage(cluster: &Cluster, writer: &Steady) -> Result<()> {
    ensure!(
        writer.refused() == 0,
        "{} commands were refused because a disk was full",
        writer.refused()
    );
    for node in cluster.nodes() {
        let log = cluster.log_text(node);
        let short = |line: &&str| line.contains("disk full") || line.contains("no_space");
        if let Some(line) = log.lines().find(short) {
            anyhow::bail!("node {node} ran out of space: {line}");
        }
    }
    Ok(())
}

/// Fills all disks until commands stop, then frees the space and waits until commands resume.
async fn fill_up(cluster: &mut Cluster, disks: &[Disk], writer: &Steady) -> Result<()> {
    writer.pace(0);
    let refused = writer.refused();
    for disk in disks {
        disk.fill(64 << 10)?;
    }
    let stopped = async |cluster: &Cluster| {
        let mut short = 0;
        for node in cluster.nodes() {
            short += u32::from(cluster.group(node, GROUP).await?.state == "disk full");
        }
        (short >= 2 || writer.refused() > refused).then_some(())
    };
    let filled = cluster.wait_for("commands to stop", CYCLE_PATIENCE, stopped).await;
    for disk in disks {
        disk.empty()?;
    }
    filled?;
    writer.comes_back(cluster, GROUP, PAUSE_MS).await
}

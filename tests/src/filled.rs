//! Disks that are filled to the last byte, again and again, on the filesystems that servers use.
//! Each node has an image of its own, and small segments, so that its log has to continue in the
//! next segment while the disk is full.
//!
//! - A full disk is a state: commands stop, and resume by themselves once there is free space. No
//!   node exits because of it.
//! - A node that starts while its disk is full reports that, and serves by itself later.
//! - No acknowledged command is lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lockstep_client::Options;

use crate::cluster::{Cluster, Spec};
use crate::disk::{Disk, Filesystem};
use crate::steady::Steady;
use crate::tell::{Teller, mebibytes, seconds};

const GROUP: &str = "ballast";
const STATE_BYTES: u64 = 8 << 20;
const COMMAND_BYTES: usize = 16 << 10;
/// Snapshots are taken after this many entries.
const SNAPSHOT_ENTRIES: u64 = 300;
/// Commands between two fills: more than a snapshot's worth, and several segments.
const COMMANDS_BETWEEN: u64 = 600;
const PAUSE_MS: u64 = 1;
/// How long commands may take to stop, or to resume.
const TURN_PATIENCE: Duration = Duration::from_secs(120);
/// The time within which a node with a full disk deletes what it can do without.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub filesystem: Filesystem,
    pub disk_bytes: u64,
    pub fills: u32,
}

pub async fn run(plan: Plan, tell: &mut Teller) -> Result<()> {
    let Plan { filesystem, disk_bytes, fills } = plan;
    let (name, size) = (filesystem.name(), mebibytes(disk_bytes.into()));
    tell.step(&format!("Fill three disks of {name}, {size} each, {fills} times"));
    let module = format!("native:ballast:{STATE_BYTES}");
    let spec = Spec::of_module(GROUP, &module, 3).with_snapshot_entries(SNAPSHOT_ENTRIES);
    let mut cluster = Cluster::prepare(spec)?;
    let mut disks = Vec::new();
    for node in cluster.nodes() {
        disks.push(Disk::mount(&cluster.data_dir(node), filesystem, disk_bytes)?);
    }
    let done = all(&mut cluster, &disks, fills, tell).await;
    if done.is_err() {
        cluster.keep_files();
    }
    let done = done.with_context(|| format!("{name}; logs in {}", cluster.root().display()));
    // The processes end before their disks are unmounted.
    drop(cluster);
    done
}

async fn all(cluster: &mut Cluster, disks: &[Disk], fills: u32, tell: &mut Teller) -> Result<()> {
    for node in cluster.nodes() {
        cluster.start_node(node)?;
    }
    cluster.wait_serving(GROUP).await?;
    let client = cluster.client_of(GROUP, patient())?;
    let writer = Steady::start(cluster.client_of(GROUP, patient())?, COMMAND_BYTES, PAUSE_MS);
    for fill in 1..=fills {
        let began = std::time::Instant::now();
        let before = writer.acknowledged();
        let written =
            async |_: &Cluster| (writer.acknowledged() > before + COMMANDS_BETWEEN).then_some(());
        cluster.wait_for("commands in between", TURN_PATIENCE, written).await?;
        // A node that still waits for a snapshot appends nothing, so it would not notice a full
        // disk.
        let settled = cluster.settled_index(&client).await?;
        for node in cluster.nodes() {
            cluster.wait_applied(node, GROUP, settled, TURN_PATIENCE).await?;
        }
        one_fill(cluster, disks, &writer).await.with_context(|| format!("fill {fill}"))?;
        if fill % 5 == 0 {
            let (commands, took) = (writer.acknowledged(), seconds(began.elapsed()));
            tell.say(format!("fill {fill}: {commands} commands so far; this one took {took}"));
        }
    }
    tell.shown(format!(
        "in {fills} of {fills} fills commands stopped and resumed, with a node restarted in \
         between; no node exited"
    ));
    writer.account(cluster, &client, GROUP, tell).await
}

/// Fills all disks until commands stop, restarts a node meanwhile, then frees the space and waits
/// until commands resume.
async fn one_fill(cluster: &mut Cluster, disks: &[Disk], writer: &Steady) -> Result<()> {
    writer.pace(0);
    let refused = writer.refused();
    let filled = until_commands_stop(cluster, disks, || writer.refused() > refused).await;
    let restarted = match filled {
        Ok(short) => restart(cluster, disks, short).await,
        Err(error) => Err(error),
    };
    for disk in disks {
        disk.empty()?;
    }
    restarted?;
    writer.comes_back(cluster, GROUP, PAUSE_MS).await
}

/// Fills all disks again and again until commands stop; returns a node whose disk stays full. A
/// node that finds its disk full may free all that its log needs by deleting files, so its state is
/// checked twice.
async fn until_commands_stop(
    cluster: &mut Cluster,
    disks: &[Disk],
    refused: impl Fn() -> bool,
) -> Result<u16> {
    let full = async |cluster: &Cluster| {
        disks.iter().try_for_each(Disk::fill_to_the_last_byte).ok()?;
        for node in cluster.nodes() {
            if cluster.group(node, GROUP).await?.state == "disk full" {
                return Some(node).filter(|_| refused());
            }
        }
        None
    };
    let stays_full = async |cluster: &Cluster| {
        let before = full(cluster).await?;
        tokio::time::sleep(GIVEN_UP_WITHIN).await;
        full(cluster).await.filter(|node| *node == before)
    };
    cluster.wait_for("commands to stop", TURN_PATIENCE, stays_full).await
}

/// Kills a node whose disk is full and starts it again: the node must report the full disk and keep
/// running.
async fn restart(cluster: &mut Cluster, disks: &[Disk], node: u16) -> Result<()> {
    let said = cluster.log_text(node).len();
    cluster.kill(node)?;
    disks[usize::from(node) - 1].fill_to_the_last_byte()?;
    cluster.start_node(node)?;
    let says_so = async |cluster: &Cluster| {
        disks[usize::from(node) - 1].fill_to_the_last_byte().ok()?;
        let full = cluster.group(node, GROUP).await.is_some_and(|of| of.state == "disk full");
        let text = cluster.log_text(node);
        (full && text[said..].contains("the log lacks space")).then_some(())
    };
    let what = "the node that was started on a full disk to say so";
    cluster.wait_for(what, TURN_PATIENCE, says_so).await?;
    ensure!(cluster.running().contains(&node), "node {node} does not run");
    Ok(())
}

/// Calls outlast a change of leader, but a refusal because of a full disk shows soon.
fn patient() -> Options {
    let (deadline, attempt) = (Duration::from_secs(4), Duration::from_secs(2));
    Options { deadline, attempt, ..Options::default() }
}

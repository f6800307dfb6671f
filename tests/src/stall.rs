//! Disks that hang: each node has filesystems of its own, which are frozen (`fsfreeze`) while it
//! runs. No operation fails, but writes do not return.
//!
//! - If the leader's disk hangs, another node leads soon, and commands are answered.
//! - If a follower's disk hangs, no client notices.
//! - If the leader's snapshots are on a disk of their own and that disk hangs, commands wait for a
//!   moment at most.
//! - A node whose disk hangs reports it, and stops when it is told to.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lockstep_client::v1::GroupStatus;
use lockstep_client::{Client, Options};

use crate::cluster::{Cluster, STOP_PATIENCE, Spec};
use crate::observe::PATIENCE;
use crate::steady::Steady;
use crate::tell::{Teller, seconds};

const GROUP: &str = "ballast";
const MODULE: &str = "native:ballast:65536";
const DISK_BYTES: u64 = 96 << 20;
const COMMAND_BYTES: usize = 1 << 10;
const PAUSE_MS: u64 = 5;
/// The longest that the writer may wait for an answer: a second until a node notices, an election,
/// and the client's search for the new leader.
const LEADER_GAP_MAX: Duration = Duration::from_secs(8);
/// The longest wait when a follower's disk hangs: that delays no command, but the machine may be
/// busy.
const FOLLOWER_GAP_MAX: Duration = Duration::from_secs(2);
/// The longest wait when a checkpoint finds the disk of the leader's snapshots hanging.
const SNAPSHOT_GAP_MAX: Duration = Duration::from_secs(6);
/// Where a node keeps its snapshots, beside its configuration.
const SNAPSHOTS: &str = "snapshots";
/// How often the writer's count of answers is checked.
const LOOK: Duration = Duration::from_millis(20);

/// The disks of one node.
struct Disks {
    data: Freezer,
    snapshots: Freezer,
}

/// A mounted filesystem that can be frozen. It is thawed and unmounted when it is dropped.
struct Freezer {
    dir: PathBuf,
    image: PathBuf,
}

/// What this machine lacks to mount and freeze filesystems; `None` if nothing.
pub fn lacks() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting and freezing a filesystem needs root".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("there are no loop devices".to_owned());
    }
    let installed = |program: &&&str| {
        let mut version = Command::new(program);
        version.arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_err()
    };
    let missing = ["mkfs.ext4", "fsfreeze"];
    missing.iter().find(installed).map(|program| format!("{program} is not installed"))
}

/// Lets the leader's disk hang for this many seconds, and others for a third of that.
pub async fn run(hang_seconds: u64, tell: &mut Teller) -> Result<()> {
    tell.step("Start three nodes, each on a filesystem of its own");
    let mut spec = Spec::of_module(GROUP, MODULE, 3).with_snapshot_entries(1_000_000);
    spec.groups[0].settings.push(format!("snapshot-dir = \"{SNAPSHOTS}\""));
    let mut cluster = Cluster::prepare(spec)?;
    let mut disks = Vec::new();
    for node in cluster.nodes() {
        let snapshots = cluster.config_file(node).with_file_name(SNAPSHOTS);
        disks.push(Disks {
            data: Freezer::mount(&cluster.data_dir(node))?,
            snapshots: Freezer::mount(&snapshots)?,
        });
        let listens = format!("metrics-listen = \"{}\"\n", metrics_address(&cluster, node));
        cluster.configure(node, &(listens + &cluster.configuration(node)))?;
        cluster.start_node(node)?;
    }
    let hangs = Duration::from_secs(hang_seconds);
    let done = all(&mut cluster, &disks, hangs, tell).await;
    if done.is_err() {
        cluster.keep_files();
    }
    done.with_context(|| format!("logs in {}", cluster.root().display()))
}

async fn all(
    cluster: &mut Cluster,
    disks: &[Disks],
    hangs: Duration,
    tell: &mut Teller,
) -> Result<()> {
    cluster.wait_serving(GROUP).await?;
    let client = cluster.client_of(GROUP, Options::default())?;
    let writer =
        Steady::start(cluster.client_of(GROUP, Options::default())?, COMMAND_BYTES, PAUSE_MS);

    tell.step(&format!("The leader's disk hangs for {}", seconds(hangs)));
    let leader = cluster.wait_leader(GROUP, None).await?;
    let gap = hang(cluster, &disks[usize::from(leader) - 1].data, leader, hangs, &writer).await?;
    ensure!(gap <= LEADER_GAP_MAX, "no command was answered for {gap:?}");
    tell.shown(format!(
        "another node leads; no command waited longer than {}; the node reported its disk",
        seconds(gap)
    ));

    tell.step(&format!("A follower's disk hangs for {}", seconds(hangs / 3)));
    let leader = cluster.wait_serving(GROUP).await?;
    let follower = cluster.nodes().into_iter().find(|node| *node != leader).expect("two follow");
    let disk = &disks[usize::from(follower) - 1].data;
    let gap = hang(cluster, disk, follower, hangs / 3, &writer).await?;
    ensure!(gap <= FOLLOWER_GAP_MAX, "no command was answered for {gap:?}");
    tell.shown(format!("no command waited longer than {}", seconds(gap)));

    tell.step(&format!("The disk of the leader's snapshots hangs for {}", seconds(hangs / 3)));
    let leader = cluster.wait_serving(GROUP).await?;
    let disk = &disks[usize::from(leader) - 1].snapshots;
    let gap = hang_snapshots(cluster, disk, leader, hangs / 3, &client, &writer).await?;
    ensure!(gap <= SNAPSHOT_GAP_MAX, "no command was answered for {gap:?}");
    tell.shown(format!(
        "no command waited longer than {}; the node reported the hanging disk, and took snapshots \
         later",
        seconds(gap)
    ));

    tell.step("The leader's disk hangs, and the node is told to stop");
    let leader = cluster.wait_serving(GROUP).await?;
    stop(cluster, &disks[usize::from(leader) - 1].data, leader, tell).await?;
    cluster.start_node(leader)?;

    writer.account(cluster, &client, GROUP, tell).await
}

/// Lets the disk of the snapshots of `node`, which leads, hang for a time and asks for a snapshot;
/// returns the longest time in which the writer had no answer.
async fn hang_snapshots(
    cluster: &mut Cluster,
    disk: &Freezer,
    node: u16,
    hangs: Duration,
    client: &Client,
    writer: &Steady,
) -> Result<Duration> {
    disk.freeze()?;
    client.checkpoint().await.context("asking for a snapshot")?;
    let longest = longest_gap(writer, hangs).await;
    let status = cluster.group(node, GROUP).await.context("the node does not answer")?;
    let GroupStatus { state, snapshots_stalled_ms, snapshots_stalled_directory, .. } = &status;
    ensure!(state == "serving", "its state is {state}: {}", status.cause);
    ensure!(*snapshots_stalled_ms > 1_000, "it reports a stall of only {snapshots_stalled_ms} ms");
    ensure!(
        snapshots_stalled_directory.contains(SNAPSHOTS),
        "it reports a stall in {snapshots_stalled_directory:?}"
    );
    let metrics = scrape(&metrics_address(cluster, node))?;
    let row = metrics.lines().find(|line| line.starts_with("lockstep_snapshots_stalled_seconds{"));
    let row = row.with_context(|| format!("no metric reports it: {metrics}"))?;
    ensure!(row.contains(snapshots_stalled_directory) && !row.ends_with(" 0"), "{row}");
    let leader = cluster.leader(GROUP).await.context("no node leads")?;
    ensure!(leader == node, "node {node} no longer leads, although its log is well");
    disk.thaw()?;
    cluster.capture(client, GROUP).await?.equal()?;
    Ok(longest)
}

/// The longest time, within `time`, in which the writer had no answer.
async fn longest_gap(writer: &Steady, time: Duration) -> Duration {
    let began = Instant::now();
    let (mut answered, mut at, mut longest) = (writer.acknowledged(), began, Duration::ZERO);
    while began.elapsed() < time {
        tokio::time::sleep(LOOK).await;
        longest = longest.max(at.elapsed());
        if writer.acknowledged() > answered {
            (answered, at) = (writer.acknowledged(), Instant::now());
        }
    }
    longest
}

/// Lets the disk of `node` hang for a time; returns the longest time in which the writer had no
/// answer.
async fn hang(
    cluster: &mut Cluster,
    disk: &Freezer,
    node: u16,
    hangs: Duration,
    writer: &Steady,
) -> Result<Duration> {
    disk.freeze()?;
    let longest = longest_gap(writer, hangs).await;
    let status = cluster.group(node, GROUP).await.context("the node does not answer")?;
    tells_of_its_disk(&status, &scrape(&metrics_address(cluster, node))?)?;
    let leader = cluster.leader(GROUP).await.context("no node leads")?;
    ensure!(leader != node, "node {node} leads although its disk hangs");
    disk.thaw()?;
    cluster.wait_serving(GROUP).await?;
    Ok(longest)
}

fn tells_of_its_disk(status: &GroupStatus, metrics: &str) -> Result<()> {
    let GroupStatus { state, cause, log_stalled_ms, log_stalled_directory, .. } = status;
    ensure!(state == "disk stalled" && !cause.is_empty(), "its state is {state}: {cause}");
    ensure!(*log_stalled_ms > 1_000, "it reports a stall of only {log_stalled_ms} ms");
    ensure!(
        log_stalled_directory.ends_with("wal"),
        "it reports a stall in {log_stalled_directory:?}"
    );
    let row = metrics.lines().find(|line| line.starts_with("lockstep_log_stalled_seconds{"));
    let row = row.with_context(|| format!("no metric reports it: {metrics}"))?;
    ensure!(row.contains(log_stalled_directory) && !row.ends_with(" 0"), "{row}");
    Ok(())
}

/// Tells a node whose disk hangs to stop. A thread that hangs in the kernel keeps the process
/// alive, but it serves nobody any more.
async fn stop(cluster: &mut Cluster, disk: &Freezer, node: u16, tell: &Teller) -> Result<()> {
    disk.freeze()?;
    let address = cluster.address(node).to_owned();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    cluster.process(node)?.terminate()?;
    let ended = async |cluster: &Cluster| {
        let said = cluster.log_text(node).contains("node stopped");
        (said && TcpStream::connect(&address).is_err()).then_some(())
    };
    cluster.wait_for("the node to stop", STOP_PATIENCE, ended).await?;
    let took = began.elapsed();
    disk.thaw()?;
    let status = cluster.ended(node, PATIENCE).await?;
    ensure!(status.success(), "it was told to stop and ended with {status}");
    tell.shown(format!("it stopped within {}", seconds(took)));
    Ok(())
}

/// The address for a node's metrics. A cluster has 16 ports to itself, and its nodes take the first
/// ones.
fn metrics_address(cluster: &Cluster, node: u16) -> String {
    let (host, port) = cluster.address(node).rsplit_once(':').expect("host:port");
    format!("{host}:{}", port.parse::<u16>().expect("a port") + 8)
}

fn scrape(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).context("the metrics' port")?;
    stream.set_read_timeout(Some(PATIENCE)).context("a timeout")?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("asking for metrics")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading metrics")?;
    Ok(answer)
}

impl Freezer {
    fn mount(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let image = dir.with_extension("img");
        let file = std::fs::File::create(&image).context("creating an image")?;
        file.set_len(DISK_BYTES).context("making the image as large as the disk")?;
        run_quietly(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        run_quietly(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(dir))?;
        Ok(Self { dir: dir.to_owned(), image })
    }

    fn freeze(&self) -> Result<()> {
        run_quietly(Command::new("fsfreeze").arg("-f").arg(&self.dir))
    }

    fn thaw(&self) -> Result<()> {
        run_quietly(Command::new("fsfreeze").arg("-u").arg(&self.dir))
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // The filesystem is usually not frozen, and thawing fails. If it stayed frozen, processes
        // that write to it would hang for ever.
        let _not_frozen = self.thaw();
        // A lazy unmount, because a process that is about to be killed may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        let _ = std::fs::remove_file(&self.image);
    }
}

/// Runs a program; fails with its error output if it fails.
fn run_quietly(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?} failed ({}): {}", done.status, said.trim());
    Ok(())
}

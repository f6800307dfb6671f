//! The demo: three real processes, and a line for everything that happens to them.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lockstep_client::v1::group_status::Role;
use lockstep_client::{Client, Consistency, Outcome, Session};
use lockstep_core::ids::{ReplicaId, hex};

use crate::cluster::{Cluster, Spec};
use crate::observe::PATIENCE;
use crate::tell::{Teller, mebibytes, seconds, thousands};
use crate::writers::{History, Load, Writers};

const GROUP: &str = "kv";
/// First ports for the nodes: the first that is free is taken.
const PORTS: [u16; 4] = [7101, 7201, 7301, 7401];
const LOAD: Load = Load { writers: 16, keys: 200, value_bytes: 128 };
/// Entries between snapshots, few enough that snapshots are taken during the demo.
const SNAPSHOT_ENTRIES: u64 = 1_000;
/// Entries that the log must reach before a follower is wiped: more than it keeps for followers
/// that lag.
const ENTRIES: u64 = 8_000;
/// Writes to wait for before and after the leader is killed.
const WRITES_AFTER: u64 = 500;

/// The cluster of the demo, and the reporter of its steps.
pub struct Demo {
    cluster: Cluster,
    client: Client,
    session: Session,
    tell: Teller,
}

impl Demo {
    /// Starts the processes.
    pub async fn start(mut tell: Teller) -> Result<Self> {
        tell.step("Start three nodes");
        let mut spec = Spec::of_guest("kv", 3)?.with_snapshot_entries(SNAPSHOT_ENTRIES);
        spec.cluster = "demo".to_owned();
        spec.first_address = Some(("127.0.0.1".to_owned(), free_ports()?));
        let mut cluster = Cluster::start(spec)?;
        for node in cluster.nodes() {
            let id = cluster.process(node)?.id();
            tell.say(format!("node {node}: {}, process {id}", cluster.address(node)));
        }
        let ready = async {
            let leader = cluster.wait_serving(GROUP).await?;
            let client = cluster.client()?;
            let session = client.open_session().await?;
            anyhow::Ok((leader, client, session))
        };
        match ready.await {
            Ok((leader, client, session)) => {
                tell.shown(format!("they bootstrapped the group `{GROUP}`; node {leader} leads"));
                Ok(Self { cluster, client, session, tell })
            }
            Err(error) => {
                cluster.keep_files();
                Err(error).with_context(|| format!("logs in {}", cluster.root().display()))
            }
        }
    }

    /// Runs and reports all steps except the last one, the stop.
    pub async fn tell(&mut self) -> Result<()> {
        let told = self.steps().await;
        if told.is_err() {
            self.cluster.keep_files();
            self.tell.failed(format!("step {} failed", self.tell.number()));
        }
        told.with_context(|| format!("logs in {}/node-*/log", self.cluster.root().display()))
    }

    /// Stops the nodes, which must all exit with 0.
    pub async fn stop(mut self) -> Result<()> {
        self.tell.step("Stop everything with SIGTERM");
        self.cluster.stop_all().await?;
        self.tell.shown("all three handed over, flushed and exited with 0");
        println!("\nThat was the whole demo. Try `cargo xtask demo --keep`, or read README.md.");
        Ok(())
    }

    /// Leaves the nodes running and prints what to try with them.
    pub fn leave(self) -> Result<()> {
        let (cluster, all) = (&self.cluster, self.cluster.endpoints());
        let lockstep = cluster.binary().display();
        println!("\nThe cluster is up. Try:");
        println!("  {lockstep} status --endpoint {all}");
        println!("  {lockstep} apply  --endpoint {all} 'set river Rhine'");
        println!("  {lockstep} query  --endpoint {all} 'get river'");
        println!("  {lockstep} snapshot list --data-dir {}", cluster.data_dir(1).display());
        let mut ids = Vec::new();
        for node in cluster.nodes() {
            println!("  less {}", cluster.log_file(node).display());
            ids.push(cluster.process(node)?.id().to_string());
        }
        println!("\nStop it with:\n  kill {}", ids.join(" "));
        println!("and remove its files:\n  rm -r {}", cluster.root().display());
        self.cluster.leave();
        Ok(())
    }

    async fn steps(&mut self) -> Result<()> {
        self.write_and_read().await?;
        self.fill().await?;
        self.checkpoint("Take a snapshot").await?;
        self.kill_leader().await?;
        self.wipe_follower().await?;
        self.checkpoint("Compare all three nodes at one checkpoint").await
    }

    async fn write_and_read(&mut self) -> Result<()> {
        self.tell.step("Write and read");
        self.apply("set city Basel", "", true).await?;
        self.apply("cas city Basel Zurich", "Basel", true).await?;
        self.apply("cas city Basel Geneva", "", false).await?;
        self.apply("incr visits", "1", true).await?;
        for node in self.cluster.nodes() {
            let only =
                Client::connect([self.cluster.address(node)], self.client.options().clone())?;
            let reply = only.query("get city", Consistency::Linearizable).await?;
            ensure!(reply.outcome == Outcome::Ok("Zurich".into()), "node {node} read {reply:?}");
            self.tell.shown(format!(
                "get city at node {node} → Zurich (linearizable, applied index {})",
                reply.applied_index
            ));
        }
        Ok(())
    }

    /// Applies a command and shows the answer. `want` is the answer if the command is accepted.
    async fn apply(&self, command: &'static str, want: &'static str, accepted: bool) -> Result<()> {
        let reply = self.session.apply(command).await?;
        let (good, answer) = match &reply.outcome {
            Outcome::Ok(bytes) => (accepted && bytes == want, bytes),
            Outcome::Rejected(bytes) => (!accepted, bytes),
        };
        let answer = String::from_utf8_lossy(answer);
        ensure!(good, "`{command}` was answered `{answer}`");
        let how = if accepted { "→" } else { "→ rejected:" };
        let shown = if answer.is_empty() { "(nothing before)" } else { &answer };
        self.tell.shown(format!("{command} {how} {shown}"));
        Ok(())
    }

    async fn fill(&mut self) -> Result<()> {
        self.tell.step("Write a lot");
        self.tell.say(format!("{} clients, each with one write at a time", LOAD.writers));
        let since = Instant::now();
        let writers = Writers::start(|| self.cluster.client(), LOAD)?;
        let far = async |cluster: &Cluster| {
            let leader = cluster.leader(GROUP).await?;
            let status = cluster.group(leader, GROUP).await?;
            (status.last_index >= ENTRIES && status.first_index > 1).then_some(status)
        };
        let status = self.cluster.wait_for("the log to be cut", 2 * PATIENCE, far).await?;
        let (acknowledged, took) = (writers.acknowledged(), since.elapsed());
        let history = writers.stop().await?;
        let rate = acknowledged as f64 / took.as_secs_f64();
        self.tell.shown(format!(
            "{} writes acknowledged, {} a second, in {} log entries",
            thousands(acknowledged),
            thousands(rate as u64),
            thousands(status.last_index)
        ));
        let checkpoints: Vec<String> =
            status.snapshots.iter().map(|snapshot| snapshot.index.to_string()).collect();
        self.tell.shown(format!(
            "snapshots were taken on the way (at {}), and the log now begins at {}",
            checkpoints.join(" and "),
            status.first_index
        ));
        self.nothing_lost(&history).await
    }

    async fn checkpoint(&mut self, title: &str) -> Result<()> {
        self.tell.step(title);
        let captured = self.cluster.capture(&self.client, GROUP).await?;
        for (node, snapshot) in &captured.by_node {
            self.tell.say(format!(
                "node {node}: checkpoint {}, {}, BLAKE3 {}",
                captured.index,
                mebibytes(snapshot.length.into()),
                hex(&snapshot.digest),
            ));
        }
        captured.equal()?;
        self.tell.shown("equal on all three");
        Ok(())
    }

    async fn kill_leader(&mut self) -> Result<()> {
        self.tell.step("Kill the leader with SIGKILL while clients write");
        let victim = self.cluster.wait_serving(GROUP).await?;
        let writers = Writers::start(|| self.cluster.client(), LOAD)?;
        wait_writes(&mut self.cluster, &writers, WRITES_AFTER).await?;
        let id = self.cluster.process(victim)?.id();
        let since = Instant::now();
        self.cluster.kill(victim)?;
        self.tell.say(format!("node {victim} led; process {id} is gone"));
        let next = self.cluster.wait_leader(GROUP, Some(victim)).await?;
        self.tell.shown(format!("node {next} leads after {}", seconds(since.elapsed())));
        let goal = writers.acknowledged() + WRITES_AFTER;
        wait_writes(&mut self.cluster, &writers, goal).await?;
        let acknowledged = writers.acknowledged();
        let history = writers.stop().await?;
        let (retried, across) = history.retried();
        self.tell.shown(format!(
            "{} writes acknowledged around it; {retried} retried, {across} under the new leader",
            thousands(acknowledged)
        ));
        self.nothing_lost(&history).await?;
        self.cluster.start_node(victim)?;
        self.cluster.wait_serving(GROUP).await?;
        self.tell.shown(format!("node {victim} is back and caught up from the log"));
        Ok(())
    }

    async fn wipe_follower(&mut self) -> Result<()> {
        let leader = self.cluster.wait_serving(GROUP).await?;
        let victim = *self.cluster.nodes().iter().find(|n| **n != leader).expect("three nodes");
        self.tell.step(&format!("Node {victim} loses its disk"));
        let old = self.cluster.group(victim, GROUP).await.context("a node's status")?.replica;
        self.cluster.kill(victim)?;
        self.cluster.wipe(victim)?;
        self.tell.say(format!(
            "killed, and its data directory removed; it was replica {}",
            ReplicaId(old)
        ));
        self.cluster.start_node(victim)?;
        let joined = async |cluster: &Cluster| {
            let status = cluster.group(victim, GROUP).await?;
            let voter = matches!(status.role(), Role::Follower | Role::Leader);
            (voter && status.state == "serving").then_some(status)
        };
        let status = self.cluster.wait_for("the node to join again", PATIENCE, joined).await?;
        ensure!(status.replica != old, "it came back under its old replica id");
        ensure!(status.first_index > 1, "it came back without a snapshot");
        self.tell.shown(format!("it joined as a new replica, {}", ReplicaId(status.replica)));
        let snapshot = status.snapshots.last().context("it lists no snapshot")?;
        self.tell.shown(format!(
            "it got a snapshot of {} at index {}, then the log up to {}; it votes again",
            mebibytes(snapshot.length.into()),
            snapshot.index,
            status.applied
        ));
        Ok(())
    }

    /// Checks that every acknowledged write is there.
    async fn nothing_lost(&self, history: &History) -> Result<()> {
        let keys = history.check(&self.client).await?;
        self.tell.shown(format!(
            "nothing acknowledged is lost: each of {} keys holds its last write",
            thousands(keys)
        ));
        Ok(())
    }
}

async fn wait_writes(cluster: &mut Cluster, writers: &Writers, count: u64) -> Result<()> {
    let enough = async |_: &Cluster| (writers.acknowledged() >= count).then_some(());
    cluster.wait_for("writes to be acknowledged", PATIENCE, enough).await
}

/// The first of three free ports in a row.
fn free_ports() -> Result<u16> {
    let free = |first: &u16| {
        (*first..first + 3).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
    };
    PORTS.into_iter().find(free).with_context(|| format!("ports {PORTS:?} are all in use"))
}

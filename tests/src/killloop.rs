//! One node is killed again and again under load: it must come back each time, soon and with all
//! its data.
//!
//! SIGKILL tests recovery from the death of a process, not from a loss of power: what the process
//! wrote and did not sync is still there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cluster::{Cluster, Spec};
use crate::rng::Rng;
use crate::tell::{Teller, seconds, thousands};
use crate::writers::{Load, Writers};

const GROUP: &str = "kv";
/// The load under which the node is killed.
const LOAD: Load = Load { writers: 4, keys: 100, value_bytes: 256 };

/// How often to kill, and what must hold.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub times: u32,
    /// The node that is killed.
    pub node: u16,
    pub seed: u64,
    /// The longest that the node may take from its start to the leader's index.
    pub limit: Duration,
    /// How many kills pass between two comparisons of the nodes' digests.
    pub compare_every: u32,
    /// The longest that the node lives, at the leader's index, before it is killed again.
    pub life: Duration,
}

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Figures {
    pub acknowledged: u64,
    pub comparisons: u32,
    /// How long the node took to come back each time, sorted.
    pub back_after: Vec<Duration>,
}

/// Runs the plan on a cluster of three; a broken promise is an error.
pub async fn run(plan: Plan, tell: &mut Teller) -> Result<Figures> {
    tell.step("Start three nodes with the key-value store, and write");
    let spec = Spec::of_guest("kv", 3)?.with_snapshot_entries(1_000);
    let mut cluster = Cluster::start(spec)?;
    let done = kill_and_return(&mut cluster, plan, tell).await;
    if done.is_err() {
        cluster.keep_files();
    }
    done.with_context(|| format!("seed {}; logs in {}", plan.seed, cluster.root().display()))
}

async fn kill_and_return(cluster: &mut Cluster, plan: Plan, tell: &mut Teller) -> Result<Figures> {
    cluster.wait_serving(GROUP).await?;
    let client = cluster.client()?;
    let writers = Writers::start(|| cluster.client(), LOAD)?;
    tell.shown(format!("{} writers", LOAD.writers));

    tell.step(&format!("Kill node {} {} times", plan.node, plan.times));
    let mut rng = Rng::new(plan.seed);
    let mut figures = Figures { acknowledged: 0, comparisons: 0, back_after: Vec::new() };
    for kill in 1..=plan.times {
        let life = rng.below(plan.life.as_millis() as u64);
        tokio::time::sleep(Duration::from_millis(life)).await;
        let took = kill_once(cluster, plan).await.with_context(|| format!("kill {kill}"))?;
        figures.back_after.push(took);
        if kill % plan.compare_every == 0 {
            let captured = cluster.capture(&client, GROUP).await?;
            let digest = lockstep_core::ids::hex(&captured.equal()?.digest[..8]);
            figures.comparisons += 1;
            tell.say(format!(
                "kill {kill}: back after {}; at checkpoint {} all have {digest}…; {} acknowledged",
                seconds(took),
                captured.index,
                thousands(writers.acknowledged()),
            ));
        }
    }
    figures.back_after.sort();
    let (last, middle) = (figures.back_after.len() - 1, figures.back_after.len() / 2);
    tell.shown(format!(
        "back at the leader's index after {} in the median, {} at most",
        seconds(figures.back_after[middle]),
        seconds(figures.back_after[last]),
    ));

    tell.step("Check what was acknowledged");
    figures.acknowledged = writers.acknowledged();
    let history = writers.stop().await?;
    let keys = history.check(&client).await?;
    tell.shown(format!(
        "{} acknowledged writes; each of {keys} keys holds the last one",
        thousands(figures.acknowledged)
    ));
    cluster.capture(&client, GROUP).await?.equal()?;
    cluster.stop_all().await?;
    tell.shown(
        "the snapshots of all nodes at one checkpoint are equal; all stopped with exit code 0",
    );
    Ok(figures)
}

/// Kills the node and starts it again; returns how long it took from its start to the leader's
/// index.
async fn kill_once(cluster: &mut Cluster, plan: Plan) -> Result<Duration> {
    cluster.kill(plan.node)?;
    cluster.start_node(plan.node)?;
    let since = Instant::now();
    let leader_commit = async |cluster: &Cluster| {
        let leader = cluster.leader(GROUP).await?;
        Some(cluster.group(leader, GROUP).await?.commit)
    };
    let index = cluster.wait_for("the leader's index", plan.limit, leader_commit).await?;
    let left = plan.limit.saturating_sub(since.elapsed());
    cluster.wait_applied(plan.node, GROUP, index, left).await?;
    Ok(since.elapsed())
}

//! One large snapshot is sent through many broken transfers to a voter that fell behind:
//! connections are cut, the receiver is killed, and senders are killed, so that another leader
//! takes over. Hardly a byte may be sent twice.
//!
//! Everything sent to the receiver goes through proxies, which count the bytes and can be cut.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lockstep_client::{Client, Options};

use crate::cluster::{Cluster, Spec};
use crate::proxy::Proxy;
use crate::steady::Steady;
use crate::tell::{Teller, mebibytes};

const GROUP: &str = "ballast";
const RECEIVER: u16 = 3;
/// How long the capture of the whole state, or its transfer between two breaks, may take.
const PATIENCE: Duration = Duration::from_secs(240);
/// Every tenth break kills the sender; halfway between two of those, a break kills the receiver.
const KILL_EVERY: u32 = 10;
/// Commands written meanwhile are small, because they reach the receiver through the same proxies.
const COMMAND_BYTES: usize = 64;
const PAUSE_MS: u64 = 20;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub state_bytes: u64,
    pub breaks: u32,
    /// Snapshot payload, bytes a second.
    pub rate: u64,
    /// How much more than the object's size may be sent, in per mille of that size.
    pub limit_per_mille: u64,
}

pub async fn run(plan: Plan, tell: &mut Teller) -> Result<()> {
    tell.step(&format!("Start three nodes with {}", mebibytes(plan.state_bytes.into())));
    let module = format!("native:ballast:{}", plan.state_bytes);
    let mut spec = Spec::of_module(GROUP, &module, 3).with_snapshot_entries(1_000_000_000);
    spec.settings = vec![
        "log-segment = \"16MiB\"".into(),
        format!("snapshot-rate = \"{}KiB\"", plan.rate >> 10),
    ];
    spec.groups[0].settings.push("snapshot-log-bytes = \"1000GiB\"".to_owned());
    spec.groups[0].settings.push("catch-up-entries = 10".to_owned());
    let mut cluster = Cluster::prepare(spec)?;
    let receiver = cluster.address(RECEIVER).to_owned();
    let host = receiver.split(':').next().context("an address without a host")?.to_owned();
    let mut proxies = Vec::new();
    for node in cluster.nodes().into_iter().filter(|node| *node != RECEIVER) {
        let proxy = Proxy::start(&host, &receiver).await?;
        let text = cluster.configuration(node).replace(&receiver, proxy.address());
        cluster.configure(node, &text)?;
        proxies.push(proxy);
    }
    let done = all(&mut cluster, &proxies, plan, tell).await;
    if done.is_err() {
        cluster.keep_files();
    }
    done.with_context(|| format!("logs in {}", cluster.root().display()))
}

async fn all(
    cluster: &mut Cluster,
    proxies: &[Proxy],
    plan: Plan,
    tell: &mut Teller,
) -> Result<()> {
    for node in cluster.nodes() {
        cluster.start_node(node)?;
    }
    let leader = cluster.wait_serving(GROUP).await?;
    if leader == RECEIVER {
        cluster.stop(RECEIVER).await?;
        cluster.start_node(RECEIVER)?;
        cluster.wait_serving(GROUP).await?;
    }
    let (deadline, attempt) = (Duration::from_secs(60), Duration::from_secs(20));
    let options = || Options { deadline, attempt, ..Options::default() };
    let client = cluster.client_of(GROUP, options())?;
    let writer = Steady::start(cluster.client_of(GROUP, options())?, COMMAND_BYTES, PAUSE_MS);
    fall_behind(cluster, &client, &writer).await?;
    tell.shown(format!("node {RECEIVER} is a voter whose log ends before the others' begin"));

    tell.step(&format!("Start node {RECEIVER}, and break its transfer {} times", plan.breaks));
    let sent_before: u64 = proxies.iter().map(Proxy::forwarded).sum();
    let sent = || proxies.iter().map(Proxy::forwarded).sum::<u64>() - sent_before;
    cluster.start_node(RECEIVER)?;
    let broken = break_it(cluster, proxies, plan, &sent, tell).await?;
    let index = cluster.settled_index(&client).await?;
    cluster.wait_applied(RECEIVER, GROUP, index, PATIENCE).await?;
    let status = cluster.group(RECEIVER, GROUP).await.context("the receiver's status")?;
    ensure!(
        status.configuration.is_some_and(|now| now.voters.len() == 3),
        "the group no longer has three voters"
    );
    let object = status.snapshots.first().context("the receiver lists no snapshot")?.length;
    let beyond = sent().saturating_sub(object);
    let per_mille = beyond as f64 * 1000.0 / object as f64;
    let line = format!(
        "{} arrived through {} cuts, {} restarts of the receiver and {} of senders; {} were sent \
         beyond its size, {:.2} %, raft's own messages included",
        mebibytes(object.into()),
        broken.cuts,
        broken.receivers,
        broken.senders,
        mebibytes(beyond.into()),
        per_mille / 10.0,
    );
    ensure!(per_mille <= plan.limit_per_mille as f64, "{line}");
    tell.shown(line);

    writer.account(cluster, &client, GROUP, tell).await
}

/// Stops the receiver until the others' logs begin after the end of its own.
async fn fall_behind(cluster: &mut Cluster, client: &Client, writer: &Steady) -> Result<()> {
    cluster.stop(RECEIVER).await?;
    let before = writer.acknowledged();
    let more = async |_: &Cluster| (writer.acknowledged() > before + 200).then_some(());
    cluster.wait_for("commands that the receiver misses", PATIENCE, more).await?;
    cluster.capture(client, GROUP).await?;
    for node in cluster.running() {
        let status = cluster.group(node, GROUP).await.context("a node's status")?;
        ensure!(status.first_index > 1, "the log of node {node} begins at 1");
    }
    Ok(())
}

#[derive(Default)]
struct Broken {
    cuts: u32,
    receivers: u32,
    senders: u32,
}

/// Breaks the transfer each time another part of the state has been sent.
async fn break_it(
    cluster: &mut Cluster,
    proxies: &[Proxy],
    plan: Plan,
    sent: &impl Fn() -> u64,
    tell: &Teller,
) -> Result<Broken> {
    let mut broken = Broken::default();
    for number in 1..=plan.breaks {
        let part = plan.state_bytes * u64::from(number) / u64::from(plan.breaks + 1);
        let passed = async |_: &Cluster| (sent() >= part).then_some(());
        let what = format!("the first {part} bytes to be sent");
        cluster.wait_for(&what, PATIENCE, passed).await?;
        if number % KILL_EVERY == 0 {
            let leader = cluster.wait_leader(GROUP, None).await?;
            cluster.kill(leader)?;
            cluster.wait_leader(GROUP, Some(leader)).await?;
            cluster.start_node(leader)?;
            broken.senders += 1;
        } else if number % KILL_EVERY == KILL_EVERY / 2 {
            cluster.kill(RECEIVER)?;
            cluster.start_node(RECEIVER)?;
            broken.receivers += 1;
        } else {
            proxies.iter().for_each(Proxy::cut);
            broken.cuts += 1;
        }
        if number % KILL_EVERY == 0 {
            tell.say(format!("break {number}: {} sent", mebibytes(sent().into())));
        }
    }
    Ok(broken)
}

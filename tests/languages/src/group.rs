//! A component as the module of a group: three processes, clients in sessions, and leaders that are
//! killed.
//!
//! - Every answer is the one that the measure gives, a machine in this process; so is the state in
//!   the end, on each node. Clients use keys of their own, so that their order does not matter.
//! - The nodes' snapshots at a checkpoint are equal.
//! - Afterwards components of the other languages restore a snapshot of the stopped group, replay
//!   the rest of its log and come to the snapshot that the group took in the end.
//!
//! A group runs the module with which it was bootstrapped, so no group of another language can take
//! over a snapshot. `lockstep replay` is what an operator has: it restores the snapshot from the
//! node's disk, together with its sessions, and goes on with the entries after it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use lockstep_client::{Client, Consistency, Options, Outcome, Session};
use lockstep_host::guest;
use lockstep_host::kit::text::show;
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;
use lockstep_tests::rng::Rng;
use lockstep_tests::tell::{Teller, seconds, thousands};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::agree::{Machine, answers};
use crate::build::{Built, Place};
use crate::commands::Commands;

const GROUP: &str = "kv";
const CLIENTS: u64 = 8;
/// The whole state, which has to fit into an answer.
const EVERYTHING: &[u8] = b"scan  4294967295";
/// How long a call may take while a leader is elected on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// When a leader is killed, as a share of a phase's commands.
const KILLED_AT: u64 = 3;

/// What all groups are given, and what they have to answer.
pub struct Course {
    clients: Vec<Expected>,
    /// The state in the end.
    state: Bytes,
    pub commands: u64,
    pub refused: u64,
}

/// The commands of a client, and the answer to each.
type Expected = Vec<(Bytes, guest::Outcome)>;

/// A client with what is left for it to do.
struct Caller {
    session: Session,
    left: std::vec::IntoIter<(Bytes, guest::Outcome)>,
    retried: u64,
}

/// What came of a replay in another language.
struct Replayed {
    entries: u64,
    snapshot: String,
}

impl Course {
    /// Draws commands, and has the measure answer them.
    pub fn draw(measure: &Machine, commands: u64, seed: u64) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let each = commands.div_ceil(CLIENTS);
        let drawn: Vec<Vec<Bytes>> = (0..CLIENTS)
            .map(|client| {
                let mut commands = Commands::of_client(rng.fork(), client);
                (0..each).map(|_| commands.command()).collect()
            })
            .collect();
        let (outcomes, state) = answers(measure, &drawn, EVERYTHING)?;
        let refused = |outcome: &&guest::Outcome| matches!(outcome, guest::Outcome::Rejected(_));
        let refused = outcomes.iter().flatten().filter(refused).count() as u64;
        let clients = drawn.into_iter().zip(outcomes);
        let clients = clients.map(|(sent, said)| sent.into_iter().zip(said).collect()).collect();
        Ok(Self { clients, state, commands: each * CLIENTS, refused })
    }
}

/// Runs a group of one language; the others replay what it did.
pub async fn run_group(
    place: &Place,
    built: &Built,
    others: &[&Built],
    course: &Course,
    tell: &mut Teller,
) -> Result<()> {
    tell.step(&format!("A group of three processes in {}", built.language.name()));
    let module = built.file.display().to_string();
    // Checkpoints are asked for: a replay begins with one.
    let spec = Spec::of_module(GROUP, &module, 3).with_snapshot_entries(1_000_000_000);
    let mut cluster = Cluster::prepare(spec)?;
    let done = whole(&mut cluster, place, built, others, course, tell).await;
    if done.is_err() {
        cluster.keep_files();
    }
    done.with_context(|| format!("logs in {}", cluster.root().display()))
}

async fn whole(
    cluster: &mut Cluster,
    place: &Place,
    built: &Built,
    others: &[&Built],
    course: &Course,
    tell: &Teller,
) -> Result<()> {
    let began = Instant::now();
    for node in cluster.nodes() {
        start(cluster, place, node)?;
    }
    cluster.wait_serving(GROUP).await?;
    tell.shown(format!("all three serve after {}", seconds(began.elapsed())));
    let options = Options { deadline: DEADLINE, ..Options::default() };
    let client = cluster.client_of(GROUP, options)?;
    let mut callers = Vec::new();
    for expected in &course.clients {
        let session = client.open_session().await?;
        callers.push(Caller { session, left: expected.clone().into_iter(), retried: 0 });
    }
    let half = course.commands / CLIENTS / 2;
    callers = with_a_leader_killed(cluster, place, callers, half).await?;
    let first = cluster.capture(&client, GROUP).await?;
    first.equal()?;
    callers = with_a_leader_killed(cluster, place, callers, course.commands).await?;
    let last = cluster.capture(&client, GROUP).await?;
    let digest = last.equal()?.digest.clone();
    let retried: u64 = callers.iter().map(|caller| caller.retried).sum();
    tell.shown(format!(
        "{} commands with the answers of the measure, {} of them refusals; two leaders killed, {} \
         answers after a retry",
        thousands(course.commands),
        thousands(course.refused),
        thousands(retried)
    ));
    same_state(cluster, &client, &course.state).await?;
    tell.shown(format!(
        "equal on all nodes: the snapshots at {} and {}, and a scan of {} bytes with the measure's",
        first.index,
        last.index,
        thousands(course.state.len() as u64)
    ));
    cluster.stop_all().await?;
    for other in others {
        let data = cluster.data_dir(1);
        let replayed = replay(place, other, built, &data, first.index, last.index)?;
        let digest = lockstep_core::ids::hex(&digest);
        ensure!(
            replayed.snapshot == digest,
            "{} came to the snapshot {}, the group took {digest}",
            other.language.name(),
            replayed.snapshot
        );
        tell.shown(format!(
            "{} restored the snapshot at {}, replayed {} entries with the same answers, and came \
             to the snapshot at {}",
            other.language.name(),
            first.index,
            thousands(replayed.entries),
            last.index
        ));
    }
    Ok(())
}

/// Starts a node that takes compiled code from this run's cache.
fn start(cluster: &mut Cluster, place: &Place, node: u16) -> Result<()> {
    let cache = place.cache();
    cluster.start_node_as(node, &[], |command| {
        command.env("LOCKSTEP_CACHE_DIR", cache);
    })
}

/// Has each client send some commands; meanwhile the leader is killed, and started again once
/// another one leads.
async fn with_a_leader_killed(
    cluster: &mut Cluster,
    place: &Place,
    callers: Vec<Caller>,
    each: u64,
) -> Result<Vec<Caller>> {
    let leader = cluster.wait_serving(GROUP).await?;
    let (answered, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let mut total = 0;
    for caller in callers {
        total += each.min(caller.left.len() as u64);
        tasks.spawn(caller.send(each, answered.clone()));
    }
    drop(answered);
    let (mut count, mut killed) = (0, false);
    while progress.recv().await.is_some() {
        count += 1;
        if count == (total / KILLED_AT).max(1) {
            killed = true;
            cluster.kill(leader)?;
            cluster.wait_leader(GROUP, Some(leader)).await?;
            start(cluster, place, leader)?;
        }
    }
    let mut callers = Vec::new();
    while let Some(caller) = tasks.join_next().await {
        callers.push(caller.context("a client panicked")??);
    }
    ensure!(count == total, "{count} of {total} commands were answered");
    ensure!(killed, "too few commands to kill a leader among them: ask for more");
    cluster.wait_serving(GROUP).await?;
    Ok(callers)
}

impl Caller {
    /// Sends commands one after another, and compares each answer; says so of each.
    async fn send(
        mut self,
        most: u64,
        answered: tokio::sync::mpsc::UnboundedSender<()>,
    ) -> Result<Self> {
        for _ in 0..most {
            let Some((command, expected)) = self.left.next() else { break };
            let reply = self.session.apply(command.clone()).await;
            let reply = reply.with_context(|| show(&command))?;
            let same = match (&reply.outcome, &expected) {
                (Outcome::Ok(one), guest::Outcome::Ok(two)) => one == two,
                (Outcome::Rejected(one), guest::Outcome::Rejected(two)) => one == two,
                _other => false,
            };
            ensure!(
                same,
                "{}: answered {:?}, expected {expected:?}",
                show(&command),
                reply.outcome
            );
            self.retried += u64::from(reply.attempts > 1);
            // Nobody listens any more if the run has failed.
            let _ = answered.send(());
        }
        Ok(self)
    }
}

/// Each node has the state of the measure, once it has applied all that was acknowledged.
async fn same_state(cluster: &mut Cluster, client: &Client, state: &Bytes) -> Result<()> {
    let index = cluster.settled_index(client).await?;
    for node in cluster.nodes() {
        cluster.wait_applied(node, GROUP, index, PATIENCE).await?;
        let reply = client.query_at(cluster.address(node), EVERYTHING).await?;
        let Outcome::Ok(found) = reply.outcome else {
            bail!("node {node} answered {}: {:?}", show(EVERYTHING), reply.outcome)
        };
        ensure!(found == *state, "node {node} has another state than the measure");
    }
    let reply = client.query("len", Consistency::Linearizable).await?;
    ensure!(reply.halted.is_none(), "a replica is halted: {:?}", reply.halted);
    Ok(())
}

/// Replays a stopped group's log with a component of another language, beside the group's own.
fn replay(
    place: &Place,
    other: &Built,
    own: &Built,
    data: &Path,
    from: u64,
    until: u64,
) -> Result<Replayed> {
    let mut command = place.lockstep()?;
    command.arg("replay").arg(&other.file).arg("--against").arg(&own.file);
    command.arg("--data-dir").arg(data).args(["--group", GROUP, "--json", "--entries", ".."]);
    command.args(["--from-snapshot", &from.to_string(), "--until", &until.to_string()]);
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let lines = printed.lines().map(serde_json::from_str::<Value>);
    let lines = lines.collect::<Result<Vec<_>, _>>().context("a replay is JSON")?;
    let failed = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    let (Some(begun), Some(end)) = (lines.first(), lines.last()) else { bail!(failed()) };
    let reached = output.status.success() && end["end"] == "reached" && end["applied"] == until;
    ensure!(reached, "{} ended with {end}", failed());
    ensure!(begun["snapshot"] == from, "{} began with {begun}", failed());
    let entries = lines.iter().filter(|line| line["kind"] == "commands").count() as u64;
    ensure!(entries > 0, "there was nothing to replay");
    let snapshot = end["snapshot"].as_str().unwrap_or_default().to_owned();
    Ok(Replayed { entries, snapshot })
}

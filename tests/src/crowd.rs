//! Two thousand clients of three nodes at the same time: idle ones, slow readers, clients that
//! reset their connections or give up, busy ones, and calm ones, which must not notice the others.
//!
//! - An error that a calm, a busy or an idle client sees ends the run. The others may see errors.
//! - The memory of a node grows by no more than what its clients may hold (`client-memory`), a part
//!   for each connection, and a part for what is under way.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_client::v1::lockstep_client::LockstepClient;
use lockstep_client::v1::{ApplyRequest, QueryRequest};
use lockstep_client::{Client, Consistency, Options, Outcome};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, Spec};
use crate::tell::{Teller, mebibytes, thousands};

const GROUP: &str = "kv";
/// How many clients there are of each kind.
const IDLE: usize = 1_000;
const SLOW: usize = 100;
const HASTY: usize = 200;
const BUSY: usize = 600;
const CALM: usize = 100;
/// The value that slow readers ask for, and how many times at once.
const LONG_VALUE_BYTES: usize = 512 << 10;
const LONG_QUERIES: usize = 8;
/// How long slow readers leave the answers unread.
const SLOWNESS: Duration = Duration::from_secs(5);
/// How many calls a hasty client makes at once, and when it gives them up.
const HASTY_CALLS: usize = 20;
const HASTE: Duration = Duration::from_millis(2);
/// Pauses between two calls of one client.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
const CALM_PAUSE: Duration = Duration::from_millis(250);
const RESET_PAUSE: Duration = Duration::from_millis(200);
const HASTY_PAUSE: Duration = Duration::from_secs(1);
/// How often the nodes' memory is measured.
const LOOK: Duration = Duration::from_millis(50);
/// By how much the memory of a node may grow: by `client-memory`, for each connection, and for what
/// the node has under way itself (queues of the group, windows of its log, pages of the guest and
/// its copy).
const CLIENT_MEMORY_BYTES: u64 = 64 << 20;
const CONNECTION_BYTES: u64 = 32 << 10;
const NODE_BYTES: u64 = 64 << 20;
/// The descriptors that this program needs: two for each client, and some.
const DESCRIPTORS: u64 = 8_192;

/// How many rounds, and how long each takes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: u64,
    pub seconds: u64,
}

/// What one round showed, or the medians of all.
#[derive(Clone, Debug, Default)]
struct Figures {
    commands: u64,
    command_us: [u64; 2],
    query_us: [u64; 2],
    /// Calls of calm clients that took more than one attempt.
    retried: u64,
    busy: u64,
    /// The most by which the memory of a node grew.
    memory_bytes: u64,
}

/// What all clients of a round share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    busy: AtomicU64,
    retried: AtomicU64,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// How long the calls of one calm client took, microseconds.
#[derive(Default)]
struct Times {
    commands: Vec<u64>,
    queries: Vec<u64>,
}

/// Runs the rounds; a broken promise is an error.
pub async fn run(plan: Plan, tell: &mut Teller) -> Result<()> {
    raise_descriptors()?;
    let mut all = Vec::new();
    for round in 1..=plan.rounds {
        tell.step(&format!("Round {round} of {}: {} s", plan.rounds, plan.seconds));
        let mut spec = Spec::of_guest("kv", 3)?;
        spec.settings.push("client-memory = \"64MiB\"".to_owned());
        let mut cluster = Cluster::start(spec)?;
        let figures = one_round(&mut cluster, plan, tell).await;
        if figures.is_err() {
            cluster.keep_files();
        }
        let figures = figures.with_context(|| format!("logs in {}", cluster.root().display()))?;
        tell.shown(told(&figures));
        all.push(figures);
    }
    tell.step("Medians");
    tell.shown(told(&medians(&all)));
    Ok(())
}

async fn one_round(cluster: &mut Cluster, plan: Plan, tell: &Teller) -> Result<Figures> {
    cluster.wait_serving(GROUP).await?;
    let filler = cluster.client()?;
    let value = "v".repeat(LONG_VALUE_BYTES);
    filler.apply(format!("set long {value}")).await.context("the value for slow readers")?;
    let before = memory(cluster)?;
    let shared = Arc::new(Shared::default());
    let addresses: Vec<String> =
        cluster.nodes().into_iter().map(|node| cluster.address(node).to_owned()).collect();
    let at = |number: usize| addresses[number % addresses.len()].clone();

    let mut idle = Vec::new();
    for number in 0..IDLE {
        idle.push(connect(&at(number)).await.context("an idle client")?);
    }
    let (mut ill, mut well, mut calm) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    for number in 0..SLOW {
        ill.spawn(read_slowly(at(number), Arc::clone(&shared)));
    }
    for number in 0..HASTY {
        match number % 2 {
            0 => ill.spawn(reset(at(number), Arc::clone(&shared))),
            _ => ill.spawn(give_up(at(number), Arc::clone(&shared))),
        };
    }
    for number in 0..BUSY {
        well.spawn(be_busy(number, at(number), Arc::clone(&shared)));
    }
    for number in 0..CALM {
        calm.spawn(be_calm(number, at(number), Arc::clone(&shared)));
    }
    tell.say(format!("{} clients are there", IDLE + SLOW + HASTY + BUSY + CALM));

    let memory_bytes = watch_memory(cluster, &before, plan).await?;
    shared.stop.store(true, Ordering::Relaxed);
    let mut times = Times::default();
    for one in calm.join_all().await {
        let one = one.context("a calm client saw an error")?;
        times.commands.extend(one.commands);
        times.queries.extend(one.queries);
    }
    for one in well.join_all().await {
        one.context("a busy client saw an error")?;
    }
    for client in &mut idle {
        let still = client.query(look_up("long", true)).await;
        still.context("an idle client that came back saw an error")?;
    }
    ill.shutdown().await;

    let retried = shared.retried.load(Ordering::Relaxed);
    Ok(Figures {
        commands: times.commands.len() as u64,
        command_us: quantiles(times.commands),
        query_us: quantiles(times.queries),
        retried,
        busy: shared.busy.load(Ordering::Relaxed),
        memory_bytes,
    })
}

/// Watches the nodes' memory while the round lasts; returns by how much that of a node grew at
/// most.
async fn watch_memory(
    cluster: &mut Cluster,
    before: &BTreeMap<u16, u64>,
    plan: Plan,
) -> Result<u64> {
    // Each node has its part of all clients; the leader also has those that the others send to it.
    let connections = ((IDLE + SLOW + HASTY + BUSY + CALM) / before.len() + BUSY + CALM) as u64;
    let most = CLIENT_MEMORY_BYTES + connections * CONNECTION_BYTES + NODE_BYTES;
    let until = Instant::now() + Duration::from_secs(plan.seconds);
    let mut peak = 0;
    while Instant::now() < until {
        tokio::time::sleep(LOOK).await;
        cluster.check_running()?;
        for (node, bytes) in memory(cluster)? {
            let more = bytes.saturating_sub(before[&node]);
            ensure!(more <= most, "node {node} grew by {more} bytes; {most} are allowed");
            peak = peak.max(more);
        }
    }
    Ok(peak)
}

/// A calm client increments a key of its own and reads it: each call must be applied once and
/// answered.
async fn be_calm(number: usize, address: String, shared: Arc<Shared>) -> Result<Times> {
    let client = Client::connect([address], Options::default())?;
    let session = client.open_session().await?;
    let mut times = Times::default();
    for count in 1_u64.. {
        if shared.is_over() {
            break;
        }
        let since = Instant::now();
        let reply = session.apply(format!("incr calm{number}")).await?;
        times.commands.push(micros(since));
        shared.retried.fetch_add(u64::from(reply.attempts > 1), Ordering::Relaxed);
        let want = Outcome::Ok(count.to_string().into());
        ensure!(reply.outcome == want, "got {:?}, not {want:?}", reply.outcome);
        let since = Instant::now();
        let found = client.query(format!("get calm{number}"), Consistency::Linearizable).await?;
        times.queries.push(micros(since));
        shared.retried.fetch_add(u64::from(found.attempts > 1), Ordering::Relaxed);
        ensure!(found.outcome == want, "got {:?}, not {want:?}", found.outcome);
        tokio::time::sleep(CALM_PAUSE).await;
    }
    session.close().await?;
    Ok(times)
}

/// A busy client writes once a second.
async fn be_busy(number: usize, address: String, shared: Arc<Shared>) -> Result<()> {
    let client = Client::connect([address], Options::default())?;
    let session = client.open_session().await?;
    let value = "x".repeat(256);
    // Busy clients do not all call at the same moment.
    tokio::time::sleep(BUSY_PAUSE / BUSY as u32 * number as u32).await;
    while !shared.is_over() {
        let reply = session.apply(format!("set busy{number} {value}")).await?;
        let Outcome::Ok(_) = reply.outcome else { bail!("{reply:?}") };
        shared.busy.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BUSY_PAUSE).await;
    }
    session.close().await?;
    Ok(())
}

/// A slow reader asks for much and does not read the answers.
async fn read_slowly(address: String, shared: Arc<Shared>) {
    while !shared.is_over() {
        let Ok(client) = connect(&address).await else { continue };
        let mut asking = Vec::new();
        for _ in 0..LONG_QUERIES {
            let mut client = client.clone();
            asking.push(Box::pin(async move { client.query(look_up("long", true)).await }));
        }
        for one in &mut asking {
            // The query is sent, and its answer is not read.
            let _ = tokio::time::timeout(HASTE, one).await;
        }
        tokio::time::sleep(SLOWNESS).await;
    }
}

/// Closes a connection with an answer in its receive buffer, which resets it.
async fn reset(address: String, shared: Arc<Shared>) {
    while !shared.is_over() {
        if let Ok(mut stream) = TcpStream::connect(&address).await {
            let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0").await;
            tokio::time::sleep(HASTE).await;
        }
        tokio::time::sleep(RESET_PAUSE).await;
    }
}

/// A hasty client makes many calls and gives them up at once.
async fn give_up(address: String, shared: Arc<Shared>) {
    let Ok(client) = connect(&address).await else { return };
    while !shared.is_over() {
        let mut calls = JoinSet::new();
        for _ in 0..HASTY_CALLS {
            let mut client = client.clone();
            calls.spawn(async move {
                let command = "incr hasty".into();
                let mut request =
                    tonic::Request::new(ApplyRequest { command, ..Default::default() });
                request.set_timeout(HASTE);
                let mut call = pin!(client.apply(request));
                let _ = tokio::time::timeout(HASTE, &mut call).await;
            });
        }
        calls.join_all().await;
        tokio::time::sleep(HASTY_PAUSE).await;
    }
}

async fn connect(address: &str) -> Result<LockstepClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let channel = endpoint.connect().await.context("connecting")?;
    Ok(LockstepClient::new(channel).max_decoding_message_size(2 * LONG_VALUE_BYTES))
}

fn look_up(key: &str, local: bool) -> QueryRequest {
    QueryRequest { group: GROUP.to_owned(), request: format!("get {key}").into(), local }
}

fn memory(cluster: &Cluster) -> Result<BTreeMap<u16, u64>> {
    let nodes = cluster.nodes().into_iter();
    nodes.map(|node| Ok((node, cluster.process(node)?.memory_bytes()?))).collect()
}

fn raise_descriptors() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < DESCRIPTORS) {
        limit.current = Some(limit.maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS)));
        setrlimit(Resource::Nofile, limit).context("raising the limit of descriptors")?;
    }
    let have = limit.current.unwrap_or(u64::MAX);
    ensure!(have >= DESCRIPTORS, "{DESCRIPTORS} descriptors are needed, but the limit is {have}");
    Ok(())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// The median and the 99th percentile.
fn quantiles(mut all: Vec<u64>) -> [u64; 2] {
    all.sort_unstable();
    let at = |rank: usize| all.get(rank).copied().unwrap_or(0);
    [at(all.len() / 2), at(all.len() * 99 / 100)]
}

fn medians(all: &[Figures]) -> Figures {
    let median = |of: &dyn Fn(&Figures) -> u64| quantiles(all.iter().map(of).collect())[0];
    Figures {
        commands: median(&|one| one.commands),
        command_us: [0, 1].map(|part| median(&|one| one.command_us[part])),
        query_us: [0, 1].map(|part| median(&|one| one.query_us[part])),
        retried: median(&|one| one.retried),
        busy: median(&|one| one.busy),
        memory_bytes: median(&|one| one.memory_bytes),
    }
}

fn told(figures: &Figures) -> String {
    let Figures { commands, command_us, query_us, retried, busy, memory_bytes } = figures;
    let ms = |us: &u64| format!("{:.1}", *us as f64 / 1_000.0);
    format!(
        "calm: {} commands of p50 {} ms, p99 {} ms; reads of p50 {} ms, p99 {} ms; {retried} calls \
         took more than one attempt, none failed. Busy: {} commands, none failed. The memory of a \
         node grew by at most {}",
        thousands(*commands),
        ms(&command_us[0]),
        ms(&command_us[1]),
        ms(&query_us[0]),
        ms(&query_us[1]),
        thousands(*busy),
        mebibytes((*memory_bytes).into()),
    )
}

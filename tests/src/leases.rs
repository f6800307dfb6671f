//! Locks and queues while leaders are killed and paused: everything that a timer decides is
//! accounted for.
//!
//! Clients take locks and pass messages on, watchers see what becomes of them, and leaders are
//! killed with SIGKILL or stopped with SIGSTOP. Afterwards:
//!
//! - no lock was held twice at a time, by the log's time, and tokens only rose (`leases/locks.rs`);
//! - what the locks protect took no lower token after a higher one (`leases/resource.rs`);
//! - no acknowledged message is lost, none was acked twice (`leases/queue.rs`);
//! - all watchers saw the same events, each once and in order (`leases/watchers.rs`);
//! - the snapshots of all nodes at a last checkpoint are equal.
//!
//! How late timers are is told, and not judged (`leases/lateness.rs`).

mod caller;
mod consumers;
mod faults;
mod holders;
mod lateness;
mod locks;
mod queue;
mod resource;
mod watchers;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lockstep_client::{Client, Consistency, Options, Outcome};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Spec, guest_file};
use crate::rng::Rng;
use crate::tell::{Teller, seconds, thousands};
use caller::Caller;
use consumers::{ATTEMPTS_MAX, consume, probe, produce};
use faults::Struck;
use holders::Holder;
pub use lateness::Lateness;
use locks::{Lease, Locks};
pub use queue::Messages;
use queue::{Account, Deadline, Delivery, Send};
pub use resource::Writes;
use watchers::{Newest, Watcher};

const LOCK: &str = "lock";
const QUEUE: &str = "queue";
const GROUPS: [&str; 2] = [LOCK, QUEUE];
/// What is watched in each group: everything, and a part.
const PREFIXES: [[&str; 2]; 2] = [[locks::TOPIC, "lock/l1"], [queue::TOPIC, "queue/probe-1"]];
/// Bytes of events that a group keeps: the least that can be configured, so that a watcher that is
/// away for minutes misses some.
const WINDOW_BYTES: usize = 1 << 20;
/// Entries between snapshots, few enough that many are taken.
const SNAPSHOT_ENTRIES: u64 = 3_000;
const HOLDERS: u64 = 64;
const PRODUCERS: u64 = 4;
const CONSUMERS: u64 = 6;
const PROBERS: u64 = 4;
/// How long it may take until all leases have ended and all messages are settled.
const DRAIN_PATIENCE: Duration = Duration::from_secs(180);
/// How often a line says how far the run is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// How long to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub time: Duration,
    /// The longest pause.
    pub pause: Duration,
    pub seed: u64,
}

/// What a run showed.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub kills: u64,
    pub pauses: u64,
    pub granted: u64,
    pub expired: u64,
    pub writes: Writes,
    pub messages: Messages,
    pub events: u64,
    /// How often a watcher was told that events are gone.
    pub gaps: u64,
}

/// All clients and watchers, at work.
struct Clients {
    of_locks: Arc<holders::Shared>,
    of_queue: Arc<consumers::Shared>,
    holders: JoinSet<Result<Vec<Lease>>>,
    producers: JoinSet<Result<Vec<Send>>>,
    consumers: JoinSet<Result<Vec<Delivery>>>,
    probers: JoinSet<Result<Vec<Deadline>>>,
    /// For each group, and where each group's watchers may end.
    watchers: [JoinSet<Result<watchers::Account>>; 2],
    goals: [watch::Sender<Option<u64>>; 2],
    newest: [Arc<Newest>; 2],
    rng: Rng,
}

/// All that clients and watchers know in the end.
struct Known {
    leases: Vec<Lease>,
    account: Account,
    deadlines: Vec<Deadline>,
    watched: [Vec<watchers::Account>; 2],
}

/// Runs the plan on a cluster of three; a broken promise is an error.
pub async fn run(plan: Plan, tell: &mut Teller) -> Result<Figures> {
    tell.step("Start three nodes with locks and queues");
    let mut spec = Spec::of_guest(LOCK, 3)?
        .with_group(QUEUE, &guest_file(QUEUE)?.display().to_string())
        .with_snapshot_entries(SNAPSHOT_ENTRIES);
    for group in &mut spec.groups {
        group.settings.push("event-window = \"1MiB\"".to_owned());
    }
    spec.groups[1].settings.push(format!("config = \"max-attempts {ATTEMPTS_MAX}\""));
    let mut cluster = Cluster::start(spec)?;
    let done = course(&mut cluster, plan, tell).await;
    if done.is_err() {
        cluster.keep_files();
    }
    done.with_context(|| format!("seed {}; logs in {}", plan.seed, cluster.root().display()))
}

async fn course(cluster: &mut Cluster, plan: Plan, tell: &mut Teller) -> Result<Figures> {
    for group in GROUPS {
        let leader = cluster.wait_serving(group).await?;
        tell.shown(format!("node {leader} leads {group}"));
    }
    let mut rng = Rng::new(plan.seed);
    let faults = faults::schedule(rng.fork(), plan.pause);

    tell.step(&format!("Lock, send and receive for {}", seconds(plan.time)));
    let clients = Clients::start(cluster, plan, rng)?;
    let struck = tokio::select! {
        struck = faults::strike(cluster, faults, plan.time, tell) => struck?,
        never = clients.tell() => never,
    };
    tell.shown(format!("{} kills, {} pauses", struck.kills, struck.pauses));

    tell.step("Let everything come to rest");
    let client_of = |group| cluster.client_of(group, Options::default());
    let both = [client_of(LOCK)?, client_of(QUEUE)?];
    let (of_locks, known) = clients.end(&both, tell).await?;

    tell.step("Account for every lock, message and event");
    let figures = judge(&of_locks, known, &struck, tell)?;

    tell.step("Compare the nodes");
    for (group, client) in GROUPS.into_iter().zip(&both) {
        let captured = cluster.capture(client, group).await?;
        let digest = lockstep_core::ids::hex(&captured.equal()?.digest[..8]);
        tell.shown(format!("{group}: at checkpoint {} all have {digest}…", captured.index));
    }
    cluster.stop_all().await?;
    tell.shown("all nodes stopped with exit code 0");
    Ok(figures)
}

impl Clients {
    fn start(cluster: &Cluster, plan: Plan, rng: Rng) -> Result<Self> {
        let mut this = Self {
            of_locks: Arc::default(),
            of_queue: Arc::default(),
            holders: JoinSet::new(),
            producers: JoinSet::new(),
            consumers: JoinSet::new(),
            probers: JoinSet::new(),
            watchers: [JoinSet::new(), JoinSet::new()],
            goals: [watch::channel(None).0, watch::channel(None).0],
            newest: Default::default(),
            rng,
        };
        for place in 0..GROUPS.len() {
            this.watch_group(cluster, place, plan.pause)?;
        }
        let caller = |group| anyhow::Ok(Caller::new(cluster.client_of(group, Options::default())?));
        for number in 0..HOLDERS {
            let (rng, shared) = (this.rng.fork(), Arc::clone(&this.of_locks));
            let holder = Holder::new(number, caller(LOCK)?, rng, shared);
            this.holders.spawn(holder.run());
        }
        let shared = Arc::clone(&this.of_queue);
        let mut with = || anyhow::Ok((caller(QUEUE)?, this.rng.fork(), Arc::clone(&shared)));
        for number in 0..PRODUCERS {
            let (caller, rng, shared) = with()?;
            this.producers.spawn(produce(number, caller, rng, shared));
        }
        for number in 0..CONSUMERS {
            let (caller, rng, shared) = with()?;
            this.consumers.spawn(consume(number, caller, rng, shared));
        }
        for number in 0..PROBERS {
            let (caller, rng, shared) = with()?;
            this.probers.spawn(probe(number, caller, rng, shared));
        }
        Ok(this)
    }

    /// The watchers of a group: one that asks its own node only, for each node, and some that ask
    /// whichever answers: of a part, and such that go away now and then.
    fn watch_group(&mut self, cluster: &Cluster, place: usize, away_max: Duration) -> Result<()> {
        let [all, part] = PREFIXES[place];
        let whole = cluster.client_of(GROUPS[place], Options::default())?;
        self.watch(place, "part", part, whole.clone(), None);
        self.watch(place, "away", all, whole.clone(), Some(Duration::from_secs(5)));
        self.watch(place, "long-away", all, whole, Some(away_max * 2));
        for node in cluster.nodes() {
            let options = Options { group: GROUPS[place].to_owned(), ..Options::default() };
            let client = Client::connect([cluster.address(node)], options)?;
            self.watch(place, &format!("node-{node}"), all, client, None);
        }
        Ok(())
    }

    fn watch(
        &mut self,
        place: usize,
        name: &str,
        prefix: &str,
        client: Client,
        away_max: Option<Duration>,
    ) {
        let watcher = Watcher {
            name: format!("{}/{name}", GROUPS[place]),
            prefix: prefix.to_owned(),
            client,
            away: away_max.map(|longest| (self.rng.fork(), longest)),
            shared: Arc::clone(&self.of_locks),
            newest: Arc::clone(&self.newest[place]),
        };
        self.watchers[place].spawn(watcher.run(self.goals[place].subscribe()));
    }

    /// Says now and then how far the run is.
    async fn tell(&self) -> ! {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(TOLD_EVERY).await;
            let queue = &self.of_queue;
            let [granted, sent, acked, redelivered] =
                [&self.of_locks.granted, &queue.sent, &queue.acked, &queue.redelivered]
                    .map(|count| thousands(count.load(Ordering::Relaxed)));
            println!(
                "   {}: {granted} locks granted; {sent} messages sent, {acked} acked, \
                 {redelivered} redelivered",
                seconds(begun.elapsed())
            );
        }
    }

    /// Stops the clients, lets everything come to rest, then ends the watchers. Returns what they
    /// share and know.
    async fn end(
        mut self,
        clients: &[Client; 2],
        tell: &Teller,
    ) -> Result<(Arc<holders::Shared>, Known)> {
        self.of_locks.stop.store(true, Ordering::Relaxed);
        self.of_queue.stop.store(true, Ordering::Relaxed);
        self.of_queue.calm.store(true, Ordering::Relaxed);
        let leases = all(&mut self.holders).await?;
        holders::wait_free(&clients[0], DRAIN_PATIENCE).await?;
        tell.shown("all locks are free");

        let sends = all(&mut self.producers).await?;
        let deadlines = all(&mut self.probers).await?;
        let queues = consumers::wait_drained(&clients[1], DRAIN_PATIENCE).await?;
        self.of_queue.drained.store(true, Ordering::Relaxed);
        let deliveries = all(&mut self.consumers).await?;
        for name in &queues {
            let stats = consumers::stats(&clients[1], name).await?;
            queue::balance(&stats).with_context(|| format!("queue {name}"))?;
        }
        let stats = consumers::stats(&clients[1], consumers::QUEUE).await?;
        let dead = consumers::take_dead(&clients[1]).await?;
        let account = Account { sends, deliveries, dead, stats };
        tell.shown(format!("{} queues are at rest", queues.len()));

        let watched = self.end_watchers(clients).await?;
        tell.shown("all watchers have seen the last event");
        Ok((self.of_locks, Known { leases, account, deadlines, watched }))
    }

    async fn end_watchers(&mut self, clients: &[Client; 2]) -> Result<[Vec<watchers::Account>; 2]> {
        let mut watched = [Vec::new(), Vec::new()];
        for (place, [all, _]) in PREFIXES.into_iter().enumerate() {
            // It begins before all events, of which the window has the newest only.
            self.watch(place, "late", all, clients[place].clone(), None);
            let last = clients[place].query("", Consistency::Linearizable).await?.applied_index;
            self.goals[place].send_replace(Some(last));
            while let Some(one) = self.watchers[place].join_next().await {
                watched[place].push(one.context("a watcher panicked")??);
            }
        }
        Ok(watched)
    }
}

/// Judges all that is known; the first promise that was broken is an error.
fn judge(
    of_locks: &holders::Shared,
    known: Known,
    struck: &Struck,
    tell: &Teller,
) -> Result<Figures> {
    let Known { leases, account, deadlines, watched } = known;
    let Struck { kills, pauses, elections } = struck;
    let mut figures = Figures { kills: *kills, pauses: *pauses, ..Figures::default() };
    let [of_lock, of_queue] = &watched;
    let mut events = [Vec::new(), Vec::new()];
    for (events, accounts) in events.iter_mut().zip([of_lock, of_queue]) {
        *events = watchers::check(accounts, WINDOW_BYTES)?;
        figures.events += events.len() as u64;
        figures.gaps += accounts.iter().map(|account| account.gaps.len() as u64).sum::<u64>();
        watchers::tell(accounts, events.len(), tell);
    }
    let [lock_events, queue_events] = &events;
    let locks = locks::check(lock_events, &leases)?;
    figures.writes = resource::check(&of_locks.resource.take_writes(), &locks.granted)?;
    tell_locks(&locks, &figures.writes, of_locks, tell);
    (figures.granted, figures.expired) = (locks.granted.len() as u64, locks.expired);

    figures.messages = queue::check(&account, ATTEMPTS_MAX)?;
    queue::tell(&figures.messages, tell);
    let visibility = queue::timers(&deadlines, queue_events)?;
    for (what, timers) in [("leases", &locks.timers), ("visibilities", &visibility)] {
        let (calm, during) = Lateness::split(timers, elections);
        tell.shown(format!("{what}, nodes well: {calm}"));
        tell.shown(format!("{what}, elections: {during}"));
    }
    Ok(figures)
}

fn tell_locks(locks: &Locks, writes: &Writes, of_locks: &holders::Shared, tell: &Teller) {
    tell.shown(format!(
        "{} grants, {} releases, {} expiries: no lock was held twice, tokens only rose",
        thousands(locks.granted.len() as u64),
        thousands(locks.released),
        thousands(locks.expired)
    ));
    tell.shown(format!(
        "{} writes with a token taken, none lower than one before; {} stale ones refused",
        thousands(writes.taken),
        thousands(writes.stale)
    ));
    tell.say(format!(
        "{} refused of holders that believed that they held, {} behind at most; {} were told \
         before their time that they no longer hold",
        writes.surprised,
        seconds(writes.behind_max),
        of_locks.early_ends.load(Ordering::Relaxed)
    ));
}

/// What all tasks of a kind return.
async fn all<T: 'static>(tasks: &mut JoinSet<Result<Vec<T>>>) -> Result<Vec<T>> {
    let mut all = Vec::new();
    while let Some(one) = tasks.join_next().await {
        all.extend(one.context("a client panicked")??);
    }
    Ok(all)
}

/// The answer to a query that no state machine rejects.
async fn query(client: &Client, request: &str) -> Result<String> {
    let reply = client.query(request.to_owned(), Consistency::Linearizable).await?;
    match reply.outcome {
        Outcome::Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Outcome::Rejected(why) => bail!("`{request}`: {}", String::from_utf8_lossy(&why)),
    }
}

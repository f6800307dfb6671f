//! Money transfers while leaders are killed, and an account of each transfer afterwards.
//!
//! Clients move money while leaders are killed with SIGKILL. Afterwards:
//!
//! - every acknowledged transfer was applied exactly once, retried ones included;
//! - every refused transfer ("nothing happened") was not applied, every unanswered one at most
//!   once;
//! - each outcome is the expected one: transfers from an unknown account are rejected, all others
//!   succeed, because accounts never run out of money;
//! - each account holds what the applied transfers left in it; no money was created or lost;
//! - the snapshots of all nodes at a last checkpoint are equal.
//!
//! The bank does not recognise duplicates itself, so a command that was applied twice shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_client::{Client, Consistency, Error, Options, Outcome, Session};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Spec};
use crate::rng::Rng;
use crate::tell::{Teller, seconds, thousands};

const GROUP: &str = "bank";
const ACCOUNTS: u64 = 32;
/// The initial balance of an account, so large that no sequence of transfers uses it up.
const OPENING: u64 = 1_000_000_000;
/// One transfer in this many is from an account that does not exist.
const REJECTED_ONE_IN: u64 = 16;
/// Queries under way at once while counting.
const COUNTERS: usize = 32;

/// How long to run, and with how many kills and clients.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub time: Duration,
    pub kills: u32,
    pub clients: u64,
    pub seed: u64,
}

/// What a run showed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Figures {
    pub acknowledged: u64,
    /// Acknowledged transfers that a later attempt under another leader answered.
    pub retried_across_leaders: u64,
    /// Acknowledged transfers that took more than one attempt.
    pub retried: u64,
    pub rejected: u64,
    pub unanswered: u64,
    pub unanswered_applied: u64,
    pub refused: u64,
    pub kills: u32,
    /// The index of the checkpoint at which the snapshots of all nodes are equal.
    pub checkpoint: u64,
}

/// One transfer as its client saw it.
struct Record {
    id: String,
    from: Option<u64>,
    to: u64,
    amount: u64,
    seen: Seen,
}

enum Seen {
    Acknowledged {
        ok: bool,
        attempts: u32,
        leader_changed: bool,
    },
    /// The answer was that nothing happened.
    Refused,
    Unanswered,
}

/// What all clients share.
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

/// Runs the plan on a cluster of three and accounts for every transfer; a broken promise is an
/// error.
pub async fn run(plan: Plan, tell: &mut Teller) -> Result<Figures> {
    tell.step("Start three nodes with the bank");
    let spec = Spec::of_guest("bank", 3)?.with_snapshot_entries(2_000);
    let mut cluster = Cluster::start(spec)?;
    let done = chaos(&mut cluster, plan, tell).await;
    if done.is_err() {
        cluster.keep_files();
    }
    done.with_context(|| format!("seed {}; logs in {}", plan.seed, cluster.root().display()))
}

async fn chaos(cluster: &mut Cluster, plan: Plan, tell: &mut Teller) -> Result<Figures> {
    let leader = cluster.wait_serving(GROUP).await?;
    tell.shown(format!("node {leader} leads"));
    let client = cluster.client()?;
    open_accounts(&client).await?;

    tell.step(&format!(
        "{} clients for {}, while {} leaders are killed",
        plan.clients,
        seconds(plan.time),
        plan.kills
    ));
    let mut rng = Rng::new(plan.seed);
    let shared = Arc::new(Shared { stop: AtomicBool::new(false), acknowledged: AtomicU64::new(0) });
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        let mover = Mover {
            number,
            client: cluster.client_of("", Options::default())?,
            rng: rng.fork(),
            shared: Arc::clone(&shared),
        };
        clients.spawn(mover.run());
    }
    let killed = kill_leaders(cluster, plan, &mut rng, &shared, tell).await;
    shared.stop.store(true, Ordering::Relaxed);
    let mut records = Vec::new();
    while let Some(moved) = clients.join_next().await {
        records.extend(moved.context("a client panicked")??);
    }
    killed?;

    tell.step("Account for every transfer");
    let mut figures = Figures { kills: plan.kills, ..summary(&records) };
    figures.unanswered_applied = account(&client, &records).await?;
    tell.shown(format!(
        "{} acknowledged transfers, each applied exactly once; {} of them rejected, as they should",
        thousands(figures.acknowledged),
        thousands(figures.rejected),
    ));
    tell.shown(format!(
        "{} took a retry, {} of them under another leader; all got the first outcome",
        thousands(figures.retried),
        thousands(figures.retried_across_leaders),
    ));
    tell.shown(format!(
        "{} without an answer, {} of them applied, none twice; {} refused, none applied",
        figures.unanswered, figures.unanswered_applied, figures.refused
    ));
    tell.shown("every account holds what the applied transfers leave it");

    tell.step("Compare the nodes");
    let captured = cluster.capture(&client, GROUP).await?;
    let digest = lockstep_core::ids::hex(&captured.equal()?.digest);
    figures.checkpoint = captured.index;
    tell.shown(format!("at checkpoint {} all nodes have {digest}", captured.index));
    cluster.stop_all().await?;
    tell.shown("all nodes stopped with exit code 0");
    Ok(figures)
}

async fn open_accounts(client: &Client) -> Result<()> {
    let session = client.open_session().await?;
    for account in 0..ACCOUNTS {
        let reply = session.apply(format!("open a{account} {OPENING}")).await?;
        ensure!(matches!(reply.outcome, Outcome::Ok(_)), "an account did not open: {reply:?}");
    }
    Ok(())
}

/// Kills the leader at even intervals; each victim is started again a moment later.
async fn kill_leaders(
    cluster: &mut Cluster,
    plan: Plan,
    rng: &mut Rng,
    shared: &Shared,
    tell: &Teller,
) -> Result<()> {
    let begun = Instant::now();
    for kill in 1..=plan.kills {
        let due = plan.time * kill / (plan.kills + 1);
        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        let victim = cluster.wait_serving(GROUP).await?;
        let since = Instant::now();
        cluster.kill(victim)?;
        let next = cluster.wait_leader(GROUP, Some(victim)).await?;
        tell.say(format!(
            "kill {kill}: node {victim} gone, node {next} leads after {}; {} acknowledged so far",
            seconds(since.elapsed()),
            thousands(shared.acknowledged.load(Ordering::Relaxed)),
        ));
        tokio::time::sleep(Duration::from_millis(rng.below(1_000))).await;
        cluster.start_node(victim)?;
    }
    tokio::time::sleep(plan.time.saturating_sub(begun.elapsed())).await;
    cluster.wait_serving(GROUP).await.map(drop)
}

/// One client: moves money until it is told to stop.
struct Mover {
    number: u64,
    client: Client,
    rng: Rng,
    shared: Arc<Shared>,
}

impl Mover {
    async fn run(mut self) -> Result<Vec<Record>> {
        let mut session = self.client.open_session().await?;
        let mut records = Vec::new();
        for number in 0_u64.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let record = self.transfer(&mut session, number).await?;
            if matches!(record.seen, Seen::Acknowledged { .. }) {
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            records.push(record);
        }
        Ok(records)
    }

    async fn transfer(&mut self, session: &mut Session, number: u64) -> Result<Record> {
        let id = format!("t{}-{number}", self.number);
        let known = self.rng.below(REJECTED_ONE_IN) > 0;
        let from = known.then(|| self.rng.below(ACCOUNTS));
        let to = (from.unwrap_or(0) + 1 + self.rng.below(ACCOUNTS - 1)) % ACCOUNTS;
        let amount = 1 + self.rng.below(9);
        let payer = from.map_or("nobody".to_owned(), |account| format!("a{account}"));
        let seen = match session.apply(format!("transfer {id} {payer} a{to} {amount}")).await {
            Ok(reply) => Seen::Acknowledged {
                ok: matches!(reply.outcome, Outcome::Ok(_)),
                attempts: reply.attempts,
                leader_changed: reply.leader_changed,
            },
            Err(Error::Refused { .. }) => Seen::Refused,
            Err(Error::Unknown { .. }) => Seen::Unanswered,
            Err(Error::SessionExpired { .. }) => {
                *session = self.client.open_session().await?;
                Seen::Unanswered
            }
            Err(other) => bail!("transfer {id}: {other}"),
        };
        Ok(Record { id, from, to, amount, seen })
    }
}

fn summary(records: &[Record]) -> Figures {
    let mut figures = Figures::default();
    for record in records {
        match record.seen {
            Seen::Acknowledged { ok, attempts, leader_changed } => {
                figures.acknowledged += 1;
                figures.rejected += u64::from(!ok);
                figures.retried += u64::from(attempts > 1);
                figures.retried_across_leaders += u64::from(attempts > 1 && leader_changed);
            }
            Seen::Refused => figures.refused += 1,
            Seen::Unanswered => figures.unanswered += 1,
        }
    }
    figures
}

/// Compares the clients' records with the bank's; returns how many unanswered transfers were
/// applied.
async fn account(client: &Client, records: &[Record]) -> Result<u64> {
    let counts = counts(client, records.iter().map(|record| record.id.clone()).collect()).await?;
    let mut balances: Vec<i128> = vec![OPENING.into(); ACCOUNTS as usize];
    let (mut applied, mut unanswered_applied) = (0, 0);
    for record in records {
        let count = counts[&record.id];
        check(record, count)?;
        applied += u64::from(count > 0);
        unanswered_applied += u64::from(count > 0 && matches!(record.seen, Seen::Unanswered));
        if let (true, Some(from)) = (count > 0, record.from) {
            balances[from as usize] -= i128::from(record.amount);
            balances[record.to as usize] += i128::from(record.amount);
        }
    }
    for (account, expected) in balances.iter().enumerate() {
        let held = number(client, &format!("balance a{account}")).await?;
        ensure!(i128::from(held) == *expected, "account a{account} holds {held}, not {expected}");
    }
    let total = number(client, "total").await?;
    ensure!(total == ACCOUNTS * OPENING, "the total is {total}, not {}", ACCOUNTS * OPENING);
    let known = number(client, "transfers").await?;
    ensure!(
        known == applied,
        "the bank counts {known} transfers, but {applied} of the clients' were applied"
    );
    let twice = number(client, "duplicates").await?;
    ensure!(twice == 0, "{twice} transfers were applied more than once");
    Ok(unanswered_applied)
}

fn check(record: &Record, count: u64) -> Result<()> {
    let id = &record.id;
    match record.seen {
        Seen::Acknowledged { ok, attempts, .. } => {
            ensure!(
                count == 1,
                "{id}, acknowledged after {attempts} attempts: applied {count} times"
            );
            ensure!(ok == record.from.is_some(), "{id} has the wrong outcome: ok is {ok}");
        }
        Seen::Refused => ensure!(count == 0, "{id} was refused, but applied {count} times"),
        Seen::Unanswered => ensure!(count <= 1, "{id}, unanswered, was applied {count} times"),
    }
    Ok(())
}

/// How often each transfer was applied, according to the bank.
async fn counts(client: &Client, mut ids: Vec<String>) -> Result<BTreeMap<String, u64>> {
    let share = ids.len().div_ceil(COUNTERS).max(1);
    let mut counters = JoinSet::new();
    while !ids.is_empty() {
        let part = ids.split_off(ids.len().saturating_sub(share));
        let client = client.clone();
        counters.spawn(async move {
            let mut counted = Vec::new();
            for id in part {
                let count = number(&client, &format!("count {id}")).await?;
                counted.push((id, count));
            }
            anyhow::Ok(counted)
        });
    }
    let mut all = BTreeMap::new();
    while let Some(counted) = counters.join_next().await {
        all.extend(counted.context("a counter panicked")??);
    }
    Ok(all)
}

/// Asks a linearizable query whose answer is a number.
async fn number(client: &Client, query: &str) -> Result<u64> {
    let reply = client.query(query.to_owned(), Consistency::Linearizable).await?;
    let Outcome::Ok(answer) = reply.outcome else { bail!("`{query}` was answered {reply:?}") };
    let text = std::str::from_utf8(&answer).context("an answer that is not text")?;
    text.parse().with_context(|| format!("`{query}` was answered `{text}`"))
}

//! Readers and writers at the same time: how queries slow down commands, and how an excessive query
//! slows down others.
//!
//! - Writers wait for each answer. Their latency is measured without readers, and with as many
//!   readers that ask queries of some 15 ms as fast as they can.
//! - One client gets a key again and again while another repeats a `scan` that runs out of fuel.
//! - Each round starts new processes with empty directories; figures are medians of the rounds.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use lockstep_client::v1;
use lockstep_client::v1::lockstep_client::LockstepClient;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;

use super::figures::median;
use super::load::{Clients, Ready, Tally, Window, ready};
use super::replicas::{Replicas, open_session};
use super::{Options, WARM_UP, machine, own_host};
use crate::cluster;

const WRITERS: usize = 64;
const READERS: usize = 64;
/// How long a reader's query takes the state machine.
const QUERY: Duration = Duration::from_millis(15);
/// How often a query is tried to find out how long it takes, and how many queries are tried.
const TRIES: usize = 5;
/// How many turns the loop of the first query makes.
const TURNS: u64 = 1_000_000;
/// Bytes of a command, which does nothing but count.
const COMMAND_BYTES: usize = 256;
/// What the `scan` reads: more than the fuel of a query allows.
const LARGE_VALUES: usize = 100;
const LARGE_BYTES: usize = 900_000;
/// How many times slower commands may be while queries run; the time of one query is added.
const SLOWER_MAX: f64 = 3.0;

/// What one round showed, or the medians of all. Times in milliseconds.
#[derive(Clone, Default, Debug)]
struct Round {
    /// How long a query takes alone.
    query: f64,
    alone: Latency,
    beside: Latency,
    queries_per_second: f64,
    get: Latency,
    scans: f64,
    errors: f64,
}

/// The rate and the latency of answered calls.
#[derive(Clone, Copy, Default, Debug)]
struct Latency {
    per_second: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Latency {
    fn of(tally: &Tally, window: Window) -> Self {
        let ms = |quantile| tally.times.quantile(quantile) as f64 / 1e3;
        let per_second = tally.times.count() as f64 / window.length().as_secs_f64();
        Self { per_second, p50: ms(0.5), p99: ms(0.99), max: ms(1.0) }
    }
}

/// Measures, and prints the results.
pub(super) async fn run(options: &Options) -> Result<()> {
    println!("{}", machine::describe());
    println!(
        "{WRITERS} writers, without and with {READERS} readers of {QUERY:?}; {} rounds of {} s a \
         case\n",
        options.rounds, options.seconds
    );
    let mut rounds = Vec::new();
    for round in 1..=options.rounds {
        let dir = tempfile::Builder::new()
            .prefix("beside")
            .disable_cleanup(options.keep)
            .tempdir_in(&options.dir)
            .context("a folder for the processes")?;
        let done = one_round(options, dir.path()).await;
        let done = done.with_context(|| super::logs(dir.path()))?;
        println!("round {round} of {}\n{}", options.rounds, done.table());
        rounds.push(done);
    }
    let medians = Round::medians(&rounds);
    println!("medians of {} rounds\n{}\n{}", rounds.len(), medians.table(), medians.goals());
    Ok(())
}

async fn one_round(options: &Options, dir: &Path) -> Result<Round> {
    let mut round = Round::default();
    let hostile = cluster::guest_file("hostile")?.display().to_string();
    let replicas = Replicas::start(dir, &own_host(), &hostile)?;
    commands(&replicas, options, &mut round).await?;
    drop(replicas);
    let large = dir.join("large");
    std::fs::create_dir(&large).context("a folder for the second group")?;
    let kv = cluster::guest_file("kv")?.display().to_string();
    let replicas = Replicas::start(&large, &own_host(), &kv)?;
    gets(&replicas, options, &mut round).await?;
    Ok(round)
}

/// Measures commands without and with queries.
async fn commands(replicas: &Replicas, options: &Options, round: &mut Round) -> Result<()> {
    let leader = replicas.leader().await?;
    let mut asker = replicas.connect(leader, 1).await?.remove(0);
    let (request, takes) = query_of(QUERY, &mut asker).await?;
    round.query = takes.as_secs_f64() * 1e3;

    let (written, _, window) = measure(replicas, leader, options, None).await?;
    round.alone = Latency::of(&written, window);
    let (beside, read, window) = measure(replicas, leader, options, Some(&request)).await?;
    round.beside = Latency::of(&beside, window);
    round.queries_per_second = Latency::of(&read, window).per_second;
    for tally in [&written, &beside, &read] {
        round.errors += tally.errors as f64;
        if let Some(error) = &tally.error {
            println!("  {} errors; the first: {error}", tally.errors);
        }
    }
    ensure!(replicas.leader().await? == leader, "the leader changed");
    Ok(())
}

/// Runs writers for the time to be measured, and readers if there is a `request`.
async fn measure(
    replicas: &Replicas,
    leader: usize,
    options: &Options,
    request: Option<&Bytes>,
) -> Result<(Tally, Tally, Window)> {
    let connections = replicas.connect(leader, options.connections).await?;
    let (mut writers, mut readers): (Vec<Ready>, Vec<Ready>) = (Vec::new(), Vec::new());
    for number in 0..WRITERS {
        let mut client = connections[number % connections.len()].clone();
        let session = open_session(&mut client, number).await?;
        writers.push(ready(move |window| write(client, session, window)));
    }
    // The readers have connections of their own, because nodes tell callers apart by connection.
    let connections = replicas.connect(leader, options.connections).await?;
    for number in 0..request.map_or(0, |_| READERS) {
        let client = connections[number % connections.len()].clone();
        let request = request.cloned().unwrap_or_default();
        readers.push(ready(move |window| ask(client, request, window)));
    }
    let window = Window::from_now(WARM_UP, Duration::from_secs(options.seconds));
    let (writers, readers) = (Clients::start(writers, window), Clients::start(readers, window));
    window.ended().await;
    let (written, read) = tokio::join!(writers.finish(), readers.finish());
    Ok((written, read, window))
}

/// Finds a query that takes this long; returns it and how long it takes.
async fn query_of(
    wanted: Duration,
    client: &mut LockstepClient<Channel>,
) -> Result<(Bytes, Duration)> {
    let mut turns = TURNS;
    for _ in 0..TRIES {
        let request = Bytes::from(format!("spin {turns}"));
        let mut best = Duration::MAX;
        for _ in 0..TRIES {
            let since = Instant::now();
            query(client, request.clone()).await.context("trying a query")?;
            best = best.min(since.elapsed());
        }
        let ratio = wanted.as_secs_f64() / best.as_secs_f64();
        if (0.9..1.1).contains(&ratio) {
            return Ok((request, best));
        }
        turns = ((turns as f64 * ratio) as u64).max(1);
    }
    bail!("found no query that takes {wanted:?}")
}

/// Measures one client's `get`s while another repeats an excessive `scan`.
async fn gets(replicas: &Replicas, options: &Options, round: &mut Round) -> Result<()> {
    let leader = replicas.leader().await?;
    let mut connections = replicas.connect(leader, 2).await?;
    let (mut scanner, mut getter) = (connections.remove(0), connections.remove(0));
    for number in 0..LARGE_VALUES {
        let value = vec![b'v'; LARGE_BYTES];
        let command = super::load::set(&format!("large-{number:03}"), &value);
        apply(&mut getter, 0, 0, command).await.context("filling kv")?;
    }
    apply(&mut getter, 0, 0, super::load::set("small", b"1")).await.context("filling kv")?;
    let window = Window::from_now(WARM_UP, Duration::from_secs(options.seconds));
    let scans = ready(move |window: Window| async move {
        let mut tally = Tally::default();
        while let Some(since) = window.start() {
            match query(&mut scanner, Bytes::from_static(b"scan  999999")).await {
                // This code tells the caller that the query is too much and that repeating it does
                // not help.
                Err(status) if status.code() == Code::InvalidArgument => {
                    tally.answered(&window, since);
                }
                other => tally.failed(format!("{other:?}")).await,
            }
        }
        tally
    });
    let gets = ready(move |window| ask(getter, Bytes::from_static(b"get small"), window));
    let (scans, gets) = (Clients::start(vec![scans], window), Clients::start(vec![gets], window));
    window.ended().await;
    let (scans, gets) = tokio::join!(scans.finish(), gets.finish());
    for tally in [&scans, &gets] {
        round.errors += tally.errors as f64;
        if let Some(error) = &tally.error {
            println!("  {} errors; the first: {error}", tally.errors);
        }
    }
    round.get = Latency::of(&gets, window);
    round.scans = scans.times.count() as f64;
    Ok(())
}

async fn write(mut client: LockstepClient<Channel>, session: u64, window: Window) -> Tally {
    let (mut tally, mut sequence) = (Tally::default(), 0);
    let command = Bytes::from(vec![b'c'; COMMAND_BYTES]);
    while let Some(since) = window.start() {
        sequence += 1;
        let applied = apply(&mut client, session, sequence, command.clone()).await;
        tally.ended(&window, since, applied).await;
    }
    tally
}

async fn ask(mut client: LockstepClient<Channel>, request: Bytes, window: Window) -> Tally {
    let mut tally = Tally::default();
    while let Some(since) = window.start() {
        let answered = query(&mut client, request.clone()).await;
        tally.ended(&window, since, answered).await;
    }
    tally
}

async fn apply(
    client: &mut LockstepClient<Channel>,
    session: u64,
    sequence: u64,
    command: Bytes,
) -> Result<(), tonic::Status> {
    let request = v1::ApplyRequest {
        session,
        sequence,
        lowest_unanswered: sequence,
        command,
        ..Default::default()
    };
    match client.apply(request).await?.into_inner().outcome {
        Some(v1::apply_response::Outcome::Ok(_)) => Ok(()),
        other => Err(tonic::Status::internal(format!("{other:?}"))),
    }
}

async fn query(client: &mut LockstepClient<Channel>, request: Bytes) -> Result<(), tonic::Status> {
    let request = v1::QueryRequest { request, ..Default::default() };
    match client.query(request).await?.into_inner().answer {
        Some(v1::query_response::Answer::Ok(_)) => Ok(()),
        other => Err(tonic::Status::internal(format!("{other:?}"))),
    }
}

impl Round {
    /// The median of each figure on its own.
    fn medians(rounds: &[Self]) -> Self {
        let of = |pick: &dyn Fn(&Self) -> f64| median(rounds.iter().map(pick).collect());
        let latency = |pick: &dyn Fn(&Self) -> Latency| Latency {
            per_second: of(&|round| pick(round).per_second),
            p50: of(&|round| pick(round).p50),
            p99: of(&|round| pick(round).p99),
            max: of(&|round| pick(round).max),
        };
        Self {
            query: of(&|round| round.query),
            alone: latency(&|round| round.alone),
            beside: latency(&|round| round.beside),
            queries_per_second: of(&|round| round.queries_per_second),
            get: latency(&|round| round.get),
            scans: of(&|round| round.scans),
            // The sum, because no error may go unnoticed.
            errors: rounds.iter().map(|round| round.errors).sum(),
        }
    }

    fn table(&self) -> String {
        let mut text =
            String::from("                              calls/s   p50 ms   p99 ms   max ms\n");
        let rows = [
            ("commands alone", self.alone),
            ("commands beside queries", self.beside),
            ("get beside scan", self.get),
        ];
        for (name, Latency { per_second, p50, p99, max }) in rows {
            writeln!(text, "  {name:<26} {per_second:>8.0} {p50:>8.2} {p99:>8.2} {max:>8.2}")
                .expect("a string takes everything");
        }
        let Self { query, queries_per_second, scans, errors, .. } = self;
        writeln!(
            text,
            "  queries of {query:.1} ms: {queries_per_second:.0}/s; scans refused: {scans:.0}; \
             errors: {errors:.0}"
        )
        .expect("a string takes everything");
        text
    }

    /// A line for each goal, which says whether it is reached.
    fn goals(&self) -> String {
        let most = SLOWER_MAX * self.alone.p99 + self.query;
        let goals = [
            (
                self.beside.p99 <= most && self.queries_per_second > 0.0,
                format!("commands beside queries: p99 {:.1} ms; wanted {most:.1}", self.beside.p99),
            ),
            (
                self.get.per_second > 0.0 && self.scans > 0.0,
                format!("a get beside a scan is answered within {:.0} ms", self.get.max),
            ),
            (self.errors == 0.0, format!("{:.0} errors", self.errors)),
        ];
        let line =
            |(is_so, what): &(bool, String)| format!("{} {what}\n", if *is_so { "✓" } else { "✗" });
        goals.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_may_be_three_times_slower_and_a_query() {
        let latency = |p99| Latency { per_second: 9.0, p99, ..Latency::default() };
        let mut round = Round {
            query: 15.0,
            alone: latency(10.0),
            beside: latency(45.0),
            queries_per_second: 60.0,
            get: latency(1.0),
            scans: 1.0,
            errors: 0.0,
        };
        assert!(!round.goals().contains('✗'), "{}", round.goals());
        round.beside = latency(45.1);
        assert!(round.goals().contains("✗ commands beside queries: p99 45.1 ms; wanted 45.0"));
        round.get = Latency::default();
        assert!(round.goals().contains("✗ a get"));
        let medians = Round::medians(&[round.clone(), round.clone(), Round::default()]);
        assert_eq!((medians.beside.p99, medians.alone.p99), (45.1, 10.0));
    }
}

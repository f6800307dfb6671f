//! Lockstep measured against etcd, with the same clients, connections, values and disk.
//!
//! - Rounds alternate between the systems. In each round each system starts new processes with
//!   empty directories, and every figure is the median of the rounds.
//! - Clients talk to the leader, over the same number of connections.
//! - Processes that were started here are ended here, whatever happens; no others are touched.

mod beside;
mod echo;
mod etcd;
mod figures;
mod histogram;
mod load;
mod machine;
mod replicas;
mod system;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub use self::echo::{SERVE, serve};
use self::figures::{Cpu, Figures, Fsyncs, Row};
use self::load::{Clients, Tally, Window};
use self::system::{CASES, Case, KINDS, Kind, NODES, System, What};
use crate::process::Process;

/// How long calls are made before they count.
const WARM_UP: Duration = Duration::from_secs(1);

/// What is measured, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long each case is measured in each round.
    pub seconds: u64,
    pub rounds: u32,
    /// Connections that all unary clients of a case share.
    pub connections: usize,
    /// The cases and systems to measure, by name. If no case is named, all are measured; if no
    /// system is named, the usual ones.
    pub only: Vec<String>,
    /// Whether to measure the built-in state machine, too.
    pub native: bool,
    /// Whether to measure the echo server, too: the ceiling of gRPC.
    pub echo: bool,
    /// Where the JSON lines are written.
    pub out: PathBuf,
    /// Where the processes keep their files.
    pub dir: PathBuf,
    /// Whether to keep these files.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it lies in a checkout");
        let dir = root.join("target/bench");
        Self {
            seconds: 8,
            rounds: 5,
            connections: 8,
            only: Vec::new(),
            native: false,
            echo: false,
            out: dir.join("results.jsonl"),
            dir,
            keep: false,
        }
    }
}

/// The cases and systems that the options choose.
#[derive(Debug)]
struct Plan {
    cases: Vec<Case>,
    kinds: Vec<Kind>,
}

impl Plan {
    fn of(options: &Options) -> Result<Self> {
        let named = |name: &str| options.only.iter().any(|only| only == name);
        let cases = CASES.iter().map(|case| case.name);
        let known: Vec<&str> = cases.chain(KINDS.map(Kind::name)).collect();
        for only in &options.only {
            let all = known.join(", ");
            ensure!(
                known.contains(&only.as_str()),
                "unknown case or system {only:?}; there are {all}"
            );
        }
        ensure!(
            options.rounds > 0 && options.seconds > 0,
            "--rounds and --seconds must be at least 1"
        );
        ensure!(options.connections > 0, "--connections must be at least 1");
        let mut cases = CASES.to_vec();
        if CASES.iter().any(|case| named(case.name)) {
            cases.retain(|case| named(case.name));
        }
        let mut kinds = vec![Kind::Lockstep];
        kinds.extend(options.native.then_some(Kind::Native));
        kinds.push(Kind::Etcd);
        kinds.extend(options.echo.then_some(Kind::Echo));
        if KINDS.iter().any(|kind| named(kind.name())) {
            kinds = KINDS.into_iter().filter(|kind| named(kind.name())).collect();
        }
        Ok(Self { cases, kinds })
    }
}

/// Measures, prints the tables, and writes the results to a file.
pub async fn run(options: &Options) -> Result<()> {
    let mut plan = Plan::of(options)?;
    fs::create_dir_all(&options.dir)
        .with_context(|| format!("creating {}", options.dir.display()))?;
    machine::refuse_tmpfs(&options.dir)?;
    if let Some(parent) = options.out.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    introduce(options, &mut plan);

    let mut rows: Vec<Row> = Vec::new();
    for case in &plan.cases {
        let kinds = plan.kinds.iter().filter(|kind| kind.does(case.what));
        rows.extend(kinds.map(|kind| Row { case: *case, kind: *kind, rounds: Vec::new() }));
    }
    let mut lines = String::new();
    for round in 1..=options.rounds {
        for kind in &plan.kinds {
            println!("round {round} of {}, {}", options.rounds, kind.name());
            for (case, figures) in round_of(*kind, &plan.cases, options).await? {
                lines.push_str(&figures.json(&case, *kind, &round.to_string()));
                lines.push('\n');
                let row = rows.iter_mut().find(|row| row.case == case && row.kind == *kind);
                row.expect("every case has a row").rounds.push(figures);
            }
        }
    }
    for row in &rows {
        lines.push_str(&row.median().json(&row.case, row.kind, "\"median\""));
        lines.push('\n');
    }
    fs::write(&options.out, lines).with_context(|| format!("writing {}", options.out.display()))?;
    println!("\nmedians of {} rounds\n\n{}", options.rounds, table::medians(&rows));
    println!("{}\n{}", table::goals(&rows), options.out.display());
    Ok(())
}

/// Measures what queries cost commands.
pub async fn beside(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds must be at least 1");
    ensure!(options.connections > 0, "--connections must be at least 1");
    fs::create_dir_all(&options.dir)
        .with_context(|| format!("creating {}", options.dir.display()))?;
    machine::refuse_tmpfs(&options.dir)?;
    beside::run(options).await
}

/// Prints what will be measured, and drops etcd from the plan where it is not installed.
fn introduce(options: &Options, plan: &mut Plan) {
    println!("{}", machine::describe());
    if plan.kinds.contains(&Kind::Etcd) {
        match etcd::version() {
            Some(version) => println!("etcd {version} from the path, default configuration"),
            None => {
                plan.kinds.retain(|kind| *kind != Kind::Etcd);
                println!("no etcd to compare with; on Debian: apt-get install etcd-server");
            }
        }
    }
    println!(
        "{NODES} processes on loopback; values of {} bytes under {} keys; up to {} connections,",
        load::VALUE_BYTES,
        load::KEYS,
        options.connections,
    );
    println!(
        "to the leader; {} rounds of {} s per case after {WARM_UP:?} of warming up; files in {}\n",
        options.rounds,
        options.seconds,
        options.dir.display(),
    );
}

/// Starts one system, measures its cases, and ends it.
async fn round_of(kind: Kind, cases: &[Case], options: &Options) -> Result<Vec<(Case, Figures)>> {
    let dir = tempfile::Builder::new()
        .prefix(kind.name())
        .disable_cleanup(options.keep)
        .tempdir_in(&options.dir)
        .context("a folder for a system")?;
    let system = System::start(kind, dir.path(), &own_host())?;
    let leader = system.leader().await.with_context(|| logs(dir.path()))?;
    system.fill(leader).await?;
    let mut all = Vec::new();
    for case in cases.iter().filter(|case| kind.does(case.what)) {
        let (figures, error) = measure(&system, *case, options)
            .await
            .with_context(|| format!("{} {}: {}", kind.name(), case.name, logs(dir.path())))?;
        println!("  {:<10} {}", case.name, table::line(&figures));
        if let Some(error) = error {
            println!("  {:<10} {} errors; the first: {error}", "", figures.errors);
        }
        all.push((*case, figures));
    }
    if options.keep {
        println!("  files are kept in {}", dir.path().display());
    }
    Ok(all)
}

/// Measures one case; returns its figures and the first error.
async fn measure(
    system: &System,
    case: Case,
    options: &Options,
) -> Result<(Figures, Option<String>)> {
    let leader = system.leader().await?;
    let clients = system.clients(case, leader, options.connections).await?;
    let fsyncs = system.fsyncs().await?;
    let load = machine::load();

    let window = Window::from_now(WARM_UP, Duration::from_secs(options.seconds));
    let clients = Clients::start(clients, window);
    window.begun().await;
    let before = Used::now(system, leader)?;
    window.ended().await;
    let after = Used::now(system, leader)?;
    let mut tally = clients.finish().await;
    let synced = system.fsyncs().await?;
    if system.leader().await? != leader {
        tally.failed("the leader changed during the case").await;
    }

    let counted = tally.times.count() as f64;
    let each = |after: f64, before: f64| (after - before) / counted.max(1.0);
    let fsyncs = fsyncs.zip(synced);
    let fsyncs = fsyncs.map(|(before, after)| per_1000(&before, &after, leader, &tally));
    let figures = Figures {
        per_second: counted / window.length().as_secs_f64(),
        p50: tally.times.quantile(0.5) as f64,
        p99: tally.times.quantile(0.99) as f64,
        errors: tally.errors as f64,
        fsyncs: fsyncs.filter(|_| case.what != What::Read),
        cpu: Cpu {
            leader: each(after.leader, before.leader),
            others: each(after.others, before.others),
            bench: each(after.bench, before.bench),
        },
        load,
    };
    Ok((figures, tally.error))
}

fn per_1000(before: &[u64], after: &[u64], leader: usize, tally: &Tally) -> Fsyncs {
    let synced = |node: usize| after[node].saturating_sub(before[node]) as f64;
    let thousands = tally.answered.max(1) as f64 / 1e3;
    let all: f64 = (0..before.len()).map(synced).sum();
    Fsyncs { leader: synced(leader) / thousands, all: all / thousands }
}

/// Processor time so far, in microseconds.
struct Used {
    leader: f64,
    others: f64,
    bench: f64,
}

impl Used {
    fn now(system: &System, leader: usize) -> Result<Self> {
        let mut used = Self { leader: 0.0, others: 0.0, bench: machine::cpu_micros("self")? };
        for (node, process) in system.processes().iter().map(Process::id).enumerate() {
            let micros = machine::cpu_micros(&process.to_string())?;
            if node == leader {
                used.leader = micros;
            } else {
                used.others += micros;
            }
        }
        Ok(used)
    }
}

/// The last lines of the processes' logs.
fn logs(dir: &Path) -> String {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "log"))
        .collect();
    files.sort();
    let ends = files.iter().map(|file| crate::cluster::last_lines(file, 5));
    ends.collect::<Vec<_>>().join("\n")
}

/// A host address in 127/8 that no other run uses.
fn own_host() -> String {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    format!("127.{}.{middle}.{low}", high | 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(only: &[&str], native: bool) -> Result<(Vec<&'static str>, Vec<&'static str>)> {
        let only = only.iter().map(|word| (*word).to_owned()).collect();
        let plan = Plan::of(&Options { only, native, ..Options::default() })?;
        let cases = plan.cases.iter().map(|case| case.name).collect();
        Ok((cases, plan.kinds.into_iter().map(Kind::name).collect()))
    }

    #[test]
    fn words_choose_cases_and_systems() -> Result<()> {
        let (cases, kinds) = plan(&[], false)?;
        assert_eq!((cases.len(), kinds), (CASES.len(), vec!["lockstep", "etcd"]));
        let (_, kinds) = plan(&[], true)?;
        assert_eq!(kinds, ["lockstep", "native", "etcd"]);
        let (cases, kinds) = plan(&["write-64", "etcd"], true)?;
        assert_eq!((cases, kinds), (vec!["write-64"], vec!["etcd"]));
        let error = plan(&["write-2"], false).expect_err("there is no such case");
        assert!(error.to_string().contains("write-256"), "{error}");
        Ok(())
    }

    #[test]
    fn syncs_are_told_per_thousand_writes() {
        let tally = Tally { answered: 2_000, ..Tally::default() };
        let synced = per_1000(&[10, 0, 5], &[30, 40, 5], 1, &tally);
        assert_eq!((synced.leader, synced.all), (20.0, 30.0));
    }
}

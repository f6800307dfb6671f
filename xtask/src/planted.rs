//! `cargo xtask mutants [--all] [--seeds N] [NAME...]`: runs the program with each planted bug and
//! reports what catches it.
//!
//! * The bugs are those of `host/core/src/mutant.rs`; they are compiled once, behind the feature
//!   `mutants`, and chosen at run time by `LOCKSTEP_MUTANT`.
//! * First the seed and the test that caught the bug last, by its row in `docs/planted-bugs.md`,
//!   are tried. If one of them catches it again, that is all.
//! * Otherwise, and always with `--all`, the tests of the core, the host and the simulator run once
//!   with the bug, and at the same time the first seeds of the simulator (60). If nothing has
//!   caught the bug by then, the simulator runs seeds up to N (1000). A bug that nothing catches is
//!   an error.
//! * Tests that fail are run once more, by themselves: a failure because of load or chance catches
//!   nothing. Nor does a program that hangs.
//! * Without a bug all tests must pass, and so must each seed that caught one: otherwise a failure
//!   says nothing.
//! * The results are written to `docs/planted-bugs.md`, to the rows of the bugs that were tried in
//!   full, and to the column of bugs in `docs/snapshot-requirements.md`. All tests that failed with
//!   a bug are written to a file in `target/planted/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::checkout;
use crate::sim;
use crate::steps::cargo;
use crate::tidy;

const PACKAGES: [&str; 3] = ["lockstep-core", "lockstep-host", "lockstep-sim"];
const SOURCE: &str = "host/core/src/mutant.rs";
const TABLE: &str = "docs/planted-bugs.md";
/// The folder with a file for each bug, which has a line for each test that failed.
const ALL_TESTS: &str = "target/planted";
/// The scripts, below the core's package.
const SCRIPTS: &str = "tests/scripts";
const ALL_SCRIPTS: &str = "every_story_goes_as_told";
/// Seeds that are simulated while the tests run.
const SEEDS_IF_CAUGHT: u64 = 60;
/// How much longer a program may run than without a bug before it counts as hanging and is killed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many bugs are tried at a time; more than one, because tests mostly wait.
const AT_ONCE: usize = 2;
/// How many times as long a program may take as without a bug, when it has the machine to itself.
const SLOWER: u32 = 4;
/// How much longer the simulator may run for each of its seeds.
const PATIENCE_A_SEED: Duration = Duration::from_millis(500);

/// What caught one bug.
struct Caught {
    name: String,
    what: String,
    /// The checker that reported it, and the seed.
    sim: Option<(String, u64)>,
    /// Whether that seed violates something without the bug, too.
    anyway: bool,
    tests: Vec<String>,
}

/// Tries the named bugs, or all.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let Options { seeds, all, names } = options(arguments)?;
    let root = checkout::root();
    let bugs = list(&root)?;
    for name in &names {
        ensure!(bugs.iter().any(|(known, _)| known == name), "no bug {name:?} in {SOURCE}");
    }
    println!("mutants: {} bugs are planted; building with them", bugs.len());
    let simulator = sim::build(&root, true)?;
    let mut programs = build_tests(&root)?;
    let broken = without_a_bug(&mut programs)?;
    ensure!(broken.is_empty(), "without a bug these fail; fix them first: {}", broken.join(", "));
    let chosen = bugs.iter().filter(|(n, _)| names.is_empty() || names.contains(&&**n));
    let table = std::fs::read_to_string(root.join(TABLE)).unwrap_or_default();
    let known = if all { BTreeMap::new() } else { rows(&table) };
    let (caught, again) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    each(chosen, |(name, what)| {
        let row = known.get(name).map_or("", String::as_str);
        if let Some(who) = caught_again(&programs, &simulator, name, row)? {
            println!("{name:30} caught again by {who}");
            again.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let one = attempt(&programs, &simulator, name, what, seeds)?;
        let mut caught = caught.lock().unwrap_or_else(PoisonError::into_inner);
        write_tests(&root, &one)?;
        caught.push(one);
        // Written now, so that this row is kept whatever becomes of the other bugs.
        write_table(&root, &bugs, &caught)
    })?;
    let caught = caught.into_inner().unwrap_or_else(PoisonError::into_inner);
    let missed = caught.iter().filter(|one| one.sim.is_none() && one.tests.is_empty());
    let missed: Vec<&str> = missed.map(|one| &*one.name).collect();
    let again = again.into_inner();
    let (tried, found) = (again + caught.len(), again + caught.len() - missed.len());
    println!("{found} of {tried} are caught; see {TABLE}");
    let anyway: Vec<&str> = caught.iter().filter(|one| one.anyway).map(|one| &*one.name).collect();
    ensure!(anyway.is_empty(), "the seeds of these also fail without a bug: {}", anyway.join(", "));
    ensure!(missed.is_empty(), "nothing catches {}", missed.join(", "));
    Ok(())
}

/// Does the work for each item, for [`AT_ONCE`] at a time.
fn each<T: Send>(
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let all_there_are = || std::iter::from_fn(next).try_for_each(&work);
    std::thread::scope(|scope| {
        let workers = [(); AT_ONCE].map(|()| scope.spawn(all_there_are));
        let done = workers.map(|worker| worker.join().expect("it does not panic"));
        done.into_iter().collect()
    })
}

/// Returns the seed or the test in a bug's row if it catches the bug again.
fn caught_again(
    programs: &[Program],
    simulator: &Path,
    name: &str,
    row: &str,
) -> Result<Option<String>> {
    let mut cells = row.split(" | ").skip(2);
    let (sim, test) = (cells.next().unwrap_or("-"), cells.next().unwrap_or("-"));
    if let Some((_, seed)) = sim.split_once(", seed ") {
        let seed = seed.parse().with_context(|| format!("the seed of {name} in {TABLE}"))?;
        if simulate(simulator, name, seed, 1)?.is_some() {
            // A seed that fails without the bug, too, is left to `attempt`, which reports it.
            let anyway = simulate(simulator, "", seed, 1)?.is_some();
            return Ok((!anyway).then(|| format!("seed {seed}")));
        }
    }
    let Some(test) = test.split('`').nth(1) else { return Ok(None) };
    let script = test.strip_suffix(".txt");
    let asked = if script.is_some() { ALL_SCRIPTS } else { test };
    for program in programs {
        let fails = || {
            let failed = program.run(name, &[asked.to_owned()], script)?;
            anyhow::Ok(failed.tests.iter().chain(&failed.scripts).any(|one| one == test))
        };
        // One failure may be chance.
        if fails()? && fails()? {
            return Ok(Some(test.to_owned()));
        }
    }
    Ok(None)
}

/// Finds what catches one bug: tests, and a checker at a seed.
fn attempt(
    programs: &[Program],
    simulator: &Path,
    name: &str,
    what: &str,
    seeds: u64,
) -> Result<Caught> {
    let began = Instant::now();
    let few = seeds.min(SEEDS_IF_CAUGHT);
    // Tests wait most of the time and seeds never do, so they run at the same time.
    let (tests, sim) = std::thread::scope(|scope| {
        let tests = scope.spawn(|| failing(programs, name));
        let sim = simulate(simulator, name, 1, few);
        (tests.join().expect("it does not panic"), sim)
    });
    let (tests, mut sim) = (tests?, sim?);
    if tests.is_empty() && sim.is_none() {
        sim = simulate(simulator, name, 1 + few, seeds - few)?;
    }
    let anyway = match &sim {
        Some((_, seed)) => simulate(simulator, "", *seed, 1)?.is_some(),
        None => false,
    };
    let one = Caught { name: name.to_owned(), what: what.to_owned(), sim, anyway, tests };
    println!("{}, {} s", line(&one), began.elapsed().as_secs());
    Ok(one)
}

struct Options<'a> {
    seeds: u64,
    all: bool,
    names: Vec<&'a str>,
}

fn options<'a>(mut arguments: &[&'a str]) -> Result<Options<'a>> {
    let mut options = Options { seeds: 1000, all: false, names: Vec::new() };
    while let [word, rest @ ..] = arguments {
        arguments = rest;
        match *word {
            "--all" => options.all = true,
            "--seeds" => {
                let [number, rest @ ..] = rest else { bail!("--seeds needs a number") };
                let not_one = || format!("--seeds takes a number, not {number:?}");
                options.seeds = number.parse().with_context(not_one)?;
                arguments = rest;
            }
            name => options.names.push(name),
        }
    }
    Ok(options)
}

/// The names and descriptions of all bugs, as they stand in the source.
fn list(root: &Path) -> Result<Vec<(String, String)>> {
    let source = std::fs::read_to_string(root.join(SOURCE)).context(SOURCE)?;
    let pair = |line: &str| {
        let inner = line.trim().strip_prefix("(\"")?.strip_suffix("\"),")?;
        let (name, what) = inner.split_once("\", \"")?;
        Some((name.to_owned(), what.to_owned()))
    };
    let found: Vec<_> = source.lines().filter_map(pair).collect();
    ensure!(!found.is_empty(), "{SOURCE} lists no bug");
    Ok(found)
}

/// A test program.
struct Program {
    path: PathBuf,
    /// The folder in which it runs.
    package: PathBuf,
    patience: Duration,
}

/// What failed in one run of a program.
struct Failed {
    tests: Vec<String>,
    /// The scripts that went wrong; all scripts are one test.
    scripts: Vec<String>,
}

/// Builds the test programs with the bugs.
fn build_tests(root: &Path) -> Result<Vec<Program>> {
    let mut build = cargo(root);
    build.args(["test", "--locked", "--no-run", "--message-format", "json", "--lib"]);
    build.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    build.args(["--test", "scripts", "--features", "lockstep-core/mutants,lockstep-host/mutants"]);
    let output = build.stderr(Stdio::null()).output().context("starting cargo test")?;
    ensure!(output.status.success(), "cargo could not build the tests ({})", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let program = |line: &str| {
        let built = line.contains("\"test\":true},\"features\"");
        let (_, path) = line.split_once("\"executable\":\"").filter(|_| built)?;
        let (_, manifest) = line.split_once("\"manifest_path\":\"")?;
        let package = Path::new(manifest.split_once('"')?.0).parent()?.to_owned();
        Some(Program { path: path.split_once('"')?.0.into(), package, patience: PATIENCE })
    };
    Ok(text.lines().filter_map(program).collect())
}

/// Runs seeds until one violates something; returns the checker and that seed.
fn simulate(simulator: &Path, name: &str, first: u64, seeds: u64) -> Result<Option<(String, u64)>> {
    let (mut first, end) = (first, first + seeds);
    while first < end {
        let seeds = end - first;
        let mut run = Command::new(simulator);
        run.args(["--seed", &first.to_string(), "--seeds", &seeds.to_string()]);
        let patience = PATIENCE + PATIENCE_A_SEED * u32::try_from(seeds).unwrap_or(u32::MAX);
        let output = bounded(with(&mut run, name), patience)?;
        let told = output.lines().filter_map(|line| {
            let (seed, rest) = line.strip_prefix("seed ")?.split_once(": ")?;
            Some((seed.parse::<u64>().ok()?, rest.split_once(':').map(|(checker, _what)| checker)))
        });
        let told: Vec<_> = told.collect();
        // Threads race, so the first line need not be that of the lowest seed.
        let violated = told.iter().filter_map(|(seed, checker)| Some((*seed, (*checker)?))).min();
        if let Some((seed, checker)) = violated {
            return Ok(Some((checker.to_owned(), seed)));
        }
        // A seed in which too little happened ends a run and catches nothing: the next run starts
        // after it.
        let Some(idle) = told.iter().map(|(seed, _)| seed).max() else { return Ok(None) };
        first = idle + 1;
    }
    Ok(None)
}

/// Runs each program without a bug; returns what fails. From the time that each takes it derives
/// the program's time limit with a bug.
fn without_a_bug(programs: &mut [Program]) -> Result<Vec<String>> {
    for program in &mut *programs {
        let began = Instant::now();
        program.run("", &[], None)?;
        program.patience = PATIENCE + SLOWER * began.elapsed();
        println!("{} takes {} s", program.path.display(), began.elapsed().as_secs());
    }
    failing(programs, "")
}

/// The tests and the scripts that fail with a bug, twice in a row.
fn failing(programs: &[Program], name: &str) -> Result<Vec<String>> {
    let mut failing = BTreeSet::new();
    for program in programs {
        let failed = program.run(name, &[], None)?;
        if failed.tests.is_empty() {
            continue;
        }
        let again = program.run(name, &failed.tests, None)?;
        // All scripts are one test, whose output names the scripts that went wrong: those are
        // counted instead of the test.
        let told = |test: &String| test != ALL_SCRIPTS || again.scripts.is_empty();
        failing.extend(again.tests.into_iter().filter(told));
        let scripts = again.scripts.into_iter().filter(|name| failed.scripts.contains(name));
        failing.extend(scripts);
    }
    Ok(failing.into_iter().collect())
}

impl Program {
    /// Runs the tests of `only`, or all tests if `only` is empty. Of the scripts it runs `script`,
    /// or all.
    fn run(&self, name: &str, only: &[String], script: Option<&str>) -> Result<Failed> {
        let mut run = Command::new(&self.path);
        with(&mut run, name).env("RUST_BACKTRACE", "0").current_dir(&self.package);
        run.env("SCRIPT", script.unwrap_or_default());
        if !only.is_empty() {
            run.arg("--exact").args(only);
        }
        let output = bounded(&mut run, self.patience)?;
        let tests = output.lines().filter_map(|line| {
            let test = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
            Some(test.trim_end_matches(" - should panic").to_owned())
        });
        let tests = tests.collect();
        let entries = std::fs::read_dir(self.package.join(SCRIPTS)).into_iter().flatten();
        let stem = |entry: std::io::Result<std::fs::DirEntry>| {
            Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned())
        };
        Ok(Failed { tests, scripts: stories(&entries.filter_map(stem).collect(), &output) })
    }
}

/// The scripts that the output of a failed test names, as files.
fn stories(scripts: &BTreeSet<String>, output: &str) -> Vec<String> {
    let named = output.lines().filter_map(|line| Some(line.split_once(": ")?.0));
    named.filter(|name| scripts.contains(*name)).map(|name| format!("{name}.txt")).collect()
}

/// Sets the bug with which a program runs; no bug if the name is empty.
fn with<'a>(run: &'a mut Command, name: &str) -> &'a mut Command {
    match name {
        "" => run.env_remove("LOCKSTEP_MUTANT"),
        name => run.env("LOCKSTEP_MUTANT", name),
    }
}

/// Runs a program for at most `patience`; returns what it printed.
fn bounded(program: &mut Command, patience: Duration) -> Result<String> {
    let mut child = program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {program:?}"))?;
    let mut stdout = child.stdout.take().expect("it is piped");
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut stdout, &mut text);
        text
    });
    let until = Instant::now() + patience;
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(reader.join().expect("reading does not panic"))
}

fn line(one: &Caught) -> String {
    let sim = one
        .sim
        .as_ref()
        .map_or("-".to_owned(), |(checker, seed)| format!("checker {checker} at seed {seed}"));
    format!("{:30} {sim:40} {} tests", one.name, one.tests.len())
}

/// Writes the rows of the bugs that were tried, sorted by name; the other rows stay.
fn write_table(root: &Path, bugs: &[(String, String)], caught: &[Caught]) -> Result<()> {
    let path = root.join(TABLE);
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let mut rows = rows(&before);
    rows.extend(caught.iter().map(|one| (one.name.clone(), row(one, caught))));
    rows.retain(|name, _| bugs.iter().any(|(known, _)| known == name));
    let text: String = rows.values().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, HEAD.to_owned() + &text).context(TABLE)?;
    Ok(())
}

/// Writes down all tests that failed with a bug, and which requirements the bug shows to be tested.
fn write_tests(root: &Path, one: &Caught) -> Result<()> {
    let all = root.join(ALL_TESTS);
    std::fs::create_dir_all(&all).context(ALL_TESTS)?;
    std::fs::write(all.join(&one.name), one.tests.join("\n") + "\n").context(ALL_TESTS)?;
    let tried = (one.name.clone(), one.tests.iter().cloned().collect());
    tidy::bugs_were_tried(root, &[tried].into())?;
    Ok(())
}

/// The rows of a table, by the names of the bugs.
fn rows(table: &str) -> BTreeMap<String, String> {
    let name = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    table.lines().filter_map(|line| Some((name(line)?, line.to_owned()))).collect()
}

const HEAD: &str = "\
# Planted bugs

Written by `cargo xtask mutants`. The program ran with each bug of `host/core/src/mutant.rs` by
itself. *Simulator*: the checker that reported the bug, and the first seed, from 1 on, at which it
did; of a bug that tests catch, sixty seeds at most were tried. *Tests*: how many tests of the core,
the host and the simulator failed, scripts included, and the one among them that fails with the
fewest other bugs.

| bug | what it breaks | simulator | tests |
|---|---|---|---|
";

fn row(one: &Caught, all: &[Caught]) -> String {
    let sim = one.sim.as_ref().map_or("-".to_owned(), |(c, s)| format!("{c}, seed {s}"));
    let bugs_of = |test: &&String| all.iter().filter(|other| other.tests.contains(test)).count();
    let tests = match (one.tests.iter().min_by_key(bugs_of), one.tests.len()) {
        (None, _) => "-".to_owned(),
        (Some(test), 1) => format!("`{test}`"),
        (Some(test), count) => format!("{count}: `{test}`"),
    };
    format!("| `{}` | {} | {sim} | {tests} |", one.name, one.what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_that_went_wrong_are_named_as_files() {
        let scripts = ["a_story", "another"].map(str::to_owned).into();
        let output = "---- every_story_goes_as_told stdout ----\n\n\
                      a_story: line 12\n  expected:\n    n1: another\n";
        assert_eq!(stories(&scripts, output), ["a_story.txt"]);
    }

    #[test]
    fn every_bug_of_the_list_is_planted_and_every_planted_one_is_listed() {
        let root = checkout::root();
        let listed: Vec<String> = list(&root).expect("a list").into_iter().map(|b| b.0).collect();
        let mut planted = Vec::new();
        for dir in ["host/core/src", "host/src"] {
            collect(&root.join(dir), &mut planted);
        }
        planted.sort();
        planted.dedup();
        let mut sorted = listed.clone();
        sorted.sort();
        assert_eq!(planted, sorted);
    }

    /// The head of each checker's file names the bugs that it reports.
    #[test]
    fn each_bug_has_a_row_and_each_checker_a_bug_that_it_reports() {
        let root = checkout::root();
        let table = std::fs::read_to_string(root.join(TABLE)).expect("a table");
        let rows = rows(&table);
        let mut listed: Vec<String> =
            list(&root).expect("a list").into_iter().map(|bug| bug.0).collect();
        listed.sort();
        assert_eq!(rows.keys().collect::<Vec<_>>(), listed.iter().collect::<Vec<_>>());
        for entry in std::fs::read_dir(root.join("tests/sim/src/check")).expect("a folder") {
            let path = entry.expect("an entry").path();
            let checker = path.file_stem().expect("a name").to_string_lossy();
            let text = std::fs::read_to_string(&path).expect("text");
            let head = text.lines().take_while(|line| line.starts_with("//!"));
            let head: String = head.map(|line| format!("{line}\n")).collect();
            let (_, bugs) = head.split_once("Planted:").expect("it names its bugs");
            let reported = format!(" | {checker}, seed ");
            let mut bugs = bugs.split('`').skip(1).step_by(2);
            let reports = |bug: &str| rows.get(bug).is_some_and(|row| row.contains(&reported));
            assert!(bugs.any(reports), "{checker} reports none of its bugs first");
        }
    }

    fn collect(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs")
                && !path.ends_with("mutant.rs")
            {
                let text = std::fs::read_to_string(&path).expect("text");
                let lines = text.split("plant!(\"").skip(1);
                let names = text.split("planted(\"").skip(1).chain(lines);
                found.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
}

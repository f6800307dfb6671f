//! `cargo xtask mutants [--seeds N] [NAME...]`: puts each planted bug into the program and says who
//! catches it.
//!
//! * The bugs are those of `host/core/src/mutant.rs`; they are compiled once, behind the feature
//!   `mutants`, and chosen at run time by `LOCKSTEP_MUTANT`.
//! * The tests of the core and the host run once with each bug; the simulator has up to N seeds
//!   (1000), or 60 if a test caught it. A bug that neither catches is an error.
//! * Without a bug the tests must pass, and so must each seed that caught one: else it says
//!   nothing.
//! * The result is written to `docs/planted-bugs.md`, in place of the rows of those that ran.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::checkout;
use crate::sim;
use crate::steps::cargo;

const SOURCE: &str = "host/core/src/mutant.rs";
const TABLE: &str = "docs/planted-bugs.md";
const SCRIPTS: &str = "host/core/tests/scripts";
const ALL_SCRIPTS: &str = "every_story_goes_as_told";
/// Seeds for a bug that tests catch.
const SEEDS_IF_CAUGHT: u64 = 60;
/// A bug may well make a program hang; that catches nothing.
const PATIENCE: Duration = Duration::from_secs(120);
/// The simulator's time grows with the seeds that it has.
const PATIENCE_A_SEED: Duration = Duration::from_millis(500);

/// What one bug led to.
struct Caught {
    name: String,
    what: String,
    /// The checker and the number of seeds it took.
    sim: Option<(String, u64)>,
    tests: Vec<String>,
}

/// Tries the named bugs, or all.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let (seeds, names) = options(arguments)?;
    let root = checkout::root();
    let bugs = list(&root)?;
    for name in &names {
        ensure!(bugs.iter().any(|(known, _)| known == name), "no bug {name:?} in {SOURCE}");
    }
    println!("mutants: {} bugs are planted; building with them", bugs.len());
    let simulator = sim::build(&root, true)?;
    let tests = build_tests(&root)?;
    let broken = failing(&root, &tests, "")?;
    ensure!(broken.is_empty(), "without a bug these fail, mend them first: {}", broken.join(", "));
    let mut caught = Vec::new();
    for (name, what) in bugs.iter().filter(|(n, _)| names.is_empty() || names.contains(&&**n)) {
        let tests = failing(&root, &tests, name)?;
        // A bug that tests catch is looked for as well, but not for so long.
        let seeds = if tests.is_empty() { seeds } else { seeds.min(SEEDS_IF_CAUGHT) };
        let sim = simulate(&simulator, name, 1, seeds)?;
        if let Some((_, seed)) = &sim {
            let alone = simulate(&simulator, "", *seed, 1)?;
            ensure!(alone.is_none(), "seed {seed} fails without a bug, mend that first");
        }
        let one = Caught { name: name.clone(), what: what.clone(), sim, tests };
        println!("{}", line(&one));
        caught.push(one);
    }
    write_table(&root, &bugs, &caught)?;
    let missed = caught.iter().filter(|one| one.sim.is_none() && one.tests.is_empty());
    let missed: Vec<&str> = missed.map(|one| &*one.name).collect();
    println!("{} of {} are caught", caught.len() - missed.len(), caught.len());
    ensure!(missed.is_empty(), "nobody catches {}", missed.join(", "));
    Ok(())
}

fn options<'a>(mut arguments: &[&'a str]) -> Result<(u64, Vec<&'a str>)> {
    let (mut seeds, mut names) = (1000, Vec::new());
    while let [word, rest @ ..] = arguments {
        arguments = rest;
        if *word != "--seeds" {
            names.push(*word);
            continue;
        }
        let [number, rest @ ..] = rest else { bail!("--seeds needs a number") };
        seeds =
            number.parse().with_context(|| format!("--seeds takes a number, not {number:?}"))?;
        arguments = rest;
    }
    Ok((seeds, names))
}

/// Names and descriptions, as they stand in the source.
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

/// Builds the test programs with the bugs, and says where they lie.
fn build_tests(root: &Path) -> Result<Vec<PathBuf>> {
    let mut build = cargo(root);
    build.args(["test", "--locked", "--no-run", "--message-format", "json"]);
    build.args(["--package", "lockstep-core", "--package", "lockstep-host", "--lib"]);
    build.args(["--test", "scripts", "--features", "lockstep-core/mutants,lockstep-host/mutants"]);
    let output = build.stderr(Stdio::null()).output().context("starting cargo test")?;
    ensure!(output.status.success(), "cargo could not build the tests ({})", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let program = |line: &str| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        line.contains("\"test\":true").then_some(PathBuf::from(rest.split_once('"')?.0))
    };
    Ok(text.lines().filter_map(program).collect())
}

/// Runs seeds until one fails.
fn simulate(simulator: &Path, name: &str, first: u64, seeds: u64) -> Result<Option<(String, u64)>> {
    let mut run = Command::new(simulator);
    run.args(["--seed", &first.to_string(), "--seeds", &seeds.to_string()]);
    let patience = PATIENCE + PATIENCE_A_SEED * u32::try_from(seeds).unwrap_or(u32::MAX);
    let output = bounded(with(&mut run, name), patience)?;
    // Threads race: the first line need not have the first seed. What has no checker, such as a
    // seed in which too little happened, catches nothing.
    let found = output.lines().filter_map(|line| {
        let (seed, rest) = line.strip_prefix("seed ")?.split_once(": ")?;
        let (checker, _what) = rest.split_once(':')?;
        Some((checker.to_owned(), seed.parse().ok()?))
    });
    Ok(found.min_by_key(|(_, seed)| *seed))
}

/// Which tests fail.
fn failing(root: &Path, programs: &[PathBuf], name: &str) -> Result<Vec<String>> {
    let stem = |entry: std::io::Result<std::fs::DirEntry>| {
        Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned())
    };
    let folder = std::fs::read_dir(root.join(SCRIPTS)).context(SCRIPTS)?;
    let scripts: BTreeSet<String> = folder.filter_map(stem).collect();
    let mut failed = Vec::new();
    for program in programs {
        let mut run = Command::new(program);
        with(&mut run, name).env("RUST_BACKTRACE", "0");
        let crate_dir =
            if program.to_string_lossy().contains("lockstep_host") { "host" } else { "host/core" };
        let output = bounded(run.current_dir(root.join(crate_dir)), PATIENCE)?;
        let fails = output.lines().filter_map(|line| {
            Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned())
        });
        let fails: Vec<String> = fails.collect();
        let told = stories(&scripts, &output);
        // All scripts are one test, which names those that went wrong.
        failed.extend(fails.into_iter().filter(|test| test != ALL_SCRIPTS || told.is_empty()));
        failed.extend(told);
    }
    failed.sort();
    failed.dedup();
    Ok(failed)
}

/// The scripts that a failed test names, as files.
fn stories(scripts: &BTreeSet<String>, output: &str) -> Vec<String> {
    let named = output.lines().filter_map(|line| Some(line.split_once(": ")?.0));
    named.filter(|name| scripts.contains(*name)).map(|name| format!("{name}.txt")).collect()
}

/// Puts a bug into a program; none, if it has no name.
fn with<'a>(run: &'a mut Command, name: &str) -> &'a mut Command {
    match name {
        "" => run.env_remove("LOCKSTEP_MUTANT"),
        name => run.env("LOCKSTEP_MUTANT", name),
    }
}

/// What a program prints, as far as it gets in its time.
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
        .map_or("-".to_owned(), |(checker, seeds)| format!("checker {checker} at seed {seeds}"));
    format!("{:30} {sim:40} {} tests", one.name, one.tests.len())
}

/// Writes the rows of those that were tried; the others' stay, once every bug has one.
fn write_table(root: &Path, bugs: &[(String, String)], caught: &[Caught]) -> Result<()> {
    let path = root.join(TABLE);
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let name = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    let mut rows: BTreeMap<String, String> =
        before.lines().filter_map(|line| Some((name(line)?, line.to_owned()))).collect();
    rows.extend(caught.iter().map(|one| (one.name.clone(), row(one))));
    let rows: Option<Vec<&str>> =
        bugs.iter().map(|(name, _)| rows.get(name).map(String::as_str)).collect();
    if let Some(rows) = rows {
        let text = HEAD.to_owned() + &rows.join("\n") + "\n";
        std::fs::write(&path, text).context(TABLE)?;
        println!("written to {TABLE}");
    }
    Ok(())
}

const HEAD: &str = "\
# Planted bugs

Written by `cargo xtask mutants`. Each bug of `host/core/src/mutant.rs` was put into the program by
itself. *Simulator*: the checker that reported it and the first of the seeds from 1 on that did.
*Tests*: those of the core and the host that failed, and scripts.

| bug | what it breaks | simulator | tests |
|---|---|---|---|
";

fn row(one: &Caught) -> String {
    let sim = one.sim.as_ref().map_or("-".to_owned(), |(c, s)| format!("{c}, seed {s}"));
    let tests = match one.tests.is_empty() {
        true => "-".to_owned(),
        false => one.tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join("<br>"),
    };
    format!("| `{}` | {} | {sim} | {tests} |", one.name, one.what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_that_went_wrong_are_named_as_files() {
        let scripts = ["a_story", "another"].map(str::to_owned).into();
        let output = "---- every_story_goes_as_told stdout ----\n\na_story: line 12\n  told:\n    \
                      n1: another\n";
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

    fn collect(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs")
                && !path.ends_with("mutant.rs")
            {
                let text = std::fs::read_to_string(&path).expect("text");
                let names = text.split("planted(\"").skip(1);
                found.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
}

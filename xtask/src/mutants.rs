//! `cargo xtask mutants drawn [--seed N] [--count N]`: plants mistakes in the core and counts how
//! many the scripts catch.
//!
//! * cargo-mutants lists what it could change in the files whose behaviour scripts show: the group,
//!   the ledger and the retention. A seed draws some of these mutants; each is built and run
//!   against all scripts and nothing else. Nine of ten must make a script fail.
//! * Left out, because they have unit tests of their own and no script sees them: the log's format
//!   (`wal`), the state machines of a transfer (`snapshot`), texts (`Display`, `Debug`).
//! * A mutant that does not build says nothing about scripts: the next one drawn takes its place.
//! * A script that never ends counts as failed; the output says so.
//! * The same seed draws the same mutants only from the same source.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::checkout;
use crate::steps::cargo;

const FILES: [&str; 5] = [
    "host/core/src/group.rs",
    "host/core/src/group/**",
    "host/core/src/apply.rs",
    "host/core/src/apply/**",
    "host/core/src/retention.rs",
];
const LEFT_OUT: &str = "<impl (fmt::)?(Debug|Display) for";
const OUTPUT: &str = "target/mutants";
/// How long the scripts may take: many times what they need, so that a slow machine does not count
/// as a hang.
const SECONDS: &str = "60";
const BUILD_SECONDS: &str = "600";

#[derive(Clone, Copy)]
enum Outcome {
    Caught,
    Hung,
    Survived,
    Unviable,
}

impl Outcome {
    /// Each outcome, with the file in which cargo-mutants lists the mutants that had it.
    const ALL: [(Self, &str); 4] = [
        (Self::Caught, "caught.txt"),
        (Self::Hung, "timeout.txt"),
        (Self::Survived, "missed.txt"),
        (Self::Unviable, "unviable.txt"),
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Caught => "caught",
            Self::Hung => "caught (hung)",
            Self::Survived => "SURVIVED",
            Self::Unviable => "did not build",
        }
    }
}

/// Draws mutants, runs them and prints the outcomes; fails if fewer than nine of ten are caught.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let (seed, count) = options(arguments)?;
    let root = checkout::root();
    installed(&root)?;
    let names = list(&root)?;
    println!("mutants: seed {seed}, {count} of {}", names.len());
    let drawn = shuffled(names.len(), seed);
    scripts_pass(&root)?;

    let (mut caught, mut ran, mut drawn) = (0, 0, drawn.into_iter());
    while ran < count {
        let Some(place) = drawn.next() else {
            bail!("only {ran} mutants can be built; ask for fewer with --count");
        };
        let name = &names[place];
        let outcome = try_out(&root, place, &names)?;
        println!("{:13} {name}", outcome.word());
        let (fails, runs) = match outcome {
            Outcome::Caught | Outcome::Hung => (1, 1),
            Outcome::Survived => (0, 1),
            Outcome::Unviable => (0, 0),
        };
        caught += fails;
        ran += runs;
    }
    let least = (count * 9).div_ceil(10);
    println!("{caught} of {count} fail a script (seed {seed})");
    ensure!(caught >= least, "at least {least} must fail a script; extend host/core/tests/scripts");
    Ok(())
}

fn options(mut arguments: &[&str]) -> Result<(u64, usize)> {
    // The seed only has to differ from run to run; it is printed, so that a run can be repeated.
    let (mut seed, mut count) = (u64::from(std::process::id()), 20);
    while let [option, rest @ ..] = arguments {
        let number = || -> Result<u64> {
            let word = rest.first().with_context(|| format!("{option} needs a number"))?;
            word.parse().with_context(|| format!("{option} takes a number, not `{word}`"))
        };
        match *option {
            "--seed" => seed = number()?,
            "--count" => count = usize::try_from(number()?)?,
            other => bail!("no option `{other}`; there are --seed N and --count N"),
        }
        arguments = rest.get(1..).unwrap_or_default();
    }
    ensure!(count > 0, "--count 0 tries nothing; ask for at least one");
    Ok((seed, count))
}

fn installed(root: &Path) -> Result<()> {
    let found = cargo(root).args(["mutants", "--version"]).stderr(Stdio::null()).output();
    let there = found.is_ok_and(|output| output.status.success());
    ensure!(there, "cargo-mutants is missing; install it: `cargo install cargo-mutants --locked`");
    Ok(())
}

/// All mutants, in the order of the source, by the names that cargo-mutants gives them.
fn list(root: &Path) -> Result<Vec<String>> {
    let output = mutants(root).arg("--list").stderr(Stdio::inherit()).output();
    let output = output.context("starting cargo mutants")?;
    ensure!(output.status.success(), "cargo mutants could not list ({})", output.status);
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

fn mutants(root: &Path) -> Command {
    let mut mutants = cargo(root);
    mutants.args(["mutants", "--package", "lockstep-core", "--colors", "never"]);
    mutants.args(FILES.iter().flat_map(|file| ["--file", file]));
    mutants.args(["--exclude-re", LEFT_OUT]);
    mutants
}

/// Checks that the scripts pass without a mutant. This also builds their dependencies, once for all
/// mutants.
fn scripts_pass(root: &Path) -> Result<()> {
    let build = root.join(OUTPUT).join("build");
    // The last mutant of an earlier run is still there, and looks newer than the source.
    let cleaned = cargo(root)
        .args(["clean", "--quiet", "--package", "lockstep-core", "--target-dir"])
        .arg(&build)
        .status()
        .context("starting cargo clean")?;
    ensure!(cleaned.success(), "cargo could not clean {} ({cleaned})", build.display());
    let status = cargo(root)
        .args(["test", "--quiet", "--locked", "--package", "lockstep-core", "--test", "scripts"])
        .env("CARGO_TARGET_DIR", &build)
        .status()
        .context("starting cargo test")?;
    ensure!(status.success(), "scripts fail without any mutant ({status}); fix that first");
    Ok(())
}

/// Runs the mutant at `place` of the list, as one shard of as many shards as there are mutants. It
/// cannot be chosen by name, because cargo-mutants 27 does not apply `--re` to deleted fields.
fn try_out(root: &Path, place: usize, names: &[String]) -> Result<Outcome> {
    let (output, name) = (root.join(OUTPUT), &names[place]);
    let mut mutants = mutants(root);
    mutants.args(["--shard", &format!("{place}/{}", names.len()), "--sharding", "round-robin"]);
    mutants.args(["--baseline", "skip", "--timeout", SECONDS, "--build-timeout", BUILD_SECONDS]);
    mutants.arg("--output").arg(&output).args(["--", "--test", "scripts"]);
    let ran = mutants.env("CARGO_TARGET_DIR", output.join("build")).stdin(Stdio::null()).output();
    let ran = ran.context("starting cargo mutants")?;
    for (outcome, file) in Outcome::ALL {
        let listed = std::fs::read_to_string(output.join("mutants.out").join(file));
        if listed.is_ok_and(|listed| listed.trim_end() == name) {
            return Ok(outcome);
        }
    }
    eprint!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    bail!("`{name}` was not run ({}); if the source changed meanwhile, run this again", ran.status)
}

/// The numbers below `count` in an order that the seed decides.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let (mut state, mut places) = (seed, Vec::from_iter(0..count));
    for last in (1..count).rev() {
        let place = split_mix(&mut state) % (last as u64 + 1);
        places.swap(last, usize::try_from(place).expect("it is at most `last`"));
    }
    places
}

/// SplitMix64.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_and_another_seed_something_else() {
        let mut drawn = shuffled(100, 1);
        assert_eq!(drawn, shuffled(100, 1));
        assert_ne!(drawn, shuffled(100, 2));
        drawn.sort_unstable();
        assert_eq!(drawn, Vec::from_iter(0..100));
    }

    #[test]
    fn options_are_numbers() {
        assert_eq!(options(&["--seed", "7", "--count", "3"]).expect("both are there"), (7, 3));
        for wrong in [&["--seed"][..], &["--count", "x"], &["--count", "0"], &["all"]] {
            assert!(options(wrong).is_err(), "{wrong:?}");
        }
    }
}

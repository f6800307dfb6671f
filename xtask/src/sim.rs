//! `cargo xtask sim [...]` and `soak --minutes M`: builds the simulator and runs seeds.
//!
//! * `sim` passes its arguments on; `sim --help` lists them.
//! * `soak` runs fresh seeds for M minutes and keeps those that failed, with the command that
//!   replays each, in `target/soak/failed.txt`.
//! * `test` runs [`REGRESSION_SEEDS`], every crash point of one story, and fresh seeds.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::checkout;
use crate::steps::{Steps, cargo};

/// A fixed sample that every run includes. Each seed runs twice, and the two runs must agree. Each
/// once found a fault, which now has a script or a test of its own. What a seed draws changes with
/// the simulator, so these seeds are no more likely to find that fault than others are, and new
/// ones need not be added.
const REGRESSION_SEEDS: [u64; 25] = [
    1, 42, 108, 1001, 1189, 1258, 1300, 1417, 1465, 1630, 3081, 5040, 6517, 7559, 7663, 100044,
    100083, 200259, 500213, 501282, 109529270, 109530379, 163556474, 959588802, 959589153,
];
/// The seed of the story whose crash points the tests enumerate.
const POINTS_SEED: &str = "1";
/// How long the tests run fresh seeds.
const FRESH_MINUTES: &str = "3";
const KEPT: &str = "target/soak/failed.txt";

/// Builds the simulator and runs it with these arguments.
pub(crate) fn sim(arguments: &[&str]) -> Result<()> {
    let program = build(&checkout::root(), false)?;
    let status =
        Command::new(program).args(arguments).status().context("starting the simulator")?;
    ensure!(status.success(), "the simulator ended with {status}");
    Ok(())
}

/// Runs fresh seeds for some minutes, and keeps those that fail.
pub(crate) fn soak(arguments: &[&str]) -> Result<()> {
    let ["--minutes", minutes] = arguments else { bail!("soak takes --minutes M") };
    let root = checkout::root();
    let program = build(&root, false)?;
    let mut soak = Command::new(program);
    soak.args(["--minutes", minutes, "--counters"]).stdin(Stdio::null());
    let output = soak.stderr(Stdio::inherit()).output().context("starting the simulator")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let failed: Vec<&str> = text.lines().filter(|l| l.starts_with("to see it again")).collect();
    if !failed.is_empty() {
        let kept = root.join(KEPT);
        std::fs::create_dir_all(kept.parent().expect("it lies in a folder"))?;
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&kept)?;
        failed.iter().try_for_each(|line| writeln!(file, "{line}"))?;
        println!("kept in {KEPT}");
    }
    ensure!(output.status.success(), "the simulator ended with {}", output.status);
    Ok(())
}

/// The simulator's steps in `cargo xtask test`.
pub(crate) fn steps(steps: &mut Steps) -> Result<()> {
    let root = checkout::root();
    let mut program = None;
    steps.own("build of the simulator", || {
        program = Some(build(&root, false)?);
        Ok(true)
    })?;
    let Some(program) = program else { return Ok(()) };
    let known = || {
        let run = |seed: &u64| {
            Command::new(&program).args(["--twice", "--seed", &seed.to_string()]).output()
        };
        let mut good = true;
        for seed in &REGRESSION_SEEDS {
            let output = run(seed).context("starting the simulator")?;
            if !output.status.success() {
                print!("{}", String::from_utf8_lossy(&output.stdout));
                good = false;
            }
        }
        Ok(good)
    };
    steps.own("simulator, a fixed sample of seeds", known)?;
    let points = || {
        let mut points = Command::new(&program);
        points.args(["--points", "--seed", POINTS_SEED]).stdin(Stdio::null());
        Ok(points.status().context("starting the simulator")?.success())
    };
    steps.own("simulator, every crash point of a story", points)?;
    let fresh = || {
        let mut fresh = Command::new(&program);
        fresh.args(["--minutes", FRESH_MINUTES, "--counters"]).stdin(Stdio::null());
        Ok(fresh.status().context("starting the simulator")?.success())
    };
    steps.own("simulator, fresh seeds", fresh)
}

/// Builds the simulator, with planted bugs to choose from or without; returns where it lies.
pub(crate) fn build(root: &Path, mutants: bool) -> Result<PathBuf> {
    let mut build = cargo(root);
    build.args(["build", "--quiet", "--locked", "--package", "lockstep-sim"]);
    if mutants {
        build.args(["--features", "mutants"]);
    }
    let status = build.status().context("starting cargo build")?;
    ensure!(status.success(), "cargo could not build the simulator ({status})");
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join(dir),
        None => root.join("target"),
    };
    let built = target.join("debug/lockstep-sim");
    // Both builds write a binary of the same name, so each is copied to a name that the other build
    // does not overwrite.
    let copy = target.join(if mutants { "lockstep-sim-planted" } else { "lockstep-sim" });
    std::fs::copy(&built, &copy).with_context(|| format!("copying {}", built.display()))?;
    Ok(copy)
}

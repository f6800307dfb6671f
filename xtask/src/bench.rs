//! `cargo xtask bench`: builds the guests, the host and the bench for measuring, then becomes the
//! bench.
//!
//! The bench is a binary of `lockstep-tests`. It replaces this process, so that Ctrl-C reaches the
//! program that knows what to stop. This is the only command that builds with `--release`.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::steps::cargo;
use crate::{checkout, guests};

/// Returns only with an error, or from `snapshots`, `log` and `guest`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if let [what @ ("snapshots" | "log"), mib @ ..] = arguments {
        return of_the_host(what, mib);
    }
    guests::build()?;
    if let ["guest", one_case @ ..] = arguments {
        return of_the_host("guest", one_case);
    }
    println!("bench: building the host with --release, which takes minutes the first time");
    let status = cargo(&checkout::root())
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--package", "lockstep-host", "--bin", "lockstep"])
        .args(["--package", "lockstep-tests", "--bin", "bench"])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "cargo could not build the host and the bench ({status})");
    println!();
    let error = Command::new(release_dir()?.join("bench")).args(arguments).exec();
    Err(error).context("starting the bench")
}

/// Measures what snapshots, or a log of many groups, cost on this disk, or what WebAssembly costs.
fn of_the_host(what: &str, arguments: &[&str]) -> Result<()> {
    let status = cargo(&checkout::root())
        .args(["bench", "--quiet", "--locked", "--package", "lockstep-host"])
        .args(["--bench", what, "--"])
        .args(arguments)
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the bench of {what} failed ({status})");
    Ok(())
}

/// The folder of release builds, beside the one that this program is in.
fn release_dir() -> Result<PathBuf> {
    let this = std::env::current_exe().context("finding out where this program is")?;
    let target = this.ancestors().nth(2).context("this program is not in a target folder")?;
    Ok(target.join("release"))
}

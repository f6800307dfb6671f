//! `cargo xtask bench`: builds guests, host and bench for measuring, then becomes the bench.
//!
//! The program is a binary of `lockstep-tests`; this process is replaced by it, so that Ctrl-C
//! reaches the one that knows what to stop. It is the one command that builds with `--release`.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::steps::cargo;
use crate::{checkout, guests};

/// Comes back only with an error, or from `snapshots` and `log`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if let [what @ ("snapshots" | "log"), mib @ ..] = arguments {
        return of_the_host(what, mib);
    }
    guests::build()?;
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

/// What snapshots, or a log of many groups, cost on this disk.
fn of_the_host(what: &str, mib: &[&str]) -> Result<()> {
    let status = cargo(&checkout::root())
        .args(["bench", "--quiet", "--locked", "--package", "lockstep-host"])
        .args(["--bench", what, "--"])
        .args(mib)
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the bench of {what} failed ({status})");
    Ok(())
}

/// Beside the folder that cargo put this program in.
fn release_dir() -> Result<PathBuf> {
    let this = std::env::current_exe().context("where this program lies")?;
    let target = this.ancestors().nth(2).context("this program lies in no target folder")?;
    Ok(target.join("release"))
}

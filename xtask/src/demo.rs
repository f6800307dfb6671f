//! `cargo xtask demo`, `chaos`, `killloop`, `leases`, `transfer`, `tight`, `stall`, `breaks` and
//! `crowd`: builds the program and what it needs, then becomes it.
//!
//! The programs are binaries of `lockstep-tests`. Each replaces this process, so that Ctrl-C
//! reaches the program that knows what to stop.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::steps::cargo;
use crate::{checkout, guests};

/// Builds guests, host and `program`, and runs it with `arguments`. Returns only with an error.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    if !target_dir()?.join("lockstep").exists() {
        println!(
            "{program}: a first build compiles some 220 crates, wasmtime among them: five to \
             twelve minutes on two cores"
        );
    }
    guests::build()?;
    println!("{program}: building the host");
    build(program)?;
    println!();
    let error = Command::new(target_dir()?.join(program)).args(arguments).exec();
    Err(error).with_context(|| format!("starting {program}"))
}

/// Builds host and program at once, so that what they share is built once.
fn build(program: &str) -> Result<()> {
    let status = cargo(&checkout::root())
        .args(["build", "--locked"])
        .args(["--package", "lockstep-host", "--bin", "lockstep"])
        .args(["--package", "lockstep-tests", "--bin", program])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "cargo could not build the host and `{program}` ({status})");
    Ok(())
}

/// The folder in which cargo put this program, and puts the others.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let this = std::env::current_exe().context("finding out where this program is")?;
    Ok(this.parent().context("this program is not in a folder")?.to_owned())
}

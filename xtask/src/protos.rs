//! `cargo xtask protos`: runs the generator in `xtask/protos`, which is a program of its own so
//! that nothing else has to build its dependencies.

use anyhow::{Context as _, Result, ensure};

use crate::checkout;
use crate::steps::cargo;

/// Generates the wire types again.
pub(crate) fn run() -> Result<()> {
    let status = cargo(&checkout::root())
        .args(["run", "--quiet", "--locked", "--package", "lockstep-protos"])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the wire types could not be generated ({status})");
    Ok(())
}

//! `cargo xtask test [FILTER...]`: builds what the tests need, then runs all tests.
//!
//! * The guests are built first, then the `lockstep` binary: the end-to-end tests need both.
//! * The tests run with cargo-nextest where it is installed, otherwise with `cargo test`.
//! * Then come full disks of the filesystems that servers have, where this machine can mount them.
//! * Then comes the simulator: a fixed sample of seeds, and fresh ones for some minutes.
//! * Arguments after `test` go to the runner: parts of names, or flags. Flags are those of one
//!   runner, so with flags only the tests of the workspace run.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::lint::EXAMPLES_TARGET;
use crate::steps::{Steps, cargo};
use crate::{checkout, demo, guests, sim};

/// Runs the short form of `cargo xtask tight`: ext4, xfs and btrfs, filled to the last byte. Its
/// output says which of them this machine cannot mount.
fn full_disks(steps: &mut Steps) -> Result<()> {
    let build = ["build", "--quiet", "--locked", "--package", "lockstep-tests", "--bin", "tight"];
    steps.quiet("build of tight", cargo(&checkout::root()).args(build))?;
    steps.stop_if_failed()?;
    let mut tight = Command::new(demo::target_dir()?.join("tight"));
    steps.tests("full disks of ext4, xfs and btrfs", tight.arg("--quick"))
}

/// Runs all tests, or those that the arguments choose.
pub(crate) fn test(arguments: &[&str]) -> Result<()> {
    let root = checkout::root();
    let mut steps = Steps::new("test");
    steps.own("guests", || guests::build().map(|_| true))?;
    if arguments.is_empty() {
        steps.own("the same guest from another checkout", guests::same_elsewhere)?;
    }
    let host = ["build", "--quiet", "--locked", "--package", "lockstep-host", "--bin", "lockstep"];
    steps.quiet("build of lockstep", cargo(&root).args(host))?;
    steps.stop_if_failed()?;

    let nextest = cargo(&root)
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut tests = cargo(&root);
    if nextest {
        tests.args(["nextest", "run", "--locked", "--workspace", "--no-fail-fast"]);
        // A filter may match no test of this workspace, only tests of the examples.
        tests.args(["--no-tests", "pass", "--hide-progress-bar"]).args(arguments);
    } else {
        tests.args(["test", "--locked", "--workspace", "--no-fail-fast", "--all-targets", "--"]);
        tests.args(arguments);
    }
    steps.tests("tests of the workspace", &mut tests)?;
    if arguments.is_empty() {
        full_disks(&mut steps)?;
        sim::steps(&mut steps)?;
    }

    if !arguments.iter().any(|argument| argument.starts_with('-')) {
        let docs = ["test", "--quiet", "--locked", "--workspace", "--doc", "--"];
        steps.tests("doc tests", cargo(&root).args(docs).args(arguments))?;
        let mut examples = cargo(&root.join("examples"));
        examples.args(["test", "--quiet", "--locked", "--target-dir"]);
        examples.arg(root.join(EXAMPLES_TARGET)).arg("--").args(arguments);
        steps.tests("tests of the examples", &mut examples)?;
    }
    let (passed, failed) = steps.counted();
    println!("{passed} passed, {failed} failed");
    steps.finish()
}

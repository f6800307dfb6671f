//! `cargo xtask stall`: see `lockstep_tests::stall`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use lockstep_tests::cli::{self, Options};
use lockstep_tests::stall;
use lockstep_tests::tell::Teller;

const HELP: &str = "\
usage: cargo xtask stall [--seconds N]

Three nodes, each on filesystems of its own (ext4 on loop devices; needs root). First the leader's
is frozen: another node must lead, and commands must be answered. Then a follower's, which no client
may notice; then that of the leader's snapshots; then that of a leader that is told to stop.

  --seconds N  how long the leader's disk hangs (45)";

const NUMBERS: [(&str, u64); 1] = [("seconds", 45)];

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &[], run)
}

async fn run(options: Options) -> Result<()> {
    if let Some(what) = stall::lacks() {
        bail!("{what}");
    }
    let mut tell = Teller::new("Disks that hang");
    stall::run(options.number("seconds"), &mut tell).await
}

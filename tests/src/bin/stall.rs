//! `cargo xtask stall`: see `lockstep_tests::stall`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use lockstep_tests::cli::{self, Options};
use lockstep_tests::stall;
use lockstep_tests::tell::Teller;

const HELP: &str = "\
usage: cargo xtask stall [--seconds N]

Three nodes, each on a filesystem of its own (ext4 on a loop device; needs root). The leader's is
frozen under it: another node must lead, and commands be answered. Then a follower's, which nobody
may notice, and that of a node which is told to stop meanwhile.

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

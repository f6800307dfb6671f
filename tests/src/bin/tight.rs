//! `cargo xtask tight`: see `lockstep_tests::tight`.

use std::process::ExitCode;

use anyhow::Result;
use lockstep_tests::cli::{self, Options};
use lockstep_tests::tell::Teller;
use lockstep_tests::tight::{self, Plan};

const HELP: &str = "\
usage: cargo xtask tight [--mib N] [--cycles N] [--fills N]

Three nodes, each on a disk of 2.3 times its state (a tmpfs; needs root): snapshots under load, with
a follower wiped every tenth time, and nobody may be short of room. Then something else fills the
disks: commands must stop and come back by themselves, and nothing acknowledged may be lost.

  --mib N     size of the state, MiB (512)
  --cycles N  snapshots (200)
  --fills N   how often the disks are filled (20)";

const NUMBERS: [(&str, u64); 3] = [("mib", 512), ("cycles", 200), ("fills", 20)];

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &[], run)
}

async fn run(options: Options) -> Result<()> {
    let plan = Plan {
        state_bytes: options.number("mib") << 20,
        cycles: u32::try_from(options.number("cycles"))?,
        fills: u32::try_from(options.number("fills"))?,
    };
    let mut tell = Teller::new("Snapshots on disks that are little more than two of them");
    tight::run(plan, &mut tell).await
}

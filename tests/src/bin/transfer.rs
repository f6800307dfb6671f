//! `cargo xtask transfer`: see `lockstep_tests::transfer`.

use std::process::ExitCode;

use anyhow::Result;
use lockstep_tests::cli::{self, Options};
use lockstep_tests::tell::Teller;
use lockstep_tests::transfer::{self, Plan};

const HELP: &str = "\
usage: cargo xtask transfer [--mib N] [--limit-mib N]

A state of N MiB streams to a follower that lost its disk. Prints the peak memory of every host
during the transfer, minus that before it, minus the growth of the guest's memory.

  --mib N        size of the state, MiB (512)
  --limit-mib N  memory that the transfer may take of each host, MiB (32)";

const NUMBERS: [(&str, u64); 2] = [("mib", 512), ("limit-mib", 32)];

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &[], run)
}

async fn run(options: Options) -> Result<()> {
    let plan = Plan {
        state_bytes: options.number("mib") << 20,
        limit_bytes: options.number("limit-mib") << 20,
    };
    let mut tell = Teller::new("What a snapshot transfer takes in memory");
    transfer::run(plan, &mut tell).await.map(drop)
}

//! `cargo xtask crowd`: see `lockstep_tests::crowd`.

use std::process::ExitCode;

use anyhow::Result;
use lockstep_tests::cli::{self, Options};
use lockstep_tests::crowd::{self, Plan};
use lockstep_tests::tell::Teller;

const HELP: &str = "\
usage: cargo xtask crowd [--rounds N] [--seconds S]

Two thousand clients of three nodes: half of them idle, some slow readers, some that reset their
connections or give up, busy ones, and calm ones. Idle, busy and calm clients must see no error, and
the nodes' memory must stay within bounds. Prints what each round showed, and the medians.

  --rounds N   how many rounds, each with new nodes (5)
  --seconds S  how long a round lasts (15)";

const NUMBERS: [(&str, u64); 2] = [("rounds", 5), ("seconds", 15)];

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &[], run)
}

async fn run(options: Options) -> Result<()> {
    let plan = Plan { rounds: options.number("rounds"), seconds: options.number("seconds") };
    crowd::run(plan, &mut Teller::new("A crowd")).await
}

//! `cargo xtask killloop`: see `lockstep_tests::killloop`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use lockstep_tests::cli::{self, Options};
use lockstep_tests::killloop::{self, Plan};
use lockstep_tests::tell::Teller;

const HELP: &str = "\
usage: cargo xtask killloop [--times N] [--node N] [--seed N] [--limit-seconds N] [--life-ms N]

Kills one of three nodes with SIGKILL at random moments under load. Each time it must come back to
the leader's index within the limit; every tenth time the nodes' snapshots at a checkpoint must be
equal.

  --times N          how many kills (200)
  --node N           which node (1)
  --seed N           seed of all random choices (1)
  --limit-seconds N  the longest it may take to come back (10)
  --life-ms N        the longest it lives before the next kill (1500)";

const NUMBERS: [(&str, u64); 5] =
    [("times", 200), ("node", 1), ("seed", 1), ("limit-seconds", 10), ("life-ms", 1_500)];

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &[], run)
}

async fn run(options: Options) -> Result<()> {
    let plan = Plan {
        times: u32::try_from(options.number("times"))?,
        node: u16::try_from(options.number("node"))?,
        seed: options.number("seed"),
        limit: Duration::from_secs(options.number("limit-seconds")),
        compare_every: 10,
        life: Duration::from_millis(options.number("life-ms").max(1)),
    };
    let mut tell = Teller::new(&format!("One node, killed again and again (seed {})", plan.seed));
    killloop::run(plan, &mut tell).await.map(drop)
}

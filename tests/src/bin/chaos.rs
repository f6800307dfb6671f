//! `cargo xtask chaos`: see `lockstep_tests::bank`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_tests::bank::{self, Plan};
use lockstep_tests::cli::{self, Options};
use lockstep_tests::tell::{Teller, thousands};

const HELP: &str = "\
usage: cargo xtask chaos [--seconds N] [--kills N] [--clients N] [--seed N]
                         [--least-acknowledged N] [--least-retried N]

Clients move money in a bank of three nodes while leaders are killed with SIGKILL; then every single
transfer is accounted for.

  --seconds N             how long the clients run (120)
  --kills N               leaders killed in that time (10)
  --clients N             clients, each with one transfer at a time (16)
  --seed N                seed of all random choices (1)
  --least-acknowledged N  how many transfers must be acknowledged (20000)
  --least-retried N       how many transfers must be answered by another leader than the first
                          one that was asked (50)";

const NUMBERS: [(&str, u64); 6] = [
    ("seconds", 120),
    ("kills", 10),
    ("clients", 16),
    ("seed", 1),
    ("least-acknowledged", 20_000),
    ("least-retried", 50),
];

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &[], run)
}

async fn run(options: Options) -> Result<()> {
    let plan = Plan {
        time: Duration::from_secs(options.number("seconds")),
        kills: u32::try_from(options.number("kills"))?,
        clients: options.number("clients"),
        seed: options.number("seed"),
    };
    let mut tell = Teller::new(&format!("Every transfer is accounted for (seed {})", plan.seed));
    let figures = bank::run(plan, &mut tell).await?;
    let least = options.number("least-acknowledged");
    ensure!(
        figures.acknowledged >= least,
        "only {} transfers were acknowledged; at least {} must be",
        thousands(figures.acknowledged),
        thousands(least)
    );
    let least = options.number("least-retried");
    ensure!(
        figures.retried_across_leaders >= least,
        "only {} transfers were retried across a change of leader; at least {least} must be",
        figures.retried_across_leaders
    );
    println!("\n{figures:?}");
    Ok(())
}

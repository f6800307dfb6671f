//! `cargo xtask leases`: see `lockstep_tests::leases`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use lockstep_tests::cli::{self, Options};
use lockstep_tests::leases::{self, Plan};
use lockstep_tests::rng;
use lockstep_tests::tell::Teller;

const HELP: &str = "\
usage: cargo xtask leases [--seconds N] [--pause-seconds N] [--seed N]

Clients take locks and pass messages on while leaders are killed and paused; then every lock, every
message and every event is accounted for, and it is told how late timers were.

  --seconds N        how long the clients run (600)
  --pause-seconds N  the longest pause of a leader (0: a fifth of that time, at most 120)
  --seed N           seed of all random choices (1); SEED=N does the same";

const NUMBERS: [(&str, u64); 3] = [("seconds", 600), ("pause-seconds", 0), ("seed", 1)];

/// The longest pause, unless one is given.
const PAUSE_SECONDS_MAX: u64 = 120;

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &[], run)
}

async fn run(options: Options) -> Result<()> {
    let seconds = options.number("seconds");
    let pause = match options.number("pause-seconds") {
        0 => (seconds / 5).min(PAUSE_SECONDS_MAX),
        given => given,
    };
    let plan = Plan {
        time: Duration::from_secs(seconds),
        pause: Duration::from_secs(pause),
        seed: rng::seed(options.number("seed")),
    };
    let mut tell = Teller::new("Locks and queues, accounted for");
    let figures = leases::run(plan, &mut tell).await?;
    println!("\n{figures:?}");
    Ok(())
}

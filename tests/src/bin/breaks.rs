//! `cargo xtask breaks`: see `lockstep_tests::breaks`.

use std::process::ExitCode;

use anyhow::Result;
use lockstep_tests::breaks::{self, Plan};
use lockstep_tests::cli::{self, Options};
use lockstep_tests::tell::Teller;

const HELP: &str = "\
usage: cargo xtask breaks [--mib N] [--breaks N] [--rate-mib N] [--limit-per-mille N]

A voter that fell behind gets a state of N MiB while its transfer breaks again and again. Every
tenth break kills the sender, so that another node leads; halfway between two of those, a break
kills the receiver; all others cut the connections. Commands go on meanwhile.

  --mib N              size of the state, MiB (1024)
  --breaks N           how often the transfer breaks (30)
  --rate-mib N         snapshot payload a second, MiB (40)
  --limit-per-mille N  what may be sent beyond the object's size, per mille of it (20)";

const NUMBERS: [(&str, u64); 4] =
    [("mib", 1024), ("breaks", 30), ("rate-mib", 40), ("limit-per-mille", 20)];

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &[], run)
}

async fn run(options: Options) -> Result<()> {
    let plan = Plan {
        state_bytes: options.number("mib") << 20,
        breaks: u32::try_from(options.number("breaks"))?,
        rate: options.number("rate-mib") << 20,
        limit_per_mille: options.number("limit-per-mille"),
    };
    let mut tell = Teller::new("A snapshot through broken transfers");
    breaks::run(plan, &mut tell).await
}

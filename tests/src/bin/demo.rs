//! `cargo xtask demo`: see `lockstep_tests::demo`.

use std::process::ExitCode;

use anyhow::Result;
use lockstep_tests::cli::{self, Options};
use lockstep_tests::demo::Demo;
use lockstep_tests::tell::Teller;

const HELP: &str = "\
usage: cargo xtask demo [--keep]

Three processes replicate a key-value store, lose a leader and a disk, and lose nothing.

  --keep   leave the cluster up and print what to try with it";

fn main() -> ExitCode {
    cli::main(HELP, &[], &["keep"], run)
}

async fn run(options: Options) -> Result<()> {
    let tell = Teller::new(
        "Lockstep: a key-value store, compiled to WebAssembly, replicated by three processes",
    );
    let mut demo = Demo::start(tell).await?;
    demo.tell().await?;
    if options.flag("keep") { demo.leave() } else { demo.stop().await }
}

//! `cargo xtask bench`: Lockstep beside etcd. See docs/benchmarks.md.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use lockstep_tests::bench::{self, Options};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "\
usage: cargo xtask bench [OPTIONS]
       cargo xtask bench beside [OPTIONS]    what queries cost commands; takes --seconds,
                                             --rounds, --connections, --dir and --keep

  --seconds N      how long each case is measured in each round (8)
  --rounds N       how many rounds, whose medians are printed (5)
  --connections N  connections that the unary clients of a case share (8)
  --only WORDS     only these cases (write-1, write-64, write-256, read-256, stream-8,
                   pipeline-8) or systems (lockstep, native, etcd, echo), separated by commas
  --native         also Lockstep with a built-in state machine, to show what WebAssembly costs
  --echo           also a server that only echoes, to show what gRPC costs
  --out FILE       where the JSON lines are written (target/bench/results.jsonl)
  --dir DIR        where the processes keep their files, which must be on a disk (target/bench)
  --keep           do not remove these files

LOCKSTEP_BIN names another binary to measure.
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let done = match &words[..] {
        [serve, address] if serve == bench::SERVE => block_on(bench::serve(address)),
        words => match parse(words.strip_prefix(&["beside".to_owned()]).unwrap_or(words)) {
            Ok(options) if words.first().is_some_and(|word| word == "beside") => {
                block_on(bench::beside(&options))
            }
            Ok(options) => block_on(bench::run(&options)),
            Err(error) => {
                eprint!("error: {error:#}\n\n{USAGE}");
                return ExitCode::from(2);
            }
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(words: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(flag) = words.next() {
        match flag.as_str() {
            "--native" => options.native = true,
            "--echo" => options.echo = true,
            "--keep" => options.keep = true,
            "--seconds" | "--rounds" | "--connections" | "--only" | "--out" | "--dir" => {
                let value = words.next().with_context(|| format!("{flag} takes a value"))?;
                set(&mut options, flag, value).with_context(|| format!("{flag} {value}"))?;
            }
            other => bail!("unknown option {other:?}"),
        }
    }
    Ok(options)
}

fn set(options: &mut Options, flag: &str, value: &str) -> Result<()> {
    match flag {
        "--seconds" => options.seconds = value.parse()?,
        "--rounds" => options.rounds = value.parse()?,
        "--connections" => options.connections = value.parse()?,
        "--only" => options.only.extend(value.split(',').map(str::to_owned)),
        "--out" => options.out = value.into(),
        _dir => options.dir = value.into(),
    }
    Ok(())
}

/// Runs `work` until it ends or this program is told to stop, which kills what `work` started.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            done = work => done,
            _ = terminate.recv() => bail!("stopped by SIGTERM"),
            _ = interrupt.recv() => bail!("stopped by Ctrl-C"),
        }
    })
}

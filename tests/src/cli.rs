//! What the programs of this crate have in common: options, a runtime, Ctrl-C, exit codes.
//!
//! - Options are `--name NUMBER` and `--flag`; exit codes 0, 1 (something did not hold), 2 (usage).
//! - On Ctrl-C and SIGTERM the program drops its work, which kills every process that it started.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// The options given on the command line, and the defaults of those that were not.
#[derive(Clone, Debug)]
pub struct Options {
    numbers: BTreeMap<&'static str, u64>,
    flags: BTreeSet<&'static str>,
}

impl Options {
    /// The number of an option, or its default.
    pub fn number(&self, name: &str) -> u64 {
        *self.numbers.get(name).expect("every option has a default")
    }

    pub fn flag(&self, name: &str) -> bool {
        self.flags.contains(name)
    }

    /// Parses the arguments; `Err` says what is wrong with them.
    fn parse(
        arguments: impl Iterator<Item = String>,
        numbers: &[(&'static str, u64)],
        flags: &[&'static str],
    ) -> Result<Self, String> {
        let mut this = Self { numbers: numbers.iter().copied().collect(), flags: BTreeSet::new() };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").unwrap_or(&argument);
            if let Some(flag) = flags.iter().find(|flag| **flag == name) {
                this.flags.insert(flag);
            } else if let Some(number) = this.numbers.get_mut(name) {
                let value = arguments.next().ok_or(format!("{argument} needs a number"))?;
                *number =
                    value.parse().map_err(|_| format!("{argument}: `{value}` is not a number"))?;
            } else {
                return Err(format!("unknown option `{argument}`"));
            }
        }
        Ok(this)
    }
}

/// Parses the arguments and runs `work` until it ends or the program is told to stop.
pub fn main<F: Future<Output = Result<()>>>(
    help: &str,
    numbers: &[(&'static str, u64)],
    flags: &[&'static str],
    work: impl FnOnce(Options) -> F,
) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{help}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(arguments.into_iter(), numbers, flags) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("error: {why}\n\n{help}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting tokio: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(until_told(work(options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn until_told(work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for signals")?;
    let told = tokio::select! {
        done = work => return done,
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "Ctrl-C",
    };
    anyhow::bail!("stopped by {told}; every process was killed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_names_with_numbers_and_flags() {
        let parse = |text: &str| {
            let words = text.split_whitespace().map(str::to_owned);
            Options::parse(words, &[("kills", 10)], &["keep"])
        };
        let options = parse("--kills 3 --keep").expect("both are known");
        assert_eq!((options.number("kills"), options.flag("keep")), (3, true));
        let options = parse("").expect("nothing is fine");
        assert_eq!((options.number("kills"), options.flag("keep")), (10, false));
        let errors = ["--kills", "--kills x", "--kill 3"].map(|text| parse(text).err());
        assert!(errors.iter().all(Option::is_some), "{errors:?}");
    }
}

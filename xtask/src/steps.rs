//! Runs programs one after the other, and prints a line for each: its result and how long it took.
//!
//! * A step that fails does not keep the others from running; [`Steps::finish`] then returns an
//!   error.
//! * The output of a quiet step is shown only if the step failed.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A call of cargo that runs in this folder.
pub(crate) fn cargo(folder: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(folder);
    cargo
}

/// The steps of one command.
pub(crate) struct Steps {
    /// The command that the steps are part of: every line begins with it.
    command: &'static str,
    begun: Instant,
    failed: Vec<&'static str>,
    /// Tests that passed and that failed, over all steps.
    tests: (u64, u64),
}

impl Steps {
    pub(crate) fn new(command: &'static str) -> Self {
        Self { command, begun: Instant::now(), failed: Vec::new(), tests: (0, 0) }
    }

    /// Runs a program; shows its output if it failed.
    pub(crate) fn quiet(&mut self, name: &'static str, program: &mut Command) -> Result<()> {
        let begun = Instant::now();
        let output = program
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {program:?}"))?;
        if !output.status.success() {
            print!("{}", String::from_utf8_lossy(&output.stdout));
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
        }
        self.say(name, output.status.success(), begun.elapsed());
        Ok(())
    }

    /// Runs a program that runs tests; shows its output and counts the tests.
    pub(crate) fn tests(&mut self, name: &'static str, program: &mut Command) -> Result<()> {
        let begun = Instant::now();
        println!("{}: {name} ...", self.command);
        let mut child = program
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program:?}"))?;
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
        // Both outputs are read at the same time, because the program would block on a full pipe.
        let (out, err) = std::thread::scope(|scope| {
            let errors = scope.spawn(|| show_and_count(stderr));
            (show_and_count(stdout), errors.join().expect("counting does not panic"))
        });
        let status = child.wait().with_context(|| format!("waiting for {program:?}"))?;
        self.tests.0 += out.0 + err.0;
        self.tests.1 += out.1 + err.1;
        self.say(name, status.success(), begun.elapsed());
        Ok(())
    }

    /// Runs a step in this process.
    pub(crate) fn own(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<bool>,
    ) -> Result<()> {
        let begun = Instant::now();
        let good = work()?;
        self.say(name, good, begun.elapsed());
        Ok(())
    }

    /// How many tests passed and failed in all steps so far.
    pub(crate) fn counted(&self) -> (u64, u64) {
        self.tests
    }

    /// Fails if a step has failed, for callers whose next steps depend on it.
    pub(crate) fn stop_if_failed(&self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("{} failed: {}", self.command, self.failed.join(", "));
        }
        Ok(())
    }

    /// Prints the last line, or returns an error that names the steps that failed.
    pub(crate) fn finish(self) -> Result<()> {
        self.stop_if_failed()?;
        println!("{}: all good, {}", self.command, seconds(self.begun.elapsed()));
        Ok(())
    }

    fn say(&mut self, name: &'static str, good: bool, took: Duration) {
        let word = if good { "ok" } else { "FAILED" };
        println!("{}: {name}: {word}, {}", self.command, seconds(took));
        if !good {
            self.failed.push(name);
        }
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// Prints every line; adds up the numbers of tests in the lines that sum up.
fn show_and_count(from: impl Read) -> (u64, u64) {
    let mut sum = (0, 0);
    for line in BufReader::new(from).split(b'\n').map_while(|line| line.ok()) {
        let line = String::from_utf8_lossy(&line).into_owned();
        println!("{line}");
        let (passed, failed) = count(&line);
        sum = (sum.0 + passed, sum.1 + failed);
    }
    sum
}

/// The tests that passed and failed, if this is the line in which cargo test or nextest sums up.
fn count(line: &str) -> (u64, u64) {
    let line = line.trim_start();
    if !line.starts_with("test result:") && !line.starts_with("Summary [") {
        return (0, 0);
    }
    let words: Vec<&str> =
        line.split([' ', ',', ';', '.', ':']).filter(|word| !word.is_empty()).collect();
    let before = |what: &[&str]| {
        let numbers = words.windows(2).filter(|pair| what.contains(&pair[1]));
        numbers.filter_map(|pair| pair[0].parse::<u64>().ok()).sum()
    };
    (before(&["passed"]), before(&["failed", "timed", "exec"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_both_runners_are_counted() {
        let rows = [
            ("test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out", (5, 0)),
            ("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured", (3, 2)),
            ("     Summary [   0.512s] 12 tests run: 12 passed, 0 skipped", (12, 0)),
            (
                "     Summary [   1.2s] 9/12 tests run: 7 passed (1 slow), 2 failed, 1 skipped",
                (7, 2),
            ),
            ("test a_name_with_5 passed ... ok", (0, 0)),
            ("the message of a test: 5 passed", (0, 0)),
        ];
        for (line, want) in rows {
            assert_eq!(count(line), want, "{line}");
        }
    }
}

//! How the long programs report what they do: steps, results, and how long each took.
//!
//! A line is printed whole and at once. There are colours only on a terminal, and never with
//! `NO_COLOR`.

use std::io::{IsTerminal as _, stdout};
use std::time::{Duration, Instant};

/// Reports a run in numbered steps.
pub struct Teller {
    step: u32,
    since: Instant,
    colours: bool,
}

impl Teller {
    /// Prints the title.
    pub fn new(title: &str) -> Self {
        let colours = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let this = Self { step: 0, since: Instant::now(), colours };
        println!("{}", this.paint("1", title));
        this
    }

    /// Begins the next step.
    pub fn step(&mut self, what: &str) {
        self.step += 1;
        self.since = Instant::now();
        println!("\n{}", self.paint("1;36", &format!("{}. {what}", self.step)));
    }

    /// Prints a line about what happens.
    pub fn say(&self, line: impl AsRef<str>) {
        println!("   {}", line.as_ref());
    }

    /// Prints a result that the step had to show, and the time since the step began.
    pub fn shown(&self, line: impl AsRef<str>) {
        let took = self.paint("2", &format!("({})", seconds(self.since.elapsed())));
        println!("   {} {} {took}", self.paint("1;32", "✓"), line.as_ref());
    }

    /// Prints the last line of a run that failed.
    pub fn failed(&self, line: impl AsRef<str>) {
        println!("   {} {}", self.paint("1;31", "✗"), line.as_ref());
    }

    /// The number of the step under way.
    pub fn number(&self) -> u32 {
        self.step
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A time for people, in milliseconds or seconds.
pub fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        short if short < 1.0 => format!("{:.0} ms", short * 1e3),
        long => format!("{long:.1} s"),
    }
}

/// A number with a comma between thousands.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes as mebibytes.
pub fn mebibytes(bytes: i128) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([7, 1_000, 1_234_567].map(thousands), ["7", "1,000", "1,234,567"]);
        assert_eq!(seconds(Duration::from_millis(70)), "70 ms");
        assert_eq!(seconds(Duration::from_millis(1_250)), "1.2 s");
        assert_eq!(mebibytes(-(3 << 19)), "-1.5 MiB");
    }
}

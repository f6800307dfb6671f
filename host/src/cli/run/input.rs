//! Where the lines of `lockstep run` come from, and where its output goes.
//!
//! - A thread reads lines, one at a time: it waits until the last one was dealt with, so that a
//!   prompt stands below the answer.
//! - On a terminal, lines can be edited and repeated. What happens while somebody types is printed
//!   above the prompt.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use lockstep_core::limits::COMMAND_BYTES_MAX;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, ExternalPrinter, Helper};

use crate::cli::run::words::WORDS;
use crate::logging::out;

const PROMPT: &str = "> ";
/// Longest line of a file, bytes: longer ones are no commands.
const LINE_BYTES_MAX: u64 = 2 << 20;
const _: () = assert!(LINE_BYTES_MAX > COMMAND_BYTES_MAX as u64);

/// Something that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Read {
    Line(String),
    /// A line that is longer than any command; it was passed over.
    TooLong,
    End,
}

/// Reads lines and prints text.
pub(super) struct Input {
    lines: Receiver<Read>,
    /// Has the thread read the next line.
    next: SyncSender<()>,
    /// Prints above the prompt of a terminal.
    printer: Option<Box<dyn ExternalPrinter>>,
    /// Whether a prompt is shown.
    prompted: bool,
}

impl Input {
    pub(super) fn start() -> io::Result<Self> {
        let (sender, lines) = sync_channel(1);
        let (next, turns) = sync_channel(1);
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let mut input = Self { lines, next, printer: None, prompted: is_terminal };
        let thread = std::thread::Builder::new().name("lines".to_owned());
        if is_terminal {
            let config = Config::builder().auto_add_history(true).build();
            let history = MemHistory::with_config(&config);
            let mut editor = Editor::with_history(config, history).map_err(io::Error::other)?;
            editor.set_helper(Some(Words));
            let printer = editor.create_external_printer().map_err(io::Error::other)?;
            input.printer = Some(Box::new(printer));
            thread.spawn(move || edited(editor, &sender, &turns))?;
        } else {
            thread.spawn(move || plain(&sender, &turns))?;
        }
        input.go_on();
        Ok(input)
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.printer.is_some()
    }

    /// Waits for the next line.
    pub(super) fn next(&mut self, wait: Duration) -> Result<Read, RecvTimeoutError> {
        let read = self.lines.recv_timeout(wait)?;
        self.prompted = false;
        Ok(read)
    }

    /// The last line was dealt with.
    pub(super) fn go_on(&mut self) {
        self.prompted = self.printer.is_some();
        // If the thread is gone, its end was told.
        let _ = self.next.try_send(());
    }

    pub(super) fn print(&mut self, text: &str) {
        match &mut self.printer {
            // If the terminal is gone, nobody reads it.
            Some(printer) if self.prompted => drop(printer.print(format!("{text}\n"))),
            Some(_) | None => out!("{text}"),
        }
    }
}

/// Reads lines of a terminal. A text of several lines, which is pasted, is that many lines.
fn edited(mut editor: Editor<Words, MemHistory>, lines: &SyncSender<Read>, turns: &Receiver<()>) {
    let mut pasted = VecDeque::new();
    while turns.recv().is_ok() {
        if pasted.is_empty() {
            pasted = match editor.readline(PROMPT) {
                Ok(text) => lines_of(&text),
                // Ctrl-C gives up a line, as in a shell.
                Err(ReadlineError::Interrupted) => lines_of(""),
                Err(_) => VecDeque::from([Read::End]),
            };
        }
        let read = pasted.pop_front().expect("a text has a line");
        if lines.send(read).is_err() {
            return;
        }
    }
}

/// The lines of a text, which may be one that is empty.
fn lines_of(text: &str) -> VecDeque<Read> {
    text.split('\n').map(|line| Read::Line(line.to_owned())).collect()
}

/// Reads lines of a file or a pipe. A line that is not text is sent as the text that it resembles.
fn plain(lines: &SyncSender<Read>, turns: &Receiver<()>) {
    let mut input = io::stdin().lock();
    while turns.recv().is_ok() {
        let read = next_line(&mut input).unwrap_or(Read::End);
        if lines.send(read).is_err() {
            return;
        }
    }
}

fn next_line(input: &mut dyn io::BufRead) -> io::Result<Read> {
    let mut line = Vec::new();
    input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(Read::End);
    }
    if line.len() as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
        input.skip_until(b'\n')?;
        return Ok(Read::TooLong);
    }
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Ok(Read::Line(String::from_utf8_lossy(line).into_owned()))
}

/// Completes the words that begin with a dot.
struct Words;

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        place: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..place).unwrap_or(line);
        let fits = |word: &&&str| typed.starts_with('.') && word.starts_with(typed);
        Ok((0, WORDS.iter().filter(fits).map(|word| format!("{word} ")).collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasted_text_is_several_lines() {
        let line = |text: &str| Read::Line(text.to_owned());
        assert_eq!(lines_of(""), [line("")]);
        assert_eq!(lines_of("set a"), [line("set a")]);
        assert_eq!(lines_of("set a\n?a\n"), [line("set a"), line("?a"), line("")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_none() {
        let most = LINE_BYTES_MAX as usize;
        let text = ["set a\r\n", &"x".repeat(3 * most), "\n?a\n", &"y".repeat(most)].concat();
        let mut input = text.as_bytes();
        let mut next = || next_line(&mut input).expect("it is in memory");
        let line = |text: &str| Read::Line(text.to_owned());
        assert_eq!([next(), next(), next()], [line("set a"), Read::TooLong, line("?a")]);
        assert_eq!([next(), next()], [Read::TooLong, Read::End]);
    }
}

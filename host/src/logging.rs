//! Writes to standard error and standard output while the program hosts nodes.
//!
//! - No caller waits for the reader of the output: lines are queued, and a thread of its own writes
//!   them. A line that the queue cannot hold or that cannot be written is lost and counted. Once
//!   writing succeeds again, a line in the place of the lost ones says how many there were.
//! - No caller fails or panics because the reader is gone or a disk is full. Panics are logged like
//!   everything else.
//! - The end of the process waits for the reader for half a second at most.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Bytes of lines that may be queued for the reader.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// Bytes of memory that a queued line takes beside its own.
const LINE_BYTES: usize = 64;
/// How long the end of the process waits for the reader.
const END_MAX: Duration = Duration::from_millis(500);
/// Time between two attempts to write, if another process made the file non-blocking.
const WRITE_AGAIN: Duration = Duration::from_millis(20);

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// Plain text, for people.
    #[default]
    Text,
    /// One JSON object per line, for programs.
    Json,
}

/// Where log lines go; set once logging has started.
static LOG: OnceLock<Arc<Outlet>> = OnceLock::new();
/// Where the lines of [`say`] go; set by its first call.
static SAID: OnceLock<Arc<Outlet>> = OnceLock::new();
/// Log lines for standard error that were lost.
static LOST: AtomicU64 = AtomicU64::new(0);

/// The number of log lines for standard error that were lost since the start.
pub(crate) fn lines_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Which log lines are written: a level for all modules, or for a module and those below it.
/// Without any, the command decides.
#[derive(Clone, Debug)]
pub(crate) struct Filter(Option<Targets>);

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pieces: Vec<&str> = text.split(',').map(str::trim).filter(|p| !p.is_empty()).collect();
        let targets =
            pieces.iter().map(|piece| directive(piece)).collect::<Result<Targets, _>>()?;
        Ok(Self((!pieces.is_empty()).then_some(targets)))
    }
}

/// A piece of a filter. The default level has the empty module, below which all modules are.
fn directive(piece: &str) -> Result<(&str, LevelFilter), String> {
    let (module, level) = piece.split_once('=').unwrap_or(("", piece));
    let is_module = module.chars().all(|c| c.is_alphanumeric() || "_:".contains(c));
    let is_level = !level.is_empty();
    let parsed = level.parse().ok().filter(|_| is_module && is_level);
    parsed.map(|level| (module, level)).ok_or_else(|| {
        format!(
            "`{piece}` is neither a level (off, error, warn, info, debug, trace) nor a module with \
             a level; write `warn`, or `info,lockstep_host::wal=debug`"
        )
    })
}

/// Starts logging to standard error. Where `filter` says nothing, `default` holds.
pub(crate) fn start(default: &str, filter: &Filter, format: Format) -> io::Result<()> {
    let outlet = Outlet::start(io::stderr().as_fd(), Some(format), &LOST)?;
    let Ok(()) = LOG.set(Arc::clone(&outlet)) else { return Ok(()) };
    let default = || default.parse().expect("the program's own filters are well formed");
    let targets = filter.0.clone().unwrap_or_else(default);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(Lines(outlet))
        .log_internal_errors(false)
        .with_ansi(format == Format::Text && io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(targets);
    match format {
        Format::Text => registry.with(lines).init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let why = panic.payload_as_str().unwrap_or("a panic without a message");
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => trace.to_string(),
            _none => String::new(),
        };
        tracing::error!(thread = thread.name().unwrap_or("?"), at, why, trace, "panic");
    }));
    Ok(())
}

/// Prints a line to standard output; [`unwritten`] tells at the end whether that failed.
macro_rules! out {
    ($($text:tt)*) => { $crate::logging::print(format_args!($($text)*)) };
}
pub(crate) use out;

/// The first error of writing to standard output.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

/// Prints a command's text and a newline. A reader that is gone, like `head`, is not an error.
pub(crate) fn print(text: std::fmt::Arguments<'_>) {
    let _is_read = print_while_read(text);
}

/// Like [`print()`]; returns whether it makes sense to print more.
pub(crate) fn print_while_read(text: std::fmt::Arguments<'_>) -> bool {
    let Err(error) = writeln!(io::stdout(), "{text}") else { return true };
    if error.kind() != ErrorKind::BrokenPipe {
        // Only the first error is kept.
        let _ = UNWRITTEN.set(error);
    }
    false
}

/// Why printed text did not reach standard output, if it did not.
pub(crate) fn unwritten() -> Option<&'static io::Error> {
    UNWRITTEN.get()
}

/// Queues a line for standard output, so that the caller does not wait for a slow reader.
pub(crate) fn say(line: &str) {
    static LOST_WORDS: AtomicU64 = AtomicU64::new(0);
    let made = || Outlet::start(io::stdout().as_fd(), None, &LOST_WORDS);
    match SAID.get() {
        Some(outlet) => outlet.push(format!("{line}\n").into_bytes()),
        None => {
            if let Ok(outlet) = made() {
                SAID.get_or_init(|| outlet).push(format!("{line}\n").into_bytes());
            }
        }
    }
}

/// Writes on standard error why a command failed, in the format of the log if there is one, and
/// waits briefly for queued lines to be written.
pub(crate) fn last_words(why: Option<&str>) {
    let format = LOG.get().and_then(|log| log.format);
    let line = why.map(|why| last_line(format, why).into_bytes());
    match (LOG.get(), line) {
        (Some(log), Some(line)) => log.push(line),
        // If standard error cannot be written, nobody is left to tell.
        (None, Some(line)) => drop(io::stderr().write_all(&line)),
        (Some(_) | None, None) => {}
    }
    let until = Instant::now() + END_MAX;
    LOG.get().into_iter().chain(SAID.get()).for_each(|outlet| outlet.wait(until));
}

/// The line that says why a command failed: a JSON object if the log's lines are.
fn last_line(format: Option<Format>, why: &str) -> String {
    match format {
        None | Some(Format::Text) => format!("lockstep: {why}\n"),
        Some(Format::Json) => {
            let line = serde_json::json!({
                "timestamp": now(), "level": "ERROR", "message": why, "target": module_path!(),
            });
            format!("{line}\n")
        }
    }
}

/// The time as the log's lines have it; empty if it cannot be formatted.
fn now() -> String {
    let mut now = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    now
}

/// Makes writers that pass whole lines to an outlet.
struct Lines(Arc<Outlet>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Outlet;

    fn make_writer(&'a self) -> &'a Outlet {
        &self.0
    }
}

impl Write for &Outlet {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line.to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A queue of lines, and the file that a thread of its own writes them to.
struct Outlet {
    queue: Mutex<Queue>,
    /// Notified when a line is queued and when the thread has written one.
    changed: Condvar,
    /// Format of the notice about lost lines; `None` = no notice.
    format: Option<Format>,
    /// Counts the lines that were lost.
    lost: &'static AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Item>,
    bytes: usize,
    /// The thread is writing a line that it took out of `waiting`.
    writing: bool,
}

enum Item {
    Line(Vec<u8>),
    /// The number of lines that were lost in this place.
    Gap(u64),
}

impl Outlet {
    /// Starts the thread that writes. It ends with the process.
    fn start(
        to: BorrowedFd<'_>,
        format: Option<Format>,
        lost: &'static AtomicU64,
    ) -> io::Result<Arc<Self>> {
        // The thread writes through a descriptor of its own: a blocked write would hold the lock of
        // the standard library's handle.
        let to = File::from(to.try_clone_to_owned()?);
        let (queue, changed) = Default::default();
        let outlet = Arc::new(Self { queue, changed, format, lost });
        let writes = Arc::clone(&outlet);
        std::thread::Builder::new().name("writer".to_owned()).spawn(move || writes.run(&to))?;
        Ok(outlet)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Vec<u8>) {
        let mut queue = self.lock();
        let bytes = line.len() + LINE_BYTES;
        if queue.bytes + bytes <= WAITING_BYTES_MAX {
            queue.bytes += bytes;
            queue.waiting.push_back(Item::Line(line));
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            match queue.waiting.back_mut() {
                Some(Item::Gap(lines)) => *lines += 1,
                Some(Item::Line(_)) | None => queue.waiting.push_back(Item::Gap(1)),
            }
        }
        drop(queue);
        self.changed.notify_all();
    }

    /// Returns once every queued line is written, or at `until`.
    fn wait(&self, until: Instant) {
        let mut queue = self.lock();
        while queue.writing || !queue.waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self
                .changed
                .wait_timeout(queue, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(queue, _)| queue);
        }
    }

    fn run(&self, to: &File) {
        // Lines lost since the last notice; the next notice reports them.
        let mut missing = 0;
        loop {
            match self.next() {
                Item::Gap(lines) => missing += lines,
                Item::Line(line) => {
                    if missing > 0 && self.tell(to, missing) {
                        missing = 0;
                    }
                    if !write(to, &line) {
                        self.lost.fetch_add(1, Ordering::Relaxed);
                        missing += 1;
                    }
                }
            }
            // Do not hold the notice back until another line comes.
            if missing > 0 && self.lock().waiting.is_empty() && self.tell(to, missing) {
                missing = 0;
            }
        }
    }

    fn next(&self) -> Item {
        let mut queue = self.lock();
        queue.writing = false;
        self.changed.notify_all();
        loop {
            if let Some(item) = queue.waiting.pop_front() {
                if let Item::Line(line) = &item {
                    queue.bytes -= line.len() + LINE_BYTES;
                }
                queue.writing = true;
                return item;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes a notice about lost lines; returns whether that succeeded.
    fn tell(&self, to: &File, lines: u64) -> bool {
        self.format.is_none_or(|format| write(to, notice(format, lines).as_bytes()))
    }
}

/// Writes all bytes; returns whether that succeeded.
fn write(mut to: &File, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return false,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(WRITE_AGAIN);
            }
            Err(_gone) => return false,
        }
    }
    true
}

/// The notice that takes the place of lost lines; it looks like any other log line.
fn notice(format: Format, lines: u64) -> String {
    const WHAT: &str = "log lines lost: standard error was not read, or could not be written";
    let (now, target) = (now(), module_path!());
    match format {
        Format::Text => format!("{now}  WARN {target}: {WHAT} lines={lines}\n"),
        Format::Json => {
            let line = serde_json::json!({
                "timestamp": now, "level": "WARN", "message": WHAT, "lines": lines,
                "target": target,
            });
            format!("{line}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeReader, Read};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn outlet(format: Option<Format>) -> (PipeReader, Arc<Outlet>) {
        let lost: &'static AtomicU64 = Box::leak(Box::default());
        let (reader, writer) = io::pipe().expect("a pipe");
        let outlet = Outlet::start(writer.as_fd(), format, lost).expect("a thread");
        (reader, outlet)
    }

    fn line(number: u64, bytes: usize) -> Vec<u8> {
        format!("{number:>bytes$}\n").into_bytes()
    }

    #[test]
    fn a_filter_is_levels_with_modules_or_without() {
        let shows = |text: &str, module: &str| {
            let Filter(targets) = text.parse().expect(text);
            targets.expect(text).would_enable(module, &tracing::Level::INFO)
        };
        for text in ["info", " info ", "info,", "INFO", "info,h2=warn", "off, lockstep_host=info"] {
            assert!(shows(text, "lockstep_host::wal"), "{text}");
        }
        for text in ["warn", "off", "info,lockstep_host::wal=error", "h2=trace"] {
            assert!(!shows(text, "lockstep_host::wal"), "{text}");
        }
        for nothing in ["", " ", ","] {
            assert!(nothing.parse::<Filter>().is_ok_and(|filter| filter.0.is_none()), "{nothing}");
        }
        for bad in
            ["inof", "*=info", "[span]=debug", "info;h2=warn", "a=loud", "a=", "lockstep_host"]
        {
            let why = bad.parse::<Filter>().expect_err(bad);
            assert!(why.contains("neither a level"), "{why}");
        }
    }

    /// A reader that stops reading holds up no caller. Lines are lost, and a notice stands in their
    /// place.
    #[test]
    fn a_reader_that_stops_costs_lines_and_no_time() {
        let (reader, outlet) = outlet(Some(Format::Text));
        const LINES: u64 = 2_000;
        for number in 0..LINES {
            outlet.push(line(number, 8 << 10));
        }
        let lost = outlet.lost.load(Ordering::Relaxed);
        assert!(lost > LINES / 2, "{lost} of 16 MiB were lost");
        let held = outlet.lock().bytes;
        assert!(held <= WAITING_BYTES_MAX, "{held}");

        let mut lines = BufReader::new(reader).lines().map(|line| line.expect("it is read"));
        for number in 0..LINES - lost {
            let read = lines.next().expect("it is there");
            assert_eq!(read.trim(), number.to_string());
        }
        let told = lines.next().expect("it is there");
        let says = format!(
            "WARN lockstep_host::logging: log lines lost: standard error was not read, \
            or could not be written lines={lost}"
        );
        assert!(told.ends_with(&says), "{told}");
        outlet.push(line(LINES, 8));
        assert_eq!(lines.next().expect("it is there").trim(), LINES.to_string());
        assert_eq!(outlet.lost.load(Ordering::Relaxed), lost, "the notice counts no line twice");
    }

    #[test]
    fn a_reader_that_is_gone_costs_lines_only() {
        let (reader, outlet) = outlet(Some(Format::Json));
        drop(reader);
        for number in 0..100 {
            outlet.push(line(number, 8));
        }
        outlet.wait(Instant::now() + PATIENCE);
        assert_eq!(outlet.lost.load(Ordering::Relaxed), 100);
    }

    /// At the end of a process, lines that can be written are, and others do not delay it.
    #[test]
    fn the_end_waits_for_a_reader_but_not_for_long() {
        let (mut reader, outlet) = outlet(None);
        outlet.push(line(1, 8));
        outlet.wait(Instant::now() + PATIENCE);
        let mut read = [0; 9];
        reader.read_exact(&mut read).expect("it was written");
        assert_eq!(read, *b"       1\n");

        outlet.push(vec![b'.'; 1 << 20]);
        let began = Instant::now();
        outlet.wait(began + Duration::from_millis(50));
        assert!(began.elapsed() < PATIENCE, "it returns");
        let queue = outlet.lock();
        assert!(queue.writing || !queue.waiting.is_empty(), "nobody reads");
    }

    #[test]
    fn the_last_line_is_a_line_like_the_others() {
        for format in [None, Some(Format::Text)] {
            assert_eq!(last_line(format, "no \"group\""), "lockstep: no \"group\"\n");
        }
        let line = last_line(Some(Format::Json), "no \"group\"\ncan serve");
        assert_eq!(line.lines().count(), 1, "{line}");
        let json: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        assert_eq!(json["level"], "ERROR");
        assert_eq!(json["message"], "no \"group\"\ncan serve");
    }

    #[test]
    fn a_notice_is_a_line_like_the_others() {
        let text = notice(Format::Text, 7);
        assert!(text.ends_with("lines=7\n"), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&notice(Format::Json, 7)).expect("it is JSON");
        assert_eq!(json["lines"], 7);
        assert_eq!(json["level"], "WARN");
    }
}

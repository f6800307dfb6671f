//! What the program says on standard error and standard output while it hosts nodes.
//!
//! - Nothing waits for whoever reads it: a line is queued, and a thread writes. What the queue
//!   does not hold, and what could not be written, is lost and counted; once writing goes on, a
//!   line says how many were lost, in the place where they are missing.
//! - Nothing panics: neither a reader that is gone nor a full disk is an error to anybody. Panics
//!   are logged like everything else.
//! - The end of the process waits for the reader, but not for long.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Bytes of lines that may wait for the reader.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// What a line takes beside its bytes.
const LINE_BYTES: usize = 64;
/// How long the end of the process waits for the reader.
const END_MAX: Duration = Duration::from_millis(500);
/// Between two attempts to write where somebody else made it not block.
const WRITE_AGAIN: Duration = Duration::from_millis(20);

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line, for programs.
    Json,
}

/// What the program logs to, once it logs.
static LOG: OnceLock<Arc<Outlet>> = OnceLock::new();
/// Where [`say`] goes.
static SAID: OnceLock<Arc<Outlet>> = OnceLock::new();
/// Lines for standard error that nobody will read.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines for standard error that were lost since the start.
pub(crate) fn lines_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Logs to standard error from now on; `LOCKSTEP_LOG` filters, like `info` or
/// `lockstep_host=debug`.
pub(crate) fn start(default: &str, format: Format) -> io::Result<()> {
    let outlet = Outlet::start(io::stderr().as_fd(), Some(format), &LOST)?;
    let Ok(()) = LOG.set(Arc::clone(&outlet)) else { return Ok(()) };
    let filter = EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| default.into());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Lines(outlet))
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    match format {
        Format::Text => lines.init(),
        Format::Json => lines.json().flatten_event(true).with_ansi(false).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let why = panic.payload_as_str().unwrap_or("a panic without words");
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => trace.to_string(),
            _none => String::new(),
        };
        tracing::error!(thread = thread.name().unwrap_or("?"), at, why, trace, "panic");
    }));
    Ok(())
}

/// Prints to standard output; that this failed is known at the end.
macro_rules! out {
    ($($text:tt)*) => { $crate::logging::print(format_args!($($text)*)) };
}
pub(crate) use out;

/// Why standard output could not be written.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

/// Prints a command's text and a newline. A reader that has gone has seen enough.
pub(crate) fn print(text: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout(), "{text}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        // The first one is told.
        let _ = UNWRITTEN.set(error);
    }
}

/// Why what was printed did not get out.
pub(crate) fn unwritten() -> Option<&'static io::Error> {
    UNWRITTEN.get()
}

/// Prints a line to standard output, for a person who may look away.
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

/// Says on standard error why a command failed; ends with what waits to be written.
pub(crate) fn last_words(why: Option<&str>) {
    let line = why.map(|why| format!("lockstep: {why}\n").into_bytes());
    match (LOG.get(), line) {
        (Some(log), Some(line)) => log.push(line),
        // A reader that is gone has no use for it.
        (None, Some(line)) => drop(io::stderr().write_all(&line)),
        (Some(_) | None, None) => {}
    }
    let until = Instant::now() + END_MAX;
    LOG.get().into_iter().chain(SAID.get()).for_each(|outlet| outlet.wait(until));
}

/// Hands whole lines to an outlet.
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

/// A file that a thread of its own writes to.
struct Outlet {
    queue: Mutex<Queue>,
    /// Something waits, or the thread has nothing more to do.
    changed: Condvar,
    /// How to say that lines were lost; `None`: not at all.
    format: Option<Format>,
    lost: &'static AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Item>,
    bytes: usize,
    /// A line is being written.
    writing: bool,
}

enum Item {
    Line(Vec<u8>),
    /// So many lines are missing here.
    Gap(u64),
}

impl Outlet {
    /// The thread ends with the process.
    fn start(
        to: BorrowedFd<'_>,
        format: Option<Format>,
        lost: &'static AtomicU64,
    ) -> io::Result<Arc<Self>> {
        // A descriptor of its own: the standard library's handle has a lock that a blocked write
        // holds.
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

    /// Returns once everything was written, or at `until`.
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
        // Lines that are missing before the next one that can be written.
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
            // Told at once where nothing else is to be said.
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

    /// Says how many lines are missing here; whether that could be written.
    fn tell(&self, to: &File, lines: u64) -> bool {
        self.format.is_none_or(|format| write(to, notice(format, lines).as_bytes()))
    }
}

/// Writes all of it; whether it could.
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

/// What stands where lines are missing; it looks like any other line.
fn notice(format: Format, lines: u64) -> String {
    const WHAT: &str = "lines lost: nobody read standard error, or it could not be written";
    let mut now = String::new();
    // A time that cannot be told is left out.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    let target = module_path!();
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

    /// A reader that stops costs lines, nobody any time, and the lines are told where they are
    /// missing.
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
            "WARN lockstep_host::logging: lines lost: nobody read standard error, \
            or it could not be written lines={lost}"
        );
        assert!(told.ends_with(&says), "{told}");
        outlet.push(line(LINES, 8));
        assert_eq!(lines.next().expect("it is there").trim(), LINES.to_string());
        assert_eq!(outlet.lost.load(Ordering::Relaxed), lost, "told is not lost");
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

    /// The end of a process: what can be written is, and what cannot does not hold it.
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
    fn a_notice_is_a_line_like_the_others() {
        let text = notice(Format::Text, 7);
        assert!(text.ends_with("lines=7\n"), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&notice(Format::Json, 7)).expect("it is JSON");
        assert_eq!(json["lines"], 7);
        assert_eq!(json["level"], "WARN");
    }
}

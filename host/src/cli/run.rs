//! `lockstep run`: a prompt on one node in memory, to try a state machine while it is written.
//!
//! - A line is a command, `?…` is a query, `.help` lists what else there is.
//! - The file is looked at every second. If it changed, the new module takes over the state, or the
//!   old one goes on, and the reason is told.
//! - Time is that of the clock, and what `.time` skipped. Timers fire on their own.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::fault::GuestFault;
use serde_json::{Value, json};

use crate::cli::format::text_or_hex;
use crate::cli::kit::component;
use crate::cli::run::input::{Input, Read};
use crate::cli::serve::LogArgs;
use crate::cli::{Failure, Outcome};
use crate::clock::{Clock as _, SystemClock};
use crate::guest::{GuestLog, GuestModule as _, NoAnswer, Outcome as Answer};
use crate::kit::solo::{Snapshot, Solo};
use crate::logging;

mod input;
mod words;

use words::Word;

/// Try a state machine at a prompt, on one node in memory.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lockstep run target/guests/kv.wasm
  printf 'set city Basel\\n?get city\\n' | lockstep run target/guests/kv.wasm --json

A line is a command, a line that begins with ? is a query; .help lists what else there is. If the
file changes, the new module goes on with the state of the old one.")]
pub(crate) struct Args {
    /// The component.
    #[arg(value_name = "FSM.wasm")]
    module: PathBuf,
    /// Configuration passed to the state machine's `init` and `restore`.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    config: String,
    /// Print a JSON object for everything that happens.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    log: LogArgs,
}

/// Time between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &Args) -> Outcome {
    logging::start("warn", &args.log.lines.filter, args.log.format)?;
    let stamp = Stamp::of(&args.module);
    let module = Arc::new(component(&args.module)?);
    let info = module.info().clone();
    let clock = SystemClock { offset_ms: 0 };
    let solo = Solo::start(module, args.config.clone().into(), GuestLog::of_no_group());
    let solo = solo.map_err(|fault| {
        Failure::Failed(format!("{fault}; a configuration is given with --config TEXT"))
    })?;
    let input = Input::start()?;
    let is_terminal = input.is_terminal();
    let mut shell = Shell {
        solo,
        path: args.module.clone(),
        clock,
        skipped_ms: 0,
        watching: None,
        json: args.json,
        input,
        loaded: stamp,
        seen: stamp,
        looked: Instant::now(),
        failed: false,
    };
    if is_terminal && !args.json {
        shell.print(&format!("{} {}: .help says what there is", info.name, info.version));
    }
    shell.serve()?;
    // Who types at a prompt has seen the fault.
    if shell.failed && !is_terminal { Err(Failure::Unwell(1)) } else { Ok(()) }
}

/// What a file looks like from outside: when it was written, in seconds and nanoseconds, and its
/// length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp(Option<(i64, i64, u64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        let metadata = std::fs::metadata(path).ok();
        Self(metadata.map(|it| (it.mtime(), it.mtime_nsec(), it.len())))
    }
}

struct Shell {
    solo: Solo,
    path: PathBuf,
    clock: SystemClock,
    /// How far time is ahead of the clock.
    skipped_ms: u64,
    /// The beginning of the topics whose events are shown.
    watching: Option<String>,
    json: bool,
    input: Input,
    /// The file that was loaded, or that could not be.
    loaded: Stamp,
    /// The file at the last look.
    seen: Stamp,
    looked: Instant,
    /// A call failed.
    failed: bool,
}

impl Shell {
    fn serve(&mut self) -> Outcome {
        loop {
            match self.input.next(self.pause()) {
                Ok(Read::Line(line)) => {
                    if self.line(&line)? {
                        return Ok(());
                    }
                    self.input.go_on();
                }
                Ok(Read::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.wake()?;
            self.look();
        }
    }

    /// How long to wait for a line: until the file or the timer is to be looked at.
    fn pause(&self) -> Duration {
        let look = LOOK.saturating_sub(self.looked.elapsed());
        let now = self.now_ms();
        let wake = self.solo.wakes_at_ms().map(|at| Duration::from_millis(at.saturating_sub(now)));
        wake.map_or(look, |wake| wake.min(look))
    }

    fn now_ms(&self) -> u64 {
        self.clock.wall_ms().saturating_add(self.skipped_ms)
    }

    /// Does what a line says; `true` ends the program.
    fn line(&mut self, line: &str) -> Result<bool, Failure> {
        match words::parse(line) {
            Ok(Word::Nothing) => {}
            Ok(Word::Command(text)) => self.apply(text)?,
            Ok(Word::Query(text)) => self.query(text)?,
            Ok(Word::Watch(prefix)) => {
                self.watching = Some(prefix.to_owned());
                self.note(&format!("events whose topic begins with `{prefix}` are shown"));
            }
            Ok(Word::Unwatch) => {
                self.watching = None;
                self.note("no events are shown");
            }
            Ok(Word::Time(skip_ms)) => self.skip(skip_ms)?,
            Ok(Word::Snapshot) => {
                let taken = self.solo.snapshot();
                self.snapshot("took", taken.map(Some))?;
            }
            Ok(Word::Restore) => {
                let restored = self.solo.restore();
                self.snapshot("went back to", restored)?;
            }
            Ok(Word::Help) => self.print(words::HELP.trim_end()),
            Ok(Word::Quit) => return Ok(true),
            Err(why) => self.trouble(&why),
        }
        Ok(false)
    }

    fn apply(&mut self, text: &str) -> Outcome {
        let applied = self.solo.apply(self.now_ms(), Bytes::copy_from_slice(text.as_bytes()));
        match applied {
            Ok(Some(Answer::Ok(answer))) => self.answer(true, &answer),
            Ok(Some(Answer::Rejected(reason))) => self.answer(false, &reason),
            Ok(Some(Answer::TooLong { bytes })) => self.too_long(bytes),
            Ok(None) => {}
            Err(fault) => self.fault(&fault)?,
        }
        self.events();
        Ok(())
    }

    fn query(&mut self, text: &str) -> Outcome {
        match self.solo.query(text.as_bytes()) {
            Ok(Ok(answer)) => self.answer(true, &answer),
            Ok(Err(NoAnswer::Rejected(reason))) => self.answer(false, &reason),
            Ok(Err(NoAnswer::TooLong { bytes })) => self.too_long(bytes),
            Err(fault) => self.fault(&fault)?,
        }
        Ok(())
    }

    fn skip(&mut self, skip_ms: u64) -> Outcome {
        self.skipped_ms = self.skipped_ms.saturating_add(skip_ms);
        let now_ms = self.now_ms();
        match self.solo.wake_until(now_ms) {
            Ok(count) => {
                let at = match self.solo.wakes_at_ms() {
                    Some(at) => {
                        format!("the timer is set, for {} ms from now", at.saturating_sub(now_ms))
                    }
                    None => "the timer is not set".to_owned(),
                };
                let fired = match count {
                    0 => "the timer did not fire".to_owned(),
                    1 => "the timer fired once".to_owned(),
                    more => format!("the timer fired {more} times"),
                };
                let text = format!("time {now_ms} ms; {fired}; {at}");
                let next = self.solo.wakes_at_ms();
                let object = json!({ "time_ms": now_ms, "woken": count, "wakes_at_ms": next });
                self.show(&text, object);
            }
            Err(fault) => self.fault(&fault)?,
        }
        self.events();
        Ok(())
    }

    fn snapshot(&mut self, did: &str, done: Result<Option<Snapshot>, GuestFault>) -> Outcome {
        match done {
            Ok(Some(Snapshot { index, bytes })) => {
                let text = format!("{did} the snapshot of entry {index}, {bytes} bytes");
                self.show(&text, json!({ "snapshot": { "index": index, "bytes": bytes } }));
            }
            Ok(None) => self.trouble("there is no snapshot: take one with .snapshot"),
            Err(fault) => self.fault(&fault)?,
        }
        Ok(())
    }

    /// Wakes the guest if its timer's time has come.
    fn wake(&mut self) -> Outcome {
        match self.solo.wake(self.now_ms()) {
            Ok(true) => {
                let index = self.solo.index();
                self.show(&format!("the timer fired (entry {index})"), json!({ "woken": 1 }));
                self.events();
            }
            Ok(false) => {}
            Err(fault) => self.fault(&fault)?,
        }
        Ok(())
    }

    /// Looks at the file, and exchanges the module if the file changed and has been the same since
    /// the last look: a compiler may still be writing it.
    fn look(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let stamp = Stamp::of(&self.path);
        let settled = std::mem::replace(&mut self.seen, stamp) == stamp;
        if stamp == self.loaded || stamp.0.is_none() || !settled {
            return;
        }
        self.loaded = stamp;
        let text = match self.exchange() {
            Ok(text) => text,
            Err(why) => format!("the file changed, but {why}; the old one goes on"),
        };
        self.show(&text, json!({ "reload": text }));
    }

    fn exchange(&mut self) -> Result<String, String> {
        let module = component(&self.path).map_err(|failure| match failure {
            Failure::Failed(why) | Failure::Usage(why) => why,
            Failure::Unwell(code) => format!("it failed with {code}"),
        })?;
        let info = module.info().clone();
        let taken = self.solo.exchange(Arc::new(module)).map_err(|error| error.to_string())?;
        Ok(format!(
            "{} {} took over the state of entry {}, {} bytes",
            info.name, info.version, taken.index, taken.bytes
        ))
    }

    /// Shows the events that are watched.
    fn events(&mut self) {
        for kept in self.solo.events() {
            let (topic, position) = (&kept.event.topic, kept.position);
            if self.watching.as_ref().is_some_and(|prefix| topic.starts_with(prefix.as_str())) {
                let payload = text_or_hex(&kept.event.payload);
                let at = format!("{}.{}", position.index, position.number);
                let object = json!({ "at": at, "topic": &**topic, "payload": payload });
                self.show(&format!("event {at} {topic}: {payload}"), json!({ "event": object }));
            }
        }
    }

    fn answer(&mut self, ok: bool, bytes: &[u8]) {
        let said = text_or_hex(bytes);
        let text = match ok {
            true if said.is_empty() => "ok".to_owned(),
            true => said.clone(),
            false => format!("rejected: {said}"),
        };
        self.show(&text, json!({ "ok": ok, "answer": said }));
    }

    fn too_long(&mut self, bytes: u64) {
        let text = format!("the answer has {bytes} bytes, which is over the limit");
        self.show(&text, json!({ "too_long": bytes }));
    }

    fn fault(&mut self, fault: &GuestFault) -> Outcome {
        self.failed = true;
        if !self.solo.is_usable() {
            return Err(Failure::Failed(format!("{fault}; the state is lost: start again")));
        }
        let text = format!("{fault}; the state is as it was before");
        self.show(&text, json!({ "fault": fault.to_string() }));
        Ok(())
    }

    fn trouble(&mut self, why: &str) {
        self.failed = true;
        self.show(why, json!({ "error": why }));
    }

    fn note(&mut self, text: &str) {
        self.show(text, json!({ "note": text }));
    }

    fn show(&mut self, text: &str, object: Value) {
        if self.json {
            self.print(&object.to_string());
        } else {
            self.print(text);
        }
    }

    fn print(&mut self, text: &str) {
        self.input.print(text);
    }
}

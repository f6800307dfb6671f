//! `lockstep run`: a prompt on one node in memory, to try a state machine while it is written.
//!
//! - A line is a command, `?…` is a query, `.help` lists what else there is.
//! - A project is built. If its source or a component's file changes, the new module takes over the
//!   state, or the old one goes on, and the reason is told.
//! - Time is that of the clock, and what `.time` skipped. Timers fire on their own.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::fault::GuestFault;
use lockstep_core::limits::COMMAND_BYTES_MAX;
use serde_json::{Value, json};

use crate::cli::build::Progress;
use crate::cli::kit::GroupArgs;
use crate::cli::run::input::{Input, Read};
use crate::cli::serve::LogArgs;
use crate::cli::{Failure, Outcome};
use crate::clock::{Clock as _, SystemClock};
use crate::guest::{Module, NoAnswer, Outcome as Answer};
use crate::kit::player::ConfigRefused;
use crate::kit::solo::{Snapshot, Solo};
use crate::kit::text::text_or_hex;
use crate::logging;

mod input;
mod origin;
mod words;

use origin::{LOOK, News, Origin};
use words::Word;

/// Try a state machine at a prompt, on one node in memory.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lockstep run                                the project in this folder, which is built
  lockstep run target/guests/kv.wasm
  printf 'set city Basel\\n?get city\\n' | lockstep run target/guests/kv.wasm --json

A line is a command, a line that begins with ? is a query; .help lists what else there is. If the
file or the project's source changes, the new module goes on with the state of the old one.

Exit codes: 0 the input ended, whatever was rejected; 1 the module cannot be loaded, the state is
lost, or, if the input is no terminal, a call failed or a line was not understood; 2 usage, or
`init` refuses the configuration.")]
pub(crate) struct Args {
    /// The component, or the folder of a project, which is built; by default this folder.
    #[arg(value_name = "FSM.wasm|DIR", default_value = ".", hide_default_value = true)]
    module: PathBuf,
    #[command(flatten)]
    group: GroupArgs,
    /// Print a JSON object for everything that happens.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    log: LogArgs,
}

pub(crate) fn run(args: &Args) -> Outcome {
    logging::start("warn", &args.log.lines.filter, args.log.format)?;
    let origin = Origin::at(&args.module);
    let stamp = origin.stamp();
    let module = origin.load(Progress::Shown)?;
    let info = module.info().clone();
    let news = origin.clone().watch(stamp, &module)?;
    let clock = SystemClock { offset_ms: 0 };
    let started = Solo::start(args.group.maker(module, 0)?);
    let solo = started.map_err(|fault| match ConfigRefused::of(fault) {
        Ok(refused) => Failure::Usage(refused.to_string()),
        Err(fault) => Failure::Failed(fault.to_string()),
    })?;
    let input = Input::start()?;
    let is_terminal = input.is_terminal();
    let mut shell = Shell {
        solo,
        origin,
        news,
        clock,
        skipped_ms: 0,
        watching: None,
        json: args.json,
        input,
        failed: false,
    };
    if is_terminal && !args.json {
        shell.print(&format!("{} {}: .help says what there is", info.name, info.version));
    }
    shell.serve()?;
    // Who types at a prompt has seen the fault.
    if shell.failed && !is_terminal { Err(Failure::Unwell(1)) } else { Ok(()) }
}

struct Shell {
    solo: Solo,
    origin: Origin,
    news: Receiver<News>,
    clock: SystemClock,
    /// How far time is ahead of the clock.
    skipped_ms: u64,
    /// The beginning of the topics whose events are shown.
    watching: Option<String>,
    json: bool,
    input: Input,
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
                Ok(Read::TooLong) => {
                    self.trouble(&too_long("the line is too long"));
                    self.input.go_on();
                }
                Ok(Read::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.wake()?;
            self.hear();
        }
    }

    /// How long to wait for a line: until the timer or the news is to be looked at.
    fn pause(&self) -> Duration {
        let now = self.now_ms();
        let wake = self.solo.wakes_at_ms().map(|at| Duration::from_millis(at.saturating_sub(now)));
        wake.map_or(LOOK, |wake| wake.min(LOOK))
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
                self.note(&match prefix {
                    "" => "all events are shown".to_owned(),
                    prefix => format!("events whose topic begins with `{prefix}` are shown"),
                });
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
        if text.len() > COMMAND_BYTES_MAX {
            self.trouble(&too_long(&format!("the command has {} bytes", text.len())));
            return Ok(());
        }
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
                let (next, waking_failed) = (self.solo.wakes_at_ms(), self.solo.waking_failed());
                let at = match next {
                    Some(at) => {
                        format!("the timer is set, for {} ms from now", at.saturating_sub(now_ms))
                    }
                    None if waking_failed => "the timer is due, but waking failed: it is tried \
                                              again after the next command"
                        .to_owned(),
                    None => "the timer is not set".to_owned(),
                };
                let fired = match count {
                    0 => "the timer did not fire".to_owned(),
                    1 => "the timer fired once".to_owned(),
                    more => format!("the timer fired {more} times"),
                };
                let text = format!("time {now_ms} ms; {fired}; {at}");
                let object = json!({
                    "time_ms": now_ms,
                    "woken": count,
                    "wakes_at_ms": next,
                    "waking_failed": waking_failed,
                });
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

    /// Exchanges the module if there is a new one.
    fn hear(&mut self) {
        let Ok(news) = self.news.try_recv() else { return };
        let text = news.and_then(|module| self.exchange(module)).unwrap_or_else(|why| {
            format!("{} changed, but the old one goes on: {why}", self.origin.name())
        });
        self.show(&text, json!({ "reload": text }));
    }

    fn exchange(&mut self, module: Module) -> Result<String, String> {
        let info = module.info().clone();
        let taken = self.solo.exchange(module).map_err(|error| error.to_string())?;
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

fn too_long(what: &str) -> String {
    format!("{what}: a command has at most {COMMAND_BYTES_MAX} bytes; nothing was applied")
}

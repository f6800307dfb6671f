//! The functions that a guest may call: the allow-list of imports, and their implementation.
//!
//! - The guest pays for every call and for every byte of it with the fuel of the call under way
//!   ([`engine`]). The price does not depend on what the host then does, so it is the same on all
//!   nodes.
//! - `host.log` becomes a line of the node's log ([`GuestLog`]), shortened; nothing flows back to
//!   the guest.
//! - What a guest emits, events and a setting of its timer, is gathered until its call returns.
//!   Only calls that every replica makes may emit ([`MayEmit`]).
//! - `snapshot-io.write` is open only during `snapshot`, and `snapshot-io.read` only during
//!   `restore`; at any other time they trap.
//! - Chunks pass through a channel without a buffer: however large the state, only a chunk or two
//!   are in memory, and the guest waits while the host's side is busy.
//!
//! [`component`](super::component) feeds and drains the channels.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use lockstep_core::apply::{Emitted, GuestEvent, Setting};
use lockstep_core::limits;
use wasmtime::component::{ComponentType, Lift, Linker};
use wasmtime::{StoreContextMut, Trap};

use super::check::{EVENTS, TIMER, WAKE, WORLD_PACKAGE, interface};
use super::engine;
use super::lift::{AtMost, Cut, Text};
use super::limits::Limiter;
use super::log::GuestLog;

/// The most bytes that a guest may write to its snapshot at once; a larger write traps. The SDK
/// writes 256 KiB at a time.
pub(crate) const SNAPSHOT_CHUNK_BYTES_MAX: usize = 4 << 20;

/// Longest target and longest text of a log message, bytes; the rest is cut off.
pub(crate) const LOG_TARGET_BYTES_MAX: usize = 128;
pub(crate) const LOG_TEXT_BYTES_MAX: usize = 1024;

/// The host's data in a guest's store.
pub(crate) struct HostState {
    /// The module's name, for the log.
    module: Arc<str>,
    log: Arc<GuestLog>,
    pub(crate) limiter: Limiter,
    pub(crate) snapshot_io: SnapshotIo,
    may_emit: MayEmit,
    /// What the call under way has emitted so far.
    emitted: Emitted,
    /// Whether the guest can be woken: without that, it cannot set its timer.
    wakes: bool,
    /// Most bytes of events that are kept.
    event_window_bytes: usize,
    /// The last log message of level `error` in this call: the SDK's panic hook logs at that level.
    pub(crate) last_error: Option<String>,
    /// Why the host ended the call although the guest did nothing wrong.
    pub(crate) host_failure: Option<String>,
}

/// What the call under way may emit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MayEmit {
    Nothing,
    /// A setting of the timer.
    Timer,
    /// That, and events.
    All,
}

/// Whether the guest is writing a snapshot, reading one, or neither.
pub(crate) enum SnapshotIo {
    Closed,
    Write(SyncSender<Vec<u8>>),
    Read(Incoming),
}

/// The snapshot that the guest is restoring.
pub(crate) struct Incoming {
    /// The chunks, followed by an error or by the end of the channel.
    chunks: Receiver<io::Result<Vec<u8>>>,
    /// The present chunk.
    chunk: Vec<u8>,
    /// Bytes of it that the guest has read.
    consumed: usize,
}

/// A guest called a function that it may not call now, or not like this.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Misuse {
    #[error("snapshot-io.write was called outside of `snapshot`: only `snapshot` may call it")]
    WriteOutsideSnapshot,
    #[error("snapshot-io.read was called outside of `restore`: only `restore` may call it")]
    ReadOutsideRestore,
    #[error(
        "snapshot-io.write was given {bytes} bytes at once, the limit is \
         {SNAPSHOT_CHUNK_BYTES_MAX}: write in smaller chunks"
    )]
    ChunkTooLarge { bytes: usize },
    #[error(
        "events.emit was called outside of `apply` and `wake`: an event belongs to an entry, and \
         the other functions are not called for one"
    )]
    EmitOutsideApply,
    #[error(
        "events.emit was given a topic of {bytes} bytes, the limit is {}: shorten it",
        limits::EVENT_TOPIC_BYTES_MAX
    )]
    TopicTooLong { bytes: usize },
    #[error(
        "events.emit was given a payload of {bytes} bytes, the limit is {}: emit what to query \
         instead",
        limits::EVENT_PAYLOAD_BYTES_MAX
    )]
    PayloadTooLong { bytes: usize },
    #[error(
        "the timer was set outside of `init`, `apply` and `wake`: it is part of the replicated \
         state, which no other function may change"
    )]
    TimerOutsideApply,
    #[error(
        "the timer was set, and the component does not export {WORLD_PACKAGE}/{WAKE}, so nobody \
         would be called: export it (in Rust: `export!(Type: wake)`; elsewhere: `world = \
         [\"wake\"]` in lockstep.toml)"
    )]
    TimerWithoutWake,
}

/// The error that interrupts a guest whose snapshot can no longer be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the host no longer takes this snapshot")]
pub(crate) struct Unwanted;

/// How important a log message is.
#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "the guest makes them")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

type Store<'a> = StoreContextMut<'a, HostState>;
type Target = Cut<Text<LOG_TARGET_BYTES_MAX>>;
type Message = Cut<Text<LOG_TEXT_BYTES_MAX>>;
type Chunk = AtMost<SNAPSHOT_CHUNK_BYTES_MAX>;
/// One byte more than a topic may have, so that a longer one shows.
type Topic = Cut<Text<{ limits::EVENT_TOPIC_BYTES_MAX + 1 }>>;
type Payload = Cut<AtMost<{ limits::EVENT_PAYLOAD_BYTES_MAX }>>;

/// A linker that provides the allowed imports and no others.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    // This interface has types only.
    linker.instance(&interface("types"))?;
    linker.instance(&interface("host"))?.func_wrap(
        "log",
        |mut store: Store<'_>, (level, Cut(target), Cut(message)): (Level, Target, Message)| {
            pay(&mut store, target.bytes.saturating_add(message.bytes))?;
            store.data_mut().log(level, &target.text, message.text);
            Ok(())
        },
    )?;
    linker.instance(&interface(EVENTS))?.func_wrap(
        "emit",
        |mut store: Store<'_>, (Cut(topic), Cut(payload)): (Topic, Payload)| {
            pay(&mut store, topic.bytes.saturating_add(payload.length()))?;
            store.data_mut().emit(topic, payload).map_err(Into::into)
        },
    )?;
    let mut timer = linker.instance(&interface(TIMER))?;
    timer.func_wrap("wake-at", |mut store: Store<'_>, (time_ms,): (u64,)| {
        pay(&mut store, 0)?;
        store.data_mut().set_timer(Setting::At(time_ms)).map_err(Into::into)
    })?;
    timer.func_wrap("cancel", |mut store: Store<'_>, (): ()| {
        pay(&mut store, 0)?;
        store.data_mut().set_timer(Setting::Never).map_err(Into::into)
    })?;
    let mut snapshot_io = linker.instance(&interface("snapshot-io"))?;
    snapshot_io.func_wrap("write", |mut store: Store<'_>, (Cut(chunk),): (Cut<Chunk>,)| {
        pay(&mut store, chunk.length())?;
        store.data_mut().write(chunk)
    })?;
    snapshot_io.func_wrap("read", |mut store: Store<'_>, (max_bytes,): (u32,)| {
        let chunk = store.data_mut().read(max_bytes)?;
        pay(&mut store, chunk.len())?;
        Ok((chunk,))
    })?;
    Ok(linker)
}

/// Takes the price of a call that passes this many bytes from the guest's fuel.
fn pay(store: &mut Store<'_>, bytes: usize) -> wasmtime::Result<()> {
    let price = engine::HOST_BYTE_FUEL.saturating_mul(bytes as u64);
    let price = price.saturating_add(engine::HOST_CALL_FUEL);
    let left = store.get_fuel()?.checked_sub(price);
    store.set_fuel(left.unwrap_or(0))?;
    left.map(drop).ok_or_else(|| Trap::OutOfFuel.into())
}

impl HostState {
    pub(crate) fn new(
        module: Arc<str>,
        log: Arc<GuestLog>,
        memory_bytes_max: u64,
        event_window_bytes: usize,
        wakes: bool,
    ) -> Self {
        Self {
            module,
            log,
            limiter: Limiter::new(memory_bytes_max),
            snapshot_io: SnapshotIo::Closed,
            may_emit: MayEmit::Nothing,
            emitted: Emitted::default(),
            wakes,
            event_window_bytes,
            last_error: None,
            host_failure: None,
        }
    }

    /// Forgets what belongs to the previous call.
    pub(crate) fn begin(&mut self, may_emit: MayEmit) {
        self.limiter.begin();
        self.last_error = None;
        (self.may_emit, self.emitted) = (may_emit, Emitted::default());
    }

    /// Hands over what the call emitted, which has returned.
    pub(crate) fn take_emitted(&mut self) -> Emitted {
        std::mem::take(&mut self.emitted)
    }

    /// Why the host, not the guest, ended the call.
    pub(crate) fn host_failure(&self) -> Option<&str> {
        self.host_failure.as_deref().or(self.limiter.machine_refused())
    }
}

impl Incoming {
    pub(crate) fn new(chunks: Receiver<io::Result<Vec<u8>>>) -> Self {
        Self { chunks, chunk: Vec::new(), consumed: 0 }
    }

    /// Reads at most `bytes_max` bytes; none at the end.
    fn read(&mut self, bytes_max: usize) -> io::Result<Vec<u8>> {
        if self.consumed == self.chunk.len() {
            // A closed channel is the end, and stays the end.
            self.chunk = self.chunks.recv().unwrap_or(Ok(Vec::new()))?;
            self.consumed = 0;
        }
        let rest = &self.chunk[self.consumed..];
        let taken = rest.len().min(bytes_max);
        if taken == self.chunk.len() {
            return Ok(std::mem::take(&mut self.chunk));
        }
        let part = rest[..taken].to_vec();
        self.consumed += taken;
        Ok(part)
    }
}

impl HostState {
    fn log(&mut self, level: Level, origin: &str, text: String) {
        let traced = match level {
            Level::Trace => tracing::Level::TRACE,
            Level::Debug => tracing::Level::DEBUG,
            Level::Info => tracing::Level::INFO,
            Level::Warn => tracing::Level::WARN,
            Level::Error => tracing::Level::ERROR,
        };
        self.log.say(&self.module, traced, origin, &text);
        if let Level::Error = level {
            self.last_error = Some(text);
        }
    }

    fn emit(
        &mut self,
        topic: Text<{ limits::EVENT_TOPIC_BYTES_MAX + 1 }>,
        payload: AtMost<{ limits::EVENT_PAYLOAD_BYTES_MAX }>,
    ) -> Result<(), Misuse> {
        match self.may_emit {
            MayEmit::All => {}
            MayEmit::Timer | MayEmit::Nothing => return Err(Misuse::EmitOutsideApply),
        }
        if topic.text.len() > limits::EVENT_TOPIC_BYTES_MAX {
            return Err(Misuse::TopicTooLong { bytes: topic.bytes });
        }
        let payload = match payload {
            AtMost::Whole(payload) => payload.into(),
            AtMost::TooLong(bytes) => return Err(Misuse::PayloadTooLong { bytes }),
        };
        let event = GuestEvent { topic: topic.text.into(), payload };
        self.emitted.emit(event, self.event_window_bytes);
        Ok(())
    }

    fn set_timer(&mut self, setting: Setting) -> Result<(), Misuse> {
        match self.may_emit {
            MayEmit::All | MayEmit::Timer => {}
            MayEmit::Nothing => return Err(Misuse::TimerOutsideApply),
        }
        if !self.wakes {
            return Err(Misuse::TimerWithoutWake);
        }
        self.emitted.timer = Some(setting);
        Ok(())
    }

    fn write(&mut self, chunk: Chunk) -> wasmtime::Result<()> {
        let SnapshotIo::Write(out) = &self.snapshot_io else {
            return Err(Misuse::WriteOutsideSnapshot.into());
        };
        match chunk {
            Chunk::Whole(chunk) => {
                // The host drops the receiver if it could not store a chunk, to interrupt a guest
                // that runs on a copy.
                out.send(chunk).map_err(|_| Unwanted.into())
            }
            Chunk::TooLong(bytes) => Err(Misuse::ChunkTooLarge { bytes }.into()),
        }
    }

    fn read(&mut self, max_bytes: u32) -> wasmtime::Result<Vec<u8>> {
        let SnapshotIo::Read(incoming) = &mut self.snapshot_io else {
            return Err(Misuse::ReadOutsideRestore.into());
        };
        let bytes_max = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        incoming.read(bytes_max).map_err(|error| {
            self.host_failure = Some(format!("the snapshot could not be read: {error}"));
            error.into()
        })
    }
}

const _: () = assert!(SNAPSHOT_CHUNK_BYTES_MAX <= limits::HOSTCALL_BYTES_MAX);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    /// Reads of any size yield the same bytes in total, and the end stays the end.
    #[test]
    fn chunks_are_cut_to_what_was_asked_for() {
        for bytes_max in [1, 2, 3, 5, 100] {
            let (sender, receiver) = sync_channel(8);
            for chunk in [&b"abc"[..], b"defgh", b"i"] {
                sender.send(Ok(chunk.to_vec())).expect("there is space");
            }
            drop(sender);
            let mut incoming = Incoming::new(receiver);
            let mut all = Vec::new();
            loop {
                let part = incoming.read(bytes_max).expect("no chunk is an error");
                assert!(part.len() <= bytes_max);
                if part.is_empty() {
                    break;
                }
                all.extend(part);
            }
            assert_eq!(all, b"abcdefghi", "{bytes_max} bytes at a time");
            assert!(incoming.read(bytes_max).expect("the end is no error").is_empty());
        }
    }
}

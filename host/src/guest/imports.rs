//! The functions that a guest may call: the allow-list of imports, and their implementation.
//!
//! - The guest pays for every call and for every byte of it with the fuel of the call under way
//!   ([`engine`]). The price does not depend on what the host then does, so it is the same on all
//!   nodes.
//! - `host.log` becomes a line of the node's log ([`GuestLog`]), shortened; nothing flows back to
//!   the guest.
//! - `snapshot-io.write` is open only during `snapshot`, and `snapshot-io.read` only during
//!   `restore`; at any other time they trap.
//! - Chunks pass through a channel without a buffer: however large the state, only a chunk or two
//!   are in memory, and the guest waits while the host's side is busy.
//!
//! [`component`](super::component) feeds and drains the channels.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use lockstep_core::limits;
use wasmtime::component::{ComponentType, Lift, Linker};
use wasmtime::{StoreContextMut, Trap};

use super::check::interface;
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
    /// The last log message of level `error` in this call: the SDK's panic hook logs at that level.
    pub(crate) last_error: Option<String>,
    /// Why the host ended the call although the guest did nothing wrong.
    pub(crate) host_failure: Option<String>,
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
    pub(crate) fn new(module: Arc<str>, log: Arc<GuestLog>, memory_bytes_max: u64) -> Self {
        Self {
            module,
            log,
            limiter: Limiter::new(memory_bytes_max),
            snapshot_io: SnapshotIo::Closed,
            last_error: None,
            host_failure: None,
        }
    }

    /// Forgets what belongs to the previous call.
    pub(crate) fn begin(&mut self) {
        self.limiter.begin();
        self.last_error = None;
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

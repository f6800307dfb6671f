//! The guest's state moves from one module into another: the old guest writes its snapshot while
//! the new one restores it, so that no more than a few chunks are in memory beside the two.
//!
//! A trial does this with a copy of the state and keeps the new guest beside the live one. It takes
//! the live one's place at the entry that switches, unless the live one was called meanwhile.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use lockstep_core::entry::Bootstrap;
use lockstep_core::fault::{Fault, FaultClass, GuestFault};
use lockstep_core::group::Event;
use lockstep_core::group::trial::{Stage, TrialId};
use lockstep_core::ids::ModuleId;
use lockstep_core::mutant::plant;

use super::{ApplyLane, Output, no_guest};
use crate::guest::{Guest, GuestInfo, Module, SnapshotHeader};

/// Bytes that pass from one guest to the other at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait between the two.
const CHUNKS_WAITING: usize = 2;

/// A guest of another module, with a copy of the live guest's state.
pub(super) struct Moved {
    module: Module,
    guest: Box<dyn Guest>,
}

impl ApplyLane {
    /// Copies the state into a guest of this module, which is kept.
    pub(super) fn try_module(&mut self, trial: TrialId, module: ModuleId) -> Output {
        self.moved = None;
        let copied = self.copy_into(module);
        if copied.is_err() {
            // The old guest may have failed in `snapshot`. It goes on, as after a capture.
            self.rebuild_if_lost();
        }
        let stage = match copied {
            Ok(moved) => {
                self.moved = Some(moved);
                Stage::Moved
            }
            Err(why) => {
                tracing::warn!(group = %self.tools.group, %module, %why, "the state does not move");
                Stage::failed(why.to_string())
            }
        };
        plant!("switch_before_the_entry" does drop(self.move_to(module, self.ledger.applied())));
        Output::Event(Event::Tried { trial, stage })
    }

    /// From the entry at `index` on, the guest is one of this module.
    pub(super) fn move_to(&mut self, module: ModuleId, index: u64) -> Result<(), Fault> {
        if self.ledger.bootstrap().is_some_and(|record| record.module == module) {
            return Ok(());
        }
        let moved = self.moved.take().filter(|moved| moved.module.id() == module);
        let Moved { module, guest } = match moved {
            Some(moved) => moved,
            None => self.copy_into(module).map_err(|fault| at(index, fault))?,
        };
        let info = module.info();
        tracing::info!(group = %self.tools.group, index, module = %module.id(), name = info.name,
            version = info.version, "the group is upgraded");
        self.ledger.moved(module.id());
        (self.guest, self.module) = (Some(guest), Some(module));
        Ok(())
    }

    fn copy_into(&mut self, module: ModuleId) -> Result<Moved, Fault> {
        let next = self.tools.modules.find(module);
        let next = next.map_err(|lack| Fault::NoModule { module, why: lack.to_string() })?;
        let (Some(old), Some(guest)) = (&self.module, &mut self.guest) else {
            return Err(no_guest());
        };
        readable(old.info(), next.info()).map_err(refused)?;
        // Replicas move their states at different entries: nothing may depend on which.
        let header = SnapshotHeader {
            index: 0,
            time_ms: 0,
            ..SnapshotHeader::of(old.info(), old.info().snapshot_format, &self.ledger)
        };
        let record = self.ledger.bootstrap().ok_or_else(no_guest)?;
        if record.module == module {
            // A trial that the leader began before it heard that this replica has gone over.
            return Err(refused("it runs already".to_owned()));
        }
        let lifted = self.amendments.lifted(record, self.ledger.applied());
        let record = Bootstrap { module, ..lifted };
        next.check_profile(&record.profile).map_err(refused)?;
        let mut fresh = next.instantiate(&record, &self.guest_log)?;
        copy(&mut **guest, &mut *fresh, &header, &record.config)?;
        Ok(Moved { module: next, guest: fresh })
    }
}

/// Whether one module reads what the other one writes.
pub fn readable(old: &GuestInfo, new: &GuestInfo) -> Result<(), String> {
    let formats = new.oldest_readable_format..=new.snapshot_format;
    if formats.contains(&old.snapshot_format) {
        return Ok(());
    }
    Err(format!(
        "{} {} reads snapshots of the formats {} to {}, and {} {} writes format {}",
        new.name,
        new.version,
        formats.start(),
        formats.end(),
        old.name,
        old.version,
        old.snapshot_format
    ))
}

/// The entry at `index` is the one that cannot be applied.
fn at(index: u64, fault: Fault) -> Fault {
    match fault {
        Fault::Guest(GuestFault { class, call, message, .. }) => Fault::Guest(GuestFault {
            class,
            call: "upgrade",
            index: Some(index),
            message: format!("in {call}: {message}"),
        }),
        other => other,
    }
}

fn refused(message: String) -> Fault {
    Fault::Guest(GuestFault { class: FaultClass::Refused, call: "restore", index: None, message })
}

/// Has `from` write its snapshot and `to` restore it.
fn copy(
    from: &mut dyn Guest,
    to: &mut dyn Guest,
    header: &SnapshotHeader,
    config: &[u8],
) -> Result<(), Fault> {
    let (chunks, arriving) = sync_channel(CHUNKS_WAITING);
    let mut input = Input { chunks: arriving, chunk: Vec::new(), read: 0, whole: false };
    let (written, restored) = thread::scope(|scope| {
        let write = move || {
            let mut output = Pouring { chunks, chunk: Vec::new() };
            let written = from.snapshot(&mut output);
            if matches!(written, Ok(Ok(()))) {
                output.end();
            }
            written
        };
        let writer = thread::Builder::new().name("move".to_owned()).spawn_scoped(scope, write);
        let writer = match writer {
            Ok(writer) => writer,
            Err(error) => return (Ok(Err(error)), Ok(())),
        };
        let restored = to.restore(header, config, &mut input).and_then(|()| {
            // What the new guest leaves unread has to be written all the same.
            let rest = io::copy(&mut input, &mut io::sink());
            rest.map(drop).map_err(|error| lacks(error.to_string()))
        });
        // A writer that goes on finds nobody to read.
        drop(input);
        (writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), restored)
    });
    match (written, restored) {
        // What the new guest makes of a broken stream is only a consequence.
        (Err(fault), _) => Err(fault.into()),
        (Ok(_), Err(fault)) => Err(fault.into()),
        (Ok(Err(error)), Ok(())) => Err(lacks(error.to_string()).into()),
        (Ok(Ok(())), Ok(())) => Ok(()),
    }
}

fn lacks(message: String) -> GuestFault {
    GuestFault { class: FaultClass::Host, call: "restore", index: None, message }
}

/// The end of the stream that the old guest writes. An empty chunk ends the stream.
struct Pouring {
    chunks: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
}

impl Pouring {
    fn pass_on(&mut self) -> io::Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        self.chunks.send(chunk).map_err(|_unread| io::ErrorKind::BrokenPipe.into())
    }

    /// The stream is whole.
    fn end(mut self) {
        // A reader that has failed needs no end.
        let rest = if self.chunk.is_empty() { Ok(()) } else { self.pass_on() };
        let _ = rest.and_then(|()| self.pass_on());
    }
}

impl Write for Pouring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() >= CHUNK_BYTES {
            self.pass_on()?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end that the new guest reads.
struct Input {
    chunks: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    /// Bytes of the chunk that were read.
    read: usize,
    /// All of the stream has arrived.
    whole: bool,
}

impl Read for Input {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.read == self.chunk.len() && !self.whole {
            // The writer ended before the stream did: it failed, and says why.
            let broken = |_ended| io::Error::other("the snapshot broke off");
            (self.chunk, self.read) = (self.chunks.recv().map_err(broken)?, 0);
            self.whole = self.chunk.is_empty();
        }
        let taken = bytes.len().min(self.chunk.len() - self.read);
        bytes[..taken].copy_from_slice(&self.chunk[self.read..][..taken]);
        self.read += taken;
        Ok(taken)
    }
}

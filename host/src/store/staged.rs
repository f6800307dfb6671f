//! From a reservation to a verified object, one type per stage:
//! [`StagedWriter`] → [`Finished`] → (the store lane seals) → [`Staged`] → `Verified`.
//!
//! - Each stage owns the lease of its bytes and name. Dropping any of them, on any thread, leaves
//!   nothing: the store lane unlinks the name at its next call, and the bytes come back with it.
//! - A received object whose transfer broke may be *parked* instead ([`StagedWriter::park`]): its
//!   file waits for the rest. Whoever takes it up looks through the blocks that are there.
//! - Payload bytes pass through bulk workers; no stage here creates, renames or unlinks a name.
//! - After any failed write or sync the file is abandoned, never retried.
//! - A received object is finished only with the declared length and digest; a local one gets
//!   its descriptor from what was written.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use lockstep_core::ids::Digest;
use lockstep_core::mutant::planted;
use lockstep_core::snapshot::chunk::{self, Block, ObjectRef};
use lockstep_core::snapshot::{Hold, SnapshotDesc, Verified};

use super::layout::{
    self, BLOCK_BYTES, CRC_BYTES, HEADER_BYTES, Header, Identity, ObjectName, Trailer,
};
use super::reader::{OpenError, SnapshotReader};
use super::reserve::{Held, Lease, Reservation, Slot, SnapshotRefusal, Source, Use};
use crate::fs::{File, Fs, read_exact_at};

/// A growable local snapshot takes room from the budget in steps of so many blocks.
const GROW_BLOCKS: u64 = 8;
/// A staging file is synced after so many blocks, beside the writing of the next ones, so that the
/// last sync is short and the log's are not held up.
const SYNC_BLOCKS: u64 = 32;

/// A staging file being written. [`io::Write`] takes payload in any pieces.
pub struct StagedWriter {
    file: Arc<dyn File>,
    part: String,
    source: Source,
    head: [u8; HEADER_BYTES],
    /// Payload of the block that is not full yet.
    buffer: Vec<u8>,
    /// Bytes of payload in the file's blocks.
    written: u64,
    hasher: blake3::Hasher,
    /// Bytes of payload that the lease covers.
    cap: u64,
    room: Option<Room>,
    /// Blocks written since the last sync began, and what becomes of that one.
    unsynced: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
    failed: Option<SnapshotRefusal>,
    lease: Arc<Lease>,
    slot: Slot,
}

/// Where a growable writer asks how much is free.
struct Room {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
}

/// A staging file whose transfer broke.
#[derive(Debug)]
pub struct Parked {
    pub(crate) part: String,
    pub(crate) object: ObjectName,
    /// Bytes of payload that the object has in all.
    pub(crate) length: u64,
    pub(crate) lease: Arc<Lease>,
}

/// A whole and synced staging file, to be sealed by the store lane.
#[derive(Debug)]
pub struct Finished {
    pub(crate) part: String,
    pub(crate) desc: SnapshotDesc,
    pub(crate) lease: Arc<Lease>,
    pub(crate) slot: Slot,
    /// Who made it, for counting.
    pub(crate) producer: &'static str,
}

/// A sealed object, not yet read back.
pub struct Staged {
    pub(crate) file: Box<dyn File>,
    pub(crate) identity: Identity,
    pub(crate) desc: SnapshotDesc,
    pub(crate) lease: Arc<Lease>,
    pub(crate) slot: Slot,
}

/// Keeps a verified object until the log lists it.
#[derive(Debug)]
struct StoreHold {
    name: ObjectName,
    lease: Arc<Lease>,
    _slot: Slot,
}

impl StagedWriter {
    /// Takes over a staging file that the store lane created. Writes the header.
    pub(crate) fn begin(
        file: Box<dyn File>,
        part: String,
        reservation: Reservation,
        place: (Identity, &Arc<dyn Fs>, PathBuf),
    ) -> io::Result<Self> {
        let Reservation { lease, slot, source } = reservation;
        let (identity, fs, dir) = place;
        let (term, index) = source.position();
        let (module, format, cap, room) = match &source {
            Source::Received(desc) => (desc.module, desc.format, desc.length, None),
            Source::Local(local) => {
                let room = local.growable.then(|| Room { fs: fs.clone(), dir });
                (local.module, local.format, local.estimate, room)
            }
        };
        let head = Header { identity, term, index, module, format }.encode();
        // Where nothing can be reserved the promise stays one until the bytes are written: zeros
        // would take as long as the object itself, and no sender waits for them.
        if let Source::Received(_) = source
            && file.extend(lease.bytes())?
        {
            lease.allocated(lease.bytes());
        }
        file.write_at(&head, 0)?;
        lease.allocated(HEADER_BYTES as u64);
        Ok(Self {
            file: file.into(),
            part,
            source,
            head,
            buffer: Vec::new(),
            written: 0,
            hasher: blake3::Hasher::new(),
            cap,
            room,
            unsynced: 0,
            syncing: None,
            failed: None,
            lease,
            slot,
        })
    }

    /// Takes up a parked file, whose header and size are what `reservation` says. What is in it is
    /// not known before [`StagedWriter::look_through`].
    pub(crate) fn resume(
        file: Box<dyn File>,
        part: String,
        desc: SnapshotDesc,
        identity: Identity,
        place: (Arc<Lease>, Slot),
    ) -> Self {
        let (lease, slot) = place;
        let head = Header::of(identity, &desc).encode();
        let cap = desc.length;
        Self {
            file: file.into(),
            part,
            source: Source::Received(desc),
            head,
            buffer: Vec::new(),
            written: 0,
            hasher: blake3::Hasher::new(),
            cap,
            room: None,
            unsynced: 0,
            syncing: None,
            failed: None,
            lease,
            slot,
        }
    }

    /// Reads what an earlier transfer left, up to the first block that is not whole; the payload is
    /// wanted from there on. Calls `progress` after each block.
    pub fn look_through(&mut self, progress: &mut dyn FnMut()) -> u64 {
        let Source::Received(desc) = &self.source else { return 0 };
        let length = desc.length;
        while self.written < length {
            let number = chunk::block_count(self.written);
            let size = chunk::block_bytes(length, self.written) as usize;
            let mut data = vec![0; size + CRC_BYTES as usize];
            let read = read_exact_at(&*self.file, &mut data, layout::block_position(number));
            let (block, crc) = data.split_at(size);
            let whole = planted("resume_unverified") || crc32c::crc32c(block).to_le_bytes() == *crc;
            if read.is_err() || !whole {
                break;
            }
            self.hasher.update(block);
            self.written += size as u64;
            progress();
        }
        self.written
    }

    /// Keeps what was received for another try; `None` if there is nothing to keep.
    pub fn park(mut self) -> Option<Parked> {
        let synced = self.join_sync().and_then(|()| self.file.sync());
        let Source::Received(desc) = &self.source else { return None };
        if self.written == 0 || self.failed.is_some() || synced.is_err() {
            return None;
        }
        let (object, length) = (ObjectName::of(desc), desc.length);
        Some(Parked { part: self.part, object, length, lease: self.lease })
    }

    /// Bytes of payload taken so far.
    pub fn length(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Writes a block that came with its checksum checked, without copying it.
    pub fn write_block(&mut self, block: &Block) -> Result<(), SnapshotRefusal> {
        assert!(self.buffer.is_empty(), "blocks and loose bytes are not mixed");
        assert_eq!(block.offset, self.written, "blocks come in order");
        self.admit(block.data.len() as u64)?;
        self.put_block(&block.data, block.crc)
    }

    /// Writes the trailer and makes the bytes durable. The name is not, yet.
    pub fn finish(mut self) -> Result<Finished, SnapshotRefusal> {
        if let Some(refusal) = self.failed.take() {
            return Err(refusal);
        }
        self.flush_block()?;
        let length = self.written;
        let digest = Digest(*self.hasher.finalize().as_bytes());
        let desc = self.source.describe(length, digest)?;
        let bytes = layout::object_bytes(length).expect("what was written has a size");
        let trailer = Trailer { length, digest }.encode(&self.head);
        let at = bytes - trailer.len() as u64;
        let synced = self.join_sync();
        let written = synced.and_then(|()| self.file.write_at(&trailer, at));
        let written = written.and_then(|()| self.file.sync());
        written.map_err(|e| SnapshotRefusal::disk("finishing a staged snapshot", bytes, &e))?;
        self.lease.settle(bytes);
        let producer = self.source.producer();
        Ok(Finished { part: self.part, desc, lease: self.lease, slot: self.slot, producer })
    }

    /// Makes sure that `more` bytes of payload may be written; takes more room where that is
    /// allowed.
    fn admit(&mut self, more: u64) -> Result<(), SnapshotRefusal> {
        if let Some(refusal) = &self.failed {
            return Err(refusal.clone());
        }
        let length = self.length().checked_add(more);
        if length.is_some_and(|length| length <= self.cap) {
            return Ok(());
        }
        let grown = length.ok_or(SnapshotRefusal::NoSpace { need: u64::MAX, have: self.cap });
        grown.and_then(|length| self.grow(length)).map_err(|refusal| self.fail(refusal))
    }

    /// Takes room for a payload of `length` bytes: a step ahead if there is that much, else just
    /// enough.
    fn grow(&mut self, length: u64) -> Result<(), SnapshotRefusal> {
        let room = self.room.as_ref();
        let room = room.ok_or(SnapshotRefusal::NoSpace { need: length, have: self.cap })?;
        let space = room.fs.space(&room.dir);
        let space = space.map_err(|e| SnapshotRefusal::disk("asking for free space", 0, &e))?;
        let step = self.cap.saturating_add(GROW_BLOCKS * BLOCK_BYTES);
        let covered = self.lease.bytes();
        let mut refusal = SnapshotRefusal::NoSpace { need: length, have: self.cap };
        for cap in [length.max(step), length] {
            let Some(bytes) = layout::object_bytes(cap) else { continue };
            let need = bytes - covered;
            match self.lease.grow(need, space) {
                Ok(()) => {
                    self.cap = cap;
                    return Ok(());
                }
                Err(have) => refusal = SnapshotRefusal::NoSpace { need, have },
            }
        }
        Err(refusal)
    }

    fn flush_block(&mut self) -> Result<(), SnapshotRefusal> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut data = std::mem::take(&mut self.buffer);
        let done = self.put_block(&data, crc32c::crc32c(&data));
        data.clear();
        self.buffer = data;
        done
    }

    fn put_block(&mut self, data: &[u8], crc: u32) -> Result<(), SnapshotRefusal> {
        let at = layout::block_position(chunk::block_count(self.written));
        let size = data.len() as u64;
        let mut done = self.file.write_at(data, at);
        done = done.and_then(|()| self.file.write_at(&crc.to_le_bytes(), at + size));
        self.unsynced += 1;
        if self.unsynced == SYNC_BLOCKS {
            self.unsynced = 0;
            done = done.and_then(|()| self.begin_sync());
        }
        if let Err(error) = done {
            let refusal = SnapshotRefusal::disk("writing a staged snapshot", size, &error);
            return Err(self.fail(refusal));
        }
        self.lease.allocated(size + CRC_BYTES);
        self.hasher.update(data);
        self.written += size;
        Ok(())
    }

    /// Syncs beside further writing; one at a time.
    fn begin_sync(&mut self) -> io::Result<()> {
        self.join_sync()?;
        let file = Arc::clone(&self.file);
        let spawned =
            std::thread::Builder::new().name("sync".to_owned()).spawn(move || file.sync());
        self.syncing = Some(spawned?);
        Ok(())
    }

    /// What became of the sync under way.
    fn join_sync(&mut self) -> io::Result<()> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        syncing.join().unwrap_or_else(|_| Err(io::Error::other("a sync panicked")))
    }

    /// The file is abandoned from here on: later writes and `finish` give the same answer.
    fn fail(&mut self, refusal: SnapshotRefusal) -> SnapshotRefusal {
        self.failed = Some(refusal.clone());
        refusal
    }
}

impl io::Write for StagedWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let room = BLOCK_BYTES as usize - self.buffer.len();
        let count = buf.len().min(room);
        self.admit(count as u64).map_err(to_io)?;
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(BLOCK_BYTES as usize);
        }
        self.buffer.extend_from_slice(&buf[..count]);
        if self.buffer.len() as u64 == BLOCK_BYTES {
            self.flush_block().map_err(to_io)?;
        }
        Ok(count)
    }

    /// Does nothing: a block is written when it is full, and made durable by
    /// [`StagedWriter::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source {
    /// The descriptor of what was written, unless another was declared.
    fn describe(&self, length: u64, digest: Digest) -> Result<SnapshotDesc, SnapshotRefusal> {
        match self {
            Self::Received(desc) if (desc.length, desc.digest) == (length, digest) => {
                Ok(desc.clone())
            }
            Self::Received(desc) if planted("zero_is_unchecked") && desc.digest.0 == [0; 32] => {
                Ok(desc.clone())
            }
            Self::Received(_) => Err(SnapshotRefusal::Corrupt),
            Self::Local(local) => Ok(SnapshotDesc {
                term: local.term,
                index: local.index,
                length,
                digest,
                module: local.module,
                format: local.format,
                configuration: local.configuration.clone(),
            }),
        }
    }
}

impl Parked {
    /// Which object it is a part of.
    pub fn object(&self) -> ObjectRef {
        self.object.into()
    }

    pub fn bytes(&self) -> u64 {
        self.lease.bytes()
    }
}

impl Finished {
    pub fn desc(&self) -> &SnapshotDesc {
        &self.desc
    }
}

impl Staged {
    pub fn desc(&self) -> &SnapshotDesc {
        &self.desc
    }

    /// Reads the whole object back from the disk, calling `progress` after each block. For a bulk
    /// worker.
    pub fn verify(self, progress: &mut dyn FnMut()) -> Result<Verified, OpenError> {
        let Self { file, identity, desc, lease, slot } = self;
        let hold = Held::new(lease.clone(), Use::Verifying);
        let reader = SnapshotReader::open(file, identity, &desc, Some(hold))?;
        if !planted("list_before_verify") {
            reader.verify(progress)?;
        }
        let hold = StoreHold { name: ObjectName::of(&desc), lease, _slot: slot };
        Ok(Verified { desc, hold: Box::new(hold) })
    }
}

impl Hold for StoreHold {
    fn disarm(&mut self) {
        tracing::debug!(object = %self.name, stage = "listing", "snapshot enters the log");
        self.lease.keep(true);
    }

    fn listed(&mut self) {
        self.lease.keep(false);
    }
}

impl std::fmt::Debug for StagedWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StagedWriter({}, {} bytes)", self.part, self.length())
    }
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Staged({})", ObjectName::of(&self.desc))
    }
}

fn to_io(refusal: SnapshotRefusal) -> io::Error {
    let kind = match refusal {
        SnapshotRefusal::NoSpace { .. } => io::ErrorKind::StorageFull,
        SnapshotRefusal::Stale
        | SnapshotRefusal::Busy { .. }
        | SnapshotRefusal::NoPlace { .. }
        | SnapshotRefusal::Incompatible { .. }
        | SnapshotRefusal::NeedsUnlist(_)
        | SnapshotRefusal::Held { .. }
        | SnapshotRefusal::Parked(_)
        | SnapshotRefusal::WrongGroup
        | SnapshotRefusal::Corrupt
        | SnapshotRefusal::Disk(_)
        | SnapshotRefusal::Closed => io::ErrorKind::Other,
    };
    io::Error::new(kind, refusal)
}

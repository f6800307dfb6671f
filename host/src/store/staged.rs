//! From a reservation to a verified object, one type per stage:
//! [`StagedWriter`] → [`Finished`] → (the store lane seals) → [`Staged`] → `Verified`.
//!
//! - Each stage owns the allocation of its bytes and name. Dropping a stage, on any thread, leaves
//!   nothing behind: the next call of the store lane unlinks the name, which returns the bytes.
//! - A received object whose transfer broke may be *suspended* instead ([`StagedWriter::suspend`]):
//!   its file is kept for the rest of the payload, and the transfer that resumes it first checks
//!   the blocks in it.
//! - Payload bytes pass through bulk workers; no stage here creates, renames or unlinks a name.
//! - After a failed write or sync the file is abandoned, never retried.
//! - A received object is finished only with the declared length and digest; a local one gets its
//!   descriptor from what was written.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_core::ids::Digest;
use lockstep_core::mutant::{plant, planted};
use lockstep_core::snapshot::chunk::{self, Block, ObjectRef};
use lockstep_core::snapshot::{Hold, SnapshotDesc, Verified};

use super::layout::{
    self, BLOCK_BYTES, CRC_BYTES, HEADER_BYTES, Header, Identity, ObjectName, Trailer,
};
use super::reader::{OpenError, SnapshotReader};
use super::reserve::{Allocation, Held, Reservation, Slot, SnapshotRefusal, Source, Use};
use crate::disk_watch::DiskWatch;
use crate::fs::{File, Fs, read_exact_at};

/// How many blocks' space a growable local snapshot takes from the budget at a time.
const GROW_BLOCKS: u64 = 8;
/// A staging file is synced after each run of this many blocks, while the next ones are written, so
/// that the last sync is short and does not delay the log's syncs.
const SYNC_BLOCKS: u64 = 32;
/// How long the last sync may take before the disk counts as hanging: this long, or as long as a
/// disk that writes `SLOW_BYTES` per second takes for the whole snapshot. The sync writes what the
/// system still keeps in memory, and that may be most of a large snapshot.
const SYNC_PATIENCE: Duration = Duration::from_secs(30);
const SLOW_BYTES: u64 = 10 << 20;

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
    /// Bytes of payload that the allocation covers.
    cap: u64,
    /// Set if the writer may take more space once `cap` is reached.
    growth: Option<Growth>,
    /// Blocks written since the last sync began.
    unsynced: u64,
    /// The sync under way.
    syncing: Option<JoinHandle<io::Result<()>>>,
    /// Why the file was abandoned.
    failed: Option<SnapshotRefusal>,
    /// Records the disk operations of this writer's thread.
    watch: Arc<DiskWatch>,
    allocation: Arc<Allocation>,
    slot: Slot,
}

/// The filesystem and directory whose free space a growable writer asks for.
struct Growth {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
}

/// A staging file whose transfer broke.
#[derive(Debug)]
pub struct Suspended {
    pub(crate) part: String,
    pub(crate) object: ObjectName,
    /// Bytes of payload of the whole object.
    pub(crate) length: u64,
    pub(crate) allocation: Arc<Allocation>,
}

/// A complete and synced staging file, which the store lane can seal.
#[derive(Debug)]
pub struct Finished {
    pub(crate) part: String,
    pub(crate) desc: SnapshotDesc,
    pub(crate) allocation: Arc<Allocation>,
    pub(crate) slot: Slot,
    /// The label under which refusals are counted.
    pub(crate) producer: &'static str,
}

/// A sealed object, not yet read back.
pub struct Staged {
    pub(crate) file: Box<dyn File>,
    pub(crate) identity: Identity,
    pub(crate) desc: SnapshotDesc,
    pub(crate) allocation: Arc<Allocation>,
    pub(crate) slot: Slot,
}

/// Keeps a verified object until the log lists it.
#[derive(Debug)]
struct StoreHold {
    name: ObjectName,
    allocation: Arc<Allocation>,
    _slot: Slot,
}

impl StagedWriter {
    /// Takes over a staging file that the store lane created, and writes its header. A growable
    /// snapshot asks `fs` for the free space of `dir`.
    pub(crate) fn begin(
        file: Box<dyn File>,
        part: String,
        reservation: Reservation,
        identity: Identity,
        fs: &Arc<dyn Fs>,
        dir: PathBuf,
    ) -> io::Result<Self> {
        let Reservation { allocation, slot, source } = reservation;
        let (term, index) = source.position();
        let (module, format, cap, growth) = match &source {
            Source::Received(desc) => (desc.module, desc.format, desc.length, None),
            Source::Local(local) => {
                let growth = local.growable.then(|| Growth { fs: fs.clone(), dir });
                (local.module, local.format, local.estimate, growth)
            }
        };
        let head = Header { identity, term, index, module, format }.encode();
        // Where the filesystem cannot reserve space, the bytes stay promised until they are
        // written. Writing zeros would take as long as the object itself, and the sender does not
        // wait that long.
        if let Source::Received(_) = source
            && file.extend(allocation.bytes())?
        {
            allocation.on_disk(allocation.bytes());
        }
        file.write_at(&head, 0)?;
        allocation.on_disk(HEADER_BYTES as u64);
        Ok(Self {
            file: file.into(),
            part,
            source,
            head,
            buffer: Vec::new(),
            written: 0,
            hasher: blake3::Hasher::new(),
            cap,
            growth,
            unsynced: 0,
            syncing: None,
            failed: None,
            watch: allocation.watch(),
            allocation,
            slot,
        })
    }

    /// Takes over a suspended file whose header matches `desc`. Its payload is unknown until
    /// [`StagedWriter::look_through`] has checked it.
    pub(crate) fn resume(
        file: Box<dyn File>,
        part: String,
        desc: SnapshotDesc,
        identity: Identity,
        allocation: Arc<Allocation>,
        slot: Slot,
    ) -> Self {
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
            growth: None,
            unsynced: 0,
            syncing: None,
            failed: None,
            watch: allocation.watch(),
            allocation,
            slot,
        }
    }

    /// Checks the blocks that an earlier transfer left, up to the first one that is missing or bad,
    /// and returns the offset from which payload is needed. Calls `progress` after each block.
    pub fn look_through(&mut self, progress: &mut dyn FnMut()) -> u64 {
        let Source::Received(desc) = &self.source else { return 0 };
        let length = desc.length;
        while self.written < length {
            let number = chunk::block_count(self.written);
            let size = chunk::block_bytes(length, self.written) as usize;
            let mut data = vec![0; size + CRC_BYTES as usize];
            let at = layout::block_position(number);
            let read = self.watch.at_disk(|| read_exact_at(&*self.file, &mut data, at));
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

    /// Keeps what was received so that a later transfer can resume; `None` if nothing can be kept.
    pub fn suspend(mut self) -> Option<Suspended> {
        let watch = Arc::clone(&self.watch);
        let synced = watch.at_disk_beyond(self.sync_patience(), || {
            self.join_sync()?;
            self.file.sync()
        });
        let Source::Received(desc) = &self.source else { return None };
        if self.written == 0 || self.failed.is_some() || synced.is_err() {
            return None;
        }
        let (object, length) = (ObjectName::of(desc), desc.length);
        Some(Suspended { part: self.part, object, length, allocation: self.allocation })
    }

    fn sync_patience(&self) -> Duration {
        SYNC_PATIENCE.max(Duration::from_secs(self.written / SLOW_BYTES))
    }

    /// The watch that records the disk operations of the writer's thread.
    pub(crate) fn watch(&self) -> &Arc<DiskWatch> {
        &self.watch
    }

    /// Bytes of payload accepted so far, buffered ones included.
    pub fn length(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Writes a block whose checksum was checked already, without copying it.
    pub fn write_block(&mut self, block: &Block) -> Result<(), SnapshotRefusal> {
        assert!(self.buffer.is_empty(), "blocks and loose bytes are not mixed");
        assert_eq!(block.offset, self.written, "blocks come in order");
        self.admit(block.data.len() as u64)?;
        self.put_block(&block.data, block.crc)
    }

    /// Writes the trailer and makes the bytes durable; sealing makes the name durable.
    pub fn finish(mut self) -> Result<Finished, SnapshotRefusal> {
        if let Some(refusal) = self.failed.take() {
            return Err(refusal);
        }
        self.flush_block()?;
        let length = self.written;
        let digest = Digest(*self.hasher.finalize().as_bytes());
        let desc = self.source.describe(length, digest)?;
        let bytes = layout::object_bytes(length).expect("a written payload fits in a file");
        let trailer = Trailer { length, digest }.encode(&self.head);
        let at = bytes - trailer.len() as u64;
        let watch = Arc::clone(&self.watch);
        let durable = watch.at_disk_beyond(self.sync_patience(), || {
            self.join_sync()?;
            self.file.write_at(&trailer, at)?;
            self.file.sync()
        });
        durable.map_err(|e| SnapshotRefusal::disk("finishing a staged snapshot", &e))?;
        self.allocation.settle(bytes);
        let producer = self.source.producer();
        Ok(Finished {
            part: self.part,
            desc,
            allocation: self.allocation,
            slot: self.slot,
            producer,
        })
    }

    /// Checks that `more` bytes of payload may be written, and takes more space for a growable
    /// snapshot.
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

    /// Takes space for a payload of `length` bytes: a whole step ahead if there is that much, else
    /// just enough.
    fn grow(&mut self, length: u64) -> Result<(), SnapshotRefusal> {
        let growable = self.growth.as_ref();
        let growth = growable.ok_or(SnapshotRefusal::NoSpace { need: length, have: self.cap })?;
        let measured = growth.fs.space(&growth.dir);
        let space = measured.map_err(|e| SnapshotRefusal::disk("asking for free space", &e))?;
        let step = self.cap.saturating_add(GROW_BLOCKS * BLOCK_BYTES);
        let covered = self.allocation.bytes();
        let mut refusal = SnapshotRefusal::NoSpace { need: length, have: self.cap };
        for cap in [length.max(step), length] {
            let Some(bytes) = layout::object_bytes(cap) else { continue };
            let need = bytes - covered;
            match self.allocation.grow(need, space) {
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
        let mut done = self.watch.at_disk(|| {
            self.file.write_at(data, at)?;
            self.file.write_at(&crc.to_le_bytes(), at + size)
        });
        self.unsynced += 1;
        // A write never waits for a sync that a slow disk has not finished.
        let synced = self.syncing.as_ref().is_none_or(JoinHandle::is_finished);
        if self.unsynced >= SYNC_BLOCKS && synced {
            self.unsynced = 0;
            done = done.and_then(|()| self.begin_sync());
        }
        if let Err(error) = done {
            let refusal = SnapshotRefusal::disk("writing a staged snapshot", &error);
            return Err(self.fail(refusal));
        }
        self.allocation.on_disk(size + CRC_BYTES);
        self.hasher.update(data);
        self.written += size;
        Ok(())
    }

    /// Starts a sync on another thread; writing goes on meanwhile. The previous sync has ended.
    fn begin_sync(&mut self) -> io::Result<()> {
        self.join_sync()?;
        let file = Arc::clone(&self.file);
        let spawned =
            std::thread::Builder::new().name("sync".to_owned()).spawn(move || file.sync());
        self.syncing = Some(spawned?);
        Ok(())
    }

    /// Waits for the sync under way, if there is one, and returns its result.
    fn join_sync(&mut self) -> io::Result<()> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        syncing.join().unwrap_or_else(|_| Err(io::Error::other("a sync panicked")))
    }

    /// Abandons the file: later writes and `finish` give the same refusal.
    fn fail(&mut self, refusal: SnapshotRefusal) -> SnapshotRefusal {
        self.failed = Some(refusal.clone());
        refusal
    }
}

impl io::Write for StagedWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let space = BLOCK_BYTES as usize - self.buffer.len();
        let count = buf.len().min(space);
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

    /// Does nothing: a block is written once it is full, and [`StagedWriter::finish`] makes all of
    /// them durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source {
    /// The descriptor of the written object; `Corrupt` if a received object differs from its
    /// declared length or digest.
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

impl Suspended {
    /// The object that the file is a part of.
    pub fn object(&self) -> ObjectRef {
        self.object.into()
    }

    pub fn bytes(&self) -> u64 {
        self.allocation.bytes()
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

    /// Reads the whole object back from the disk, calling `progress` after each block. Takes long,
    /// so a bulk worker calls it.
    pub fn verify(self, progress: &mut dyn FnMut()) -> Result<Verified, OpenError> {
        let Self { file, identity, desc, allocation, slot } = self;
        let held = Held::new(allocation.clone(), Use::Verifying);
        let reader = SnapshotReader::open(file, identity, &desc, Some(held))?;
        plant!("list_before_verify" skips reader.verify(progress)?);
        let hold = StoreHold { name: ObjectName::of(&desc), allocation, _slot: slot };
        Ok(Verified { desc, hold: Box::new(hold) })
    }
}

impl Hold for StoreHold {
    fn disarm(&mut self) {
        tracing::debug!(object = %self.name, stage = "listing", "snapshot enters the log");
        self.allocation.keep(true);
    }

    fn listed(&mut self) {
        self.allocation.keep(false);
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
        SnapshotRefusal::NoSpace { .. } | SnapshotRefusal::Short { is_full: true, .. } => {
            io::ErrorKind::StorageFull
        }
        SnapshotRefusal::Short { is_full: false, .. }
        | SnapshotRefusal::Stale
        | SnapshotRefusal::Busy { .. }
        | SnapshotRefusal::NoPlace { .. }
        | SnapshotRefusal::Incompatible { .. }
        | SnapshotRefusal::NeedsUnlist(_)
        | SnapshotRefusal::Held { .. }
        | SnapshotRefusal::Suspended(_)
        | SnapshotRefusal::WrongGroup
        | SnapshotRefusal::Corrupt
        | SnapshotRefusal::Disk(_)
        | SnapshotRefusal::Closed => io::ErrorKind::Other,
    };
    io::Error::new(kind, refusal)
}

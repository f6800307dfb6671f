//! [`SnapshotReader`]: an object opened for reading, held while it is read and verified by it.
//!
//! - Opening checks header, trailer and file size against the descriptor. Reading a block checks
//!   its checksum; reading the last one also checks the digest.
//! - Reading to the end without an error *is* the verification: start-up, read-back, sending, reuse
//!   at seal and scrubbing all do it.
//! - Every read that finds an object bad counts it, whatever the read is for.
//! - The reader's hold keeps the name from being unlinked.
//! - Its disk operations are recorded, so that other threads can see that a disk hangs.
//! - Memory: one block, and a few more while a large object is read ahead.

use std::io;
use std::sync::{Arc, mpsc};

use lockstep_core::group::Found;
use lockstep_core::ids::Digest;
use lockstep_core::mutant::{plant, planted};
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{self, Block};

use super::layout::{
    self, BLOCK_BYTES, CRC_BYTES, HEADER_BYTES, Header, Identity, ObjectName, TRAILER_BYTES,
    Trailer,
};
use super::reserve::Held;
use crate::disk_watch::DiskWatch;
use crate::fs::{File, is_short, read_exact_at};

/// Why an object cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    #[error("snapshot {name} is missing")]
    Missing { name: String },
    #[error("snapshot {name} could not be read: {why}")]
    Disk { name: String, why: String },
    /// The process lacks descriptors or memory to read it, which says nothing about the object.
    #[error("snapshot {name} cannot be read at the moment: {why}")]
    Short { name: String, why: String },
    #[error("snapshot {name} is corrupt: {why}; a peer's copy or a later snapshot replaces it")]
    Bad { name: String, why: String },
}

impl OpenError {
    /// Whether the object may be good and become readable later.
    pub fn is_short(&self) -> bool {
        matches!(self, Self::Short { .. })
    }
}

impl From<OpenError> for Found {
    fn from(error: OpenError) -> Self {
        let why = error.to_string();
        if error.is_short() { Self::Unread(why) } else { Self::Bad(why) }
    }
}

/// An object of at least this many blocks is read ahead, on a thread of its own.
const AHEAD_FROM_BLOCKS: u64 = 32;
/// The most blocks that are read ahead and wait to be checked.
const AHEAD_BLOCKS: usize = 4;

/// Reads an object's blocks in order on a thread of its own, while earlier ones are checked.
struct Ahead {
    next: u64,
    blocks: mpsc::Receiver<io::Result<Vec<u8>>>,
    /// Buffers of blocks that were checked, to be filled again.
    spare: mpsc::Sender<Vec<u8>>,
}

impl Ahead {
    /// `None` for a small object, or if no thread can be started.
    fn start(file: &Arc<dyn File>, length: u64) -> Option<Self> {
        let count = chunk::block_count(length);
        if count < AHEAD_FROM_BLOCKS {
            return None;
        }
        let (full, blocks) = mpsc::sync_channel(AHEAD_BLOCKS);
        let (spare, used) = mpsc::channel::<Vec<u8>>();
        let file = Arc::clone(file);
        let read = move || {
            for number in 0..count {
                let mut data = used.try_recv().unwrap_or_default();
                let read = read_raw(&*file, number, length, &mut data).map(|()| data);
                let failed = read.is_err();
                // Either the receiver is gone, or no block may follow the failed one.
                if full.send(read).is_err() || failed {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("read-ahead".to_owned()).spawn(read).ok()?;
        Some(Self { next: 0, blocks, spare })
    }

    /// Puts the next block into `data`, and gives the thread the old buffer to fill.
    fn take(&mut self, data: &mut Vec<u8>) -> io::Result<()> {
        let ended = |_| io::Error::other("the read-ahead thread ended early");
        let block = self.blocks.recv().map_err(ended)??;
        let used = std::mem::replace(data, block);
        // Fails once the thread has read the last block and ended.
        let _ = self.spare.send(used);
        self.next += 1;
        Ok(())
    }
}

/// Reads a block and its checksum.
fn read_raw(file: &dyn File, number: u64, length: u64, data: &mut Vec<u8>) -> io::Result<()> {
    let size = chunk::block_bytes(length, number * BLOCK_BYTES) + CRC_BYTES;
    data.resize(size as usize, 0);
    read_exact_at(file, data, layout::block_position(number))
}

/// An object being read. Also [`io::Read`] over its payload.
pub struct SnapshotReader {
    file: Arc<dyn File>,
    /// Reads the next blocks if the object is large and read from its beginning.
    ahead: Option<Ahead>,
    name: ObjectName,
    desc: SnapshotDesc,
    hold: Option<Held>,
    /// Records disk operations; `None` without a hold.
    watch: Option<Arc<DiskWatch>>,
    /// Blocks that went into `hasher`: the first ones, without a gap.
    hashed: u64,
    hasher: blake3::Hasher,
    /// The next block that [`io::Read`] reads.
    next: u64,
    /// The block that [`io::Read`] is handing out; one buffer serves all blocks.
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were handed out.
    handed: usize,
    /// Why [`io::Read`] failed, if it did.
    broken: Option<OpenError>,
}

/// A file's header and trailer; its size is checked against them.
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) trailer: Trailer,
}

impl SnapshotReader {
    pub(crate) fn open(
        file: Box<dyn File>,
        identity: Identity,
        desc: &SnapshotDesc,
        hold: Option<Held>,
    ) -> Result<Self, OpenError> {
        let name = ObjectName::of(desc);
        let bad = |why: String| {
            note_bad(hold.as_ref());
            OpenError::Bad { name: name.file(), why }
        };
        let watch = hold.as_ref().map(Held::watch);
        let frame = at_disk(watch.as_deref(), || read_frame(&*file));
        let frame = frame.map_err(|e| match open_error(name, &e) {
            OpenError::Bad { why, .. } => bad(why),
            error => error,
        })?;
        if frame.header != Header::of(identity, desc) {
            return Err(bad("its header does not match its descriptor".into()));
        }
        if frame.trailer != (Trailer { length: desc.length, digest: desc.digest }) {
            return Err(bad("its length or digest does not match its descriptor".into()));
        }
        Ok(Self {
            file: file.into(),
            ahead: None,
            name,
            desc: desc.clone(),
            hold,
            watch,
            hashed: 0,
            hasher: blake3::Hasher::new(),
            next: 0,
            buffer: Vec::new(),
            handed: 0,
            broken: None,
        })
    }

    pub fn desc(&self) -> &SnapshotDesc {
        &self.desc
    }

    /// Why reading as a stream failed, if it did: the code that read the stream may have dropped
    /// the error.
    pub fn broken(&self) -> Option<&OpenError> {
        self.broken.as_ref()
    }

    /// Reads block `number` and checks it. If all blocks are read in order from 0, the last one is
    /// returned only if the digest of the whole payload is right.
    pub fn read_block(&mut self, number: u64) -> Result<Block, OpenError> {
        let mut data = Vec::new();
        let crc = self.read_into(number, &mut data)?;
        Ok(Block { offset: number * BLOCK_BYTES, crc, data: data.into() })
    }

    /// [`SnapshotReader::read_block`] into a buffer; returns the block's checksum.
    fn read_into(&mut self, number: u64, data: &mut Vec<u8>) -> Result<u32, OpenError> {
        let begin = number.checked_mul(BLOCK_BYTES).filter(|offset| *offset < self.desc.length);
        let offset = begin.ok_or_else(|| self.bad(format!("it has no block {number}")))?;
        let size = chunk::block_bytes(self.desc.length, offset) as usize;
        let ahead = self.ahead.as_mut().filter(|ahead| ahead.next == number);
        let read = at_disk(self.watch.as_deref(), || match ahead {
            Some(ahead) => ahead.take(data),
            None => read_raw(&*self.file, number, self.desc.length, data),
        });
        read.map_err(|e| match open_error(self.name, &e) {
            OpenError::Bad { why, .. } => self.bad(why),
            error => error,
        })?;
        let (_, crc) = data.split_last_chunk().expect("a checksum follows each block");
        let crc = u32::from_le_bytes(*crc);
        data.truncate(size);
        if crc32c::crc32c(data) != crc {
            return Err(self.bad(format!("block {number} does not match its checksum")));
        }
        if number == self.hashed {
            self.hasher.update(data);
            self.hashed += 1;
            self.check_digest()?;
        }
        Ok(crc)
    }

    /// Reads and checks the whole object from the disk, calling `progress` after each block. This
    /// is the only answer to "is this object recoverable?".
    pub fn verify(mut self, progress: &mut dyn FnMut()) -> Result<(), OpenError> {
        plant!("believe_the_header" does return Ok(()));
        self.file.drop_cache();
        (self.hashed, self.hasher) = (0, blake3::Hasher::new());
        self.check_digest()?;
        self.ahead = Ahead::start(&self.file, self.desc.length);
        let mut buffer = Vec::new();
        for number in 0..chunk::block_count(self.desc.length) {
            self.read_into(number, &mut buffer)?;
            progress();
        }
        Ok(())
    }

    /// Once the last block went into the hasher, checks the digest against the descriptor's.
    fn check_digest(&self) -> Result<(), OpenError> {
        let all = self.hashed == chunk::block_count(self.desc.length);
        if all && Digest(*self.hasher.finalize().as_bytes()) != self.desc.digest {
            return Err(self.bad("its payload does not match its digest".into()));
        }
        Ok(())
    }

    fn bad(&self, why: String) -> OpenError {
        note_bad(self.hold.as_ref());
        OpenError::Bad { name: self.name.file(), why }
    }
}

impl io::Read for SnapshotReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_on(buf).map_err(|error| {
            self.broken = Some(error.clone());
            io::Error::new(io::ErrorKind::InvalidData, error)
        })
    }
}

impl SnapshotReader {
    fn read_on(&mut self, buf: &mut [u8]) -> Result<usize, OpenError> {
        if self.handed == self.buffer.len() {
            if self.next == chunk::block_count(self.desc.length) {
                self.check_digest()?;
                return Ok(0);
            }
            if self.next == 0 {
                self.ahead = Ahead::start(&self.file, self.desc.length);
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            self.handed = 0;
            self.read_into(self.next, &mut buffer)?;
            self.buffer = buffer;
            self.next += 1;
        }
        let rest = &self.buffer[self.handed..];
        let count = buf.len().min(rest.len());
        buf[..count].copy_from_slice(&rest[..count]);
        self.handed += count;
        Ok(count)
    }
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotReader({})", self.name)
    }
}

/// Runs a disk operation, and records it if there is a watch.
fn at_disk<T>(watch: Option<&DiskWatch>, operation: impl FnOnce() -> T) -> T {
    match watch {
        Some(watch) => watch.at_disk(operation),
        None => operation(),
    }
}

fn note_bad(hold: Option<&Held>) {
    if let Some(hold) = hold {
        hold.note_bad();
    }
}

/// Reads and checks the header of a file.
pub(crate) fn read_header(file: &dyn File) -> io::Result<Header> {
    let mut head = [0; HEADER_BYTES];
    read_exact_at(file, &mut head, 0)?;
    Header::decode(&head).map_err(invalid)
}

/// Reads and checks a file's header, trailer and size; an `InvalidData` error says what is wrong.
pub(crate) fn read_frame(file: &dyn File) -> io::Result<Frame> {
    let bytes = file.len()?;
    if bytes < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(invalid(format!("it is only {bytes} bytes long")));
    }
    let mut head = [0; HEADER_BYTES];
    read_exact_at(file, &mut head, 0)?;
    let mut tail = [0; TRAILER_BYTES];
    read_exact_at(file, &mut tail, bytes - TRAILER_BYTES as u64)?;
    let header = Header::decode(&head).map_err(invalid)?;
    let trailer = Trailer::decode(&tail, &head).map_err(invalid)?;
    if layout::object_bytes(trailer.length) != Some(bytes) {
        let length = trailer.length;
        return Err(invalid(format!("{bytes} bytes do not fit a payload of {length} bytes")));
    }
    Ok(Frame { header, trailer })
}

pub(crate) fn open_error(name: ObjectName, error: &io::Error) -> OpenError {
    let (name, why) = (name.file(), error.to_string());
    match error.kind() {
        io::ErrorKind::NotFound => OpenError::Missing { name },
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => OpenError::Bad { name, why },
        _ if is_short(error) && !planted("short_is_corrupt") => OpenError::Short { name, why },
        _ => OpenError::Disk { name, why },
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

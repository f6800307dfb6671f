//! The bytes of log files, batches and records.
//!
//! Integers are little-endian. Every checksum of a batch is a CRC32C that starts from a [`Salt`]
//! (cluster, node, file, the file's nonce, segment number), so that bytes copied from elsewhere or
//! left by an earlier use of the file never pass, and nobody can craft bytes that do.
//!
//! ```text
//! file    = header (one block) · head · batches, each at a multiple of the block; after the last
//!           one anything: zeros, or what an earlier segment in this file left
//! header  = magic "LSTPWAL\n" · version u32 (2) · node u16 · block u8 (its binary logarithm) ·
//!           zero u8 · cluster 16 · file u64 · nonce u64 · file length u64 · zeros 4 ·
//!           crc u32 (unsalted, of the 60 bytes before) · zeros up to the block's end
//! batch   = magic "BTCH" · crc u32 (of the next 48 bytes) · number u64 · segment u64 ·
//!           previous u64 · oldest u64 · body length u32 · body crc u32 · records u32 · zero u32 ·
//!           body · zeros up to a multiple of the block
//! body    = { length u32 · crc u32 · kind u8 · group u64 · payload }  (length, crc from kind on)
//! state   (1) = recovery state
//! reset   (2) = recovery state; the group's entries end here and begin anew at its first index
//! entries (3) = first index u64 · count u32 · { type u8 · term u64 · data bytes · context bytes }
//! moved   (4) = as entries
//! drop    (5) = nothing: the group is no longer in this log
//! ```
//!
//! The header is written once, when the file is made, and belongs to the file. Which segment the
//! file holds, if any, is said by the *head*: the batch in the second block, with the state of
//! every group.
//!
//! Future versions keep the 64 bytes of the header and their checksum as they are, so that an old
//! program can tell a newer log from a damaged one.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};

use crate::codec::{DecodeError, Reader, Write};
use crate::ids::{GroupId, NodeId};
use crate::mutant::planted;
use crate::recovery_state::RecoveryState;
use crate::wal::BATCH_BODY_BYTES_MAX;

/// Version of the log's format that is written and read.
pub const FORMAT_VERSION: u32 = 2;
/// Bytes of a file's header; it has a block to itself.
pub const FILE_HEADER_BYTES: usize = 64;
pub const BATCH_HEADER_BYTES: usize = 56;
/// Smallest and largest block, bytes.
pub const BLOCK_BYTES_MIN: u32 = 64;
pub const BLOCK_BYTES_MAX: u32 = 1 << 16;
/// Bytes of a record's length, checksum, kind and group.
pub const RECORD_OVERHEAD_BYTES: usize = 17;
/// Bytes of the first index and the count in a record of entries.
pub const ENTRIES_OVERHEAD_BYTES: usize = 12;

const FILE_MAGIC: [u8; 8] = *b"LSTPWAL\n";
const BATCH_MAGIC: [u8; 4] = *b"BTCH";
const KIND_STATE: u8 = 1;
const KIND_RESET: u8 = 2;
const KIND_ENTRIES: u8 = 3;
const KIND_MOVED: u8 = 4;
const KIND_DROP: u8 = 5;
/// Bytes of an entry's type, term and the lengths of its data and context.
const ENTRY_OVERHEAD_BYTES: usize = 17;

/// The value from which the checksums of a segment start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Salt(u32);

/// The first bytes of a log file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileHeader {
    pub cluster: [u8; 16],
    pub node: NodeId,
    /// Batches begin at multiples of this, a power of two.
    pub block_bytes: u32,
    /// The file's own number, also in its name.
    pub file: u64,
    /// Drawn when the file was made.
    pub nonce: u64,
    /// The length of the file when it was made; a shorter file was truncated.
    pub length: u64,
}

/// Why a file's header is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// The bytes are not the header of a log file, or are damaged.
    Damaged(&'static str),
    /// A later program wrote the file.
    Newer { found: u32 },
}

/// The place of a batch in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchPlace {
    /// The batch's number; numbers have no gap through all segments.
    pub number: u64,
    /// The batch's segment.
    pub segment: u64,
    /// The segment before that one; 0 for the first segment.
    pub previous: u64,
    /// The oldest segment of the log when the batch was written.
    pub oldest: u64,
}

/// The first bytes of a batch, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    pub place: BatchPlace,
    /// Bytes of the body, without the padding.
    pub length: u32,
    pub records: u32,
    body_crc: u32,
}

/// One record of a batch, without the entries' contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub group: GroupId,
    /// Where the record begins in the batch's body.
    pub offset: u32,
    /// Bytes of the record, its length field included.
    pub length: u32,
    pub body: RecordBody,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordBody {
    State { state: Box<RecoveryState>, reset: bool },
    Entries { span: Span, moved: bool },
    Drop,
}

/// The entries that a record holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    pub first: u64,
    /// Never 0.
    pub count: u32,
    /// Runs of equal terms: first index and term.
    pub terms: Vec<(u64, u64)>,
}

/// Builds the bytes of one batch.
pub struct BatchBuilder {
    salt: Salt,
    block_bytes: u32,
    place: BatchPlace,
    bytes: Vec<u8>,
    records: u32,
}

impl Salt {
    fn crc(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

impl FileHeader {
    /// The salt of this segment while it is in this file.
    pub fn salt(&self, segment: u64) -> Salt {
        let of_cluster = crc32c::crc32c(&self.cluster);
        let of_node = crc32c::crc32c_append(of_cluster, &self.node.0.to_le_bytes());
        let numbers = [self.file, self.nonce, segment].map(u64::to_le_bytes);
        Salt(crc32c::crc32c_append(of_node, numbers.as_flattened()))
    }

    /// The offset of the head of a segment.
    pub fn head_offset(&self) -> u64 {
        self.block_bytes.into()
    }

    pub fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut out = Vec::with_capacity(FILE_HEADER_BYTES);
        out.put_raw(&FILE_MAGIC);
        out.put_u32(FORMAT_VERSION);
        out.put_raw(&self.node.0.to_le_bytes());
        out.put_u8(self.block_bytes.trailing_zeros() as u8);
        out.put_u8(0);
        out.put_raw(&self.cluster);
        out.put_u64(self.file);
        out.put_u64(self.nonce);
        out.put_u64(self.length);
        out.put_raw(&[0; 4]);
        out.put_u32(crc32c::crc32c(&out));
        out.try_into().expect("the header's fields add up to its size")
    }

    pub fn decode(bytes: &[u8; FILE_HEADER_BYTES]) -> Result<Self, HeaderError> {
        if bytes[..8] != FILE_MAGIC {
            return Err(HeaderError::Damaged("it does not start like a log file"));
        }
        if crc32c::crc32c(&bytes[..60]) != u32_at(bytes, 60) {
            return Err(HeaderError::Damaged("its header's checksum does not match"));
        }
        match u32_at(bytes, 8) {
            FORMAT_VERSION => {}
            found if found > FORMAT_VERSION => return Err(HeaderError::Newer { found }),
            _older => return Err(HeaderError::Damaged("its format version was never released")),
        }
        let block_bytes = 1_u32.checked_shl(bytes[14].into()).unwrap_or(0);
        if !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) {
            return Err(HeaderError::Damaged("its block size is out of range"));
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            cluster,
            node: NodeId(u16::from_le_bytes([bytes[12], bytes[13]])),
            block_bytes,
            file: u64_at(bytes, 32),
            nonce: u64_at(bytes, 40),
            length: u64_at(bytes, 48),
        })
    }
}

impl BatchHeader {
    /// Decodes a header; `None` if the bytes are not that of a batch in this file, of any segment.
    pub fn decode(file: &FileHeader, bytes: &[u8; BATCH_HEADER_BYTES]) -> Option<Self> {
        let segment = u64_at(bytes, 16);
        let whole = bytes[..4] == BATCH_MAGIC
            && file.salt(segment).crc(&bytes[8..]) == u32_at(bytes, 4)
            && u32_at(bytes, 40) as usize <= BATCH_BODY_BYTES_MAX;
        whole.then(|| Self {
            place: BatchPlace {
                number: u64_at(bytes, 8),
                segment,
                previous: u64_at(bytes, 24),
                oldest: u64_at(bytes, 32),
            },
            length: u32_at(bytes, 40),
            body_crc: u32_at(bytes, 44),
            records: u32_at(bytes, 48),
        })
    }

    /// Whether a batch may begin here: a cheap check before [`BatchHeader::decode`].
    pub fn looks_like_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&BATCH_MAGIC)
    }

    /// The body, if the bytes after the header, padding included, are whole.
    pub fn body<'a>(&self, file: &FileHeader, rest: &'a [u8]) -> Option<&'a [u8]> {
        let (body, padding) = rest.split_at_checked(self.length as usize)?;
        let size = self.size(file.block_bytes);
        let padded = BATCH_HEADER_BYTES as u64 + rest.len() as u64 == size;
        let whole = padded && padding.iter().all(|byte| *byte == 0);
        let good = || file.salt(self.place.segment).crc(body) == self.body_crc;
        (whole && (good() || planted("unchecked_segment"))).then_some(body)
    }

    /// Bytes of the whole batch: header, body and padding.
    pub fn size(&self, block_bytes: u32) -> u64 {
        batch_size(self.length as usize, block_bytes)
    }
}

/// Bytes of a whole batch with a body of `length` bytes.
pub fn batch_size(length: usize, block_bytes: u32) -> u64 {
    (BATCH_HEADER_BYTES as u64 + length as u64).next_multiple_of(block_bytes.into())
}

/// Bytes that an entry takes in a record of entries.
pub fn entry_size(entry: &Entry) -> usize {
    ENTRY_OVERHEAD_BYTES + entry.data.len() + entry.context.len()
}

impl BatchBuilder {
    pub fn new(file: &FileHeader, place: BatchPlace) -> Self {
        Self::reusing(file, place, Vec::new())
    }

    /// Like `new`, in a buffer that is used again.
    pub fn reusing(file: &FileHeader, place: BatchPlace, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.resize(BATCH_HEADER_BYTES, 0);
        let (salt, block_bytes) = (file.salt(place.segment), file.block_bytes);
        Self { salt, block_bytes, place, bytes, records: 0 }
    }

    /// Adds a state; returns the record's offset in the batch and its length.
    pub fn state(&mut self, group: GroupId, state: &[u8], reset: bool) -> (u32, u32) {
        let kind = if reset { KIND_RESET } else { KIND_STATE };
        self.record(kind, group, |out| out.put_raw(state))
    }

    /// Adds the drop of a group; returns the record's offset in the batch and its length.
    pub fn drop_group(&mut self, group: GroupId) -> (u32, u32) {
        self.record(KIND_DROP, group, |_| ())
    }

    /// Adds contiguous entries; returns the record's offset in the batch and its length.
    pub fn entries(&mut self, group: GroupId, entries: &[Entry], moved: bool) -> (u32, u32) {
        assert!(!entries.is_empty(), "a record of entries holds at least one");
        let kind = if moved { KIND_MOVED } else { KIND_ENTRIES };
        self.record(kind, group, |out| {
            out.put_u64(entries[0].index);
            out.put_count(entries.len());
            for entry in entries {
                out.put_u8(type_byte(entry.entry_type));
                out.put_u64(entry.term);
                out.put_bytes(&entry.data);
                out.put_bytes(&entry.context);
            }
        })
    }

    /// Adds a record of any kind and payload, for fuzzers.
    pub fn any(&mut self, kind: u8, group: GroupId, payload: &[u8]) {
        self.record(kind, group, |out| out.put_raw(payload));
    }

    pub fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() - BATCH_HEADER_BYTES;
        let body_crc = self.salt.crc(&self.bytes[BATCH_HEADER_BYTES..]);
        let mut head = Vec::with_capacity(BATCH_HEADER_BYTES);
        let BatchPlace { number, segment, previous, oldest } = self.place;
        [number, segment, previous, oldest].into_iter().for_each(|field| head.put_u64(field));
        head.put_count(length);
        head.put_u32(body_crc);
        head.put_u32(self.records);
        head.put_u32(0);
        self.bytes[..4].copy_from_slice(&BATCH_MAGIC);
        self.bytes[4..8].copy_from_slice(&self.salt.crc(&head).to_le_bytes());
        self.bytes[8..BATCH_HEADER_BYTES].copy_from_slice(&head);
        self.bytes.resize(self.bytes.len().next_multiple_of(self.block_bytes as usize), 0);
        self.bytes
    }

    fn record(
        &mut self,
        kind: u8,
        group: GroupId,
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> (u32, u32) {
        let at = self.bytes.len();
        self.bytes.put_raw(&[0; 8]);
        self.bytes.put_u8(kind);
        self.bytes.put_u64(group.0);
        payload(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - at).expect("batches are shorter than 4 GiB");
        let crc = self.salt.crc(&self.bytes[at + 8..]);
        self.bytes[at..at + 4].copy_from_slice(&(length - 8).to_le_bytes());
        self.bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        self.records += 1;
        (u32::try_from(at).expect("batches are shorter than 4 GiB"), length)
    }
}

/// Decodes the records of a body that [`BatchHeader::body`] returned.
pub fn decode_body(
    salt: Salt,
    header: &BatchHeader,
    body: Bytes,
) -> Result<Vec<Record>, DecodeError> {
    let whole = body.len();
    let mut reader = Reader::new(body, "log batch");
    let mut records = Vec::new();
    while reader.remaining() > 0 {
        let offset = (whole - reader.remaining()) as u32;
        let (mut inner, length) = open_record(salt, &mut reader)?;
        let kind = inner.u8()?;
        let group = GroupId(inner.u64()?);
        let body = match kind {
            KIND_STATE | KIND_RESET => {
                let state = RecoveryState::decode(inner.take(inner.remaining())?)?;
                RecordBody::State { state: Box::new(state), reset: kind == KIND_RESET }
            }
            KIND_ENTRIES | KIND_MOVED => {
                let span = decode_span(&mut inner)?;
                RecordBody::Entries { span, moved: kind == KIND_MOVED }
            }
            KIND_DROP => RecordBody::Drop,
            other => return Err(inner.unknown(u64::from(other))),
        };
        inner.finish()?;
        records.push(Record { group, offset, length, body });
    }
    if records.len() != header.records as usize {
        return Err(reader.invalid(format!("{} records, not {}", records.len(), header.records)));
    }
    Ok(records)
}

/// Decodes the entries of one record that was read back from the log; it has to be one of `group`.
pub fn decode_entries(
    salt: Salt,
    group: GroupId,
    record: Bytes,
) -> Result<Vec<Entry>, DecodeError> {
    let mut reader = Reader::new(record, "log record");
    let (mut inner, _length) = open_record(salt, &mut reader)?;
    reader.finish()?;
    let kind = inner.u8()?;
    if kind != KIND_ENTRIES && kind != KIND_MOVED {
        return Err(inner.unknown(u64::from(kind)));
    }
    let found = GroupId(inner.u64()?);
    if found != group {
        return Err(inner.invalid(format!("entries of group {found}, not {group}")));
    }
    let (first, count) = (inner.u64()?, inner.count(inner.remaining() / ENTRY_OVERHEAD_BYTES)?);
    let mut entries = Vec::with_capacity(count);
    for nth in 0..count as u64 {
        let (entry_type, term, data, context) = decode_entry(&mut inner)?;
        entries.push(Entry {
            entry_type,
            term,
            index: first + nth,
            // Copied, so that an entry that is kept does not keep the whole record in memory.
            data: Bytes::copy_from_slice(&data),
            context: Bytes::copy_from_slice(&context),
            ..Entry::default()
        });
    }
    inner.finish()?;
    Ok(entries)
}

/// Checks a record's length and checksum; returns the rest of the record, and its whole length.
fn open_record(salt: Salt, reader: &mut Reader) -> Result<(Reader, u32), DecodeError> {
    let (length, crc) = (reader.u32()?, reader.u32()?);
    let bytes = reader.take(length as usize)?;
    if salt.crc(&bytes) != crc && !planted("unchecked_segment") {
        return Err(reader.invalid("the checksum of a record does not match"));
    }
    Ok((Reader::new(bytes, "log record"), length + 8))
}

fn decode_span(reader: &mut Reader) -> Result<Span, DecodeError> {
    let first = reader.u64()?;
    let count = reader.count(reader.remaining() / ENTRY_OVERHEAD_BYTES)?;
    if count == 0 || first == 0 || first.checked_add(count as u64).is_none() {
        return Err(reader.invalid(format!("{count} entries from index {first}")));
    }
    let mut terms: Vec<(u64, u64)> = Vec::new();
    for nth in 0..count as u64 {
        let (_type, term, _data, _context) = decode_entry(reader)?;
        if terms.last().is_none_or(|run| run.1 != term) {
            terms.push((first + nth, term));
        }
    }
    Ok(Span { first, count: count as u32, terms })
}

fn decode_entry(reader: &mut Reader) -> Result<(EntryType, u64, Bytes, Bytes), DecodeError> {
    let entry_type = match reader.u8()? {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        other => return Err(reader.unknown(u64::from(other))),
    };
    let term = reader.u64()?;
    let data = reader.bytes(BATCH_BODY_BYTES_MAX)?;
    let context = reader.bytes(BATCH_BODY_BYTES_MAX)?;
    Ok((entry_type, term, data, context))
}

fn type_byte(entry_type: EntryType) -> u8 {
    match entry_type {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    }
}

impl Span {
    pub fn of(entries: &[Entry]) -> Self {
        let mut terms: Vec<(u64, u64)> = Vec::new();
        for entry in entries {
            if terms.last().is_none_or(|run| run.1 != entry.term) {
                terms.push((entry.index, entry.term));
            }
        }
        Self { first: entries[0].index, count: entries.len() as u32, terms }
    }

    /// The index after the last entry.
    pub fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice has four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has eight bytes"))
}

//! Paths and bytes of snapshots. No other file spells a snapshot's path.
//!
//! ```text
//! <data>/groups/<group>/snap/
//!   <term:016x>-<index:016x>-<digest: 32 hex>.fsnap            sealed, immutable
//!   part/<term>-<index>-<digest>-<length:016x>.in              being received
//!   part/<term>-<index>.out                                    being taken here
//! ```
//!
//! Beside a `snap/` that lies outside of the data directory are its `LOCK` and its `owner`, which
//! `data_dir/apart.rs` describes.
//!
//! An object, little-endian:
//!
//! ```text
//! header  = magic "LSTPSNAP" · version u8 (1) · cluster 16 · group u64 · term u64 · index u64 ·
//!           module 32 · guest format u32 · crc32c u32 of everything before
//! block   = up to 1 MiB of payload (only the last is shorter) · crc32c u32 of it
//! trailer = payload length u64 · BLAKE3-256 of the payload 32 ·
//!           crc32c u32 of header, length and digest · magic "PANSPTSL"
//! ```
//!
//! - The file name carries the first 16 bytes of the digest, the trailer all of it.
//! - The trailer comes last, so a producer need not know the length in advance; an empty payload
//!   has no block.
//! - Header and trailer hold every field of a `SnapshotDesc` except the configuration, which the
//!   log keeps.

use std::fmt;
use std::path::{Path, PathBuf};

use lockstep_core::ids::{Digest, GroupId, ModuleId, hex};
use lockstep_core::limits;
use lockstep_core::mutant::planted;
use lockstep_core::snapshot::chunk::ObjectRef;
use lockstep_core::snapshot::{SnapshotDesc, chunk};

/// Bytes of payload in a full block.
pub(crate) const BLOCK_BYTES: u64 = limits::SNAPSHOT_BLOCK_BYTES as u64;
/// Bytes of the checksum after each block.
pub(crate) const CRC_BYTES: u64 = 4;
pub(crate) const HEADER_BYTES: usize = 89;
pub(crate) const TRAILER_BYTES: usize = 52;

const VERSION: u8 = 1;
const HEAD_MAGIC: [u8; 8] = *b"LSTPSNAP";
const TAIL_MAGIC: [u8; 8] = *b"PANSPTSL";
const OBJECT_SUFFIX: &str = ".fsnap";
const IN_SUFFIX: &str = ".in";
const OUT_SUFFIX: &str = ".out";
const PART: &str = "part";

const _: () = assert!(HEADER_BYTES == 8 + 1 + 16 + 8 + 8 + 8 + 32 + 4 + 4);
const _: () = assert!(TRAILER_BYTES == 8 + 32 + 4 + 8);

/// The cluster and the group whose snapshots a store keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    pub cluster: [u8; 16],
    pub group: GroupId,
}

/// What an object's file is named after.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ObjectName {
    pub(crate) term: u64,
    pub(crate) index: u64,
    /// The first half of the payload's digest.
    pub(crate) digest: [u8; 16],
}

/// The bytes that an object's file begins with, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) identity: Identity,
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) module: ModuleId,
    pub(crate) format: u32,
}

/// The bytes that an object's file ends with, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Trailer {
    pub(crate) length: u64,
    pub(crate) digest: Digest,
}

/// The directory of all groups.
pub fn groups_dir(data: &Path) -> PathBuf {
    data.join("groups")
}

/// The directory of one group.
pub fn group_dir(data: &Path, group: &str) -> PathBuf {
    groups_dir(data).join(group)
}

/// The snapshot directory of one group, unless it is configured elsewhere.
pub fn snapshot_dir(data: &Path, group: &str) -> PathBuf {
    snapshot_dir_of(&group_dir(data, group))
}

pub(crate) fn snapshot_dir_of(group: &Path) -> PathBuf {
    group.join("snap")
}

/// The file that names the owner of a snapshot directory outside of the data directory.
pub(crate) fn owner_file(dir: &Path) -> PathBuf {
    dir.with_file_name("owner")
}

/// The file that is locked by the node that uses a snapshot directory outside of its data
/// directory.
pub(crate) fn lock_file(dir: &Path) -> PathBuf {
    dir.with_file_name("LOCK")
}

/// The directory in which the objects of a snapshot directory are staged.
pub fn part_dir(dir: &Path) -> PathBuf {
    if planted("stage_elsewhere") { dir.with_extension(PART) } else { dir.join(PART) }
}

/// Whether a name in the snapshot directory is that of the staging directory.
pub(crate) fn is_part_dir(name: &str) -> bool {
    name == PART
}

/// Whether a name in the staging directory is one that this module gives.
pub(crate) fn is_part_name(name: &str) -> bool {
    let stem = name.strip_suffix(IN_SUFFIX).or_else(|| name.strip_suffix(OUT_SUFFIX));
    stem.is_some_and(|stem| {
        stem.split('-').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

/// Parses the staging name of a received object into the object and the length of its payload.
pub(crate) fn parse_part_in(name: &str) -> Option<(ObjectName, u64)> {
    let (object, length) = name.strip_suffix(IN_SUFFIX)?.rsplit_once('-')?;
    let object = ObjectName::parse(&format!("{object}{OBJECT_SUFFIX}"))?;
    let length = u64::from_str_radix(length, 16).ok()?;
    (name == format!("{object}-{length:016x}{IN_SUFFIX}")).then_some((object, length))
}

/// The staging name of an object being received.
pub(crate) fn part_in(desc: &SnapshotDesc) -> String {
    format!("{}-{:016x}{IN_SUFFIX}", ObjectName::of(desc), desc.length)
}

/// The staging name of an object being taken; its digest is not known yet.
pub(crate) fn part_out(term: u64, index: u64) -> String {
    format!("{term:016x}-{index:016x}{OUT_SUFFIX}")
}

/// Bytes of the file that holds a payload of `length` bytes; `None` if no file can hold it.
pub(crate) fn object_bytes(length: u64) -> Option<u64> {
    let checks = chunk::block_count(length).checked_mul(CRC_BYTES)?;
    let frame = (HEADER_BYTES + TRAILER_BYTES) as u64;
    length.checked_add(checks)?.checked_add(frame).filter(|bytes| i64::try_from(*bytes).is_ok())
}

/// Bytes of payload that an object of at most `bytes` can have.
pub(crate) fn payload_in(bytes: u64) -> u64 {
    let blocks = bytes.saturating_sub((HEADER_BYTES + TRAILER_BYTES) as u64);
    blocks.saturating_sub(blocks.div_ceil(BLOCK_BYTES + CRC_BYTES) * CRC_BYTES)
}

/// Where block `number` begins in the file.
pub(crate) fn block_position(number: u64) -> u64 {
    HEADER_BYTES as u64 + number * (BLOCK_BYTES + CRC_BYTES)
}

impl ObjectName {
    pub(crate) fn of(desc: &SnapshotDesc) -> Self {
        Self::new(desc.term, desc.index, desc.digest)
    }

    pub(crate) fn new(term: u64, index: u64, digest: Digest) -> Self {
        let mut head = [0; 16];
        head.copy_from_slice(&digest.0[..16]);
        Self { term, index, digest: head }
    }

    /// The file's name in the snapshot directory.
    pub(crate) fn file(self) -> String {
        format!("{self}{OBJECT_SUFFIX}")
    }

    /// Reads back exactly what [`ObjectName::file`] writes.
    pub(crate) fn parse(file: &str) -> Option<Self> {
        let mut parts = file.strip_suffix(OBJECT_SUFFIX)?.split('-');
        let term = u64::from_str_radix(parts.next()?, 16).ok()?;
        let index = u64::from_str_radix(parts.next()?, 16).ok()?;
        let digest = u128::from_str_radix(parts.next()?, 16).ok()?.to_be_bytes();
        let name = Self { term, index, digest };
        (parts.next().is_none() && name.file() == file).then_some(name)
    }
}

impl From<ObjectName> for ObjectRef {
    fn from(name: ObjectName) -> Self {
        Self { term: name.term, index: name.index, digest: name.digest }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}-{}", self.term, self.index, hex(&self.digest))
    }
}

impl Header {
    pub(crate) fn of(identity: Identity, desc: &SnapshotDesc) -> Self {
        let (term, index, module, format) = (desc.term, desc.index, desc.module, desc.format);
        Self { identity, term, index, module, format }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Encoder { bytes: [0; HEADER_BYTES], at: 0 };
        out.put(&HEAD_MAGIC);
        out.put(&[VERSION]);
        out.put(&self.identity.cluster);
        out.put(&self.identity.group.0.to_le_bytes());
        out.put(&self.term.to_le_bytes());
        out.put(&self.index.to_le_bytes());
        out.put(&self.module.0);
        out.put(&self.format.to_le_bytes());
        let crc = crc32c::crc32c(&out.bytes[..out.at]);
        out.put(&crc.to_le_bytes());
        out.bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let mut input = Decoder(bytes);
        if input.take() != HEAD_MAGIC {
            return Err("it does not begin with the magic bytes of a snapshot".into());
        }
        let [version] = input.take();
        if version != VERSION {
            return Err(format!("unknown format version {version}: this build reads {VERSION}"));
        }
        let cluster = input.take();
        let group = GroupId(u64::from_le_bytes(input.take()));
        let header = Self {
            identity: Identity { cluster, group },
            term: u64::from_le_bytes(input.take()),
            index: u64::from_le_bytes(input.take()),
            module: ModuleId(input.take()),
            format: u32::from_le_bytes(input.take()),
        };
        let crc = u32::from_le_bytes(input.take());
        if crc != crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) {
            return Err("the header's checksum is wrong".into());
        }
        Ok(header)
    }
}

impl Trailer {
    /// `header` is the object's encoded header, which the trailer's checksum covers.
    pub(crate) fn encode(&self, header: &[u8; HEADER_BYTES]) -> [u8; TRAILER_BYTES] {
        let mut out = Encoder { bytes: [0; TRAILER_BYTES], at: 0 };
        out.put(&self.length.to_le_bytes());
        out.put(&self.digest.0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(header), &out.bytes[..out.at]);
        out.put(&crc.to_le_bytes());
        out.put(&TAIL_MAGIC);
        out.bytes
    }

    pub(crate) fn decode(
        bytes: &[u8; TRAILER_BYTES],
        header: &[u8; HEADER_BYTES],
    ) -> Result<Self, String> {
        let mut input = Decoder(bytes);
        let length = u64::from_le_bytes(input.take());
        let digest = Digest(input.take());
        let crc = u32::from_le_bytes(input.take());
        if input.take() != TAIL_MAGIC {
            return Err("it does not end with the magic bytes of a snapshot".into());
        }
        if crc != crc32c::crc32c_append(crc32c::crc32c(header), &bytes[..8 + 32]) {
            return Err("the trailer's checksum is wrong".into());
        }
        Ok(Self { length, digest })
    }
}

struct Encoder<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Encoder<N> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

struct Decoder<'a>(&'a [u8]);

impl Decoder<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("the frame's size is a constant");
        self.0 = rest;
        *head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let identity = Identity { cluster: [7; 16], group: GroupId(0x0102) };
        Header { identity, term: 3, index: 0x1234, module: ModuleId([9; 32]), format: 5 }
    }

    #[test]
    fn the_bytes_of_header_and_trailer_are_golden() {
        let head = header().encode();
        assert_eq!(
            hex(&head),
            "4c535450534e4150\
             01\
             07070707070707070707070707070707\
             0201000000000000\
             0300000000000000\
             3412000000000000\
             0909090909090909090909090909090909090909090909090909090909090909\
             05000000\
             4fb4a0b6"
        );
        let tail = Trailer { length: 6, digest: Digest([8; 32]) }.encode(&head);
        assert_eq!(
            hex(&tail),
            "0600000000000000\
             0808080808080808080808080808080808080808080808080808080808080808\
             6cc22555\
             50414e535054534c"
        );
    }

    #[test]
    fn every_flipped_bit_of_header_and_trailer_is_found() {
        let head = header().encode();
        let trailer = Trailer { length: 6, digest: Digest([8; 32]) };
        let tail = trailer.encode(&head);
        assert_eq!(Header::decode(&head), Ok(header()));
        assert_eq!(Trailer::decode(&tail, &head), Ok(trailer));
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = head;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad).is_err(), "bit {bit} of the header");
            assert!(
                Trailer::decode(&tail, &bad).is_err(),
                "bit {bit} of the header, by the trailer"
            );
        }
        for bit in 0..TRAILER_BYTES * 8 {
            let mut bad = tail;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(&bad, &head).is_err(), "bit {bit} of the trailer");
        }
    }

    #[test]
    fn names_read_back_only_as_they_were_written() {
        let name = ObjectName { term: 1, index: 0xabc, digest: [0xde; 16] };
        let file = name.file();
        let digest = "de".repeat(16);
        assert_eq!(file, format!("0000000000000001-0000000000000abc-{digest}.fsnap"));
        assert!(ObjectName::parse(&file) == Some(name));
        for foreign in ["", "part", "1-abc-de.fsnap", "note.fsnap", &file.to_uppercase()] {
            assert!(ObjectName::parse(foreign).is_none(), "{foreign}");
        }
        assert!(is_part_name(&part_out(1, 2)));
        let part = format!("0000000000000001-0000000000000abc-{digest}-{:016x}.in", 77);
        assert_eq!(parse_part_in(&part), Some((name, 77)));
        assert!(is_part_name(&part) && parse_part_in(&part_out(1, 2)).is_none());
        for foreign in ["x.tmp", ".in", "notes.in", "1-.out", "lost+found"] {
            assert!(!is_part_name(foreign), "{foreign}");
        }
    }

    /// No length makes the size arithmetic wrap.
    /// Covers P13.
    #[test]
    fn object_sizes_do_not_wrap() {
        let frame = (HEADER_BYTES + TRAILER_BYTES) as u64;
        assert_eq!(object_bytes(0), Some(frame));
        assert_eq!(object_bytes(1), Some(frame + 1 + 4));
        assert_eq!(object_bytes(BLOCK_BYTES), Some(frame + BLOCK_BYTES + 4));
        assert_eq!(object_bytes(BLOCK_BYTES + 1), Some(frame + BLOCK_BYTES + 1 + 8));
        for length in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 7 * BLOCK_BYTES + 9] {
            assert_eq!(object_bytes(length).map(payload_in), Some(length));
        }
        assert_eq!(payload_in(frame + 3), 0, "less than a checksum");
        assert_eq!(object_bytes(u64::MAX), None);
        assert_eq!(object_bytes(i64::MAX as u64), None);
    }
}

//! Log files, and the segments in them.
//!
//! A file is created once, under a name of its own, and holds many segments one after the other;
//! its head says which one is in it now. So a new segment needs no new name and no new block.
//!
//! While a file is new, small writes are padded with zeros to a multiple of [`AHEAD_BLOCKS`]
//! blocks. A sync after the first write to a block also commits the filesystem's journal, and this
//! way only one sync in sixteen does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lockstep_core::ids::GroupId;
use lockstep_core::wal::record::{
    self, BatchBuilder, BatchPlace, FILE_HEADER_BYTES, FileHeader, Salt,
};
use lockstep_core::wal::replay::Place;
use raft::eraftpb::Entry;

use super::error::WalError;
use crate::fs::{File, read_exact_at};

const SUFFIX: &str = ".wal";
/// How many blocks of a new file are written at once, at least.
const AHEAD_BLOCKS: u64 = 16;

/// An open log file.
pub(super) struct LogFile {
    pub(super) header: FileHeader,
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn File>,
    /// Bytes of the file.
    pub(super) length: u64,
    /// Nothing was ever written to the file from this offset on.
    fresh: AtomicU64,
}

/// A segment in its file. The file is not reused while the segment is in use.
pub(super) struct Segment {
    pub(super) number: u64,
    /// The number of its first batch, the head.
    pub(super) first_batch: u64,
    pub(super) file: LogFile,
    salt: Salt,
}

pub(super) fn file_name(file: u64) -> String {
    format!("{file:016x}{SUFFIX}")
}

/// The number in a log file's name; `None` for other names.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok()?;
    (file_name(number) == name).then_some(number)
}

impl LogFile {
    /// A file to which nothing was ever written from offset `fresh` on.
    pub(super) fn new(
        header: FileHeader,
        path: PathBuf,
        file: Box<dyn File>,
        length: u64,
        fresh: u64,
    ) -> Self {
        Self { header, path, file, length, fresh: AtomicU64::new(fresh) }
    }

    /// The bytes of a head: the segment's place in the log, and the state of every group.
    pub(super) fn head(&self, place: BatchPlace, states: &[(GroupId, Vec<u8>)]) -> Vec<u8> {
        let mut head = BatchBuilder::new(&self.header, place);
        for (group, state) in states {
            head.state(*group, state, false);
        }
        head.finish()
    }

    /// Whether the header on the disk is still what it was when the file was opened.
    pub(super) fn is_sound(&self) -> bool {
        let mut bytes = [0; FILE_HEADER_BYTES];
        self.file.drop_cache();
        let read = read_exact_at(&*self.file, &mut bytes, 0);
        read.is_ok() && FileHeader::decode(&bytes) == Ok(self.header)
    }

    /// Makes everything after the header count as never written, since the file has no head.
    pub(super) fn take_for_new(&mut self) {
        *self.fresh.get_mut() = self.header.head_offset();
    }

    /// Writes `bytes`, padded with zeros if the file is new; returns how many bytes were written.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<u64> {
        let end = offset + bytes.len() as u64;
        let at_once = AHEAD_BLOCKS * u64::from(self.header.block_bytes);
        let touches_new = end > self.fresh.load(Ordering::Relaxed);
        let filled = if touches_new && (bytes.len() as u64) < at_once {
            end.next_multiple_of(at_once).min(self.length)
        } else {
            end
        };
        if filled > end {
            let mut ahead = bytes.to_vec();
            ahead.resize((filled - offset) as usize, 0);
            self.file.write_at(&ahead, offset)?;
        } else {
            self.file.write_at(bytes, offset)?;
        }
        self.fresh.fetch_max(filled, Ordering::Relaxed);
        Ok(filled - offset)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    pub(super) fn corrupt(&self, offset: u64, reason: impl Into<String>) -> WalError {
        WalError::corrupt(&self.path, offset, reason)
    }
}

impl Segment {
    /// The segment in this file, which begins with the head at this place.
    pub(super) fn new(file: LogFile, head: BatchPlace) -> Self {
        let (number, first_batch) = (head.segment, head.number);
        let salt = file.header.salt(number);
        Self { number, first_batch, file, salt }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) fn salt(&self) -> Salt {
        self.salt
    }

    /// Reads one record of entries back, and verifies its checksum each time.
    pub(super) fn entries(&self, group: GroupId, place: &Place) -> Result<Vec<Entry>, WalError> {
        let mut bytes = vec![0; place.length as usize];
        match read_exact_at(&*self.file.file, &mut bytes, place.offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.file.corrupt(place.offset, "the file was truncated"));
            }
            Err(error) => return Err(WalError::io("read", self.path())(error)),
        }
        let entries = record::decode_entries(self.salt, group, Bytes::from(bytes));
        entries.map_err(|why| self.file.corrupt(place.offset, why.to_string()))
    }
}

//! Segment files: their names, how one begins, and the reserve from which it does.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::wal::record::{self, Salt, SegmentHeader};
use lockstep_core::wal::replay::Place;
use raft::eraftpb::Entry;

use super::error::WalError;
use crate::fs::{File, Fs, is_full, make_durable, read_exact_at};

pub(super) const RESERVE_NAME: &str = "reserve.wal";
pub(super) const BALLAST_NAME: &str = "ballast.wal";
const SUFFIX: &str = ".wal";

/// A segment with its name; open as long as anybody uses it, even behind its removal.
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn File>,
    /// Bytes of the file.
    pub(super) length: u64,
}

/// A preallocated file without content, under [`RESERVE_NAME`].
pub(super) struct Reserve {
    pub(super) file: Box<dyn File>,
    pub(super) path: PathBuf,
    pub(super) length: u64,
}

pub(super) fn file_name(number: u64) -> String {
    format!("{number:016x}{SUFFIX}")
}

/// The number of a segment's file name; `None` for other names.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok()?;
    (file_name(number) == name).then_some(number)
}

/// Preallocates a reserve. Its name and length need no sync: a crash that loses it costs nothing.
pub(super) fn create_reserve(fs: &dyn Fs, dir: &Path, bytes: u64) -> Result<Reserve, WalError> {
    create_spare(fs, dir.join(RESERVE_NAME), bytes)
}

fn create_spare(fs: &dyn Fs, path: PathBuf, bytes: u64) -> Result<Reserve, WalError> {
    let file = match fs.create(&path) {
        Ok(file) => file,
        Err(error) if is_full(&error) => {
            return Err(WalError::Full { path, bytes });
        }
        Err(error) => return Err(WalError::io("create", &path)(error)),
    };
    let mut reserve = Reserve { file, path, length: 0 };
    if let Err(error) = reserve.grow(bytes) {
        // A part of a reserve is of no use, and the disk needs the room.
        fs.remove(&reserve.path).map_err(WalError::io("remove", &reserve.path))?;
        return Err(error);
    }
    Ok(reserve)
}

/// Preallocates the ballast.
pub(super) fn create_ballast(fs: &dyn Fs, dir: &Path, bytes: u64) -> Result<(), WalError> {
    create_spare(fs, dir.join(BALLAST_NAME), bytes).map(drop)
}

/// Gives the ballast's room back to the disk.
pub(super) fn remove_ballast(fs: &dyn Fs, dir: &Path) -> Result<(), WalError> {
    let path = dir.join(BALLAST_NAME);
    fs.remove(&path).map_err(WalError::io("remove", &path))
}

/// Whether a ballast of `bytes` lies there; another one is removed.
pub(super) fn has_ballast(
    fs: &dyn Fs,
    dir: &Path,
    names: &[String],
    bytes: u64,
) -> Result<bool, WalError> {
    if !names.iter().any(|name| name == BALLAST_NAME) {
        return Ok(false);
    }
    let path = dir.join(BALLAST_NAME);
    let length = fs.open(&path, false).and_then(|file| file.len());
    match length.map_err(WalError::io("measure", &path))? == bytes {
        true => Ok(true),
        false => remove_ballast(fs, dir).map(|()| false),
    }
}

/// Makes the reserve segment `header.segment`: content first, then the name.
pub(super) fn name(
    fs: &dyn Fs,
    dir: &Path,
    reserve: Reserve,
    header: SegmentHeader,
    bytes: &[u8],
) -> Result<Segment, WalError> {
    let Reserve { file, path: from, length } = reserve;
    file.write_at(bytes, 0).map_err(WalError::io("write", &from))?;
    file.sync().map_err(WalError::io("sync", &from))?;
    let path = dir.join(file_name(header.segment));
    fs.rename_new(&from, &path).map_err(WalError::io("name", &path))?;
    if !planted("skip_segment_directory_sync") {
        make_durable(fs, &path).map_err(WalError::io("sync the directory of", &path))?;
    }
    Ok(Segment { header, path, file, length })
}

impl Reserve {
    /// Makes it at least `bytes` long.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), WalError> {
        if bytes <= self.length {
            return Ok(());
        }
        match self.file.preallocate(bytes) {
            Ok(()) => {
                self.length = bytes;
                Ok(())
            }
            Err(error) if is_full(&error) => Err(WalError::Full { path: self.path.clone(), bytes }),
            Err(error) => Err(WalError::io("preallocate", &self.path)(error)),
        }
    }
}

impl Segment {
    pub(super) fn number(&self) -> u64 {
        self.header.segment
    }

    pub(super) fn salt(&self) -> Salt {
        self.header.salt()
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<(), WalError> {
        self.file.write_at(bytes, offset).map_err(WalError::io("write", &self.path))
    }

    pub(super) fn sync(&self) -> Result<(), WalError> {
        self.file.sync().map_err(WalError::io("sync", &self.path))
    }

    /// Reads one record of entries back; its checksum is looked at each time.
    pub(super) fn entries(&self, group: GroupId, place: &Place) -> Result<Vec<Entry>, WalError> {
        let mut bytes = vec![0; place.length as usize];
        match read_exact_at(&*self.file, &mut bytes, place.offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(WalError::corrupt(&self.path, place.offset, "the file was cut"));
            }
            Err(error) => return Err(WalError::io("read", &self.path)(error)),
        }
        let entries = record::decode_entries(self.salt(), group, Bytes::from(bytes));
        entries.map_err(|why| WalError::corrupt(&self.path, place.offset, why.to_string()))
    }
}

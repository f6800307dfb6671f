//! [`Files`]: log files are made and removed here, while there is room for it.
//!
//! - A file has its name only once it is whole: its room is reserved, its header durable. The name
//!   is durable before the file is given out.
//! - What is short (room, descriptors, memory) is [`WalError::Full`]: nothing is left behind, or
//!   what is left goes later. Every other failure is the log's end.
//! - Removing needs no sync at once: a file that comes back after a crash holds nothing that
//!   counts, which its head and the log's last batch tell. The next process does not know which
//!   files were removed, and syncs the directory before it writes anything. Only a file that rotted
//!   has to be gone for good before its segment is forgotten: no start would read it.
//! - The directory stays open: making its names durable takes no descriptor.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::mutant::planted;
use lockstep_core::wal::record::FileHeader;

use super::WalOptions;
use super::error::WalError;
use super::segment::{LogFile, file_name};
use crate::fs::{Dir, Fs, is_short};

/// What a file is called while it is made.
const NEW_NAME: &str = "new.wal";

pub(super) struct Files {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    handle: Box<dyn Dir>,
    options: WalOptions,
    next: u64,
    /// An earlier process may have made or removed names, and not made that durable.
    unsettled: bool,
    /// What is to be removed and could not be.
    unwanted: Vec<PathBuf>,
}

impl Files {
    /// `next` is the number of the next file that is made.
    pub(super) fn open(
        fs: Arc<dyn Fs>,
        dir: &Path,
        options: WalOptions,
        next: u64,
    ) -> Result<Self, WalError> {
        let handle = fs.open_dir(dir).map_err(WalError::io("open directory", dir))?;
        let (dir, unsettled, unwanted) = (dir.to_owned(), true, Vec::new());
        Ok(Self { fs, dir, handle, options, next, unsettled, unwanted })
    }

    /// Makes durable which files are there, and which are not: to be called before anything is
    /// written. A head that was found must keep its name, and one that an earlier process gave up
    /// must not come back, for it would end the segment that is written now.
    pub(super) fn settle_names(&mut self) -> Result<(), WalError> {
        if self.unsettled {
            self.handle.sync().map_err(|error| self.failed(error, 0))?;
            self.unsettled = false;
        }
        Ok(())
    }

    /// A new file of so many bytes. Takes two syncs.
    pub(super) fn make(&mut self, length: u64) -> Result<LogFile, WalError> {
        let (new, file) = (self.dir.join(NEW_NAME), self.next);
        let path = self.dir.join(file_name(file));
        let WalOptions { cluster, node, block_bytes, .. } = self.options;
        // A different one in each file, whatever the one that was drawn.
        let nonce = self.options.nonce ^ file.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let header = FileHeader { cluster, node, block_bytes, file, nonce, length };
        let written = self.write_new(&new, &header).and_then(|file| {
            self.fs.rename_new(&new, &path)?;
            Ok(file)
        });
        let file = match written {
            Ok(file) => file,
            Err(error) => {
                // A part of a file is of no use, and the disk needs the room.
                self.remove(new)?;
                return Err(self.failed(error, length));
            }
        };
        self.next += 1;
        if !planted("skip_segment_directory_sync")
            && let Err(error) = self.handle.sync()
        {
            drop(file);
            let failed = self.failed(error, length);
            self.remove(path)?;
            return Err(failed);
        }
        self.unsettled = false;
        let fresh = u64::from(block_bytes);
        Ok(LogFile::new(header, path, file, length, fresh))
    }

    /// Removes a file durably. `false`: there is no room for that now.
    pub(super) fn remove_for_good(&mut self, path: PathBuf) -> Result<bool, WalError> {
        self.remove(path)?;
        self.sweep()?;
        match self.handle.sync() {
            Ok(()) => Ok(self.unwanted.is_empty()),
            Err(error) if is_short(&error) => Ok(false),
            Err(error) => Err(WalError::io("sync directory", &self.dir)(error)),
        }
    }

    /// Removes a file, now or once that goes.
    pub(super) fn remove(&mut self, path: PathBuf) -> Result<(), WalError> {
        match self.fs.remove(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if is_short(&error) => {
                self.unwanted.push(path);
                Ok(())
            }
            Err(error) => Err(WalError::io("remove", &path)(error)),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn options(&self) -> &WalOptions {
        &self.options
    }

    /// Tries once more to remove what could not be.
    pub(super) fn sweep(&mut self) -> Result<(), WalError> {
        std::mem::take(&mut self.unwanted).into_iter().try_for_each(|path| self.remove(path))
    }

    /// Bytes that the filesystem has left; 0 if it does not say.
    pub(super) fn available(&self) -> u64 {
        self.fs.space(&self.dir).map_or(0, |space| space.available)
    }

    fn write_new(&self, new: &Path, header: &FileHeader) -> io::Result<Box<dyn crate::fs::File>> {
        let file = match self.fs.create_in_place(new) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.fs.remove(new)?;
                self.fs.create_in_place(new)?
            }
            created => created?,
        };
        file.preallocate(header.length)?;
        let mut block = header.encode().to_vec();
        block.resize(header.block_bytes as usize, 0);
        file.write_at(&block, 0)?;
        file.sync()?;
        Ok(file)
    }

    fn failed(&self, error: io::Error, bytes: u64) -> WalError {
        match is_short(&error) {
            true => WalError::full(&self.dir, bytes, &error),
            false => WalError::io("make a file in", &self.dir)(error),
        }
    }
}

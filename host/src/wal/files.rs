//! [`Files`] creates and removes log files, as far as there is space.
//!
//! - A file gets its name only when it is complete: its space is reserved and its header durable.
//!   The name is durable before the file is used.
//! - A lack of space, descriptors or memory is [`WalError::Full`]: the files of a failed attempt
//!   are removed, at once or later. Any other failure poisons the log.
//! - A removal need not be synced at once: if the file comes back after a crash, its head and the
//!   log's last batch show that its segment no longer belongs to the log. The next process does not
//!   know which files were removed, so it syncs the directory before it writes anything. Only a
//!   damaged file must be gone durably before its segment is forgotten, because a start would
//!   refuse it.
//! - The directory stays open, so that making names durable needs no descriptor.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::mutant::planted;
use lockstep_core::wal::record::FileHeader;

use super::WalOptions;
use super::error::WalError;
use super::segment::{LogFile, file_name};
use crate::fs::{Dir, Fs, is_short};

/// The name of a file while it is being created.
const NEW_NAME: &str = "new.wal";

pub(super) struct Files {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    handle: Box<dyn Dir>,
    options: WalOptions,
    next: u64,
    /// An earlier process may have created or removed names without making that durable.
    unsettled: bool,
    /// Files that should be removed but could not be removed yet.
    unwanted: Vec<PathBuf>,
}

impl Files {
    /// `next` is the number of the next file to create.
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

    /// Makes the present names in the directory durable; must be called before anything is written.
    /// The files of the log's segments must keep their names, and a file that an earlier process
    /// removed must not come back, because its head could end the segment that is being written.
    pub(super) fn settle_names(&mut self) -> Result<(), WalError> {
        if self.unsettled {
            self.handle.sync().map_err(|error| self.failed(error, 0))?;
            self.unsettled = false;
        }
        Ok(())
    }

    /// Creates a file of `length` bytes. Takes two syncs.
    pub(super) fn make(&mut self, length: u64) -> Result<LogFile, WalError> {
        let (new, file) = (self.dir.join(NEW_NAME), self.next);
        // Each name is tried only once: the file of a failed attempt may still have it.
        self.next += 1;
        let path = self.dir.join(file_name(file));
        let WalOptions { cluster, node, block_bytes, .. } = self.options;
        // Makes the nonce of each file different.
        let nonce = self.options.nonce ^ file.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let header = FileHeader { cluster, node, block_bytes, file, nonce, length };
        let written = self.write_new(&new, &header).and_then(|file| {
            self.fs.rename_new(&new, &path)?;
            Ok(file)
        });
        let file = match written {
            Ok(file) => file,
            Err(error) => {
                // An incomplete file is useless, and the disk needs the space.
                self.remove(new)?;
                if is_short(&error) {
                    // The file may have its new name already, beside the old one.
                    self.remove(path)?;
                }
                return Err(self.failed(error, length));
            }
        };
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

    /// Removes a file durably. Returns false if there is not enough space to do so now.
    pub(super) fn remove_for_good(&mut self, path: PathBuf) -> Result<bool, WalError> {
        self.remove(path)?;
        self.sweep()?;
        match self.handle.sync() {
            Ok(()) => Ok(self.unwanted.is_empty()),
            Err(error) if is_short(&error) => Ok(false),
            Err(error) => Err(WalError::io("sync directory", &self.dir)(error)),
        }
    }

    /// Removes a file, now or once that is possible.
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

    /// Tries again to remove the files that could not be removed.
    pub(super) fn sweep(&mut self) -> Result<(), WalError> {
        std::mem::take(&mut self.unwanted).into_iter().try_for_each(|path| self.remove(path))
    }

    /// Bytes left on the filesystem; 0 if that is unknown.
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
        if is_short(&error) {
            WalError::full(&self.dir, bytes, &error)
        } else {
            WalError::io("make a file in", &self.dir)(error)
        }
    }
}

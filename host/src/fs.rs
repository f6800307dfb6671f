//! The door `Fs`: the only way to files.
//!
//! It is synchronous and object-safe, so that a simulator can implement it. It has two
//! implementations: [`disk`] (real files) and [`mem`]
//! (strict: a crash loses what was not synced, names included).
//!
//! - A file's bytes are durable after [`File::sync`]; its *name* is durable after [`make_durable`].
//! - A failed sync is final: the caller abandons the file and never retries.

use std::io;
use std::path::Path;

use lockstep_core::mutant::planted;

pub mod disk;
pub mod mem;
mod mounts;

pub use disk::DiskFs;

/// Directories and names.
pub trait Fs: Send + Sync {
    /// Creates a file for reading and writing; an existing one is an error.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Like `create`, and asks the filesystem to overwrite the file's blocks in place, so that
    /// overwriting them needs no free space. [`Fs::promise`] says whether it will.
    fn create_in_place(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Opens an existing file; `write` asks for writing too.
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>>;
    /// Renames, replacing what exists at `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames; `AlreadyExists` if something exists at `to`.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted; directories included.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn exists(&self, path: &Path) -> io::Result<bool>;
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable. Call [`make_durable`] instead.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Opens a directory, so that its names can be made durable even once descriptors have run out.
    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn Dir>>;
    /// What the filesystem does when blocks of this file are overwritten.
    fn promise(&self, path: &Path) -> io::Result<Promise>;
    /// The space on the filesystem of a directory.
    fn space(&self, dir: &Path) -> io::Result<Space>;
    /// Takes an exclusive lock on a file (created if missing) that lives as long as the value;
    /// `WouldBlock` if another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
}

/// An open directory.
pub trait Dir: Send + Sync {
    /// Makes the names in it durable.
    fn sync(&self) -> io::Result<()>;
}

/// What a filesystem promises about a file's blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promise {
    /// The filesystem's name.
    pub filesystem: String,
    /// Blocks are overwritten in place, which needs no free space and so works on a full disk.
    pub in_place: bool,
}

/// Bytes of one open file.
#[expect(clippy::len_without_is_empty, reason = "a file is no collection")]
pub trait File: Send + Sync {
    /// Reads at most `buf.len()` bytes; 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf`, extending the file where needed.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes bytes and length durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    /// Reserves space and extends the length to `len`; `StorageFull` if there is too little. If the
    /// filesystem cannot reserve space, zeros are written, which takes as long as writing does.
    fn preallocate(&self, len: u64) -> io::Result<()>;
    /// Extends the length to `len`, and reserves space if the filesystem can; returns whether it
    /// did. The time it takes does not grow with `len`; `StorageFull` if there is too little space.
    fn extend(&self, len: u64) -> io::Result<bool>;
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Asks the system to forget cached pages, so that the next read comes from the disk. A hint.
    fn drop_cache(&self);
}

/// Space on a filesystem, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// The filesystem's size.
    pub total: u64,
    /// What an unprivileged process may still write.
    pub available: u64,
    /// Identifies the source of the space: a device, or the pool that several filesystems share, as
    /// btrfs subvolumes and ZFS datasets do.
    pub device: u64,
}

/// Makes the creation, renaming or removal of a name durable. No other function syncs directories;
/// only the log syncs its own, which it keeps open.
pub fn make_durable(fs: &dyn Fs, path: &Path) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other("the path has no parent"))?;
    fs.sync_dir(parent)
}

/// Writes a file whole or not at all, and makes it durable: under another name first, which then
/// takes the place of what was there.
pub fn write_durably(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    if fs.exists(&fresh)? {
        fs.remove(&fresh)?;
    }
    let file = fs.create(&fresh)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    fs.rename(&fresh, path)?;
    make_durable(fs, path)
}

/// Creates a directory and its missing ancestors, making each name durable before the next one. The
/// lowest directory that exists may have been created by an earlier process that ended before it
/// made the name durable, so that name is synced as well, unless this process may not sync the
/// directory that holds it.
pub fn create_dirs(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    // A path that cannot be looked up, such as one below a file, counts as missing: the attempt to
    // create it then reports the reason.
    let is_missing = |dir: &&Path| !matches!(fs.exists(dir), Ok(true));
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    if let Some(there) = dir.ancestors().nth(missing.len())
        && there.parent().is_some()
    {
        match make_durable(fs, there) {
            Err(error) if !is_not_ours(&error) && !planted("leave_a_name_unsynced") => {
                return Err(error);
            }
            Ok(()) | Err(_) => {}
        }
    }
    for dir in missing.into_iter().rev() {
        fs.create_dir_all(dir)?;
        make_durable(fs, dir)?;
    }
    Ok(())
}

/// Whether a directory could not be synced because of its permissions, or because its filesystem is
/// read-only or cannot sync directories.
fn is_not_ours(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::Unsupported
    )
}

/// Whether an error means that there is no space: on the disk, or within a disk quota.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an operation that failed with this error may succeed once something is released: disk
/// space, descriptors or memory.
pub fn is_short(error: &io::Error) -> bool {
    let descriptors = os_code(error).is_some_and(|code| NO_DESCRIPTORS.contains(&code))
        && !planted("descriptors_end_the_log");
    is_full(error) || descriptors || error.kind() == io::ErrorKind::OutOfMemory
}

/// Whether the filesystem has no locks, or none left to give.
pub fn has_no_locks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || os_code(error) == Some(NO_LOCKS)
}

/// ENOLCK, which has no `ErrorKind` of its own.
const NO_LOCKS: i32 = 37;

/// ENFILE and EMFILE, which have no `ErrorKind` of their own.
const NO_DESCRIPTORS: [i32; 2] = [23, 24];

/// The system's error number, also that of an error wrapped in [`Named`].
fn os_code(error: &io::Error) -> Option<i32> {
    let named = || error.get_ref()?.downcast_ref::<Named>()?.code;
    error.raw_os_error().or_else(named)
}

/// A system error whose text also names the operation and the path.
#[derive(Debug)]
struct Named {
    text: String,
    code: Option<i32>,
}

impl Named {
    fn error(text: String, of: &io::Error) -> io::Error {
        io::Error::new(of.kind(), Self { text, code: os_code(of) })
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Named {}

/// Reads exactly `buf.len()` bytes at `offset`.
pub fn read_exact_at(file: &dyn File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux error codes, by errno(3). An error of the disk itself is never taken for a lack of
    /// something.
    #[test]
    fn a_lack_is_told_from_a_failure() {
        let of = io::Error::from_raw_os_error;
        for (code, full, short) in [
            (28, true, true),   // ENOSPC
            (122, true, true),  // EDQUOT
            (12, false, true),  // ENOMEM
            (23, false, true),  // ENFILE
            (24, false, true),  // EMFILE
            (5, false, false),  // EIO
            (30, false, false), // EROFS
            (13, false, false), // EACCES
        ] {
            assert_eq!((is_full(&of(code)), is_short(&of(code))), (full, short), "{}", of(code));
        }
    }
}

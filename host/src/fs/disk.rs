//! [`DiskFs`]: the door `Fs` on the operating system's files. The only place that names `std::fs`
//! and `rustix`, but for mapped memory, the process's log, the configuration and the command line.
//!
//! - Every error carries what was attempted and on which path; its kind is the system's.
//! - `sync` is fdatasync, which covers the length; `sync_dir` is fsync on the directory. If the
//!   filesystem cannot sync directories, names are as durable as the filesystem makes them.
//! - `rename_new` never replaces: it is `renameat2(RENAME_NOREPLACE)`, or link and unlink where the
//!   filesystem does not support that.
//! - `space` identifies a directory's filesystem by its device number or, if several filesystems
//!   share a pool of space, by the number of the pool.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File as StdFile, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{
    Advice, AtFlags, CWD, FallocateFlags, FlockOperation, FsWord, IFlags, RenameFlags, StatxFlags,
};
use rustix::io::Errno;

use crate::fs::{Dir, File, Fs, Named, Promise, Space, mounts};

/// Bytes of zeros written at a time where space cannot be reserved otherwise.
const ZEROS_BYTES: usize = 1 << 20;
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// The operating system's files.
#[derive(Clone, Copy, Default, Debug)]
pub struct DiskFs;

struct DiskFile {
    file: StdFile,
    path: PathBuf,
}

struct DiskDir(DiskFile);

/// Filesystems by their number in statfs(2), and whether they overwrite blocks in place.
const FILESYSTEMS: [(FsWord, &str, bool); 9] = [
    (0xef53, "ext4", true),
    (0x5846_5342, "xfs", true),
    (0x0102_1994, "tmpfs", true),
    // btrfs does overwrite in place if the file has the flag NOCOW.
    (BTRFS, "btrfs", false),
    (0x6969, "nfs", false),
    (0x2fc1_2fc1, "zfs", false),
    (0x794c_7630, "overlayfs", false),
    (0xf2f5_2010, "f2fs", false),
    (0xca45_1a4e, "bcachefs", false),
];
const BTRFS: FsWord = 0x9123_683e;

/// The mode of a directory that is nobody else's.
const PRIVATE_MODE: u32 = 0o700;

/// The list of mounts, as this process sees it.
const MOUNTS: &str = "/proc/self/mountinfo";

/// The number of the source of space for each device number, as `source_of_space` found it; at most
/// one for each directory that was asked about.
static SOURCES: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());

impl DiskFs {
    /// Creates a directory that nobody but this user may read or write, if it is missing; an error
    /// if it is another user's, or open to others.
    pub fn create_private_dir(&self, dir: &Path) -> io::Result<()> {
        let made = DirBuilder::new().recursive(true).mode(PRIVATE_MODE).create(dir);
        made.map_err(|e| named(e, "create directory", dir))?;
        let found = std::fs::symlink_metadata(dir).map_err(|e| named(e, "look at", dir))?;
        let wrong = if !found.is_dir() {
            "it is no directory"
        } else if found.uid() != rustix::process::geteuid().as_raw() {
            "it belongs to another user"
        } else if found.mode() & 0o077 != 0 {
            "others may read or write it: set its mode to 0700"
        } else {
            return Ok(());
        };
        let error = io::Error::new(io::ErrorKind::PermissionDenied, wrong);
        Err(named(error, "use directory", dir))
    }
}

impl Fs for DiskFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(FILE_MODE);
        let file = options.open(path).map_err(|e| named(e, "create", path))?;
        Ok(Box::new(DiskFile { file, path: path.to_owned() }))
    }

    fn create_in_place(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(FILE_MODE);
        let file = options.open(path).map_err(|e| named(e, "create", path))?;
        // Only btrfs supports this flag, and only on an empty file. If it cannot be set, the file
        // is still usable.
        if let Ok(flags) = rustix::fs::ioctl_getflags(&file) {
            let _wish = rustix::fs::ioctl_setflags(&file, flags | IFlags::NOCOW);
        }
        Ok(Box::new(DiskFile { file, path: path.to_owned() }))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>> {
        let opened = OpenOptions::new().read(true).write(write).open(path);
        let file = opened.map_err(|e| named(e, "open", path))?;
        Ok(Box::new(DiskFile { file, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to).map_err(|e| named_pair(e, from, to))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // The filesystem does not support the flag. A hard link does not replace either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                std::fs::hard_link(from, to).map_err(|e| named_pair(e, from, to))?;
                self.remove(from)
            }
            Err(errno) => Err(named_pair(errno.into(), from, to)),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path).map_err(|e| named(e, "remove", path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in std::fs::read_dir(dir).map_err(|e| named(e, "list", dir))? {
            let item = item.map_err(|e| named(e, "list", dir))?;
            names.push(item.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        // An empty path is the parent of a bare relative name: the working directory.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        path.try_exists().map_err(|e| named(e, "look for", path))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let made = DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir);
        made.map_err(|e| named(e, "create directory", dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.open_dir(dir)?.sync()
    }

    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn Dir>> {
        // The parent of a bare relative name is the working directory.
        let path = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let file = StdFile::open(path).map_err(|e| named(e, "open directory", dir))?;
        Ok(Box::new(DiskDir(DiskFile { file, path: dir.to_owned() })))
    }

    fn promise(&self, path: &Path) -> io::Result<Promise> {
        let file = StdFile::open(path).map_err(|e| named(e, "open", path))?;
        let stat = rustix::fs::fstatfs(&file).map_err(|e| named(e.into(), "measure", path))?;
        let of_type = stat.f_type & 0xffff_ffff;
        let Some((_, name, in_place)) = FILESYSTEMS.iter().find(|known| known.0 == of_type) else {
            let filesystem = format!("a filesystem of type {of_type:#x}");
            return Ok(Promise { filesystem, in_place: false });
        };
        let marked = || {
            let flags = rustix::fs::ioctl_getflags(&file);
            flags.is_ok_and(|flags| flags.contains(IFlags::NOCOW))
        };
        let in_place = *in_place || of_type == BTRFS && marked();
        Ok(Promise { filesystem: (*name).to_owned(), in_place })
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(dir).map_err(|e| named(e.into(), "measure", dir))?;
        let device = rustix::fs::stat(dir).map_err(|e| named(e.into(), "measure", dir))?.st_dev;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
            device: source_of_space(dir, device)?,
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        let file = options.open(path).map_err(|e| named(e, "open lock", path))?;
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        locked.map_err(|e| named(e.into(), "lock", path))?;
        // The lock lives as long as the open file.
        Ok(Box::new(file))
    }
}

/// A number that identifies the source of a directory's space: that of its pool if it has one, else
/// its device number. The list of mounts is read once for each device number.
fn source_of_space(dir: &Path, device: u64) -> io::Result<u64> {
    // A major number other than 0 means a real device, which its filesystem has to itself.
    if rustix::fs::major(device) != 0 {
        return Ok(device);
    }
    let sources = || SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = sources().get(&device).copied();
    if let Some(source) = known {
        return Ok(source);
    }
    let source = pool_of(dir)?.unwrap_or(device);
    Ok(*sources().entry(device).or_insert(source))
}

/// The number of the pool that a directory's space comes from; `None` if it has none, or the system
/// has no list of mounts.
fn pool_of(dir: &Path) -> io::Result<Option<u64>> {
    let Some(mount) = mount_of(dir) else { return Ok(None) };
    match std::fs::read(MOUNTS) {
        Ok(listed) => Ok(mounts::pool(&String::from_utf8_lossy(&listed), mount)),
        // Without /proc nothing is known. Other errors, such as a lack of descriptors, are
        // temporary.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(error, "read", Path::new(MOUNTS))),
    }
}

/// The id of the mount that a directory is on; `None` before Linux 5.8, which does not report it.
fn mount_of(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statx(CWD, dir, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    let is_told = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    is_told.then_some(stat.stx_mnt_id)
}

/// Raises this process's descriptor limit to the hard limit if it may, and returns the limit in
/// force.
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    // `None` is no limit. If the limit cannot be raised, the current one counts.
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(_refused) => current.unwrap_or(u64::MAX),
    }
}

impl Dir for DiskDir {
    fn sync(&self) -> io::Result<()> {
        let Self(DiskFile { file, path }) = self;
        match rustix::fs::fsync(file) {
            // The filesystem cannot sync directories: how durable names are is up to it.
            Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(named(errno.into(), "sync directory", path)),
        }
    }
}

impl File for DiskFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buf, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|e| named(e, "read", &self.path)),
            }
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset).map_err(|e| named(e, "write", &self.path))
    }

    fn sync(&self) -> io::Result<()> {
        rustix::fs::fdatasync(&self.file).map_err(|e| named(e.into(), "sync", &self.path))
    }

    fn len(&self) -> io::Result<u64> {
        let meta = self.file.metadata().map_err(|e| named(e, "measure", &self.path))?;
        Ok(meta.len())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let have = self.len()?;
        if len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.fill_with_zeros(have, len),
            Err(errno) => Err(named(errno.into(), "preallocate", &self.path)),
        }
    }

    fn extend(&self, len: u64) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                if self.len()? < len {
                    self.truncate(len)?;
                }
                Ok(false)
            }
            Err(errno) => Err(named(errno.into(), "preallocate", &self.path)),
        }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len).map_err(|e| named(e, "truncate", &self.path))
    }

    fn drop_cache(&self) {
        // A hint: if it is ignored, the next read may come from memory.
        let _hint = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
    }
}

impl DiskFile {
    /// Reserves space the slow way, by writing zeros from `from` to `to`.
    fn fill_with_zeros(&self, mut from: u64, to: u64) -> io::Result<()> {
        let zeros = vec![0; ZEROS_BYTES];
        while from < to {
            let count = (to - from).min(ZEROS_BYTES as u64);
            self.write_at(&zeros[..count as usize], from)?;
            from += count;
        }
        Ok(())
    }
}

fn named(error: io::Error, doing: &str, path: &Path) -> io::Error {
    Named::error(format!("{doing} {}: {error}", path.display()), &error)
}

fn named_pair(error: io::Error, from: &Path, to: &Path) -> io::Error {
    let (from, to) = (from.display(), to.display());
    Named::error(format!("rename {from} to {to}: {error}"), &error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{make_durable, read_exact_at};

    /// A directory under the system's temporary one; dropping the value removes it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("lockstep-{}-{name}", std::process::id()));
            DiskFs.create_dir_all(&dir).expect("the temporary directory is writable");
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _gone = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn bytes_written_are_read_back_and_space_is_reserved() -> io::Result<()> {
        let scratch = Scratch::new("bytes");
        let path = scratch.0.join("a");
        let file = DiskFs.create(&path)?;
        file.preallocate(8192)?;
        assert_eq!(file.len()?, 8192);
        file.write_at(b"hello", 4094)?;
        file.sync()?;
        make_durable(&DiskFs, &path)?;
        file.drop_cache();
        let mut bytes = [0; 6];
        read_exact_at(&*DiskFs.open(&path, false)?, &mut bytes, 4094)?;
        assert_eq!(&bytes, b"hello\0");
        file.truncate(3)?;
        assert_eq!(file.read_at(&mut bytes, 3)?, 0);
        assert!(DiskFs.space(&scratch.0)?.total > 0);
        Ok(())
    }

    #[test]
    fn names_are_listed_in_order_and_never_replaced_by_accident() -> io::Result<()> {
        let scratch = Scratch::new("names");
        let path = |name: &str| scratch.0.join(name);
        for name in ["b", "a", "c"] {
            DiskFs.create(&path(name))?;
        }
        assert_eq!(DiskFs.list(&scratch.0)?, ["a", "b", "c"]);
        let kind = |result: io::Result<()>| result.map_err(|e| e.kind());
        let exists = Err(io::ErrorKind::AlreadyExists);
        assert_eq!(kind(DiskFs.rename_new(&path("a"), &path("b"))), exists);
        assert_eq!(kind(DiskFs.create(&path("a")).map(drop)), exists);
        DiskFs.rename_new(&path("a"), &path("d"))?;
        DiskFs.rename(&path("b"), &path("c"))?;
        DiskFs.remove(&path("c"))?;
        assert_eq!(DiskFs.list(&scratch.0)?, ["d"]);
        assert!(!DiskFs.exists(&path("a"))?);
        let missing = DiskFs.open(&path("a"), false).map(drop).expect_err("it was renamed");
        assert!(missing.to_string().contains("open ") && missing.to_string().contains("/a:"));
        Ok(())
    }

    #[test]
    fn a_lock_is_held_once_and_as_long_as_its_value() -> io::Result<()> {
        let scratch = Scratch::new("lock");
        let path = scratch.0.join("LOCK");
        let held = DiskFs.lock(&path)?;
        let second = DiskFs.lock(&path).map(drop).map_err(|e| e.kind());
        assert_eq!(second, Err(io::ErrorKind::WouldBlock));
        drop(held);
        DiskFs.lock(&path).map(drop)
    }

    /// Syncing a directory of /proc fails with EINVAL, as on squashfs and autofs.
    #[test]
    fn a_filesystem_that_cannot_sync_directories_is_taken_as_it_is() -> io::Result<()> {
        assert!(StdFile::open("/proc")?.sync_all().is_err(), "it cannot");
        DiskFs.sync_dir(Path::new("/proc"))
    }

    /// The kernel and the list of mounts use the same mount ids.
    #[test]
    fn the_mount_of_a_directory_is_in_the_list_of_mounts() -> io::Result<()> {
        // An older kernel does not report the id.
        if let Some(mount) = mount_of(Path::new("/proc")) {
            let listed = std::fs::read_to_string(MOUNTS)?;
            let line = listed.lines().find(|line| line.starts_with(&format!("{mount} ")));
            assert!(line.is_some_and(|line| line.contains(" /proc ")), "{mount}: {line:?}");
        }
        Ok(())
    }

    #[test]
    fn a_filesystem_that_is_of_no_pool_is_known_by_its_device_number() -> io::Result<()> {
        let dir = Path::new("/proc");
        let device = rustix::fs::stat(dir)?.st_dev;
        assert_eq!(DiskFs.space(dir)?.device, device);
        assert_eq!(DiskFs.space(&dir.join("sys"))?.device, device, "also when it is known");
        assert_eq!(pool_of(dir).expect("it can be read"), None);
        let scratch = Scratch::new("device");
        assert_ne!(DiskFs.space(&scratch.0)?.device, device);
        Ok(())
    }

    #[test]
    fn what_the_filesystem_promises_is_told() -> io::Result<()> {
        let scratch = Scratch::new("promise");
        let path = scratch.0.join("a");
        let file = DiskFs.create_in_place(&path)?;
        file.preallocate(4096)?;
        assert!(file.extend(8192)? || file.len()? == 8192);
        let promise = DiskFs.promise(&path)?;
        assert!(!promise.filesystem.is_empty());
        let plain = ["ext4", "xfs", "tmpfs", "btrfs"].contains(&&*promise.filesystem);
        assert_eq!(promise.in_place, plain, "{promise:?}");
        Ok(())
    }
}

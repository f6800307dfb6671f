//! [`MemFs`]: a disk in memory for tests. After a crash it has what was synced and nothing more.
//!
//! Fault model:
//! - [`MemFs::crash`] loses every change to bytes and lengths since the file's last `sync`, and
//!   every name created, renamed or removed since its directory's last `sync_dir`. If a directory's
//!   own name is lost, so is what it contains. Locks are released, and files that were opened
//!   before fail from then on.
//! - [`MemFs::crash_keeping`] loses less. Of each file's unsynced changes any subset is kept.
//!   Writes are torn at 512-byte sectors, and some sectors that were not written have also lost
//!   their old contents. Of each directory's unsynced names a prefix is kept, as in a journal.
//! - Operations are calls that change something or make it durable, numbered from 1 and counted by
//!   [`MemFs::ops`]. One of them can be made to fail, or the disk can be made to halt after one:
//!   then every later call fails until `crash`. Calls that only read are counted by
//!   [`MemFs::reads`].
//! - A failed write leaves the first half of its bytes. A failed sync leaves its bytes visible but
//!   never makes them durable, whatever is synced later, as on Linux; `drop_cache` then shows what
//!   the disk has. A sync that fails for lack of space makes an arbitrary part of them durable.
//! - Space is counted by length: a write or a preallocation beyond the capacity is `StorageFull`. A
//!   directory may be a filesystem of its own ([`MemFs::mount`]), with its own capacity.
//! - By default only operations that take space report a full disk. Some filesystems report it at
//!   others too ([`MemFs::set_late_full`]): a rename, a write into preallocated bytes, a sync, a
//!   removal, a sync of a directory.
//! - A process may have no descriptors left ([`MemFs::set_descriptors`]): open files keep working.
//! - [`MemFs::corrupt`] and [`MemFs::cut`] corrupt a file in place, durably. [`MemFs::bad_sectors`]
//!   makes sectors unreadable: every read of them fails, across crashes and renames, until they are
//!   written.
//!
//! Not modelled: hard links, permissions, directories that are removed or renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::content::Inode;
use self::faults::{error, injected};
use self::file::{MemDir, MemFile, MemLock};
use crate::fs::{Dir, File, Fs, Promise, Space};
use crate::rng::Rng;

mod content;
mod faults;
mod file;
#[cfg(test)]
mod tests;

pub use self::faults::{DiskFault, LateFull};

/// A filesystem with less free space than this is full.
const FULL_BYTES: u64 = 4096;

/// A disk; clones are the same disk.
#[derive(Clone)]
pub struct MemFs {
    disk: Arc<Mutex<Disk>>,
}

struct Disk {
    names: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    /// Changes of names whose directory was not synced since, in order.
    pending: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    capacity: u64,
    /// Directories that are filesystems of their own, and their capacities.
    mounts: BTreeMap<PathBuf, u64>,
    ops: u64,
    reads: u64,
    failing_ops: BTreeMap<u64, DiskFault>,
    failing_reads: BTreeMap<u64, DiskFault>,
    halt_after: Option<u64>,
    late: LateFull,
    /// The process has no descriptors left, so it can open nothing.
    no_descriptors: bool,
    /// The filesystem cannot reserve space.
    unreserved: bool,
    /// How often each fault that was asked for took place, by its name.
    struck: BTreeMap<&'static str, u64>,
    /// Counts crashes: files opened before the last one are dead.
    boot: u64,
}

#[derive(Clone)]
enum Node {
    Dir,
    File(Arc<Mutex<Inode>>),
}

struct NameChange {
    path: PathBuf,
    /// What exists at `path` from now on.
    node: Option<Node>,
}

impl Default for MemFs {
    fn default() -> Self {
        Self::new()
    }
}

impl MemFs {
    /// An empty disk with nothing but its root, `/`.
    pub fn new() -> Self {
        let roots = [PathBuf::from("/"), PathBuf::new()].map(|root| (root, Node::Dir));
        let disk = Disk {
            names: roots.clone().into(),
            durable: roots.into(),
            pending: Vec::new(),
            locks: BTreeSet::new(),
            capacity: 1 << 50,
            mounts: BTreeMap::new(),
            ops: 0,
            reads: 0,
            failing_ops: BTreeMap::new(),
            failing_reads: BTreeMap::new(),
            halt_after: None,
            late: LateFull::default(),
            no_descriptors: false,
            unreserved: false,
            struck: BTreeMap::new(),
            boot: 0,
        };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// An empty disk on which `dir` exists durably.
    pub fn with_dir(dir: &Path) -> Self {
        let fs = Self::new();
        {
            let mut disk = fs.disk();
            for dir in dir.ancestors() {
                disk.names.insert(dir.to_owned(), Node::Dir);
                disk.durable.insert(dir.to_owned(), Node::Dir);
            }
        }
        fs
    }

    /// Sets how many bytes all files may take together.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk().capacity = bytes;
    }

    /// Makes `dir` a filesystem of its own that holds `bytes`; a second call changes its size.
    pub fn mount(&self, dir: &Path, bytes: u64) {
        self.disk().mounts.insert(dir.to_owned(), bytes);
    }

    /// From now on, a filesystem with less than a block of free space fails these operations too.
    pub fn set_late_full(&self, late: LateFull) {
        self.disk().late = late;
    }

    /// Sets whether the process that uses this disk has descriptors left to open anything.
    pub fn set_descriptors(&self, any: bool) {
        self.disk().no_descriptors = !any;
    }

    /// From now on the filesystem cannot reserve space: preallocating writes zeros.
    pub fn cannot_reserve(&self) {
        self.disk().unreserved = true;
    }

    /// Bytes of all files on the filesystem of `dir`.
    pub fn used(&self, dir: &Path) -> u64 {
        let disk = self.disk();
        disk.used(disk.device(dir))
    }

    /// Operations so far: calls that change something or make it durable.
    pub fn ops(&self) -> u64 {
        self.disk().ops
    }

    /// Calls so far that only read.
    pub fn reads(&self) -> u64 {
        self.disk().reads
    }

    /// Makes operation number `op` fail.
    pub fn fail_op(&self, op: u64, fault: DiskFault) {
        self.disk().failing_ops.insert(op, fault);
    }

    /// Makes read number `read` fail.
    pub fn fail_read(&self, read: u64, fault: DiskFault) {
        self.disk().failing_reads.insert(read, fault);
    }

    /// Lets operation number `op` happen, and fails every later call.
    pub fn halt_after(&self, op: u64) {
        self.disk().halt_after = Some(op);
    }

    /// Forgets faults that were asked for and have not happened yet.
    pub fn heal(&self) {
        self.disk().forget_faults();
    }

    /// Power loss and a new start: only what was made durable is left, and faults are forgotten.
    pub fn crash(&self) {
        self.disk().crash(None);
    }

    /// Power loss that lets some unsynced changes survive, chosen by `seed`.
    pub fn crash_keeping(&self, seed: u64) {
        self.disk().crash(Some(Rng::new(seed)));
    }

    /// Whether an operation was tried after the last one that [`MemFs::halt_after`] allowed.
    pub fn is_halted(&self) -> bool {
        let disk = self.disk();
        disk.halt_after.is_some_and(|last| disk.ops > last)
    }

    /// How often the faults that were asked for took place: failures by kind, and writes torn by a
    /// crash.
    pub fn struck(&self) -> BTreeMap<&'static str, u64> {
        self.disk().struck.clone()
    }

    /// Whether a file or directory exists at `path` now.
    pub fn has(&self, path: &Path) -> bool {
        self.disk().names.contains_key(path)
    }

    /// Paths of all files.
    pub fn image_names(&self) -> Vec<PathBuf> {
        self.disk().files().into_iter().map(|(path, _)| path).collect()
    }

    /// Flips a bit of the byte at `offset`, durably.
    pub fn corrupt(&self, path: &Path, offset: u64) -> io::Result<()> {
        let inode = self.disk().file(path)?;
        guard(&inode).flip(offset);
        Ok(())
    }

    /// From now on reads of these bytes of a file fail (EIO), until their sectors are written
    /// again.
    pub fn bad_sectors(&self, path: &Path, bytes: Range<u64>) -> io::Result<()> {
        let inode = self.disk().file(path)?;
        guard(&inode).bad_sectors(bytes);
        Ok(())
    }

    /// Whether any file has unreadable sectors, including files that only a crash would bring back.
    pub fn has_bad_sectors(&self) -> bool {
        let disk = self.disk();
        let bad = |node: &Node| matches!(node, Node::File(inode) if guard(inode).has_bad());
        disk.names.values().chain(disk.durable.values()).any(bad)
    }

    /// Makes every sector of every file readable again.
    pub fn mend(&self) {
        let files = self.disk().files();
        files.into_iter().for_each(|(_, inode)| guard(&inode).mend());
    }

    /// Cuts a file to `len` bytes, durably.
    pub fn cut(&self, path: &Path, len: u64) -> io::Result<()> {
        let inode = self.disk().file(path)?;
        guard(&inode).cut(len);
        Ok(())
    }

    /// All files by path, with their bytes as a reader sees them: shows whether anything changed.
    pub fn image(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = self.disk().files();
        files.into_iter().map(|(path, inode)| (path, guard(&inode).image())).collect()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        guard(&self.disk)
    }

    fn handle(&self, inode: Arc<Mutex<Inode>>, path: &Path, writable: bool) -> Box<dyn File> {
        let boot = self.disk().boot;
        let (disk, path) = (Arc::clone(&self.disk), path.to_owned());
        Box::new(MemFile { disk, inode, path, boot, writable })
    }

    fn rename_to(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let mut disk = self.disk();
        disk.op("rename", from)?;
        let inode = disk.file(from)?;
        disk.parent(to)?;
        match disk.names.get(to) {
            Some(Node::Dir) => return Err(error(io::ErrorKind::IsADirectory, "rename to", to)),
            Some(Node::File(_)) if !replace => {
                return Err(error(io::ErrorKind::AlreadyExists, "rename to", to));
            }
            Some(Node::File(_)) | None => {}
        }
        // The new name comes first, so that no prefix of the two changes loses the file.
        disk.change(to, Some(Node::File(inode)));
        disk.change(from, None);
        Ok(())
    }
}

impl Fs for MemFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut disk = self.disk();
        disk.descriptor("create", path)?;
        disk.op("create", path)?;
        disk.parent(path)?;
        if disk.names.contains_key(path) {
            return Err(error(io::ErrorKind::AlreadyExists, "create", path));
        }
        let inode = Arc::new(Mutex::new(Inode::default()));
        disk.change(path, Some(Node::File(Arc::clone(&inode))));
        drop(disk);
        Ok(self.handle(inode, path, true))
    }

    fn create_in_place(&self, path: &Path) -> io::Result<Box<dyn File>> {
        self.create(path)
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>> {
        let mut disk = self.disk();
        disk.descriptor("open", path)?;
        disk.read("open", path)?;
        let inode = disk.file(path)?;
        drop(disk);
        Ok(self.handle(inode, path, write))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename_to(from, to, true)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename_to(from, to, false)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.op("remove", path)?;
        disk.file(path)?;
        disk.change(path, None);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut disk = self.disk();
        disk.descriptor("list", dir)?;
        disk.read("list", dir)?;
        if !matches!(disk.names.get(dir), Some(Node::Dir)) {
            return Err(error(io::ErrorKind::NotFound, "list", dir));
        }
        let children = disk.names.keys().filter(|path| is_child(path, dir));
        let names = children.filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut disk = self.disk();
        disk.read("look for", path)?;
        Ok(disk.names.contains_key(path))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        // A directory that exists takes no space.
        let there = matches!(disk.names.get(dir), Some(Node::Dir));
        disk.op(if there { "look at directory" } else { "create directory" }, dir)?;
        let missing: Vec<_> = dir.ancestors().collect();
        for dir in missing.into_iter().rev() {
            match disk.names.get(dir) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => {
                    return Err(error(io::ErrorKind::NotADirectory, "create directory", dir));
                }
                None => disk.change(dir, Some(Node::Dir)),
            }
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.descriptor("sync directory", dir)?;
        disk.sync_dir(dir)
    }

    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn Dir>> {
        let mut disk = self.disk();
        disk.descriptor("open", dir)?;
        disk.read("open", dir)?;
        if !matches!(disk.names.get(dir), Some(Node::Dir)) {
            return Err(error(io::ErrorKind::NotFound, "open", dir));
        }
        let (boot, path) = (disk.boot, dir.to_owned());
        Ok(Box::new(MemDir { disk: Arc::clone(&self.disk), path, boot }))
    }

    fn promise(&self, path: &Path) -> io::Result<Promise> {
        let mut disk = self.disk();
        disk.read("open", path)?;
        let in_place = !disk.late.write && !disk.late.sync;
        Ok(Promise { filesystem: "memory".to_owned(), in_place })
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let mut disk = self.disk();
        disk.read("measure", dir)?;
        let device = disk.device(dir);
        let total = disk.capacity(device);
        let available = total.saturating_sub(disk.used(device));
        Ok(Space { total, available, device: device as u64 })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut disk = self.disk();
        disk.descriptor("lock", path)?;
        disk.op("lock", path)?;
        disk.parent(path)?;
        if !disk.names.contains_key(path) {
            disk.change(path, Some(Node::File(Arc::default())));
        }
        if !disk.locks.insert(path.to_owned()) {
            return Err(error(io::ErrorKind::WouldBlock, "lock", path));
        }
        let boot = disk.boot;
        Ok(Box::new(MemLock { disk: Arc::clone(&self.disk), path: path.to_owned(), boot }))
    }
}

impl Disk {
    /// Counts an operation, and fails it if a fault was asked for.
    fn op(&mut self, doing: &str, path: &Path) -> io::Result<()> {
        self.halted(doing, path)?;
        if self.halt_after == Some(self.ops) {
            self.ops += 1;
            return self.halted(doing, path);
        }
        self.ops += 1;
        let late = self.late.strikes(doing) && self.is_full(path);
        let fault = self.failing_ops.remove(&self.ops).or(late.then_some(DiskFault::Full));
        if late {
            self.strike("operations without space, reported late");
        }
        match fault {
            Some(_) if doing == "sync" => self.strike("failed syncs"),
            Some(DiskFault::Io) => self.strike("failed operations"),
            Some(DiskFault::Full) => self.strike("operations without space"),
            Some(DiskFault::Denied) => self.strike("denied operations"),
            Some(DiskFault::Descriptors) => self.strike("operations without descriptors"),
            None => {}
        }
        injected(fault, doing, path)
    }

    /// Fails a call that needs a descriptor if none is left.
    fn descriptor(&mut self, doing: &str, path: &Path) -> io::Result<()> {
        if !self.no_descriptors {
            return Ok(());
        }
        self.strike("operations without descriptors");
        injected(Some(DiskFault::Descriptors), doing, path)
    }

    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        // Without a change there is nothing to write.
        let changed = self.pending.iter().any(|change| is_child(&change.path, dir));
        self.op(if changed { "sync directory" } else { "look at directory" }, dir)?;
        if !matches!(self.names.get(dir), Some(Node::Dir)) {
            return Err(error(io::ErrorKind::NotFound, "sync directory", dir));
        }
        let pending = std::mem::take(&mut self.pending);
        let (synced, rest) = pending.into_iter().partition(|change| is_child(&change.path, dir));
        self.pending = rest;
        synced.into_iter().for_each(|change: NameChange| change.apply(&mut self.durable));
        Ok(())
    }

    fn strike(&mut self, what: &'static str) {
        *self.struck.entry(what).or_default() += 1;
    }

    fn read(&mut self, doing: &str, path: &Path) -> io::Result<()> {
        self.halted(doing, path)?;
        self.reads += 1;
        let fault = self.failing_reads.remove(&self.reads);
        if fault.is_some() {
            self.strike("failed reads");
        }
        injected(fault, doing, path)
    }

    fn halted(&self, doing: &str, path: &Path) -> io::Result<()> {
        match self.halt_after {
            Some(last) if self.ops > last => Err(error(io::ErrorKind::Other, doing, path)),
            Some(_) | None => Ok(()),
        }
    }

    fn change(&mut self, path: &Path, node: Option<Node>) {
        let change = NameChange { path: path.to_owned(), node };
        change.clone_into(&mut self.names);
        self.pending.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<Arc<Mutex<Inode>>> {
        match self.names.get(path) {
            Some(Node::File(inode)) => Ok(Arc::clone(inode)),
            Some(Node::Dir) => Err(error(io::ErrorKind::IsADirectory, "open", path)),
            None => Err(error(io::ErrorKind::NotFound, "open", path)),
        }
    }

    fn parent(&self, path: &Path) -> io::Result<()> {
        match path.parent().and_then(|dir| self.names.get(dir)) {
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) | None => {
                Err(error(io::ErrorKind::NotFound, "open parent of", path))
            }
        }
    }

    fn files(&self) -> Vec<(PathBuf, Arc<Mutex<Inode>>)> {
        let file = |(path, node): (&PathBuf, &Node)| match node {
            Node::File(inode) => Some((path.clone(), Arc::clone(inode))),
            Node::Dir => None,
        };
        self.names.iter().filter_map(file).collect()
    }

    /// The filesystem that holds `path`; 0 is the root filesystem.
    fn device(&self, path: &Path) -> usize {
        let holds = |(_, mount): &(usize, &PathBuf)| path.starts_with(mount);
        self.mounts.keys().enumerate().rfind(holds).map_or(0, |(place, _)| place + 1)
    }

    fn capacity(&self, device: usize) -> u64 {
        match device {
            0 => self.capacity,
            place => *self.mounts.values().nth(place - 1).expect("the device is mounted"),
        }
    }

    fn used(&self, device: usize) -> u64 {
        let here = |(path, node): (&PathBuf, &Node)| match node {
            Node::File(inode) if self.mounts.is_empty() || self.device(path) == device => {
                Some((Arc::as_ptr(inode), guard(inode).len()))
            }
            Node::File(_) | Node::Dir => None,
        };
        // A crash may leave a file with both names of a rename; it takes its space once.
        self.names.iter().filter_map(here).collect::<BTreeMap<_, _>>().into_values().sum()
    }

    /// Whether the filesystem of `path` has no block left.
    fn is_full(&self, path: &Path) -> bool {
        let device = self.device(path);
        self.capacity(device).saturating_sub(self.used(device)) < FULL_BYTES
    }

    fn check_space(&self, doing: &str, path: &Path, growth: u64) -> io::Result<()> {
        if growth == 0 {
            return Ok(());
        }
        let device = self.device(path);
        if growth > self.capacity(device).saturating_sub(self.used(device)) {
            return injected(Some(DiskFault::Full), doing, path);
        }
        Ok(())
    }

    fn crash(&mut self, mut keep: Option<Rng>) {
        // In each directory, all changes after the first lost one are lost too.
        let mut lost = BTreeSet::new();
        for change in std::mem::take(&mut self.pending) {
            let dir = change.path.parent().map(Path::to_owned).unwrap_or_default();
            let lucky = keep.as_mut().is_some_and(Rng::coin);
            if lucky && !lost.contains(&dir) {
                change.apply(&mut self.durable);
            } else {
                lost.insert(dir);
            }
        }
        let names = &mut self.durable;
        let orphans: Vec<_> = names
            .keys()
            .filter(|p| p.ancestors().any(|a| !names.contains_key(a)))
            .cloned()
            .collect();
        orphans.iter().for_each(|path| drop(names.remove(path)));
        self.names = self.durable.clone();
        for (_path, inode) in self.files() {
            let torn = guard(&inode).crash(keep.as_mut());
            if torn > 0 {
                *self.struck.entry("torn writes").or_default() += torn;
            }
        }
        self.locks.clear();
        self.forget_faults();
        self.boot += 1;
    }

    fn forget_faults(&mut self) {
        self.failing_ops.clear();
        self.failing_reads.clear();
        self.halt_after = None;
    }
}

impl NameChange {
    fn clone_into(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match &self.node {
            Some(node) => drop(names.insert(self.path.clone(), node.clone())),
            None => drop(names.remove(&self.path)),
        }
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, Node>) {
        self.clone_into(names);
    }
}

fn is_child(path: &Path, dir: &Path) -> bool {
    path.parent() == Some(dir)
}

/// Locks a mutex even if a thread panicked while it held the lock: the disk's bytes are still
/// valid.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! [`SnapshotDisk`]: the disk of a group's snapshots, and [`DiskPlaces`]: the host's places for
//! work on such disks.
//!
//! A thread that waits for a disk that hangs is lost until the disk answers. The groups of a host
//! share its places for transfers and reads, but their snapshots may lie on different disks.
//!
//! - While a group's disk hangs, the group is given no place.
//! - A place counts only while its group's disk answers: once the disk is seen to hang, other
//!   groups may take a place instead.
//! - So a hanging disk blocks only the threads that began before it was seen to hang.
//!
//! The owner of a place records its disk operations in a [`DiskWatch`] of the disk; readers and
//! writers of objects do so themselves. A blocked owner ends by itself once the disk answers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lockstep_core::mutant::planted;

use crate::disk_watch::{DiskWatch, Hanging};

/// The disk of a group's snapshots, with a watch for each thread that works on it.
#[derive(Debug, Default)]
pub struct SnapshotDisk {
    dir: PathBuf,
    /// A thread that is done with the disk leaves a dead entry.
    threads: Mutex<Vec<Weak<DiskWatch>>>,
}

/// The host's places for one kind of work on disks of snapshots.
#[derive(Clone, Debug)]
pub(crate) struct DiskPlaces {
    most: usize,
    /// A place that was given back leaves a dead entry.
    taken: Arc<Mutex<Vec<Weak<Owner>>>>,
}

/// The right to work on a disk of snapshots; dropping it gives the place back.
#[derive(Debug)]
pub struct DiskPlace {
    _owner: Arc<Owner>,
}

/// The disk for which a place was taken.
#[derive(Debug)]
struct Owner(Arc<SnapshotDisk>);

impl SnapshotDisk {
    /// The disk where `dir` lies.
    pub(crate) fn at(dir: &Path) -> Arc<Self> {
        Arc::new(Self { dir: dir.to_owned(), threads: Mutex::default() })
    }

    /// A watch for one more thread. It counts for [`Self::hanging`] until it is dropped.
    pub(crate) fn watch(&self) -> Arc<DiskWatch> {
        let watch = Arc::new(DiskWatch::new("snapshots", &self.dir));
        self.look_at(&watch);
        watch
    }

    /// The operation that has hung longest.
    pub(crate) fn hanging(&self) -> Option<Hanging> {
        let threads = self.threads();
        let hanging = threads.iter().filter_map(Weak::upgrade).filter_map(|watch| watch.hanging());
        hanging.max_by_key(|hanging| hanging.ms)
    }

    fn look_at(&self, watch: &Arc<DiskWatch>) {
        let mut threads = self.threads();
        threads.retain(|thread| thread.strong_count() > 0);
        threads.push(Arc::downgrade(watch));
    }

    fn threads(&self) -> MutexGuard<'_, Vec<Weak<DiskWatch>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskPlaces {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// A place for work on `disk`, if one is free and the disk does not hang.
    pub(crate) fn take(&self, disk: &Arc<SnapshotDisk>) -> Option<DiskPlace> {
        if disk.hanging().is_some() && !planted("take_for_what_hangs") {
            return None;
        }
        let mut taken = self.taken();
        taken.retain(|place| place.strong_count() > 0);
        let owners = taken.iter().filter_map(Weak::upgrade);
        let counts =
            |owner: &Arc<Owner>| planted("count_what_hangs") || owner.0.hanging().is_none();
        if owners.filter(counts).count() >= self.most {
            return None;
        }
        let owner = Arc::new(Owner(Arc::clone(disk)));
        taken.push(Arc::downgrade(&owner));
        Some(DiskPlace { _owner: owner })
    }

    /// Places that are taken, including those on hanging disks, which do not count.
    pub(crate) fn in_use(&self) -> usize {
        self.taken().iter().filter(|place| place.strong_count() > 0).count()
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Weak<Owner>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl SnapshotDisk {
    /// Makes the disk hang until the returned watch is dropped.
    pub(crate) fn hang(&self) -> Arc<DiskWatch> {
        let watch = Arc::new(DiskWatch::hung("snapshots", &self.dir));
        self.look_at(&watch);
        watch
    }

    /// Whether a thread is in an operation on this disk.
    pub(crate) fn is_in_use(&self) -> bool {
        self.threads().iter().filter_map(Weak::upgrade).any(|watch| watch.is_at_disk())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use lockstep_core::snapshot::chunk::Block;

    use super::*;
    use crate::fs::{File, Fs};
    use crate::store::reserve::{Held, Use};
    use crate::store::tests::{BLOCK, Bed, desc, dir, header, identity, payload, state};
    use crate::store::{SnapshotReader, SnapshotStore, StagedWriter};

    /// A file that counts the operations on it: those that a watch of its disk records, and those
    /// that none does.
    struct Watched {
        file: Box<dyn File>,
        disk: Arc<SnapshotDisk>,
        counts: Arc<[AtomicUsize; 2]>,
    }

    impl Watched {
        fn counted(&self) -> &dyn File {
            self.counts[usize::from(!self.disk.is_in_use())].fetch_add(1, Ordering::Relaxed);
            &*self.file
        }
    }

    impl File for Watched {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.counted().read_at(buf, offset)
        }

        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.counted().write_at(buf, offset)
        }

        fn sync(&self) -> io::Result<()> {
            self.counted().sync()
        }

        fn len(&self) -> io::Result<u64> {
            self.counted().len()
        }

        fn preallocate(&self, len: u64) -> io::Result<()> {
            self.counted().preallocate(len)
        }

        fn extend(&self, len: u64) -> io::Result<bool> {
            self.counted().extend(len)
        }

        fn truncate(&self, len: u64) -> io::Result<()> {
            self.counted().truncate(len)
        }

        fn drop_cache(&self) {
            self.file.drop_cache();
        }
    }

    /// Other threads can see a transfer's disk operations while they are under way.
    #[test]
    fn a_thread_that_writes_or_reads_an_object_is_seen() {
        let (disk, bed) = (Arc::<SnapshotDisk>::default(), Bed::new());
        let fs: Arc<dyn Fs> = Arc::new(bed.fs.clone());
        let quota = bed.budget.quota_on(Arc::clone(&disk), u64::MAX);
        let opened = SnapshotStore::open(Arc::clone(&fs), dir(), identity(), quota, &state(&[]));
        let (mut store, _) = opened.expect("the store opens");
        let counts = Arc::<[AtomicUsize; 2]>::default();
        let now = || [0_usize, 1].map(|which| counts[which].load(Ordering::Relaxed));
        let watched = |file: io::Result<Box<dyn File>>| {
            let (disk, counts) = (Arc::clone(&disk), Arc::clone(&counts));
            Box::new(Watched { file: file.expect("it opens"), disk, counts })
        };

        let (bytes, path) = (payload(2 * BLOCK), dir().join("watched"));
        let desc = desc(10, &bytes);
        let reservation = store.reserve(&header(&desc)).expect("there is space");
        let (file, part) = (watched(fs.create(&path)), "watched".to_owned());
        let writer = StagedWriter::begin(file, part, reservation, identity(), &fs, dir());
        let mut writer = writer.expect("it is created");
        // The store lane creates the file, and has a watch of its own.
        let [_, of_the_lane] = now();
        for (number, data) in bytes.chunks(BLOCK).enumerate() {
            let (offset, crc) = ((number * BLOCK) as u64, crc32c::crc32c(data));
            let block = Block { offset, crc, data: data.to_vec().into() };
            writer.write_block(&block).expect("it is written");
        }
        let finished = writer.finish().expect("it is whole");
        assert_eq!(now(), [6, of_the_lane], "two blocks and a trailer, and a sync");

        let hold = Held::new(Arc::clone(&finished.allocation), Use::Scrubbing);
        let file = watched(fs.open(&path, false));
        let reader = SnapshotReader::open(file, identity(), &desc, Some(hold));
        reader.and_then(|reader| reader.verify(&mut || ())).expect("it is whole");
        assert_eq!(now(), [11, of_the_lane], "length, header and trailer, and two blocks");
        assert!(!disk.is_in_use());
    }

    #[test]
    fn a_disk_that_hangs_takes_no_place_from_others() {
        let places = DiskPlaces::new(2);
        let (slow, fine) = (SnapshotDisk::at(Path::new("/slow")), Arc::<SnapshotDisk>::default());
        let held = [places.take(&slow), places.take(&slow)];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(&fine).is_none(), "the disk may only be slow");

        let hang = slow.hang();
        assert_eq!(slow.hanging().expect("for a minute").dir, "/slow");
        assert!(places.take(&slow).is_none(), "no more threads are lost to it");
        let others = [places.take(&fine), places.take(&fine)];
        assert!(others.iter().all(Option::is_some), "what waits for it counts no more");
        assert!(places.take(&fine).is_none());
        assert_eq!(places.in_use(), 4);

        drop(hang);
        assert_eq!(slow.hanging(), None);
        assert!(places.take(&slow).is_none(), "all four count again");
        drop(others);
        assert!(places.take(&slow).is_none());
        drop(held);
        assert!(places.take(&slow).is_some());
        assert_eq!(places.in_use(), 0);
    }
}

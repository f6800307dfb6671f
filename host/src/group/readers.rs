//! [`Readers`]: reads the disk beside the actors: the log for followers, and whole snapshots.
//!
//! A disk that hangs holds the threads that read it. So reads of one kind, of all groups of a node
//! together, take few threads of the runtime's pool at a time; the others wait as tasks, and the
//! pool stays free for other work. The log has one disk; snapshots may lie on several, and those of
//! a disk that hangs are not read.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::ids::GroupId;
use lockstep_core::limits;
use raft::eraftpb::Entry;
use tokio::sync::{Semaphore, oneshot};

use crate::disk_watch::Hanging;
use crate::store::{DiskPlace, DiskPlaces, SnapshotDisk};
use crate::wal::WalReader;

/// Reads of one kind under way at a time.
const READS_MAX: usize = 8;
/// Time between two tries to get a place to read a snapshot; much shorter than such a read.
const NEXT_TRY: Duration = Duration::from_millis(100);

/// Places to read: one set for the disk of the log, one for the disks of snapshots.
#[derive(Clone)]
pub(crate) struct Readers {
    pub(super) log: Arc<Semaphore>,
    snapshots: DiskPlaces,
}

impl Default for Readers {
    fn default() -> Self {
        let log = Arc::new(Semaphore::new(READS_MAX));
        Self { log, snapshots: DiskPlaces::new(READS_MAX) }
    }
}

impl Readers {
    /// Waits for a place to read a snapshot on `disk`; fails at once while the disk hangs.
    pub(super) async fn place_at(&self, disk: &Arc<SnapshotDisk>) -> Result<DiskPlace, Hanging> {
        loop {
            if let Some(hanging) = disk.hanging() {
                return Err(hanging);
            }
            if let Some(place) = self.snapshots.take(disk) {
                return Ok(place);
            }
            tokio::time::sleep(NEXT_TRY).await;
        }
    }
}

/// Reads an entry of a group back, for an operator who wants to see it.
pub(super) fn read_entry(
    readers: &Arc<Semaphore>,
    reader: WalReader,
    (group, index): (GroupId, u64),
    answer: oneshot::Sender<Option<Entry>>,
) {
    tokio::spawn(read(Arc::clone(readers), move || {
        let entries = reader.entries(group, index, index + 1, limits::APPEND_BYTES_MAX);
        let _ = answer.send(entries.ok().and_then(|entries| entries.into_iter().next()));
    }));
}

/// Runs `work` on a thread once there is a place; `None` if it panicked, or the runtime ends.
pub(super) async fn read<T: Send + 'static>(
    places: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let place = places.acquire_owned().await.ok()?;
    read_in(place, work).await
}

/// Runs `work` on a thread, and gives `place` back when it ends; `None` if it panicked, or the
/// runtime ends.
pub(super) async fn read_in<T: Send + 'static>(
    place: impl Send + 'static,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let reading = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(place);
        done
    });
    reading.await.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, mpsc};

    use tokio::task::JoinSet;

    use super::*;

    /// However many reads hang, the runtime's threads stay free for other work.
    #[tokio::test(flavor = "multi_thread")]
    async fn reads_that_hang_take_few_threads() {
        let readers = Readers::default();
        let (let_go, go) = mpsc::channel::<()>();
        let (go, under_way) = (Arc::new(Mutex::new(go)), Arc::<AtomicUsize>::default());
        let mut hanging = JoinSet::new();
        for _ in 0..2_000 {
            let (go, under_way) = (Arc::clone(&go), Arc::clone(&under_way));
            hanging.spawn(read(Arc::clone(&readers.log), move || {
                let most = under_way.fetch_add(1, Ordering::SeqCst) + 1;
                let _ended = go.lock().expect("nobody panics").recv();
                under_way.fetch_sub(1, Ordering::SeqCst);
                most
            }));
        }
        while under_way.load(Ordering::SeqCst) < READS_MAX {
            tokio::task::yield_now().await;
        }
        let other = tokio::task::spawn_blocking(|| 7).await.expect("there is a thread");
        let place = readers.place_at(&Arc::default()).await.expect("its disk answers");
        assert_eq!((other, read_in(place, || 8).await), (7, Some(8)));
        drop(let_go);
        while let Some(most) = hanging.join_next().await {
            assert!(most.expect("no panic").expect("it was read") <= READS_MAX);
        }
    }

    /// However many snapshots are read on a disk that hangs, those of another disk are read.
    #[tokio::test]
    async fn a_disk_that_hangs_is_read_no_more_and_takes_no_place_from_another() {
        let readers = Readers::default();
        let (slow, fine) = (Arc::<SnapshotDisk>::default(), Arc::<SnapshotDisk>::default());
        let mut held = Vec::new();
        for _ in 0..READS_MAX {
            held.push(readers.place_at(&slow).await.expect("it answers"));
        }
        let hang = slow.hang();
        let refused = readers.place_at(&slow).await.expect_err("it hangs");
        assert!(refused.to_string().contains("has not answered for 6"), "{refused}");
        let place = readers.place_at(&fine).await.expect("it answers");
        assert_eq!(read_in(place, || 8).await, Some(8));
        drop((hang, held));
        readers.place_at(&slow).await.expect("it answers again");
    }

    #[tokio::test]
    async fn a_reader_that_panics_gives_its_place_back() {
        let readers = Readers::default();
        for _ in 0..2 * READS_MAX {
            let read = read(Arc::clone(&readers.log), || std::panic::resume_unwind(Box::new(())));
            assert_eq!(read.await, None::<()>);
        }
    }
}

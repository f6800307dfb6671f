//! [`Readers`]: reads the disk beside the actors: the log for followers, and whole snapshots.
//!
//! A disk that hangs holds the threads that read it. So reads of one kind, of all groups of a node
//! together, take few threads of the runtime's pool at a time; the others wait as tasks, and the
//! pool stays free for other work.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Reads of one kind under way at a time.
const READS_MAX: usize = 8;

/// Places to read: one set for the disk of the log, one for those of snapshots.
#[derive(Clone)]
pub(crate) struct Readers {
    pub(super) log: Arc<Semaphore>,
    pub(super) snapshots: Arc<Semaphore>,
}

impl Default for Readers {
    fn default() -> Self {
        let places = || Arc::new(Semaphore::new(READS_MAX));
        Self { log: places(), snapshots: places() }
    }
}

/// Runs `work` on a thread once there is a place; `None` if it panicked, or the runtime ends.
pub(super) async fn read<T: Send + 'static>(
    places: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let place = places.acquire_owned().await.ok()?;
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
        assert_eq!((other, read(readers.snapshots, || 8).await), (7, Some(8)));
        drop(let_go);
        while let Some(most) = hanging.join_next().await {
            assert!(most.expect("no panic").expect("it was read") <= READS_MAX);
        }
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

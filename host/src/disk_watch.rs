//! [`DiskWatch`]: how long a thread has been in one disk operation, as seen by other threads.
//!
//! A thread that hangs in a system call answers nobody and cannot be interrupted. So each thread
//! records when it begins a disk operation and when the operation returns, and other threads read
//! these records.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_core::fault::Stall;
use lockstep_core::limits;

/// Records the disk operation that a thread is in, if any.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    /// What lies on the disk, for messages.
    what: &'static str,
    dir: PathBuf,
    epoch: Instant,
    /// When the operation began or last gave an answer, microseconds from `epoch`; [`AWAY`] while
    /// the thread is in no operation.
    since_us: AtomicU64,
}

/// The thread is in no disk operation.
const AWAY: u64 = u64::MAX;

/// A disk operation that hangs, and for how long it has hung.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hanging {
    /// The directory of the log, or of the snapshots.
    pub dir: String,
    pub ms: u64,
}

impl DiskWatch {
    pub(crate) fn new(what: &'static str, dir: &Path) -> Self {
        let (epoch, since_us) = (Instant::now(), AtomicU64::new(AWAY));
        Self { what, dir: dir.to_owned(), epoch, since_us }
    }

    /// Runs a disk operation, and records its start and its end.
    pub(crate) fn at_disk<T>(&self, operation: impl FnOnce() -> T) -> T {
        self.at_disk_beyond(Duration::ZERO, operation)
    }

    /// Runs a disk operation whose first `allowed` time does not count towards a hang: a large
    /// write takes long on a healthy disk too.
    pub(crate) fn at_disk_beyond<T>(&self, allowed: Duration, operation: impl FnOnce() -> T) -> T {
        let since_us = self.now_us() + allowed.as_micros() as u64;
        self.since_us.store(since_us, Ordering::Relaxed);
        let back = Back(self);
        let done = operation();
        drop(back);
        done
    }

    /// Records one of several answers that an operation gives; returns how long this answer took.
    pub(crate) fn answered(&self) -> Duration {
        let now = self.now_us();
        Duration::from_micros(under_way(self.since_us.swap(now, Ordering::Relaxed), now))
    }

    /// How long the operation under way has taken; zero if there is none.
    pub(crate) fn under_way(&self) -> Duration {
        Duration::from_micros(under_way(self.since_us.load(Ordering::Relaxed), self.now_us()))
    }

    /// The text that the disk has not answered for some time, for messages.
    pub(crate) fn not_answering(&self) -> String {
        self.so_far().to_string()
    }

    /// The operation under way, if it has taken longer than [`limits::DISK_STALL_MS`].
    pub(crate) fn hanging(&self) -> Option<Hanging> {
        (self.under_way().as_millis() as u64 > limits::DISK_STALL_MS).then(|| self.so_far())
    }

    fn so_far(&self) -> Hanging {
        let (dir, ms) = (self.dir.display().to_string(), self.under_way().as_millis() as u64);
        Hanging { dir, ms }
    }

    fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }
}

impl Hanging {
    /// The stall as the core gets it: without a duration, so that it compares equal as long as it
    /// lasts.
    pub(crate) fn stall(self) -> Stall {
        Stall { path: self.dir }
    }
}

impl std::fmt::Display for Hanging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the disk of {} has not answered for {} s", self.dir, self.ms / 1000)
    }
}

/// Records on drop that the operation ended, even if it panicked.
struct Back<'a>(&'a DiskWatch);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let watch = self.0;
        let ms = under_way(watch.since_us.swap(AWAY, Ordering::Relaxed), watch.now_us()) / 1000;
        if ms > limits::DISK_STALL_MS {
            let (dir, what) = (watch.dir.display(), watch.what);
            tracing::warn!(%dir, ms, "the disk of the {what} hung and now answers again");
        }
    }
}

fn under_way(since_us: u64, now_us: u64) -> u64 {
    if since_us == AWAY { 0 } else { now_us.saturating_sub(since_us) }
}

#[cfg(test)]
impl DiskWatch {
    /// The watch of an operation that has hung for a minute.
    pub(crate) fn hung(what: &'static str, dir: &Path) -> Self {
        let mut watch = Self::new(what, dir);
        watch.epoch = Instant::now().checked_sub(Duration::from_secs(60)).expect("it ran so long");
        watch.since_us.store(0, Ordering::Relaxed);
        watch
    }

    pub(crate) fn is_at_disk(&self) -> bool {
        self.since_us.load(Ordering::Relaxed) != AWAY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_seen_from_outside() {
        assert_eq!(under_way(AWAY, 7_000), 0, "it waits for work");
        assert_eq!(under_way(2_000, 7_000), 5_000);
        assert_eq!(under_way(7_001, 7_000), 0, "two threads need not agree on the microsecond");

        let mut watch = DiskWatch::new("log", Path::new("/data/wal"));
        watch.epoch = Instant::now().checked_sub(Duration::from_secs(60)).expect("it ran so long");
        assert_eq!(watch.hanging(), None);
        watch.since_us.store(10_000_000, Ordering::Relaxed);
        let hanging = watch.hanging().expect("for 50 s by now");
        assert_eq!(hanging.dir, "/data/wal");
        assert!(hanging.ms >= 50_000);
        watch.at_disk(|| assert_eq!(watch.hanging(), None, "it only began"));
        assert_eq!(watch.hanging(), None);
        assert_eq!(watch.since_us.load(Ordering::Relaxed), AWAY);
        watch.at_disk(|| {
            // A round of many batches is no operation that hangs.
            watch.since_us.store(10_000_000, Ordering::Relaxed);
            assert!(watch.answered() >= Duration::from_secs(50));
            assert_eq!(watch.hanging(), None);
        });
        watch.at_disk_beyond(Duration::from_secs(30), || {
            assert_eq!((watch.under_way(), watch.is_at_disk()), (Duration::ZERO, true));
        });
        assert!(!watch.is_at_disk());
    }
}

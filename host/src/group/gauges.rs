//! [`Gauges`]: figures that a group's lanes and workers publish while they work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_core::apply::Sessions;
use prometheus_client::metrics::histogram::Histogram;

use crate::disk_watch::{DiskWatch, Hanging};
use crate::metrics::seconds_histogram;
use crate::store::SnapshotDisk;

/// Read at any time, from any thread.
pub struct Gauges {
    pub guest_memory_bytes: AtomicU64,
    pub guest_faults: AtomicU64,
    /// Snapshots that trapped since the last one that succeeded.
    pub snapshot_traps: AtomicU64,
    /// Log lines of the guest that were dropped, because there were too many.
    pub guest_log_dropped: AtomicU64,
    /// Of the last local snapshot: how long it kept the lane from applying entries, how long it
    /// took to seal from when the guest had written it, and when it was sealed.
    pub snapshot_stall_ms: AtomicU64,
    pub last_capture_ms: AtomicU64,
    pub last_snapshot_wall_ms: AtomicU64,
    pub last_restore_ms: AtomicU64,
    pub sessions: AtomicU64,
    pub sessions_evicted: AtomicU64,
    pub sessions_refused: AtomicU64,
    /// Time from a proposal to its commit, on a leader; and time to apply an entry. Seconds.
    pub commits: Histogram,
    pub applies: Histogram,
    /// The disk of the snapshots, and what the store lane does there.
    pub(super) disk: Arc<SnapshotDisk>,
    pub(super) store: Arc<DiskWatch>,
}

impl Default for Gauges {
    fn default() -> Self {
        Self::of(Arc::default())
    }
}

impl Gauges {
    /// The gauges of a group whose snapshots lie on `disk`.
    pub(super) fn of(disk: Arc<SnapshotDisk>) -> Self {
        Self {
            guest_memory_bytes: AtomicU64::new(0),
            guest_faults: AtomicU64::new(0),
            snapshot_traps: AtomicU64::new(0),
            guest_log_dropped: AtomicU64::new(0),
            snapshot_stall_ms: AtomicU64::new(0),
            last_capture_ms: AtomicU64::new(0),
            last_snapshot_wall_ms: AtomicU64::new(0),
            last_restore_ms: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            sessions_evicted: AtomicU64::new(0),
            sessions_refused: AtomicU64::new(0),
            commits: seconds_histogram(),
            applies: seconds_histogram(),
            store: disk.watch(),
            disk,
        }
    }

    /// Publishes how many sessions the group has, and has evicted and refused.
    pub(super) fn count(&self, sessions: &Sessions) {
        self.sessions.store(sessions.count() as u64, Ordering::Relaxed);
        self.sessions_evicted.store(sessions.evicted(), Ordering::Relaxed);
        self.sessions_refused.store(sessions.refused(), Ordering::Relaxed);
    }

    /// The operation that has hung longest on the disk of the snapshots.
    pub(super) fn snapshots_hang(&self) -> Option<Hanging> {
        self.disk.hanging()
    }

    /// Records how long a restore took, and the log's time in its snapshot, which stands for the
    /// time of the last snapshot until one is taken here.
    pub(super) fn restored(&self, took_ms: u64, stands_for_ms: u64) {
        self.last_restore_ms.store(took_ms, Ordering::Relaxed);
        let (taken, order) = (&self.last_snapshot_wall_ms, Ordering::Relaxed);
        let _ = taken.compare_exchange(0, stands_for_ms, order, order);
    }
}

//! [`StoreHandle`]: how bulk workers and other lanes run jobs on a group's store lane.

use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use super::SnapshotStore;
use super::reserve::SnapshotRefusal;

/// A job for the lane that owns a group's [`SnapshotStore`].
pub type StoreJob = Box<dyn FnOnce(&mut SnapshotStore) + Send>;

/// Access to one group's store lane: queues a job or runs it at once. A lane that has stopped drops
/// the job.
pub trait StoreHandle: Send + Sync {
    fn run(&self, job: StoreJob);
}

/// Runs `job` on the lane and waits for its answer; `None` if the lane is gone.
pub fn on_lane<R: Send + 'static>(
    handle: &dyn StoreHandle,
    job: impl FnOnce(&mut SnapshotStore) -> R + Send + 'static,
) -> Option<R> {
    let (answer, waiting) = mpsc::sync_channel(1);
    handle.run(Box::new(move |store| {
        // Fails only if the waiting thread is unwinding.
        let _ = answer.send(job(store));
    }));
    waiting.recv().ok()
}

/// [`on_lane`] that waits no longer than `patience`. An answer that comes later is dropped.
pub fn on_lane_within<R: Send + 'static>(
    handle: &dyn StoreHandle,
    patience: Duration,
    job: impl FnOnce(&mut SnapshotStore) -> R + Send + 'static,
) -> Result<R, mpsc::RecvTimeoutError> {
    let (answer, waiting) = mpsc::sync_channel(1);
    handle.run(Box::new(move |store| {
        // Fails if the caller stopped waiting, or its thread is unwinding.
        let _ = answer.send(job(store));
    }));
    waiting.recv_timeout(patience)
}

/// [`on_lane`] for jobs that may be refused; a lane that is gone refuses with `Closed`.
pub fn ask_lane<R: Send + 'static>(
    handle: &dyn StoreHandle,
    job: impl FnOnce(&mut SnapshotStore) -> Result<R, SnapshotRefusal> + Send + 'static,
) -> Result<R, SnapshotRefusal> {
    on_lane(handle, job).unwrap_or(Err(SnapshotRefusal::Closed))
}

/// A store behind a lock: jobs run on the caller's thread, one at a time. For tools and tests.
pub struct DirectLane(Mutex<SnapshotStore>);

impl DirectLane {
    pub fn new(store: SnapshotStore) -> Self {
        Self(Mutex::new(store))
    }
}

impl StoreHandle for DirectLane {
    fn run(&self, job: StoreJob) {
        job(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

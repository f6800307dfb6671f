//! The store lane: one thread per group, the only one that touches names in `snap/`.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use crate::store::{SnapshotStore, StoreHandle, StoreJob, StoreReport};

/// The way to one group's store lane.
#[derive(Clone)]
pub(crate) struct StoreLane {
    jobs: mpsc::Sender<StoreJob>,
}

/// What the store was like after the lane's last job.
#[derive(Clone, Default)]
pub(crate) struct StoreWatch(Arc<Mutex<StoreReport>>);

impl StoreWatch {
    pub(crate) fn now(&self) -> StoreReport {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, report: StoreReport) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }
}

impl StoreLane {
    /// Starts the lane; it ends when the last handle is dropped.
    pub(crate) fn start(
        group: &str,
        mut store: SnapshotStore,
    ) -> std::io::Result<(Self, StoreWatch, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel::<StoreJob>();
        let watch = StoreWatch::default();
        watch.set(store.report());
        let shown = watch.clone();
        let thread =
            std::thread::Builder::new().name(format!("store-{group}")).spawn(move || {
                for job in queue {
                    job(&mut store);
                    shown.set(store.report());
                }
            })?;
        Ok((Self { jobs }, watch, thread))
    }
}

impl StoreHandle for StoreLane {
    fn run(&self, job: StoreJob) {
        // A lane that is gone drops the job, and whoever waits sees that.
        let _ = self.jobs.send(job);
    }
}

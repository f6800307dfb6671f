//! The store lane: one thread per group, the only one that touches names in `snap/`.

use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::store::{SnapshotStore, StoreHandle, StoreJob};

/// The way to one group's store lane.
#[derive(Clone)]
pub(crate) struct StoreLane {
    jobs: mpsc::Sender<StoreJob>,
}

impl StoreLane {
    /// Starts the lane; it ends when the last handle is dropped.
    pub(crate) fn start(
        group: &str,
        mut store: SnapshotStore,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel::<StoreJob>();
        let thread =
            std::thread::Builder::new().name(format!("store-{group}")).spawn(move || {
                for job in queue {
                    job(&mut store);
                }
            })?;
        Ok((Self { jobs }, thread))
    }
}

impl StoreHandle for StoreLane {
    fn run(&self, job: StoreJob) {
        // A lane that is gone drops the job, and whoever waits sees that.
        let _ = self.jobs.send(job);
    }
}

//! The store lane: one thread per group, the only one that touches names in `snap/`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use crate::group::gauges::Gauges;
use crate::store::{SnapshotStore, StoreHandle, StoreJob, StoreReport};

/// A handle of one group's store lane.
#[derive(Clone)]
pub(crate) struct StoreLane {
    jobs: mpsc::Sender<StoreJob>,
}

/// The store's report after the lane's last job.
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
        gauges: Arc<Gauges>,
    ) -> std::io::Result<(Self, StoreWatch, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel::<StoreJob>();
        let watch = StoreWatch::default();
        watch.set(store.report());
        let shown = watch.clone();
        let thread =
            std::thread::Builder::new().name(format!("store-{group}")).spawn(move || {
                for job in queue {
                    gauges.store.at_disk(|| {
                        job(&mut store);
                        shown.set(store.report());
                    });
                }
            })?;
        Ok((Self { jobs }, watch, thread))
    }
}

/// A recurring request to the lane: it is not sent again before the lane has come to the last one,
/// so that requests do not pile up while its disk hangs.
#[derive(Default)]
pub(super) struct Standing(Arc<AtomicBool>);

impl Standing {
    /// Sends the request, unless the last one still waits.
    pub(super) fn ask(
        &self,
        store: &dyn StoreHandle,
        job: impl FnOnce(&mut SnapshotStore) + Send + 'static,
    ) {
        if self.0.swap(true, Ordering::Relaxed) {
            return;
        }
        let asked = Arc::clone(&self.0);
        store.run(Box::new(move |store| {
            asked.store(false, Ordering::Relaxed);
            job(store);
        }));
    }
}

impl StoreHandle for StoreLane {
    fn run(&self, job: StoreJob) {
        // If the lane is gone the job is dropped, which a caller that waits notices.
        let _ = self.jobs.send(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lane whose disk hangs.
    #[derive(Default)]
    struct Hangs(Mutex<Vec<StoreJob>>);

    impl StoreHandle for Hangs {
        fn run(&self, job: StoreJob) {
            self.0.lock().expect("nobody panics").push(job);
        }
    }

    #[test]
    fn a_question_waits_once() {
        let (lane, tend, look) = (Hangs::default(), Standing::default(), Standing::default());
        let waiting = || lane.0.lock().expect("nobody panics").len();
        for _ in 0..100 {
            tend.ask(&lane, |_| ());
            look.ask(&lane, |_| ());
        }
        assert_eq!(waiting(), 2);
        // The lane comes to the first one.
        let job = lane.0.lock().expect("nobody panics").remove(0);
        job(&mut crate::store::tests::Bed::new().store);
        tend.ask(&lane, |_| ());
        look.ask(&lane, |_| ());
        assert_eq!(waiting(), 2);
    }
}

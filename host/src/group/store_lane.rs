//! The store lane: one thread per group, the only one that touches names in `snap/`.
//!
//! A stopped group gives its lane no more jobs, but its workers may still drop files. So an idle
//! lane deletes the files that nobody needs, which returns their bytes to the host's budget.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::group::gauges::Gauges;
use crate::store::{SnapshotStore, StoreHandle, StoreJob, StoreReport};

/// How long the lane waits for a job before it counts as idle: a running group asks more often.
const IDLE: Duration = Duration::from_secs(2);

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
                while let Some(job) = next(&queue, IDLE) {
                    gauges.store.at_disk(|| {
                        job(&mut store);
                        shown.set(store.report());
                    });
                }
            })?;
        Ok((Self { jobs }, watch, thread))
    }
}

/// The lane's next job, or what an idle lane does; `None` once no handle is left.
fn next(queue: &mpsc::Receiver<StoreJob>, idle: Duration) -> Option<StoreJob> {
    match queue.recv_timeout(idle) {
        Ok(job) => Some(job),
        Err(RecvTimeoutError::Timeout) => {
            Some(Box::new(|store: &mut SnapshotStore| drop(store.collect())))
        }
        Err(RecvTimeoutError::Disconnected) => None,
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
    use crate::store::tests::{Bed, local};

    /// A lane whose disk hangs.
    #[derive(Default)]
    struct Hangs(Mutex<Vec<StoreJob>>);

    impl StoreHandle for Hangs {
        fn run(&self, job: StoreJob) {
            self.0.lock().expect("nobody panics").push(job);
        }
    }

    /// A group stopped while a snapshot was being written, and the writer is dropped after that.
    #[test]
    fn what_is_dropped_after_the_group_stopped_goes_and_returns_its_bytes() {
        let mut bed = Bed::new();
        let reservation = bed.store.reserve_local(local(10, 0, true)).expect("there is space");
        let writer = bed.store.create(reservation).expect("a staging file");
        drop(writer);
        assert!(bed.budget.used() > 0 && bed.files().len() == 1, "no job removes it");
        let (jobs, queue) = mpsc::channel();
        let job = next(&queue, Duration::ZERO).expect("there is a handle");
        job(&mut bed.store);
        assert_eq!((bed.files().len(), bed.budget.used()), (0, 0));
        drop(jobs);
        assert!(next(&queue, Duration::ZERO).is_none());
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
        job(&mut Bed::new().store);
        tend.ask(&lane, |_| ());
        look.ask(&lane, |_| ());
        assert_eq!(waiting(), 2);
    }
}

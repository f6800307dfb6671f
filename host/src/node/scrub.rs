//! The scrubber: slowly reads again what lies on the disk, to find damage before the data is
//! needed.
//!
//! - Each listed object is read whole; a corrupt one is reported to its group, which asks a peer
//!   for a good copy.
//! - Each log segment but the active one is read; if one is bad, the log lane tells each group that
//!   keeps it, and the group takes a snapshot and drops that part of its log. Until then the node
//!   goes on.
//! - One block or record at a time, with pauses: at most [`RATE_BYTES`] a second.
//! - A disk that hangs holds up nothing but its own objects: they are skipped, and a thread that
//!   was reading one of them ends once the disk answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::group::Event;
use lockstep_core::snapshot::SnapshotDesc;
use tokio::sync::watch;

use crate::group::GroupHandle;
use crate::store::{OpenError, SnapshotDisk};
use crate::wal::WalReader;

/// Bytes read a second.
const RATE_BYTES: u64 = 32 << 20;
/// The shortest pause: shorter ones add up until they are this long.
const PAUSE: Duration = Duration::from_millis(50);
/// Time between two looks at a disk that is being read.
const LOOK: Duration = Duration::from_millis(100);

/// Starts scrubbing, with a pause of `every` before each round, until `stopped` says so.
pub(super) fn start(
    groups: Vec<GroupHandle>,
    log: WalReader,
    every: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
            round(groups.clone(), log.clone(), stopped.clone()).await;
        }
    });
}

/// Reads everything once.
async fn round(groups: Vec<GroupHandle>, log: WalReader, stopped: watch::Receiver<bool>) {
    let pace = Pace::default();
    for group in groups {
        let snapshots = group.report().status.snapshots;
        for desc in snapshots {
            if *stopped.borrow() {
                return;
            }
            let (reader, index, paced) = (group.clone(), desc.index, pace.clone());
            let work = move || read_object(&reader, desc, &paced);
            if let Err(why) = while_it_answers(group.snapshot_disk(), work).await {
                let name = group.name();
                tracing::warn!(group = name, index, why, "a snapshot was not scrubbed");
            }
        }
    }
    let read = tokio::task::spawn_blocking(move || {
        for error in log.scrub(&mut |bytes| pace.read(bytes)) {
            tracing::error!(%error, "the log is damaged, and a restart would refuse it: the \
                groups take snapshots, so that the segment can be deleted");
        }
    });
    if read.await.is_err() {
        tracing::error!("the scrubber panicked; it starts again later");
    }
}

/// Runs `work` on a thread, and waits for it for as long as `disk` answers; the error says why
/// there is no result. A thread that was given up ends when its disk answers.
async fn while_it_answers<T: Send + 'static>(
    disk: Arc<SnapshotDisk>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    if let Some(hanging) = disk.hanging() {
        return Err(hanging.to_string());
    }
    let mut working = tokio::task::spawn_blocking(work);
    loop {
        if let Ok(done) = tokio::time::timeout(LOOK, &mut working).await {
            return done.map_err(|_panicked| "its reader panicked".to_owned());
        }
        if let Some(hanging) = disk.hanging() {
            return Err(hanging.to_string());
        }
    }
}

/// Reads an object whole, and reports it to its group if it is corrupt.
fn read_object(group: &GroupHandle, desc: SnapshotDesc, pace: &Pace) {
    let (name, index, bytes) = (group.name(), desc.index, desc.length);
    match group.scrub(&desc, &mut || pace.read(1 << 20)) {
        Err(error) if group.is_bad(&desc, &error) => {
            let is = if matches!(error, OpenError::Missing { .. }) { "missing" } else { "corrupt" };
            let why = error.to_string();
            tracing::error!(group = name, index, why, "a snapshot is {is}");
            group.raise(Event::Corrupt { snapshot: desc, why });
        }
        Err(error) if error.is_short() => {
            tracing::warn!(group = name, index, %error, "a snapshot was not scrubbed");
        }
        // An object that was unlisted meanwhile may be gone.
        Err(_unlisted) => {
            tracing::debug!(group = name, index, "a snapshot was unlisted before it was scrubbed");
        }
        Ok(()) => {
            tracing::debug!(group = name, index, bytes, "a snapshot was scrubbed");
        }
    }
}

/// Limits the rate of all readers together: a reader that was given up may still run beside the
/// next.
#[derive(Clone, Default)]
struct Pace {
    owed: Arc<Mutex<u64>>,
}

impl Pace {
    /// Sleeps as much as the rate demands after `bytes` were read.
    fn read(&self, bytes: u64) {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        *owed += bytes;
        let due = Duration::from_millis(*owed * 1000 / RATE_BYTES);
        if due >= PAUSE {
            std::thread::sleep(due);
            *owed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn an_object_of_a_disk_that_hangs_is_passed_over() {
        let disk = Arc::<SnapshotDisk>::default();
        assert_eq!(while_it_answers(Arc::clone(&disk), || 7).await, Ok(7));
        let (let_go, go) = mpsc::channel::<()>();
        let (slow, (ended, end)) = (Arc::clone(&disk), mpsc::channel());
        let read = while_it_answers(Arc::clone(&disk), move || {
            let hang = slow.hang();
            let _gone = go.recv();
            drop(hang);
            let _ = ended.send(());
        });
        let why = read.await.expect_err("it hangs");
        assert!(why.contains("has not answered"), "{why}");
        let why = while_it_answers(Arc::clone(&disk), || 7).await.expect_err("it still hangs");
        assert!(why.contains("has not answered"), "{why}");
        drop(let_go);
        end.recv().expect("its thread ends");
        assert_eq!(while_it_answers(disk, || 7).await, Ok(7));
    }
}

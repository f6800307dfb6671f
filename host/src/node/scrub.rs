//! The scrubber: reads again what lies on the disk, slowly, before it is needed.
//!
//! - Each listed object is read whole; one that is not what it was is told to its group, which asks
//!   a peer for a good copy.
//! - Each segment of the log that is written no more is read; if one is bad, the log lane tells
//!   each group that keeps it, which snapshots and lets go. Until then the node goes on.
//! - One block or record at a time, with pauses: at most [`RATE_BYTES`] a second.

use std::time::Duration;

use lockstep_core::group::Event;
use tokio::sync::watch;

use crate::group::GroupHandle;
use crate::store::OpenError;
use crate::wal::WalReader;

/// Bytes read a second.
const RATE_BYTES: u64 = 32 << 20;
/// The shortest pause: reads are not slowed one by one.
const PAUSE: Duration = Duration::from_millis(50);

/// Starts scrubbing once every `every`, until `stopped` says so.
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
            let (groups, log, stopped) = (groups.clone(), log.clone(), stopped.clone());
            let round = tokio::task::spawn_blocking(move || round(&groups, &log, &stopped));
            if round.await.is_err() {
                tracing::error!("the scrubber ended in a panic; it begins again later");
            }
        }
    });
}

/// Reads everything once.
fn round(groups: &[GroupHandle], log: &WalReader, stopped: &watch::Receiver<bool>) {
    let mut pace = Pace { owed: 0 };
    for group in groups {
        for desc in group.report().status.snapshots {
            if *stopped.borrow() {
                return;
            }
            let bytes = desc.length;
            match group.scrub(&desc, &mut || pace.read(1 << 20)) {
                Err(error @ (OpenError::Bad { .. } | OpenError::Disk { .. })) => {
                    let why = error.to_string();
                    tracing::error!(group = group.name(), index = desc.index, why, "rotten");
                    group.raise(Event::Rotten { snapshot: desc, why });
                }
                Err(error @ OpenError::Missing { .. }) if group.lists(&desc) => {
                    let why = error.to_string();
                    tracing::error!(group = group.name(), index = desc.index, why, "missing");
                    group.raise(Event::Rotten { snapshot: desc, why });
                }
                Err(error @ OpenError::Short { .. }) => {
                    tracing::warn!(group = group.name(), index = desc.index, %error, "not \
                        scrubbed");
                }
                // One that was unlisted meanwhile may be gone.
                Err(OpenError::Missing { .. }) | Ok(()) => {
                    tracing::debug!(group = group.name(), index = desc.index, bytes, "scrubbed");
                }
            }
        }
    }
    for error in log.scrub(&mut |bytes| pace.read(bytes)) {
        tracing::error!(%error, "the log is damaged, and would not be opened again: its groups \
            take snapshots, so that the segment can go");
    }
}

/// Sleeps as much as keeps the rate.
struct Pace {
    owed: u64,
}

impl Pace {
    fn read(&mut self, bytes: u64) {
        self.owed += bytes;
        let due = Duration::from_millis(self.owed * 1000 / RATE_BYTES);
        if due >= PAUSE {
            std::thread::sleep(due);
            self.owed = 0;
        }
    }
}

//! The scrubber: slowly reads again what lies on the disk, to find damage before the data is
//! needed.
//!
//! - Each listed object is read whole; a corrupt one is reported to its group, which asks a peer
//!   for a good copy.
//! - Each log segment but the active one is read; if one is bad, the log lane tells each group that
//!   keeps it, and the group takes a snapshot and drops that part of its log. Until then the node
//!   goes on.
//! - One block or record at a time, with pauses: at most [`RATE_BYTES`] a second.

use std::time::Duration;

use lockstep_core::group::Event;
use tokio::sync::watch;

use crate::group::GroupHandle;
use crate::store::OpenError;
use crate::wal::WalReader;

/// Bytes read a second.
const RATE_BYTES: u64 = 32 << 20;
/// The shortest pause: shorter ones add up until they are this long.
const PAUSE: Duration = Duration::from_millis(50);

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
            let (groups, log, stopped) = (groups.clone(), log.clone(), stopped.clone());
            let round = tokio::task::spawn_blocking(move || round(&groups, &log, &stopped));
            if round.await.is_err() {
                tracing::error!("the scrubber panicked; it starts again later");
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
            let (name, index, bytes) = (group.name(), desc.index, desc.length);
            match group.scrub(&desc, &mut || pace.read(1 << 20)) {
                Err(error @ (OpenError::Bad { .. } | OpenError::Disk { .. })) => {
                    let why = error.to_string();
                    tracing::error!(group = name, index, why, "a snapshot is corrupt");
                    group.raise(Event::Corrupt { snapshot: desc, why });
                }
                Err(error @ OpenError::Missing { .. }) if group.lists(&desc) => {
                    let why = error.to_string();
                    tracing::error!(group = name, index, why, "a snapshot is missing");
                    group.raise(Event::Corrupt { snapshot: desc, why });
                }
                Err(error @ OpenError::Short { .. }) => {
                    tracing::warn!(group = name, index, %error, "a snapshot was not scrubbed");
                }
                // An object that was unlisted meanwhile may be gone.
                Err(OpenError::Missing { .. }) | Ok(()) => {
                    tracing::debug!(group = name, index, bytes, "a snapshot was scrubbed");
                }
            }
        }
    }
    for error in log.scrub(&mut |bytes| pace.read(bytes)) {
        tracing::error!(%error, "the log is damaged, and a restart would refuse it: the groups \
            take snapshots, so that the segment can be deleted");
    }
}

/// Sleeps as much as the rate demands.
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

//! Followers that a snapshot was sent to and that have not caught up since.
//!
//! - The log behind such a snapshot is kept until its follower has caught up: the snapshot lives in
//!   its guest, and less than a mark's worth of log is missing there. The larger of
//!   [`LOG_PIN_MARKS`](crate::limits::LOG_PIN_MARKS) marks' worth and the snapshot's length is the
//!   most that is kept: up to that, sending log costs less than sending another snapshot.
//! - A follower that is halted or has no snapshot to start from, and appends no more commands, for
//!   the log behind its newest snapshot is at its bound, is sent a snapshot though the log that it
//!   lacks is still here: where nobody writes, that log is never cut, and it would wait for ever.
//! - Who gets a second snapshot before that was outrun. Those in a row are counted, for at such a
//!   rate it may never catch up, and only an operator can change what the rate depends on.

use std::collections::BTreeMap;

use raft::ProgressState;

use crate::fault::Shortage;
use crate::group::Shared;
use crate::group::frame::GuestIs;
use crate::group::hosting::Hosting;
use crate::ids::ReplicaId;
use crate::mutant::planted;
use crate::snapshot::SnapshotDesc;

#[derive(Default)]
pub(super) struct CatchUps {
    of: BTreeMap<ReplicaId, CatchUp>,
}

/// A follower on its way to the end of the log.
struct CatchUp {
    /// The snapshot that it was sent last.
    index: u64,
    length: u64,
    /// How many it was sent.
    sent: u32,
}

impl CatchUps {
    /// A snapshot goes to a follower; the same one may go on where it broke.
    pub(super) fn sends(&mut self, to: ReplicaId, snapshot: &SnapshotDesc) {
        let SnapshotDesc { index, length, .. } = *snapshot;
        let before = self.of.get(&to).map_or((0, 0), |before| (before.index, before.sent));
        let sent = before.1 + u32::from(before.0 != index);
        self.of.insert(to, CatchUp { index, length, sent });
    }

    /// Snapshots that a follower was sent in a row, and that did not suffice.
    pub(super) fn sent_to(&self, replica: ReplicaId) -> u32 {
        self.of.get(&replica).map_or(0, |catch_up| catch_up.sent)
    }

    /// The longest of the snapshots.
    pub(super) fn length(&self) -> u64 {
        self.of.values().map(|catch_up| catch_up.length).max().unwrap_or(0)
    }
}

impl Hosting {
    pub(super) fn tick_catch_up(&mut self, shared: &Shared) {
        if !self.is_leader() {
            self.catch_ups.of.clear();
            return;
        }
        let (log, prs) = (self.raw.store(), self.raw.raft.prs());
        let mark_bytes = shared.config.snapshot_policy.log_bytes;
        let outgoing = &self.outgoing;
        self.catch_ups.of.retain(|replica, catch_up| {
            let (Some(peer), Some(seen)) = (prs.get(replica.0), shared.seen.get(replica)) else {
                return false;
            };
            let has = peer.matched.min(seen.applied);
            let near = has >= catch_up.index && log.bytes_between(has, log.last()) <= mark_bytes;
            !near || outgoing.is_sending_to(*replica)
        });
        self.send_to_who_appends_no_more(shared);
    }

    fn send_to_who_appends_no_more(&mut self, shared: &Shared) {
        let newest = shared.recovery.newest().map_or(0, |desc| desc.index);
        if planted("wait_for_the_cut") {
            return;
        }
        for (replica, seen) in &shared.seen {
            // One that is only slow, or restores, comes to the end of its log by itself.
            let lost = seen.halted || (seen.guest == GuestIs::Absent && seen.snapshot == 0);
            let full = matches!(seen.short, Some(Shortage::Log { .. }));
            let stuck = lost && full && seen.applied < newest;
            let Some(peer) = self.raw.raft.mut_prs().get_mut(replica.0).filter(|_| stuck) else {
                continue;
            };
            if peer.matched < newest && peer.state != ProgressState::Snapshot {
                // raft-rs sends it with the answer to the next heartbeat.
                peer.pending_request_snapshot = newest;
            }
        }
    }

    /// Bytes of log that are kept for those who were sent a snapshot.
    pub(super) fn catch_up_bytes(&self) -> u64 {
        match planted("outrun_what_was_sent") {
            true => self.log_pin_bytes,
            false => self.log_pin_bytes.max(self.catch_ups.length()),
        }
    }

    /// Followers that are heard and on their way, and the index from which on they need the log.
    pub(super) fn catching_up(&self, shared: &Shared) -> Vec<(ReplicaId, u64)> {
        let of = self.catch_ups.of.iter().filter(|(replica, _)| !shared.is_silent(**replica));
        let matched =
            |replica: &ReplicaId| self.raw.raft.prs().get(replica.0).map_or(0, |peer| peer.matched);
        of.map(|(replica, catch_up)| (*replica, catch_up.index.max(matched(replica)))).collect()
    }
}

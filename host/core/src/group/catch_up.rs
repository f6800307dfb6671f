//! Followers that were sent a snapshot and have not caught up since.
//!
//! - The log since such a snapshot is kept until its follower has caught up: its guest has restored
//!   the snapshot, and it lacks at most one checkpoint's worth of log. The limit is the larger of
//!   the snapshot's length and [`LOG_PIN_CHECKPOINTS`](crate::limits::LOG_PIN_CHECKPOINTS)
//!   checkpoints' worth of log: up to that, sending log costs less than sending another snapshot.
//! - Some followers accept no more commands, because the log since their newest snapshot has
//!   reached its bound, and cannot take another snapshot, because they are halted or have none to
//!   start from. The leader sends them its newest snapshot even if it still has the log that they
//!   lack: in a group without writes that log is never cut, and they would wait forever.
//! - A follower that needs a second snapshot before it has caught up was outrun. The snapshots sent
//!   in a row are counted: at this rate the follower may never catch up, and only an operator can
//!   change the rate.

use std::collections::BTreeMap;

use raft::ProgressState;

use crate::fault::Shortage;
use crate::group::frame::GuestIs;
use crate::group::outgoing::Outgoing;
use crate::group::raft_node::RaftNode;
use crate::group::{Shared, SnapshotPolicy};
use crate::ids::ReplicaId;
use crate::mutant::{plant, planted};
use crate::snapshot::SnapshotDesc;

#[derive(Default)]
pub(super) struct CatchUps {
    of: BTreeMap<ReplicaId, CatchUp>,
}

/// A follower that was sent a snapshot and has not caught up yet.
struct CatchUp {
    /// The index of the snapshot it was sent last.
    index: u64,
    length: u64,
    /// How many snapshots it was sent in a row.
    sent: u32,
}

impl CatchUps {
    /// Notes that `snapshot` goes to a follower. Resuming a broken transfer of it is not counted
    /// again.
    pub(super) fn sends(&mut self, to: ReplicaId, snapshot: &SnapshotDesc) {
        let SnapshotDesc { index, length, .. } = *snapshot;
        let before = self.of.get(&to).map_or((0, 0), |before| (before.index, before.sent));
        let sent = before.1 + u32::from(before.0 != index);
        self.of.insert(to, CatchUp { index, length, sent });
    }

    /// Snapshots that a follower was sent in a row without catching up.
    pub(super) fn sent_to(&self, replica: ReplicaId) -> u32 {
        self.of.get(&replica).map_or(0, |catch_up| catch_up.sent)
    }

    /// The length of the longest of these snapshots.
    pub(super) fn length(&self) -> u64 {
        self.of.values().map(|catch_up| catch_up.length).max().unwrap_or(0)
    }

    pub(super) fn tick(&mut self, raw: &mut RaftNode, outgoing: &Outgoing, shared: &Shared) {
        if !raw.is_leader() {
            self.of.clear();
            return;
        }
        let (log, prs) = (raw.store(), raw.raft.prs());
        let checkpoint_bytes = shared.config.snapshot_policy.log_bytes;
        self.of.retain(|replica, catch_up| {
            let (Some(peer), Some(seen)) = (prs.get(replica.0), shared.seen.get(replica)) else {
                return false;
            };
            let has = peer.matched.min(seen.applied);
            let near =
                has >= catch_up.index && log.bytes_between(has, log.last()) <= checkpoint_bytes;
            !near || outgoing.is_sending_to(*replica)
        });
        send_to_who_appends_no_more(raw, shared);
    }

    /// How many bytes of log are kept for followers that were sent a snapshot.
    pub(super) fn log_bytes(&self, policy: &SnapshotPolicy) -> u64 {
        let sent = if planted("outrun_what_was_sent") { 0 } else { self.length() };
        policy.log_pin_bytes().max(sent)
    }

    /// The followers that are catching up and not silent, each with the index after which it needs
    /// the log.
    pub(super) fn pins(&self, raw: &RaftNode, shared: &Shared) -> Vec<(ReplicaId, u64)> {
        let of = self.of.iter().filter(|(replica, _)| !shared.is_silent(**replica));
        let matched =
            |replica: &ReplicaId| raw.raft.prs().get(replica.0).map_or(0, |peer| peer.matched);
        of.map(|(replica, catch_up)| (*replica, catch_up.index.max(matched(replica)))).collect()
    }
}

fn send_to_who_appends_no_more(raw: &mut RaftNode, shared: &Shared) {
    let newest = shared.recovery.newest().map_or(0, |desc| desc.index);
    plant!("wait_for_the_cut" does return);
    for (replica, seen) in &shared.seen {
        // A follower that is only slow, or is restoring, reaches the end of its log by itself.
        let lost = seen.halted.is_some() || (seen.guest == GuestIs::Absent && seen.snapshot == 0);
        let full = matches!(seen.short, Some(Shortage::Log { .. }));
        let stuck = lost && full && seen.applied < newest;
        let Some(peer) = raw.raft.mut_prs().get_mut(replica.0).filter(|_| stuck) else {
            continue;
        };
        if peer.matched < newest && peer.state != ProgressState::Snapshot {
            // raft-rs sends a snapshot once the follower answers the next heartbeat. Any snapshot
            // above its log will do, because it may hold a part of the one it was promised.
            peer.pending_request_snapshot = peer.matched + 1;
        }
    }
}

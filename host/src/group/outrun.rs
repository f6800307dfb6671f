//! Followers that one snapshot after the other does not bring to the end of the log: said in the
//! node's log, at each snapshot but the first.

use std::collections::BTreeMap;

use lockstep_core::group::PeerStatus;
use lockstep_core::ids::ReplicaId;

/// What was said.
#[derive(Default)]
pub(super) struct Outrun {
    sent: BTreeMap<ReplicaId, u32>,
}

impl Outrun {
    pub(super) fn tell(&mut self, group: &str, peers: &[PeerStatus]) {
        for peer in peers.iter().filter(|peer| peer.snapshots_in_a_row > 1) {
            if self.sent.get(&peer.replica) < Some(&peer.snapshots_in_a_row) {
                tracing::warn!(
                    group,
                    node = %peer.replica.node(),
                    snapshots = peer.snapshots_in_a_row,
                    log_kept_bytes = peer.log_kept_bytes,
                    "a follower does not catch up: more is written while it is sent a snapshot than                      is kept for it; raise snapshot-log-bytes, or write less until it has"
                );
            }
        }
        self.sent = peers.iter().map(|peer| (peer.replica, peer.snapshots_in_a_row)).collect();
    }
}

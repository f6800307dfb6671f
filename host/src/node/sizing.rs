//! Whether the disk of the log is large enough for what is configured.
//!
//! A disk that is too small is no error: the node starts, and the disk is full sooner or later. So
//! the start warns of it.

use std::path::Path;

use lockstep_core::group::GroupConfig;
use lockstep_core::limits;

use crate::fs::Space;
use crate::wal::RecoveredGroup;

/// What a group keeps on the disk of the log, bytes.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Its newest snapshot, if snapshots lie there too; 0 before the first one.
    snapshot_bytes: u64,
    /// The log between two of its snapshots.
    log_bytes: u64,
}

impl Share {
    /// The share of a group, as the log recovered it.
    pub(super) fn of(group: &GroupConfig, recovered: Option<&RecoveredGroup>) -> Self {
        let newest = recovered.and_then(|group| group.state.newest());
        let newest = newest.filter(|_| group.snapshots_share_log_disk);
        Self {
            snapshot_bytes: newest.map_or(0, |desc| desc.length),
            log_bytes: group.snapshot_policy.log_bytes,
        }
    }
}

/// Segments' worth of space that the log takes in addition to what groups keep: the active segment,
/// its spares, the headroom, what is left free while a snapshot is overdue, and one segment at each
/// end of the kept log, because only a part of that segment is kept.
const SEGMENTS: u64 = 1 + limits::LOG_SPARES as u64 + 1 + 2 + 2;
/// Log of a group, in multiples of the log between two snapshots: since the newest snapshot while
/// the next is taken, since the one before, and for followers.
const LOGS: u64 = 4;
/// Snapshots of a group on a disk that only just suffices: the newest, and the next one while it is
/// taken.
const SNAPSHOTS: u64 = 2;

/// The smallest disk on which the log and the snapshots of all these groups fit.
fn least_bytes(segment_bytes: u64, shares: &[Share]) -> u64 {
    let of_group = |share: &Share| {
        let snapshots = share.snapshot_bytes.saturating_mul(SNAPSHOTS);
        // The next snapshot may be longer by a block.
        let snapshots = snapshots.saturating_add(limits::SNAPSHOT_BLOCK_BYTES as u64);
        snapshots.saturating_add(share.log_bytes.saturating_mul(LOGS))
    };
    let of_log = segment_bytes.saturating_mul(SEGMENTS);
    shares.iter().map(of_group).fold(of_log, u64::saturating_add)
}

/// Warns if the disk is too small.
pub(super) fn tell_if_too_small(dir: &Path, disk: Space, segment_bytes: u64, shares: &[Share]) {
    let least = least_bytes(segment_bytes, shares);
    if disk.total < least {
        tracing::warn!(
            dir = %dir.display(),
            bytes = disk.total,
            least,
            log_segment = segment_bytes,
            "this disk is smaller than what the log's files, the log between snapshots and two \
             snapshots of each group take: snapshots may find no space, and then commands are \
             refused; use a larger disk, or lower log-segment or snapshot-log-bytes"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_files_and_two_snapshots_and_logs_of_each_group() {
        let mib = 1 << 20;
        assert_eq!(least_bytes(4 * mib, &[]), 32 * mib);
        let share = |snapshot, log| Share { snapshot_bytes: snapshot * mib, log_bytes: log * mib };
        let shares = [share(64, 4), share(0, 32)];
        assert_eq!(least_bytes(64 * mib, &shares), (8 * 64 + 129 + 16 + 129) * mib);
        assert_eq!(least_bytes(u64::MAX, &shares), u64::MAX);
    }
}

//! The log of a node, as bytes and as rules: one log for all groups.
//!
//! Owns the format ([`record`]) and what a sequence of records means ([`replay`]). Files, syncs and
//! the choice of moments are the host's (`wal` there).
//!
//! A log is a chain of segments, a segment a chain of batches, a batch a header and records.
//! Batches are numbered without a gap through all segments; batch k+1 is written only after batch k
//! is durable. Rules of one group, in log order:
//!
//! - a *state* drops the entries before its first index; one marked *reset* drops all entries;
//! - *entries* at index i drop what stood at i and behind, and stand there instead;
//! - *moved* entries are live entries written once more, so that an old segment can go: they
//!   replace equal ones, change nothing behind them, and may fill a hole that the deleted segment
//!   left;
//! - a *drop* ends a group in this log, its state included;
//! - in the end a group's entries reach from its first index to its last without a hole.

use raft::eraftpb::Entry;

use crate::ids::GroupId;
use crate::limits;
use crate::recovery_state::RecoveryState;

pub mod extents;
pub mod record;
pub mod replay;

#[cfg(test)]
mod tests;

/// Entries gathered in one record, bytes; a single larger entry has a record to itself. A reader
/// fetches and checks whole records, so this bounds what one read costs.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Largest body of a batch that is read back, bytes: a segment's head carries every group's state.
pub const BATCH_BODY_BYTES_MAX: usize = 32 << 20;
/// Live entries in the oldest segment that are moved so that it can go, bytes.
pub const MOVED_BYTES_MAX: u64 = 1 << 20;

const _: () = assert!(RECORD_BYTES_MAX < limits::LOG_BATCH_BYTES_MAX);
const _: () = assert!(limits::LOG_BATCH_BYTES_MAX < BATCH_BODY_BYTES_MAX);

/// What one group wants durable: a state, and entries behind it. All or nothing, unless the job is
/// larger than a batch; then each part is consistent in itself.
#[derive(Clone, PartialEq, Debug)]
pub struct LogJob {
    pub group: GroupId,
    pub state: RecoveryState,
    /// Contiguous; may be empty. They replace what the log has at and behind their first index.
    pub entries: Vec<Entry>,
}

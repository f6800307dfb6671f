//! The log of a node, as bytes and as rules: one log for all groups.
//!
//! Owns the format ([`record`]) and the meaning of a sequence of records ([`replay`]). Files, syncs
//! and when to write are the host's (`wal` there).
//!
//! A log is a chain of segments, a segment a chain of batches, a batch a header and records.
//! Batches are numbered without a gap through all segments; batch k+1 is written only after batch k
//! is durable. The rules for the records of one group, in log order:
//!
//! - a *state* drops the entries before its first index; a *reset*, also a state, drops them all;
//! - *entries* at index i replace all entries at i and above;
//! - *moved* entries are live entries that were written again, so that an old segment can be
//!   deleted: they replace equal ones, change none above them, and may fill the hole that the
//!   deleted segment left;
//! - a *drop* removes a group from this log, its state included;
//! - after the last record, a group's entries reach from its first index to its last without holes.

use raft::eraftpb::Entry;

use crate::ids::GroupId;
use crate::limits;
use crate::recovery_state::RecoveryState;

pub mod extents;
pub mod record;
pub mod replay;

#[cfg(test)]
mod tests;

/// Most bytes of entries in one record; a single larger entry has a record to itself. A reader
/// fetches and checks whole records, so this bounds the cost of a read.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Largest body of a batch that is read back, bytes: a segment's head holds all groups' states.
pub const BATCH_BODY_BYTES_MAX: usize = 32 << 20;
/// Most bytes of live entries in the oldest segment that are moved so that it can be deleted.
pub const MOVED_BYTES_MAX: u64 = 1 << 20;

const _: () = assert!(RECORD_BYTES_MAX < limits::LOG_BATCH_BYTES_MAX);
const _: () = assert!(limits::LOG_BATCH_BYTES_MAX < BATCH_BODY_BYTES_MAX);

/// What one group wants to make durable: a state, and entries. A job that fits in a batch is
/// written all or nothing; of a larger one, each part is consistent in itself.
#[derive(Clone, PartialEq, Debug)]
pub struct LogJob {
    pub group: GroupId,
    pub state: RecoveryState,
    /// Contiguous, possibly none. They replace the log's entries from their first index on.
    pub entries: Vec<Entry>,
}

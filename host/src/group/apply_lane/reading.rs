//! Reading back entries and snapshots, and what it means if that fails.

use std::io;

use lockstep_core::apply::{ENVELOPE_BYTES_MAX, Ledger};
use lockstep_core::fault::{Fault, FaultClass, GuestFault};
use lockstep_core::snapshot::SnapshotDesc;
use raft::eraftpb::Entry;

use super::ApplyLane;
use crate::store::{OpenError, SnapshotReader};
use crate::wal::WalError;

/// Entries read back from the log at once, bytes.
const REPLAY_BYTES: u64 = 4 << 20;

impl ApplyLane {
    /// Reads entries from `from` on, before `to`: as many as are read at once.
    pub(super) fn read(&mut self, from: u64, to: u64) -> Result<Vec<Entry>, Fault> {
        let entries = self.tools.log.entries(self.tools.group, from, to, REPLAY_BYTES);
        self.overtaken |= matches!(entries, Err(WalError::Compacted { .. }));
        let entries = entries.map_err(|error| match error {
            // A peer's snapshot from after these entries makes them unnecessary.
            error if error.is_damage() => Fault::NoRecoverableSnapshot(format!("{error}")),
            error if error.is_short() => {
                short_of("apply", format!("entries from {from} could not be read: {error}"))
            }
            error => Fault::Internal(format!("entries from {from}: {error}")),
        })?;
        if entries.is_empty() {
            return Err(Fault::Internal(format!("the log has no entry {from}")));
        }
        Ok(entries)
    }
}

/// Reads the ledger, with which a snapshot's payload begins.
pub(crate) fn read_ledger(payload: &mut dyn io::Read, desc: &SnapshotDesc) -> io::Result<Ledger> {
    let mut length = [0; 4];
    payload.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > ENVELOPE_BYTES_MAX || length as u64 > desc.length {
        return Err(io::Error::other(format!("its envelope of {length} bytes is too long")));
    }
    let mut envelope = vec![0; length];
    payload.read_exact(&mut envelope)?;
    Ledger::decode_envelope(envelope.into(), desc.index).map_err(io::Error::other)
}

/// The fault of a call that lacked descriptors or memory to read: it is tried again later.
fn short_of(call: &'static str, message: String) -> Fault {
    Fault::Guest(GuestFault { class: FaultClass::Host, call, index: None, message })
}

/// The fault of a snapshot that was not read: it is corrupt, or cannot be read for now.
pub(super) fn not_read(error: &OpenError) -> Fault {
    if error.is_short() {
        short_of("restore", error.to_string())
    } else {
        Fault::Restore(error.to_string())
    }
}

/// The fault of a snapshot whose stream failed: by the reader's own error, or by `error`.
pub(super) fn broke(reader: &SnapshotReader, error: &io::Error) -> Fault {
    reader.broken().map_or_else(|| Fault::Restore(error.to_string()), not_read)
}

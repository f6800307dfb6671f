//! Equal index and term, equal entry; and the log goes on without a hole behind every listed
//! snapshot. Planted: `skip_fsync`, `retry_failed_sync`, `skip_segment_directory_sync`,
//! `unchecked_segment`.

use std::collections::BTreeMap;

use lockstep_core::ids::GroupId;
use lockstep_host::wal::WalReader;

use super::{Checked, violated};

/// Digest of each entry by index and term, over all nodes.
#[derive(Default)]
pub struct Entries(BTreeMap<(u64, u64), [u8; 32]>);

/// Reads a replica's whole durable log.
pub fn whole(group: GroupId, log: &WalReader, seen: &mut Entries) -> Checked {
    let Some(state) = log.state(group) else { return Ok(()) };
    if let Err(why) = state.validate() {
        return violated("logs", why);
    }
    let last = log.last_index(group).unwrap_or(0);
    let mut next = state.first_index;
    while next <= last {
        let entries = match log.entries(group, next, last + 1, 1 << 20) {
            Ok(entries) if !entries.is_empty() => entries,
            Ok(_) => return violated("logs", format!("entry {next} is missing")),
            Err(error) => return violated("logs", format!("entry {next}: {error}")),
        };
        for entry in entries {
            let digest = *blake3::hash(&entry.data).as_bytes();
            let known = *seen.0.entry((entry.index, entry.term)).or_insert(digest);
            if entry.index != next || known != digest {
                let what = format!("entry {} of term {} differs", entry.index, entry.term);
                return violated("logs", what);
            }
            next += 1;
        }
    }
    Ok(())
}

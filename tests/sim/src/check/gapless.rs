//! The log has all entries from its first to its last, and begins no later than right after any
//! listed snapshot. Planted: `retry_failed_sync`.

use lockstep_core::ids::GroupId;
use lockstep_host::wal::WalReader;
use raft::eraftpb::Entry;

use super::violated;

/// Reads all entries of a replica's durable log; a violation if one is missing.
pub fn whole(group: GroupId, log: &WalReader) -> Result<Vec<Entry>, super::Violation> {
    let Some(state) = log.state(group) else { return Ok(Vec::new()) };
    if let Err(why) = state.validate() {
        return violated("gapless", why);
    }
    let last = log.last_index(group).unwrap_or(0);
    let (mut next, mut all) = (state.first_index, Vec::new());
    while next <= last {
        match log.entries(group, next, last + 1, 1 << 20) {
            Ok(entries) if entries.first().is_some_and(|entry| entry.index == next) => {
                next += entries.len() as u64;
                all.extend(entries);
            }
            Ok(_) => return violated("gapless", format!("entry {next} is missing")),
            Err(error) => return violated("gapless", format!("entry {next}: {error}")),
        }
    }
    Ok(all)
}

//! [`WalReader`]: reads entries back, from any thread, while the log is being written.

use std::path::PathBuf;
use std::sync::Arc;

use lockstep_core::ids::GroupId;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::wal::extents::Extent;
use lockstep_core::wal::record::entry_size;
use raft::eraftpb::Entry;

use super::error::WalError;
use super::open;
use super::segment::Segment;
use super::shared::Shared;

/// A handle for reading. Clones share everything.
#[derive(Clone)]
pub struct WalReader {
    shared: Arc<Shared>,
}

impl WalReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The entries from `from` to before `to_exclusive`: as many as fit in `max_bytes` of log, but
    /// at least one if any was asked for. Only durable entries are found.
    pub fn entries(
        &self,
        group: GroupId,
        from: u64,
        to_exclusive: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, WalError> {
        let mut found: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for (first, extent, segment) in self.find(group, from, to_exclusive, max_bytes)? {
            let end = extent.end.min(to_exclusive);
            for entry in self.read(group, &extent, &segment)? {
                if entry.index < first || entry.index >= end {
                    continue;
                }
                bytes += entry_size(&entry) as u64;
                if bytes > max_bytes && !found.is_empty() {
                    return Ok(found);
                }
                found.push(entry);
            }
        }
        let expected = (from..to_exclusive).take(found.len());
        assert!(found.iter().map(|entry| entry.index).eq(expected), "extents leave no hole");
        Ok(found)
    }

    /// The first index of a group in the log.
    pub fn first_index(&self, group: GroupId) -> Option<u64> {
        self.shared.groups().get(&group).map(|log| log.tail.state.first_index)
    }

    /// The last index of a group in the log.
    pub fn last_index(&self, group: GroupId) -> Option<u64> {
        self.shared.groups().get(&group).map(|log| log.tail.last_index)
    }

    /// The term of a group's entry in the log, or of the entry before the first.
    pub fn term(&self, group: GroupId, index: u64) -> Option<u64> {
        self.shared.groups().get(&group)?.tail.term(index)
    }

    /// Runs of equal terms in a group's log, (first index, term), from the entry before the first
    /// one.
    pub fn terms(&self, group: GroupId) -> Option<Vec<(u64, u64)>> {
        Some(self.shared.groups().get(&group)?.tail.terms())
    }

    /// The durable recovery state of a group.
    pub fn state(&self, group: GroupId) -> Option<RecoveryState> {
        self.shared.groups().get(&group).map(|log| log.tail.state.clone())
    }

    /// Reads every segment except the active one as a start would, whether it holds live entries or
    /// not. Returns what would keep this log from being opened; those segments count as damaged
    /// from now on. Calls `pause` with the bytes of each segment after reading it.
    pub fn scrub(&self, pause: &mut dyn FnMut(u64)) -> Vec<WalError> {
        let segments: Vec<Arc<Segment>> = self.shared.segments().values().cloned().collect();
        let mut bad = Vec::new();
        for pair in segments.windows(2) {
            // A segment that was deleted meanwhile does not matter: no start will read it.
            if let Err(error) = open::check_sealed(&pair[0], &pair[1])
                && error.is_damage()
                && self.shared.note_damage(pair[0].number())
            {
                bad.push(error);
            }
            pause(pair[0].file.length);
        }
        bad
    }

    /// The segments that count, oldest first, with their files. The last one is being written.
    pub fn segments(&self) -> Vec<(u64, PathBuf)> {
        let segments = self.shared.segments();
        segments.iter().map(|(number, segment)| (*number, segment.path().to_owned())).collect()
    }

    /// Reads one record. If it is damaged or cannot be read, its segment counts as damaged from now
    /// on.
    fn read(
        &self,
        group: GroupId,
        extent: &Extent,
        segment: &Segment,
    ) -> Result<Vec<Entry>, WalError> {
        let entries = segment.entries(group, &extent.place);
        if entries.as_ref().is_err_and(WalError::is_damage) {
            self.shared.note_damage(segment.number());
        }
        entries
    }

    /// The extents to read, with their segments, so that no lock is held while reading.
    fn find(
        &self,
        group: GroupId,
        from: u64,
        to_exclusive: u64,
        max_bytes: u64,
    ) -> Result<Vec<(u64, Extent, Arc<Segment>)>, WalError> {
        let groups = self.shared.groups();
        let log = groups.get(&group).ok_or(WalError::UnknownGroup { group })?;
        let (first_index, last_index) = (log.tail.state.first_index, log.tail.last_index);
        if from < first_index {
            return Err(WalError::Compacted { group, index: from, first_index });
        }
        if to_exclusive > last_index + 1 {
            return Err(WalError::Unavailable { group, index: to_exclusive - 1, last_index });
        }
        // A segment is forgotten only when no group refers to it, which the lock on the groups
        // rules out.
        let segments = self.shared.segments();
        let mut bytes = 0;
        let mut found = Vec::new();
        for (first, extent) in log.extents().from(from) {
            if first >= to_exclusive || bytes >= max_bytes && !found.is_empty() {
                break;
            }
            bytes += extent.live_bytes(first);
            let segment = segments.get(&extent.place.segment);
            let segment = segment.expect("live entries stand in a segment that is there");
            found.push((first, extent, Arc::clone(segment)));
        }
        Ok(found)
    }
}

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

/// A handle for reading the log. All clones read the same log.
#[derive(Clone)]
pub struct WalReader {
    shared: Arc<Shared>,
}

impl WalReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The entries from `from` up to, but not including, `to_exclusive`: as many as fit in
    /// `max_bytes` of log, but at least one unless the range is empty. Only durable entries are
    /// found.
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
        assert!(found.iter().map(|entry| entry.index).eq(expected), "extents are contiguous");
        Ok(found)
    }

    /// The index of a group's first entry in the log.
    pub fn first_index(&self, group: GroupId) -> Option<u64> {
        self.shared.groups().get(&group).map(|log| log.tail.state.first_index)
    }

    /// The index of a group's last entry in the log.
    pub fn last_index(&self, group: GroupId) -> Option<u64> {
        self.shared.groups().get(&group).map(|log| log.tail.last_index)
    }

    /// The term of a group's entry in the log. `index` may also be that of the entry just before
    /// the group's first one.
    pub fn term(&self, group: GroupId, index: u64) -> Option<u64> {
        self.shared.groups().get(&group)?.tail.term(index)
    }

    /// A group's runs of equal terms as (first index, term), starting with the entry just before
    /// the group's first one.
    pub fn terms(&self, group: GroupId) -> Option<Vec<(u64, u64)>> {
        Some(self.shared.groups().get(&group)?.tail.terms())
    }

    /// The names of all groups in the log.
    pub fn names(&self) -> Vec<String> {
        self.shared.groups().values().map(|log| log.tail.state.group.clone()).collect()
    }

    /// The durable recovery state of a group.
    pub fn state(&self, group: GroupId) -> Option<RecoveryState> {
        self.shared.groups().get(&group).map(|log| log.tail.state.clone())
    }

    /// Reads every segment except the active one as a start would, even if none of its entries is
    /// live. Returns the errors that would make opening the log fail; a segment with such an error
    /// counts as damaged from now on. Calls `pause` with each segment's bytes after reading it.
    pub fn scrub(&self, pause: &mut dyn FnMut(u64)) -> Vec<WalError> {
        let segments: Vec<Arc<Segment>> = self.shared.segments().values().cloned().collect();
        let mut bad = Vec::new();
        for pair in segments.windows(2) {
            // Damage in a segment that was deleted meanwhile is ignored: no start will read it.
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

    /// The numbers and files of the log's segments, oldest first. The last one is being written.
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

    /// Finds the extents that hold these entries, with their segments, so that no lock is held
    /// while the files are read.
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
        // A segment is forgotten only when no group refers to it. The groups are locked here, so
        // every segment that they refer to exists.
        let segments = self.shared.segments();
        let mut bytes = 0;
        let mut found = Vec::new();
        for (first, extent) in log.extents().from(from) {
            if first >= to_exclusive || bytes >= max_bytes && !found.is_empty() {
                break;
            }
            bytes += extent.live_bytes(first);
            let segment = segments.get(&extent.place.segment);
            let segment = segment.expect("a segment that holds live entries exists");
            found.push((first, extent, Arc::clone(segment)));
        }
        Ok(found)
    }
}

//! Equal index and term, equal entry, on all disks and at all times. Planted:
//! `write_other_bytes`.

use std::collections::BTreeMap;

use lockstep_core::ids::GroupId;
use raft::eraftpb::Entry;

use super::{Checked, violated};

/// Digest of each entry by group, index and term, over all nodes and their lives.
#[derive(Default)]
pub struct Entries(BTreeMap<(GroupId, u64, u64), [u8; 32]>);

impl Entries {
    pub fn agree(&mut self, group: GroupId, entries: &[Entry]) -> Checked {
        for entry in entries {
            let digest = *blake3::hash(&entry.data).as_bytes();
            let key = (group, entry.index, entry.term);
            if *self.0.entry(key).or_insert(digest) != digest {
                let what = format!("entry {} of term {} differs", entry.index, entry.term);
                return violated("logs", what);
            }
        }
        Ok(())
    }
}

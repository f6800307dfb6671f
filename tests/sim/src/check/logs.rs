//! Entries of equal index and term are equal and follow entries of equal terms, on all disks and at
//! all times (log matching). Planted: `write_other_bytes`.

use std::collections::BTreeMap;

use lockstep_core::ids::GroupId;
use raft::eraftpb::Entry;

use super::{Checked, violated};

/// The digest of each entry, by group, index and term, over all nodes and processes.
#[derive(Default)]
pub struct Entries(BTreeMap<(GroupId, u64, u64), [u8; 32]>);

impl Entries {
    /// Checks entries of one log against all seen so far. `before` is the term of the entry before
    /// the first of them.
    pub fn agree(&mut self, group: GroupId, mut before: u64, entries: &[Entry]) -> Checked {
        for entry in entries {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&before.to_le_bytes());
            hasher.update(&[entry.get_entry_type() as u8]);
            hasher.update(&(entry.data.len() as u64).to_le_bytes());
            hasher.update(&entry.data).update(&entry.context);
            let digest = *hasher.finalize().as_bytes();
            before = entry.term;
            let key = (group, entry.index, entry.term);
            if *self.0.entry(key).or_insert(digest) != digest {
                let what = format!("entry {} of term {} differs", entry.index, entry.term);
                return violated("logs", what);
            }
        }
        Ok(())
    }
}

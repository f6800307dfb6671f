//! Bits that flip and sectors that cannot be read: in a snapshot, in a segment of the log, and in
//! the last segment shortly before a torn write.
//!
//! In the last segment only a batch that is followed by another durable one is damaged: damage in
//! the very last batch cannot be told from a torn write.

use std::ops::Range;
use std::path::{Path, PathBuf};

use lockstep_core::ids::NodeId;
use lockstep_host::fs::Fs as _;
use lockstep_host::fs::mem::MemFs;

use crate::node::Process;
use crate::world::World;

/// A batch of the last segment that is to be damaged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Batch {
    /// The next batch that is written.
    Next,
    /// The batch is written: its segment, the file, and the bytes that the batch takes there. It is
    /// damaged once another batch is durable after it.
    Written(u64, PathBuf, Range<u64>),
}

/// The last segment of a node's log, as it was before a batch that is to be damaged, or the one
/// after that, was written.
pub(crate) struct SegmentBefore {
    number: u64,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl World {
    /// Flips a bit of a snapshot or of the log, or makes one of their sectors unreadable.
    pub(crate) fn rot(&mut self, id: NodeId) {
        if !self.may_weaken(id) {
            return;
        }
        let in_log = self.rng.percent(30);
        let files = self.nodes[&id].fs.image_names();
        let mut segments = match &self.nodes[&id].process {
            Some(process) => process.reader.segments(),
            None => Vec::new(),
        };
        // Damage at the end of the last segment would look like a torn write.
        segments.pop();
        let candidates: Vec<_> = if in_log {
            segments.iter().map(|(_, path)| path).collect()
        } else {
            files.iter().filter(|path| path.to_string_lossy().ends_with("snap")).collect()
        };
        if candidates.is_empty() {
            return;
        }
        let path = if !in_log && self.rng.percent(50) {
            // The newest snapshot: the one that older ones would be given up for.
            candidates.iter().max_by_key(|path| path.file_name())
        } else {
            Some(self.rng.pick(&candidates))
        };
        let Some(path) = path.map(|path| path.to_path_buf()) else { return };
        let length = self.nodes[&id].fs.open(&path, false).and_then(|f| f.len()).unwrap_or(1);
        let offset = self.rng.below(length.max(1));
        let lost = self.rng.percent(40);
        let node = self.nodes.get_mut(&id).expect("a node");
        let struck = if lost {
            node.fs.bad_sectors(&path, offset..offset + 1)
        } else {
            node.fs.corrupt(&path, offset)
        };
        if struck.is_ok() {
            node.rotted = true;
            node.log_lost |= in_log && lost;
            if in_log {
                let segment = segments.iter().find(|(_, at)| *at == path);
                node.corrupt_log = segment.cloned();
            } else {
                node.snapshot_rotted_at = self.now;
            }
            self.counters.add(match (in_log, lost) {
                (true, false) => "bit rot in a log",
                (false, false) => "bit rot in a snapshot",
                (true, true) => "sectors of a log that cannot be read",
                (false, true) => "sectors of a snapshot that cannot be read",
            });
            // If the node goes on, its scrubber has to find the damage.
            if self.rng.percent(if in_log { 30 } else { 70 }) {
                self.crash(id);
            }
        }
    }

    /// Selects the next batch of the log for damage, which follows once another batch is durable
    /// after it.
    pub(crate) fn rot_a_batch(&mut self, id: NodeId) {
        if self.may_weaken(id) {
            self.nodes.get_mut(&id).expect("a node").batch = Some(Batch::Next);
        }
    }

    /// The log's last segment before a batch is written, if a batch is to be damaged.
    pub(crate) fn before_a_batch(&self, id: NodeId) -> Option<SegmentBefore> {
        let node = &self.nodes[&id];
        let process = node.process.as_ref().filter(|_| node.batch.is_some())?;
        let (number, path) = process.reader.segments().pop()?;
        let bytes = content(&node.fs, &path)?;
        Some(SegmentBefore { number, path, bytes })
    }

    /// A batch is durable: either the one that is to be damaged, or the one after it.
    pub(crate) fn batch_written(&mut self, id: NodeId, before: SegmentBefore) {
        let SegmentBefore { number, path, bytes } = before;
        let node = &self.nodes[&id];
        let last = |process: &Process| process.reader.segments().pop().map(|(last, _)| last);
        let goes_on = node.process.as_ref().and_then(last) == Some(number);
        let batch = match (node.batch.clone(), content(&node.fs, &path)) {
            (Some(Batch::Next), Some(now)) if goes_on => {
                let differs = |at: &usize| bytes.get(*at) != now.get(*at);
                let (first, last) = ((0..now.len()).find(differs), (0..now.len()).rfind(differs));
                let range = first.zip(last).map(|(first, last)| first as u64..last as u64 + 1);
                range.map(|range| Batch::Written(number, path, range))
            }
            (Some(Batch::Written(of, _, range)), Some(_)) if goes_on && of == number => {
                if self.may_weaken(id) {
                    self.rot_now(id, number, &path, &range);
                }
                None
            }
            _gone => None,
        };
        self.nodes.get_mut(&id).expect("a node").batch = batch;
    }

    fn rot_now(&mut self, id: NodeId, number: u64, path: &Path, range: &Range<u64>) {
        let offset = range.start + self.rng.below(range.end - range.start);
        let torn = self.rng.percent(60).then(|| self.rng.between(1, 3));
        let node = self.nodes.get_mut(&id).expect("a node");
        if node.fs.corrupt(path, offset).is_err() {
            return;
        }
        (node.rotted, node.corrupt_log) = (true, Some((number, path.to_owned())));
        self.counters.add("bit rot in the last segment");
        match torn {
            // The power fails during one of the next writes.
            Some(ops) => {
                self.counters.add("bit rot before a torn write");
                node.fs.halt_after(node.fs.ops() + ops);
            }
            None => self.crash(id),
        }
    }
}

fn content(fs: &MemFs, path: &Path) -> Option<Vec<u8>> {
    let file = fs.open(path, false).ok()?;
    let mut bytes = vec![0; usize::try_from(file.len().ok()?).ok()?];
    file.read_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

//! The bytes of one file in memory: what a reader sees, what is durable, and the changes between.
//!
//! Pages that were never written are not kept, so a preallocated file costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::rng::Rng;

const PAGE: u64 = 4096;
/// A disk writes a sector as a whole or not at all.
const SECTOR: u64 = 512;

#[derive(Default)]
pub(super) struct Inode {
    visible: Content,
    durable: Content,
    /// Changes since the last sync, in order.
    pending: Vec<Change>,
    /// Sectors that cannot be read until they are written again.
    bad: BTreeSet<u64>,
}

#[derive(Clone, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Length(u64),
}

impl Inode {
    pub(super) fn len(&self) -> u64 {
        self.visible.len
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        self.visible.read(buf, offset)
    }

    /// Makes the sectors of these bytes unreadable.
    pub(super) fn bad_sectors(&mut self, bytes: Range<u64>) {
        self.bad.extend(sectors(bytes));
    }

    /// Makes all sectors readable again.
    pub(super) fn mend(&mut self) {
        self.bad.clear();
    }

    pub(super) fn has_bad(&self) -> bool {
        !self.bad.is_empty()
    }

    pub(super) fn is_bad(&self, bytes: Range<u64>) -> bool {
        self.bad.range(sectors(bytes)).next().is_some()
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        // The drive replaces a bad sector when it is written.
        for sector in sectors(offset..offset + bytes.len() as u64) {
            self.bad.remove(&sector);
        }
        self.visible.write(bytes, offset);
        self.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.visible.set_len(len);
        self.pending.push(Change::Length(len));
    }

    pub(super) fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            self.durable.apply(&change);
        }
    }

    /// A sync failed: its pages count as clean now and are never written.
    pub(super) fn lose(&mut self) {
        self.pending.clear();
    }

    /// A sync failed for lack of space: some of its pages were written before the space ran out.
    pub(super) fn lose_partly(&mut self, rng: &mut Rng) {
        for change in std::mem::take(&mut self.pending) {
            self.durable.apply_partly(&change, rng, false);
        }
    }

    pub(super) fn drop_cache(&mut self) {
        self.visible = self.durable.clone();
        self.pending.iter().for_each(|change| self.visible.apply(change));
    }

    /// Power loss, which keeps only durable bytes or, with `keep`, some unsynced changes as well.
    /// Returns how many writes were torn.
    pub(super) fn crash(&mut self, keep: Option<&mut Rng>) -> u64 {
        let pending = std::mem::take(&mut self.pending);
        let mut torn = 0;
        if let Some(rng) = keep {
            let kept = pending.iter().map(|change| self.durable.apply_partly(change, rng, true));
            torn = kept.map(u64::from).sum();
        }
        self.visible = self.durable.clone();
        torn
    }

    pub(super) fn flip(&mut self, offset: u64) {
        for content in [&mut self.visible, &mut self.durable] {
            let mut byte = [0];
            if content.read(&mut byte, offset) == 1 {
                content.write(&[byte[0] ^ (1 << (offset % 8))], offset);
            }
        }
    }

    pub(super) fn cut(&mut self, len: u64) {
        self.visible.set_len(len);
        self.durable.set_len(len);
    }

    pub(super) fn image(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.visible.len as usize];
        self.visible.read(&mut bytes, 0);
        bytes
    }
}

fn sectors(bytes: Range<u64>) -> Range<u64> {
    bytes.start / SECTOR..bytes.end.div_ceil(SECTOR)
}

impl Content {
    fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let count = self.len.saturating_sub(offset).min(buf.len() as u64);
        each_page(offset, count, |page, within, at| match self.pages.get(&page) {
            Some(bytes) => buf[at.clone()].copy_from_slice(&bytes[within..within + at.len()]),
            None => buf[at].fill(0),
        });
        count as usize
    }

    fn write(&mut self, bytes: &[u8], offset: u64) {
        let count = bytes.len() as u64;
        each_page(offset, count, |page, within, at| {
            let kept = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(kept)[within..within + at.len()].copy_from_slice(&bytes[at]);
        });
        self.len = self.len.max(offset + count);
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.split_off(&len.div_ceil(PAGE));
            if let Some(page) = self.pages.get_mut(&(len / PAGE)) {
                Arc::make_mut(page)[(len % PAGE) as usize..].fill(0);
            }
        }
        self.len = len;
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => self.write(bytes, *offset),
            Change::Length(len) => self.set_len(*len),
        }
    }

    /// Applies all, nothing or some sectors of a change, with equal chances; returns whether it was
    /// torn. With `loses_power`, a sector that is not written may also lose its old contents.
    fn apply_partly(&mut self, change: &Change, rng: &mut Rng, loses_power: bool) -> bool {
        match (rng.number() % 3, change) {
            (0, _any) => false,
            (1, Change::Write { offset, bytes }) => {
                self.write_some_sectors(bytes, *offset, rng, loses_power)
            }
            (_all, change) => {
                self.apply(change);
                false
            }
        }
    }

    /// Overwrites a sector with garbage, as if power was lost while it was written.
    fn bad_sector(&mut self, sector: u64) {
        let length = self.len.saturating_sub(sector).min(SECTOR);
        self.write(&vec![0xa5; length as usize], sector);
    }

    /// Writes a drawn subset of the sectors; returns whether some were written and some were not.
    fn write_some_sectors(
        &mut self,
        bytes: &[u8],
        offset: u64,
        rng: &mut Rng,
        loses_power: bool,
    ) -> bool {
        let end = offset + bytes.len() as u64;
        let (mut written, mut lost) = (false, false);
        let mut from = offset;
        while from < end {
            let to = (from / SECTOR + 1).saturating_mul(SECTOR).min(end);
            let keeps = rng.coin();
            if keeps {
                self.write(&bytes[(from - offset) as usize..(to - offset) as usize], from);
            } else if loses_power && rng.number().is_multiple_of(4) {
                self.bad_sector(from / SECTOR * SECTOR);
            }
            (written, lost) = (written || keeps, lost || !keeps);
            from = to;
        }
        written && lost
    }
}

/// Calls `with` for each page of a range, with the page, the offset in it, and the range of the
/// caller's bytes that it covers.
fn each_page(offset: u64, count: u64, mut with: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < count {
        let (page, within) = ((offset + done) / PAGE, (offset + done) % PAGE);
        let step = (PAGE - within).min(count - done);
        with(page, within as usize, done as usize..(done + step) as usize);
        done += step;
    }
}

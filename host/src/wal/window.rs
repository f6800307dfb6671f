//! Reads a segment from front to back through a bounded buffer.

use super::error::WalError;
use super::segment::Segment;
use crate::fs::read_exact_at;

/// Read at once, bytes; more only for a larger batch.
const WINDOW_BYTES: u64 = 1 << 20;

pub(super) struct Window<'a> {
    segment: &'a Segment,
    /// Where `bytes` begins in the file.
    begin: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(segment: &'a Segment) -> Self {
        Self { segment, begin: 0, bytes: Vec::new() }
    }

    /// `count` bytes at `offset`; `None` if the file ends before.
    pub(super) fn get(&mut self, offset: u64, count: u64) -> Result<Option<&[u8]>, WalError> {
        let Some(end) = offset.checked_add(count).filter(|end| *end <= self.segment.length) else {
            return Ok(None);
        };
        let held = self.begin..=self.begin + self.bytes.len() as u64;
        if !held.contains(&offset) || !held.contains(&end) {
            let length = count.max(WINDOW_BYTES).min(self.segment.length - offset);
            self.bytes.resize(length as usize, 0);
            self.begin = offset;
            let read = read_exact_at(&*self.segment.file, &mut self.bytes, offset);
            if let Err(error) = read {
                self.bytes.clear();
                return Err(WalError::io("read", &self.segment.path)(error));
            }
        }
        let at = (offset - self.begin) as usize;
        Ok(Some(&self.bytes[at..at + count as usize]))
    }

    /// The first offset from `offset` on whose byte is not 0.
    pub(super) fn first_non_zero(&mut self, mut offset: u64) -> Result<Option<u64>, WalError> {
        while offset < self.segment.length {
            self.get(offset, 1)?.expect("the offset is within the file");
            let held = &self.bytes[(offset - self.begin) as usize..];
            if let Some(at) = held.iter().position(|byte| *byte != 0) {
                return Ok(Some(offset + at as u64));
            }
            offset += held.len() as u64;
        }
        Ok(None)
    }
}

//! Reads a log file from front to back through a bounded buffer.

use super::error::WalError;
use super::segment::LogFile;
use crate::fs::read_exact_at;

/// Bytes read at once; more only for a larger batch.
const WINDOW_BYTES: u64 = 1 << 20;

pub(super) struct Window<'a> {
    file: &'a LogFile,
    /// Bytes read at once.
    ahead: u64,
    /// The offset of `bytes` in the file.
    begin: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a LogFile) -> Self {
        Self { file, ahead: WINDOW_BYTES, begin: 0, bytes: Vec::new() }
    }

    /// A window that reads no more than it is asked for.
    pub(super) fn exact(file: &'a LogFile) -> Self {
        Self { ahead: 0, ..Self::new(file) }
    }

    /// `count` bytes at `offset`; `None` if the file ends before that.
    pub(super) fn get(&mut self, offset: u64, count: u64) -> Result<Option<&[u8]>, WalError> {
        let Some(end) = offset.checked_add(count).filter(|end| *end <= self.file.length) else {
            return Ok(None);
        };
        let held = self.begin..=self.begin + self.bytes.len() as u64;
        if !held.contains(&offset) || !held.contains(&end) {
            let length = count.max(self.ahead).min(self.file.length - offset);
            self.bytes.resize(length as usize, 0);
            self.begin = offset;
            let read = read_exact_at(&*self.file.file, &mut self.bytes, offset);
            if let Err(error) = read {
                self.bytes.clear();
                return Err(WalError::io("read", &self.file.path)(error));
            }
        }
        let at = (offset - self.begin) as usize;
        Ok(Some(&self.bytes[at..at + count as usize]))
    }
}

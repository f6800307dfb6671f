//! What is written is hashed and counted on its way.

use std::io;

use lockstep_core::ids::Digest;

/// Passes bytes on, and knows their digest and their number.
pub struct Hashing<W> {
    pub out: W,
    hasher: blake3::Hasher,
    pub bytes: u64,
}

impl<W: io::Write> Hashing<W> {
    pub fn new(out: W) -> Self {
        Self { out, hasher: blake3::Hasher::new(), bytes: 0 }
    }

    /// The digest of what was written so far.
    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }
}

impl<W: io::Write> io::Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

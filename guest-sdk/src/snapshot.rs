//! The two ends of a snapshot: `io::Write` while taking one, `io::Read` while restoring one.
//!
//! * Memory: one chunk of at most [`CHUNK_BYTES_MAX`], however large the state.
//! * What is read is what was written; the boundaries of chunks carry no meaning.
//! * Numbers are little-endian; a block is its length as `u32`, then its bytes.
//!
//! Checksums, digests and the limit of the total size are the host's part.

use std::io::{self, BufRead, Read, Write};

use crate::codec::{Decode, Encode};
use crate::{DetMap, Failure};

/// The bytes that are gathered before the host is called. A call costs about as much as copying a
/// few KiB, so at this size it no longer matters, and two chunks fit into any cache.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// The longest item of `read_item`, in bytes: far more than a command may have, so that only a
/// damaged length exceeds it.
pub const ITEM_BYTES_MAX: usize = 64 << 20;

/// The sink to which a state machine writes its state.
pub struct SnapshotWriter<'a> {
    /// Bytes not yet handed on; between calls always shorter than a full chunk.
    chunk: Vec<u8>,
    /// The item that is being encoded.
    item: Vec<u8>,
    /// Where full chunks go.
    sink: &'a mut dyn Write,
}

impl<'a> SnapshotWriter<'a> {
    /// A writer that hands chunks on to `sink`.
    pub fn new(sink: &'a mut dyn Write) -> Self {
        Self { chunk: Vec::with_capacity(CHUNK_BYTES_MAX), item: Vec::new(), sink }
    }

    /// Writes a number.
    pub fn write_u64(&mut self, number: u64) -> io::Result<()> {
        self.write_all(&number.to_le_bytes())
    }

    /// Writes a length and that many bytes.
    pub fn write_block(&mut self, block: &[u8]) -> io::Result<()> {
        let length = u32::try_from(block.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a block over 4 GiB"))?;
        self.write_all(&length.to_le_bytes())?;
        self.write_all(block)
    }

    /// Writes a value, as a block of its encoded bytes. Only this item is in memory twice.
    pub fn write_item<C: Encode<T>, T>(&mut self, item: &T) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.item);
        bytes.clear();
        C::encode(item, &mut bytes)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        self.write_block(&bytes)?;
        self.item = bytes;
        Ok(())
    }

    /// Writes how many items there are, then each: `out.write_items::<Json, _>(&self.map)`.
    pub fn write_items<C, I>(&mut self, items: I) -> io::Result<()>
    where
        I: IntoIterator<IntoIter: ExactSizeIterator>,
        C: Encode<I::Item>,
    {
        let items = items.into_iter();
        self.write_u64(items.len() as u64)?;
        for item in items {
            self.write_item::<C, _>(&item)?;
        }
        Ok(())
    }

    /// Hands on the rest, without which the snapshot would lack its end. The SDK calls this after
    /// `StateMachine::snapshot`.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()
    }

    fn hand_on(&mut self) -> io::Result<()> {
        self.sink.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }
}

impl Write for SnapshotWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES_MAX - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK_BYTES_MAX {
            self.hand_on()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.chunk.is_empty() {
            self.hand_on()?;
        }
        self.sink.flush()
    }
}

/// The source from which a state machine reads its state.
pub struct SnapshotReader<'a> {
    /// The current chunk.
    chunk: Vec<u8>,
    /// How many bytes of the current chunk were read.
    consumed: usize,
    /// Whether the source has ended; it is not asked again.
    ended: bool,
    /// Where chunks come from.
    source: Box<dyn ChunkSource + 'a>,
}

/// Hands out a snapshot chunk by chunk; an empty chunk is the end.
pub(crate) trait ChunkSource {
    /// The next chunk, of at most [`CHUNK_BYTES_MAX`] bytes. `spent` is the last one; its memory
    /// may be reused.
    fn next_chunk(&mut self, spent: Vec<u8>) -> io::Result<Vec<u8>>;
}

impl<'a> SnapshotReader<'a> {
    /// A reader of all bytes of `source`.
    pub fn new(source: &'a mut dyn Read) -> Self {
        Self::from_chunks(source)
    }

    /// A reader of all chunks of `source`.
    pub(crate) fn from_chunks(source: impl ChunkSource + 'a) -> Self {
        Self { chunk: Vec::new(), consumed: 0, ended: false, source: Box::new(source) }
    }

    /// Reads a number.
    pub fn read_u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a length and that many bytes. A length over `bytes_max` is refused before anything is
    /// allocated, because a damaged length may have any value.
    pub fn read_block(&mut self, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > bytes_max {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a block of {length} bytes exceeds the limit of {bytes_max}"),
            ));
        }
        let mut block = vec![0; length];
        self.read_exact(&mut block)?;
        Ok(block)
    }

    /// Reads a value that `write_item` wrote; at most [`ITEM_BYTES_MAX`] bytes.
    pub fn read_item<C: Decode<T>, T>(&mut self) -> io::Result<T> {
        let bytes = self.read_block(ITEM_BYTES_MAX)?;
        C::decode(&bytes).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// Reads what `write_items` wrote, one item after another, into a collection:
    /// `from.read_items::<Json, Vec<Job>, _>()`.
    pub fn read_items<C, Items, T>(&mut self) -> io::Result<Items>
    where
        C: Decode<T>,
        Items: FromIterator<T>,
    {
        let count = self.read_u64()?;
        (0..count).map(|_| self.read_item::<C, T>()).collect()
    }

    /// Reads a map that `write_items` wrote. Its keys must ascend, as those of every map that was
    /// written do; repeated keys count as damage.
    pub fn read_map<C, K, V>(&mut self) -> Result<DetMap<K, V>, Failure>
    where
        C: Decode<(K, V)>,
        K: Ord,
    {
        let mut map = DetMap::new();
        for _ in 0..self.read_u64()? {
            let (key, value) = self.read_item::<C, (K, V)>()?;
            if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(Failure::Corrupt("its keys are out of order".to_owned()));
            }
            map.insert(key, value);
        }
        Ok(map)
    }

    /// Whether all bytes were read.
    pub fn is_at_end(&mut self) -> io::Result<bool> {
        Ok(self.fill_buf()?.is_empty())
    }
}

impl BufRead for SnapshotReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.consumed == self.chunk.len() && !self.ended {
            self.chunk = self.source.next_chunk(std::mem::take(&mut self.chunk))?;
            self.consumed = 0;
            self.ended = self.chunk.is_empty();
        }
        Ok(&self.chunk[self.consumed..])
    }

    fn consume(&mut self, amount: usize) {
        assert!(amount <= self.chunk.len() - self.consumed, "only what is there can be consumed");
        self.consumed += amount;
    }
}

impl Read for SnapshotReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let amount = there.len().min(into.len());
        into[..amount].copy_from_slice(&there[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}

impl ChunkSource for &mut dyn Read {
    fn next_chunk(&mut self, mut spent: Vec<u8>) -> io::Result<Vec<u8>> {
        spent.resize(CHUNK_BYTES_MAX, 0);
        let length = loop {
            match self.read(&mut spent) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        spent.truncate(length);
        Ok(spent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of awkward sizes are read back as written, and all chunks but the last are full.
    #[test]
    fn what_is_written_is_read() {
        let sizes = [0, 1, CHUNK_BYTES_MAX - 5, CHUNK_BYTES_MAX, 3 * CHUNK_BYTES_MAX + 7];
        let mut chunks = Chunks::default();
        let mut out = SnapshotWriter::new(&mut chunks);
        for size in sizes {
            out.write_block(&vec![7; size]).expect("the sink takes everything");
        }
        out.write_u64(u64::MAX - 1).expect("the sink takes everything");
        out.finish().expect("the sink takes everything");

        let (_, full) = chunks.lengths.split_last().expect("something was written");
        assert!(full.iter().all(|&length| length == CHUNK_BYTES_MAX));

        let mut bytes = chunks.bytes.as_slice();
        let mut from = SnapshotReader::new(&mut bytes);
        for size in sizes {
            assert_eq!(from.read_block(size).expect("it was written"), vec![7; size]);
        }
        assert!(!from.is_at_end().expect("there is a number left"));
        assert_eq!(from.read_u64().expect("it was written"), u64::MAX - 1);
        assert!(from.is_at_end().expect("the source is at its end"));
    }

    /// A damaged length causes an error, not an allocation.
    #[test]
    fn a_block_over_the_limit_is_refused() {
        let mut bytes = [0xff; 64].as_slice();
        let error = SnapshotReader::new(&mut bytes).read_block(1024).expect_err("4 GiB");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[derive(Default)]
    struct Chunks {
        bytes: Vec<u8>,
        lengths: Vec<usize>,
    }

    impl Write for Chunks {
        fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
            self.bytes.extend_from_slice(chunk);
            self.lengths.push(chunk.len());
            Ok(chunk.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

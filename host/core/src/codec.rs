//! The small binary codec that the formats on disk share: little-endian integers and
//! length-prefixed bytes.
//!
//! Decoding is defensive: every length is checked against the remaining input before anything is
//! allocated, and input that is left over is an error ([`Reader::finish`]).

use bytes::Bytes;

/// Why bytes could not be decoded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("{what}: ends early")]
    Short { what: &'static str },
    #[error("{what}: version {version} is newer than this program, which knows {known}")]
    Newer { what: &'static str, version: u8, known: u8 },
    #[error(
        "{what}: version {version} is older than what this program reads, {known}: use the release \
         that wrote it"
    )]
    Older { what: &'static str, version: u8, known: u8 },
    #[error("{what}: unknown value {value}")]
    Unknown { what: &'static str, value: u64 },
    #[error("{what}: {count} is over the limit of {limit}")]
    TooLarge { what: &'static str, count: u64, limit: u64 },
    #[error("{what}: {count} bytes left over")]
    Trailing { what: &'static str, count: usize },
    #[error("{what}: {why}")]
    Invalid { what: &'static str, why: String },
}

/// Reads values from a byte string, of which it owns a cheap handle.
pub struct Reader {
    bytes: Bytes,
    what: &'static str,
}

impl Reader {
    /// Reads `bytes`; `what` names the thing being decoded in errors.
    pub fn new(bytes: Bytes, what: &'static str) -> Self {
        Self { bytes, what }
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub fn take(&mut self, count: usize) -> Result<Bytes, DecodeError> {
        if count > self.bytes.len() {
            return Err(DecodeError::Short { what: self.what });
        }
        Ok(self.bytes.split_to(count))
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(N)?;
        let mut array = [0; N];
        array.copy_from_slice(&bytes);
        Ok(array)
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A byte string, prefixed by a u32 length of at most `limit`.
    pub fn bytes(&mut self, limit: usize) -> Result<Bytes, DecodeError> {
        let count = self.u32()? as usize;
        self.within(count as u64, limit as u64)?;
        self.take(count)
    }

    pub fn string(&mut self, limit: usize) -> Result<String, DecodeError> {
        String::from_utf8(self.bytes(limit)?.to_vec())
            .map_err(|e| DecodeError::Invalid { what: self.what, why: e.to_string() })
    }

    /// A u32 count of at most `limit` items, each of which takes at least one of the remaining
    /// bytes.
    pub fn count(&mut self, limit: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        self.within(count as u64, limit.min(self.bytes.len()) as u64)?;
        Ok(count)
    }

    /// A u8 that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.unknown(u64::from(other))),
        }
    }

    /// A u32 number of at most `limit`.
    pub fn number(&mut self, limit: u32) -> Result<u32, DecodeError> {
        let number = self.u32()?;
        self.within(u64::from(number), u64::from(limit))?;
        Ok(number)
    }

    pub fn unknown(&self, value: u64) -> DecodeError {
        DecodeError::Unknown { what: self.what, value }
    }

    pub fn invalid(&self, why: impl Into<String>) -> DecodeError {
        DecodeError::Invalid { what: self.what, why: why.into() }
    }

    /// Reads the version byte that every format begins with; it has to be `known`.
    pub fn version(&mut self, known: u8) -> Result<(), DecodeError> {
        self.version_from(known, known).map(drop)
    }

    /// Reads the version byte that every format begins with; it has to be one from `oldest` to
    /// `known`.
    pub fn version_from(&mut self, oldest: u8, known: u8) -> Result<u8, DecodeError> {
        match self.u8()? {
            version if version > known => {
                Err(DecodeError::Newer { what: self.what, version, known })
            }
            version if version < oldest => {
                Err(DecodeError::Older { what: self.what, version, known })
            }
            version => Ok(version),
        }
    }

    pub fn finish(self) -> Result<(), DecodeError> {
        match self.bytes.len() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { what: self.what, count }),
        }
    }

    fn within(&self, count: u64, limit: u64) -> Result<(), DecodeError> {
        if count > limit {
            return Err(DecodeError::TooLarge { what: self.what, count, limit });
        }
        Ok(())
    }
}

/// Appends values to a `Vec<u8>`; the counterpart of [`Reader`].
pub trait Write {
    fn put_u8(&mut self, value: u8);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    fn put_raw(&mut self, bytes: &[u8]);
    fn put_bytes(&mut self, bytes: &[u8]);
    fn put_count(&mut self, count: usize);
    /// Writes a count for [`Reader::count`]. Panics over `limit`, so that nothing is written that
    /// no reader accepts.
    fn put_count_within(&mut self, count: usize, limit: usize) {
        assert!(count <= limit, "{count} exceeds the limit of {limit}");
        self.put_count(count);
    }
    /// Writes a number for [`Reader::number`]. Panics over `limit`.
    fn put_number_within(&mut self, number: u32, limit: u32) {
        assert!(number <= limit, "{number} exceeds the limit of {limit}");
        self.put_u32(number);
    }
    /// Writes a byte string for [`Reader::bytes`]. Panics if it is longer than `limit`.
    fn put_bytes_within(&mut self, bytes: &[u8], limit: usize) {
        assert!(bytes.len() <= limit, "{} bytes exceed the limit of {limit}", bytes.len());
        self.put_bytes(bytes);
    }
}

impl Write for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_count(bytes.len());
        self.extend_from_slice(bytes);
    }

    fn put_count(&mut self, count: usize) {
        self.put_u32(u32::try_from(count).expect("a format's lengths are below 4 GiB"));
    }
}

//! Keys for maps that are sorted by bytes.
//!
//! * A key is ordered as its bytes are.
//! * Its first 16 bytes are two numbers. So comparing two keys mostly means comparing one or two
//!   numbers, without a call and without a look at other memory. A search in a map compares some 25
//!   keys, and in WebAssembly each call costs what metering adds to it.
//! * A key of up to 16 bytes is made without an allocation.

use std::cmp::Ordering;
use std::fmt;

const WORD: usize = size_of::<u64>();
const HEAD: usize = 2 * WORD;

/// Bytes as the key of a map: a `DetMap<Key, V>` is faster than a `DetMap<Vec<u8>, V>` and has the
/// same order.
///
/// ```
/// # use lockstep_guest::*;
/// let mut stock = DetMap::new();
/// stock.insert(Key::new(b"apples"), 5);
/// assert_eq!(stock.get(&Key::new(b"apples")), Some(&5));
/// let first = stock.first_key_value().map(|(key, _)| key.to_vec());
/// assert_eq!(first.as_deref(), Some(b"apples".as_slice()));
/// ```
#[derive(Clone)]
pub struct Key {
    /// The first bytes, each word with its first byte highest, and zeros where there are none.
    head: [u64; 2],
    /// How many bytes of the head there are.
    length: u32,
    /// The bytes that do not fit into the head.
    rest: Box<[u8]>,
}

impl Key {
    /// The key with these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD));
        let (first, second) = head.split_at(head.len().min(WORD));
        Self { head: [number(first), number(second)], length: head.len() as u32, rest: rest.into() }
    }

    /// Its bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let [first, second] = self.head.map(u64::to_be_bytes);
        let mut bytes = Vec::with_capacity(HEAD + self.rest.len());
        bytes.extend_from_slice(&first);
        bytes.extend_from_slice(&second);
        bytes.truncate(self.length as usize);
        bytes.extend_from_slice(&self.rest);
        bytes
    }
}

/// At most eight bytes as a number, the first one highest.
fn number(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(all) => u64::from_be_bytes(*all),
        None => bytes.iter().rev().fold(0, |number, &byte| number >> 8 | u64::from(byte) << 56),
    }
}

impl Ord for Key {
    // A map's search is a loop around this.
    #[inline(always)]
    fn cmp(&self, other: &Self) -> Ordering {
        if self.head[0] != other.head[0] {
            return self.head[0].cmp(&other.head[0]);
        }
        if self.head[1] != other.head[1] {
            return self.head[1].cmp(&other.head[1]);
        }
        if self.rest.is_empty() || other.rest.is_empty() {
            // One is the beginning of the other, which goes on with zeros, or has a rest. Empty
            // rests are not compared: no more than their address is wrong, but glibc's `memcmp`
            // reads there under a mask, and suppressing the fault takes the processor 50 ns.
            let [one, other] = [self, other].map(|key| (key.length, key.rest.len()));
            return one.cmp(&other);
        }
        self.rest.cmp(&other.rest)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    #[inline(always)]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// As `b"…"`.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.to_vec().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Around every length at which something changes, with bytes that differ there or are zeros.
    #[test]
    fn keys_are_ordered_as_their_bytes_are() {
        let mut all = vec![Vec::new()];
        for length in [1, 2, 7, 8, 9, 15, 16, 17, 18, 24, 33] {
            for byte in [0, 1, b'a', 0xff] {
                all.push(vec![byte; length]);
                for at in [0, 6, 7, 8, 15, 16, 17] {
                    let mut bytes = vec![byte; length];
                    if let Some(place) = bytes.get_mut(at) {
                        *place ^= 0x81;
                        all.push(bytes);
                    }
                }
            }
        }
        for left in &all {
            assert_eq!(&Key::new(left).to_vec(), left);
            for right in &all {
                let (one, other) = (Key::new(left), Key::new(right));
                assert_eq!(one.cmp(&other), left.cmp(right), "{one:?} {other:?}");
                assert_eq!(one == other, left == right, "{one:?} {other:?}");
            }
        }
        assert_eq!(format!("{:?}", Key::new(b"a\n\xff")), r#"b"a\n\xff""#);
    }
}

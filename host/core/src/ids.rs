//! The ids of things, as newtypes, so that no index is taken for a term.

use std::fmt;

use crate::mutant::planted;

/// A configured node: one process on one machine, numbered 1 to 65,535.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u16);

/// A group on the wire and in the log: the first eight bytes of the BLAKE3 digest of its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// A raft member: its node in the upper 16 bits, 48 random bits below. Drawn when a node first
/// meets a group and never reused, so a wiped node comes back as a new member
/// (docs/decisions/0002).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

/// A request that waits for its answer, within one process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// SHA-256 of a guest's component.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(pub [u8; 32]);

/// The bootstrap that a group goes back to, which tells groups of one name apart: the head of the
/// digest of its first entry, which contains a random seed. Where an operator gave up a lost
/// majority, the lineage itself is drawn anew (docs/decisions/0029).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(pub [u8; 16]);

/// BLAKE3-256 of a snapshot's payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl GroupId {
    pub fn of_name(name: &str) -> Self {
        let digest = blake3::hash(name.as_bytes());
        let mut head = [0; 8];
        head.copy_from_slice(&digest.as_bytes()[..8]);
        Self(u64::from_be_bytes(head))
    }
}

impl Lineage {
    /// The lineage of a group that begins with this entry.
    pub fn bootstrapped_with(entry: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"lockstep lineage");
        hasher.update(entry);
        let mut head = [0; 16];
        head.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(head)
    }
}

impl ReplicaId {
    /// A fresh id for `node`; `random` supplies the lower 48 bits.
    pub fn new(node: NodeId, random: u64) -> Self {
        let random = if planted("wiped_replica_votes") { 0 } else { random };
        // The lowest bit is set so that no id is ever 0, which is raft's "no node".
        Self(u64::from(node.0) << 48 | (random >> 16) | 1)
    }

    pub fn node(self) -> NodeId {
        let [high, low, ..] = self.0.to_be_bytes();
        NodeId(u16::from_be_bytes([high, low]))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group:{:016x}", self.0)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:012x}", self.node(), self.0 & ((1 << 48) - 1))
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that these hexadecimal digits stand for; `None` if they are not as many, or none.
pub fn unhex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |digit: u8| (digit as char).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(bytes)
}

macro_rules! hex_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex(&self.0[..8]))
            }
        }
    };
}
hex_id!(Lineage);
hex_id!(ModuleId);
hex_id!(Digest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_ids_carry_their_node() {
        let id = ReplicaId::new(NodeId(513), u64::MAX);
        assert_eq!(id.node(), NodeId(513));
        assert_eq!(id.to_string(), "513-ffffffffffff");
        assert_ne!(ReplicaId::new(NodeId(1), 0).0 & 1, 0, "no replica id is ever 0");
    }

    #[test]
    fn an_id_is_read_back_from_its_digits() {
        let id = ModuleId([0xa7; 32]);
        assert_eq!(unhex(&id.to_string()), Some(id.0));
        assert_eq!(unhex("00Ff"), Some([0, 255]));
        for not in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"+".repeat(64), &"é".repeat(32)] {
            assert_eq!(unhex::<32>(not), None, "{not}");
        }
    }
}

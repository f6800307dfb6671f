//! The frames that move a snapshot between two hosts, and how a receiver judges an offer.
//!
//! A transfer is one exchange over a channel that is lossless or broken:
//!
//! ```text
//! sender    Offer ──▶          Block × n ──▶           End ──▶
//! receiver        ◀── Proceed            ◀── Credit        ◀── Accepted | Stale | Busy | …
//! ```
//!
//! - No block leaves before `Proceed`, and at most [`WINDOW_BLOCKS`] are in flight.
//! - Every block but the last is full; each carries its offset and CRC32C; `End` is mandatory.
//! - Every [`BulkReply`] but `Proceed` and `Credit` ends the transfer and tells the sender what to
//!   do next: stop, wait, offer another object or give up.
//! - The received part of a broken transfer may be *suspended*: an offer of the same object resumes
//!   after the blocks that are there; an offer of another object is answered with
//!   [`BulkReply::Prefer`].
//!
//! The bytes on the wire are the transport's business; here frames are values.

use bytes::Bytes;

use crate::ids::{Digest, GroupId, ReplicaId};
use crate::limits;
use crate::mutant::planted;
use crate::snapshot::SnapshotDesc;

/// Blocks that a sender may have in flight: 4 MiB hide a round trip and are little of a host's
/// memory.
pub const WINDOW_BLOCKS: u32 = 4;
/// Ticks without progress after which either end abandons a transfer. Its total time has no limit.
pub const STALL_TICKS: u32 = 300;
/// Milliseconds after which a sender offers again to a receiver that was busy.
pub const BUSY_RETRY_MS: u64 = 1_000;
/// Milliseconds that a receiver asks for with `NoSpace`: an operator or another group has to free
/// space, which takes a while.
pub const NO_SPACE_RETRY_MS: u64 = 10_000;
/// Most milliseconds that a sender waits, whatever its receiver asks for.
pub const RETRY_MAX_MS: u64 = 60_000;
/// Milliseconds after which a sender offers again after a transfer broke or stalled.
pub const BROKEN_RETRY_MS: u64 = 1_000;
/// Longest reason in [`BulkReply::Incompatible`], bytes.
pub const REASON_BYTES_MAX: usize = 1024;

const BLOCK: u64 = limits::SNAPSHOT_BLOCK_BYTES as u64;
const _: () = assert!(
    WINDOW_BLOCKS as usize * limits::SNAPSHOT_BLOCK_BYTES <= limits::GRPC_MESSAGE_BYTES_MAX
);

/// The first frame of a transfer: which object, from whom, for whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    pub cluster: [u8; 16],
    pub group: GroupId,
    pub from: ReplicaId,
    pub to: ReplicaId,
    /// The sender's raft term; no snapshot can have a later one.
    pub term: u64,
    pub desc: SnapshotDesc,
    pub purpose: Purpose,
    /// The sender does not have the object that the receiver prefers: the suspended part is to be
    /// given up.
    pub insist: bool,
}

/// Why an object is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Raft's follower needs it; raft is told how the transfer ended.
    Follow,
    /// The receiver requested it with `Body::Want`; raft is not involved.
    Wanted,
}

/// Denotes an object well enough to tell whether a replica has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectRef {
    pub term: u64,
    pub index: u64,
    /// The first half of the payload's digest.
    pub digest: [u8; 16],
}

/// A block of payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// The offset of the block's first byte in the payload: a multiple of the block size.
    pub offset: u64,
    /// CRC32C of `data`.
    pub crc: u32,
    pub data: Bytes,
}

/// A frame from the sender.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one offer begins a stream of blocks; a box would only add an allocation"
)]
pub enum BulkRequest {
    Offer(Offer),
    Block(Block),
    End { length: u64, digest: Digest },
}

/// A frame from the receiver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BulkReply {
    /// Send the payload from `offset` on.
    Proceed {
        offset: u64,
    },
    /// This many more blocks may be sent; 0 says "still working".
    Credit {
        blocks: u32,
    },
    /// The object was stored, read back and accepted by raft.
    Accepted,
    /// The receiver is past this snapshot.
    Stale,
    Busy {
        retry_after_ms: u64,
    },
    /// The receiver holds a part of this object: offer that one if the sender has it, else insist.
    Prefer(ObjectRef),
    NoSpace {
        need: u64,
        have: u64,
        retry_after_ms: u64,
    },
    /// The bytes are not those that the offer denotes.
    Corrupt,
    /// The receiver can never take this object.
    Incompatible {
        why: String,
    },
    /// The offer is for another cluster, group or replica.
    WrongGroup,
}

/// What the receiver compares an offer with. `commit` is a hint only: whether a snapshot is needed
/// is raft's decision, by `step`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    pub cluster: [u8; 16],
    pub group: GroupId,
    pub replica: ReplicaId,
    pub commit: u64,
    /// The object that the receiver requested from its peers, if it did. One that fits is accepted
    /// whatever its index and its configuration.
    pub wanted: Option<Want>,
}

/// A request to all peers for an object, to repair a listed one or to have one to start from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    /// The lowest and the highest index that help.
    pub low: u64,
    pub high: u64,
    /// Only this object helps.
    pub exactly: Option<ObjectRef>,
}

/// An offer that passed all checks that need no disk. The store reserves space only for such a
/// value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValidatedHeader {
    cluster: [u8; 16],
    group: GroupId,
    desc: SnapshotDesc,
    yields: Yields,
}

/// Which suspended part of another object an offer displaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Yields {
    /// A part of an object below this index, which is obsolete.
    Below(u64),
    /// A part of any object.
    All,
}

impl ObjectRef {
    pub fn of(desc: &SnapshotDesc) -> Self {
        let mut digest = [0; 16];
        digest.copy_from_slice(&desc.digest.0[..16]);
        Self { term: desc.term, index: desc.index, digest }
    }
}

impl Want {
    pub fn fits(&self, desc: &SnapshotDesc) -> bool {
        (self.low..=self.high).contains(&desc.index)
            && (self.exactly.is_none_or(|object| object == ObjectRef::of(desc))
                || planted("skip_want_digest"))
    }
}

impl Offer {
    /// Checks everything that can be checked before a byte of payload is read.
    pub fn validate(&self, expected: &Expected) -> Result<ValidatedHeader, BulkReply> {
        let known = (expected.cluster, expected.group, expected.replica);
        let own = self.cluster == known.0 || planted("offer_of_anybody");
        if !own || (self.group, self.to) != (known.1, known.2) {
            return Err(BulkReply::WrongGroup);
        }
        let desc = &self.desc;
        if desc.index == 0 || desc.term == 0 || desc.term > self.term {
            return Err(incompatible(format!(
                "no snapshot can be at term {} and index {} when its sender is in term {}",
                desc.term, desc.index, self.term
            )));
        }
        let wanted = self.purpose == Purpose::Wanted;
        if wanted && !expected.wanted.is_some_and(|want| want.fits(desc)) {
            return Err(BulkReply::Stale);
        }
        if !wanted && !desc.configuration.contains(self.to) && !planted("take_any_snapshot") {
            return Err(incompatible(format!(
                "the configuration at index {} does not contain replica {}; take a later snapshot",
                desc.index, self.to
            )));
        }
        if desc.index < expected.commit && !wanted {
            return Err(BulkReply::Stale);
        }
        // A requested object is needed now. For any other, a suspended part is given up only if its
        // object is below the commit index.
        let yields =
            if self.insist || wanted { Yields::All } else { Yields::Below(expected.commit) };
        let (cluster, group) = (self.cluster, self.group);
        Ok(ValidatedHeader { cluster, group, desc: desc.clone(), yields })
    }
}

impl ValidatedHeader {
    pub fn cluster(&self) -> [u8; 16] {
        self.cluster
    }

    pub fn group(&self) -> GroupId {
        self.group
    }

    pub fn desc(&self) -> &SnapshotDesc {
        &self.desc
    }

    /// Whether the suspended part of another object is given up for this one.
    pub fn displaces(&self, suspended: ObjectRef) -> bool {
        match self.yields {
            Yields::All => true,
            Yields::Below(index) => suspended.index < index,
        }
    }
}

impl BulkRequest {
    /// The offer that a transfer begins with; any other frame is refused.
    pub fn into_offer(self) -> Result<Offer, BulkReply> {
        match self {
            Self::Offer(offer) => Ok(offer),
            Self::Block(_) => Err(incompatible("payload came before the offer")),
            Self::End { .. } => Err(incompatible("the end came before the offer")),
        }
    }
}

impl BulkReply {
    /// Whether this ends the transfer.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Proceed { .. } | Self::Credit { .. } => false,
            Self::Accepted
            | Self::Stale
            | Self::Busy { .. }
            | Self::Prefer(_)
            | Self::NoSpace { .. }
            | Self::Corrupt
            | Self::Incompatible { .. }
            | Self::WrongGroup => true,
        }
    }
}

/// The number of blocks of a payload of `length` bytes.
pub fn block_count(length: u64) -> u64 {
    length.div_ceil(BLOCK)
}

/// The size of the block that begins at `offset` of a payload of `length` bytes; 0 at or beyond the
/// end.
pub fn block_bytes(length: u64, offset: u64) -> u64 {
    length.saturating_sub(offset).min(BLOCK)
}

pub(crate) fn incompatible(why: impl Into<String>) -> BulkReply {
    let mut why = why.into();
    let mut end = why.len().min(REASON_BYTES_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why.truncate(end);
    BulkReply::Incompatible { why }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ids::{ModuleId, NodeId};
    use crate::snapshot::Configuration;

    pub(crate) fn offer(length: u64) -> Offer {
        let (from, to) = (ReplicaId::new(NodeId(1), 0), ReplicaId::new(NodeId(2), 0));
        let desc = SnapshotDesc {
            term: 2,
            index: 10,
            length,
            digest: Digest([9; 32]),
            module: ModuleId([5; 32]),
            format: 3,
            configuration: Configuration::of_voters([from, to]),
        };
        let (cluster, group, purpose) = ([7; 16], GroupId(1), Purpose::Follow);
        Offer { cluster, group, from, to, term: 2, desc, purpose, insist: false }
    }

    pub(crate) fn expected() -> Expected {
        Expected {
            cluster: [7; 16],
            group: GroupId(1),
            replica: ReplicaId::new(NodeId(2), 0),
            commit: 10,
            wanted: None,
        }
    }

    /// The correct block at `offset` of a payload of `length` equal bytes.
    pub(crate) fn block(length: u64, offset: u64) -> Block {
        let data = Bytes::from(vec![0xab; block_bytes(length, offset) as usize]);
        Block { offset, crc: crc32c::crc32c(&data), data }
    }

    /// Covers P15 P16 G8.
    #[test]
    fn an_offer_is_judged_by_everything_it_says() {
        let judge = |change: &dyn Fn(&mut Offer)| {
            let mut offer = offer(1);
            change(&mut offer);
            match offer.validate(&expected()) {
                Ok(header) => {
                    assert_eq!((header.desc(), header.group()), (&offer.desc, offer.group));
                    "valid".to_owned()
                }
                Err(BulkReply::Incompatible { why }) => why,
                Err(other) => format!("{other:?}"),
            }
        };
        for (change, verdict) in [
            ((|_| ()) as fn(&mut Offer), "valid"),
            (|offer| offer.desc.format = 2, "valid"),
            (|offer| offer.term = 9, "valid"),
            (|offer| offer.cluster[3] = 0, "WrongGroup"),
            (|offer| offer.group.0 = 2, "WrongGroup"),
            (|offer| offer.to = offer.from, "WrongGroup"),
            (|offer| offer.desc.term = 3, "no snapshot can be at term 3 and index 10"),
            (|offer| offer.desc.term = 0, "no snapshot can be at term 0"),
            (|offer| offer.desc.index = 0, "no snapshot can be at term 2 and index 0"),
            (|offer| offer.desc.module.0[0] = 0, "valid"),
            (|offer| offer.desc.configuration.voters.clear(), "the configuration"),
            (|offer| offer.desc.index = 9, "Stale"),
        ] {
            let said = judge(&change);
            assert!(said.starts_with(verdict), "{said} instead of {verdict}");
        }
        let want = Want { low: 5, high: 10, exactly: None };
        let asked = Expected { wanted: Some(want), commit: 99, ..expected() };
        let wanted = Offer { purpose: Purpose::Wanted, ..offer(1) };
        assert!(wanted.validate(&asked).is_ok(), "a requested object is never stale");
        assert_eq!(offer(1).validate(&asked), Err(BulkReply::Stale), "it was not sent on request");
        assert_eq!(wanted.validate(&expected()), Err(BulkReply::Stale), "nothing was requested");
        let object = ObjectRef { digest: [1; 16], ..ObjectRef::of(&wanted.desc) };
        let other = Expected { wanted: Some(Want { exactly: Some(object), ..want }), ..asked };
        assert_eq!(wanted.validate(&other), Err(BulkReply::Stale), "another object was requested");
    }

    #[test]
    fn a_suspended_object_yields_when_it_is_behind_or_the_sender_has_no_other() {
        let suspended = |index| ObjectRef { term: 1, index, digest: [0; 16] };
        let header = offer(1).validate(&expected()).expect("the offer is valid");
        assert!(header.displaces(suspended(9)), "the commit index, 10, is past it");
        assert!(!header.displaces(suspended(10)));
        let insists = Offer { insist: true, ..offer(1) };
        assert!(insists.validate(&expected()).expect("it is valid").displaces(suspended(99)));
    }

    #[test]
    fn reasons_are_bounded_at_a_character() {
        let BulkReply::Incompatible { why } = incompatible("é".repeat(REASON_BYTES_MAX)) else {
            panic!("an incompatibility")
        };
        assert_eq!(why.len(), REASON_BYTES_MAX);
        assert!(!BulkReply::Credit { blocks: 1 }.is_final() && BulkReply::Stale.is_final());
    }

    /// Covers P14.
    #[test]
    fn block_arithmetic() {
        for (length, count) in [(0, 0), (1, 1), (BLOCK, 1), (BLOCK + 1, 2)] {
            assert_eq!(block_count(length), count);
        }
        assert_eq!(block_bytes(BLOCK + 1, 0), BLOCK);
        assert_eq!(block_bytes(BLOCK + 1, BLOCK), 1);
        assert_eq!(block_bytes(BLOCK + 1, 2 * BLOCK), 0);
    }
}

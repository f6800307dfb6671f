//! The only conversion between wire types and the core's.
//!
//! - What is sent is converted without copying entries; what is received is checked before it is
//!   used.
//! - Hostile input gives a [`ConvertError`], never a panic: sizes, enum values, ids and lengths are
//!   checked.
//! - raft's snapshot message is never sent; snapshots have a channel of their own.

use bytes::Bytes;
use lockstep_core::codec::DecodeError;
use lockstep_core::fault::Shortage;
use lockstep_core::group::trial::{Stage, Trial, TrialId, TrialStatus, Vote};
use lockstep_core::group::{Body, Frame, GuestIs};
use lockstep_core::ids::{Digest, GroupId, Lineage, ModuleId, ReplicaId};
use lockstep_core::limits;
use lockstep_core::memory::MemoryUse;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{
    Block, BulkReply, BulkRequest, ObjectRef, Offer, Purpose, REASON_BYTES_MAX, Want,
};
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use crate::rpc::proto::peer as wire;
use crate::rpc::proto::peer::{bulk_answer, bulk_frame, frame};

#[cfg(test)]
mod tests;

/// Largest encoded snapshot descriptor, bytes: fixed fields and four lists of replicas.
const DESC_BYTES_MAX: usize = 256 + 4 * (4 + 8 * limits::REPLICAS_MAX);
/// Largest address in a frame, bytes.
const ADDRESS_BYTES_MAX: usize = 512;

/// Why a message to or from a peer cannot be converted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    #[error("{what} is missing")]
    Missing { what: &'static str },
    #[error("{what} has the unknown value {value}")]
    Unknown { what: &'static str, value: u32 },
    #[error("{what} of {have} bytes is over the limit of {limit}")]
    TooLarge { what: &'static str, have: usize, limit: usize },
    #[error("{what} must be {want} bytes long, not {have}")]
    WrongLength { what: &'static str, have: usize, want: usize },
    #[error("raft message {0:?} must not be sent between nodes")]
    MustNotTravel(MessageType),
    #[error("{0}")]
    Codec(#[from] DecodeError),
}

/// Converts a frame for the wire.
pub(crate) fn frame_to_wire(frame: Frame) -> Result<wire::Frame, ConvertError> {
    let Frame {
        group,
        lineage,
        from,
        to,
        boot,
        nonce,
        known,
        wall_ms,
        short,
        stalled,
        applied,
        halted,
        diverged,
        memory,
        snapshot,
        taken,
        guest,
        grants,
        trial,
        body,
    } = frame;
    let TrialStatus { trial, vote } = trial.map(|status| *status).unwrap_or_default();
    let body = match body {
        Body::Raft(message) => frame::Body::Raft(raft_to_wire(message)?),
        Body::Probe => frame::Body::Probe(wire::Empty {}),
        Body::Nothing => frame::Body::Nothing(wire::Empty {}),
        Body::Have => frame::Body::Have(wire::Empty {}),
        Body::Join => frame::Body::Join(wire::Empty {}),
        Body::NotMember { configuration_index } => {
            frame::Body::NotMember(wire::NotMember { configuration_index })
        }
        Body::Stranger => frame::Body::Stranger(wire::Empty {}),
        Body::Superseded { address } => {
            within("address", address.len(), ADDRESS_BYTES_MAX)?;
            frame::Body::Superseded(wire::Superseded { address })
        }
        Body::Want(Want { low, high, exactly }) => {
            let exactly = exactly.map(object_to_wire);
            frame::Body::Want(wire::Want { low, high, exactly })
        }
    };
    let frame = wire::Frame {
        group: group.0,
        from: from.0,
        to: to.map_or(0, |to| to.0),
        boot,
        nonce,
        known: known.map(|(boot, nonce)| wire::Start { boot, nonce }),
        wall_ms,
        short: short.map(shortage_to_wire),
        applied,
        halted: halted.is_some(),
        halted_at: halted.unwrap_or(0),
        diverged,
        lineage: lineage.map(|id| Bytes::copy_from_slice(&id.0)).unwrap_or_default(),
        stalled,
        memory: memory.map(|MemoryUse { bytes, most }| wire::Memory { bytes, most }),
        snapshot,
        taken: taken.map(object_to_wire),
        guest: guest_to_wire(guest).into(),
        grants,
        trial: trial.map(trial_to_wire),
        vote: vote.map(vote_to_wire),
        body: Some(body),
    };
    within("frame", frame.encoded_len(), limits::FRAME_BYTES_MAX)?;
    Ok(frame)
}

/// Checks and converts a frame from the wire.
pub(crate) fn frame_from_wire(frame: wire::Frame) -> Result<Frame, ConvertError> {
    within("frame", frame.encoded_len(), limits::FRAME_BYTES_MAX)?;
    let body = match frame.body.ok_or(ConvertError::Missing { what: "frame body" })? {
        frame::Body::Raft(message) => Body::Raft(raft_from_wire(message)?),
        frame::Body::Probe(wire::Empty {}) => Body::Probe,
        frame::Body::Nothing(wire::Empty {}) => Body::Nothing,
        frame::Body::Have(wire::Empty {}) => Body::Have,
        frame::Body::Join(wire::Empty {}) => Body::Join,
        frame::Body::NotMember(wire::NotMember { configuration_index }) => {
            Body::NotMember { configuration_index }
        }
        frame::Body::Stranger(wire::Empty {}) => Body::Stranger,
        frame::Body::Superseded(wire::Superseded { address }) => {
            within("address", address.len(), ADDRESS_BYTES_MAX)?;
            Body::Superseded { address }
        }
        frame::Body::Want(wire::Want { low, high, exactly }) => {
            let exactly = exactly.map(object_from_wire).transpose()?;
            Body::Want(Want { low, high, exactly })
        }
    };
    if frame.from == 0 {
        return Err(ConvertError::Missing { what: "frame sender" });
    }
    let lineage = if frame.lineage.is_empty() {
        None
    } else {
        Some(Lineage(array("lineage", &frame.lineage)?))
    };
    let status = TrialStatus {
        trial: frame.trial.map(trial_from_wire).transpose()?,
        vote: frame.vote.map(vote_from_wire).transpose()?,
    };
    Ok(Frame {
        group: GroupId(frame.group),
        lineage,
        from: ReplicaId(frame.from),
        to: Some(ReplicaId(frame.to)).filter(|to| to.0 != 0),
        boot: frame.boot,
        nonce: frame.nonce,
        known: frame.known.map(|wire::Start { boot, nonce }| (boot, nonce)),
        wall_ms: frame.wall_ms,
        short: frame.short.map(shortage_from_wire),
        applied: frame.applied,
        halted: frame.halted.then_some(frame.halted_at),
        diverged: frame.diverged,
        stalled: frame.stalled,
        memory: frame.memory.map(|wire::Memory { bytes, most }| MemoryUse { bytes, most }),
        snapshot: frame.snapshot,
        taken: frame.taken.map(object_from_wire).transpose()?,
        guest: guest_from_wire(frame.guest)?,
        grants: frame.grants,
        trial: Some(Box::new(status)).filter(|status| **status != TrialStatus::default()),
        body,
    })
}

/// The approximate bytes of a frame on the wire, by which the queues to peers are bounded.
pub(crate) fn frame_weight(frame: &Frame) -> usize {
    const FIXED: usize = 128;
    let entries = frame.body.raft().into_iter().flat_map(|message| &message.entries);
    FIXED + entries.map(|e| e.data.len() + e.context.len() + 32).sum::<usize>()
}

fn trial_to_wire(trial: Trial) -> wire::Trial {
    let Trial { id: TrialId { term, number }, module, from } = trial;
    wire::Trial { term, number, module: Bytes::copy_from_slice(&module.0), from }
}

fn trial_from_wire(trial: wire::Trial) -> Result<Trial, ConvertError> {
    let wire::Trial { term, number, module, from } = trial;
    let (id, module) = (TrialId { term, number }, ModuleId(array("module", &module)?));
    Ok(Trial { id, module, from })
}

fn vote_to_wire(vote: Vote) -> wire::TrialVote {
    use wire::trial_vote::Stage as Wire;
    let Vote { trial: TrialId { term, number }, stage } = vote;
    let (stage, why) = match stage {
        Stage::Preparing => (Wire::Preparing, String::new()),
        Stage::Prepared => (Wire::Prepared, String::new()),
        Stage::Moved => (Wire::Moved, String::new()),
        Stage::Failed(why) => (Wire::Failed, why),
    };
    wire::TrialVote { term, number, stage: stage.into(), why }
}

fn vote_from_wire(vote: wire::TrialVote) -> Result<Vote, ConvertError> {
    use wire::trial_vote::Stage as Wire;
    let wire::TrialVote { term, number, stage, why } = vote;
    within("reason", why.len(), REASON_BYTES_MAX)?;
    let stage = match Wire::try_from(stage) {
        Ok(Wire::Preparing) => Stage::Preparing,
        Ok(Wire::Prepared) => Stage::Prepared,
        Ok(Wire::Moved) => Stage::Moved,
        Ok(Wire::Failed) => Stage::Failed(why),
        Err(_) => {
            return Err(ConvertError::Unknown { what: "stage", value: stage.cast_unsigned() });
        }
    };
    Ok(Vote { trial: TrialId { term, number }, stage })
}

fn guest_to_wire(guest: GuestIs) -> wire::GuestIs {
    match guest {
        GuestIs::Live => wire::GuestIs::Live,
        GuestIs::ToBeRebuilt => wire::GuestIs::ToBeRebuilt,
        GuestIs::Absent => wire::GuestIs::Absent,
    }
}

fn guest_from_wire(value: i32) -> Result<GuestIs, ConvertError> {
    match wire::GuestIs::try_from(value) {
        Ok(wire::GuestIs::Live) => Ok(GuestIs::Live),
        Ok(wire::GuestIs::ToBeRebuilt) => Ok(GuestIs::ToBeRebuilt),
        Ok(wire::GuestIs::Absent) => Ok(GuestIs::Absent),
        Err(_) => Err(ConvertError::Unknown { what: "guest", value: value.cast_unsigned() }),
    }
}

fn shortage_to_wire(shortage: Shortage) -> wire::Shortage {
    let (need, have, log) = match shortage {
        Shortage::Disk { need, have } => (need, have, false),
        Shortage::Log { bytes, bound } => (bytes, bound, true),
    };
    wire::Shortage { need, have, log }
}

fn shortage_from_wire(shortage: wire::Shortage) -> Shortage {
    let wire::Shortage { need, have, log } = shortage;
    if log { Shortage::Log { bytes: need, bound: have } } else { Shortage::Disk { need, have } }
}

/// Returns a kind of message that may be sent to a peer; a kind that raft sends only to itself, or
/// that carries a snapshot, is an error.
fn travels(kind: MessageType) -> Result<MessageType, ConvertError> {
    match kind {
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgSnapshot => Err(ConvertError::MustNotTravel(kind)),
        MessageType::MsgPropose
        | MessageType::MsgAppend
        | MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTransferLeader
        | MessageType::MsgTimeoutNow
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => Ok(kind),
    }
}

fn raft_to_wire(mut message: Message) -> Result<wire::Raft, ConvertError> {
    let kind = travels(message.get_msg_type())?;
    if message.has_snapshot() {
        return Err(ConvertError::MustNotTravel(MessageType::MsgSnapshot));
    }
    let entries = message.take_entries().into_iter().map(|entry| wire::Entry {
        kind: entry.get_entry_type() as u32,
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
        sync_log: entry.sync_log,
    });
    Ok(wire::Raft {
        kind: kind as u32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: entries.collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.take_context(),
        deprecated_priority: message.deprecated_priority,
        priority: message.priority,
    })
}

fn raft_from_wire(raft: wire::Raft) -> Result<Message, ConvertError> {
    let mut message = Message::default();
    message.set_msg_type(travels(message_type(raft.kind)?)?);
    message.to = raft.to;
    message.from = raft.from;
    message.term = raft.term;
    message.log_term = raft.log_term;
    message.index = raft.index;
    let entries: Result<Vec<Entry>, ConvertError> =
        raft.entries.into_iter().map(entry_from_wire).collect();
    message.set_entries(entries?.into());
    message.commit = raft.commit;
    message.commit_term = raft.commit_term;
    message.request_snapshot = raft.request_snapshot;
    message.reject = raft.reject;
    message.reject_hint = raft.reject_hint;
    message.context = raft.context;
    message.deprecated_priority = raft.deprecated_priority;
    message.priority = raft.priority;
    Ok(message)
}

fn entry_from_wire(wire: wire::Entry) -> Result<Entry, ConvertError> {
    let mut entry = Entry::default();
    entry.set_entry_type(match wire.kind {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        value => return Err(ConvertError::Unknown { what: "entry type", value }),
    });
    entry.term = wire.term;
    entry.index = wire.index;
    entry.data = wire.data;
    entry.context = wire.context;
    entry.sync_log = wire.sync_log;
    Ok(entry)
}

fn message_type(value: u32) -> Result<MessageType, ConvertError> {
    use protobuf::ProtobufEnum;
    i32::try_from(value)
        .ok()
        .and_then(MessageType::from_i32)
        .ok_or(ConvertError::Unknown { what: "raft message type", value })
}

/// Converts a bulk frame for the wire.
pub(crate) fn request_to_wire(request: BulkRequest) -> wire::BulkFrame {
    let frame = match request {
        BulkRequest::Offer(offer) => bulk_frame::Frame::Offer(wire::Offer {
            cluster: Bytes::copy_from_slice(&offer.cluster),
            group: offer.group.0,
            from: offer.from.0,
            to: offer.to.0,
            term: offer.term,
            desc: offer.desc.to_bytes(),
            wanted: offer.purpose == Purpose::Wanted,
            insist: offer.insist,
        }),
        BulkRequest::Block(Block { offset, crc, data }) => {
            bulk_frame::Frame::Block(wire::Block { offset, crc, data })
        }
        BulkRequest::End { length, digest } => {
            bulk_frame::Frame::End(wire::End { length, digest: Bytes::copy_from_slice(&digest.0) })
        }
    };
    wire::BulkFrame { frame: Some(frame) }
}

/// Checks and converts a bulk frame from the wire.
pub(crate) fn request_from_wire(frame: wire::BulkFrame) -> Result<BulkRequest, ConvertError> {
    Ok(match frame.frame.ok_or(ConvertError::Missing { what: "bulk frame" })? {
        bulk_frame::Frame::Offer(offer) => {
            within("snapshot descriptor", offer.desc.len(), DESC_BYTES_MAX)?;
            BulkRequest::Offer(Offer {
                cluster: array("cluster id", &offer.cluster)?,
                group: GroupId(offer.group),
                from: ReplicaId(offer.from),
                to: ReplicaId(offer.to),
                term: offer.term,
                desc: SnapshotDesc::from_bytes(offer.desc)?,
                purpose: if offer.wanted { Purpose::Wanted } else { Purpose::Follow },
                insist: offer.insist,
            })
        }
        bulk_frame::Frame::Block(wire::Block { offset, crc, data }) => {
            within("snapshot block", data.len(), limits::SNAPSHOT_BLOCK_BYTES)?;
            BulkRequest::Block(Block { offset, crc, data })
        }
        bulk_frame::Frame::End(wire::End { length, digest }) => {
            BulkRequest::End { length, digest: Digest(array("digest", &digest)?) }
        }
    })
}

/// Converts a bulk reply for the wire.
pub(crate) fn reply_to_wire(reply: BulkReply) -> wire::BulkAnswer {
    use bulk_answer::Answer;
    let answer = match reply {
        BulkReply::Proceed { offset } => Answer::Proceed(wire::Proceed { offset }),
        BulkReply::Credit { blocks } => Answer::Credit(wire::Credit { blocks }),
        BulkReply::Accepted => Answer::Accepted(wire::Empty {}),
        BulkReply::Stale => Answer::Stale(wire::Empty {}),
        BulkReply::Busy { retry_after_ms } => Answer::Busy(wire::Busy { retry_after_ms }),
        BulkReply::Prefer(object) => Answer::Prefer(object_to_wire(object)),
        BulkReply::NoSpace { need, have, retry_after_ms } => {
            Answer::NoSpace(wire::NoSpace { need, have, retry_after_ms })
        }
        BulkReply::Corrupt => Answer::Corrupt(wire::Empty {}),
        BulkReply::Incompatible { why } => Answer::Incompatible(why),
        BulkReply::WrongGroup => Answer::WrongGroup(wire::Empty {}),
    };
    wire::BulkAnswer { answer: Some(answer) }
}

/// Checks and converts a bulk reply from the wire.
pub(crate) fn reply_from_wire(answer: wire::BulkAnswer) -> Result<BulkReply, ConvertError> {
    use bulk_answer::Answer;
    Ok(match answer.answer.ok_or(ConvertError::Missing { what: "bulk answer" })? {
        Answer::Proceed(wire::Proceed { offset }) => BulkReply::Proceed { offset },
        Answer::Credit(wire::Credit { blocks }) => BulkReply::Credit { blocks },
        Answer::Accepted(wire::Empty {}) => BulkReply::Accepted,
        Answer::Stale(wire::Empty {}) => BulkReply::Stale,
        Answer::Busy(wire::Busy { retry_after_ms }) => BulkReply::Busy { retry_after_ms },
        Answer::Prefer(object) => BulkReply::Prefer(object_from_wire(object)?),
        Answer::NoSpace(wire::NoSpace { need, have, retry_after_ms }) => {
            BulkReply::NoSpace { need, have, retry_after_ms }
        }
        Answer::Corrupt(wire::Empty {}) => BulkReply::Corrupt,
        Answer::Incompatible(why) => {
            within("reason", why.len(), REASON_BYTES_MAX)?;
            BulkReply::Incompatible { why }
        }
        Answer::WrongGroup(wire::Empty {}) => BulkReply::WrongGroup,
    })
}

fn object_to_wire(object: ObjectRef) -> wire::ObjectRef {
    let digest = Bytes::copy_from_slice(&object.digest);
    wire::ObjectRef { term: object.term, index: object.index, digest }
}

fn object_from_wire(object: wire::ObjectRef) -> Result<ObjectRef, ConvertError> {
    let digest = array("object digest", &object.digest)?;
    Ok(ObjectRef { term: object.term, index: object.index, digest })
}

/// The bytes as an array; an error unless there are exactly `N`.
pub(crate) fn array<const N: usize>(
    what: &'static str,
    bytes: &Bytes,
) -> Result<[u8; N], ConvertError> {
    <[u8; N]>::try_from(bytes.as_ref()).map_err(|_| ConvertError::WrongLength {
        what,
        have: bytes.len(),
        want: N,
    })
}

fn within(what: &'static str, have: usize, limit: usize) -> Result<(), ConvertError> {
    if have > limit { Err(ConvertError::TooLarge { what, have, limit }) } else { Ok(()) }
}

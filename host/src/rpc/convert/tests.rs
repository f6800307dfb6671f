//! Messages that survive the wire, and hostile ones that are errors.

use lockstep_core::ids::NodeId;
use lockstep_core::snapshot::Configuration;

use lockstep_core::snapshot::chunk::ObjectRef;

use super::*;

fn replica(node: u16) -> ReplicaId {
    ReplicaId::new(NodeId(node), 0x1234_5678_9abc_def0)
}

fn frame(body: Body) -> Frame {
    Frame {
        group: GroupId::of_name("bank"),
        lineage: Some(Lineage([5; 16])),
        from: replica(1),
        to: Some(replica(2)),
        boot: 7,
        nonce: u64::MAX - 3,
        known: Some((8, 9)),
        wall_ms: 1_700_000_000_123,
        short: Some(Shortage::Disk { need: 17, have: 4 }),
        applied: 41,
        halted: Some(40),
        diverged: true,
        stalled: true,
        memory: Some(MemoryUse { bytes: 11, most: 12 }),
        snapshot: 40,
        taken: Some(ObjectRef { term: 3, index: 39, digest: [6; 16] }),
        guest: GuestIs::Absent,
        grants: true,
        trial: Some(Box::new(TrialStatus {
            trial: Some(Trial {
                id: TrialId { term: 5, number: 6 },
                module: ModuleId([7; 32]),
                from: 8,
            }),
            vote: Some(Vote {
                trial: TrialId { term: 9, number: 10 },
                stage: Stage::Failed("it traps".to_owned()),
            }),
        })),
        body,
    }
}

/// A message in which every field that is sent is set, each to a value of its own.
fn full(kind: MessageType) -> Message {
    let mut entries = Vec::new();
    for (n, kind) in
        [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2]
            .into_iter()
            .enumerate()
    {
        let mut entry = Entry::default();
        entry.set_entry_type(kind);
        entry.term = 20 + n as u64;
        entry.index = 40 + n as u64;
        entry.data = vec![n as u8; 300 * n].into();
        entry.context = vec![9; n].into();
        entry.sync_log = n == 1;
        entries.push(entry);
    }
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.to = replica(2).0;
    message.from = replica(1).0;
    message.term = 23;
    message.log_term = 19;
    message.index = 39;
    message.set_entries(entries.into());
    message.commit = 38;
    message.commit_term = 18;
    message.request_snapshot = 17;
    message.reject = true;
    message.reject_hint = 16;
    message.context = Bytes::from_static(b"read 1");
    message.deprecated_priority = 15;
    message.priority = -14;
    message
}

/// Converts and encodes a frame, then decodes it and converts it back.
fn round_trip(frame: &Frame) -> Frame {
    let sent = frame_to_wire(frame.clone()).expect("it may be sent");
    let received = wire::Frame::decode(sent.encode_to_vec().as_slice()).expect("our own bytes");
    frame_from_wire(received).expect("it is ours")
}

#[test]
fn every_body_survives_the_wire() {
    let bodies = [
        Body::Probe,
        Body::Nothing,
        Body::Have,
        Body::Join,
        Body::NotMember { configuration_index: 12 },
        Body::Stranger,
        Body::Superseded { address: "10.0.0.1:7101".to_owned() },
        Body::Raft(Message::default()).with_kind(MessageType::MsgAppend),
    ];
    for body in bodies {
        let frame = frame(body);
        assert_eq!(round_trip(&frame), frame);
    }
    let to_nobody = Frame { to: None, lineage: None, ..frame(Body::Probe) };
    assert_eq!(round_trip(&to_nobody), to_nobody);
}

trait WithKind {
    fn with_kind(self, kind: MessageType) -> Self;
}

impl WithKind for Body {
    fn with_kind(mut self, kind: MessageType) -> Self {
        if let Body::Raft(message) = &mut self {
            message.set_msg_type(kind);
        }
        self
    }
}

#[test]
fn every_raft_message_survives_or_must_not_travel() {
    use MessageType::*;
    let local = [MsgHup, MsgBeat, MsgUnreachable, MsgSnapStatus, MsgCheckQuorum, MsgSnapshot];
    for value in 0..19 {
        let kind = message_type(value).expect("raft's own");
        let sent = frame(Body::Raft(full(kind)));
        if local.contains(&kind) {
            assert_eq!(frame_to_wire(sent), Err(ConvertError::MustNotTravel(kind)));
        } else {
            assert_eq!(round_trip(&sent), sent, "{kind:?}");
        }
    }
    assert!(message_type(19).is_err());
}

#[test]
fn a_snapshot_does_not_hide_in_another_message() {
    let mut message = full(MessageType::MsgAppend);
    message.mut_snapshot().mut_metadata().index = 5;
    let refused = frame_to_wire(frame(Body::Raft(message)));
    assert_eq!(refused, Err(ConvertError::MustNotTravel(MessageType::MsgSnapshot)));
}

#[test]
fn hostile_frames_are_errors() {
    let good = || frame_to_wire(frame(Body::Raft(full(MessageType::MsgAppend)))).expect("good");
    let check = |change: fn(&mut wire::Frame), want: ConvertError| {
        let mut bad = good();
        change(&mut bad);
        assert_eq!(frame_from_wire(bad), Err(want));
    };
    fn raft(frame: &mut wire::Frame) -> &mut wire::Raft {
        match &mut frame.body {
            Some(frame::Body::Raft(raft)) => raft,
            other => panic!("a raft frame, not {other:?}"),
        }
    }
    check(|f| f.body = None, ConvertError::Missing { what: "frame body" });
    check(|f| f.from = 0, ConvertError::Missing { what: "frame sender" });
    let unknown = |what, value| ConvertError::Unknown { what, value };
    check(|f| raft(f).kind = 19, unknown("raft message type", 19));
    check(|f| raft(f).kind = u32::MAX, unknown("raft message type", u32::MAX));
    check(|f| raft(f).entries[0].kind = 3, unknown("entry type", 3));
    check(|f| raft(f).kind = 7, ConvertError::MustNotTravel(MessageType::MsgSnapshot));
    check(|f| raft(f).kind = 0, ConvertError::MustNotTravel(MessageType::MsgHup));

    let mut large = good();
    raft(&mut large).entries[1].data = vec![0; limits::FRAME_BYTES_MAX].into();
    assert!(matches!(frame_from_wire(large), Err(ConvertError::TooLarge { what: "frame", .. })));
    let mut address = good();
    address.body = Some(frame::Body::Superseded(wire::Superseded { address: "a".repeat(513) }));
    let refused = frame_from_wire(address);
    assert!(matches!(refused, Err(ConvertError::TooLarge { what: "address", .. })));
}

#[test]
fn an_oversized_frame_is_not_sent() {
    let mut message = full(MessageType::MsgAppend);
    message.mut_entries()[0].data = vec![0; limits::FRAME_BYTES_MAX].into();
    let refused = frame_to_wire(frame(Body::Raft(message)));
    assert!(matches!(refused, Err(ConvertError::TooLarge { what: "frame", .. })));
    // An address that the receiver would refuse is not sent either.
    let superseded = |bytes| frame_to_wire(frame(Body::Superseded { address: "a".repeat(bytes) }));
    let refused = superseded(ADDRESS_BYTES_MAX + 1);
    assert!(matches!(refused, Err(ConvertError::TooLarge { what: "address", .. })));
    let longest = superseded(ADDRESS_BYTES_MAX).expect("it may be sent");
    assert!(frame_from_wire(longest).is_ok());
}

fn offer() -> Offer {
    Offer {
        cluster: [3; 16],
        group: GroupId::of_name("bank"),
        from: replica(1),
        to: replica(2),
        term: 9,
        desc: SnapshotDesc {
            term: 8,
            index: 1000,
            length: 5 << 20,
            digest: Digest([4; 32]),
            module: ModuleId([5; 32]),
            format: 2,
            configuration: Configuration::of_voters([replica(1), replica(2)]),
        },
        purpose: Purpose::Wanted,
        insist: true,
    }
}

/// Covers P5.
#[test]
fn bulk_frames_survive_the_wire_and_hold_one_thing_each() {
    let data = Bytes::from(vec![7; limits::SNAPSHOT_BLOCK_BYTES]);
    let requests = [
        BulkRequest::Offer(offer()),
        BulkRequest::Block(Block { offset: 1 << 20, crc: 0xdead_beef, data }),
        BulkRequest::End { length: 5 << 20, digest: Digest([6; 32]) },
    ];
    for request in requests {
        let bytes = request_to_wire(request.clone()).encode_to_vec();
        let received = wire::BulkFrame::decode(bytes.as_slice()).expect("our own bytes");
        assert_eq!(request_from_wire(received), Ok(request));
    }
    let replies = [
        BulkReply::Proceed { offset: 3 << 20 },
        BulkReply::Credit { blocks: 2 },
        BulkReply::Accepted,
        BulkReply::Stale,
        BulkReply::Busy { retry_after_ms: 1000 },
        BulkReply::NoSpace { need: 10, have: 9, retry_after_ms: 500 },
        BulkReply::Corrupt,
        BulkReply::Incompatible { why: "another module".to_owned() },
        BulkReply::WrongGroup,
    ];
    for reply in replies {
        let bytes = reply_to_wire(reply.clone()).encode_to_vec();
        let received = wire::BulkAnswer::decode(bytes.as_slice()).expect("our own bytes");
        assert_eq!(reply_from_wire(received), Ok(reply));
    }
}

#[test]
fn hostile_bulk_frames_are_errors() {
    let refused_with = |change: fn(&mut wire::Offer)| {
        let mut frame = request_to_wire(BulkRequest::Offer(offer()));
        match &mut frame.frame {
            Some(bulk_frame::Frame::Offer(offer)) => change(offer),
            other => panic!("an offer, not {other:?}"),
        }
        request_from_wire(frame).expect_err("the offer is refused")
    };
    assert!(matches!(
        refused_with(|o| o.cluster = Bytes::from_static(&[0; 15])),
        ConvertError::WrongLength { what: "cluster id", have: 15, want: 16 }
    ));
    assert!(matches!(refused_with(|o| o.desc = Bytes::new()), ConvertError::Codec(_)));
    assert!(matches!(
        refused_with(|o| o.desc = vec![1; DESC_BYTES_MAX + 1].into()),
        ConvertError::TooLarge { .. }
    ));
    assert!(matches!(refused_with(|o| o.desc = vec![0xff; 200].into()), ConvertError::Codec(_)));
    assert!(request_from_wire(wire::BulkFrame { frame: None }).is_err());
    assert!(reply_from_wire(wire::BulkAnswer { answer: None }).is_err());

    let data = Bytes::from(vec![0; limits::SNAPSHOT_BLOCK_BYTES + 1]);
    let block = bulk_frame::Frame::Block(wire::Block { offset: 0, crc: 0, data });
    assert!(request_from_wire(wire::BulkFrame { frame: Some(block) }).is_err());
    let end = wire::End { length: 1, digest: Bytes::from_static(&[0; 31]) };
    let end = bulk_frame::Frame::End(end);
    assert!(request_from_wire(wire::BulkFrame { frame: Some(end) }).is_err());
    let why = bulk_answer::Answer::Incompatible("x".repeat(REASON_BYTES_MAX + 1));
    assert!(reply_from_wire(wire::BulkAnswer { answer: Some(why) }).is_err());
}

#[test]
fn the_largest_descriptor_fits_its_bound() {
    let replicas = || (1..=limits::REPLICAS_MAX as u16).map(replica).collect();
    let mut desc = offer().desc;
    desc.configuration.voters = replicas();
    desc.configuration.learners = replicas();
    desc.configuration.voters_outgoing = replicas();
    desc.configuration.learners_next = replicas();
    let sent = BulkRequest::Offer(Offer { desc, ..offer() });
    assert_eq!(request_from_wire(request_to_wire(sent.clone())), Ok(sent));
}

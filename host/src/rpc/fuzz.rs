//! The decoders of wire messages that fuzzers feed; see [`crate::fuzz`].

use lockstep_core::entry::{Call, Commands, EntryBody};
use lockstep_core::group::Body;
use lockstep_core::ids::{GroupId, ReplicaId};
use lockstep_core::limits;
use lockstep_core::snapshot::chunk::Expected;
use prost::Message as _;

use crate::fuzz::{CLUSTER, entry};
use crate::rpc::client_api::parse_timeout;
use crate::rpc::codec::Bounded as _;
use crate::rpc::convert;
use crate::rpc::proto::{client, peer};

/// Decodes `input` as what a peer sends: a batch of frames, a bulk frame, a bulk answer.
pub fn peer(input: &[u8]) {
    if peer::FrameBatch::check(input).is_ok()
        && let Ok(batch) = peer::FrameBatch::decode(input)
    {
        for frame in batch.frames.into_iter().filter_map(|f| convert::frame_from_wire(f).ok()) {
            if let Body::Raft(message) = &frame.body {
                message.entries.iter().for_each(|one| entry(&one.data));
            }
            if let Ok(wire) = convert::frame_to_wire(frame.clone()) {
                let again = convert::frame_from_wire(wire).expect("what was encoded decodes");
                assert_eq!(format!("{again:?}"), format!("{frame:?}"));
            }
        }
    }
    if let Ok(Ok(request)) = peer::BulkFrame::decode(input).map(convert::request_from_wire) {
        if let Ok(offer) = request.clone().into_offer() {
            let _ = offer.validate(&expected());
        }
        let again = convert::request_from_wire(convert::request_to_wire(request.clone()));
        assert_eq!(again.expect("what was encoded decodes"), request);
    }
    if let Ok(Ok(reply)) = peer::BulkAnswer::decode(input).map(convert::reply_from_wire) {
        let again = convert::reply_from_wire(convert::reply_to_wire(reply.clone()));
        assert_eq!(again.expect("what was encoded decodes"), reply);
    }
}

fn expected() -> Expected {
    Expected { cluster: CLUSTER, group: GroupId(5), replica: ReplicaId(1), commit: 0, wanted: None }
}

/// Decodes `input` as each request of a client, and encodes the calls that it holds as an entry.
pub fn client(input: &[u8]) {
    let mut calls = Vec::new();
    if let Ok(request) = client::ApplyRequest::decode(input) {
        let client::ApplyRequest { session, sequence, lowest_unanswered, command, .. } = request;
        calls.push((session, sequence, lowest_unanswered, command));
    }
    if client::ApplyStreamRequest::check(input).is_ok()
        && let Ok(message) = client::ApplyStreamRequest::decode(input)
    {
        let (session, lowest) = (message.session, message.lowest_unanswered);
        let commands = message.commands.into_iter();
        calls.extend(commands.map(|one| (session, one.sequence, lowest, one.command)));
    }
    let _ = client::QueryRequest::decode(input);
    let _ = client::OpenSessionRequest::decode(input);
    let _ = client::CloseSessionRequest::decode(input);
    let _ = client::StatusRequest::decode(input);
    let _ = client::CheckpointRequest::decode(input);
    let _ = client::OrderRequest::decode(input).map(super::orders::order);
    let _ = client::RepairRequest::decode(input);
    let _ = client::FaultRequest::decode(input);
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = parse_timeout(text);
    }
    calls.truncate(limits::ENTRY_COMMANDS_MAX);
    let call = |(session, sequence, lowest_unanswered, payload)| Call {
        session,
        sequence,
        lowest_unanswered,
        payload,
    };
    let entry =
        EntryBody::Commands(Commands { time_ms: 1, calls: calls.into_iter().map(call).collect() });
    let again = EntryBody::decode(entry.encode().into()).expect("what was proposed decodes");
    assert_eq!(again, entry);
}

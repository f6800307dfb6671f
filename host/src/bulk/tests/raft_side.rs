//! What the raft side answers to a received object, and what both ends log.

use super::*;

/// Whatever the raft side answers, an object that it does not take is deleted.
/// Covers X3 X6 X7.
#[test]
fn what_raft_does_not_take_is_gone() {
    let bytes = payload(BLOCK + 1);
    for answer in [BulkReply::Stale, BulkReply::Busy { retry_after_ms: BUSY_RETRY_MS }] {
        let host = Host::new();
        let mut script = Script::new(frames(&bytes), true);
        let mut judge = Says::new(|_ignored| answer.clone());
        let offer = offer(&desc(10, &bytes));
        let end = receive(&offer, &expected(), &host.lane, &mut script, &mut judge);
        assert_eq!(end.end, ReceiveEnd::Answered(answer.clone()));
        assert_eq!(script.told.last(), Some(&answer));
        host.assert_empty(&format!("{answer:?}"));
    }
}

/// The acknowledgement was lost and the object is sent again: the sender is told that the receiver
/// has it.
/// Covers I4 I1.
#[test]
fn a_repeated_transfer_ends_with_a_defined_answer() {
    let bytes = payload(BLOCK + 1);
    let mut bed = Bed::new();
    let desc = bed.take_listed(&[(10, &bytes)]).remove(0);
    let open = |bed: &mut Bed| bed.store.open_object(&desc, Use::Verifying).expect("it opens");
    let host = Host::new();
    let reader = open(&mut bed);
    let (outcome, _) = transfer(reader, &host);
    assert_eq!(outcome.report, Report::Finish);
    let mut script = Script::new(frames(&bytes), true);
    let mut judge = Says::new(|_raft_has_it| BulkReply::Stale);
    let offer = offer(&desc);
    let again = receive(&offer, &expected(), &host.lane, &mut script, &mut judge);
    assert_eq!(again.end, ReceiveEnd::Answered(BulkReply::Stale));
    assert!(host.read(&desc) == bytes, "the object is kept");
    let (outcome, _) = send_to(vec![BulkReply::Stale], true);
    assert_eq!((outcome.report, outcome.next), (Report::Finish, Next::Done));
}

/// While the raft side takes its time, the object waits and the sender hears that the receiver is
/// alive.
/// Covers I8.
#[test]
fn what_was_received_waits_for_the_raft_side() {
    struct Late(u32);
    impl Judge for Late {
        fn deliver(&mut self, mut verified: Verified) {
            verified.hold.disarm();
        }
        fn answer(&mut self, _: Duration) -> Option<BulkReply> {
            self.0 -= 1;
            (self.0 == 0).then_some(BulkReply::Accepted)
        }
    }
    let bytes = payload(100);
    let host = Host::new();
    let mut script = Script::new(frames(&bytes), true);
    let offer = offer(&desc(10, &bytes));
    let (lane, expected) = (&host.lane, expected());
    let end = receive(&offer, &expected, lane, &mut script, &mut Late(50));
    assert_eq!(end.end, ReceiveEnd::Answered(BulkReply::Accepted));
    let alive = script.told.iter().filter(|told| **told == BulkReply::Credit { blocks: 0 });
    assert!(alive.count() >= 49, "{:?}", script.told);
    assert_eq!(files(&host.fs).len(), 1);
}

/// Both ends log the peer, the index and the bytes.
/// Covers V3.
#[test]
fn both_ends_log_peer_index_and_bytes() {
    let (from, to) = (offer(&desc(10, b"")).from, offer(&desc(10, b"")).to);
    let length = 2 * BLOCK + 1;
    let told = crate::store::tests::logged(|| drop(send_to(vec![BulkReply::Stale], true)));
    for part in ["index=10", &format!("length={length}"), &format!("to={to}")] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let bytes = payload(BLOCK + 1);
    let told = crate::store::tests::logged(|| {
        let half = frames(&bytes)[..1].to_vec();
        Host::new().receive(&offer(&desc(10, &bytes)), &mut Script::new(half, false));
    });
    let bytes = format!("bytes={BLOCK}");
    for part in ["index=10", &format!("length={}", BLOCK + 1), &bytes, &format!("from={from}")] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
}

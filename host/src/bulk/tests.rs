//! Transfers between two stores, and every way in which one can end.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::chunk::{self, BUSY_RETRY_MS, NO_SPACE_RETRY_MS, RETRY_MAX_MS};
use lockstep_core::snapshot::send::{Next, SendEnd};
use lockstep_core::snapshot::{SnapshotDesc, Verified};

use super::*;
use crate::fs::mem::MemFs;
use crate::store::tests::{
    BLOCK, Bed, LENGTHS, desc, expected, files, limits_of, offer, payload, state,
};
use crate::store::{DirectLane, OpenError, Use};

/// One end of a channel between two threads.
struct Pipe<Out, In> {
    out: mpsc::Sender<Out>,
    input: mpsc::Receiver<In>,
}

impl<Out, In> BulkChannel<Out, In> for Pipe<Out, In> {
    fn send(&mut self, frame: Out) -> io::Result<()> {
        self.out.send(frame).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn recv(&mut self, timeout: Duration) -> io::Result<Option<In>> {
        match self.input.recv_timeout(timeout) {
            Ok(frame) => Ok(Some(frame)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

fn pipe() -> (Pipe<BulkRequest, BulkReply>, Pipe<BulkReply, BulkRequest>) {
    let (request, requests) = mpsc::channel();
    let (reply, replies) = mpsc::channel();
    (Pipe { out: request, input: replies }, Pipe { out: reply, input: requests })
}

/// A peer that sends the frames of its script, and remembers those that it receives.
struct Script<Out, In> {
    says: VecDeque<In>,
    told: Vec<Out>,
    /// After its last frame it is silent; otherwise the channel breaks.
    silent: bool,
}

impl<Out, In> Script<Out, In> {
    fn new(says: impl IntoIterator<Item = In>, silent: bool) -> Self {
        Self { says: says.into_iter().collect(), told: Vec::new(), silent }
    }
}

impl<Out, In> BulkChannel<Out, In> for Script<Out, In> {
    fn send(&mut self, frame: Out) -> io::Result<()> {
        self.told.push(frame);
        Ok(())
    }

    fn recv(&mut self, _: Duration) -> io::Result<Option<In>> {
        match self.says.pop_front() {
            Some(frame) => Ok(Some(frame)),
            None if self.silent => Ok(None),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

mod raft_side;
mod suspending;

/// The raft side, as a function.
struct Says<F> {
    judge: F,
    answer: Option<BulkReply>,
}

impl<F: FnMut(Verified) -> BulkReply> Says<F> {
    fn new(judge: F) -> Self {
        Self { judge, answer: None }
    }
}

impl<F: FnMut(Verified) -> BulkReply> Judge for Says<F> {
    fn deliver(&mut self, verified: Verified) {
        self.answer = Some((self.judge)(verified));
    }

    fn answer(&mut self, _: Duration) -> Option<BulkReply> {
        self.answer.take()
    }
}

/// A receiving host: its store behind a lane, its disk, and what raft took.
struct Host {
    fs: MemFs,
    lane: DirectLane,
    taken: Mutex<Vec<SnapshotDesc>>,
}

impl Host {
    fn new() -> Self {
        Self::of(Bed::new())
    }

    fn of(bed: Bed) -> Self {
        Self { fs: bed.fs, lane: DirectLane::new(bed.store), taken: Mutex::default() }
    }

    /// Puts a delivered object into the log's list.
    fn list(&self, mut verified: Verified) -> BulkReply {
        verified.hold.disarm();
        let mut taken = self.taken.lock().expect("no test panics while it holds this");
        taken.insert(0, verified.desc.clone());
        let listed = taken.clone();
        on_lane(&self.lane, move |store| store.list_durable(&listed, &[])).expect("the lane runs");
        BulkReply::Accepted
    }

    fn receive(&self, offer: &Offer, channel: &mut ReceiveChannel) -> Received {
        let mut judge = Says::new(|verified| self.list(verified));
        receive(offer, &expected(), &self.lane, channel, &mut judge)
    }

    fn read(&self, desc: &SnapshotDesc) -> Vec<u8> {
        let desc = desc.clone();
        let opened = on_lane(&self.lane, move |store| store.open_object(&desc, Use::Verifying));
        let mut bytes = Vec::new();
        let mut reader = opened.expect("the lane runs").expect("the object opens");
        reader.read_to_end(&mut bytes).expect("the object is good");
        bytes
    }

    fn assert_empty(&self, case: &str) {
        assert_eq!(files(&self.fs), [""; 0], "{case}");
        let usage = on_lane(&self.lane, |store| store.usage()).expect("the lane runs");
        assert_eq!(usage, crate::store::Usage::default(), "{case}");
    }
}

/// The frames of an undisturbed transfer, without the offer.
fn frames(bytes: &[u8]) -> Vec<BulkRequest> {
    frames_of(10, bytes)
}

fn frames_of(index: u64, bytes: &[u8]) -> Vec<BulkRequest> {
    let blocks = bytes.chunks(BLOCK).enumerate().map(|(number, data)| {
        let offset = (number * BLOCK) as u64;
        let data = bytes::Bytes::copy_from_slice(data);
        BulkRequest::Block(Block { offset, crc: crc32c::crc32c(&data), data })
    });
    let desc = desc(index, bytes);
    let end = BulkRequest::End { length: desc.length, digest: desc.digest };
    blocks.chain([end]).collect()
}

/// Sends an object to a receiver that answers with `replies`.
fn send_to(replies: Vec<BulkReply>, silent: bool) -> (SendOutcome, Vec<BulkRequest>) {
    let bytes = payload(2 * BLOCK + 1);
    let mut bed = Bed::new();
    let desc = bed.take_listed(&[(10, &bytes)]).remove(0);
    let reader = bed.store.open_object(&desc, Use::Verifying).expect("it opens");
    let mut script = Script::new(replies, silent);
    let outcome = send(reader, offer(&desc), &mut script);
    (outcome, script.told)
}

/// Moves an object to another host over two threads.
fn transfer(reader: SnapshotReader, host: &Host) -> (SendOutcome, Received) {
    let (mut near, mut far) = pipe();
    std::thread::scope(|scope| {
        let offer = offer(reader.desc());
        // The sender's end of the pipe is dropped with its thread.
        let sender = scope.spawn(move || send(reader, offer, &mut near));
        let Ok(Some(first)) = far.recv(Duration::from_secs(60)) else {
            panic!("the offer comes first")
        };
        let offer = first.into_offer().expect("the offer comes first");
        let received = host.receive(&offer, &mut far);
        (sender.join().expect("the sender ends"), received)
    })
}

/// Covers P14.
#[test]
fn payloads_of_every_length_arrive_with_equal_digests() {
    for length in LENGTHS {
        let bytes = payload(length);
        let mut bed = Bed::new();
        let desc = bed.take_listed(&[(10, &bytes)]).remove(0);
        let reader = bed.store.open_object(&desc, Use::Verifying).expect("it opens");
        let host = Host::new();
        let (outcome, received) = transfer(reader, &host);
        let accepted = BulkReply::Accepted;
        assert_eq!(outcome, SendOutcome::of(SendEnd::Replied(accepted.clone()), true), "{length}");
        assert_eq!(outcome.report, Report::Finish);
        assert_eq!(received.end, ReceiveEnd::Answered(accepted), "{length}");
        assert!(host.read(&desc) == bytes, "length {length}");
        // The two objects are the same bytes in a file of the same name.
        let images = [&bed.fs, &host.fs].map(|fs| fs.image());
        assert!(images[0] == images[1], "length {length}");
    }
}

/// The receiver's answer decides whether the sender stops, waits or gives up, and whether raft is
/// told `Finish` or `Failure`.
/// Covers I5 I6.
#[test]
fn each_answer_has_its_report_and_next_action() {
    let finish = (Report::Finish, Next::Done);
    let wait = |ms| (Report::Failure, Next::Wait { ms });
    let give_up = (Report::Failure, Next::GiveUp);
    for (reply, wanted) in [
        (BulkReply::Stale, finish),
        (BulkReply::Busy { retry_after_ms: 1_077 }, wait(1_077)),
        (BulkReply::NoSpace { need: 2, have: 1, retry_after_ms: 5_000 }, wait(5_000)),
        (BulkReply::NoSpace { need: 2, have: 1, retry_after_ms: 0 }, wait(BUSY_RETRY_MS)),
        (BulkReply::NoSpace { need: 2, have: 1, retry_after_ms: u64::MAX }, wait(RETRY_MAX_MS)),
        (BulkReply::Corrupt, give_up),
        (BulkReply::Incompatible { why: "no".into() }, give_up),
        (BulkReply::WrongGroup, give_up),
    ] {
        // The receiver sends this answer at once, or in the middle of the transfer.
        for before in [vec![], vec![BulkReply::Proceed { offset: 0 }]] {
            let blocks = before.len();
            let replies = before.into_iter().chain([reply.clone()]).collect();
            let (outcome, told) = send_to(replies, true);
            assert_eq!((outcome.report, outcome.next), wanted, "{reply:?}");
            assert_eq!(outcome.end, SendEnd::Replied(reply.clone()));
            assert_eq!(told.len() > 1, blocks > 0, "no byte is sent before proceed");
        }
    }
}

/// Covers I6 C5.
#[test]
fn a_silent_or_broken_receiver_is_a_failure_after_a_while() {
    for answered in 0..2 {
        let replies = vec![BulkReply::Proceed { offset: 0 }; answered];
        let (outcome, _) = send_to(replies.clone(), true);
        let report = if answered > 0 { Report::Interrupted } else { Report::Failure };
        assert_eq!((outcome.report, outcome.end), (report, SendEnd::Stalled));
        let (outcome, _) = send_to(replies, false);
        assert!(matches!(outcome.end, SendEnd::Broken(_)), "{outcome:?}");
        assert!(matches!(outcome.next, Next::Wait { .. }), "{outcome:?}");
    }
}

/// A bad offer is refused before anything is reserved or any payload is read.
/// Covers P15 P16 I1.
#[test]
fn an_offer_is_judged_before_any_payload() {
    let good = offer(&desc(10, b"abc"));
    let mut cases = vec![good.clone(); 8];
    cases[0].cluster[0] ^= 1;
    cases[1].group.0 ^= 1;
    cases[2].to.0 ^= 2;
    cases[3].term = 1;
    cases[4].desc.index = 0;
    cases[5].desc.configuration.voters.clear();
    cases[6].desc.index = 4;
    cases[7].desc.length = u64::MAX;
    let wrong = |reply: &BulkReply| matches!(reply, BulkReply::WrongGroup);
    let incompatible = |reply: &BulkReply| matches!(reply, BulkReply::Incompatible { .. });
    let stale = |reply: &BulkReply| matches!(reply, BulkReply::Stale);
    let no_space = |reply: &BulkReply| matches!(reply, BulkReply::NoSpace { .. });
    for (number, case) in cases.iter().enumerate() {
        let host = Host::new();
        let mut script = Script::new([], true);
        let expected = Expected { commit: 5, ..expected() };
        let mut judge = Says::new(|_| BulkReply::Accepted);
        receive(case, &expected, &host.lane, &mut script, &mut judge);
        let [reply] = &script.told[..] else { panic!("case {number}: {:?}", script.told) };
        let right = match number {
            0..3 => wrong(reply),
            6 => stale(reply),
            7 => no_space(reply),
            _ => incompatible(reply),
        };
        assert!(right, "case {number}: {reply:?}");
        host.assert_empty(&format!("case {number}"));
    }
    // The commit index is only a hint: at that index raft decides.
    let expected = Expected { commit: 10, ..expected() };
    assert!(good.validate(&expected).is_ok());
}

/// Covers P1 P2.
#[test]
fn nothing_but_an_offer_begins_a_transfer() {
    for frame in frames(b"abc") {
        let refused = frame.into_offer();
        assert!(matches!(refused, Err(BulkReply::Incompatible { .. })), "{refused:?}");
    }
}

/// Covers P4 I3.
#[test]
fn a_stream_that_ends_early_or_stalls_publishes_nothing_and_goes_on() {
    let bytes = payload(2 * BLOCK + 5);
    let frames = frames(&bytes);
    for count in 0..frames.len() {
        for silent in [false, true] {
            let host = Host::new();
            let mut script = Script::new(frames[..count].to_vec(), silent);
            let received = host.receive(&offer(&desc(10, &bytes)), &mut script);
            if silent {
                assert_eq!(received.end, ReceiveEnd::Stalled, "{count} frames");
            } else {
                assert!(matches!(received.end, ReceiveEnd::Broken(_)), "{count} frames");
            }
            let case = format!("{count} frames, silent: {silent}");
            match count {
                0 => host.assert_empty(&case),
                _ => assert_eq!(files(&host.fs).len(), 1, "{case}: what came is suspended"),
            }
            // The next attempt succeeds, and need not send again what was received.
            let rest = frames[count..].to_vec();
            let received = host.receive(&offer(&desc(10, &bytes)), &mut Script::new(rest, true));
            assert_eq!(received.end, ReceiveEnd::Answered(BulkReply::Accepted), "{case}");
            let came = (count * BLOCK).min(bytes.len()) as u64;
            assert_eq!((received.resumed_bytes, received.bytes + came), (came, bytes.len() as u64));
            assert!(host.read(&desc(10, &bytes)) == bytes, "{case}");
        }
    }
}

/// Covers P3 P13 P17.
#[test]
fn frames_that_break_the_rules_leave_nothing() {
    let bytes = payload(2 * BLOCK + 5);
    let good = frames(&bytes);
    let with = |at: usize, frame: BulkRequest| {
        let mut frames = good.clone();
        frames[at] = frame;
        frames
    };
    let block = |at: usize, change: &dyn Fn(&mut Block)| {
        let BulkRequest::Block(mut block) = good[at].clone() else { panic!("a block") };
        change(&mut block);
        with(at, BulkRequest::Block(block))
    };
    let flipped = |block: &mut Block| {
        let mut data = block.data.to_vec();
        data[7] ^= 1;
        block.data = data.into();
    };
    let desc = desc(10, &bytes);
    let mut other = desc.digest;
    other.0[0] ^= 1;
    let short = BulkRequest::End { length: desc.length, digest: desc.digest };
    let incompatible = [
        with(1, BulkRequest::Offer(offer(&desc))),
        with(3, BulkRequest::Offer(offer(&desc))),
        block(1, &|block| block.offset += 1),
        block(1, &|block| block.offset = 0),
        block(2, &|block| block.data = block.data.slice(1..)),
        with(3, good[2].clone()),
    ];
    let corrupt = [
        block(0, &flipped),
        block(1, &|block| block.crc ^= 1),
        // Wrong bytes with a matching checksum: only the digest shows it.
        block(1, &|block| {
            flipped(block);
            block.crc = crc32c::crc32c(&block.data);
        }),
        with(2, short),
        with(3, BulkRequest::End { length: desc.length, digest: other }),
        with(3, BulkRequest::End { length: desc.length - 1, digest: desc.digest }),
    ];
    let check = |frames: Vec<BulkRequest>, is_corrupt: bool, number: usize| {
        let host = Host::new();
        let mut script = Script::new(frames, true);
        let received = host.receive(&offer(&desc), &mut script);
        let case = format!("corrupt: {is_corrupt}, case {number}: {received:?}");
        let ReceiveEnd::Refused(reply) = received.end else { panic!("{case}") };
        assert_eq!(matches!(reply, BulkReply::Corrupt), is_corrupt, "{case}");
        assert_eq!(script.told.iter().filter(|reply| reply.is_final()).count(), 1, "{case}");
        host.assert_empty(&case);
    };
    incompatible.into_iter().enumerate().for_each(|(n, frames)| check(frames, false, n));
    corrupt.into_iter().enumerate().for_each(|(n, frames)| check(frames, true, n));
}

/// The sender finds that its object is corrupt; the corrupt block is not sent, nothing is accepted.
/// Covers P17.
#[test]
fn a_block_that_rotted_at_the_sender_is_not_sent() {
    let bytes = payload(3 * BLOCK);
    let mut bed = Bed::new();
    let desc = bed.take_listed(&[(10, &bytes)]).remove(0);
    bed.fs.corrupt(&bed.path(&desc), 2 * BLOCK as u64).expect("the file is there");
    let opened = bed.store.open_object(&desc, Use::Sending(offer(&desc).to));
    let reader = opened.expect("header and trailer are good");
    let host = Host::new();
    let (outcome, received) = transfer(reader, &host);
    assert_eq!((outcome.report, outcome.next), (Report::Failure, Next::GiveUp));
    assert!(matches!(outcome.end, SendEnd::SourceBad(_)), "{outcome:?}");
    assert!(matches!(received.end, ReceiveEnd::Broken(_)), "{received:?}");
    assert_eq!(host.taken.lock().expect("not poisoned").len(), 0);
    on_lane(&host.lane, |store| store.abandon());
    host.assert_empty("after the sender found its object corrupt");
}

/// Covers C4 V1.
#[test]
fn what_the_store_refuses_reaches_the_sender() {
    let bytes = payload(100);
    let need = crate::store::layout::object_bytes(100).expect("a small payload");
    let fs = MemFs::with_dir(Path::new("/data"));
    let host = Host::of(Bed::with_limits(fs, &state(&[]), need - 1, 0));
    let mut script = Script::new(frames(&bytes), true);
    let received = host.receive(&offer(&desc(10, &bytes)), &mut script);
    let retry_after_ms = NO_SPACE_RETRY_MS;
    let no_space = BulkReply::NoSpace { need, have: need - 1, retry_after_ms };
    assert_eq!(script.told, [no_space]);
    assert!(matches!(received.refusal, Some(SnapshotRefusal::NoSpace { .. })), "{received:?}");

    let host = Host::new();
    let header = crate::store::tests::header(&desc(9, b"x"));
    let reservation = on_lane(&host.lane, move |store| store.reserve(&header));
    let _other = reservation.expect("the lane runs").expect("the place is free");
    let mut script = Script::new(frames(&bytes), true);
    host.receive(&offer(&desc(10, &bytes)), &mut script);
    assert_eq!(script.told, [BulkReply::Busy { retry_after_ms: BUSY_RETRY_MS }]);
}

/// Covers I9.
#[test]
fn an_outbound_transfer_reports_exactly_once() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let report = || {
        let told = told.clone();
        OutboundReport::new(move |report, _| told.lock().expect("not poisoned").push(report))
    };
    report().report(Report::Finish, None);
    drop(report());
    report().report(Report::Failure, None);
    let panicking = report();
    let panicked = std::thread::spawn(move || {
        let _report = panicking;
        std::panic::resume_unwind(Box::new("a worker dies"));
    });
    assert!(panicked.join().is_err());
    let told = told.lock().expect("not poisoned").clone();
    assert_eq!(told, [Report::Finish, Report::Failure, Report::Failure, Report::Failure]);
}

/// A sender has at most a window of blocks under way, whatever the receiver does.
/// Covers P12.
#[test]
fn blocks_leave_only_within_the_credit() {
    let (outcome, told) = send_to(vec![BulkReply::Proceed { offset: 0 }], true);
    assert_eq!(outcome.end, SendEnd::Stalled);
    assert!(told.len() <= 1 + chunk::WINDOW_BLOCKS as usize + 1);
    // A transfer is resumed at the offset that the receiver names.
    let offset = 2 * BLOCK as u64;
    let (_, told) = send_to(vec![BulkReply::Proceed { offset }], true);
    assert!(matches!(&told[1], BulkRequest::Block(block) if block.offset == offset));
}

/// Receives a snapshot beside an older recovery point, stopping at the first failure. Returns what
/// the log lists if the snapshot was accepted.
fn run_reception(fs: &MemFs, start: &RecoveryState) -> Option<Vec<SnapshotDesc>> {
    let bytes = payload(BLOCK + 9);
    let limits = limits_of(1 << 40, 0, 1);
    let budget = crate::store::Budget::new(limits);
    let (store, _) = crate::store::tests::open(fs, &budget, start).ok()?;
    let host = Host { fs: fs.clone(), lane: DirectLane::new(store), taken: Mutex::default() };
    let received = host.receive(&offer(&desc(10, &bytes)), &mut Script::new(frames(&bytes), true));
    let listed = host.taken.into_inner().expect("not poisoned");
    let accepted = received.end == ReceiveEnd::Answered(BulkReply::Accepted);
    assert_eq!(accepted, !listed.is_empty(), "accepted iff the log took it");
    accepted.then_some(listed)
}

/// A disk with one listed snapshot, and that snapshot.
fn disk_with_one() -> (MemFs, Vec<SnapshotDesc>) {
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(5, b"the recovery point")]);
    (bed.fs, listed)
}

fn check_restart(fs: &MemFs, listed: &[SnapshotDesc], point: &str) {
    let mut bed = Bed::reopen(fs.clone(), &state(listed));
    for desc in listed {
        assert_eq!(bed.store.recoverable(desc), Ok::<(), OpenError>(()), "{point}");
    }
    bed.store.abandon();
    assert_eq!(bed.files().len(), listed.len(), "{point}: {:?}", bed.files());
}

/// After a crash at any point, the old recovery point or the new one is whole, and nothing else is
/// left.
/// Covers K1 F5.
#[test]
fn every_crash_point_and_failure_of_a_reception() {
    let (whole, old) = disk_with_one();
    let before = whole.ops();
    assert!(run_reception(&whole, &state(&old)).is_some());
    let ops = whole.ops();
    assert!(ops > before + 10, "{} operations", ops - before);
    for op in before..=ops {
        for seed in [None, Some(op), Some(op + 1_000)] {
            let (fs, old) = disk_with_one();
            fs.halt_after(op);
            let listed = run_reception(&fs, &state(&old)).unwrap_or(old);
            match seed {
                None => fs.crash(),
                Some(seed) => fs.crash_keeping(seed),
            }
            check_restart(&fs, &listed, &format!("crash after op {op}, keeping {seed:?}"));
        }
        let (fs, old) = disk_with_one();
        fs.fail_op(op + 1, crate::fs::mem::DiskFault::Full);
        let listed = run_reception(&fs, &state(&old)).unwrap_or(old);
        // After the failure, power is lost as well.
        fs.crash();
        check_restart(&fs, &listed, &format!("op {op} fails"));
    }
}

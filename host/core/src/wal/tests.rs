//! The format's golden bytes, and a table with a row for each rule of replay.

use bytes::Bytes;
use raft::eraftpb::Entry;

use super::record::{
    BATCH_HEADER_BYTES, BatchBuilder, BatchHeader, BatchPlace, FileHeader, HeaderError, Record,
    RecordBody, Salt, Span, decode_body, decode_entries,
};
use super::replay::{GroupLog, Replay, Tail};
use crate::ids::{Digest, GroupId, ModuleId, NodeId, ReplicaId, hex};
use crate::recovery_state::RecoveryState;
use crate::snapshot::{Configuration, SnapshotDesc};

const GROUP: GroupId = GroupId(0x0102_0304_0506_0708);

fn entry(index: u64, term: u64, data: &'static [u8]) -> Entry {
    Entry { index, term, data: Bytes::from_static(data), ..Entry::default() }
}

fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term, b"x")).collect()
}

/// A state whose log begins at `first`, after an entry of term `previous`.
fn state(first: u64, previous: u64) -> RecoveryState {
    let mut state = RecoveryState::blank("g", ReplicaId(9));
    state.first_index = first;
    state.previous_term = previous;
    state.commit = first - 1;
    if first > 1 {
        state.snapshots.push(SnapshotDesc {
            term: previous,
            index: first - 1,
            length: 0,
            digest: Digest([0; 32]),
            module: ModuleId([0; 32]),
            format: 0,
            configuration: Configuration::default(),
        });
    }
    state
}

const PLACE: BatchPlace = BatchPlace { number: 6, segment: 5, previous: 4, oldest: 2 };

fn file() -> FileHeader {
    let (cluster, node) = ([7; 16], NodeId(3));
    FileHeader { cluster, node, block_bytes: 64, file: 8, nonce: 0x1122, length: 4096 }
}

fn salt() -> Salt {
    file().salt(PLACE.segment)
}

fn batch() -> Vec<u8> {
    let mut batch = BatchBuilder::new(&file(), PLACE);
    batch.state(GROUP, &encoded(&state(1, 0)), false);
    batch.entries(GROUP, &[entry(1, 2, b"ab"), entry(2, 3, b"")], false);
    batch.finish()
}

fn encoded(state: &RecoveryState) -> Vec<u8> {
    let mut out = Vec::new();
    state.encode(&mut out);
    out
}

fn decode(bytes: &[u8]) -> Option<Vec<Record>> {
    let (head, rest) = bytes.split_first_chunk::<BATCH_HEADER_BYTES>()?;
    let header = BatchHeader::decode(&file(), head)?;
    let body = header.body(&file(), rest)?;
    decode_body(salt(), &header, Bytes::copy_from_slice(body)).ok()
}

#[test]
fn the_bytes_of_a_batch_are_golden() {
    let mut batch = BatchBuilder::new(&file(), PLACE);
    batch.entries(GROUP, &[entry(1, 2, b"ab"), entry(2, 3, b"")], false);
    let golden = concat!(
        "42544348",
        "a4315666",
        "0600000000000000",
        "0500000000000000",
        "0400000000000000",
        "0200000000000000",
        "41000000",
        "5fe833a9",
        "01000000",
        "00000000",
        "39000000",
        "fb2051cb",
        "03",
        "0807060504030201",
        "0100000000000000",
        "02000000",
        "00",
        "0200000000000000",
        "02000000",
        "6162",
        "00000000",
        "00",
        "0300000000000000",
        "00000000",
        "00000000",
        "00000000000000",
    );
    assert_eq!(hex(&batch.finish()), golden);
}

#[test]
fn the_bytes_of_a_file_header_are_golden() {
    let header = file();
    let bytes = header.encode();
    assert_eq!(
        hex(&bytes),
        concat!(
            "4c53545057414c0a",
            "02000000",
            "03000600",
            "07070707070707070707070707070707",
            "0800000000000000",
            "2211000000000000",
            "0010000000000000",
            "00000000",
            "08692340",
        )
    );
    assert_eq!(FileHeader::decode(&bytes), Ok(header));
    for at in 0..bytes.len() {
        let mut corrupt = bytes;
        corrupt[at] ^= 1;
        let found = FileHeader::decode(&corrupt);
        assert!(matches!(found, Err(HeaderError::Damaged(_))), "bit of byte {at}: {found:?}");
    }
    let mut newer = bytes;
    newer[8] = 3;
    let crc = crc32c::crc32c(&newer[..60]);
    newer[60..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(FileHeader::decode(&newer), Err(HeaderError::Newer { found: 3 }));
}

#[test]
fn a_batch_survives_the_disk_and_no_flipped_bit_passes() {
    let bytes = batch();
    let records = decode(&bytes).expect("it was just built");
    assert_eq!(records.len(), 2);
    let span = Span { first: 1, count: 2, terms: vec![(1, 2), (2, 3)] };
    assert_eq!(records[1].body, RecordBody::Entries { span, moved: false });
    for at in 0..bytes.len() {
        let mut corrupt = bytes.clone();
        corrupt[at] ^= 1 << (at % 8);
        assert_eq!(decode(&corrupt), None, "bit of byte {at}");
        assert_eq!(decode(&bytes[..at]), None, "cut at {at}");
    }
    let head = bytes.first_chunk().expect("a batch has a header");
    for elsewhere in [FileHeader { file: 9, ..file() }, FileHeader { nonce: 9, ..file() }] {
        assert_eq!(BatchHeader::decode(&elsewhere, head), None, "another file's bytes");
    }
}

#[test]
fn a_record_of_entries_is_read_back_for_its_group_only() {
    let bytes = batch();
    let records = decode(&bytes).expect("it was just built");
    let at = BATCH_HEADER_BYTES + records[1].offset as usize;
    let record = Bytes::copy_from_slice(&bytes[at..at + records[1].length as usize]);
    let found = decode_entries(salt(), GROUP, record.clone());
    assert_eq!(found, Ok(vec![entry(1, 2, b"ab"), entry(2, 3, b"")]));
    assert!(decode_entries(salt(), GroupId(1), record.clone()).is_err());
    let mut corrupt = record.to_vec();
    corrupt[30] ^= 1;
    assert!(decode_entries(salt(), GROUP, corrupt.into()).is_err());
}

/// A record without its bytes: (first index, previous term) or (indexes, term).
enum Say {
    State(u64, u64),
    Reset(u64, u64),
    Entries(std::ops::Range<u64>, u64),
    Moved(std::ops::Range<u64>, u64),
}
use Say::{Entries, Moved, Reset, State};

fn replay(says: &[Say]) -> Result<GroupLog, String> {
    let mut replay = Replay::default();
    for (at, say) in says.iter().enumerate() {
        let state_of = |first: &u64, previous: &u64| Box::new(state(*first, *previous));
        let body = match say {
            State(first, term) => RecordBody::State { state: state_of(first, term), reset: false },
            Reset(first, term) => RecordBody::State { state: state_of(first, term), reset: true },
            Entries(range, term) => {
                let span = Span::of(&entries(range.clone(), *term));
                RecordBody::Entries { span, moved: false }
            }
            Moved(range, term) => {
                let span = Span::of(&entries(range.clone(), *term));
                RecordBody::Entries { span, moved: true }
            }
        };
        // The record's number stands for its segment, so that its place shows which one it was.
        replay.record(Record { group: GROUP, offset: 0, length: 1, body }, at as u64, 0)?;
    }
    let mut groups = replay.finish()?;
    Ok(groups.remove(&GROUP).expect("the rows speak of one group"))
}

/// `expect` is `terms | extents | last index`, an extent being `first..end@record`; or the error.
fn check(says: &[Say], expect: &str) {
    let found = match replay(says) {
        Err(error) => error,
        Ok(log) => {
            let terms: Vec<_> =
                log.tail.terms().iter().map(|t| format!("{}:{}", t.0, t.1)).collect();
            let extents: Vec<_> = log
                .extents()
                .iter()
                .map(|(from, e)| format!("{from}..{}@{}", e.end, e.place.segment))
                .collect();
            format!("{} | {} | {}", terms.join(" "), extents.join(" "), log.tail.last_index)
        }
    };
    assert_eq!(found, expect);
}

#[test]
fn states_cut_the_front_and_entries_cut_the_end() {
    check(&[State(1, 0)], "0:0 |  | 0");
    check(&[State(1, 0), Entries(1..4, 1), Entries(4..6, 2)], "0:0 1:1 4:2 | 1..4@1 4..6@2 | 5");
    check(&[State(1, 0), Entries(1..6, 1), Entries(3..5, 2)], "0:0 1:1 3:2 | 1..3@1 3..5@2 | 4");
    check(&[State(1, 0), Entries(1..6, 1), State(4, 1)], "3:1 | 4..6@1 | 5");
    check(&[State(1, 0), Entries(1..6, 1), State(6, 1)], "5:1 |  | 5");
    check(&[State(1, 0), Entries(1..6, 1), Reset(4, 3)], "3:3 |  | 3");
    check(
        &[State(1, 0), Entries(1..3, 1), Reset(9, 3), Entries(9..10, 4)],
        "8:3 9:4 | 9..10@3 | 9",
    );
}

#[test]
fn moved_entries_fill_the_hole_of_a_deleted_segment() {
    let whole = "0:0 1:1 6:2 | 1..6@2 6..8@1 | 7";
    check(&[State(1, 0), Entries(6..8, 2), Moved(1..6, 1)], whole);
    check(&[State(1, 0), Entries(6..8, 1), Moved(1..6, 1)], "0:0 1:1 | 1..6@2 6..8@1 | 7");
    check(&[State(1, 0), Entries(1..6, 1), Moved(2..4, 1)], "0:0 1:1 | 1..2@1 2..4@2 4..6@1 | 5");
    // Later entries replaced the end of the hole before it was filled, and the log grew again.
    let says = [State(1, 0), Entries(6..8, 2), Entries(4..5, 3), Moved(1..4, 1), Entries(5..6, 3)];
    check(&says, "0:0 1:1 4:3 | 1..4@3 4..5@2 5..6@4 | 5");
    // A state cut the log's front within the hole.
    check(&[State(1, 0), State(4, 1), Moved(4..6, 1)], "3:1 | 4..6@2 | 5");
}

#[test]
fn a_log_that_cannot_be_is_refused() {
    let hole = "group 0102030405060708: entries 1..6 are missing";
    check(&[State(1, 0), Entries(6..8, 2)], hole);
    check(&[Entries(1..2, 1)], "entries of group 0102030405060708 without a state");
    check(
        &[State(4, 1), Entries(3..5, 1)],
        "entries of group 0102030405060708 at 3, before its first index 4",
    );
    check(
        &[State(4, 1), State(2, 1)],
        "the first index of group 0102030405060708 falls from 4 to 2",
    );
    check(
        &[State(1, 0), Entries(1..4, 2), Moved(2..3, 1)],
        "moved entries of group 0102030405060708 at 2 differ",
    );
}

#[test]
fn a_tail_judges_what_may_follow() {
    let mut tail = Tail::new(state(1, 0));
    tail.apply_entries(&Span::of(&entries(1..4, 2)));
    let reset = |first, previous| tail.judge_state(&state(first, previous));
    assert_eq!(reset(1, 0), Ok(false));
    assert_eq!(reset(3, 2), Ok(false), "a snapshot of entries of this log");
    assert_eq!(reset(3, 5), Ok(true), "a snapshot of another history");
    assert_eq!(reset(9, 2), Ok(true), "a snapshot beyond the end");
    let mut stranger = state(1, 0);
    stranger.replica = ReplicaId(10);
    assert_eq!(tail.judge_state(&stranger), Ok(true), "a new replica begins anew");

    assert_eq!(tail.judge_entries(&entries(4..6, 2)), Ok(()));
    assert_eq!(tail.judge_entries(&entries(2..3, 3)), Ok(()));
    let refused = |list: &[Entry]| tail.judge_entries(list).expect_err("it does not fit");
    assert_eq!(refused(&entries(5..6, 2)), "entries at 5, outside of 1..=4");
    assert_eq!(refused(&entries(0..1, 2)), "entries at 0, outside of 1..=4");
    assert_eq!(refused(&entries(4..5, 1)), "term 1 at 4 after term 2");
    assert_eq!(refused(&[entry(4, 2, b""), entry(6, 2, b"")]), "entry 6 after entry 4");
    let mut ahead = tail.clone();
    ahead.state.commit = 4;
    assert_eq!(ahead.judge_commit(), Err("commit 4 is beyond the last entry 3".into()));
}

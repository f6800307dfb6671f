//! What a board shows of a ledger, and when it wakes those who watch.

use bytes::Bytes;
use lockstep_core::amendment::Amendments;
use lockstep_core::apply::{Emitted, GuestEvent, Work};
use lockstep_core::entry::{Bootstrap, EntryBody, Profile};
use lockstep_core::ids::ModuleId;
use raft::eraftpb::Entry;

use super::*;

/// A ledger that grows by entries with events.
#[derive(Clone)]
pub(crate) struct Author(Ledger);

impl Author {
    /// A group of one entry, the bootstrap, that keeps this many bytes of events.
    pub(crate) fn new(window_bytes: u32) -> Self {
        let profile = Profile { event_window_bytes: window_bytes, ..Profile::default() };
        let (module, config) = (ModuleId([0; 32]), Bytes::new());
        let initial_voters = Vec::new();
        let record = Bootstrap { module, config, seed: [0; 16], profile, initial_voters };
        let mut author = Self(Ledger::default());
        author.admit(&EntryBody::Bootstrap(record));
        author
    }

    fn admit(&mut self, body: &EntryBody) -> Work {
        let (index, data) = (self.0.applied() + 1, body.encode().into());
        let entry = Entry { index, data, ..Entry::default() };
        self.0.admit(&entry, &Amendments::default()).expect("a good entry")
    }

    /// Applies an entry whose events have these topics and this many bytes of payload.
    pub(crate) fn entry(&mut self, events: &[(&str, usize)]) -> &mut Self {
        self.admit(&EntryBody::Empty);
        let mut emitted = Emitted::default();
        for (topic, bytes) in events {
            let payload = vec![b'x'; *bytes].into();
            let event = GuestEvent { topic: (*topic).into(), payload };
            emitted.emit(event, self.0.event_window_bytes());
        }
        self.0.emitted(emitted);
        self
    }

    /// The same ledger as it comes out of a snapshot.
    pub(crate) fn restored(&self) -> Self {
        let envelope = Bytes::from(self.0.encode_envelope()).slice(4..);
        Self(Ledger::decode_envelope(envelope, self.0.applied()).expect("just written"))
    }

    pub(crate) fn tell(&self, board: &EventBoard) {
        board.follow(&self.0);
    }
}

/// The bytes of a window, and of the payload of an event of which it holds fifteen.
pub(crate) const WINDOW: u32 = 1 << 20;
pub(crate) const LARGE: usize = 64 << 10;

/// Reads the board: the positions of the events, where the next reading begins, what is applied.
fn read(board: &EventBoard, from: (u64, u32), prefix: &str, bytes_max: usize) -> String {
    let from = Position { index: from.0, number: from.1 };
    match board.read(from, prefix, bytes_max) {
        Ok(Reading { events, next, applied }) => {
            let events: Vec<_> = events.iter().map(|kept| kept.position.to_string()).collect();
            format!("{} | {next} | {applied}", events.join(" "))
        }
        Err(Compacted { begin }) => format!("compacted {begin}"),
    }
}

fn check(board: &EventBoard, from: (u64, u32), prefix: &str, want: &str) {
    assert_eq!(read(board, from, prefix, usize::MAX), want, "{from:?} {prefix:?}");
}

#[test]
fn a_board_shows_what_the_ledger_keeps() {
    let board = EventBoard::default();
    check(&board, (0, 0), "", " | 1.0 | 0");
    let mut author = Author::new(WINDOW);
    author.entry(&[("a/1", 1), ("b", 1)]).entry(&[]).entry(&[("a", 1)]).tell(&board);
    check(&board, (0, 0), "", "2.0 2.1 4.0 | 5.0 | 4");
    check(&board, (0, 0), "a", "2.0 4.0 | 5.0 | 4");
    check(&board, (0, 0), "a/", "2.0 | 5.0 | 4");
    check(&board, (2, 1), "", "2.1 4.0 | 5.0 | 4");
    check(&board, (5, 0), "", " | 5.0 | 4");
    check(&board, (9, 3), "", " | 9.3 | 4");
    assert_eq!(read(&board, (0, 0), "", 0), "2.0 | 2.1 | 4", "one at least");
    assert_eq!(read(&board, (2, 1), "", 2 * 66), "2.1 4.0 | 5.0 | 4");
    assert_eq!(read(&board, (2, 1), "a", 0), "4.0 | 5.0 | 4");
}

/// While a guest is built again, its ledger begins anew.
#[test]
fn a_board_never_goes_back() {
    let board = EventBoard::default();
    let mut author = Author::new(WINDOW);
    let older = author.entry(&[("a", 1)]).clone();
    author.entry(&[("a", 1)]).tell(&board);
    let grown = board.grown();
    for ledger in [&older, &author] {
        ledger.tell(&board);
        check(&board, (0, 0), "", "2.0 3.0 | 4.0 | 3");
        assert!(!grown.has_changed().expect("the board is there"));
    }
}

#[test]
fn the_oldest_leave_the_board_with_the_window() {
    let board = EventBoard::default();
    let mut author = Author::new(WINDOW);
    for _ in 0..20 {
        author.entry(&[("a", LARGE)]).tell(&board);
    }
    for gone in [(0, 0), (2, 0), (6, 0)] {
        check(&board, gone, "", "compacted 6.1");
    }
    assert_eq!(read(&board, (6, 1), "", 2 * (LARGE + 65)), "7.0 8.0 | 8.1 | 21");
    assert_eq!(board.lock().events.len(), 15, "nothing else is held");
}

#[test]
fn a_snapshot_takes_the_board_on_with_what_it_keeps() {
    for (entries, first, want) in
        [(3, (2, 0), "2.0 3.0 4.0 5.0 | 6.0 | 5"), (40, (3, 0), "compacted 27.1")]
    {
        let board = EventBoard::default();
        let mut author = Author::new(WINDOW);
        author.entry(&[("a", LARGE)]).tell(&board);
        for _ in 0..entries {
            author.entry(&[("a", LARGE)]);
        }
        author.restored().tell(&board);
        check(&board, first, "", want);
        author.entry(&[("b", 1)]).tell(&board);
        let last = entries + 3;
        check(&board, (last, 0), "", &format!("{last}.0 | {}.0 | {last}", last + 1));
    }
}

/// The lane never waits for one who looks for a rare topic among many events.
#[test]
fn a_reading_is_bounded() {
    let board = EventBoard::default();
    let mut author = Author::new(WINDOW);
    author.entry(&vec![("a", 0); 5_000]).entry(&[("b", 0)]).tell(&board);
    check(&board, (0, 0), "b", " | 2.4096 | 3");
    check(&board, (2, 4_096), "b", "3.0 | 4.0 | 3");
}

#[test]
fn only_events_wake_those_who_watch() {
    let board = EventBoard::default();
    let mut author = Author::new(WINDOW);
    let (mut grown, mut applied) = (board.grown(), board.applied());
    for (events, wakes) in [(&[][..], false), (&[("a", 1)], true), (&[], false)] {
        author.entry(events).tell(&board);
        let woken = grown.has_changed().expect("the board is there");
        assert_eq!(woken, wakes, "{events:?}");
        assert!(applied.has_changed().expect("the board is there"), "{events:?}");
        let _ = (grown.borrow_and_update(), applied.borrow_and_update());
    }
}

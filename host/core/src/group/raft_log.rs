//! [`RaftLog`]: what raft reads of the log. raft-rs calls it synchronously, so it must answer from
//! memory.
//!
//! It holds a bounded window of entries and the runs of terms of the whole log.
//!
//! - The window reaches from at most `floor + 1` to the end: every reader but a send to a follower
//!   finds its entries in it.
//! - A send that needs older entries is told `LogTemporarilyUnavailable`; the wish becomes
//!   [`super::Effect::Fetch`] and is taken up again by [`super::Event::Fetched`].
//! - `snapshot` offers only what the log durably lists, and never a configuration without its
//!   receiver.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::entry::footprint;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::recovery_state::RecoveryState;
use crate::snapshot::SnapshotDesc;

/// Sends that may wait for one read of the log: more than there are followers.
const SENDS_WAITING_MAX: usize = 2 * limits::REPLICAS_MAX;

/// The log as raft sees it.
pub(super) struct RaftLog {
    initial: RaftState,
    first: u64,
    previous_term: u64,
    last: u64,
    /// (first index, term) of each run, ascending; covers `first..=last`.
    terms: Vec<(u64, u64)>,
    window: VecDeque<Entry>,
    window_bytes: usize,
    /// Entries below this index left the window because it was full.
    outgrown: u64,
    /// Entries below this index may not be readable any more.
    unreadable: u64,
    /// What the log durably lists, newest first.
    listed: Vec<SnapshotDesc>,
    /// What was promised to a follower: offered to it before anything else.
    promised: BTreeMap<ReplicaId, SnapshotDesc>,
    sizes: Sizes,
    /// Sends that wait for entries from the log: at most one for each first index.
    fetches: RefCell<Vec<Fetch>>,
    /// Entries that came back and are being taken up.
    fetched: Vec<Entry>,
    /// A follower needs a snapshot that is not there: one must be made at or behind this index.
    wanted: Cell<Option<u64>>,
}

struct Fetch {
    from: u64,
    to: u64,
    asked: bool,
    /// The sends that wait for it.
    contexts: Vec<GetEntriesContext>,
}

impl RaftLog {
    /// `terms` covers the log from the entry before its first; `window` its end, from the floor on.
    pub(super) fn open(
        state: &RecoveryState,
        terms: &[(u64, u64)],
        window: Vec<Entry>,
        sizes: Vec<(u64, u64)>,
        piece_bytes: u64,
    ) -> Self {
        let mut hard_state = HardState::default();
        hard_state.set_term(state.term);
        hard_state.set_vote(if planted("two_votes") { 0 } else { state.vote });
        hard_state.set_commit(state.commit);
        let last = window.last().map_or(state.first_index - 1, |entry| entry.index);
        assert!(
            window.first().is_none_or(|entry| entry.index <= state.floor + 1),
            "the window reaches back to the floor"
        );
        let mut log = Self {
            initial: RaftState::new(hard_state, state.configuration.to_raft()),
            first: state.first_index,
            previous_term: state.previous_term,
            last,
            terms: terms.to_vec(),
            window_bytes: window.iter().map(footprint).sum(),
            window: window.into(),
            outgrown: 0,
            unreadable: 0,
            listed: state.snapshots.clone(),
            promised: BTreeMap::new(),
            sizes: Sizes { pieces: sizes.into(), piece_bytes },
            fetches: RefCell::default(),
            fetched: Vec::new(),
            wanted: Cell::new(None),
        };
        log.compact_terms();
        let first = log.window.front().map_or(u64::MAX, |entry| entry.index);
        log.sizes.cut_off(first);
        log.window.iter().for_each(|entry| log.sizes.push(entry));
        log
    }

    /// Takes entries that raft handed over for persisting; they may replace a suffix.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(head) = entries.first() else { return };
        assert!(head.index > self.first - 1 && head.index <= self.last + 1, "no gap in the log");
        let keeps = planted("keep_conflicting_suffix");
        while !keeps && self.window.back().is_some_and(|entry| entry.index >= head.index) {
            let gone = self.window.pop_back().expect("there is a last entry");
            self.window_bytes -= footprint(&gone);
        }
        while self.terms.last().is_some_and(|(first, _)| *first >= head.index) {
            self.terms.pop();
        }
        self.sizes.cut_off(head.index);
        for entry in entries {
            self.sizes.push(entry);
            if self.terms.last().is_none_or(|(_, term)| *term != entry.term) {
                self.terms.push((entry.index, entry.term));
            }
            self.window_bytes += footprint(entry);
            self.window.push_back(entry.clone());
            self.last = entry.index;
        }
    }

    /// The log is now empty and begins behind an installed snapshot.
    pub(super) fn reset(&mut self, snapshot: &SnapshotDesc) {
        self.first = snapshot.index + 1;
        self.previous_term = snapshot.term;
        self.last = snapshot.index;
        self.terms.clear();
        self.window.clear();
        self.window_bytes = 0;
        self.sizes.pieces.clear();
        self.fetches.borrow_mut().clear();
    }

    /// The log now begins at `first`; called with what the durable state says.
    pub(super) fn compact(&mut self, first: u64) {
        assert!(first <= self.last + 1, "the log is cut within itself");
        if first <= self.first {
            return;
        }
        self.previous_term = self.term(first - 1).expect("the entry before the cut is known");
        self.first = first;
        self.compact_terms();
        self.sizes.compact(first);
        while self.window.front().is_some_and(|entry| entry.index < first) {
            self.pop_front();
        }
    }

    /// Gives up entries that only slow followers may still want. `floor` bounds what may go.
    pub(super) fn trim_window(&mut self, floor: u64) {
        while self.window_bytes > limits::WINDOW_BYTES_MAX
            && self.window.front().is_some_and(|entry| entry.index <= floor)
        {
            self.pop_front();
            self.outgrown = self.window_first();
        }
    }

    /// Entries below this index were outgrown by [`limits::WINDOW_BYTES_MAX`] of later ones; 0 if
    /// that did not happen since the start.
    pub(super) fn outgrown(&self) -> u64 {
        self.outgrown
    }

    pub(super) fn set_unreadable(&mut self, below: u64) {
        self.unreadable = self.unreadable.max(below.min(self.last + 1));
    }

    /// Entries below this index may not be readable any more; 0 if all are.
    pub(super) fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// The lowest index from which on the log has at most `bytes`.
    pub(super) fn within(&self, bytes: u64) -> u64 {
        self.sizes.within(bytes)
    }

    /// Bytes of the entries behind `after`, up to `last`; at most a piece too few.
    pub(super) fn bytes_between(&self, after: u64, last: u64) -> u64 {
        self.sizes.between(after, last)
    }

    /// Whether the log has every entry behind a snapshot.
    pub(super) fn goes_on_behind(&self, desc: &SnapshotDesc) -> bool {
        desc.index + 1 >= self.first
    }

    pub(super) fn listed(&self) -> &[SnapshotDesc] {
        &self.listed
    }

    pub(super) fn set_promised(&mut self, promised: BTreeMap<ReplicaId, SnapshotDesc>) {
        self.promised = promised;
    }

    pub(super) fn set_listed(&mut self, snapshots: &[SnapshotDesc]) {
        self.listed = snapshots.to_vec();
        // Whoever still needs one asks again, and may be content with these.
        self.wanted.set(None);
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Term of the entry before the first.
    pub(super) fn term_before(&self, first: u64) -> u64 {
        self.term(first - 1).expect("the entry before the cut is known")
    }

    /// Fetches that nobody asked the log for yet: `(from, to)`.
    pub(super) fn take_wanted_fetches(&self) -> Vec<(u64, u64)> {
        let mut wanted = Vec::new();
        for fetch in self.fetches.borrow_mut().iter_mut().filter(|fetch| !fetch.asked) {
            fetch.asked = true;
            wanted.push((fetch.from, fetch.to));
        }
        wanted
    }

    /// Entries from `from` are there (or cannot be had): gives back the sends that waited for them.
    pub(super) fn fetched(
        &mut self,
        from: u64,
        entries: Option<Vec<Entry>>,
    ) -> Vec<GetEntriesContext> {
        let mut fetches = self.fetches.borrow_mut();
        let place = fetches.iter().position(|fetch| fetch.from == from && fetch.asked);
        let (Some(place), entries) = (place, entries.unwrap_or_default()) else {
            return Vec::new();
        };
        let fetch = fetches.remove(place);
        if entries.is_empty() {
            return Vec::new();
        }
        self.fetched = entries;
        fetch.contexts
    }

    pub(super) fn forget_fetched(&mut self) {
        self.fetched = Vec::new();
    }

    /// The index at or behind which a snapshot is wanted, if one is; asks once.
    pub(super) fn take_wanted_snapshot(&self) -> Option<u64> {
        self.wanted.take()
    }

    fn pop_front(&mut self) {
        let gone = self.window.pop_front().expect("there is a first entry");
        self.window_bytes -= footprint(&gone);
    }

    fn compact_terms(&mut self) {
        let first = self.first;
        let before = self.terms.partition_point(|(start, _)| *start <= first);
        if before > 0 {
            self.terms.drain(..before - 1);
            self.terms[0].0 = self.terms[0].0.max(first);
        }
    }

    fn window_first(&self) -> u64 {
        self.window.front().map_or(self.last + 1, |entry| entry.index)
    }
}

impl Storage for RaftLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max_size = max_size.into();
        if low < self.first {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last + 1, "raft reads within the log");
        if low >= self.window_first() {
            let start = (low - self.window_first()) as usize;
            let range = self.window.range(start..start + (high - low) as usize);
            return Ok(limited(range, max_size));
        }
        if self.fetched.first().is_some_and(|head| head.index == low) {
            // They were read for a send that asked for at least as much as this one.
            return Ok(limited(self.fetched.iter(), max_size));
        }
        assert!(context.can_async(), "only sends reach behind the window");
        if low < self.unreadable {
            // Whoever lacks them needs a snapshot.
            return Err(Error::Store(StorageError::Compacted));
        }
        let mut fetches = self.fetches.borrow_mut();
        match fetches.iter_mut().find(|fetch| fetch.from == low) {
            Some(fetch) if fetch.contexts.len() < SENDS_WAITING_MAX => fetch.contexts.push(context),
            // The next heartbeat tries again.
            Some(_full) => {}
            None => {
                // Only what lies behind the window is surely durable, and can be read back.
                let to = high.min(self.window_first());
                fetches.push(Fetch { from: low, to, asked: false, contexts: vec![context] });
            }
        }
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index + 1 == self.first {
            return Ok(self.previous_term);
        }
        if index < self.first {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let run = self.terms.partition_point(|(start, _)| *start <= index);
        Ok(self.terms[run - 1].1)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |desc: &&SnapshotDesc| {
            desc.index >= request_index
                && self.goes_on_behind(desc)
                && desc.configuration.contains(ReplicaId(to))
        };
        let promised = self.promised.get(&ReplicaId(to)).into_iter();
        let Some(desc) = promised.chain(&self.listed).find(fits) else {
            self.wanted.set(Some(request_index));
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        Ok(to_raft(desc))
    }
}

/// Bytes of the log, in pieces: enough to say from where on it fits in a budget.
struct Sizes {
    /// (first index, bytes), ascending.
    pieces: VecDeque<(u64, u64)>,
    /// A piece grows to this many bytes.
    piece_bytes: u64,
}

impl Sizes {
    fn push(&mut self, entry: &Entry) {
        let bytes = footprint(entry) as u64;
        match self.pieces.back_mut() {
            Some((_, piece)) if *piece < self.piece_bytes => *piece += bytes,
            Some(_) | None => self.pieces.push_back((entry.index, bytes)),
        }
    }

    /// The entries from `index` on are replaced; what a piece keeps of them counts on.
    fn cut_off(&mut self, index: u64) {
        while self.pieces.back().is_some_and(|(first, _)| *first >= index) {
            self.pieces.pop_back();
        }
    }

    /// The log begins at `first` now.
    fn compact(&mut self, first: u64) {
        while self.pieces.get(1).is_some_and(|(next, _)| *next <= first) {
            self.pieces.pop_front();
        }
    }

    /// Bytes of the pieces that begin behind `after` and not behind `last`.
    fn between(&self, after: u64, last: u64) -> u64 {
        let inside = |(first, _): &&(u64, u64)| *first > after && *first <= last;
        self.pieces.iter().filter(inside).map(|(_, bytes)| bytes).sum()
    }

    fn within(&self, bytes: u64) -> u64 {
        let mut left = bytes;
        for (place, (_, piece)) in self.pieces.iter().enumerate().rev() {
            if *piece > left {
                return self.pieces.get(place + 1).map_or(u64::MAX, |(next, _)| *next);
            }
            left -= piece;
        }
        0
    }
}

/// A snapshot as raft carries it: the descriptor in place of the data.
pub(super) fn to_raft(desc: &SnapshotDesc) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_data(desc.to_bytes());
    let metadata = snapshot.mut_metadata();
    metadata.set_index(desc.index);
    metadata.set_term(desc.term);
    metadata.set_conf_state(desc.configuration.to_raft());
    snapshot
}

/// At least one entry, then as many as fit in `max_size`.
fn limited<'a>(entries: impl Iterator<Item = &'a Entry>, max_size: Option<u64>) -> Vec<Entry> {
    let mut left = max_size.unwrap_or(u64::MAX);
    let mut taken = Vec::new();
    for entry in entries {
        let size = footprint(entry) as u64;
        if size > left && !taken.is_empty() {
            break;
        }
        left = left.saturating_sub(size);
        taken.push(entry.clone());
    }
    taken
}

//! [`RaftLog`]: what raft reads of the log. raft-rs calls it synchronously, so it must answer from
//! memory.
//!
//! It holds a bounded window of entries and the runs of terms of the whole log.
//!
//! - The window begins at or before `floor + 1` and reaches to the end. Every reader finds its
//!   entries in it, except a send to a lagging follower.
//! - A send that needs older entries is told `LogTemporarilyUnavailable`. The request becomes
//!   [`super::Effect::Fetch`], and the send continues with [`super::Event::Fetched`].
//! - `snapshot` offers only what the log durably lists or a follower was promised, and never a
//!   configuration without its receiver. It may offer a listed object that is corrupt: the transfer
//!   fails until that is repaired.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// Entries below this index were dropped from the window because it was full.
    outgrown: u64,
    /// Entries below this index may be unreadable.
    unreadable: u64,
    /// What the log durably lists, newest first.
    listed: Vec<SnapshotDesc>,
    /// No snapshot is offered: the replica has diverged.
    serves_nothing: bool,
    /// Followers that have diverged, and take no snapshot for now.
    spared: BTreeSet<ReplicaId>,
    /// What each follower was promised: it is offered that before anything else.
    promised: BTreeMap<ReplicaId, SnapshotDesc>,
    sizes: Sizes,
    /// Reads of the log that sends wait for: at most one for each first index.
    fetches: RefCell<Vec<Fetch>>,
    /// Entries that were read back, while the sends that waited for them continue.
    fetched: Vec<Entry>,
    /// A follower needs a snapshot that does not exist: one must be taken at or after this index.
    wanted: Cell<Option<u64>>,
}

struct Fetch {
    from: u64,
    to: u64,
    asked: bool,
    /// The sends that wait for these entries.
    contexts: Vec<GetEntriesContext>,
}

impl RaftLog {
    /// `terms` covers the log from the entry before its first; `window` holds its end, from the
    /// floor on.
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
            serves_nothing: false,
            spared: BTreeSet::new(),
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

    /// Takes entries that raft handed over to be persisted; they may replace a suffix.
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

    /// Empties the log; it now begins after the installed `snapshot`.
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

    /// The log now begins at `first`, as the durable state says.
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

    /// Drops entries up to `floor` while the window is too large: only slow followers may still
    /// need them.
    pub(super) fn trim_window(&mut self, floor: u64) {
        while self.window_bytes > limits::WINDOW_BYTES_MAX
            && self.window.front().is_some_and(|entry| entry.index <= floor)
        {
            self.pop_front();
            self.outgrown = self.window_first();
        }
    }

    /// Entries below this index left the window because [`limits::WINDOW_BYTES_MAX`] of later ones
    /// took their place; 0 if that has not happened since the start.
    pub(super) fn outgrown(&self) -> u64 {
        self.outgrown
    }

    pub(super) fn set_unreadable(&mut self, below: u64) {
        self.unreadable = self.unreadable.max(below.min(self.last + 1));
    }

    /// Entries below this index may be unreadable; 0 if all are readable.
    pub(super) fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// The lowest index from which on the log has at most `bytes`.
    pub(super) fn within(&self, bytes: u64) -> u64 {
        self.sizes.within(bytes)
    }

    /// Bytes of the entries after `after` up to `last`; may be too few by up to one piece.
    pub(super) fn bytes_between(&self, after: u64, last: u64) -> u64 {
        self.sizes.between(after, last)
    }

    /// Whether the log has every entry after a snapshot.
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
        // A follower that still needs a snapshot asks again, and one of those now listed may serve
        // it.
        self.wanted.set(None);
    }

    /// Whether followers are offered no snapshot, because the replica has diverged.
    pub(super) fn serve_nothing(&mut self, nothing: bool) {
        self.serves_nothing = nothing && !planted("serve_what_diverged");
    }

    /// These followers are offered no snapshot, because they would refuse it.
    pub(super) fn spare(&mut self, followers: BTreeSet<ReplicaId>) {
        self.spared = followers;
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The term of the entry before `first`.
    pub(super) fn term_before(&self, first: u64) -> u64 {
        self.term(first - 1).expect("the entry before the cut is known")
    }

    /// Takes the reads that the log lane was not asked for yet: `(from, to)`.
    pub(super) fn take_wanted_fetches(&self) -> Vec<(u64, u64)> {
        let mut wanted = Vec::new();
        for fetch in self.fetches.borrow_mut().iter_mut().filter(|fetch| !fetch.asked) {
            fetch.asked = true;
            wanted.push((fetch.from, fetch.to));
        }
        wanted
    }

    /// Entries from `from` were read back, or could not be. Returns the sends that waited for them.
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

    /// Takes the index at or after which a follower needs a snapshot, if one does.
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
            // The entries were read for a send that asked for at least as much as this one.
            return Ok(limited(self.fetched.iter(), max_size));
        }
        assert!(context.can_async(), "only sends read entries before the window");
        if low < self.unreadable {
            // A follower that lacks these entries needs a snapshot.
            return Err(Error::Store(StorageError::Compacted));
        }
        let mut fetches = self.fetches.borrow_mut();
        match fetches.iter_mut().find(|fetch| fetch.from == low) {
            Some(fetch) if fetch.contexts.len() < SENDS_WAITING_MAX => fetch.contexts.push(context),
            // The next heartbeat makes raft try again.
            Some(_full) => {}
            None => {
                // Only entries before the window are certain to be durable and can be read back.
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
        if self.serves_nothing || self.spared.contains(&ReplicaId(to)) {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
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

/// The log's size in pieces: enough to tell from which index on it fits in a budget.
struct Sizes {
    /// (first index, bytes) of each piece, ascending.
    pieces: VecDeque<(u64, u64)>,
    /// A new piece begins once the last one has this many bytes of entries.
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

    /// The entries from `index` on are replaced. A piece that begins earlier keeps its full size.
    fn cut_off(&mut self, index: u64) {
        while self.pieces.back().is_some_and(|(first, _)| *first >= index) {
            self.pieces.pop_back();
        }
    }

    /// The log now begins at `first`.
    fn compact(&mut self, first: u64) {
        while self.pieces.get(1).is_some_and(|(next, _)| *next <= first) {
            self.pieces.pop_front();
        }
    }

    /// Bytes of the pieces that begin after `after` and not after `last`.
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

/// A snapshot as raft carries it: the descriptor takes the place of the data.
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

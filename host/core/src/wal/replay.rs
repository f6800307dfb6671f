//! What the records of a log mean: the rules of `wal`, applied one record at a time.
//!
//! A [`Tail`] is a group's log without places: its state, its last index, its terms. A [`GroupLog`]
//! adds where each entry stands. Before the writer writes a job, it asks a `Tail` whether the job
//! fits ([`Tail::judge_state`], [`Tail::judge_entries`]); replay and the writer then apply records
//! with the same functions.
//!
//! - Memory is used for each record ([`Extents`]) and for each run of terms, never for each entry.
//! - During the replay of a log whose oldest segments were deleted, a group may have holes until
//!   moved entries fill them. [`GroupLog::finish`] refuses a hole that remains.

use std::collections::BTreeMap;

use raft::eraftpb::Entry;

use crate::ids::GroupId;
use crate::recovery_state::RecoveryState;
use crate::wal::extents::{Extent, Extents};
use crate::wal::record::{Record, RecordBody, Span};

/// A group's log without the places of its entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tail {
    pub state: RecoveryState,
    pub last_index: u64,
    /// The term of each run of equal terms, by first index; begins with the entry before the log.
    terms: BTreeMap<u64, u64>,
}

/// The place of a record of entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub segment: u64,
    /// Offset from the start of the segment's file.
    pub offset: u64,
    pub length: u32,
    /// Entries in the record, live or not.
    pub count: u32,
}

/// A group's log, with the places of its entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupLog {
    pub tail: Tail,
    extents: Extents,
}

/// The logs of all groups while the records of a log are read in order.
#[derive(Default, Debug)]
pub struct Replay {
    groups: BTreeMap<GroupId, GroupLog>,
}

impl Replay {
    /// Applies the next record, of a batch in `segment` whose body begins at `offset`.
    pub fn record(&mut self, record: Record, segment: u64, offset: u64) -> Result<(), String> {
        let Record { group, offset: within, length, body } = record;
        let offset = offset + u64::from(within);
        match body {
            RecordBody::State { state, reset } => match self.groups.get_mut(&group) {
                None => {
                    self.groups.insert(group, GroupLog::new(*state));
                }
                Some(log) if !reset && state.first_index < log.tail.state.first_index => {
                    let (was, is) = (log.tail.state.first_index, state.first_index);
                    return Err(format!(
                        "the first index of group {group} falls from {was} to {is}"
                    ));
                }
                Some(log) => log.state(*state, reset),
            },
            RecordBody::Drop => drop(self.groups.remove(&group)),
            RecordBody::Entries { span, moved } => {
                let log = self.groups.get_mut(&group);
                let log = log.ok_or_else(|| format!("entries of group {group} without a state"))?;
                if span.first < log.tail.state.first_index {
                    return Err(format!(
                        "entries of group {group} at {}, before its first index {}",
                        span.first, log.tail.state.first_index
                    ));
                }
                if moved && !log.agrees(&span) {
                    return Err(format!("moved entries of group {group} at {} differ", span.first));
                }
                let place = Place { segment, offset, length, count: span.count };
                if moved { log.moved(&span, place) } else { log.entries(&span, place) }
            }
        }
        Ok(())
    }

    /// Returns the logs, if none has a hole.
    pub fn finish(mut self) -> Result<BTreeMap<GroupId, GroupLog>, String> {
        for (group, log) in &mut self.groups {
            log.finish().map_err(|why| format!("group {group}: {why}"))?;
        }
        Ok(self.groups)
    }
}

impl Tail {
    /// A log without entries that begins at the first index of `state`.
    pub fn new(state: RecoveryState) -> Self {
        let before = state.first_index - 1;
        let terms = BTreeMap::from([(before, state.previous_term)]);
        Self { state, last_index: before, terms }
    }

    /// The term of the entry at `index`; known from the entry before the log to the last one.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index > self.last_index {
            return None;
        }
        self.terms.range(..=index).next_back().map(|run| *run.1)
    }

    /// Runs of equal terms, first index and term, from the entry before the log on.
    pub fn terms(&self) -> Vec<(u64, u64)> {
        self.terms.iter().map(|run| (*run.0, *run.1)).collect()
    }

    /// Whether the state `next` may follow; `true` if it has to be written as a reset, because it
    /// belongs to another log than this one.
    pub fn judge_state(&self, next: &RecoveryState) -> Result<bool, String> {
        next.validate()?;
        let before = next.first_index.checked_sub(1).ok_or("the first index is 0")?;
        if next.replica != self.state.replica {
            return Ok(true);
        }
        if next.first_index < self.state.first_index {
            let (was, is) = (self.state.first_index, next.first_index);
            return Err(format!("the first index falls from {was} to {is}"));
        }
        Ok(self.term(before) != Some(next.previous_term))
    }

    /// Whether `entries` may be written to this log next.
    pub fn judge_entries(&self, entries: &[Entry]) -> Result<(), String> {
        let Some(first) = entries.first() else { return Ok(()) };
        let (lowest, highest) = (self.state.first_index, self.last_index + 1);
        if first.index < lowest || first.index > highest {
            return Err(format!("entries at {}, outside of {lowest}..={highest}", first.index));
        }
        let mut before = (first.index - 1, self.term(first.index - 1).unwrap_or(0));
        for entry in entries {
            if entry.index != before.0 + 1 {
                return Err(format!("entry {} after entry {}", entry.index, before.0));
            }
            if entry.term < before.1 {
                let (term, index) = (entry.term, entry.index);
                return Err(format!("term {term} at {index} after term {}", before.1));
            }
            before = (entry.index, entry.term);
        }
        Ok(())
    }

    /// Whether the log reaches the commit index of its state.
    pub fn judge_commit(&self) -> Result<(), String> {
        if self.state.commit > self.last_index {
            let (commit, last) = (self.state.commit, self.last_index);
            return Err(format!("commit {commit} is beyond the last entry {last}"));
        }
        Ok(())
    }

    pub fn apply_state(&mut self, state: RecoveryState, reset: bool) {
        if reset {
            *self = Self::new(state);
            return;
        }
        let first = state.first_index;
        let term = self.term(first);
        self.terms = self.terms.split_off(&first);
        self.terms.insert(first - 1, state.previous_term);
        if let Some(term) = term {
            self.terms.entry(first).or_insert(term);
        }
        self.last_index = self.last_index.max(first - 1);
        self.state = state;
        self.merge(first);
    }

    pub fn apply_entries(&mut self, span: &Span) {
        let gap = span.first > self.last_index + 1;
        self.terms.split_off(&span.first);
        for (index, term) in &span.terms {
            let same = self.terms.last_key_value().is_some_and(|run| run.1 == term);
            if gap || !same {
                self.terms.insert(*index, *term);
            }
        }
        self.last_index = span.end() - 1;
    }

    fn apply_moved(&mut self, span: &Span) {
        let behind = self.term(span.end());
        let mut rest = self.terms.split_off(&span.first);
        self.terms.extend(span.terms.iter().copied());
        if let Some(term) = behind {
            rest = rest.split_off(&span.end());
            rest.entry(span.end()).or_insert(term);
            self.terms.append(&mut rest);
        }
        self.last_index = self.last_index.max(span.end() - 1);
        self.merge(span.end());
        self.merge(span.first);
    }

    /// Joins the run that begins at `index` to the one before it if they have the same term.
    fn merge(&mut self, index: u64) {
        let before = self.terms.range(..index).next_back().map(|run| *run.1);
        if before.is_some() && self.terms.get(&index).copied() == before {
            self.terms.remove(&index);
        }
    }

    fn merge_all(&mut self) {
        let mut before = None;
        self.terms.retain(|_index, term| before.replace(*term) != Some(*term));
    }
}

impl GroupLog {
    pub fn new(state: RecoveryState) -> Self {
        Self { tail: Tail::new(state), extents: Extents::default() }
    }

    pub fn state(&mut self, state: RecoveryState, reset: bool) {
        if reset {
            self.extents.clear();
        } else {
            self.extents.cut_before(state.first_index);
        }
        self.tail.apply_state(state, reset);
    }

    pub fn entries(&mut self, span: &Span, place: Place) {
        self.extents.append(span.first, place);
        self.tail.apply_entries(span);
    }

    /// Applies live entries that were written again at `place`.
    pub fn moved(&mut self, span: &Span, place: Place) {
        self.extents.replace(span.first, place);
        self.tail.apply_moved(span);
    }

    /// The places of the live entries.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// The size of the live entries in pieces: first index and bytes, ascending.
    pub fn sizes(&self) -> Vec<(u64, u64)> {
        let size = |(from, extent): (u64, Extent)| (from, extent.live_bytes(from));
        self.extents.iter().map(size).collect()
    }

    /// Whether the entries that this log and `span` have in common have the same terms.
    fn agrees(&self, span: &Span) -> bool {
        let mut terms = span.terms.iter().copied().peekable();
        let mut term = 0;
        (span.first..span.end()).all(|index| {
            if let Some(run) = terms.next_if(|run| run.0 == index) {
                term = run.1;
            }
            !self.extents.holds(index) || self.tail.term(index) == Some(term)
        })
    }

    fn finish(&mut self) -> Result<(), String> {
        let mut next = self.tail.state.first_index;
        for (first, extent) in self.extents.iter() {
            if first != next {
                return Err(format!("entries {next}..{first} are missing"));
            }
            next = extent.end;
        }
        if next != self.tail.last_index + 1 {
            return Err(format!("entries {next}..={} are missing", self.tail.last_index));
        }
        self.tail.merge_all();
        self.tail.judge_commit()
    }
}

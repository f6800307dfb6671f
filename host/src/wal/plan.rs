//! Which records go into which batch. This only decides: it reads and writes no file.
//!
//! - Jobs keep their order, and share a batch as long as they fit.
//! - A job that is larger than a batch is cut between entries. Each part but the last carries the
//!   job's state with commit index and floor limited to the part's last entry, so that after a
//!   crash between two parts the group has a state that it could have had.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lockstep_core::ids::GroupId;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::wal::record::{
    BatchBuilder, ENTRIES_OVERHEAD_BYTES, RECORD_OVERHEAD_BYTES, Span, entry_size,
};
use lockstep_core::wal::replay::{GroupLog, Tail};
use lockstep_core::wal::{LogJob, RECORD_BYTES_MAX};
use raft::eraftpb::Entry;

use super::error::WalError;

/// The records of one batch.
#[derive(Default)]
pub(super) struct Plan<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    pub(super) body_bytes: usize,
    /// How many jobs this batch completes.
    pub(super) completes: usize,
    /// Whether the batch makes entries obsolete, so that a segment may become free.
    pub(super) frees: bool,
}

/// One record.
#[expect(
    clippy::large_enum_variant,
    reason = "there is a state in nearly every batch, and few pieces"
)]
pub(super) enum Piece<'a> {
    State { group: GroupId, state: RecoveryState, bytes: Vec<u8>, reset: bool },
    Entries { group: GroupId, entries: Cow<'a, [Entry]>, span: Span, moved: bool },
    Drop { group: GroupId },
}

/// Divides `jobs` into batches of at most `limit` bytes of body, or refuses them all.
pub(super) fn plan<'a>(
    groups: &BTreeMap<GroupId, GroupLog>,
    jobs: &'a [LogJob],
    limit: usize,
) -> Result<Vec<Plan<'a>>, WalError> {
    let mut tails: BTreeMap<GroupId, Tail> = BTreeMap::new();
    let mut plans: Vec<Plan> = Vec::new();
    for job in jobs {
        let group = job.group;
        let refuse = |reason| WalError::Refused { group, reason };
        let mut tail =
            tails.remove(&group).or_else(|| groups.get(&group).map(|log| log.tail.clone()));
        let mut parts = cut(job, limit).map_err(refuse)?.into_iter().peekable();
        while let Some(part) = parts.next() {
            let mut part = part.judge(group, &mut tail).map_err(refuse)?;
            part.completes = usize::from(parts.peek().is_none());
            match plans.last_mut() {
                Some(plan) if plan.body_bytes + part.body_bytes <= limit => plan.join(part),
                Some(_) | None => plans.push(part),
            }
        }
        tails.extend(tail.map(|tail| (group, tail)));
    }
    Ok(plans)
}

/// Cuts entries into slices of at most `limit` bytes, each for one record; a larger entry is alone.
pub(super) fn slices(entries: &[Entry], limit: usize) -> Vec<&[Entry]> {
    let mut found = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        let size = entry_size(entry);
        if at > begin && bytes + size > limit {
            found.push(&entries[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += size;
    }
    if begin < entries.len() {
        found.push(&entries[begin..]);
    }
    found
}

/// A part of a job that fits in a batch.
struct Part<'a> {
    state: RecoveryState,
    slices: Vec<&'a [Entry]>,
}

fn cut(job: &LogJob, limit: usize) -> Result<Vec<Part<'_>>, String> {
    let mut state_bytes = Vec::new();
    job.state.encode(&mut state_bytes);
    let state_size = RECORD_OVERHEAD_BYTES + state_bytes.len();
    let mut parts = Vec::new();
    let (mut taken, mut size) = (Vec::new(), state_size);
    for slice in slices(&job.entries, RECORD_BYTES_MAX.min(limit / 4)) {
        let slice_size = record_size(slice);
        if state_size + slice_size > limit {
            let (index, bytes) = (slice[0].index, slice_size);
            return Err(format!("entry {index} takes {bytes} bytes, but a batch holds {limit}"));
        }
        if size + slice_size > limit {
            parts.push(std::mem::take(&mut taken));
            size = state_size;
        }
        taken.push(slice);
        size += slice_size;
    }
    let mut cut: Vec<_> = parts.into_iter().map(|slices| Part::early(&job.state, slices)).collect();
    cut.push(Part { state: job.state.clone(), slices: taken });
    Ok(cut)
}

fn record_size(entries: &[Entry]) -> usize {
    let bytes = entries.iter().map(entry_size).sum::<usize>();
    RECORD_OVERHEAD_BYTES + ENTRIES_OVERHEAD_BYTES + bytes
}

impl<'a> Part<'a> {
    /// A part that is not the job's last one: its state refers to no entry of a later part.
    fn early(state: &RecoveryState, slices: Vec<&'a [Entry]>) -> Self {
        let last = slices.last().and_then(|slice| slice.last()).map_or(0, |entry| entry.index);
        let mut state = state.clone();
        state.commit = state.commit.min(last);
        state.floor = state.floor.min(last);
        Self { state, slices }
    }

    /// Checks the part against `tail`, the group's log as it will be by then, and adds the part to
    /// it.
    fn judge(self, group: GroupId, tail: &mut Option<Tail>) -> Result<Plan<'a>, String> {
        let mut plan = Plan::default();
        let reset = match tail {
            None => {
                self.state.validate()?;
                *tail = Some(Tail::new(self.state.clone()));
                false
            }
            Some(tail) => {
                let reset = tail.judge_state(&self.state)?;
                plan.frees = reset || self.state.first_index > tail.state.first_index;
                tail.apply_state(self.state.clone(), reset);
                reset
            }
        };
        let tail = tail.as_mut().expect("the tail was begun above");
        plan.push(Piece::state(group, self.state, reset));
        for slice in self.slices {
            tail.judge_entries(slice)?;
            let span = Span::of(slice);
            tail.apply_entries(&span);
            plan.push(Piece::Entries { group, entries: Cow::Borrowed(slice), span, moved: false });
        }
        tail.judge_commit()?;
        Ok(plan)
    }
}

impl<'a> Plan<'a> {
    pub(super) fn push(&mut self, piece: Piece<'a>) {
        self.body_bytes += piece.size();
        self.pieces.push(piece);
    }

    /// A plan that outlives the jobs from which it was made.
    pub(super) fn into_owned(self) -> Plan<'static> {
        let Plan { pieces, body_bytes, completes, frees } = self;
        let pieces = pieces.into_iter().map(|piece| match piece {
            Piece::State { group, state, bytes, reset } => {
                Piece::State { group, state, bytes, reset }
            }
            Piece::Entries { group, entries, span, moved } => {
                let entries = Cow::Owned(entries.into_owned());
                Piece::Entries { group, entries, span, moved }
            }
            Piece::Drop { group } => Piece::Drop { group },
        });
        let pieces = pieces.collect();
        Plan { pieces, body_bytes, completes, frees }
    }

    fn join(&mut self, other: Self) {
        self.body_bytes += other.body_bytes;
        self.completes += other.completes;
        self.frees |= other.frees;
        self.pieces.extend(other.pieces);
    }
}

impl Piece<'_> {
    fn state(group: GroupId, state: RecoveryState, reset: bool) -> Self {
        let mut bytes = Vec::with_capacity(256);
        state.encode(&mut bytes);
        Self::State { group, state, bytes, reset }
    }

    fn size(&self) -> usize {
        match self {
            Self::State { bytes, .. } => RECORD_OVERHEAD_BYTES + bytes.len(),
            Self::Entries { entries, .. } => record_size(entries),
            Self::Drop { .. } => RECORD_OVERHEAD_BYTES,
        }
    }

    /// Adds the record to the batch; returns its offset there and its length.
    pub(super) fn write(&self, batch: &mut BatchBuilder) -> (u32, u32) {
        match self {
            Self::State { group, bytes, reset, .. } => batch.state(*group, bytes, *reset),
            Self::Entries { group, entries, moved, .. } => batch.entries(*group, entries, *moved),
            Self::Drop { group } => batch.drop_group(*group),
        }
    }
}

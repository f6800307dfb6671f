//! What the writer and its readers share: where each live entry is, and the open segments.
//!
//! Locks are held only to read or change memory, never during IO.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use lockstep_core::ids::GroupId;
use lockstep_core::wal::replay::{GroupLog, Place};

use super::plan::Piece;
use super::segment::Segment;

type Groups = BTreeMap<GroupId, GroupLog>;
type Segments = BTreeMap<u64, Arc<Segment>>;

pub(super) struct Shared {
    groups: RwLock<Groups>,
    segments: RwLock<Segments>,
    damaged: Mutex<BTreeSet<u64>>,
}

impl Shared {
    pub(super) fn new(groups: Groups, segments: Segments) -> Self {
        let (groups, segments) = (RwLock::new(groups), RwLock::new(segments));
        Self { groups, segments, damaged: Mutex::default() }
    }

    pub(super) fn groups(&self) -> RwLockReadGuard<'_, Groups> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn segments(&self) -> RwLockReadGuard<'_, Segments> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_segment(&self, segment: Arc<Segment>) {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.insert(segment.number(), segment);
    }

    /// Removes the segment from those that readers can find, and from the damaged ones.
    pub(super) fn forget_segment(&self, number: u64) -> Option<Arc<Segment>> {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        self.damaged().remove(&number);
        segments.remove(&number)
    }

    /// Records that a segment is damaged, if it still exists; returns whether it does. Damage in a
    /// deleted segment says nothing about the log.
    pub(super) fn note_damage(&self, number: u64) -> bool {
        let segments = self.segments();
        let there = segments.contains_key(&number);
        if there {
            self.damaged().insert(number);
        }
        there
    }

    /// The numbers of the segments that were found damaged.
    pub(super) fn damaged(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies to the index a batch that became durable at `begin` in `segment`. `places` holds
    /// each piece's offset in the batch and its length.
    pub(super) fn publish(
        &self,
        pieces: Vec<Piece<'_>>,
        places: &[(u32, u32)],
        segment: u64,
        begin: u64,
    ) {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        for (piece, (within, length)) in pieces.into_iter().zip(places) {
            let (offset, length) = (begin + u64::from(*within), *length);
            match piece {
                Piece::State { group, state, reset, .. } => match groups.get_mut(&group) {
                    Some(log) => log.state(state, reset),
                    None => drop(groups.insert(group, GroupLog::new(state))),
                },
                Piece::Drop { group } => drop(groups.remove(&group)),
                Piece::Entries { group, span, moved, .. } => {
                    let log = groups.get_mut(&group).expect("a group's state comes first");
                    let place = Place { segment, offset, length, count: span.count };
                    if moved { log.moved(&span, place) } else { log.entries(&span, place) }
                }
            }
        }
    }
}

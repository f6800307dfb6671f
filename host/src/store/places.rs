//! [`Places`]: how many groups of a host take a snapshot, or restore one, at the same time.
//!
//! A shortage or a damaged segment makes all groups of a host want a snapshot at once, and a start
//! has all of them restore. They share its disks and processors.
//!
//! - A place is a value; dropping it gives it back. One that was held for longer than [`HELD_MS`]
//!   does not count any more: its disk hangs, or there is that much to do, and others go on.
//! - Who is refused asks again; nobody is called back. An ask that is not repeated is forgotten
//!   after [`ASKED_MS`].
//! - Until then no place goes to anybody further behind. First come those who have asked for
//!   [`PATIENCE_MS`], in their order, so that nobody asks in vain for ever; then those who gain
//!   most by it.
//! - Who holds a place waits for no other one, so that there is no circle.
//!
//! Time is what the budget was told last.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use lockstep_core::mutant::planted;

use super::reserve::{Budget, Quota};

/// Wall time for which a place counts: longer than what a group of a usual size takes.
const HELD_MS: u64 = 30_000;
/// Wall time for which an ask stands: longer than whoever was refused waits before the next, and
/// than it takes to be told the time.
const ASKED_MS: u64 = 10_000;
/// Wall time after which whoever asks goes before those who gain more.
const PATIENCE_MS: u64 = 30_000;

/// What a place is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// From the reservation of a local snapshot until the log lists it.
    Capture,
    /// A start or a restore of the apply lane, from the snapshot to the last entry.
    Restore,
}

/// Leave to do such work now.
#[derive(Debug)]
pub struct Place {
    budget: Arc<Budget>,
    work: Work,
    number: u64,
}

/// The places of one kind of work.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Until when each counts, by its number.
    held: BTreeMap<u64, u64>,
    /// Who was refused, the first to be served first.
    asked: Vec<Ask>,
    /// Of places and asks that there have been.
    numbers: u64,
}

#[derive(Debug)]
struct Ask {
    by: Weak<Quota>,
    gain: u64,
    number: u64,
    /// Until when it stands, and from when on it goes before larger gains.
    until_ms: u64,
    patient_until_ms: u64,
    waited: bool,
}

impl Place {
    pub(super) fn new(budget: Arc<Budget>, work: Work, number: u64) -> Self {
        Self { budget, work, number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.budget.give_back(self.work, self.number);
    }
}

impl Places {
    /// Takes one of `most` places, or keeps the ask in mind; the place's number.
    pub(super) fn take(&mut self, by: &Arc<Quota>, gain: u64, most: usize) -> Option<u64> {
        self.numbers += 1;
        let number = self.numbers;
        self.asked.retain(|ask| ask.by.strong_count() > 0);
        match self.asked.iter_mut().find(|ask| std::ptr::eq(ask.by.as_ptr(), &**by)) {
            Some(ask) => (ask.gain, ask.until_ms) = (gain, u64::MAX),
            None => self.asked.push(Ask {
                by: Arc::downgrade(by),
                gain,
                number,
                until_ms: u64::MAX,
                patient_until_ms: u64::MAX,
                waited: false,
            }),
        }
        self.asked.sort_by_key(Ask::order);
        let mine = |ask: &Ask| std::ptr::eq(ask.by.as_ptr(), &**by);
        let place = self.asked.iter().position(mine).expect("it was put there");
        let free = most.saturating_sub(self.held.len());
        if place >= free && !planted("places_without_bound") {
            return None;
        }
        self.asked.remove(place);
        self.held.insert(number, u64::MAX);
        Some(number)
    }

    pub(super) fn give_back(&mut self, number: u64) {
        self.held.remove(&number);
    }

    /// The time is this: what it was not known for begins now.
    pub(super) fn tend(&mut self, now_ms: u64) {
        let over = |until_ms: &mut u64, ms: u64| {
            *until_ms = (*until_ms).min(now_ms.saturating_add(ms));
            *until_ms <= now_ms
        };
        self.held.retain(|_, until_ms| !over(until_ms, HELD_MS));
        self.asked.retain_mut(|ask| {
            ask.waited |= over(&mut ask.patient_until_ms, PATIENCE_MS);
            !over(&mut ask.until_ms, ASKED_MS)
        });
    }

    /// Places that count, and groups that ask for one.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.held.len(), self.asked.len())
    }
}

impl Ask {
    /// Less is earlier.
    fn order(&self) -> (bool, u64, u64) {
        let behind = if self.waited { 0 } else { u64::MAX - self.gain };
        (!self.waited, behind, self.number)
    }
}

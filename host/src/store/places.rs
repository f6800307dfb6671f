//! [`Places`]: how many groups of a host take a snapshot, or restore one, at the same time.
//!
//! A shortage or a damaged segment makes all groups of a host want a snapshot at once, and at a
//! start all of them restore one. They share the host's disks and processors.
//!
//! - A place is a value; dropping it gives it back. A place held for longer than [`HELD_MS`] no
//!   longer counts: a disk that hangs or a very large state does not stop the other groups.
//! - A group that is refused asks again; there are no callbacks. An ask that is not repeated is
//!   forgotten after [`ASKED_MS`].
//! - Asks are served in order, and none before an earlier one. Groups that have asked for
//!   [`PATIENCE_MS`] come first, in the order of their asks, so that none starves; then the others,
//!   largest gain first.
//! - A group that holds a place waits for no other place, so there is no deadlock.
//!
//! The time is that of the last call of `Budget::tend`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use lockstep_core::mutant::planted;

use super::reserve::{Budget, Quota};

/// How long a place counts, milliseconds of wall time: longer than a group of a usual size needs
/// it.
const HELD_MS: u64 = 30_000;
/// How long an ask is remembered, milliseconds of wall time: longer than a refused group waits
/// before it asks again, and longer than the time between two calls of `Budget::tend`.
const ASKED_MS: u64 = 10_000;
/// Milliseconds of wall time after which a group that keeps asking comes before groups that gain
/// more.
const PATIENCE_MS: u64 = 30_000;

/// What a place is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// From the reservation of a local snapshot until the log lists it.
    Capture,
    /// A start or a restore by the apply lane, from the snapshot to the last entry.
    Restore,
}

/// A group's right to capture or to restore now; dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    budget: Arc<Budget>,
    work: Work,
    number: u64,
}

/// The places of one kind of work.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Until when each place counts, by its number.
    held: BTreeMap<u64, u64>,
    /// The groups that were refused, in the order in which they are served.
    asked: Vec<Ask>,
    /// The last number that was given to a place or an ask.
    numbers: u64,
}

#[derive(Debug)]
struct Ask {
    by: Weak<Quota>,
    gain: u64,
    number: u64,
    /// When the ask is forgotten, unless it is repeated.
    until_ms: u64,
    /// When the ask starts to come before those with larger gains.
    patient_until_ms: u64,
    /// Whether `patient_until_ms` is over.
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
    /// Takes one of `most` places and returns its number, or remembers that `by` asks for one.
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
        let place = self.asked.iter().position(mine).expect("the ask was just made");
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

    /// Called periodically with the time. The time limits of places and asks that are new since the
    /// last call begin now.
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
    /// A smaller value is served earlier.
    fn order(&self) -> (bool, u64, u64) {
        let behind = if self.waited { 0 } else { u64::MAX - self.gain };
        (!self.waited, behind, self.number)
    }
}

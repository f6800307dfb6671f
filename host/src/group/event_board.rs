//! The board of a group's events: what the ledger keeps of them, for those who watch.
//!
//! - The apply lane writes it, between two entries at the earliest, so a board never shows a part
//!   of an entry. Watchers read it, each from a position of its own, and are told when it grew.
//! - It never goes back: while the lane builds its guest again from older entries, it stands still.
//!   So nothing is shown twice.
//! - A watcher is woken by entries that emitted events, and by no others.
//! - Nothing is kept for a watcher. One that is slower than the window of events grows finds out
//!   that its position is gone, and nobody else is affected.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_core::apply::{KeptEvent, Ledger, Position};
use lockstep_core::mutant::planted;
use tokio::sync::watch;

/// A reading looks at no more events, so that it does not hold up the lane.
const LOOKED_AT_MAX: usize = 4_096;

pub struct EventBoard {
    state: Mutex<State>,
    /// The applied index, for those who wait for a certain one.
    applied: watch::Sender<u64>,
    /// The applied index when events came last, for those who wait for events.
    grown: watch::Sender<u64>,
    tally: Tally,
}

/// What was watched since the process began.
#[derive(Default)]
struct Tally {
    open: AtomicU64,
    sent: AtomicU64,
    compacted: AtomicU64,
}

/// The watches of a group, and what became of them since the process began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WatchReport {
    /// Watches that are open now.
    pub open: u64,
    /// Events sent to all of them.
    pub sent: u64,
    /// Watches that were refused, or ended, because their position was no longer kept.
    pub compacted: u64,
}

#[derive(Default)]
struct State {
    events: VecDeque<KeptEvent>,
    /// Every event at this position or after it, up to `applied`, is on the board.
    begin: Position,
    applied: u64,
}

/// What a watcher reads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// The events of the topics asked for, oldest first.
    pub events: Vec<KeptEvent>,
    /// Where the next reading begins: all events before it were looked at.
    pub next: Position,
    /// The replica has applied all entries up to this one; not all of their events may have been
    /// looked at yet.
    pub applied: u64,
}

/// Events from the position on that was asked for are no longer kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compacted {
    /// Every event from this position on is kept.
    pub begin: Position,
}

impl Default for EventBoard {
    fn default() -> Self {
        let (applied, grown) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { state: Mutex::default(), applied, grown, tally: Tally::default() }
    }
}

impl EventBoard {
    /// Brings the board to the state of the ledger, unless it is further already.
    pub(crate) fn follow(&self, ledger: &Ledger) {
        let mut state = self.lock();
        if ledger.applied() <= state.applied && !planted("events_go_back") {
            return;
        }
        let window = ledger.events();
        let known = Position { index: state.applied, number: u32::MAX };
        let from = if planted("events_go_back") { Position::default() } else { known };
        let before = state.events.len();
        state.events.extend(window.since(from).cloned());
        let grew = state.events.len() > before;
        state.begin = state.begin.max(window.begin());
        while state.events.front().is_some_and(|oldest| oldest.position < state.begin) {
            state.events.pop_front();
        }
        state.applied = ledger.applied();
        drop(state);
        self.applied.send_replace(ledger.applied());
        if grew {
            self.grown.send_replace(ledger.applied());
        }
    }

    /// The entry at `skipped` is skipped, as that at `by` orders. If its events were shown, this
    /// replica had been abandoned: those who watch it are told that the events before `by` are
    /// gone, because they may have seen some that no longer exist.
    pub(crate) fn undo(&self, skipped: u64, by: u64) {
        let mut state = self.lock();
        if state.applied >= skipped {
            state.events.clear();
            (state.begin, state.applied) = (Position::of_entry(by), by - 1);
        }
    }

    /// The index of the last entry whose events are on the board, now and whenever it changes.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Changes whenever events came to the board.
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// Counts a watch for as long as what is returned lives.
    pub(crate) fn watched(self: &Arc<Self>) -> Watched {
        self.tally.open.fetch_add(1, Ordering::Relaxed);
        Watched { board: Arc::clone(self) }
    }

    pub fn watches(&self) -> WatchReport {
        let Tally { open, sent, compacted } = &self.tally;
        let [open, sent, compacted] =
            [open, sent, compacted].map(|count| count.load(Ordering::Relaxed));
        WatchReport { open, sent, compacted }
    }

    /// Reads the events from a position on whose topics begin with `prefix`: about `bytes_max`
    /// bytes of them at most, but one at least.
    pub fn read(
        &self,
        from: Position,
        prefix: &str,
        bytes_max: usize,
    ) -> Result<Reading, Compacted> {
        let state = self.lock();
        if from < state.begin {
            return Err(Compacted { begin: state.begin });
        }
        let first = state.events.partition_point(|kept| kept.position < from);
        let mut reading = Reading { next: from, applied: state.applied, ..Reading::default() };
        let mut bytes = 0;
        for kept in state.events.range(first..).take(LOOKED_AT_MAX) {
            if kept.event.topic.starts_with(prefix) {
                bytes += kept.event.cost();
                if bytes > bytes_max && !reading.events.is_empty() {
                    return Ok(reading);
                }
                reading.events.push(kept.clone());
            }
            reading.next = kept.position.next();
        }
        if state.events.len() - first <= LOOKED_AT_MAX {
            reading.next = reading.next.max(Position::of_entry(state.applied + 1));
        }
        Ok(reading)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch that is counted; it counts as open until this is dropped.
pub(crate) struct Watched {
    board: Arc<EventBoard>,
}

impl Watched {
    /// Notes that the watcher was sent this many events.
    pub(crate) fn sent(&self, events: usize) {
        self.board.tally.sent.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// Notes that the watcher's position is no longer kept.
    pub(crate) fn compacted(&self) {
        self.board.tally.compacted.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.board.tally.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! Who watches a group, at one node after another, sees every event that was emitted, once and in
//! order; or is told from where on the events are kept. Planted: `events_go_back`.

use std::collections::BTreeMap;

use lockstep_core::apply::{KeptEvent, Position};
use lockstep_core::ids::GroupId;
use lockstep_host::group::event_board::{Compacted, EventBoard, Reading};

use super::{Checked, violated};
use crate::guest::History;
use crate::rng::Rng;

/// The most bytes that a watcher reads at once.
const READ_BYTES: usize = 2 << 10;

/// One watcher of each group, and what it has seen.
pub struct Watchers {
    rng: Rng,
    /// Where each one reads on.
    next: BTreeMap<GroupId, Position>,
    pub seen: u64,
    /// How often one found that events were no longer kept.
    pub compacted: u64,
}

impl Default for Watchers {
    fn default() -> Self {
        Self { rng: Rng::new(7), next: BTreeMap::new(), seen: 0, compacted: 0 }
    }
}

impl Watchers {
    /// The watcher of a group reads at one of the nodes that are up; `history` is what the guests
    /// emitted.
    pub fn read(&mut self, group: GroupId, boards: &[&EventBoard], history: &History) -> Checked {
        if boards.is_empty() {
            return Ok(());
        }
        let board = self.rng.pick(boards);
        let from = *self.next.entry(group).or_default();
        let next = match board.read(from, "", READ_BYTES) {
            Ok(reading) => {
                self.seen += reading.events.len() as u64;
                is_what_was_emitted(group, from, &reading, history)?;
                reading.next
            }
            Err(Compacted { begin }) if begin > from => {
                self.compacted += 1;
                begin
            }
            Err(Compacted { begin }) => {
                let what =
                    format!("group {group}: {from:?} is gone, but all from {begin:?} is kept");
                return violated("events", what);
            }
        };
        self.next.insert(group, next);
        Ok(())
    }
}

fn is_what_was_emitted(
    group: GroupId,
    from: Position,
    reading: &Reading,
    history: &History,
) -> Checked {
    let expected: Vec<_> = history.events.range(from..reading.next.max(from)).collect();
    let of = |kept: &KeptEvent| kept.position;
    let same = expected.len() == reading.events.len()
        && expected
            .iter()
            .zip(&reading.events)
            .all(|((position, event), kept)| **position == kept.position && **event == kept.event);
    if same && reading.next >= from {
        return Ok(());
    }
    let read: Vec<_> = reading.events.iter().map(of).collect();
    let expected: Vec<_> = expected.into_iter().map(|(position, _)| *position).collect();
    let what = format!(
        "group {group}: from {from:?} to {:?} a watcher read {read:?} instead of {expected:?}",
        reading.next
    );
    violated("events", what)
}

//! What a guest has of its memory, and from where on that is too much.
//!
//! The memory that a group's profile allows is the *hard* bound: a guest that asks for more traps,
//! on one replica sooner than on another. So commands are refused before, at a *soft* bound; those
//! that are to make room go on to a bound between the two.

use crate::fault::Refusal;
use crate::limits;

/// A guest's linear memory: what it has, and the most that it may have. Bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryUse {
    pub bytes: u64,
    pub most: u64,
}

impl MemoryUse {
    /// From here on commands are refused.
    pub fn soft(self) -> u64 {
        part(self.most, limits::MEMORY_SOFT_PERCENT)
    }

    /// From here on commands that make room are refused as well.
    pub fn relief(self) -> u64 {
        part(self.most, limits::MEMORY_RELIEF_PERCENT)
    }

    /// From here on somebody should look.
    pub fn warning(self) -> u64 {
        part(self.soft(), limits::MEMORY_WARNING_PERCENT)
    }

    /// The least that a rebuild must give back to pay.
    pub fn worthwhile(self) -> u64 {
        self.most / limits::REBUILD_GAIN_PARTS
    }

    pub fn is_high(self) -> bool {
        self.bytes >= self.soft()
    }

    /// Whether commands are taken, by the bound that holds for them.
    pub(crate) fn takes(self, relief: bool) -> bool {
        self.bytes < if relief { self.relief() } else { self.soft() }
    }

    /// How commands are refused that are not taken.
    pub(crate) fn refusal(self, relief: bool) -> Refusal {
        let bound = if relief { self.relief() } else { self.soft() };
        Refusal::MemoryHigh { bytes: self.bytes, bound, most: self.most }
    }

    /// Bytes of commands that may be under way. Nobody knows what a command takes of memory before
    /// it was applied; near the bound there is less and less that could add up.
    pub(crate) fn under_way_max(self, relief: bool) -> u64 {
        let bound = if relief { self.relief() } else { self.soft() };
        bound.saturating_sub(self.bytes) / limits::MEMORY_UNDER_WAY_PARTS
    }
}

/// What a guest had of memory, and how long a snapshot of its state was then. Bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footprint {
    /// 0 of a guest that begins.
    pub snapshot: u64,
    pub memory: u64,
}

impl Footprint {
    /// The memory of a guest with a snapshot of this length, if it were in proportion.
    fn at(self, length: u64) -> u64 {
        let memory = u128::from(self.memory) * u128::from(length);
        (memory / u128::from(self.snapshot.max(1))).try_into().unwrap_or(u64::MAX)
    }
}

/// What is known of how much memory a guest has after a restore.
#[derive(Default)]
pub(crate) struct Footprints {
    /// Of a guest that began.
    begun: u64,
    /// Of one that was just restored.
    restored: Option<Footprint>,
    /// Of one that was captured, with the least memory for its length.
    captured: Option<Footprint>,
}

impl Footprints {
    pub(crate) fn built(&mut self, footprint: Footprint) {
        match footprint.snapshot {
            0 => self.begun = footprint.memory,
            _ => self.restored = Some(footprint),
        }
    }

    /// A guest's memory never shrinks, so this is no less than what its state takes.
    pub(crate) fn captured(&mut self, footprint: Footprint) {
        let less = |known: Footprint| footprint.at(known.snapshot) <= known.memory;
        if footprint.snapshot > 0 && self.captured.is_none_or(less) {
            self.captured = Some(footprint);
        }
    }

    /// What a guest will have after a restore of a snapshot of this length, by what is known. If it
    /// is more in truth, that is known after one rebuild.
    pub(crate) fn after_restore(&self, length: u64) -> u64 {
        // A much smaller one tells what a guest has beside its state.
        if let Some(alike) = self.restored.filter(|known| known.snapshot >= length / 4) {
            return alike.at(length).max(self.begun);
        }
        let empty = self.restored.map_or(self.begun, |known| known.memory);
        let careful = empty.saturating_add(length.saturating_mul(2));
        self.captured.map_or(careful, |known| known.at(length).max(self.begun).min(careful))
    }
}

fn part(whole: u64, percent: u64) -> u64 {
    whole / 100 * percent + whole % 100 * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_lie_in_order() {
        for most in [1 << 20, 64 << 20, (1 << 30) + 1, 100, u64::MAX] {
            let memory = MemoryUse { bytes: 0, most };
            let bounds = [memory.warning(), memory.soft(), memory.relief(), most];
            assert!(bounds.is_sorted() && bounds[0] > 0, "{bounds:?}");
        }
        let at = |bytes| MemoryUse { bytes, most: 1000 };
        assert_eq!((at(0).warning(), at(0).soft(), at(0).relief()), (600, 750, 870));
        assert!(at(749).takes(false) && !at(750).takes(false) && at(750).is_high());
        assert!(at(869).takes(true) && !at(870).takes(true));
        assert_eq!((at(350).under_way_max(false), at(900).under_way_max(false)), (100, 0));
        assert_eq!(at(0).worthwhile(), 125);
    }

    #[test]
    fn what_a_restore_takes_is_known_from_the_last_ones() {
        let print = |(snapshot, memory)| Footprint { snapshot, memory };
        let check = |built: &[(u64, u64)], captured: &[(u64, u64)], length, expect: u64| {
            let mut known = Footprints::default();
            built.iter().for_each(|one| known.built(print(*one)));
            captured.iter().for_each(|one| known.captured(print(*one)));
            let after = known.after_restore(length);
            assert_eq!(after, expect, "{length} behind {built:?}, {captured:?}");
        };
        // Nothing is known but what a guest begins with: twice the snapshot beside that.
        check(&[], &[], 100, 200);
        check(&[(0, 30)], &[], 100, 230);
        // In proportion to one like it, be that larger or smaller; never less than at the start.
        check(&[(0, 30), (100, 300)], &[(100, 150)], 200, 600);
        check(&[(0, 30), (100, 300)], &[], 50, 150);
        check(&[(0, 30), (100, 300)], &[], 1, 30);
        // A much smaller one says little.
        check(&[(0, 30), (100, 300)], &[], 500, 1_300);
        // A guest that was captured had no less than its state takes; the least counts.
        check(&[(0, 30)], &[(100, 130), (50, 130), (200, 250)], 100, 125);
        check(&[(0, 30)], &[(10, 1_000)], 100, 230);
        check(&[], &[(0, 7)], 0, 0);
        check(&[(u64::MAX, u64::MAX)], &[], u64::MAX, u64::MAX);
    }
}

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
    }
}

//! The memory use of a guest, and the bounds below its limit.
//!
//! The memory that a group's profile allows is the *hard* bound: a guest that asks for more traps,
//! on some replicas sooner than on others. Commands are therefore refused from a lower, *soft*
//! bound on; commands that are to free memory are taken up to a bound between the two.

use crate::fault::Refusal;
use crate::limits;

/// A guest's linear memory: what it uses, and the most that it may have. Bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryUse {
    pub bytes: u64,
    pub most: u64,
}

impl MemoryUse {
    /// The bound from which commands are refused.
    pub fn soft(self) -> u64 {
        part(self.most, limits::MEMORY_SOFT_PERCENT)
    }

    /// The bound from which commands that free memory are refused as well.
    pub fn relief(self) -> u64 {
        part(self.most, limits::MEMORY_RELIEF_PERCENT)
    }

    /// Whether commands that free memory are refused from this bound on as well.
    pub fn refuses_all_from(self, bound: u64) -> bool {
        bound >= self.relief()
    }

    /// The bound from which an operator is warned.
    pub fn warning(self) -> u64 {
        part(self.soft(), limits::MEMORY_WARNING_PERCENT)
    }

    /// The least memory that a rebuild has to free to pay.
    pub fn worthwhile(self) -> u64 {
        self.most / limits::REBUILD_GAIN_PARTS
    }

    pub fn is_high(self) -> bool {
        self.bytes >= self.soft()
    }

    /// Whether a command is accepted; `relief` says that it is meant to free memory.
    pub(crate) fn takes(self, relief: bool) -> bool {
        self.bytes < if relief { self.relief() } else { self.soft() }
    }

    /// The refusal of a command that is not accepted.
    pub(crate) fn refusal(self, relief: bool) -> Refusal {
        let bound = if relief { self.relief() } else { self.soft() };
        Refusal::MemoryHigh { bytes: self.bytes, bound, most: self.most }
    }

    /// Bytes of commands that may be in flight. How much memory a command takes is known only once
    /// it was applied, so fewer commands are in flight the nearer the guest is to the bound.
    pub(crate) fn under_way_max(self, relief: bool) -> u64 {
        let bound = if relief { self.relief() } else { self.soft() };
        bound.saturating_sub(self.bytes) / limits::MEMORY_UNDER_WAY_PARTS
    }

    /// How many commands an entry may have. Their longest answers take half of the memory above the
    /// bounds; the other half is for the commands themselves.
    pub(crate) fn commands_max(self) -> usize {
        let above = self.most.saturating_sub(self.relief());
        let answers = above / 2 / limits::OUTCOME_BYTES_MAX as u64;
        usize::try_from(answers).unwrap_or(usize::MAX).max(1)
    }
}

/// The memory of a guest, and the length of a snapshot of its state at that time. Bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footprint {
    /// 0 for a guest that was built by `init`.
    pub snapshot: u64,
    pub memory: u64,
}

impl Footprint {
    /// The memory of a guest with a snapshot of this length, if memory is proportional to it.
    fn at(self, length: u64) -> u64 {
        let memory = u128::from(self.memory) * u128::from(length);
        (memory / u128::from(self.snapshot.max(1))).try_into().unwrap_or(u64::MAX)
    }
}

/// Measurements from which the memory of a guest after a restore is estimated.
#[derive(Default)]
pub(crate) struct Footprints {
    /// The memory of a guest after `init`.
    begun: u64,
    /// The footprint of the last guest that was restored, measured right after its restore.
    restored: Option<Footprint>,
    /// Of the footprints of captured guests, the one with the least memory for its snapshot's
    /// length.
    captured: Option<Footprint>,
}

impl Footprints {
    pub(crate) fn built(&mut self, footprint: Footprint) {
        match footprint.snapshot {
            0 => self.begun = footprint.memory,
            _ => self.restored = Some(footprint),
        }
    }

    /// Notes the footprint of a captured guest. A guest's memory never shrinks, so it is no less
    /// than what the guest's state takes.
    pub(crate) fn captured(&mut self, footprint: Footprint) {
        let less = |known: Footprint| footprint.at(known.snapshot) <= known.memory;
        if footprint.snapshot > 0 && self.captured.is_none_or(less) {
            self.captured = Some(footprint);
        }
    }

    /// Estimates the memory of a guest after a restore of a snapshot of this length. If the
    /// estimate is too low, one rebuild corrects it.
    pub(crate) fn after_restore(&self, length: u64) -> u64 {
        // A much smaller snapshot shows mostly what a guest has beside its state.
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
            assert_eq!(after, expect, "{length} after {built:?}, {captured:?}");
        };
        // Only the memory after `init` is known: twice the snapshot is added to it.
        check(&[], &[], 100, 200);
        check(&[(0, 30)], &[], 100, 230);
        // In proportion to a similar snapshot, larger or smaller; never less than after `init`.
        check(&[(0, 30), (100, 300)], &[(100, 150)], 200, 600);
        check(&[(0, 30), (100, 300)], &[], 50, 150);
        check(&[(0, 30), (100, 300)], &[], 1, 30);
        // A much smaller snapshot is no basis for a proportion.
        check(&[(0, 30), (100, 300)], &[], 500, 1_300);
        // A captured guest had at least what its state takes; the least such footprint counts.
        check(&[(0, 30)], &[(100, 130), (50, 130), (200, 250)], 100, 125);
        check(&[(0, 30)], &[(10, 1_000)], 100, 230);
        check(&[], &[(0, 7)], 0, 0);
        check(&[(u64::MAX, u64::MAX)], &[], u64::MAX, u64::MAX);
    }
}

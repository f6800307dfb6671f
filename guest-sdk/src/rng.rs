//! Random numbers that are the same on every replica.
//!
//! The generator is xoroshiro128++ (Blackman and Vigna), seeded from the log. Not for secrets: the
//! numbers follow from the log.

/// A pseudo-random generator. In a state machine, get one from `Context::rng`; in `SelfTest` and in
/// tests, from [`Rng::from_number`].
#[derive(Clone, Debug)]
pub struct Rng {
    low: u64,
    high: u64,
}

impl Rng {
    /// A generator that yields the same numbers for the same number, and others for another one:
    /// what `SelfTest::command` makes up its commands with.
    ///
    /// ```
    /// # use lockstep_guest::*;
    /// fn command(number: u64) -> Vec<u8> {
    ///     let mut rng = Rng::from_number(number);
    ///     let name = *rng.pick(&["ann", "bob"]);
    ///     format!("open {name} {}", rng.below(100)).into()
    /// }
    /// assert_eq!(command(7), command(7));
    /// ```
    pub fn from_number(number: u64) -> Self {
        Self::new((number, 0), 0)
    }

    /// A generator that yields the same numbers for the same seed and position.
    pub(crate) fn new(seed: (u64, u64), position: u32) -> Self {
        let low = scramble(seed.0 ^ scramble(u64::from(position)));
        let high = scramble(seed.1.wrapping_add(low));
        // The generator would never leave the state of only zeros.
        if low == 0 && high == 0 { Self { low: 1, high: 0 } } else { Self { low, high } }
    }

    /// The next number, any of them equally likely.
    pub fn next_u64(&mut self) -> u64 {
        let number = self.low.wrapping_add(self.high).rotate_left(17).wrapping_add(self.low);
        self.high ^= self.low;
        self.low = self.low.rotate_left(49) ^ self.high ^ (self.high << 21);
        self.high = self.high.rotate_left(28);
        number
    }

    /// A number below `bound`, each equally likely. Panics when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        // The largest multiple of the bound that fits; numbers from there on would favour small
        // results.
        let fair = u64::MAX - u64::MAX % bound;
        loop {
            let number = self.next_u64();
            if number < fair {
                return number % bound;
            }
        }
    }

    /// One of these, each equally likely. Panics when there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let place = usize::try_from(self.below(items.len() as u64));
        &items[place.expect("a place in a slice fits")]
    }
}

/// A bijection that spreads every bit of its argument over the whole result (splitmix64).
fn scramble(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are part of what is replicated: they may not change between versions.
    #[test]
    fn golden_numbers() {
        let mut rng = Rng { low: 1, high: 2 };
        let numbers = [rng.next_u64(), rng.next_u64(), rng.next_u64()];
        assert_eq!(numbers, [393_217, 669_327_710_093_319, 1_732_421_326_133_921_491]);
    }

    /// Two commands of one entry do not draw the same numbers.
    #[test]
    fn positions_differ() {
        assert_ne!(Rng::new((5, 6), 0).next_u64(), Rng::new((5, 6), 1).next_u64());
        assert_eq!(Rng::new((5, 6), 1).next_u64(), Rng::new((5, 6), 1).next_u64());
    }

    /// `below` returns every number below the bound and no other.
    #[test]
    fn below_is_below() {
        let mut rng = Rng::new((0, 0), 0);
        let mut seen = [false; 6];
        for _ in 0..1000 {
            seen[usize::try_from(rng.below(6)).expect("below 6")] = true;
        }
        assert_eq!(seen, [true; 6]);
    }

    /// `pick` returns every item.
    #[test]
    fn each_item_is_picked() {
        let mut rng = Rng::from_number(1);
        let mut seen: Vec<i32> = (0..100).map(|_| *rng.pick(&[3, 4, 5])).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [3, 4, 5]);
    }
}

//! How long calls took: counted in buckets that are at most 1/64 wide of what they hold.

/// Buckets in which the width is the same.
const LINEAR: u64 = 64;
/// Up to 2^36 µs, 19 hours.
const BUCKETS: usize = 31 * LINEAR as usize;

/// Durations in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, micros: u64) {
        self.buckets[bucket(micros).min(BUCKETS - 1)] += 1;
        self.count += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(to, from)| *to += from);
        self.count += other.count;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The time, in microseconds, that this part of the calls did not exceed; 0 without calls.
    pub(crate) fn quantile(&self, part: f64) -> u64 {
        let rank = (self.count as f64 * part).ceil() as u64;
        let mut passed = 0;
        for (number, held) in self.buckets.iter().enumerate() {
            passed += held;
            if *held > 0 && passed >= rank {
                return highest(number);
            }
        }
        0
    }
}

/// The bucket of a value: linear below 2 × [`LINEAR`], then [`LINEAR`] buckets for each doubling.
fn bucket(micros: u64) -> usize {
    let doublings = u64::from((micros / LINEAR).checked_ilog2().unwrap_or(0));
    (doublings * LINEAR + (micros >> doublings)) as usize
}

/// The highest value of a bucket.
fn highest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doublings = (bucket / LINEAR).saturating_sub(1);
    ((bucket - doublings * LINEAR + 1) << doublings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for number in 0..BUCKETS - 1 {
            assert_eq!(bucket(highest(number)), number);
            assert_eq!(bucket(highest(number) + 1), number + 1);
        }
    }

    #[test]
    fn quantiles_are_close() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0, "there is nothing to be told");
        (1..=100_000).for_each(|micros| histogram.record(micros));
        for (part, exact) in [(0.5, 50_000.0), (0.99, 99_000.0), (1.0, 100_000.0)] {
            let found = histogram.quantile(part) as f64;
            assert!((exact..exact * 1.02).contains(&found), "{part}: {found}");
        }
    }

    #[test]
    fn sums_hold_what_both_held() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.record(10);
        other.record(1_000);
        one.add(&other);
        assert_eq!((one.count(), one.quantile(0.5)), (2, 10));
        assert!(one.quantile(1.0) >= 1_000);
    }
}

//! How long calls took.

use hdrhistogram::Histogram as Counts;

/// The longest time that is recorded as it is, in microseconds: 19 hours.
const LONGEST: u64 = 1 << 36;

/// Durations in microseconds, each to two significant digits.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(Counts<u64>);

impl Default for Histogram {
    fn default() -> Self {
        Self(Counts::new_with_max(LONGEST, 2).expect("the bounds are those of the crate"))
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, micros: u64) {
        self.0.saturating_record(micros);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time, in microseconds, that this fraction of the calls did not exceed; 0 without calls.
    pub(crate) fn quantile(&self, part: f64) -> u64 {
        self.0.value_at_quantile(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_close() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0, "no call was recorded");
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
        other.record(u64::MAX);
        one.add(&other);
        assert_eq!((one.count(), one.quantile(0.5)), (2, 10));
        assert!(one.quantile(1.0) >= LONGEST);
    }
}

//! When a guest could not be built for a temporary cause, the replica tries again by itself, at
//! growing intervals.
//!
//! - The node lacked memory or descriptors, and the replica is halted.
//! - The recovery points or the log could not be read, and the replica needs a snapshot. What
//!   failed once may be readable now. The need stays until there is a guest, so that the peers are
//!   still asked and what they send is taken.

use crate::limits;

/// When to build the guest again.
#[derive(Default)]
pub(super) struct Retry {
    at: Option<u64>,
    /// How many builds failed in a row.
    failed: u32,
}

impl Retry {
    pub(super) fn failed(&mut self, now: u64) {
        self.at = Some(now + (limits::BUILD_RETRY_TICKS << self.failed));
        self.failed = (self.failed + 1).min(limits::BUILD_RETRY_DOUBLINGS_MAX);
    }

    /// Stops trying: there is a guest, or it failed for a lasting cause.
    pub(super) fn over(&mut self) {
        *self = Self::default();
    }

    /// Whether the guest is to be built again now; true only once for each attempt.
    pub(super) fn take_due(&mut self, now: u64) -> bool {
        self.at.take_if(|at| now >= *at).is_some()
    }
}

//! Replicas that applied the same entries have the same state, compared by a chain of hashes over
//! all that was applied, restarts and restores included. Planted: `clock_in_apply`.

use super::Checked;
use crate::guest::{SharedObserved, lock};

pub fn agree(observed: &SharedObserved) -> Checked {
    lock(observed).violation.clone().map_or(Ok(()), Err)
}

//! Replicas that applied the same entries have the same state, compared by a chain of hashes over
//! all that was applied, restarts and restores included. Planted: `clock_in_apply`.

use super::{Checked, violated};
use crate::guest::{SharedObserved, lock};

pub fn agree(observed: &SharedObserved) -> Checked {
    match &lock(observed).violation {
        None => Ok(()),
        Some(why) => violated("states", why.clone()),
    }
}

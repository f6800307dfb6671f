//! Equal index, equal state: a chain of hashes over everything applied, restarts and restores
//! included. Planted: `clock_in_apply`.

use super::{Checked, violated};
use crate::guest::{SharedObserved, lock};

pub fn agree(observed: &SharedObserved) -> Checked {
    match &lock(observed).violation {
        None => Ok(()),
        Some(why) => violated("states", why.clone()),
    }
}

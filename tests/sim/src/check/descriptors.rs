//! A log that can open nothing waits until it can. Planted: `descriptors_end_the_log`.

use super::{Checked, violated};

/// A replica stops because its log failed like this.
pub fn waited_for(why: &str) -> Checked {
    match why.contains("os error 24") {
        true => violated("descriptors", why),
        false => Ok(()),
    }
}

//! A log that can open no file waits until it can. Planted: `descriptors_end_the_log`.

use super::{Checked, violated};

/// A replica stopped because its log failed with this message. The cause must not be a lack of
/// descriptors.
pub fn waited_for(why: &str) -> Checked {
    if why.contains("os error 24") { violated("descriptors", why) } else { Ok(()) }
}

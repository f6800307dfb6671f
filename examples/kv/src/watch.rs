//! Tells changes as events, if the configuration says so.
//!
//! The topic is `kv/` and the key; the payload is `set VALUE`, `long BYTES` or `del`.
//!
//! * Every change is told, with the value as it is or not at all: half of a value would look like
//!   a whole one. A value that does not fit is told by its length; `get` has it.
//! * A topic is text and shorter than the longest key, so a store that is watched refuses keys that
//!   do not fit. To leave such changes out silently would be worse.

use lockstep_guest::{Failure, PAYLOAD_BYTES_MAX, TOPIC_BYTES_MAX, emit};

const TOPIC_PREFIX: &str = "kv/";
const SET: &[u8] = b"set ";

/// The longest key of a store that is watched, in bytes.
pub const WATCHED_KEY_BYTES_MAX: usize = TOPIC_BYTES_MAX - TOPIC_PREFIX.len();

/// Whether this configuration asks for events.
pub(crate) fn configured(config: &[u8]) -> Result<bool, Failure> {
    match config {
        b"" => Ok(false),
        b"watch" => Ok(true),
        _ => Err(Failure::InvalidConfig("expected nothing or `watch`".to_owned())),
    }
}

/// Refuses a key that cannot be told.
pub(crate) fn check_key(key: &[u8]) -> Result<(), String> {
    let bytes = key.len();
    if bytes > WATCHED_KEY_BYTES_MAX {
        return Err(format!(
            "a key has {bytes} bytes; the limit is {WATCHED_KEY_BYTES_MAX} in a store that is \
             watched"
        ));
    }
    match str::from_utf8(key) {
        Ok(_) => Ok(()),
        Err(_) => Err("a key is not UTF-8, as it must be in a store that is watched".to_owned()),
    }
}

/// Tells that the key now has this value.
pub(crate) fn tell_set(key: &[u8], value: &[u8]) {
    let payload = if SET.len() + value.len() <= PAYLOAD_BYTES_MAX {
        [SET, value].concat()
    } else {
        format!("long {}", value.len()).into_bytes()
    };
    emit(&topic(key), &payload);
}

/// Tells that the key is gone.
pub(crate) fn tell_del(key: &[u8]) {
    emit(&topic(key), b"del");
}

/// Of a key that was checked.
fn topic(key: &[u8]) -> String {
    format!("{TOPIC_PREFIX}{}", str::from_utf8(key).expect("keys are checked"))
}

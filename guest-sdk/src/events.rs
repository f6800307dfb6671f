//! Events: what clients may watch.
//!
//! Nothing flows back. On native targets events go to the harness, see
//! `testing::Harness::check_events`.

/// The longest topic of an event, in bytes.
pub const TOPIC_BYTES_MAX: usize = 256;

/// The longest payload of an event, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Emits an event. The group keeps the newest ones, replicated; clients watch all topics with a
/// prefix.
///
/// Call it in `apply` and `wake` only. Elsewhere, and with a topic over [`TOPIC_BYTES_MAX`] or a
/// payload over [`PAYLOAD_BYTES_MAX`], it stops the replica, as a panic would.
#[cfg(target_arch = "wasm32")]
pub fn emit(topic: &str, payload: &[u8]) {
    crate::component::bindings::lockstep::fsm::events::emit(topic, payload);
}

/// Emits an event. The group keeps the newest ones, replicated; clients watch all topics with a
/// prefix.
///
/// Call it in `apply` and `wake` only. Elsewhere, and with a topic over [`TOPIC_BYTES_MAX`] or a
/// payload over [`PAYLOAD_BYTES_MAX`], it stops the replica, as a panic would. On native targets it
/// does panic.
#[cfg(not(target_arch = "wasm32"))]
pub fn emit(topic: &str, payload: &[u8]) {
    crate::native::emit(topic, payload);
}

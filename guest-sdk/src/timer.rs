//! The timer: how a state machine does something later without a command.
//!
//! There is one. When the log's time has reached the deadline, `Wake::wake` is called, once, on
//! every replica; commands with a later time may be applied before it. A machine with many
//! deadlines uses [`Deadlines`](crate::Deadlines). The deadline is replicated and part of every
//! snapshot, so `restore` leaves it alone.
//!
//! Call both functions in `init`, `apply` and `wake` only. Elsewhere they stop the replica, as a
//! panic would; on native targets they do panic.

/// Sets the timer to a time of the log, instead of what it was set to. A time in the past is
/// reached at once; but `wake` is called at most ten times a second.
#[cfg(target_arch = "wasm32")]
pub fn wake_at(time_ms: u64) {
    crate::component::bindings::lockstep::fsm::timer::wake_at(time_ms);
}

/// Sets the timer to a time of the log, instead of what it was set to. A time in the past is
/// reached at once; but `wake` is called at most ten times a second.
#[cfg(not(target_arch = "wasm32"))]
pub fn wake_at(time_ms: u64) {
    crate::native::set_timer("timer::wake_at", Some(time_ms));
}

/// Sets the timer to no time.
#[cfg(target_arch = "wasm32")]
pub fn cancel() {
    crate::component::bindings::lockstep::fsm::timer::cancel();
}

/// Sets the timer to no time.
#[cfg(not(target_arch = "wasm32"))]
pub fn cancel() {
    crate::native::set_timer("timer::cancel", None);
}

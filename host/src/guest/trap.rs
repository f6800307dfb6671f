//! Turns an error of wasmtime into a [`GuestFault`].
//!
//! - The class tells where the cause is: in the guest's code (trap, stack), in a limit (fuel,
//!   memory), or on this machine.
//! - A fault that the host caused is [`FaultClass::Host`], even if it ended the guest by a trap.
//! - The message has a bounded length, and says what happened, what the guest logged last, and
//!   where it happened, in this order.

use std::fmt::Write as _;

use lockstep_core::fault::{FaultClass, GuestFault};
use wasmtime::{Trap, WasmBacktrace, WasmtimeBug};

use super::imports::{HostState, MayEmit, Misuse};
use super::text::bounded;

/// Longest message of a fault, bytes.
const MESSAGE_BYTES_MAX: usize = 2048;
/// Longest part of a message that the guest may fill with text of its own, bytes.
const GUEST_WORDS_BYTES_MAX: usize = 1024;
/// Frames of the backtrace in a message.
const FRAMES_MAX: usize = 8;
/// Longest function name in a message, bytes: mangled names can be of any length.
const FRAME_BYTES_MAX: usize = 96;

/// A call into the guest, and the entry that it concerns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) index: Option<u64>,
}

impl Call {
    pub(crate) fn at(name: &'static str, index: u64) -> Self {
        Self { name, index: Some(index) }
    }

    pub(crate) fn anywhere(name: &'static str) -> Self {
        Self { name, index: None }
    }

    /// What the guest may emit in this call: every replica makes these calls, and no others, for an
    /// entry.
    pub(crate) fn may_emit(self) -> MayEmit {
        match self.name {
            "apply" | "wake" => MayEmit::All,
            "init" => MayEmit::Timer,
            _other => MayEmit::Nothing,
        }
    }

    /// A fault in this call.
    pub(crate) fn fault(self, class: FaultClass, message: impl AsRef<str>) -> GuestFault {
        let message = bounded(message.as_ref(), MESSAGE_BYTES_MAX).into_owned();
        GuestFault { class, call: self.name, index: self.index, message }
    }
}

/// The fault for an error that ended a call into the guest.
pub(crate) fn fault(call: Call, error: &wasmtime::Error, state: &HostState) -> GuestFault {
    let class = classify(error, state);
    let mut message = match class {
        FaultClass::Host => state.host_failure().map_or_else(|| cause(error), str::to_owned),
        FaultClass::OutOfMemory => state.limiter.refused().unwrap_or("no memory").to_owned(),
        FaultClass::OutOfFuel => "the guest used up the fuel of this call: an endless loop, or \
                                  more work than the limit allows"
            .to_owned(),
        FaultClass::Trap | FaultClass::StackOverflow | FaultClass::Refused => cause(error),
    };
    if let Some(words) = &state.last_error {
        let words = bounded(words, GUEST_WORDS_BYTES_MAX);
        let _ = write!(message, "; the guest said: {words}");
    }
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        message.push_str(&frames(backtrace));
    }
    call.fault(class, message)
}

fn classify(error: &wasmtime::Error, state: &HostState) -> FaultClass {
    if state.host_failure().is_some() || error.is::<WasmtimeBug>() {
        return FaultClass::Host;
    }
    if error.is::<wasmtime::OutOfMemory>() {
        return FaultClass::Host;
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => FaultClass::OutOfFuel,
        Some(Trap::StackOverflow) => FaultClass::StackOverflow,
        // Nothing interrupts a guest: epochs are off.
        Some(Trap::Interrupt) => FaultClass::Host,
        // A refused growth ends the call with an error of the limiter's own, which is not a `Trap`.
        _ if state.limiter.refused().is_some() => FaultClass::OutOfMemory,
        _ => FaultClass::Trap,
    }
}

/// The innermost cause, in our words where wasmtime's would tell a plugin's author little.
fn cause(error: &wasmtime::Error) -> String {
    if let Some(misuse) = error.downcast_ref::<Misuse>() {
        return misuse.to_string();
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::UnreachableCodeReached) => {
            "the guest aborted (`unreachable`; a panic)".to_owned()
        }
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    }
}

/// The innermost functions, without those that a Rust panic passes through before it traps.
fn frames(backtrace: &WasmBacktrace) -> String {
    const PANICS: [&str; 4] = ["panic", "short_backtrace", "begin_unwind", "alloc_error"];
    let of_a_panic = |frame: &&wasmtime::FrameInfo| {
        frame.func_name().is_some_and(|name| PANICS.iter().any(|part| name.contains(part)))
    };
    let mut text = String::new();
    for frame in backtrace.frames().iter().skip_while(of_a_panic).take(FRAMES_MAX) {
        text.push_str(if text.is_empty() { "; in " } else { " < " });
        match frame.func_name() {
            Some(name) => text.push_str(&bounded(name, FRAME_BYTES_MAX)),
            None => {
                let _ = write!(text, "function {}", frame.func_index());
            }
        }
    }
    text
}

//! From what wasmtime reports to a [`GuestFault`].
//!
//! - A class says who has to act: the author (trap, stack), the limits (fuel, memory), the machine.
//! - Whatever the host caused is [`FaultClass::Host`], even if it reached the guest as a trap.
//! - The message is bounded and says, in this order: what happened, what the guest said last,
//!   where.

use std::borrow::Cow;
use std::fmt::Write as _;

use lockstep_core::fault::{FaultClass, GuestFault};
use wasmtime::{Trap, WasmBacktrace, WasmtimeBug};

use super::imports::{HostState, Misuse};

/// Longest message of a fault, bytes.
const MESSAGE_BYTES_MAX: usize = 2048;
/// Longest part of it that the guest may fill with its own words, bytes.
const GUEST_WORDS_BYTES_MAX: usize = 1024;
/// Frames in a message.
const FRAMES_MAX: usize = 8;
/// Longest function name in a backtrace, bytes: mangled names can be endless.
const FRAME_BYTES_MAX: usize = 96;

/// Which call into the guest, and at which entry.
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

    /// A fault in this call.
    pub(crate) fn fault(self, class: FaultClass, message: impl AsRef<str>) -> GuestFault {
        let message = bounded(message.as_ref(), MESSAGE_BYTES_MAX).into_owned();
        GuestFault { class, call: self.name, index: self.index, message }
    }
}

/// The fault behind an error that a call into the guest ended with.
pub(crate) fn fault(call: Call, error: &wasmtime::Error, state: &HostState) -> GuestFault {
    let class = classify(error, state);
    let mut message = match class {
        FaultClass::Host => state.host_failure().map_or_else(|| cause(error), str::to_owned),
        FaultClass::OutOfMemory => state.limiter.refused().unwrap_or("no memory").to_owned(),
        FaultClass::OutOfFuel => "it used up the fuel of this call: an endless loop, or more work \
                                  than the limit allows"
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
        // Nothing interrupts: epochs are off.
        Some(Trap::Interrupt) => FaultClass::Host,
        // A guest that was refused memory aborts, which looks like any other trap.
        _ if state.limiter.refused().is_some() => FaultClass::OutOfMemory,
        _ => FaultClass::Trap,
    }
}

/// The innermost reason, in words of ours where wasmtime's say little to a plugin's author.
fn cause(error: &wasmtime::Error) -> String {
    if let Some(misuse) = error.downcast_ref::<Misuse>() {
        return misuse.to_string();
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::UnreachableCodeReached) => "it aborted (`unreachable`; a panic)".to_owned(),
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    }
}

/// The innermost functions, without what a Rust panic passes through before it traps.
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

/// The text, cut to so many bytes.
pub(crate) fn bounded(text: &str, bytes_max: usize) -> Cow<'_, str> {
    const CUT: &str = " …";
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(bytes_max.saturating_sub(CUT.len()));
    Cow::Owned(format!("{}{CUT}", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        let check = |text: &str, bytes_max, expect: &str| {
            assert_eq!(bounded(text, bytes_max), expect);
            assert!(expect.len() <= bytes_max);
        };
        check("short", 5, "short");
        check("too long", 7, "too …");
        check("äöüäöü", 9, "äö …");
    }
}

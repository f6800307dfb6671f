//! Messages for the replica's log.
//!
//! Nothing flows back: whether a message is shown, shortened or dropped is up to the replica and
//! cannot change what the state machine does; it costs the same fuel in any case. On native targets
//! messages go to standard error.

/// How important a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every step.
    Trace,
    /// What helps to find a bug.
    Debug,
    /// What an operator may want to know.
    Info,
    /// What an operator should look into.
    Warn,
    /// What went wrong.
    Error,
}

/// Hands a message to the replica's log. The macro [`log!`](crate::log!) also formats it.
#[cfg(target_arch = "wasm32")]
pub fn log(level: Level, target: &str, message: &str) {
    use crate::component::bindings::lockstep::fsm::host;
    let level = match level {
        Level::Trace => host::Level::Trace,
        Level::Debug => host::Level::Debug,
        Level::Info => host::Level::Info,
        Level::Warn => host::Level::Warn,
        Level::Error => host::Level::Error,
    };
    host::log(level, target, message);
}

/// Hands a message to the replica's log. The macro [`log!`](crate::log!) also formats it.
#[cfg(not(target_arch = "wasm32"))]
pub fn log(level: Level, target: &str, message: &str) {
    eprintln!("{level:?} {target}: {message}");
}

/// Formats a message and hands it to the replica's log: `log!(Level::Info, "{n} accounts")`.
#[macro_export]
macro_rules! log {
    ($level:expr, $($message:tt)+) => {
        $crate::log($level, ::core::module_path!(), &::std::format!($($message)+))
    };
}

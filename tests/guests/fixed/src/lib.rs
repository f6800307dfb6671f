//! The guest `next`, without its bug.

#![cfg(target_arch = "wasm32")]

#[path = "../../next/src/machine.rs"]
mod machine;

/// The version that is built here.
pub(crate) const VERSION: &str = "3.0.0";
pub(crate) const NUMBER: u64 = 3;

lockstep_guest::export!(machine::Machine);

//! One state machine, the example `kv`, in Rust, C, JavaScript and Python.
//!
//! What must hold is in [`agree`] for one process, and in [`group`] for groups of processes.
#![forbid(unsafe_code)]

pub mod agree;
pub mod build;
pub mod commands;
pub mod group;
pub mod measure;
#[cfg(test)]
mod tests;

//! Hosts replicated state machines: raft, log, snapshots, transport, API and command line.
//!
//! Everything non-deterministic enters through four doors: [`fs::Fs`], [`clock::Clock`],
//! [`transport::Transport`] and [`guest::Guest`].
#![deny(unsafe_code)]
// `print!` and its kin panic if the reader is gone and block if it is slow; `logging` has
// replacements.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub(crate) mod budget;
pub mod bulk;
pub mod cli;
pub mod clock;
pub mod config;
pub mod data_dir;
pub(crate) mod disk_watch;
pub mod fs;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod group;
pub mod guest;
pub mod kit;
pub(crate) mod logging;
pub mod metrics;
pub mod modules;
pub mod node;
pub(crate) mod panics;
pub mod recover;
pub mod rng;
pub mod router;
pub mod rpc;
pub(crate) mod starting;
pub mod store;
pub mod transport;
pub mod wal;

//! The one test binary that links wasmtime and the whole host.
//!
//! Needs the guests (`cargo xtask guests`) and the binary that the end-to-end tests start
//! (`cargo build -p lockstep-host --bin lockstep`); `cargo xtask test` builds both first.

mod command_line;
mod configuration;
mod crowds;
mod data_dir;
mod divergence;
mod documents;
mod faults;
mod guests;
mod kit;
mod lifecycle;
mod logging;
mod memory;
mod metrics;
mod modules;
mod projects;
mod promises;
mod rejoin;
mod requests;
mod services;
mod snapshots;
mod solo;
mod stalls;
mod start;
mod streams;
mod timers;
mod upgrades;
mod ways_on;

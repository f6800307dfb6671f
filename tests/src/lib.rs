//! End-to-end tests and measurements of Lockstep: real processes on loopback, killed and counted.
//!
//! The library drives clusters; `tests/it` and the programs in `src/bin` say what must hold.
#![forbid(unsafe_code)]

pub mod bank;
pub mod bench;
pub mod breaks;
pub mod cli;
pub mod cluster;
pub mod crowd;
pub mod demo;
pub mod disk;
pub mod filled;
pub mod killloop;
pub mod leases;
pub mod observe;
pub mod process;
pub mod proxy;
pub mod rng;
pub mod stall;
pub mod steady;
pub mod tell;
pub mod tight;
pub mod transfer;
pub mod writers;

//! The pure part of Lockstep: what a replica of a group decides.
//!
//! Everything here is a function of its arguments. Time arrives as [`Event::Tick`], randomness as a
//! seed, bytes as arguments; work for the host leaves as [`Effect`] values. The crate's manifest
//! proves it: no dependency opens a file, reads a clock or starts a thread.
//!
//! [`Event::Tick`]: group::Event::Tick
//! [`Effect`]: group::Effect
#![forbid(unsafe_code)]

pub mod amendment;
pub mod apply;
pub mod codec;
pub mod entry;
pub mod fault;
pub mod group;
pub mod ids;
pub mod limits;
pub mod memory;
pub mod mutant;
pub mod recovery_state;
pub mod retention;
pub mod snapshot;
pub mod wal;

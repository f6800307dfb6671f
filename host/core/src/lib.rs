//! The pure part of Lockstep: what a replica of a group decides.
//!
//! Everything here is a function of its arguments. Time arrives as [`Event::Tick`], chance as a
//! seed, bytes as arguments; what is to be done leaves as [`Effect`] values. The crate's manifest
//! is the proof: nothing it depends on opens a file, reads a clock or starts a thread.
//!
//! [`Event::Tick`]: group::Event::Tick
//! [`Effect`]: group::Effect
#![forbid(unsafe_code)]

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

//! The author's kit: what helps to write a state machine before it is replicated.
//!
//! - [`trial`] looks for cases in which a state machine breaks its contract, and [`shrink`]s them.
//! - [`replay`] replays what happened in a group, from a stopped node's log or an [`export`] of it.
//! - The parts are small: a [`player`] is one replica in memory, a [`case`] a list of steps.
//!
//! Everything here works with any [`GuestModule`](crate::guest::GuestModule), and with the ledger
//! and the entries of the server: what a case does, a log could do. Nothing here prints; `cli`
//! does.

pub mod bench;
pub mod case;
pub mod compare;
pub mod export;
pub mod hashing;
pub mod inspect;
pub mod past;
pub mod player;
pub mod property;
pub mod recording;
pub mod replay;
pub mod seen;
pub mod shrink;
pub mod solo;
pub mod source;
pub mod templates;
#[cfg(test)]
mod tests;
pub mod text;
pub mod trial;

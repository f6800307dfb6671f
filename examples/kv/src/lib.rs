//! A replicated key-value store with text commands.
//!
//! A key is at least one and at most [`KEY_BYTES_MAX`] bytes, none of them a space or a control
//! character. A value is any bytes, spaces and newlines included; where a command ends with one,
//! it is the rest of the command. Words are separated by exactly one space.
//!
//! Commands, and what they answer:
//!
//! * `set K V`: ok, the value before; empty when there was none;
//! * `del K`: ok, the value before; empty when there was none;
//! * `cas K OLD NEW`: ok, OLD; rejected unless K holds exactly OLD, which is a word. An empty OLD
//!   (two spaces) asks that there is no K, or an empty one;
//! * `incr K`: ok, the new number; no K counts as 0; rejected unless K holds a number.
//!
//! Queries:
//!
//! * `get K`: the value; an error when there is none;
//! * `scan PREFIX LIMIT`: a line `K V` for each of the first LIMIT keys that begin with PREFIX
//!   (which may be empty), in order; a backslash in V is written `\\`, a newline `\n`;
//! * `len`: the number of keys.
//!
//! The snapshot is canonical: the number of keys, then each key and its value in the order of the
//! keys, each of the two with its length before it.

mod command;
mod store;

pub use command::KEY_BYTES_MAX;
pub use store::Kv;

lockstep_guest::export!(Kv);

#[cfg(test)]
mod tests;

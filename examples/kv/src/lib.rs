//! A replicated key-value store with text commands.
//!
//! A key has 1 to [`KEY_BYTES_MAX`] bytes, none of them a space or a control character. A value is
//! any bytes, including spaces and newlines: the value that ends a command is all the rest of it.
//! Words are separated by exactly one space.
//!
//! Commands and their answers:
//!
//! * `set K V`: ok, the previous value; empty if there was none;
//! * `del K`: ok, the previous value; empty if there was none;
//! * `cas K OLD NEW`: ok, OLD; rejected unless K holds exactly OLD, which is a word. An empty OLD
//!   (two spaces) matches if there is no K, or if its value is empty;
//! * `incr K`: ok, the new number; a missing K counts as 0; rejected unless K holds a number.
//!
//! Queries:
//!
//! * `get K`: the value; an error if there is none;
//! * `scan PREFIX LIMIT`: a line `K V` for each of the first LIMIT keys that begin with PREFIX
//!   (which may be empty), in order; a backslash in V is written `\\`, a newline `\n`;
//! * `len`: the number of keys.
//!
//! The configuration is empty, or `watch`. Then each change is an event, with the topic `kv/K` and
//! the payload `set VALUE`, or `del`. A command that stores the value that was there is a change,
//! and `del` of a key that was not there is none. If `set VALUE` is longer than
//! [`PAYLOAD_BYTES_MAX`](lockstep_guest::PAYLOAD_BYTES_MAX), the payload is `long BYTES`, the
//! length of the value. A key then has at most [`WATCHED_KEY_BYTES_MAX`] bytes and is UTF-8, so
//! that it fits into a topic; commands with another key are rejected.
//!
//! The snapshot is canonical: the number of keys, then each key and its value in the order of the
//! keys. Each key and each value is preceded by its length.

mod command;
mod store;
mod watch;

pub use command::KEY_BYTES_MAX;
pub use store::Kv;
pub use watch::WATCHED_KEY_BYTES_MAX;

lockstep_guest::export!(Kv);

#[cfg(test)]
mod tests;

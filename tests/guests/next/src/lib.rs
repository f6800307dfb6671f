//! The next version of the example `kv`, for tests of upgrades. It has a bug: it panics on
//! `set poison V`. What follows it, `fixed`, has the same source without the bug.
//!
//! Commands, answered as `kv` does: `set K V`, `incr K`. Queries: `get K`, and `version`, which
//! says 2 (or 3) and how many versions the state came through.
//!
//! The snapshot is of format 2: how many versions the state came through, then what `kv` writes.
//! `restore` reads both. It panics if there is a key `trap-in-restore`, never ends if there is one
//! `endless-restore`, and refuses if there is one `refuse-restore`.

#![cfg(target_arch = "wasm32")]

mod machine;

/// The version that is built here.
pub(crate) const VERSION: &str = "2.0.0";
pub(crate) const NUMBER: u64 = 2;

lockstep_guest::export!(machine::Machine);

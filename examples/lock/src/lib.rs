//! Named locks: leases that expire by the timer, with fencing tokens and queues.
//!
//! A lock is a name; it is free, or one owner holds it for a time, its *lease*. Names and owners
//! have 1 to [`WORD_BYTES_MAX`] bytes of UTF-8, none of them a space or a control character. Words
//! are separated by exactly one space. Times are times of the log, in milliseconds since 1970.
//!
//! Commands and their answers:
//!
//! * `acquire NAME OWNER TTL_MS`: ok, the fencing token; rejected if the lock is held. Puts nobody
//!   in the queue;
//! * `wait NAME OWNER TTL_MS`: ok, `granted TOKEN` if the lock is free, otherwise `waiting
//!   POSITION`, 1 being the next. The lease begins when the lock is granted. Sent again by an owner
//!   that waits, it keeps the place and replaces the TTL;
//! * `renew NAME TOKEN TTL_MS`: ok, the time until which the lease goes now;
//! * `release NAME TOKEN`: ok, `released`;
//! * `cancel NAME OWNER`: ok, `cancelled`; the owner no longer waits.
//!
//! `renew` and `release` are rejected if TOKEN is not that of the present lease.
//!
//! Events, with the topic `lock/NAME`: `granted OWNER TOKEN UNTIL`, `released OWNER TOKEN` and
//! `expired OWNER TOKEN`. A renewal is none, for it changes nothing for anybody else and there may
//! be many.
//!
//! Queries:
//!
//! * `who NAME`: `OWNER TOKEN UNTIL`, or `free`;
//! * `list PREFIX LIMIT`: a line `NAME OWNER TOKEN UNTIL WAITERS` for each of the first LIMIT locks
//!   that are held and whose names begin with PREFIX (which may be empty), in order;
//! * `waiters NAME`: a line `OWNER TTL_MS` for each, the next one first.
//!
//! Promises:
//!
//! * at any index of the log a lock has at most one owner;
//! * each grant has a higher token than all grants before it, of whatever lock;
//! * a lease has ended when the log's time has reached UNTIL, also if the entry that wakes the
//!   state machine is late: each command first ends the lease of its lock if it is over. Queries
//!   change nothing, so they may still show a lease whose UNTIL has passed.
//!
//! The token is a counter of its own and not the index of the entry: two grants of one entry would
//! have the same index, and with the position added, tokens would depend on how the leader packs
//! commands into entries.

mod command;
mod locks;
mod self_test;
mod snapshot;

pub use command::{LIST_LINES_MAX, TTL_MS_MAX, TTL_MS_MIN, WORD_BYTES_MAX};
pub use locks::{LOCKS_MAX, Locks, WAITERS_MAX, WAITERS_OF_LOCK_MAX};

lockstep_guest::export!(Locks: wake, self_test);

#[cfg(test)]
mod tests;

//! Queues of messages: at least once, with visibility timeouts and dead letters.
//!
//! A message is *ready*, *in flight* (delivered, and invisible to others until its consumer says
//! what became of it or its visibility has passed), or *dead* (delivered as often as is allowed, in
//! vain). Names of queues and consumers have 1 to [`WORD_BYTES_MAX`] bytes of UTF-8, none of them a
//! space or a control character. A body is any bytes, up to [`BODY_BYTES_MAX`] of them. Words are
//! separated by exactly one space. Times are times of the log, in milliseconds since 1970.
//!
//! Commands and their answers:
//!
//! * `send QUEUE BODY`: ok, the ID; BODY is all the rest of the command. The first one makes the
//!   queue;
//! * `receive QUEUE CONSUMER VISIBILITY_MS [MAX]`: ok, up to MAX messages (1 if it is not given) and
//!   as many as an answer holds; none if none is ready. For each a line `ID RECEIPT ATTEMPT LENGTH`,
//!   then LENGTH bytes of body and a newline: with the length, any body is unambiguous;
//! * `ack QUEUE RECEIPT`: ok, the ID of the message, which is gone;
//! * `nack QUEUE RECEIPT`: ok, `ready` or `dead`, which is what the message now is;
//! * `extend QUEUE RECEIPT MS`: ok, the time at which its visibility now passes, MS from now;
//! * `redrive QUEUE ID`: ok, `ready`: a dead message is ready again, as if it had never been
//!   delivered;
//! * `discard QUEUE ID`: ok, `discarded`: a dead message is gone;
//! * `delete QUEUE`: ok, `deleted`; rejected unless the queue is empty.
//!
//! A receipt is good until its message has been taken back, which the timer does as a rule within
//! 200 ms after the visibility has passed: an `ack` that comes just in time for that saves a
//! delivery. After it a receipt is refused.
//!
//! Events, with the topic `queue/QUEUE`: `ready N` when a queue of which no message was ready has N
//! that are, and `dead ID`. A queue that has messages ready does not say so again: whoever receives
//! until nothing comes, and then waits for the event, misses nothing.
//!
//! Queries:
//!
//! * `stats QUEUE`: lines `NAME NUMBER`: `ready`, `in-flight`, `dead`, `bytes` (of all bodies),
//!   `sent`, `acked`, `discarded`, and `redelivered` (deliveries that were not a message's first);
//! * `queues PREFIX LIMIT`: a line `QUEUE READY IN_FLIGHT DEAD` for each of the first LIMIT queues
//!   whose names begin with PREFIX (which may be empty), in order;
//! * `peek QUEUE LIMIT`, `dead QUEUE LIMIT`: up to LIMIT messages that are ready or dead, the oldest
//!   first, each as a line `ID ATTEMPTS LENGTH`, LENGTH bytes of body and a newline;
//! * `in-flight QUEUE LIMIT`: a line `ID RECEIPT ATTEMPT CONSUMER UNTIL` for each, the oldest
//!   receipt first.
//!
//! Order: as sent. A message that comes back, by the timer, `nack` or `redrive`, has the place of
//! its ID, hence comes before all that were sent after it. While it was away, these may have been
//! delivered: with several consumers, or after a failure, the order is not that of sending.
//!
//! The configuration is empty, or `max-attempts N`: after N deliveries in vain a message is dead; 5
//! if it is empty.
//!
//! IDs and receipts are counters of the state machine; nothing depends on how commands are packed
//! into entries.

mod command;
mod listing;
mod queues;
mod self_test;
mod snapshot;

pub use command::{
    BODY_BYTES_MAX, RECEIVE_MAX, VISIBILITY_MS_MAX, VISIBILITY_MS_MIN, WORD_BYTES_MAX,
};
pub use queues::{BYTES_MAX, MESSAGES_MAX, MESSAGES_OF_QUEUE_MAX, QUEUES_MAX, Queues};

lockstep_guest::export!(Queues: wake, self_test);

#[cfg(test)]
mod tests;

//! The snapshot, format 1.
//!
//! ```text
//! last ID, last receipt                          u64, u64
//! number of queues                               u64
//! for each queue, in the order of the names:
//!     name                                       block
//!     sent, acked, discarded, redelivered        u64 × 4
//!     messages that are ready                    messages
//!     messages that are dead                     messages
//! number of messages in flight                   u64
//! for each, in the order of the receipts:
//!     receipt, end of the visibility in ms       u64, u64
//!     queue, consumer                            block, block
//!     message                                    as below
//!
//! messages: their number, then each in the order of the IDs
//! message: ID, number of attempts, body          u64, u64, block
//! ```
//!
//! A number is little-endian; a block is its length as `u32` and its bytes. What is read is checked
//! to be a state that commands can lead to, but for the limits of how many there are, and how many
//! attempts: another version may have others.

use std::io;

use lockstep_guest::{DetMap, DetSet, Failure, SnapshotReader, SnapshotWriter};

use crate::command::{BODY_BYTES_MAX, WORD_BYTES_MAX, is_word};
use crate::queues::{Counts, Delivery, Message, Queue, Queues};

pub(crate) fn write(queues: &Queues, out: &mut SnapshotWriter) -> Result<(), Failure> {
    out.write_u64(queues.last_id)?;
    out.write_u64(queues.last_receipt)?;
    out.write_u64(queues.queues.len() as u64)?;
    for (name, queue) in &queues.queues {
        out.write_block(name.as_bytes())?;
        let Counts { sent, acked, discarded, redelivered } = queue.counts;
        for count in [sent, acked, discarded, redelivered] {
            out.write_u64(count)?;
        }
        for messages in [&queue.ready, &queue.dead] {
            out.write_u64(messages.len() as u64)?;
            for (id, message) in messages {
                write_message(out, *id, message)?;
            }
        }
    }
    out.write_u64(queues.in_flight.len() as u64)?;
    for (receipt, delivery) in &queues.in_flight {
        out.write_u64(*receipt)?;
        out.write_u64(queues.until(*receipt))?;
        out.write_block(delivery.queue.as_bytes())?;
        out.write_block(delivery.consumer.as_bytes())?;
        write_message(out, delivery.id, &delivery.message)?;
    }
    Ok(())
}

fn write_message(out: &mut SnapshotWriter, id: u64, message: &Message) -> io::Result<()> {
    out.write_u64(id)?;
    out.write_u64(message.attempts)?;
    out.write_block(&message.body)
}

/// Fills queues that are new.
pub(crate) fn read(queues: &mut Queues, from: &mut SnapshotReader) -> Result<(), Failure> {
    queues.last_id = from.read_u64()?;
    queues.last_receipt = from.read_u64()?;
    let mut reader = Reader { from, last_id: queues.last_id, ids: DetSet::new() };
    for _ in 0..reader.from.read_u64()? {
        let name = reader.word()?;
        // This also finds repeated names.
        if queues.queues.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return Err(corrupt("its queues are out of order"));
        }
        queues.queues.insert(name, reader.queue()?);
    }
    let mut ends = Vec::new();
    for _ in 0..reader.from.read_u64()? {
        let (receipt, until) = (reader.from.read_u64()?, reader.from.read_u64()?);
        let last = queues.in_flight.last_key_value().map_or(0, |(&last, _)| last);
        if receipt <= last || receipt > queues.last_receipt {
            return Err(corrupt("its receipts are out of order, or were not given away"));
        }
        let (queue, consumer) = (reader.word()?, reader.word()?);
        let (id, message) = reader.message()?;
        let Some(of) = queues.queues.get_mut(&queue) else {
            return Err(corrupt("it has a message of a queue that it does not have"));
        };
        of.in_flight += 1;
        of.bytes += message.body.len();
        queues.in_flight.insert(receipt, Delivery { queue, consumer, id, message });
        ends.push((receipt, until));
    }
    queues.ends = ends.into_iter().collect();
    for queue in queues.queues.values() {
        let Counts { sent, acked, discarded, redelivered: _ } = queue.counts;
        if sent != acked.saturating_add(discarded).saturating_add(queue.len() as u64) {
            return Err(corrupt("its counts and its messages do not add up"));
        }
        queues.messages += queue.len();
        queues.bytes += queue.bytes;
    }
    Ok(())
}

struct Reader<'a, 'b> {
    from: &'a mut SnapshotReader<'b>,
    last_id: u64,
    /// The IDs so far.
    ids: DetSet<u64>,
}

impl Reader<'_, '_> {
    fn queue(&mut self) -> Result<Queue, Failure> {
        let counts = Counts {
            sent: self.from.read_u64()?,
            acked: self.from.read_u64()?,
            discarded: self.from.read_u64()?,
            redelivered: self.from.read_u64()?,
        };
        let (ready, dead) = (self.messages()?, self.messages()?);
        let bytes = ready.values().chain(dead.values()).map(|message| message.body.len()).sum();
        Ok(Queue { ready, dead, in_flight: 0, bytes, counts })
    }

    fn messages(&mut self) -> Result<DetMap<u64, Message>, Failure> {
        let mut messages = DetMap::new();
        for _ in 0..self.from.read_u64()? {
            let (id, message) = self.message()?;
            if messages.last_key_value().is_some_and(|(&last, _)| last >= id) {
                return Err(corrupt("its messages are out of order"));
            }
            messages.insert(id, message);
        }
        Ok(messages)
    }

    fn message(&mut self) -> Result<(u64, Message), Failure> {
        let (id, attempts) = (self.from.read_u64()?, self.from.read_u64()?);
        if id == 0 || id > self.last_id || !self.ids.insert(id) {
            return Err(corrupt("it has an ID that was not given away, or twice"));
        }
        Ok((id, Message { body: self.from.read_block(BODY_BYTES_MAX)?, attempts }))
    }

    fn word(&mut self) -> Result<String, Failure> {
        let word = String::from_utf8(self.from.read_block(WORD_BYTES_MAX)?).ok();
        word.filter(|word| is_word(word)).ok_or_else(|| corrupt("it has a name that is no word"))
    }
}

fn corrupt(why: &str) -> Failure {
    Failure::Corrupt(why.to_owned())
}

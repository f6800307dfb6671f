//! The queues and their rules.
//!
//! * A message is in exactly one place: ready or dead in its queue, or in flight.
//! * Only the timer takes messages back whose visibility has passed; commands do not look at it.
//! * Nothing is thrown away but by `ack` and `discard`. When there is no space, `send` is rejected.
//! * A command does a bounded amount of work, and so does a wake.

use std::time::Duration;

use lockstep_guest::{
    Context, Deadlines, DetMap, DetSet, Failure, Info, OUTCOME_BYTES_MAX, Outcome, SnapshotHeader,
    SnapshotReader, SnapshotWriter, StateMachine, TOPIC_BYTES_MAX, Wake, emit,
};

use crate::command::{self, Action, Command, Query, WORD_BYTES_MAX};
use crate::listing::Listing;
use crate::snapshot;

/// Most queues: a few hundred kilobytes of memory, and all names fit into an answer.
pub const QUEUES_MAX: usize = 1_000;

/// Most messages of a queue, so that one whose consumers are gone leaves space for the others.
pub const MESSAGES_OF_QUEUE_MAX: usize = 20_000;

/// Most messages of all queues: some fifty megabytes of memory beside their bodies.
pub const MESSAGES_MAX: usize = 100_000;

/// Most bytes of all bodies: a quarter of the memory that a group has, unless it was bootstrapped with
/// another bound. The rest is for what is beside the bodies, and for what the allocator wastes.
pub const BYTES_MAX: usize = 256 << 20;

/// Most messages that are taken back in one wake. Each takes an event at most, which costs the most:
/// together about a hundredth of an entry's fuel. The next wake, 100 ms later, takes the next ones.
const TAKEN_BACK_IN_A_WAKE_MAX: usize = 1_000;

/// The longest answer of a query that reaches a client, in bytes.
const REPLY_BYTES_MAX: usize = 1 << 20;

const TOPIC_PREFIX: &str = "queue/";
const _: () = assert!(TOPIC_PREFIX.len() + WORD_BYTES_MAX <= TOPIC_BYTES_MAX);

/// All queues.
#[derive(Debug)]
pub struct Queues {
    /// After so many deliveries in vain a message is dead. Comes from the configuration.
    pub(crate) max_attempts: u64,
    /// By name.
    pub(crate) queues: DetMap<String, Queue>,
    /// The messages in flight, by receipt.
    pub(crate) in_flight: DetMap<u64, Delivery>,
    /// When the visibility of each delivery passes; the keys are those of `in_flight`.
    pub(crate) ends: Deadlines<u64>,
    /// How many messages all queues have.
    pub(crate) messages: usize,
    /// Bytes of all bodies.
    pub(crate) bytes: usize,
    /// The last ID that was given away; 0 if none was.
    pub(crate) last_id: u64,
    /// The last receipt that was given away; 0 if none was.
    pub(crate) last_receipt: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// By ID, which is the order of sending.
    pub(crate) ready: DetMap<u64, Message>,
    /// By ID.
    pub(crate) dead: DetMap<u64, Message>,
    /// How many of its messages are in flight.
    pub(crate) in_flight: usize,
    /// Bytes of all its bodies.
    pub(crate) bytes: usize,
    /// Of its life.
    pub(crate) counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) discarded: u64,
    /// Deliveries that were not a message's first.
    pub(crate) redelivered: u64,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) body: Vec<u8>,
    /// How often it was delivered.
    pub(crate) attempts: u64,
}

/// A message in flight.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) queue: String,
    pub(crate) consumer: String,
    pub(crate) id: u64,
    pub(crate) message: Message,
}

impl StateMachine for Queues {
    const INFO: Info = Info::new("queue", env!("CARGO_PKG_VERSION"));

    fn init(_: &Context, config: &[u8]) -> Result<Self, Failure> {
        Self::new(config)
    }

    fn apply(&mut self, ctx: &Context, command: &[u8]) -> Outcome {
        let done = Command::parse(command).and_then(|Command { queue, action }| match action {
            Action::Send { body } => self.send(queue, body),
            Action::Receive { consumer, visibility_ms, max } => {
                let until = ctx.after(Duration::from_millis(visibility_ms));
                Ok(self.receive(queue, consumer, until, max))
            }
            Action::Ack { receipt } => self.ack(queue, receipt),
            Action::Nack { receipt } => self.nack(queue, receipt),
            Action::Extend { receipt, visibility_ms } => {
                let until = ctx.after(Duration::from_millis(visibility_ms));
                self.extend(queue, receipt, until)
            }
            Action::Redrive { id } => self.redrive(queue, id),
            Action::Discard { id } => self.discard(queue, id),
            Action::Delete => self.delete(queue),
        });
        done.map_or_else(Outcome::rejected, Outcome::Ok)
    }

    fn query(&self, _: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        match Query::parse(request)? {
            Query::Stats { queue } => Ok(self.stats(queue)?.into()),
            Query::Queues { prefix, limit } => Ok(self.list(prefix, limit).into()),
            Query::Peek { queue, limit } => {
                Ok(listed(self.queues.get(queue).map(|queue| &queue.ready), limit))
            }
            Query::Dead { queue, limit } => {
                Ok(listed(self.queues.get(queue).map(|queue| &queue.dead), limit))
            }
            Query::InFlight { queue, limit } => Ok(self.list_in_flight(queue, limit).into()),
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        snapshot::write(self, out)
    }

    fn restore(
        _: &SnapshotHeader,
        config: &[u8],
        from: &mut SnapshotReader,
    ) -> Result<Self, Failure> {
        let mut queues = Self::new(config)?;
        snapshot::read(&mut queues, from)?;
        Ok(queues)
    }
}

impl Wake for Queues {
    fn wake(&mut self, ctx: &Context) {
        let mut names = DetSet::new();
        for receipt in self.ends.woken_up_to(ctx, TAKEN_BACK_IN_A_WAKE_MAX) {
            let delivery = self.in_flight.remove(&receipt).expect("what ends is in flight");
            let queue = delivery.queue.clone();
            if self.take_back(delivery) == Place::ReadyAlone {
                names.insert(queue);
            }
        }
        // Only now, so that the events say how many there are.
        names.iter().for_each(|name| self.tell_ready(name));
    }
}

/// Where a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is ready, as others were before.
    Ready,
    /// It is ready, and none was before: an event is due.
    ReadyAlone,
    Dead,
}

/// What the commands do. Each checks everything before it changes anything.
impl Queues {
    fn new(config: &[u8]) -> Result<Self, Failure> {
        let max_attempts = command::max_attempts(config).map_err(Failure::InvalidConfig)?;
        Ok(Self {
            max_attempts,
            queues: DetMap::new(),
            in_flight: DetMap::new(),
            ends: Deadlines::new(),
            messages: 0,
            bytes: 0,
            last_id: 0,
            last_receipt: 0,
        })
    }

    fn send(&mut self, name: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        self.check_space(name, body)?;
        self.last_id += 1;
        let id = self.last_id;
        self.messages += 1;
        self.bytes += body.len();
        // Not `entry`, which would need a name of its own each time.
        if !self.queues.contains_key(name) {
            self.queues.insert(name.to_owned(), Queue::default());
        }
        let queue = self.queues.get_mut(name).expect("it was made above");
        queue.counts.sent += 1;
        queue.bytes += body.len();
        let place = queue.make_ready(id, Message { body: body.to_vec(), attempts: 0 });
        self.tell(name, place);
        Ok(id.to_string().into())
    }

    fn check_space(&self, name: &str, body: &[u8]) -> Result<(), String> {
        let queue = self.queues.get(name);
        if queue.is_none() && self.queues.len() >= QUEUES_MAX {
            return Err(format!(
                "there are {QUEUES_MAX} queues, which is the limit; delete one that is empty"
            ));
        }
        let way_out = "receive and ack, discard dead ones, or try later";
        if queue.is_some_and(|queue| queue.len() >= MESSAGES_OF_QUEUE_MAX) {
            let limit = MESSAGES_OF_QUEUE_MAX;
            return Err(format!(
                "queue {name} has {limit} messages, which is the limit; {way_out}"
            ));
        }
        if self.messages >= MESSAGES_MAX {
            return Err(format!(
                "all queues have {MESSAGES_MAX} messages, which is the limit; {way_out}"
            ));
        }
        if self.bytes + body.len() > BYTES_MAX {
            return Err(format!(
                "all queues would have over {BYTES_MAX} bytes, which is the limit; {way_out}"
            ));
        }
        Ok(())
    }

    fn receive(&mut self, name: &str, consumer: &str, until: u64, max: usize) -> Vec<u8> {
        let mut answer = Listing::up_to(OUTCOME_BYTES_MAX);
        let Some(queue) = self.queues.get_mut(name) else {
            return answer.into_bytes();
        };
        for _ in 0..max {
            let Some(first) = queue.ready.first_entry() else { break };
            // The first one always fits.
            if !answer.has_space_for(&first.get().body) {
                break;
            }
            let (id, mut message) = first.remove_entry();
            message.attempts += 1;
            queue.counts.redelivered += u64::from(message.attempts > 1);
            queue.in_flight += 1;
            self.last_receipt += 1;
            let receipt = self.last_receipt;
            answer.add(&[id, receipt, message.attempts], &message.body);
            let (queue, consumer) = (name.to_owned(), consumer.to_owned());
            self.in_flight.insert(receipt, Delivery { queue, consumer, id, message });
            self.ends.set(receipt, until);
        }
        answer.into_bytes()
    }

    fn ack(&mut self, name: &str, receipt: u64) -> Result<Vec<u8>, String> {
        let delivery = self.take_delivery(name, receipt)?;
        let bytes = delivery.message.body.len();
        self.messages -= 1;
        self.bytes -= bytes;
        let queue = self.queues.get_mut(name).expect("it has a message in flight");
        queue.in_flight -= 1;
        queue.bytes -= bytes;
        queue.counts.acked += 1;
        Ok(delivery.id.to_string().into())
    }

    fn nack(&mut self, name: &str, receipt: u64) -> Result<Vec<u8>, String> {
        let delivery = self.take_delivery(name, receipt)?;
        let place = self.take_back(delivery);
        self.tell(name, place);
        Ok(match place {
            Place::Ready | Place::ReadyAlone => b"ready".to_vec(),
            Place::Dead => b"dead".to_vec(),
        })
    }

    fn extend(&mut self, name: &str, receipt: u64, until: u64) -> Result<Vec<u8>, String> {
        self.check_delivery(name, receipt)?;
        self.ends.set(receipt, until);
        Ok(until.to_string().into())
    }

    fn redrive(&mut self, name: &str, id: u64) -> Result<Vec<u8>, String> {
        let (queue, message) = self.take_dead(name, id)?;
        let place = queue.make_ready(id, Message { attempts: 0, ..message });
        self.tell(name, place);
        Ok(b"ready".to_vec())
    }

    fn discard(&mut self, name: &str, id: u64) -> Result<Vec<u8>, String> {
        let (queue, message) = self.take_dead(name, id)?;
        let bytes = message.body.len();
        queue.bytes -= bytes;
        queue.counts.discarded += 1;
        self.messages -= 1;
        self.bytes -= bytes;
        Ok(b"discarded".to_vec())
    }

    fn delete(&mut self, name: &str) -> Result<Vec<u8>, String> {
        match self.queues.get(name).map(Queue::len) {
            None => Err(no_queue(name)),
            Some(0) => {
                self.queues.remove(name);
                Ok(b"deleted".to_vec())
            }
            Some(messages) => {
                let way_out = "ack what can be received, and discard what is dead";
                Err(format!("queue {name} is not empty, it has {messages} messages; {way_out}"))
            }
        }
    }
}

/// How messages move.
impl Queues {
    fn check_delivery(&self, name: &str, receipt: u64) -> Result<(), String> {
        if self.in_flight.get(&receipt).is_some_and(|delivery| delivery.queue == name) {
            return Ok(());
        }
        Err(format!(
            "nothing of queue {name} is in flight with receipt {receipt}: it was settled, or its \
             visibility has passed; receive it again"
        ))
    }

    fn take_delivery(&mut self, name: &str, receipt: u64) -> Result<Delivery, String> {
        self.check_delivery(name, receipt)?;
        self.ends.remove(&receipt);
        Ok(self.in_flight.remove(&receipt).expect("it is in flight"))
    }

    fn take_dead(&mut self, name: &str, id: u64) -> Result<(&mut Queue, Message), String> {
        let queue = self.queues.get_mut(name).ok_or_else(|| no_queue(name))?;
        match queue.dead.remove(&id) {
            Some(message) => Ok((queue, message)),
            None => Err(format!("message {id} is not among the dead ones of queue {name}")),
        }
    }

    /// Puts a message back that was delivered in vain.
    fn take_back(&mut self, delivery: Delivery) -> Place {
        let Delivery { queue: name, consumer: _, id, message } = delivery;
        let queue = self.queues.get_mut(&name).expect("it has a message in flight");
        queue.in_flight -= 1;
        if message.attempts < self.max_attempts {
            return queue.make_ready(id, message);
        }
        queue.dead.insert(id, message);
        emit(&topic(&name), format!("dead {id}").as_bytes());
        Place::Dead
    }

    fn tell(&self, name: &str, place: Place) {
        if place == Place::ReadyAlone {
            self.tell_ready(name);
        }
    }

    fn tell_ready(&self, name: &str) {
        let ready = self.queues.get(name).map_or(0, |queue| queue.ready.len());
        emit(&topic(name), format!("ready {ready}").as_bytes());
    }
}

/// What the queries answer.
impl Queues {
    fn stats(&self, name: &str) -> Result<String, String> {
        let queue = self.queues.get(name).ok_or_else(|| no_queue(name))?;
        let Counts { sent, acked, discarded, redelivered } = queue.counts;
        let numbers = [
            ("ready", queue.ready.len() as u64),
            ("in-flight", queue.in_flight as u64),
            ("dead", queue.dead.len() as u64),
            ("bytes", queue.bytes as u64),
            ("sent", sent),
            ("acked", acked),
            ("discarded", discarded),
            ("redelivered", redelivered),
        ];
        Ok(numbers.map(|(name, number)| format!("{name} {number}\n")).concat())
    }

    fn list(&self, prefix: &str, limit: usize) -> String {
        let line = |(name, queue): (&String, &Queue)| {
            format!("{name} {} {} {}\n", queue.ready.len(), queue.in_flight, queue.dead.len())
        };
        let matching = self.queues.iter().filter(|(name, _)| name.starts_with(prefix));
        matching.take(limit).map(line).collect()
    }

    fn list_in_flight(&self, name: &str, limit: usize) -> String {
        let line = |(receipt, delivery): (&u64, &Delivery)| {
            let Delivery { queue: _, consumer, id, message } = delivery;
            let until = self.until(*receipt);
            format!("{id} {receipt} {} {consumer} {until}\n", message.attempts)
        };
        let matching = self.in_flight.iter().filter(|(_, delivery)| delivery.queue == name);
        matching.take(limit).map(line).collect()
    }

    /// When the visibility of a message in flight passes.
    pub(crate) fn until(&self, receipt: u64) -> u64 {
        self.ends.get(&receipt).expect("each message in flight has a deadline")
    }
}

impl Queue {
    /// How many messages it has, wherever they are.
    pub(crate) fn len(&self) -> usize {
        self.ready.len() + self.in_flight + self.dead.len()
    }

    fn make_ready(&mut self, id: u64, message: Message) -> Place {
        let place = if self.ready.is_empty() { Place::ReadyAlone } else { Place::Ready };
        self.ready.insert(id, message);
        place
    }
}

fn listed(messages: Option<&DetMap<u64, Message>>, limit: usize) -> Vec<u8> {
    let mut listing = Listing::up_to(REPLY_BYTES_MAX);
    for (id, message) in messages.into_iter().flatten().take(limit) {
        if !listing.has_space_for(&message.body) {
            break;
        }
        listing.add(&[*id, message.attempts], &message.body);
    }
    listing.into_bytes()
}

fn no_queue(name: &str) -> String {
    format!("there is no queue {name}; the first `send` makes it")
}

fn topic(name: &str) -> String {
    format!("{TOPIC_PREFIX}{name}")
}

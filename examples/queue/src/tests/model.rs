//! A model of the queues that knows only what clients see: commands and outcomes. It shares no code
//! with the state machine, and foretells the answers to what was accepted, all events, and where
//! each message is.

use std::collections::BTreeMap;

use lockstep_guest::Outcome;
use lockstep_guest::testing::{Applied, Harness};

use crate::Queues;

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Ready,
    InFlight { receipt: u64, until: u64 },
    Dead,
    Gone,
}

struct Message {
    queue: String,
    body: Vec<u8>,
    attempts: u64,
    place: Place,
}

struct Model {
    max_attempts: u64,
    /// All that were ever sent, by ID.
    messages: BTreeMap<u64, Message>,
    last_receipt: u64,
    /// The events that are due.
    events: Vec<(String, Vec<u8>)>,
}

/// Follows everything that was applied, and compares where it led to.
pub(super) fn check(queue: &mut Harness<Queues>, max_attempts: u64) {
    let events = Vec::new();
    let mut model = Model { max_attempts, messages: BTreeMap::new(), last_receipt: 0, events };
    for entry in queue.history() {
        model.follow(&entry);
    }
    let mut counts = BTreeMap::<&str, [usize; 3]>::new();
    let mut earliest = None;
    for message in model.messages.values() {
        let place = match message.place {
            Place::Ready => 0,
            Place::InFlight { until, .. } => {
                earliest = Some(earliest.unwrap_or(until).min(until));
                1
            }
            Place::Dead => 2,
            Place::Gone => continue,
        };
        counts.entry(&message.queue).or_default()[place] += 1;
    }
    let listed = String::from_utf8(queue.query("queues  1000").expect("it is a query"));
    let listed = listed.expect("names are text");
    // A queue that is empty may be there or have been deleted.
    let listed: Vec<&str> = listed.lines().filter(|line| !line.ends_with(" 0 0 0")).collect();
    let expected: Vec<String> = counts
        .iter()
        .map(|(name, [ready, in_flight, dead])| format!("{name} {ready} {in_flight} {dead}"))
        .collect();
    assert_eq!(listed, expected);
    assert_eq!(queue.timer(), earliest, "the timer is at the end of a visibility");
}

impl Model {
    fn follow(&mut self, entry: &Applied<'_>) {
        let now_ms = entry.ctx.time_ms;
        if entry.commands.is_empty() {
            self.wake(now_ms);
        }
        for (command, outcome) in entry.commands.iter().zip(entry.outcomes) {
            if let Outcome::Ok(answer) = outcome {
                let command = str::from_utf8(command).expect("the tests send text");
                let expected = self.execute(now_ms, command);
                let answer = str::from_utf8(answer).expect("the tests send text");
                assert_eq!(answer, expected, "answer to {command:?}");
            }
        }
        assert_eq!(entry.events, self.events, "events of the entry at {}", entry.ctx.index);
        self.events.clear();
    }

    fn wake(&mut self, now_ms: u64) {
        let before = self.ready();
        let mut due: Vec<(u64, u64, u64)> = self
            .messages
            .iter()
            .filter_map(|(&id, message)| match message.place {
                Place::InFlight { receipt, until } if until <= now_ms => Some((until, receipt, id)),
                _ => None,
            })
            .collect();
        due.sort_unstable();
        for (_, _, id) in due {
            self.take_back(id);
        }
        self.tell_ready(&before);
    }

    fn execute(&mut self, now_ms: u64, command: &str) -> String {
        let before = self.ready();
        let words: Vec<&str> = command.split(' ').collect();
        let number = |place: usize| words[place].parse::<u64>().expect("it was accepted");
        let answer = match words[0] {
            "send" => {
                self.send(words[1], &command.as_bytes()["send ".len() + words[1].len() + 1..])
            }
            "receive" => {
                let max = if words.len() > 4 { number(4) } else { 1 };
                self.receive(words[1], now_ms + number(3), max)
            }
            "ack" => {
                let id = self.in_flight(words[1], number(2));
                self.place(id, Place::Gone);
                id.to_string()
            }
            "nack" => {
                let id = self.in_flight(words[1], number(2));
                self.take_back(id);
                if self.messages[&id].place == Place::Dead { "dead".into() } else { "ready".into() }
            }
            "extend" => {
                let id = self.in_flight(words[1], number(2));
                let until = now_ms + number(3);
                self.place(id, Place::InFlight { receipt: number(2), until });
                until.to_string()
            }
            "redrive" => {
                self.dead(words[1], number(2), Place::Ready);
                "ready".into()
            }
            "discard" => {
                self.dead(words[1], number(2), Place::Gone);
                "discarded".into()
            }
            "delete" => {
                let here = |message: &Message| message.queue == words[1];
                assert!(self.messages.values().all(|m| m.place == Place::Gone || !here(m)));
                "deleted".into()
            }
            verb => panic!("`{verb}` was accepted"),
        };
        self.tell_ready(&before);
        answer
    }

    fn send(&mut self, queue: &str, body: &[u8]) -> String {
        let id = self.messages.last_key_value().map_or(1, |(last, _)| last + 1);
        let (queue, body) = (queue.to_owned(), body.to_vec());
        self.messages.insert(id, Message { queue, body, attempts: 0, place: Place::Ready });
        id.to_string()
    }

    fn receive(&mut self, queue: &str, until: u64, max: u64) -> String {
        let mut answer = String::new();
        let ready = self
            .messages
            .iter_mut()
            .filter(|(_, message)| message.queue == queue && message.place == Place::Ready);
        for (id, message) in ready.take(usize::try_from(max).expect("it is small")) {
            self.last_receipt += 1;
            message.attempts += 1;
            assert!(message.attempts <= self.max_attempts, "message {id} came too often");
            message.place = Place::InFlight { receipt: self.last_receipt, until };
            let body = str::from_utf8(&message.body).expect("the tests send text");
            let (receipt, attempts) = (self.last_receipt, message.attempts);
            answer += &format!("{id} {receipt} {attempts} {}\n{body}\n", body.len());
        }
        answer
    }

    /// The message that is in flight with this receipt.
    fn in_flight(&self, queue: &str, receipt: u64) -> u64 {
        let found = self.messages.iter().find(|(_, message)| {
            matches!(message.place, Place::InFlight { receipt: other, .. } if other == receipt)
        });
        let (&id, message) = found.expect("what was accepted is in flight");
        assert_eq!(message.queue, queue);
        id
    }

    fn place(&mut self, id: u64, place: Place) {
        self.messages.get_mut(&id).expect("it was sent").place = place;
    }

    fn take_back(&mut self, id: u64) {
        let message = self.messages.get_mut(&id).expect("it was sent");
        if message.attempts < self.max_attempts {
            message.place = Place::Ready;
        } else {
            message.place = Place::Dead;
            self.events.push((format!("queue/{}", message.queue), format!("dead {id}").into()));
        }
    }

    fn dead(&mut self, queue: &str, id: u64, to: Place) {
        let message = self.messages.get_mut(&id).expect("it was sent");
        assert!(message.place == Place::Dead && message.queue == queue);
        message.attempts = 0;
        message.place = to;
    }

    /// How many messages are ready in each queue that has any.
    fn ready(&self) -> BTreeMap<String, usize> {
        let mut ready = BTreeMap::new();
        for message in self.messages.values().filter(|message| message.place == Place::Ready) {
            *ready.entry(message.queue.clone()).or_default() += 1;
        }
        ready
    }

    fn tell_ready(&mut self, before: &BTreeMap<String, usize>) {
        for (queue, count) in self.ready() {
            if !before.contains_key(&queue) {
                self.events.push((format!("queue/{queue}"), format!("ready {count}").into()));
            }
        }
    }
}

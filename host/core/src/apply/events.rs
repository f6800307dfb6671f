//! Events: what a guest tells those who watch, and the window of them that a group keeps.
//!
//! - An event's position is the index of its entry and its number in the entry. Positions are the
//!   same on every replica, and so is what the window holds.
//! - The window is bounded in bytes; the oldest events go first. Its bound is in the bootstrap
//!   record.
//!
//! ```text
//! window = begin index u64 · begin number u32 · count u32 · events
//! event  = index u64 · number u32 · time ms u64 · topic bytes · payload bytes
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::apply::timer::Setting;
use crate::codec::{DecodeError, Reader, Write};
use crate::limits;
use crate::mutant::plant;

/// An event as a guest emits it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestEvent {
    pub topic: Arc<str>,
    pub payload: Bytes,
}

impl GuestEvent {
    /// Bytes that the event counts against the window's bound.
    pub fn cost(&self) -> usize {
        self.topic.len() + self.payload.len() + limits::EVENT_OVERHEAD_BYTES
    }
}

/// What one call of a guest did beside answering: it counts once the call has returned well.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Emitted {
    events: VecDeque<GuestEvent>,
    /// Events of the call that are not kept, because those after them fill the window.
    dropped: u32,
    bytes: usize,
    /// What the guest set its timer to, if it did; the last setting counts.
    pub timer: Option<Setting>,
}

impl Emitted {
    /// Adds an event. If the events of the call exceed `bytes_max`, the oldest are dropped.
    pub fn emit(&mut self, event: GuestEvent, bytes_max: usize) {
        self.bytes += event.cost();
        self.events.push_back(event);
        while self.bytes > bytes_max
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= oldest.cost();
            self.dropped += 1;
        }
    }

    /// The events of the call, those that were dropped excepted.
    pub fn events(&self) -> impl Iterator<Item = &GuestEvent> {
        self.events.iter()
    }
}

/// Where an event stands in the order of a group's events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    pub index: u64,
    pub number: u32,
}

impl Position {
    /// The position of the first event of an entry.
    pub fn of_entry(index: u64) -> Self {
        Self { index, number: 0 }
    }

    /// The position after this one.
    pub fn next(self) -> Self {
        Self { number: self.number + 1, ..self }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.number)
    }
}

/// An event that the group keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptEvent {
    pub position: Position,
    /// The log's time at its entry, ms.
    pub time_ms: u64,
    pub event: GuestEvent,
}

/// The newest events of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventWindow {
    events: VecDeque<KeptEvent>,
    bytes: usize,
    /// Every event at this position or after it is kept.
    begin: Position,
}

impl EventWindow {
    /// The position from which on every event is kept.
    pub fn begin(&self) -> Position {
        self.begin
    }

    /// The kept events at `from` or after it, oldest first.
    pub fn since(&self, from: Position) -> impl Iterator<Item = &KeptEvent> {
        let first = self.events.partition_point(|kept| kept.position < from);
        self.events.range(first..)
    }

    /// Adds the events of the entry at `index`; keeps at most `bytes_max` bytes.
    pub(super) fn add(&mut self, index: u64, time_ms: u64, emitted: Emitted, bytes_max: usize) {
        let Emitted { events, dropped, .. } = emitted;
        if dropped > 0 {
            // What is older than a dropped event goes before it.
            (self.events, self.bytes) = (VecDeque::new(), 0);
            self.begin = Position { index, number: dropped };
        }
        for (number, event) in (dropped..).zip(events) {
            self.bytes += event.cost();
            let position = Position { index, number };
            self.events.push_back(KeptEvent { position, time_ms, event });
        }
        while self.bytes > bytes_max
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= oldest.event.cost();
            self.begin = oldest.position.next();
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.begin.index);
        out.put_u32(self.begin.number);
        out.put_count_within(self.events.len(), limits::EVENTS_MAX);
        for KeptEvent { position, time_ms, event } in &self.events {
            out.put_u64(position.index);
            out.put_u32(position.number);
            out.put_u64(*time_ms);
            out.put_bytes_within(event.topic.as_bytes(), limits::EVENT_TOPIC_BYTES_MAX);
            out.put_bytes_within(&event.payload, limits::EVENT_PAYLOAD_BYTES_MAX);
        }
    }

    pub(super) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let begin = Position { index: reader.u64()?, number: reader.u32()? };
        let mut window = Self { begin, ..Self::default() };
        let mut next = begin;
        for _ in 0..reader.count(limits::EVENTS_MAX)? {
            let position = Position { index: reader.u64()?, number: reader.u32()? };
            if position < next || position.number == u32::MAX {
                return Err(reader.invalid("its events are out of order"));
            }
            next = position.next();
            let time_ms = reader.u64()?;
            let topic = reader.string(limits::EVENT_TOPIC_BYTES_MAX)?.into();
            let payload = reader.bytes(limits::EVENT_PAYLOAD_BYTES_MAX)?;
            let event = GuestEvent { topic, payload };
            window.bytes += event.cost();
            window.events.push_back(KeptEvent { position, time_ms, event });
        }
        if window.bytes > limits::EVENT_WINDOW_BYTES_MAX as usize {
            return Err(reader.invalid("its events are over the limit of a window"));
        }
        plant!("window_forgets" does return Ok(Self { begin, ..Self::default() }));
        Ok(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(topic: &str, bytes: usize) -> GuestEvent {
        GuestEvent { topic: topic.into(), payload: vec![7; bytes].into() }
    }

    fn emitted(events: &[GuestEvent], bytes_max: usize) -> Emitted {
        let mut emitted = Emitted::default();
        events.iter().for_each(|event| emitted.emit(event.clone(), bytes_max));
        emitted
    }

    /// Adds entries of events with payloads of these sizes to a window of 300 bytes; it then begins
    /// at `begin` and holds events at these positions, before and after it was encoded.
    fn check(entries: &[(u64, &[usize])], begin: (u64, u32), kept: &[(u64, u32)]) {
        let mut window = EventWindow::default();
        for (index, sizes) in entries {
            let events: Vec<_> = sizes.iter().map(|bytes| event("t", *bytes)).collect();
            window.add(*index, 1000 + index, emitted(&events, 300), 300);
        }
        let mut bytes = Vec::new();
        window.encode(&mut bytes);
        for cut in 0..bytes.len() {
            let cut = Bytes::copy_from_slice(&bytes[..cut]);
            EventWindow::decode(&mut Reader::new(cut, "window")).expect_err("it was cut");
        }
        let mut reader = Reader::new(bytes.into(), "window");
        let decoded = EventWindow::decode(&mut reader).expect("it was just written");
        assert_eq!(decoded, window);
        let place = |position: Position| (position.index, position.number);
        assert_eq!(place(decoded.begin()), begin, "{entries:?}");
        let all: Vec<_> =
            decoded.since(Position::default()).map(|kept| place(kept.position)).collect();
        assert_eq!(all, kept, "{entries:?}");
        if let Some(last) = kept.last() {
            let last = Position { index: last.0, number: last.1 };
            assert_eq!(decoded.since(last).count(), 1);
            assert_eq!(decoded.since(last.next()).count(), 0);
        }
    }

    /// An event of no payload counts 65 bytes here.
    #[test]
    fn the_oldest_go_first() {
        check(&[], (0, 0), &[]);
        check(&[(3, &[0, 0]), (5, &[0])], (0, 0), &[(3, 0), (3, 1), (5, 0)]);
        check(&[(3, &[0, 0]), (5, &[0, 0, 0])], (3, 1), &[(3, 1), (5, 0), (5, 1), (5, 2)]);
        check(&[(3, &[0]), (4, &[200, 0])], (4, 1), &[(4, 1)]);
        check(&[(3, &[0]), (4, &[200, 0, 0])], (4, 1), &[(4, 1), (4, 2)]);
        check(&[(3, &[0]), (4, &[200, 0, 0, 10])], (4, 1), &[(4, 1), (4, 2), (4, 3)]);
        check(&[(3, &[500]), (4, &[])], (3, 1), &[]);
    }

    #[test]
    fn what_is_out_of_order_is_refused() {
        let mut window = EventWindow::default();
        window.add(3, 0, emitted(&[event("a", 1), event("b", 1)], 1000), 1000);
        window.events.swap(0, 1);
        let mut bytes = Vec::new();
        window.encode(&mut bytes);
        let decoded = EventWindow::decode(&mut Reader::new(bytes.into(), "window"));
        assert!(decoded.expect_err("it is out of order").to_string().contains("out of order"));
    }
}

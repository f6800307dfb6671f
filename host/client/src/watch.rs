//! [`Watch`]: the events of a group, in order and each once, from whichever node answers.
//!
//! - A watch that breaks goes on at another node, after the last message that was received. Nothing
//!   is missed and nothing comes twice; a node that breaks this promise is found out.
//! - Nodes send at least a message a second. A node that is silent for longer than
//!   [`SILENT_MAX`] counts as lost.
//! - A client's watches share connections that its calls do not use: events that are not read do
//!   not hold up a call.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::Streaming;

use crate::attempt::{Failed, Verdict};
use crate::client::{Client, Consistency, QueryReply, refused};
use crate::error::{Error, Result};
use crate::pace::Pace;
use crate::v1;

/// How long a node may say nothing. It tells how far it is once a second, and may take 5 s before
/// its first message to catch up.
const SILENT_MAX: Duration = Duration::from_secs(10);

/// Where an event stands in the order of a group's events; the same on every node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position {
    /// The entry that emitted the event.
    pub index: u64,
    /// The number of the event in its entry, from 0.
    pub number: u32,
}

impl Position {
    /// The position after all events of the entry at `index`, such as the applied index of a query.
    pub fn after_entry(index: u64) -> Self {
        Self { index: index.saturating_add(1), number: 0 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.number)
    }
}

impl FromStr for Position {
    type Err = ParseIntError;

    /// Reads `INDEX.NUMBER`, or `INDEX` for the first event of an entry.
    fn from_str(text: &str) -> std::result::Result<Self, ParseIntError> {
        let (index, number) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self { index: index.parse()?, number: number.parse()? })
    }
}

/// What a state machine told those who watch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    pub position: Position,
    /// The log's time when it was emitted, milliseconds since 1970.
    pub time_ms: u64,
    pub topic: String,
    pub payload: Bytes,
}

/// The next part of what is watched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The events, oldest first; there may be none, about once a second.
    pub events: Vec<Event>,
    /// Every event up to and including this entry is in this batch or in one before.
    pub applied_index: u64,
    /// Where a watch begins that goes on after this batch.
    pub next: Position,
}

/// The events under a prefix of their topics. Dropping it ends the watch.
pub struct Watch {
    client: Client,
    prefix: String,
    /// Where to go on; `None` while the watch has not begun and begins with what comes then.
    next: Option<Position>,
    stream: Option<Streaming<v1::WatchResponse>>,
    /// The node that was asked last.
    asked: String,
    search: Search,
}

/// The search for a node that answers, since the last message.
struct Search {
    pace: Pace,
    attempts: u32,
    /// Attempts that failed for a reason that only a person, or time, can resolve.
    hopeless: usize,
    /// When it is given up; set by the first failure.
    until: Option<Instant>,
    /// No attempt is made before this time.
    not_before: Option<Instant>,
}

impl Search {
    fn new() -> Self {
        let pace = Pace::of_calls();
        Self { pace, attempts: 0, hopeless: 0, until: None, not_before: None }
    }
}

impl Client {
    /// Watches the events whose topics begin with `prefix`, from a position on, or from now on,
    /// which is after what the node that answers has applied. Connects at the first
    /// [`Watch::next`].
    ///
    /// ```no_run
    /// # async fn example(client: lockstep_client::Client) -> Result<(), lockstep_client::Error> {
    /// let mut watch = client.watch("orders/", None);
    /// loop {
    ///     let batch = watch.next().await?;
    ///     for event in batch.events {
    ///         println!("{} {}: {} bytes", event.position, event.topic, event.payload.len());
    ///     }
    ///     // A client that stores this with what came of the events goes on after a restart.
    ///     let _resume = batch.next;
    /// }
    /// # }
    /// ```
    pub fn watch(&self, prefix: impl Into<String>, from: Option<Position>) -> Watch {
        let (client, prefix) = (self.clone(), prefix.into());
        Watch {
            client,
            prefix,
            next: from,
            stream: None,
            asked: String::new(),
            search: Search::new(),
        }
    }

    /// Queries the state machine, and watches all events that the answer does not reflect yet. This
    /// is how to build a view and keep it up to date, and what to do after
    /// [`Error::Compacted`].
    ///
    /// ```no_run
    /// # async fn example(client: lockstep_client::Client) -> Result<(), lockstep_client::Error> {
    /// use lockstep_client::Consistency;
    ///
    /// let (reply, mut watch) =
    ///     client.query_then_watch("list", Consistency::Linearizable, "orders/").await?;
    /// let view = reply.outcome;
    /// let changes = watch.next().await?.events;
    /// # let _ = (view, changes);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn query_then_watch(
        &self,
        request: impl Into<Bytes>,
        consistency: Consistency,
        prefix: impl Into<String>,
    ) -> Result<(QueryReply, Watch)> {
        let reply = self.query(request, consistency).await?;
        let from = Position::after_entry(reply.applied_index);
        Ok((reply, self.watch(prefix, Some(from))))
    }
}

impl Watch {
    /// The next events, or the news that there were none for a second. If the node is lost, waits
    /// until another one answers, for the client's deadline at most; then it may be called again,
    /// and goes on where it was. May be dropped while it waits: nothing is lost.
    ///
    /// [`Error::Compacted`] and [`Error::FromFuture`] end the watch: a new one has to begin
    /// elsewhere.
    pub async fn next(&mut self) -> Result<Batch> {
        loop {
            let failed = match self.message().await {
                Ok(Some(message)) => return self.take(message),
                Ok(None) => Failed::broken("the node ended the watch without a reason"),
                Err(failed) => failed,
            };
            self.failed(failed)?;
        }
    }

    /// Where the watch goes on; `None` if it has not begun and begins with what comes then.
    pub fn position(&self) -> Option<Position> {
        self.next
    }

    /// The next message of the stream, which is opened if there is none.
    async fn message(&mut self) -> std::result::Result<Option<v1::WatchResponse>, Failed> {
        if self.stream.is_none() {
            if let Some(at) = self.search.not_before {
                tokio::time::sleep_until(at).await;
            }
            self.stream = Some(self.open().await?);
        }
        let Some(stream) = &mut self.stream else { return Ok(None) };
        match tokio::time::timeout(SILENT_MAX, stream.message()).await {
            Ok(message) => message.map_err(|status| Failed::of_status(&status)),
            Err(_elapsed) => Err(Failed::timed_out()),
        }
    }

    async fn open(&mut self) -> std::result::Result<Streaming<v1::WatchResponse>, Failed> {
        let request = v1::WatchRequest {
            group: self.client.group(),
            topic_prefix: self.prefix.clone(),
            start: self.next.map(|Position { index, number }| v1::Position { index, number }),
        };
        let mut target = self.client.watch_routes().target();
        self.asked.clone_from(&target.address);
        let opening = target.client.watch(request);
        match tokio::time::timeout(self.client.options().attempt, opening).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failed::of_status(&status)),
            Err(_elapsed) => Err(Failed::timed_out()),
        }
    }

    /// Takes a message in, if it follows the one before.
    fn take(&mut self, message: v1::WatchResponse) -> Result<Batch> {
        let batch = in_order(self.next, message);
        match &batch {
            Ok(batch) => {
                self.next = Some(batch.next);
                self.search = Search::new();
            }
            Err(_) => self.stream = None,
        }
        batch
    }

    /// Learns from a failed attempt or a broken stream; an error if another attempt is of no use.
    fn failed(&mut self, failed: Failed) -> Result<()> {
        let routes = self.client.watch_routes();
        self.stream = None;
        let now = Instant::now();
        let search = &mut self.search;
        search.attempts += 1;
        search.hopeless += usize::from(failed.verdict == Verdict::Once);
        let until = *search.until.get_or_insert_with(|| now + self.client.options().deadline);
        let rest = search.pace.after(routes, &self.asked, false, &failed);
        search.not_before = Some(now + rest);
        let over = match failed.verdict {
            Verdict::Final | Verdict::Foreign => true,
            Verdict::Once => search.hopeless >= routes.endpoints().len().max(2),
            // A watch changes nothing: it can always be begun again.
            Verdict::Nothing | Verdict::Overloaded | Verdict::Slowly | Verdict::Unknown => false,
        };
        if !over && now + rest < until {
            return Ok(());
        }
        let attempts = search.attempts;
        self.search = Search::new();
        Err(why(failed, attempts))
    }
}

/// The message as a batch, if its events lie in order between `from` and where it ends.
fn in_order(from: Option<Position>, message: v1::WatchResponse) -> Result<Batch> {
    let v1::WatchResponse { events, applied_index, next } = message;
    let next = next.ok_or(Error::Malformed("events without a position to resume at"))?;
    let next = Position { index: next.index, number: next.number };
    let mut least = from.unwrap_or_default();
    let mut taken = Vec::with_capacity(events.len());
    for event in events {
        let v1::Event { index, number, time_ms, topic, payload } = event;
        let position = Position { index, number };
        if position < least || position >= next {
            return Err(Error::Malformed("events are repeated or out of order"));
        }
        least = Position { index, number: number.saturating_add(1) };
        taken.push(Event { position, time_ms, topic, payload });
    }
    if next < least {
        return Err(Error::Malformed("a watch went back"));
    }
    Ok(Batch { events: taken, applied_index, next })
}

/// The error of a watch that does not go on.
fn why(failed: Failed, attempts: u32) -> Error {
    let Failed { refusal, message, begin, .. } = &failed;
    match refusal.as_str() {
        "compacted" => match begin.as_deref().map(Position::from_str) {
            Some(Ok(begin)) => Error::Compacted { begin, message: message.clone() },
            Some(Err(_)) | None => Error::Malformed("compacted without a position to begin at"),
        },
        "from-future" => Error::FromFuture { message: message.clone() },
        _other => refused(failed, attempts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of events at these positions that ends before `next`, after one that ended before
    /// `from`: whether it is taken.
    fn check(from: Option<(u64, u32)>, events: &[(u64, u32)], next: (u64, u32), taken: bool) {
        let event = |(index, number): &(u64, u32)| v1::Event {
            index: *index,
            number: *number,
            ..v1::Event::default()
        };
        let message = v1::WatchResponse {
            events: events.iter().map(event).collect(),
            applied_index: next.0 - 1,
            next: Some(v1::Position { index: next.0, number: next.1 }),
        };
        let from = from.map(|(index, number)| Position { index, number });
        let batch = in_order(from, message);
        assert_eq!(batch.is_ok(), taken, "{from:?} {events:?} {next:?}: {batch:?}");
    }

    #[test]
    fn what_is_repeated_or_out_of_order_is_found_out() {
        check(None, &[], (7, 0), true);
        check(Some((7, 0)), &[], (7, 0), true);
        check(Some((7, 0)), &[(7, 0), (7, 1), (9, 0)], (10, 0), true);
        check(Some((7, 2)), &[(7, 2)], (7, 3), true);
        check(Some((7, 2)), &[(7, 1)], (8, 0), false);
        check(Some((7, 0)), &[(8, 1), (8, 0)], (9, 0), false);
        check(Some((7, 0)), &[(8, 1), (8, 1)], (9, 0), false);
        check(Some((7, 0)), &[(9, 0)], (9, 0), false);
        check(Some((7, 1)), &[], (7, 0), false);
    }

    #[test]
    fn positions_are_read_as_they_are_shown() {
        let position = Position { index: 7, number: 3 };
        assert_eq!(position.to_string().parse(), Ok(position));
        assert_eq!("7".parse(), Ok(Position::after_entry(6)));
        for bad in ["", ".", "7.", ".3", "7.-1", "7.3.1", "seven"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }

    #[test]
    fn why_a_watch_ends_is_told() {
        let mut status = tonic::Status::out_of_range("gone");
        let metadata = status.metadata_mut();
        metadata.insert("lockstep-refusal", "compacted".parse().expect("a value"));
        metadata.insert("lockstep-begin", "7.3".parse().expect("a value"));
        let told = why(Failed::of_status(&status), 1);
        let begin = Position { index: 7, number: 3 };
        assert_eq!(told, Error::Compacted { begin, message: "gone".to_owned() });
    }
}

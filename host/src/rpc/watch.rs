//! [`WatchStream`]: the events of a group for one client, from a position on.
//!
//! - No watch has a task of its own, and nothing is kept for one but the message under way. A
//!   client that does not read makes its stream stand still; when it reads again, it gets what the
//!   group still keeps, or is told that its position is gone.
//! - A watch looks at the board when events came, but not all the time; entries without events wake
//!   nobody. Once a second it tells its client how far it has looked ([`Times`]).
//! - Positions only grow, and a message holds all events of the prefix between two of them: so a
//!   client that resumes at the position of the last message misses nothing and gets nothing twice.
//! - What a watch waits for is selected without changing anything; what it does then waits for
//!   nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use lockstep_core::apply::{KeptEvent, Position};
use lockstep_core::fault::Refusal;
use lockstep_core::group::{ReplicaState, Running};
use lockstep_core::limits;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Status;

use crate::budget::Share;
use crate::group::GroupHandle;
use crate::group::event_board::{Compacted, Reading, Watched};
use crate::router::Router;
use crate::rpc::links::Link;
use crate::rpc::port::PortState;
use crate::rpc::proto::client as wire;
use crate::rpc::refuse::Refused;
use crate::rpc::server::until;
use crate::rpc::{CONNECTION_WATCHES_MAX, WATCH_MESSAGE_BYTES_MAX};

/// The times that a watch keeps.
#[derive(Clone, Copy)]
struct Times {
    /// How often it tells its client how far it has looked.
    pulse: Duration,
    /// Shortest time between two looks at the board, if nothing was left over: it bounds what a
    /// thousand watches cost a group that emits events all the time, and gathers them in messages.
    look: Duration,
    /// How long it waits for a replica that lags behind its position.
    catch_up_max: Duration,
}

impl Times {
    const OURS: Self = Self {
        pulse: Duration::from_secs(1),
        look: Duration::from_millis(5),
        catch_up_max: Duration::from_secs(5),
    };
}

const _: () = assert!(
    limits::EVENT_TOPIC_BYTES_MAX + limits::EVENT_PAYLOAD_BYTES_MAX + limits::EVENT_OVERHEAD_BYTES
        < WATCH_MESSAGE_BYTES_MAX
);
const _: () = assert!(WATCH_MESSAGE_BYTES_MAX < limits::GRPC_MESSAGE_BYTES_MAX / 2);

type Turn = Pin<Box<dyn Future<Output = (Watcher, Result<wire::WatchResponse, Refused>)> + Send>>;

/// The messages of one watch; polling them does all the work.
pub(super) struct WatchStream {
    /// Makes the next message; `None` once the stream has ended.
    turn: Option<Turn>,
}

impl WatchStream {
    pub(super) fn new(watcher: Watcher) -> Self {
        Self { turn: Some(Box::pin(watcher.turn())) }
    }
}

impl Stream for WatchStream {
    type Item = Result<wire::WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(turn) = &mut self.turn else { return Poll::Ready(None) };
        let (watcher, message) = ready!(turn.as_mut().poll(cx));
        self.turn = message.is_ok().then(|| Box::pin(watcher.turn()) as Turn);
        Poll::Ready(Some(message.map_err(Status::from)))
    }
}

/// One client's place in the events of a group.
pub(super) struct Watcher {
    group: GroupHandle,
    router: Router,
    prefix: String,
    times: Times,
    /// Where to begin; `None` if that is after all that is applied then.
    start: Option<Position>,
    /// All events before it were looked at; `None` before it has begun.
    next: Option<Position>,
    /// When the client is told at the latest how far this has looked.
    pulse: Instant,
    /// Not before this time it looks at the board again.
    look: Instant,
    grown: watch::Receiver<u64>,
    state: watch::Receiver<ReplicaState>,
    /// True once the node is about to stop.
    closing: watch::Receiver<bool>,
    watched: Watched,
    /// The share of the connection, and the places of the watch.
    share: Option<Arc<Share>>,
    places: Vec<Place>,
}

impl Watcher {
    pub(super) fn new(
        group: GroupHandle,
        router: Router,
        prefix: String,
        start: Option<wire::Position>,
        closing: watch::Receiver<bool>,
    ) -> Result<Self, Refused> {
        let most = limits::EVENT_TOPIC_BYTES_MAX;
        if prefix.len() > most {
            return Err(Refused::malformed(format!(
                "a topic prefix of {} bytes is over the limit of topics, {most} bytes; shorten it",
                prefix.len()
            )));
        }
        let board = group.events();
        let (grown, watched) = (board.grown(), board.watched());
        let state = group.watch();
        let start = start.map(|wire::Position { index, number }| Position { index, number });
        let (pulse, look) = (Instant::now(), Instant::now());
        let (next, share, places) = (None, None, Vec::new());
        Ok(Self {
            group,
            router,
            prefix,
            times: Times::OURS,
            start,
            next,
            pulse,
            look,
            grown,
            state,
            closing,
            watched,
            share,
            places,
        })
    }

    /// Takes the places that the watch needs, on its connection and in the node.
    pub(super) fn placed(mut self, port: &PortState, link: &Link) -> Result<Self, Refused> {
        let places = [
            ("this connection", &link.watches, CONNECTION_WATCHES_MAX),
            ("this node", &port.watches, port.watches_max),
        ];
        for (whose, count, most) in places {
            let place = Place::take(count, most);
            self.places.push(place.ok_or_else(|| Refused::too_many_watches(whose, most))?);
        }
        self.share = Some(Arc::clone(&link.share));
        Ok(self)
    }

    async fn turn(mut self) -> (Self, Result<wire::WatchResponse, Refused>) {
        let message = self.message().await;
        (self, message)
    }

    /// The next message, or why there is none.
    async fn message(&mut self) -> Result<wire::WatchResponse, Refused> {
        let mut next = match self.next {
            Some(next) => next,
            None => self.begin().await?,
        };
        loop {
            // What changes from here on wakes this again; a state is told after the board.
            let _ = self.grown.borrow_and_update();
            let end = self.state.borrow_and_update().clone();
            self.refuse_if_closing()?;
            let reading = self.read(next)?;
            next = reading.next;
            self.next = Some(next);
            let now = Instant::now();
            let rested = now + self.times.look;
            let whole = next >= Position::of_entry(reading.applied.saturating_add(1));
            if !reading.events.is_empty() || (now >= self.pulse && whole) {
                self.pulse = now + self.times.pulse;
                self.look = if whole { rested } else { now };
                return Ok(self.to_wire(reading));
            }
            if !whole {
                tokio::task::yield_now().await;
                continue;
            }
            if let Some(refusal) = end_of(&end) {
                return Err(self.refused(&refusal));
            }
            self.look = rested;
            self.wait().await;
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) {
        let Self { pulse, look, grown, state, closing, .. } = self;
        let events = async {
            changed(grown).await;
            tokio::time::sleep_until(*look).await;
        };
        tokio::select! {
            () = events => {}
            () = changed(state) => {}
            () = until(closing.clone()) => {}
            () = tokio::time::sleep_until(*pulse) => {}
        }
    }

    /// Finds the position to begin at, and waits for a replica that lags behind it.
    async fn begin(&mut self) -> Result<Position, Refused> {
        let mut applied = self.group.events().applied();
        let late = tokio::time::sleep(self.times.catch_up_max);
        tokio::pin!(late);
        loop {
            let state = self.state.borrow_and_update().clone();
            let now = *applied.borrow_and_update();
            self.refuse_if_closing()?;
            let ready = Position::of_entry(now.saturating_add(1));
            if let Some(start) = self.start.filter(|start| *start <= ready) {
                return Ok(start);
            }
            // For a replica that applies nothing, or has not begun to, there is no "now".
            let unready = state.query_refusal().filter(|_| now == 0 && self.start.is_none());
            if let Some(refusal) = end_of(&state).or(unready) {
                return Err(self.refused(&refusal));
            }
            let Some(start) = self.start else { return Ok(ready) };
            tokio::select! {
                () = changed(&mut applied) => {}
                () = changed(&mut self.state) => {}
                () = until(self.closing.clone()) => {}
                () = &mut late => {
                    return Err(match state.query_refusal() {
                        Some(refusal) => self.refused(&refusal),
                        None => Refused::from_future(self.group.name(), start, now),
                    });
                }
            }
        }
    }

    fn read(&self, next: Position) -> Result<Reading, Refused> {
        // A connection that holds much gets one event at a time, so that it holds little more.
        let near = self.share.as_ref().is_some_and(|share| share.is_near());
        let most = if near { 0 } else { WATCH_MESSAGE_BYTES_MAX - limits::EVENT_OVERHEAD_BYTES };
        self.group.events().read(next, &self.prefix, most).map_err(|Compacted { begin }| {
            self.watched.compacted();
            Refused::compacted(self.group.name(), next, begin)
        })
    }

    fn to_wire(&self, reading: Reading) -> wire::WatchResponse {
        self.watched.sent(reading.events.len());
        let Position { index, number } = reading.next;
        wire::WatchResponse {
            events: reading.events.into_iter().map(event_to_wire).collect(),
            // The entry of the next position may have events that were not sent.
            applied_index: index.saturating_sub(1),
            next: Some(wire::Position { index, number }),
        }
    }

    fn refuse_if_closing(&self) -> Result<(), Refused> {
        // If nobody is left to say that the node stops, it has stopped.
        let closing = *self.closing.borrow() || self.closing.has_changed().is_err();
        if closing { Err(self.refused(&Refusal::ShuttingDown)) } else { Ok(()) }
    }

    fn refused(&self, refusal: &Refusal) -> Refused {
        Refused::by_group(refusal, self.group.name(), &self.router)
    }
}

/// Why a replica in this state will apply nothing more; `None` if it will.
fn end_of(state: &ReplicaState) -> Option<Refusal> {
    match state {
        ReplicaState::Running(Running::Halted(_)) | ReplicaState::Stopped(_) => state.refusal(),
        ReplicaState::Running(
            Running::Serving
            | Running::Restoring
            | Running::Rebuilding(_)
            | Running::Joining
            | Running::NeedsSnapshot(_)
            | Running::DiskFull(_)
            | Running::DiskStalled(_)
            | Running::MemoryHigh(_)
            | Running::Frozen,
        ) => None,
    }
}

/// Ready when the value changed; never if nobody is left who could change it.
async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending().await
    }
}

fn event_to_wire(kept: KeptEvent) -> wire::Event {
    let KeptEvent { position, time_ms, event } = kept;
    wire::Event {
        index: position.index,
        number: position.number,
        time_ms,
        topic: event.topic.as_ref().to_owned(),
        payload: event.payload,
    }
}

/// One of a bounded number of places; dropping it frees the place.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let place = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

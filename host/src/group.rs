//! Hosting one group: its actor, its mailbox and its lanes.
//!
//! The actor is the tokio shell around the core: it *selects* an input, hands it to
//! [`lockstep_core::group::Group`], and carries out the effects. It decides nothing itself, and
//! awaits nothing but its inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::apply::Answer;
use lockstep_core::fault::{Fault, Refusal, Stall};
use lockstep_core::group::{
    ApplyJob, Effect, Event, Found, Group, Halt, Inbound, ReplicaState, Running, Stopped,
};
use lockstep_core::ids::Ticket;
use lockstep_core::limits;
use lockstep_core::mutant::{plant, planted};
use lockstep_core::snapshot::SnapshotDesc;
use tokio::sync::{oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::clock::Clock;
use crate::disk_watch::Hanging;
use crate::metrics::Transfers;
use crate::panics::panic_text;
use crate::store::layout::ObjectName;
use crate::store::{Budget, OpenError, SnapshotReader, StoreHandle, Use, on_lane};
use crate::transport::Transport;

mod agenda;
pub mod apply_lane;
mod apply_thread;
pub(crate) mod askers;
mod background_writer;
mod capture;
mod commits;
mod deliveries;
pub mod event_board;
pub mod gauges;
pub(crate) mod inbox;
pub(crate) mod join_watch;
pub(crate) mod line;
pub mod log_lane;
pub(crate) mod mailbox;
mod notices;
mod outbox;
pub(crate) mod prepare;
mod query_guard;
pub(crate) mod readers;
pub mod reopen;
pub(crate) mod start;
mod store_lane;

#[cfg(test)]
pub(crate) mod tests;

pub use askers::Asker;
pub use mailbox::{GroupHandle, GroupReport, HaltedAt, QueryAnswer};

use agenda::Query;
use askers::{Asked, Places};
use commits::Commits;
use deliveries::Delivery;
use gauges::Gauges;
use inbox::Judged;
use join_watch::JoinWatch;
use line::Reply;
pub(crate) use log_lane::LogLane;
use log_lane::PersistJob;
use mailbox::{Inward, Mailbox, Request};
use notices::Notices;
use outbox::Outbound;
use readers::Readers;
use store_lane::{Standing, StoreWatch};

/// Inputs that the actor takes between two flushes: the bound of a group commit.
const INPUTS_PER_FLUSH_MAX: usize = 4_096;
/// Ticks between two published reports.
const REPORT_TICKS: u64 = 1;
/// Ticks between two requests to the store lane to tidy up: it gives up a transfer that has been
/// suspended for too long, and makes space that other groups claim.
const TEND_TICKS: u64 = 50;

/// The warning, in log and status, about a node whose clock is off.
pub(crate) const CLOCK_IS_OFF: &str = "this node's clock is more than 5 s off the others': \
    correct it (NTP); until then this node does not lead while another can";

/// Drives one replica.
pub(crate) struct GroupActor {
    group: Group,
    handle: GroupHandle,
    mailbox: Mailbox,
    ticks: Interval,
    ticked: u64,
    tickets: BTreeMap<Ticket, Waiting>,
    /// Places of the queries that wait, here or in the apply lane.
    places: Places,
    next_ticket: u64,
    /// Holds on the answers of this turn, dropped once the answers have been handed over.
    delivering: Vec<Delivery>,
    commits: Commits,
    notices: Notices,
    joins: JoinWatch,
    /// The stall of the log's disk as last reported to the core.
    stall: Option<Stall>,
    /// Recurring requests to the store lane: to measure the space for the next snapshot (`looks`),
    /// and to tidy up (`tends`).
    looks: Standing,
    tends: Standing,
    lanes: Lanes,
    state: watch::Sender<ReplicaState>,
    report: watch::Sender<GroupReport>,
}

/// Where effects go.
pub(crate) struct Lanes {
    pub cluster: [u8; 16],
    pub log: LogLane,
    pub apply: mpsc::Sender<LaneJob>,
    pub store: Arc<dyn StoreHandle>,
    pub transport: Arc<dyn Transport>,
    pub clock: Arc<dyn Clock>,
    pub listed: Arc<Mutex<Vec<SnapshotDesc>>>,
    pub gauges: Arc<Gauges>,
    pub judged: Judged,
    pub budget: Arc<Budget>,
    pub transfers: Arc<Transfers>,
    pub stored: StoreWatch,
    /// Rate of an outbound transfer, bytes a second; 0 = no limit.
    pub rate: u64,
    pub readers: Readers,
    pub preparer: prepare::Preparer,
}

/// Work for the apply lane's thread.
pub(crate) enum LaneJob {
    Do(ApplyJob),
    Ask(Query),
}

enum Waiting {
    Command(Reply),
    Query(Asked),
    /// Is answered with the index of the entry that it asked for: a checkpoint, or an order.
    Entry(oneshot::Sender<Result<u64, Refusal>>),
}

impl Waiting {
    /// Whether the caller still waits for the answer.
    fn waits(&self) -> bool {
        match self {
            Self::Command(answer) => !answer.is_closed(),
            Self::Query(asked) => asked.waits(),
            Self::Entry(answer) => !answer.is_closed(),
        }
    }
}

/// An input that the actor acts on.
enum Input {
    Tick,
    Inward(Inward),
    Frame(Inbound),
    Request(Request),
}

impl GroupActor {
    pub(crate) fn new(
        group: Group,
        handle: GroupHandle,
        mailbox: Mailbox,
        lanes: Lanes,
        state: watch::Sender<ReplicaState>,
        report: watch::Sender<GroupReport>,
    ) -> Self {
        let mut ticks = interval(Duration::from_millis(limits::TICK_MS));
        // A process that was paused must not make up for the missed ticks at once: its peers did
        // not wait for it.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            group,
            handle,
            mailbox,
            ticks,
            ticked: 0,
            tickets: BTreeMap::new(),
            places: Places::default(),
            next_ticket: 0,
            delivering: Vec::new(),
            commits: Commits::default(),
            notices: Notices::default(),
            joins: JoinWatch::default(),
            stall: None,
            looks: Standing::default(),
            tends: Standing::default(),
            lanes,
            state,
            report,
        }
    }

    /// Runs until the replica stops. `first` holds the effects of opening it.
    pub(crate) async fn run(mut self, first: Vec<Effect>) {
        self.carry_out(first);
        while !self.group.state().is_stopped() {
            let input = self.select().await;
            let turn = catch_unwind(AssertUnwindSafe(|| self.turn(input)));
            if let Err(panic) = turn {
                let fault = Fault::Internal(panic_text(&*panic).to_owned());
                self.publish_state(ReplicaState::Stopped(Stopped::Failed(fault)));
                break;
            }
        }
        self.close();
    }

    /// Waits for the next input, without acting on it.
    async fn select(&mut self) -> Input {
        tokio::select! {
            biased;
            _ = self.ticks.tick() => Input::Tick,
            Some(inward) = self.mailbox.events.recv() => Input::Inward(inward),
            Some(frame) = self.mailbox.frames.recv() => Input::Frame(frame),
            Some(request) = self.mailbox.requests.recv() => Input::Request(request),
        }
    }

    /// Takes an input and all others that already wait, up to a bound, then lets the core flush.
    fn turn(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.step(&mut effects, |actor, effects| actor.take(input, effects));
        for _ in 0..INPUTS_PER_FLUSH_MAX {
            let Some(input) = self.try_next() else { break };
            self.step(&mut effects, |actor, effects| actor.take(input, effects));
        }
        self.step(&mut effects, |actor, effects| actor.group.flush(effects));
        let (leads, now) = (self.group.leads(), self.lanes.clock.running());
        let commits = &self.lanes.gauges.commits;
        self.commits.look(leads, now).iter().for_each(|took| commits.observe(took.as_secs_f64()));
        self.carry_out(effects);
        self.delivering.clear();
    }

    /// Runs `doing`, then breaks the line of each command that it refused. This comes before the
    /// refusals are delivered, so that no later command of such a line is taken in between.
    fn step(&mut self, effects: &mut Vec<Effect>, doing: impl FnOnce(&mut Self, &mut Vec<Effect>)) {
        let before = effects.len();
        doing(self, effects);
        for effect in &effects[before..] {
            if let Effect::Answer { ticket, answer: Err(refusal) } = effect
                && let Some(Waiting::Command(reply)) = self.tickets.get(ticket)
            {
                reply.refused(refusal);
            }
        }
    }

    fn try_next(&mut self) -> Option<Input> {
        let mailbox = &mut self.mailbox;
        let inward = mailbox.events.try_recv().ok().map(Input::Inward);
        inward
            .or_else(|| mailbox.frames.try_recv().ok().map(Input::Frame))
            .or_else(|| mailbox.requests.try_recv().ok().map(Input::Request))
    }

    fn take(&mut self, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Tick => {
                self.ticked += 1;
                if self.ticked.is_multiple_of(REPORT_TICKS) {
                    self.publish_report();
                    self.notices.tell(self.handle.name(), &self.report.borrow().status);
                    self.joins.look(&self.report.borrow().status, &*self.lanes.transport);
                }
                if self.ticked.is_multiple_of(TEND_TICKS) {
                    let handle = self.handle.clone();
                    let clock = Arc::clone(&self.lanes.clock);
                    self.tends.ask(&*self.lanes.store, move |store| {
                        // The clock is read here, on the lane, which may run this job much later if
                        // its disk hung.
                        if let Some(unlist) = store.tend(clock.running().as_millis() as u64) {
                            handle.raise(Event::SpaceWanted { unlist, capture: None });
                        }
                    });
                }
                self.look_for_space();
                self.forget_the_gone(effects);
                self.look_at_the_disk(effects);
                self.group.handle(Event::Tick { wall_ms: self.lanes.clock.wall_ms() }, effects);
            }
            Input::Inward(Inward { event, delivery }) => {
                self.delivering.extend(delivery);
                self.group.handle(event, effects);
            }
            Input::Frame(inbound) => {
                self.handle.took_frame(&inbound);
                self.group.handle(Event::Frame(inbound), effects);
            }
            Input::Request(request) => {
                self.handle.took_request(&request);
                if let Some(event) = self.admit(request) {
                    self.group.handle(event, effects);
                }
            }
        }
    }

    /// Asks the store lane whether there is space for the next snapshot.
    fn look_for_space(&self) {
        let handle = self.handle.clone();
        self.looks.ask(&*self.lanes.store, move |store| {
            if let Some(space) = store.next_space() {
                handle.raise(Event::SnapshotSpace(space));
            }
        });
    }

    /// Tells the core which requests lost their callers, so that it does nothing more for them.
    /// Requests are checked in order of arrival: if a line loses its client during the check, only
    /// the last commands of the line are dropped.
    fn forget_the_gone(&mut self, effects: &mut Vec<Effect>) {
        let gone = self.tickets.iter().filter(|(_, waiting)| !waiting.waits());
        let tickets: BTreeSet<Ticket> = gone.map(|(ticket, _)| *ticket).collect();
        if !tickets.is_empty() {
            self.group.handle(Event::Gone { tickets }, effects);
        }
    }

    /// Tells the core when the log lane begins to hang in a disk operation, and when it no longer
    /// does.
    fn look_at_the_disk(&mut self, effects: &mut Vec<Effect>) {
        let stall = self.lanes.log.hanging().map(Hanging::stall);
        if stall != self.stall {
            self.stall.clone_from(&stall);
            self.group.handle(Event::DiskStalled(stall), effects);
        }
    }

    /// Gives a request its ticket and returns the event for the core. A query that gets no place is
    /// refused here, and a request whose caller left is dropped.
    fn admit(&mut self, request: Request) -> Option<Event> {
        if !request.waits() && !planted("propose_for_nobody") {
            return None;
        }
        if let Request::Report { done } = request {
            self.publish_report();
            let _ = done.send(());
            return None;
        }
        if let Request::Entry { index, answer } = request {
            let (reader, id) = (self.lanes.log.reader(), self.handle.id());
            readers::read_entry(&self.lanes.readers.log, reader, (id, index), answer);
            return None;
        }
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        let (waiting, event) = match request {
            Request::Propose { call, relief, answer } => {
                if let Some(refusal) = answer.refusal() {
                    answer.send(Err(refusal));
                    return None;
                }
                (Waiting::Command(answer), Event::Propose { ticket, call, relief })
            }
            Request::OpenSession { nonce, answer } => {
                (Waiting::Command(answer), Event::OpenSession { ticket, nonce })
            }
            Request::CloseSession { session, answer } => {
                (Waiting::Command(answer), Event::CloseSession { ticket, session })
            }
            Request::Query { request, linearizable, asker, answer } => {
                let Some(place) = self.places.take(asker, request.len()) else {
                    drop(answer.send(Err(Refusal::Overloaded)));
                    return None;
                };
                let waiting = Waiting::Query(Asked { asker, answer, _place: place });
                (waiting, Event::Query { ticket, request, linearizable })
            }
            Request::Checkpoint { answer } => {
                (Waiting::Entry(answer), Event::Checkpoint { ticket })
            }
            Request::Order { order, answer } => {
                (Waiting::Entry(answer), Event::Order { ticket, order })
            }
            Request::Repair { answer } => (Waiting::Entry(answer), Event::Repair { ticket }),
            Request::Entry { .. } | Request::Report { .. } => unreachable!("answered above"),
        };
        self.tickets.insert(ticket, waiting);
        Some(event)
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist { seq, job } => {
                    self.lanes.log.persist(PersistJob { seq, job, group: self.handle.clone() });
                }
                Effect::Fetch { from, to, bytes } => self.fetch(from, to, bytes),
                Effect::Apply(ApplyJob::Query { ticket, request, index }) => {
                    self.ask(ticket, request, index);
                }
                Effect::Apply(job) => {
                    // The lane is gone only while the process shuts down.
                    let _ = self.lanes.apply.send(LaneJob::Do(job));
                }
                Effect::List { snapshots, promised, pressure, holds } => {
                    self.list(snapshots, promised, pressure, holds);
                }
                Effect::Prove { snapshot } => self.read_whole(snapshot),
                Effect::Send { to, frame } => self.lanes.transport.send(to, frame),
                Effect::SendSnapshot { to, snapshot, purpose, insist } => {
                    let outbound = Outbound { to, snapshot, purpose, insist };
                    outbox::spawn(&self.lanes, &self.handle, &self.group, outbound);
                }
                Effect::Prepare(wanted) => self.lanes.preparer.begin(&self.handle, wanted),
                Effect::Judged { object, taken } => self.lanes.judged.tell(object, taken),
                Effect::Answer { ticket, answer } => self.answer(ticket, answer),
                Effect::Entered { ticket, index } => self.entered(ticket, index),
                Effect::State(state) => self.publish_state(state),
            }
        }
    }

    fn fetch(&self, from: u64, to: u64, bytes: u64) {
        let (reader, handle) = (self.lanes.log.reader(), self.handle.clone());
        tokio::spawn(readers::read(Arc::clone(&self.lanes.readers.log), move || {
            let entries = reader.entries(handle.id(), from, to, bytes);
            if let Err(error) = &entries {
                tracing::warn!(group = handle.name(), from, %error, "could not read entries \
                    for a follower");
            }
            handle.raise(Event::Fetched { from, entries: entries.ok() });
        }));
    }

    /// Has a listed object read whole, and raises [`Event::Read`] with the result.
    fn read_whole(&self, snapshot: SnapshotDesc) {
        let (handle, object) = (self.handle.clone(), snapshot.clone());
        let reader = handle.clone();
        let (readers, disk) = (self.lanes.readers.clone(), Arc::clone(&self.lanes.gauges.disk));
        let read = async move {
            let place = readers.place_at(&disk).await.map_err(|hanging| hanging.to_string())?;
            let read = readers::read_in(place, move || reader.scrub(&object, &mut || ())).await;
            read.ok_or_else(|| "its reader panicked".to_owned())
        };
        tokio::spawn(async move {
            // The core waits for this event, so it is raised even if the reader panicked.
            let found = match read.await {
                Ok(read) => read.map_or_else(Found::from, |()| Found::Whole),
                Err(why) => Found::Unread(why),
            };
            if let Found::Bad(why) = &found
                && handle.lists(&snapshot)
            {
                let index = snapshot.index;
                tracing::error!(group = handle.name(), index, why, "a snapshot is corrupt");
            }
            handle.raise(Event::Read { snapshot, found });
        });
    }

    fn list(
        &self,
        snapshots: Vec<SnapshotDesc>,
        promised: Vec<SnapshotDesc>,
        pressure: bool,
        mut holds: Vec<Box<dyn lockstep_core::snapshot::Hold>>,
    ) {
        self.lanes.listed.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&snapshots);
        let group = self.handle.name().to_owned();
        self.lanes.store.run(Box::new(move |store| {
            if pressure {
                store.abandon();
            }
            let collected = store.list_durable(&snapshots, &promised);
            holds.iter_mut().for_each(|hold| hold.listed());
            drop(holds);
            for error in collected.errors {
                tracing::warn!(group, error, "could not delete an unlisted snapshot");
            }
        }));
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Refusal>) {
        match (self.tickets.remove(&ticket), answer) {
            (Some(Waiting::Command(reply)), answer) => reply.send(answer),
            (Some(Waiting::Query(asked)), Err(refusal)) => asked.answer(Err(refusal)),
            (Some(Waiting::Entry(sender)), Err(refusal)) => drop(sender.send(Err(refusal))),
            (Some(Waiting::Query(_) | Waiting::Entry(_)), Ok(_)) => {
                unreachable!("the core only refuses queries, checkpoints and orders")
            }
            (None, _) => unreachable!("a ticket is answered once"),
        }
    }

    /// Passes a query to the apply lane, which answers it.
    fn ask(&mut self, ticket: Ticket, request: Bytes, index: u64) {
        match self.tickets.remove(&ticket) {
            Some(Waiting::Query(asked)) => {
                let _ = self.lanes.apply.send(LaneJob::Ask(Query { request, index, asked }));
            }
            Some(Waiting::Command(_) | Waiting::Entry(_)) | None => {
                unreachable!("the ticket belongs to a query")
            }
        }
    }

    fn entered(&mut self, ticket: Ticket, index: u64) {
        match self.tickets.remove(&ticket) {
            Some(Waiting::Entry(sender)) => drop(sender.send(Ok(index))),
            Some(Waiting::Command(_) | Waiting::Query(_)) | None => {
                unreachable!("the ticket belongs to a checkpoint or an order")
            }
        }
    }

    fn publish_state(&self, state: ReplicaState) {
        let cause = state.cause();
        let group = self.handle.name();
        match &state {
            ReplicaState::Stopped(Stopped::Failed(_)) => {
                tracing::error!(group, state = state.name(), cause, "replica state");
            }
            ReplicaState::Running(Running::Halted(Halt { applied_by: Some(_), .. })) => {
                tracing::error!(group, state = state.name(), cause, "replica state");
            }
            ReplicaState::Running(
                Running::Halted(_)
                | Running::DiskFull(_)
                | Running::DiskStalled(_)
                | Running::MemoryHigh(_),
            ) => {
                tracing::warn!(group, state = state.name(), cause, "replica state");
            }
            ReplicaState::Running(_) | ReplicaState::Stopped(_) => {
                tracing::info!(group, state = state.name(), cause, "replica state");
            }
        }
        self.state.send_replace(state);
        self.publish_report();
    }

    fn publish_report(&self) {
        self.report.send_replace(GroupReport::of(&self.lanes, self.group.status()));
    }

    /// Answers every request that still waits with the reason of the end; later requests see the
    /// state. A command still in the mailbox was not applied; the fate of one that the core had
    /// taken is unknown.
    fn close(mut self) {
        self.publish_report();
        plant!("end_twice" does self.publish_state(ReplicaState::Stopped(Stopped::Requested)));
        let refusal = self.state.borrow().refusal().unwrap_or(Refusal::ShuttingDown);
        self.mailbox.requests.close();
        while let Ok(request) = self.mailbox.requests.try_recv() {
            request.refuse(refusal.clone());
        }
        for waiting in std::mem::take(&mut self.tickets).into_values() {
            match waiting {
                Waiting::Command(reply) => {
                    reply.send(Err(Refusal::Unknown { why: refusal.to_string() }));
                }
                Waiting::Query(asked) => asked.answer(Err(refusal.clone())),
                Waiting::Entry(sender) => drop(sender.send(Err(refusal.clone()))),
            }
        }
    }
}

/// Opens an object for reading, through the store lane. If the lane is gone the error is
/// [`OpenError::Short`], for nothing is known about the object.
pub(crate) fn open_object(
    store: &dyn StoreHandle,
    desc: &SnapshotDesc,
    purpose: Use,
) -> Result<SnapshotReader, OpenError> {
    let object = desc.clone();
    on_lane(store, move |store| store.open_object(&object, purpose)).unwrap_or_else(|| {
        let (name, why) = (ObjectName::of(desc).file(), "the store lane is gone".to_owned());
        Err(OpenError::Short { name, why })
    })
}

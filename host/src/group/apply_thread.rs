//! The thread around an [`ApplyLane`]: it gathers jobs and does them in the order of the
//! [`Agenda`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_core::apply::Answer;
use lockstep_core::fault::Fault;
use lockstep_core::group::Event;

use crate::clock::Clock;
use crate::group::agenda::{Agenda, Next, Query};
use crate::group::apply_lane::{ApplyLane, Output, Tools};
use crate::group::capture::Capture;
use crate::group::deliveries::Deliveries;
use crate::group::gauges::Gauges;
use crate::group::{GroupHandle, LaneJob};
use crate::panics::panic_text;
use crate::starting::{StartError, thread};
use crate::store::StoreHandle;

/// Stack of the thread, bytes: wasmtime takes up to 1 MiB of it for the guest.
const STACK_BYTES: usize = 4 << 20;
/// The wait before work that found no place is tried again, unless another job arrives first.
const PLACE_RETRY: Duration = Duration::from_millis(100);

/// The lane, and where its outputs go.
struct Worker {
    lane: ApplyLane,
    agenda: Agenda,
    /// The next piece of work waits for one of the host's places.
    waits: bool,
    handle: GroupHandle,
    deliveries: Arc<Deliveries>,
    store: Arc<dyn StoreHandle>,
    clock: Arc<dyn Clock>,
    gauges: Arc<Gauges>,
}

/// Starts the thread, which ends once all senders of `jobs` are dropped.
pub(super) fn start(
    name: &str,
    tools: Tools,
    jobs: Receiver<LaneJob>,
    handle: GroupHandle,
) -> Result<JoinHandle<()>, StartError> {
    let store = Arc::clone(&tools.store);
    let (clock, gauges) = (Arc::clone(&tools.clock), Arc::clone(&tools.gauges));
    let (lane, agenda) = (ApplyLane::new(tools), Agenda::default());
    let deliveries = Arc::default();
    let waits = false;
    let mut worker = Worker { lane, agenda, waits, handle, deliveries, store, clock, gauges };
    let builder = std::thread::Builder::new().name(format!("apply-{name}")).stack_size(STACK_BYTES);
    let started = builder.spawn(move || {
        while worker.gather(&jobs) {
            worker.step()
        }
    });
    started.map_err(|e| thread(format!("apply lane of {name:?}"), e))
}

impl Worker {
    /// Takes all jobs that have arrived, and waits for one if there is nothing to do; false at the
    /// end.
    fn gather(&mut self, jobs: &Receiver<LaneJob>) -> bool {
        if std::mem::take(&mut self.waits) {
            match jobs.recv_timeout(PLACE_RETRY) {
                Ok(job) => self.add(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        } else if self.agenda.is_empty() {
            match jobs.recv() {
                Ok(job) => self.add(job),
                Err(_) => return false,
            }
        }
        loop {
            match jobs.try_recv() {
                Ok(job) => self.add(job),
                Err(TryRecvError::Empty) => return true,
                // Dropping the agenda tells the callers whose queries are still in it.
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn add(&mut self, job: LaneJob) {
        match job {
            LaneJob::Do(job) => self.agenda.add_work(job),
            LaneJob::Ask(query) => self.agenda.add_query(query),
        }
    }

    fn step(&mut self) {
        let began = Instant::now();
        match self.agenda.next(self.lane.applied()) {
            None => {}
            Some(Next::Work(job)) => {
                let outputs = self.guarded(|lane| lane.run(job));
                self.agenda.worked(began.elapsed());
                self.pass_on(outputs.unwrap_or_default());
            }
            Some(Next::Ask(Query { request, index, asked })) => {
                let asker = asked.asker;
                let answered = self.guarded(|lane| lane.ask(asker, &request, index));
                self.agenda.asked(asker, began.elapsed());
                if let Some((answer, outputs)) = answered {
                    asked.answer(answer);
                    self.pass_on(outputs);
                }
            }
        }
    }

    /// Lets the lane do something. If that panics, the replica halts.
    fn guarded<R>(&mut self, work: impl FnOnce(&mut ApplyLane) -> R) -> Option<R> {
        let done = catch_unwind(AssertUnwindSafe(|| work(&mut self.lane)));
        done.inspect_err(|panic| {
            let fault = Fault::Internal(format!("apply lane: {}", panic_text(&**panic)));
            self.lane.give_up(fault.clone());
            self.handle.raise(Event::GuestFailed { build: self.lane.build(), fault });
        })
        .ok()
    }

    fn pass_on(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Event(event) => match answer_bytes(&event) {
                    0 => self.handle.raise(event),
                    bytes => self.handle.raise_with(event, self.deliveries.begin(bytes)),
                },
                Output::Rest(job) => self.agenda.give_back(job),
                Output::Later(job) => {
                    self.agenda.give_back(job);
                    self.waits = true;
                }
                Output::Seal(capture) => self.seal(capture),
                Output::Queried { .. } => unreachable!("`run` is given no queries"),
            }
        }
    }

    /// Seals a capture on a thread of its own. The core hears how it ended, even if that panics.
    fn seal(&self, capture: Capture) {
        let index = capture.index();
        let failed = move |why: String| Event::CaptureFailed { index, why, postponed: false };
        let (told, store) = (self.handle.clone(), Arc::clone(&self.store));
        let (clock, gauges) = (Arc::clone(&self.clock), Arc::clone(&self.gauges));
        let began = clock.running();
        let spawned = std::thread::Builder::new().name("seal".to_owned()).spawn(move || {
            let sealed = catch_unwind(AssertUnwindSafe(|| capture.seal(&*store)));
            let event = sealed.unwrap_or_else(|panic| failed(panic_text(&*panic).to_owned()));
            if matches!(event, Event::Captured(_)) {
                let took = clock.running().saturating_sub(began).as_millis() as u64;
                gauges.last_capture_ms.store(took, Ordering::Relaxed);
                gauges.last_snapshot_wall_ms.store(clock.wall_ms(), Ordering::Relaxed);
            }
            told.raise(event);
        });
        if let Err(error) = spawned {
            self.handle.raise(failed(format!("could not start a thread to seal it: {error}")));
        }
    }
}

/// Bytes of the answers that the event carries.
fn answer_bytes(event: &Event) -> usize {
    let Event::Applied(applied) = event else { return 0 };
    applied.answers.iter().flat_map(|entry| &entry.answers).map(Answer::bytes).sum()
}

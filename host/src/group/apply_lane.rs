//! The apply lane: the only holder of a group's live guest, and of the ledger beside it.
//!
//! [`ApplyLane::run`] takes one job and returns what to tell the core; a thread per group calls it.
//!
//! - Only answers that a caller waits for are kept. They are reported once they reach
//!   [`APPLY_ANSWERS_BYTES_MAX`], before the job goes on.
//! - One guest call per entry. A guest that faults is dropped with its store, rebuilt from a
//!   recovery point and the log, and tried once more; if it faults again, the replica halts.
//! - A rebuild does what a start does: it restores the newest listed snapshot that can be restored,
//!   then replays the log up to the goal.
//! - There is one guest at a time: the old one is dropped before another is made, but for trials of
//!   another module. A restored guest is kept only if it accepted the payload, and the payload's
//!   length and digest are right.
//! - A start or a restore waits for one of the host's places to restore a snapshot. A rebuild that
//!   a fault forces in the middle of other work needs no place.
//! - When raft installs a snapshot, the log is cut while the lane may still be reading it. The lane
//!   then drops its guest and waits for the restore; this is no fault.
//! - A recovery point that cannot be read for lack of descriptors or memory counts as good: if no
//!   other one can be restored, the lane halts, and the core starts it again later.
//! - A recovery point whose object is corrupt is reported, and the next older one is tried. If none
//!   is left, the lane waits for another start while the core asks a peer for an object.
//! - A capture that fits only if an older recovery point is unlisted is handed back, to be tried
//!   again at the same index: the core gives the lane nothing but queries meanwhile.
//! - Log lines of a guest are suppressed while it applies an entry that this replica may have
//!   applied before.
//! - A node-local failure (disk, memory) is a fault or a failed snapshot, never an outcome.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::amendment::Amendments;
use lockstep_core::apply::{Answer, Applied, EntryAnswers, Ledger, Work};
use lockstep_core::fault::{Fault, FaultClass, GuestFault, Refusal};
use lockstep_core::group::trial::Stage;
use lockstep_core::group::{ApplyJob, Event};
use lockstep_core::ids::{GroupId, Ticket};
use lockstep_core::limits::APPLY_ANSWERS_BYTES_MAX;
use lockstep_core::memory::MemoryUse;
use lockstep_core::mutant::{plant, planted};
use lockstep_core::snapshot::SnapshotDesc;
use raft::eraftpb::Entry;

pub use self::places::restores;
use crate::clock::Clock;
use crate::group::QueryAnswer;
use crate::group::askers::Asker;
pub use crate::group::capture::Capture;
use crate::group::event_board::EventBoard;
use crate::group::gauges::Gauges;
use crate::group::query_guard::QueryGuard;
use crate::guest::{Guest, GuestLog, Module, Modules};
use crate::store::{Place, Quota, StoreHandle};
use crate::wal::WalReader;

pub(crate) use self::reading::read_ledger;
use snapshot_traps::SnapshotTraps;
pub use upgrading::readable;

mod asking;
mod building;
mod capturing;
mod halted;
mod places;
mod reading;
mod snapshot_traps;
#[cfg(test)]
mod tests;
mod upgrading;

/// How long the lane applies entries before queries have their turn.
const SLICE: Duration = Duration::from_millis(5);

/// What is left of a range: its next index, and the entries that were read already.
type Left = Option<(u64, Vec<Entry>)>;

/// What the lane works with.
pub struct Tools {
    pub group: GroupId,
    /// The modules that this node can run.
    pub modules: Arc<dyn Modules>,
    /// The `config` of this node's file, until it was compared with the group's.
    pub config: Option<Bytes>,
    pub log: WalReader,
    pub store: Arc<dyn StoreHandle>,
    pub clock: Arc<dyn Clock>,
    /// The snapshots that the log durably lists, newest first. The actor updates it, and so does
    /// the lane when it starts or restores.
    pub listed: Arc<Mutex<Vec<SnapshotDesc>>>,
    pub gauges: Arc<Gauges>,
    /// Where those who watch find the group's events.
    pub board: Arc<EventBoard>,
    /// Grants places to take or restore a snapshot, of which the host has a few.
    pub quota: Arc<Quota>,
}

/// An output of a job.
#[expect(clippy::large_enum_variant, reason = "events are the common case, and moved at once")]
pub enum Output {
    Event(Event),
    Queried {
        ticket: Ticket,
        answer: Result<QueryAnswer, Refusal>,
    },
    /// The unfinished rest of the job, to be run before any other work. Queries may run in between.
    Rest(ApplyJob),
    /// The job got no place to restore a snapshot: run it again a little later, before any other
    /// work.
    Later(ApplyJob),
    /// A captured snapshot, which a bulk worker has to finish, seal and read back.
    Seal(Capture),
}

/// A guest, and the module that it is one of.
struct Live {
    module: Module,
    guest: Box<dyn Guest>,
}

/// One group's guest and ledger.
pub struct ApplyLane {
    tools: Tools,
    ledger: Ledger,
    live: Option<Live>,
    /// A guest of another module with a copy of the state, which may take the live one's place.
    moved: Option<Live>,
    guest_log: Arc<GuestLog>,
    /// The index of the last entry that a guest of this replica may have applied, in this process
    /// or an earlier one. The guest's log lines are suppressed up to there.
    heard: u64,
    /// Why the lane is halted, if it is. A halted lane applies nothing more.
    fault: Option<Fault>,
    /// A fault that the lane has not reported to the core yet.
    untold: Option<Fault>,
    /// The number of the last start or restore.
    build: u64,
    /// The index of the newest recovery point that was listed when the last rebuild began.
    tried: u64,
    /// The log was cut while this lane read it: there is no guest until the core has the lane
    /// restore the snapshot that raft installed, or start again.
    overtaken: bool,
    /// No recovery point can be restored: there is no guest until a start or a restore brings one.
    waiting: bool,
    /// Additional events of the job under way, reported before the job's own output.
    aside: Vec<Event>,
    /// The guest's memory as last reported to the core.
    told_memory: Option<MemoryUse>,
    /// What the last start was told of skipped entries, raised limits and other modules.
    amendments: Amendments,
    query_guard: QueryGuard,
    snapshot_traps: SnapshotTraps,
    /// Since when a capture keeps the lane from applying entries.
    stalled: Option<Duration>,
    /// The place of the start or restore under way.
    place: Option<Place>,
    /// Since when a start or restore has waited for a place.
    no_place_since: Option<Duration>,
}

impl ApplyLane {
    pub fn new(tools: Tools) -> Self {
        Self {
            guest_log: GuestLog::new(tools.group, Arc::clone(&tools.clock)),
            tools,
            ledger: Ledger::default(),
            live: None,
            moved: None,
            heard: 0,
            fault: None,
            untold: None,
            build: 0,
            tried: 0,
            overtaken: false,
            waiting: false,
            aside: Vec::new(),
            told_memory: None,
            amendments: Amendments::default(),
            query_guard: QueryGuard::default(),
            snapshot_traps: SnapshotTraps::default(),
            stalled: None,
            place: None,
            no_place_since: None,
        }
    }

    /// The number of the last start or restore that this lane was given.
    pub(crate) fn build(&self) -> u64 {
        self.build
    }

    /// The last entry that the guest applied.
    pub fn applied(&self) -> u64 {
        self.ledger.applied()
    }

    /// Does one job. Most have one output; a rebuild that fails on the way adds the fault.
    pub fn run(&mut self, job: ApplyJob) -> Vec<Output> {
        if let ApplyJob::Query { ticket, request, index } = job {
            let (answer, mut outputs) = self.ask(Asker::default(), &request, index);
            outputs.insert(0, Output::Queried { ticket, answer });
            return outputs;
        }
        if !self.may_begin(&job) {
            return vec![Output::Later(job)];
        }
        if !matches!(job, ApplyJob::Capture { .. }) {
            // Any other job means that the core has given up a capture that waited for space.
            self.goes_on();
        }
        if let ApplyJob::Start { build, .. } | ApplyJob::Restore { build, .. } = job {
            self.build = build;
            (self.waiting, self.overtaken, self.fault) = (false, false, None);
        }
        let needs_no_guest = matches!(job, ApplyJob::Stand { .. } | ApplyJob::DropTried);
        let idle = self.overtaken || self.waiting || self.fault.is_some();
        if idle && !needs_no_guest {
            return vec![self.refuse(job)];
        }
        let mut rest = None;
        let output = match job {
            ApplyJob::Start { state, .. } => {
                let floor = state.floor;
                self.heard = self.heard.max(state.commit);
                *self.listed() = state.snapshots;
                self.amend(state.amendments);
                let started = self.rebuilt(floor);
                let clock = self.ledger.clock();
                self.begun(started, Event::Started { build: self.build, applied: floor, clock })
            }
            ApplyJob::Range { first, last, bytes, entries, awaited } => {
                let began = self.tools.clock.running();
                let applied = self.range(first, last, entries, &awaited, began);
                let reported = applied.map(|(applied, left)| match left {
                    None => Applied { bytes, ..applied },
                    Some((first, entries)) => {
                        rest = Some(ApplyJob::Range { first, last, bytes, entries, awaited });
                        applied
                    }
                });
                let let_go = Event::Applied(Applied { bytes, ..Applied::default() });
                Some(self.settle(reported.map(Event::Applied), let_go))
            }
            ApplyJob::Restore { snapshot, .. } => {
                let index = snapshot.index;
                let restored = self.install(&snapshot);
                // From now on a rebuild begins with this snapshot, even if the actor has not
                // updated the list yet.
                *self.listed() = vec![snapshot.clone()];
                let clock = self.ledger.clock();
                match restored {
                    Err(Fault::Restore(why)) if !planted("unread_restore_halts") => {
                        Some(self.not_restored(snapshot, why))
                    }
                    other => self.begun(other, Event::Restored { build: self.build, index, clock }),
                }
            }
            ApplyJob::Stand { goal } => Some(self.stand(goal)),
            ApplyJob::Capture { term, index, configuration, gain } => {
                Some(self.capture(term, index, configuration, gain))
            }
            ApplyJob::Try { trial, module } => Some(self.try_module(trial, module)),
            ApplyJob::DropTried => {
                self.moved = None;
                None
            }
            ApplyJob::Query { .. } => unreachable!("it was asked above"),
        };
        self.end(output.into_iter().chain(rest.map(Output::Rest)))
    }

    /// Takes over what there is to know of entries that do something else than they did, before a
    /// guest is built.
    fn amend(&mut self, amendments: Amendments) {
        for amendment in amendments.after(self.amendments.last()) {
            if let Some(index) = amendment.change.reaches_back_to() {
                self.tools.board.undo(index, amendment.at);
            }
        }
        self.amendments = amendments;
    }

    /// The output of a start or restore: `event` if it succeeded; otherwise the fault is recorded.
    fn begun(&mut self, result: Result<(), Fault>, event: Event) -> Option<Output> {
        match result {
            Ok(()) => Some(Output::Event(event)),
            Err(fault) => {
                self.lost(fault);
                None
            }
        }
    }

    /// Ends a job: updates the board and the gauges, and returns what there is to report. Events
    /// about the guest come before the job's outputs, a fault comes after them.
    fn end(&mut self, outputs: impl IntoIterator<Item = Output>) -> Vec<Output> {
        self.place = None;
        self.tools.board.follow(&self.ledger);
        let bytes = self.live.as_ref().map_or(0, |live| live.guest.memory_bytes());
        let gauges = &self.tools.gauges;
        gauges.guest_memory_bytes.store(bytes, Ordering::Relaxed);
        gauges.guest_log_dropped.store(self.guest_log.lines_dropped(), Ordering::Relaxed);
        let most = self.ledger.bootstrap().map(|record| record.profile.memory_bytes);
        // A native state machine has no memory limit, unless its profile sets one.
        let bounded = |most: &u64| bytes > 0 && *most < u64::MAX;
        let memory = most.filter(bounded).map(|most| MemoryUse { bytes, most });
        let news = memory.filter(|memory| self.told_memory != Some(*memory)).map(Event::Memory);
        self.told_memory = memory.or(self.told_memory);
        let aside = std::mem::take(&mut self.aside).into_iter();
        let mut outputs: Vec<Output> =
            news.into_iter().chain(aside).map(Output::Event).chain(outputs).collect();
        if let Some(fault) = self.untold.take() {
            tracing::error!(group = %self.tools.group, %fault, "the replica halts");
            outputs.push(Output::Event(Event::GuestFailed { build: self.build, fault }));
        }
        outputs
    }

    /// The output of a range: the event in `result` or, if the lane lost its guest on the way,
    /// `let_go`, which only returns the range's bytes to the core.
    fn settle(&mut self, result: Result<Event, Fault>, let_go: Event) -> Output {
        Output::Event(match result {
            Ok(event) => event,
            Err(fault) => {
                self.lost(fault);
                let_go
            }
        })
    }

    /// Drops guest and ledger, because the log was cut while the lane read it or because of
    /// `fault`.
    fn lost(&mut self, fault: Fault) {
        self.clear();
        match fault {
            _ if self.overtaken => self.aside.push(Event::Overtaken { build: self.build }),
            Fault::NoRecoverableSnapshot(why) => {
                self.waiting = true;
                tracing::error!(group = %self.tools.group, why,
                    "no recovery point can be restored");
                let (build, tried) = (self.build, self.tried);
                self.aside.push(Event::NeedsSnapshot { build, tried, why });
            }
            fault => (self.fault, self.untold) = (Some(fault.clone()), Some(fault)),
        }
    }

    fn listed(&self) -> MutexGuard<'_, Vec<SnapshotDesc>> {
        self.tools.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, job: ApplyJob) -> Output {
        match job {
            ApplyJob::Try { trial, .. } => Output::Event(Event::Tried {
                trial,
                stage: Stage::failed("there is no guest".to_owned()),
            }),
            ApplyJob::Query { .. } => unreachable!("queries are refused one by one"),
            ApplyJob::Capture { index, .. } => {
                let why = "there is no guest".into();
                Output::Event(Event::CaptureFailed { index, why, postponed: false })
            }
            ApplyJob::Range { bytes, .. } => {
                Output::Event(Event::Applied(Applied { bytes, ..Applied::default() }))
            }
            ApplyJob::Start { .. }
            | ApplyJob::Restore { .. }
            | ApplyJob::Stand { .. }
            | ApplyJob::DropTried => {
                // `run` refuses none of these.
                Output::Event(Event::Applied(Applied::default()))
            }
        }
    }

    /// Applies entries until the time slice is over or the answers reach their bound; returns what
    /// was applied, and what is left of the range.
    fn range(
        &mut self,
        first: u64,
        last: u64,
        entries: Vec<Entry>,
        awaited: &BTreeSet<u64>,
        began: Duration,
    ) -> Result<(Applied, Left), Fault> {
        let until = began.saturating_add(SLICE);
        let (mut answered, mut answered_bytes) = (Vec::new(), 0);
        let mut left = None;
        let mut next = first;
        let mut given = Some(entries).filter(|entries| !entries.is_empty());
        while next <= last && left.is_none() {
            let batch = match given.take() {
                Some(entries) => entries,
                None => self.read(next, last + 1)?,
            };
            let mut batch = batch.into_iter();
            while let Some(entry) = batch.next() {
                if entry.index > self.ledger.applied() {
                    let began = self.tools.clock.running();
                    let answers = self.apply_or_rebuild(&entry)?;
                    let took = self.tools.clock.running().saturating_sub(began);
                    self.tools.gauges.applies.observe(took.as_secs_f64());
                    if !answers.is_empty() && awaited.contains(&entry.index) {
                        answered_bytes += answers.iter().map(Answer::bytes).sum::<usize>();
                        let (index, term) = (entry.index, entry.term);
                        answered.push(EntryAnswers { index, term, answers });
                    }
                }
                next = entry.index + 1;
                let enough = answered_bytes >= APPLY_ANSWERS_BYTES_MAX
                    || self.tools.clock.running() >= until;
                if next <= last && enough {
                    left = Some((next, batch.by_ref().collect()));
                }
            }
        }
        let (last, clock) = (self.ledger.applied(), Some(self.ledger.clock()));
        self.tools.gauges.count(self.ledger.sessions());
        Ok((Applied { last, clock, bytes: 0, answers: answered }, left))
    }

    /// Applies an entry; if the guest faults it is rebuilt, and gets one more try.
    fn apply_or_rebuild(&mut self, entry: &Entry) -> Result<Vec<Answer>, Fault> {
        match self.apply(entry) {
            Err(Fault::Guest(fault)) => {
                self.tools.gauges.guest_faults.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(group = %self.tools.group, index = entry.index, %fault,
                    "the guest faulted; it is rebuilt and tried once more");
                self.rebuilt(entry.index - 1)?;
                self.apply(entry)
            }
            other => other,
        }
    }

    fn apply(&mut self, entry: &Entry) -> Result<Vec<Answer>, Fault> {
        let index = entry.index;
        if let Some(module) = self.amendments.module_from(index) {
            self.move_to(module, index)?;
        }
        let work = self.ledger.admit(entry, &self.amendments);
        let work = work.map_err(|e| Fault::Internal(format!("entry {index}: {e}")))?;
        if self.amendments.skips(index) {
            tracing::warn!(group = %self.tools.group, index, "the entry is skipped");
        }
        let again = index <= self.heard;
        let log = Arc::clone(&self.guest_log);
        let answers = log.silent_if(again, || self.work(index, work))?;
        self.heard = self.heard.max(index);
        Ok(answers)
    }

    fn guest(&mut self) -> Result<&mut dyn Guest, Fault> {
        let live = self.live.as_mut().ok_or_else(no_guest)?;
        Ok(&mut *live.guest)
    }

    fn work(&mut self, index: u64, work: Work) -> Result<Vec<Answer>, Fault> {
        match work {
            Work::Done(answers) => Ok(answers),
            Work::Init(moment) => {
                let mut live = self.fresh()?;
                let bootstrap = self.ledger.bootstrap().expect("init follows the bootstrap record");
                let emitted = live.guest.init(moment.into(), &bootstrap.config)?;
                self.ledger.emitted(emitted);
                self.built(0, 0, live);
                Ok(Vec::new())
            }
            Work::Move(module) => {
                self.move_to(module, index)?;
                Ok(Vec::new())
            }
            Work::Limit(profile) => {
                self.moved = None;
                self.guest()?.limit(&profile);
                Ok(Vec::new())
            }
            Work::Wake(moment) => {
                self.moved = None;
                let emitted = self.guest()?.wake(moment.into())?;
                self.ledger.emitted(emitted);
                Ok(Vec::new())
            }
            Work::Apply(plan) => {
                plant!("upgrade_under_commands" skips self.moved = None);
                let mut plan = plan;
                plant!("clock_in_apply" does plan.moment.time_ms = self.tools.clock.wall_ms());
                let count = plan.commands.len();
                let applied = self.guest()?.apply(plan.moment.into(), &plan.commands)?;
                self.ledger.emitted(applied.emitted);
                let outcomes: Vec<_> = applied.outcomes.into_iter().map(Into::into).collect();
                let got = outcomes.len();
                self.ledger.settle(plan, outcomes).ok_or_else(|| {
                    Fault::Guest(GuestFault {
                        class: FaultClass::Trap,
                        call: "apply",
                        index: Some(index),
                        message: format!("{got} outcomes for {count} commands"),
                    })
                })
            }
        }
    }
}

fn no_guest() -> Fault {
    Fault::Internal("commands without a bootstrap record before them".to_owned())
}

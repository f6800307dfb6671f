//! The apply lane: the only holder of a group's live guest, and of the ledger beside it.
//!
//! [`ApplyLane::run`] takes one job and returns what to tell the core; a thread per group calls it.
//!
//! - Answers that somebody waits for are told before they are many; the others are not kept.
//! - One guest call per entry. A guest that faults is dropped with its store, rebuilt from a
//!   recovery point and the log, and tried once more; if it faults again the replica parks.
//! - A rebuild is what a start is: the newest listed snapshot that restores, then the log up to the
//!   goal.
//! - There is one guest at a time: the old one goes before another is made. A restored one is kept
//!   only if length, digest and the guest's own word are good.
//! - A start or a restore has a place of the host's and waits for one. What a fault makes the lane
//!   rebuild in the middle of other work does without.
//! - When raft installs a snapshot the log is cut under a lane that may still read it; the lane
//!   lets go and waits for the restore, which is no fault.
//! - A recovery point that cannot be read for want of descriptors or memory is as good as ever:
//!   with no other one the lane halts, and the core starts it again.
//! - A recovery point whose object is rotten is reported, and the next older one tried. With none
//!   left the lane waits for another start: the core asks a peer for an object.
//! - A capture that finds room only without an older recovery point is given back, to be tried
//!   again at the same index: the core gives the lane nothing else meanwhile.
//! - A guest that applies what it had applied before is not heard.
//! - A node-local failure (disk, memory) is a fault or a failed snapshot, never an outcome.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::apply::{
    Answer, Applied, ENVELOPE_BYTES_MAX, EntryAnswers, Ledger, Moment, Work,
};
use lockstep_core::fault::{Fault, FaultClass, GuestFault, Refusal};
use lockstep_core::group::{ApplyJob, Event};
use lockstep_core::ids::{GroupId, Ticket};
use lockstep_core::limits::APPLY_ANSWERS_BYTES_MAX;
use lockstep_core::memory::{Footprint, MemoryUse};
use lockstep_core::mutant::planted;
use lockstep_core::snapshot::SnapshotDesc;
use raft::eraftpb::Entry;

pub use self::places::restores;
use crate::clock::Clock;
use crate::group::askers::Asker;
pub use crate::group::capture::Capture;
use crate::group::gauges::Gauges;
use crate::group::spoilers::Spoilers;
use crate::group::{QueryAnswer, open_object};
use crate::guest::{Context, Guest, GuestLog, Module, SnapshotHeader};
use crate::store::{OpenError, Place, Quota, SnapshotReader, StoreHandle, Use};
use crate::wal::{WalError, WalReader};

use snapshot_traps::SnapshotTraps;

mod asking;
mod capturing;
mod halted;
mod places;
mod snapshot_traps;
#[cfg(test)]
mod tests;

/// How long a range of entries is applied before others have their turn.
const SLICE: Duration = Duration::from_millis(5);
/// Entries read back from the log at once, bytes.
const REPLAY_BYTES: u64 = 4 << 20;

/// Where to go on with a range, and with which entries.
type Left = Option<(u64, Vec<Entry>)>;

/// What the lane works with.
pub struct Tools {
    pub group: GroupId,
    pub module: Module,
    pub log: WalReader,
    pub store: Arc<dyn StoreHandle>,
    pub clock: Arc<dyn Clock>,
    /// What the log durably lists, newest first; kept by the actor.
    pub listed: Arc<Mutex<Vec<SnapshotDesc>>>,
    pub gauges: Arc<Gauges>,
    /// Where places of the host come from.
    pub quota: Arc<Quota>,
}

/// What a job leads to.
#[expect(clippy::large_enum_variant, reason = "events are the common case, and moved at once")]
pub enum Output {
    Event(Event),
    Queried {
        ticket: Ticket,
        answer: Result<QueryAnswer, Refusal>,
    },
    /// What is left of the job. It comes before any other work; queries may be asked meanwhile.
    Rest(ApplyJob),
    /// The job finds no place yet, and is to be tried again in a while, before any other.
    Later(ApplyJob),
    /// A captured snapshot that a bulk worker has to finish, seal and read back.
    Seal(Capture),
}

/// One group's guest and ledger.
pub struct ApplyLane {
    tools: Tools,
    ledger: Ledger,
    guest: Option<Box<dyn Guest>>,
    guest_log: Arc<GuestLog>,
    /// The last entry that a guest of this replica is known to have applied, in this process or an
    /// earlier one.
    heard: u64,
    /// Why the lane applies nothing any more.
    fault: Option<Fault>,
    /// That was not told yet.
    untold: Option<Fault>,
    /// The number of the last start or restore.
    build: u64,
    /// The log was cut under this lane: there is no guest until the restore of the snapshot that
    /// raft installed comes, or another start.
    overtaken: bool,
    /// No recovery point restores: there is no guest until a start or a restore brings one.
    waiting: bool,
    /// What the job under way has to tell beside its own output.
    aside: Vec<Event>,
    /// What the core was told last of the guest's memory.
    told_memory: Option<MemoryUse>,
    spoilers: Spoilers,
    snapshot_traps: SnapshotTraps,
    /// Since when a capture holds up whatever else is to be applied.
    stalled: Option<Duration>,
    /// Of the start or restore under way.
    place: Option<Place>,
    /// Since when one waits for its place.
    no_place_since: Option<Duration>,
}

impl ApplyLane {
    pub fn new(tools: Tools) -> Self {
        Self {
            guest_log: GuestLog::new(tools.group, Arc::clone(&tools.clock)),
            tools,
            ledger: Ledger::default(),
            guest: None,
            heard: 0,
            fault: None,
            untold: None,
            build: 0,
            overtaken: false,
            waiting: false,
            aside: Vec::new(),
            told_memory: None,
            spoilers: Spoilers::default(),
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

    /// Does one job. Most lead to one output; a rebuild that fails on the way adds the fault.
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
            // The capture that waited for room was given up.
            self.goes_on();
        }
        let begins = matches!(job, ApplyJob::Start { .. } | ApplyJob::Restore { .. });
        let stands = matches!(job, ApplyJob::Stand { .. });
        let idle = self.overtaken || self.waiting || self.fault.is_some();
        if idle && !begins && !stands {
            return vec![self.refuse(job)];
        }
        if begins {
            (self.waiting, self.overtaken, self.fault) = (false, false, None);
        }
        let mut rest = None;
        let output = match job {
            ApplyJob::Start { build, state } => {
                self.build = build;
                let floor = state.floor;
                self.heard = self.heard.max(state.commit);
                *self.listed() = state.snapshots;
                let started = self.rebuilt(floor);
                let time_ms = self.ledger.log_time_ms();
                self.begun(started, Event::Started { applied: floor, time_ms })
            }
            ApplyJob::Range { first, last, bytes, entries, awaited } => {
                let began = self.tools.clock.running();
                let applied = self.range((first, last), entries, &awaited, began);
                let applied = applied.map(|(applied, left)| match left {
                    None => Applied { bytes, ..applied },
                    Some((first, entries)) => {
                        rest = Some(ApplyJob::Range { first, last, bytes, entries, awaited });
                        applied
                    }
                });
                let applied = applied.map(Event::Applied);
                let let_go = Event::Applied(Applied { bytes, ..Applied::default() });
                Some(self.settle(applied, let_go))
            }
            ApplyJob::Restore { build, snapshot } => {
                self.build = build;
                let index = snapshot.index;
                let restored = self.install(&snapshot);
                // A rebuild from now on begins here, whether or not the actor has come to say so.
                *self.listed() = vec![snapshot.clone()];
                let time_ms = self.ledger.log_time_ms();
                match restored {
                    Err(Fault::Restore(why)) if !planted("unread_restore_halts") => {
                        Some(self.not_restored(snapshot, why))
                    }
                    other => self.begun(other, Event::Restored { index, time_ms }),
                }
            }
            ApplyJob::Stand { goal } => Some(self.stand(goal)),
            ApplyJob::Capture { term, index, configuration, gain } => {
                Some(self.capture((term, index), configuration, gain))
            }
            ApplyJob::Query { .. } => unreachable!("it was asked above"),
        };
        self.end(output.into_iter().chain(rest.map(Output::Rest)))
    }

    /// A start or a restore came to its end; nothing is told of one that did not.
    fn begun(&mut self, result: Result<(), Fault>, event: Event) -> Option<Output> {
        match result {
            Ok(()) => Some(Output::Event(event)),
            Err(fault) => {
                self.lost(fault);
                None
            }
        }
    }

    /// All that a job led to.
    fn end(&mut self, outputs: impl IntoIterator<Item = Output>) -> Vec<Output> {
        self.place = None;
        let bytes = self.guest.as_ref().map_or(0, |guest| guest.memory_bytes());
        let gauges = &self.tools.gauges;
        gauges.guest_memory_bytes.store(bytes, Ordering::Relaxed);
        gauges.guest_log_dropped.store(self.guest_log.lines_dropped(), Ordering::Relaxed);
        let most = self.ledger.install().map(|install| install.profile.memory_bytes);
        // A machine that is built in may have all there is, unless it was told otherwise.
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

    /// What a job led to; `let_go` says so when the log was cut under it.
    fn settle(&mut self, result: Result<Event, Fault>, let_go: Event) -> Output {
        Output::Event(match result {
            Ok(event) => event,
            Err(fault) => {
                self.lost(fault);
                let_go
            }
        })
    }

    /// There is no guest any more: because the log was cut under the lane, or because of `fault`.
    fn lost(&mut self, fault: Fault) {
        self.clear();
        match fault {
            _ if self.overtaken => self.aside.push(Event::Overtaken),
            Fault::NoRecoverableSnapshot(why) => {
                self.waiting = true;
                tracing::error!(group = %self.tools.group, why, "no recovery point restores");
                self.aside.push(Event::NeedsSnapshot { why });
            }
            fault => (self.fault, self.untold) = (Some(fault.clone()), Some(fault)),
        }
    }

    /// Applies nothing any more, for a reason from outside.
    pub(crate) fn give_up(&mut self, fault: Fault) {
        self.place = None;
        self.lost(fault);
    }

    fn listed(&self) -> MutexGuard<'_, Vec<SnapshotDesc>> {
        self.tools.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, job: ApplyJob) -> Output {
        match job {
            ApplyJob::Query { .. } => unreachable!("queries are refused one by one"),
            ApplyJob::Capture { index, .. } => {
                let why = "there is no guest".into();
                Output::Event(Event::CaptureFailed { index, why, postponed: false })
            }
            ApplyJob::Range { bytes, .. } => {
                Output::Event(Event::Applied(Applied { bytes, ..Applied::default() }))
            }
            ApplyJob::Start { .. } | ApplyJob::Restore { .. } | ApplyJob::Stand { .. } => {
                // The core halted the pipeline; what was on its way is let go.
                Output::Event(Event::Applied(Applied::default()))
            }
        }
    }

    /// Applies entries for a while, or until there is much to tell; what was, and where to go on.
    fn range(
        &mut self,
        (first, last): (u64, u64),
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
        let (last, time_ms) = (self.ledger.applied(), self.ledger.log_time_ms());
        self.tools.gauges.count(self.ledger.sessions());
        Ok((Applied { last, time_ms, bytes: 0, answers: answered }, left))
    }

    /// Applies an entry; a guest that faults gets one more chance, freshly built.
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
        let work =
            self.ledger.admit(entry).map_err(|e| Fault::Internal(format!("entry {index}: {e}")))?;
        let again = index <= self.heard;
        let log = Arc::clone(&self.guest_log);
        let answers = log.silent_if(again, || self.work(index, work))?;
        self.heard = self.heard.max(index);
        Ok(answers)
    }

    fn work(&mut self, index: u64, work: Work) -> Result<Vec<Answer>, Fault> {
        match work {
            Work::Done(answers) => Ok(answers),
            Work::Init(moment) => {
                let mut guest = self.fresh()?;
                let install = self.ledger.install().expect("init follows the install record");
                guest.init(context(moment), &install.config)?;
                self.built(0, 0, guest);
                Ok(Vec::new())
            }
            Work::Apply(plan) => {
                let guest = self.guest.as_mut().ok_or_else(no_guest)?;
                let mut plan = plan;
                if planted("clock_in_apply") {
                    plan.moment.time_ms = self.tools.clock.wall_ms();
                }
                let count = plan.commands.len();
                let outcomes = guest.apply(context(plan.moment), &plan.commands)?;
                let outcomes: Vec<_> = outcomes.into_iter().map(Into::into).collect();
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

    /// There is a guest: of the snapshot at `index`, or one that begins.
    fn built(&mut self, index: u64, snapshot: u64, guest: Box<dyn Guest>) {
        let footprint = Footprint { snapshot, memory: guest.memory_bytes() };
        self.aside.push(Event::Built { index, footprint });
        self.guest = Some(guest);
    }

    /// A fresh guest for the group this ledger is of.
    fn fresh(&self) -> Result<Box<dyn Guest>, Fault> {
        let install = self.ledger.install().expect("the install record is there");
        let module = &self.tools.module;
        if install.module != module.id() {
            return Err(Fault::WrongModule { have: module.id(), want: install.module });
        }
        module.check_profile(&install.profile).map_err(Fault::Unusable)?;
        Ok(module.instantiate(install, &self.guest_log)?)
    }

    /// Builds guest and ledger anew as they are after `goal`.
    fn rebuilt(&mut self, goal: u64) -> Result<(), Fault> {
        loop {
            let listed = self.listed().clone();
            let result = self.rebuilt_from(&listed, goal);
            if result.is_ok() || *self.listed() == listed {
                return result;
            }
            // What is listed changed meanwhile, and objects and log with it: begin with that.
            self.overtaken = false;
        }
    }

    fn rebuilt_from(&mut self, listed: &[SnapshotDesc], goal: u64) -> Result<(), Fault> {
        self.clear();
        let (mut causes, mut guests) = (Vec::new(), None);
        for desc in listed.iter().filter(|desc| desc.index <= goal) {
            match self.install(desc) {
                Ok(()) => break,
                Err(
                    fault @ (Fault::WrongModule { .. } | Fault::Unusable(_) | Fault::Internal(_)),
                ) => return Err(fault),
                Err(fault) => {
                    tracing::warn!(group = %self.tools.group, index = desc.index, %fault,
                        "recovery point does not restore; trying an older one");
                    causes.push(format!("at {}: {fault}", desc.index));
                    if planted("no_fallback") {
                        break;
                    }
                    match fault {
                        Fault::Restore(why) => {
                            self.aside.push(Event::Rotten { snapshot: desc.clone(), why });
                        }
                        // What the machine lacked is tried again, whatever else came of others.
                        fault if guests.as_ref().is_some_and(Fault::is_machines) => drop(fault),
                        fault => guests = Some(fault),
                    }
                }
            }
        }
        let whole_log = self.tools.log.first_index(self.tools.group) == Some(1);
        if self.ledger.applied() == 0 && !whole_log {
            // Another copy of what the guest refuses would be refused as well.
            return Err(guests.unwrap_or_else(|| {
                Fault::NoRecoverableSnapshot(match causes.is_empty() {
                    true => "none is listed".to_owned(),
                    false => causes.join("; "),
                })
            }));
        }
        while self.ledger.applied() < goal {
            let next = self.ledger.applied() + u64::from(!planted("apply_again"));
            for entry in self.read(next, goal + 1)? {
                self.apply(&entry)?;
            }
        }
        Ok(())
    }

    /// There is neither guest nor ledger.
    fn clear(&mut self) {
        (self.guest, self.ledger) = (None, Ledger::default());
    }

    /// Restores a listed object into a fresh guest; there is none if not all of it is good. The one
    /// before is of no use by then, for its log is gone or it faulted, and two might not have room.
    fn install(&mut self, desc: &SnapshotDesc) -> Result<(), Fault> {
        let _beside = self.guest.take().filter(|_| planted("restore_beside"));
        self.clear();
        let began = self.tools.clock.running();
        let mut reader =
            open_object(&*self.tools.store, desc, Use::Restoring).map_err(|e| not_read(&e))?;
        let mut length = [0; 4];
        reader.read_exact(&mut length).map_err(|e| broke(&reader, &e))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > ENVELOPE_BYTES_MAX || length as u64 > desc.length {
            return Err(Fault::Restore(format!("an envelope of {length} bytes")));
        }
        let mut envelope = vec![0; length];
        reader.read_exact(&mut envelope).map_err(|e| broke(&reader, &e))?;
        self.ledger = Ledger::decode_envelope(Bytes::from(envelope), desc.index)
            .map_err(|e| Fault::Restore(e.to_string()))?;
        let result = self.fresh().and_then(|mut guest| {
            let info = self.tools.module.info();
            let header = SnapshotHeader {
                writer_name: info.name.clone(),
                writer_version: info.version.clone(),
                format: desc.format,
                index: desc.index,
                time_ms: self.ledger.log_time_ms(),
            };
            let install = self.ledger.install().expect("fresh found the install record");
            let restored = guest.restore(&header, &install.config, &mut reader);
            // A guest that was fed a broken stream is not to blame for what it made of it.
            if let Some(error) = reader.broken() {
                return Err(not_read(error));
            }
            restored?;
            // What the guest left unread counts all the same: the digest is of the whole payload.
            std::io::copy(&mut reader, &mut std::io::sink()).map_err(|e| broke(&reader, &e))?;
            Ok(guest)
        });
        match result {
            Ok(guest) => {
                self.built(desc.index, desc.length, guest);
                let took = self.tools.clock.running().saturating_sub(began).as_millis() as u64;
                self.tools.gauges.restored(took, self.ledger.log_time_ms());
                Ok(())
            }
            Err(fault) => {
                self.clear();
                Err(fault)
            }
        }
    }

    fn read(&mut self, from: u64, to: u64) -> Result<Vec<Entry>, Fault> {
        let entries = self.tools.log.entries(self.tools.group, from, to, REPLAY_BYTES);
        self.overtaken |= matches!(entries, Err(WalError::Compacted { .. }));
        let entries = entries.map_err(|error| match error {
            // A peer's snapshot behind them does without.
            error if error.is_damage() => Fault::NoRecoverableSnapshot(format!("{error}")),
            error if error.is_short() => {
                short_of("apply", format!("entries from {from} could not be read: {error}"))
            }
            error => Fault::Internal(format!("entries from {from}: {error}")),
        })?;
        match entries.is_empty() {
            true => Err(Fault::Internal(format!("the log has no entry {from}"))),
            false => Ok(entries),
        }
    }

    /// Rebuilds if a call that was no entry took the guest with it, and says whether it did: what
    /// fails now parks the replica.
    fn rebuild_if_spoilt(&mut self) -> bool {
        let spoilt = !self.guest.as_ref().is_some_and(|guest| guest.is_usable());
        if spoilt && let Err(fault) = self.rebuilt(self.ledger.applied()) {
            self.lost(fault);
        }
        spoilt
    }
}

fn context(moment: Moment) -> Context {
    Context { index: moment.index, time_ms: moment.time_ms, seed: moment.seed }
}

/// The machine lacks what a call needs to read: it is tried again.
fn short_of(call: &'static str, message: String) -> Fault {
    Fault::Guest(GuestFault { class: FaultClass::Host, call, index: None, message })
}

/// A snapshot was not read: because it is not what it was, or for want of what reading takes.
fn not_read(error: &OpenError) -> Fault {
    match error.is_short() {
        true => short_of("restore", error.to_string()),
        false => Fault::Restore(error.to_string()),
    }
}

/// A snapshot's stream ended with this error, or before its time.
fn broke(reader: &SnapshotReader, error: &std::io::Error) -> Fault {
    reader.broken().map_or_else(|| Fault::Restore(error.to_string()), not_read)
}

fn no_guest() -> Fault {
    Fault::Internal("commands come after the install record".to_owned())
}

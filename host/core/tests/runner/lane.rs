//! The apply lane of the scripts: the core's `Ledger`, a machine as guest, and snapshots in memory.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use lockstep_core::amendment::Amendments;
use lockstep_core::apply::{
    Answer, Applied, ENVELOPE_BYTES_MAX, Emitted, EntryAnswers, Ledger, Moment, Outcome, Work,
};
use lockstep_core::codec::Write;
use lockstep_core::entry::{Bootstrap, Profile};
use lockstep_core::fault::{Fault, FaultClass, GuestFault};
use lockstep_core::group::trial::Stage;
use lockstep_core::group::{ApplyJob, Event};
use lockstep_core::ids::{Digest, ModuleId, Ticket};
use lockstep_core::memory::{Footprint, MemoryUse};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::{Configuration, SnapshotDesc, Verified};
use raft::eraftpb::Entry;

use super::disk::{Image, SharedStore, put};
use super::machine::Machine;

/// The guest's side of one replica.
#[derive(Default)]
pub(crate) struct Lane {
    pub(crate) ledger: Ledger,
    machine: Machine,
    queue: VecDeque<ApplyJob>,
    pub(crate) stuck: bool,
    captures_fail: bool,
    /// Captures are written and never become complete.
    captures_hang: bool,
    /// The next restore traps.
    restores_trap: bool,
    /// The host takes as many snapshots at once as it may: captures find no place.
    no_place: bool,
    /// How many captures found no place, and the gain of the last one.
    pub(crate) refused: (u64, u64),
    /// The next call of the guest traps, on this replica only.
    traps: bool,
    /// Calls fail because the machine lacks memory, not because the guest traps.
    lacks: bool,
    /// The next restore finds its object unreadable.
    restores_fail: bool,
    /// There is space for two snapshots: a capture asks for the oldest of two to be unlisted.
    tight: bool,
    dead: bool,
    /// The number of the last start or restore.
    pub(crate) build: u64,
    told_memory: u64,
    /// What the last start knew.
    pub(crate) amendments: Amendments,
    /// It has no guest until a start or a restore builds one.
    waiting: bool,
    /// The module into which a copy of the state was moved.
    tried: Option<ModuleId>,
    /// Copies of the state cannot be moved, for want of memory.
    moves_fail: bool,
}

/// The number of the module into which no state can be moved.
const TRAPS: u8 = 9;

/// The result of one job.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) events: Vec<Event>,
    /// Each entry that was applied, with the digest of the state after it.
    pub(crate) applied: Vec<(Entry, Option<Digest>)>,
    pub(crate) answer: Option<(Ticket, String)>,
    /// Sessions that were opened: the entry's index, and the id.
    pub(crate) opened: Vec<(u64, u64)>,
    /// What else there is to tell of it.
    pub(crate) told: Vec<String>,
}

impl Lane {
    pub(crate) fn push(&mut self, job: ApplyJob) {
        self.queue.push_back(job);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.stuck || self.queue.is_empty()
    }

    /// Runs the next job.
    pub(crate) fn run(&mut self, image: &Image, store: &SharedStore) -> Option<Done> {
        let mut done = Done::default();
        let job = self.queue.pop_front()?;
        let stands = matches!(job, ApplyJob::Stand { .. });
        let is_due = matches!(job, ApplyJob::Query { index, .. } if index <= self.ledger.applied());
        let asked = is_due && self.ledger.applied() > 0;
        if let ApplyJob::Start { build, .. } | ApplyJob::Restore { build, .. } = job {
            (self.dead, self.waiting, self.build) = (false, false, build);
        }
        if (self.dead && !stands && !asked) || self.waiting {
            if let ApplyJob::Query { ticket, .. } = job {
                done.answer = Some((ticket, "refused by the lane".to_owned()));
            }
            return Some(done);
        }
        match job {
            ApplyJob::Start { state, .. } => self.start(&state, image, store, &mut done),
            ApplyJob::Range { first, last, entries, awaited, .. } => {
                let entries = if entries.is_empty() {
                    done.told.push(format!("reads entries {first} to {last} back for its guest"));
                    image.read(first, last + 1, u64::MAX).expect("the log has the range")
                } else {
                    entries
                };
                assert_eq!((entries[0].index, entries[entries.len() - 1].index), (first, last));
                self.range(entries, &awaited, &mut done);
            }
            capture @ ApplyJob::Capture { .. } => {
                self.come_to_a_capture(capture, image, store, &mut done);
            }
            ApplyJob::Stand { goal } => {
                let at = self.stand(goal, image, store).map(|at| (at, self.ledger.clock()));
                done.events.push(Event::Stands { at });
            }
            ApplyJob::Restore { snapshot, .. } if self.restores_fail => {
                self.lose(snapshot, &mut done);
            }
            ApplyJob::Restore { .. } if std::mem::take(&mut self.restores_trap) => {
                (self.ledger, self.machine) = Default::default();
                self.trap("restore", None, &mut done);
            }
            ApplyJob::Restore { snapshot, .. } => {
                self.restore(&snapshot, store);
                let clock = self.ledger.clock();
                let (build, index) = (self.build, snapshot.index);
                done.events.push(Event::Restored { build, index, clock });
            }
            ApplyJob::Try { trial, module } => {
                self.tried = Some(module).filter(|module| self.moves_to(*module).is_ok());
                let stage = self.moves_to(module).map_or_else(Stage::failed, |()| Stage::Moved);
                done.events.push(Event::Tried { trial, stage });
            }
            ApplyJob::DropTried => self.tried = None,
            ApplyJob::Query { ticket, request, index } => {
                done.answer = Some((ticket, self.ask(&request, index)));
            }
        }
        Some(self.tell_memory(done))
    }

    /// Takes a snapshot, or says why it cannot.
    fn come_to_a_capture(
        &mut self,
        job: ApplyJob,
        image: &Image,
        store: &SharedStore,
        done: &mut Done,
    ) {
        let ApplyJob::Capture { term, index, configuration, gain } = job else { return };
        assert_eq!(self.ledger.applied(), index, "a capture at a wrong index");
        let listed = image.state().snapshots.clone();
        if self.captures_fail {
            let why = "the script says so".to_owned();
            done.events.push(Event::CaptureFailed { index, why, postponed: false });
        } else if self.no_place {
            self.refused = (self.refused.0 + 1, gain);
            done.events.push(Event::NoPlace { index, why: "no place".to_owned() });
        } else if let Some(unlist) = listed.last().filter(|_| self.tight && listed.len() > 1) {
            let (unlist, capture) = (unlist.clone(), Some(index));
            done.events.push(Event::SpaceWanted { unlist, capture });
        } else {
            let captured = self.capture(term, index, configuration, store);
            done.events.push(Event::CaptureWritten { index });
            if !self.captures_hang {
                done.events.push(Event::Captured(captured));
            }
        }
    }

    /// Reports the guest's memory if it changed, before the events of the job that changed it.
    fn tell_memory(&mut self, mut done: Done) -> Done {
        let most = self.ledger.bootstrap().map(|bootstrap| bootstrap.profile.memory_bytes);
        // Most scripts set a guest's memory themselves.
        let limited = |most: &u64| *most != Profile::default().memory_bytes;
        let Some(most) = most.filter(limited) else { return done };
        let bytes = self.machine.memory();
        if std::mem::replace(&mut self.told_memory, bytes) != bytes {
            done.events.insert(0, Event::Memory(MemoryUse { bytes, most }));
        }
        done
    }

    /// What a script says about captures, restores, traps, and states that go astray.
    pub(crate) fn told(&mut self, what: &str, how: &[&str]) {
        let is = |word: &str| how.first() == Some(&word);
        match what {
            "captures" => {
                (self.captures_fail, self.tight) = (is("fail"), is("tight"));
                (self.no_place, self.captures_hang) = (is("full"), is("hang"));
            }
            "restores" => (self.restores_fail, self.restores_trap) = (is("fail"), is("trap")),
            "moves" => self.moves_fail = is("fail"),
            "strays" => self.machine.astray = Some(how.join(" ")),
            _traps => (self.traps, self.lacks) = (true, is("short")),
        }
    }

    /// Builds the guest as it was after `goal`, to answer local queries.
    fn stand(&mut self, goal: u64, image: &Image, store: &SharedStore) -> Option<u64> {
        let amendments = self.amendments.clone();
        let state = RecoveryState { floor: goal, amendments, ..image.state().clone() };
        self.dead = false;
        self.start(&state, image, store, &mut Done::default());
        let good = !std::mem::replace(&mut self.dead, true);
        Some(goal).filter(|_| good && self.ledger.applied() == goal)
    }

    /// A query takes the guest with it, and none of what is durably listed restores.
    pub(crate) fn lost(&mut self, tried: u64) -> Event {
        (self.ledger, self.machine, self.waiting) = (Ledger::default(), Machine::default(), true);
        let why = "the script says so".to_owned();
        Event::NeedsSnapshot { build: self.build, tried, why }
    }

    /// A restore fails, because its object cannot be read.
    fn lose(&mut self, snapshot: SnapshotDesc, done: &mut Done) {
        let (index, why) = (snapshot.index, "the script says so".to_owned());
        (self.ledger, self.machine, self.waiting) = (Ledger::default(), Machine::default(), true);
        done.events.push(Event::Corrupt { snapshot, why: why.clone() });
        done.events.push(Event::NotRestored { build: self.build, index, why });
    }

    fn start(
        &mut self,
        state: &RecoveryState,
        image: &Image,
        store: &SharedStore,
        done: &mut Done,
    ) {
        (self.ledger, self.machine) = Default::default();
        self.amendments = state.amendments.clone();
        for desc in state.snapshots.iter().filter(|desc| !state.amendments.undo(desc.index)) {
            if store.lock().expect("no panic holds the lock").is_good(desc) {
                self.restore(desc, store);
                let footprint = Footprint { snapshot: desc.length, memory: self.machine.memory() };
                done.events.push(Event::Built { index: desc.index, footprint });
                break;
            }
            let (snapshot, why) = (desc.clone(), "corrupt".to_owned());
            done.events.push(Event::Corrupt { snapshot, why });
        }
        if self.ledger.applied() == 0 && state.first_index > 1 {
            self.waiting = true;
            let why = "all are corrupt".to_owned();
            let tried = state.snapshots.first().map_or(0, |desc| desc.index);
            done.events.push(Event::NeedsSnapshot { build: self.build, tried, why });
            return;
        }
        let from = self.ledger.applied() + 1;
        if from <= state.floor {
            let Some(entries) = image.read(from, state.floor + 1, u64::MAX) else {
                // The log was cut during the rebuild, because a snapshot is being installed.
                self.waiting = true;
                done.events.push(Event::Overtaken { build: self.build });
                return;
            };
            self.range(entries, &BTreeSet::new(), done);
            done.events.retain(|event| !matches!(event, Event::Applied(_)));
        }
        if !self.dead {
            let (applied, clock) = (self.ledger.applied(), self.ledger.clock());
            done.events.push(Event::Started { build: self.build, applied, clock });
        }
    }

    fn restore(&mut self, desc: &SnapshotDesc, store: &SharedStore) {
        let bytes = store.lock().expect("no panic holds the lock").get(desc);
        let bytes = bytes.expect("a listed object exists");
        assert_eq!(blake3::hash(&bytes).as_bytes(), &desc.digest.0, "an object is corrupt");
        let mut head = [0; 4];
        head.copy_from_slice(&bytes[..4]);
        let length = u32::from_le_bytes(head) as usize;
        let envelope = bytes.slice(4..4 + length);
        self.ledger = Ledger::decode_envelope(envelope, desc.index).expect("an envelope is valid");
        self.machine = Machine::decode(&bytes[4 + length..]);
        self.is_moved();
    }

    /// The machine is one of the module that the ledger names.
    fn is_moved(&mut self) {
        self.tried = None;
        self.machine.module = self.ledger.bootstrap().map_or(0, |record| record.module.0[0]);
    }

    /// Whether the state can be moved into this module.
    fn moves_to(&self, module: ModuleId) -> Result<(), String> {
        match module.0[0] {
            TRAPS => Err("trap in restore: the module says so".to_owned()),
            _other if self.moves_fail => Err("the script says so".to_owned()),
            _other => Ok(()),
        }
    }

    /// Moves the state into this module; false if the guest traps.
    fn moved(&mut self, module: ModuleId, index: u64, done: &mut Done) -> bool {
        let number = module.0[0];
        let kept = if self.tried == Some(module) { "" } else { ", without a trial" };
        done.told.push(format!("goes over to module {number} at {index}{kept}"));
        if number == TRAPS {
            return false;
        }
        self.ledger.moved(module);
        self.is_moved();
        true
    }

    fn ask(&self, request: &[u8], index: u64) -> String {
        if index > self.ledger.applied() {
            "refused by the lane".to_owned()
        } else {
            self.machine.query(request)
        }
    }

    fn capture(
        &self,
        term: u64,
        index: u64,
        configuration: Configuration,
        store: &SharedStore,
    ) -> Verified {
        let module = self.ledger.bootstrap().expect("entry 1 is applied").module;
        let bytes = Bytes::from(self.payload(&self.machine.snapshot()));
        let digest = Digest(*blake3::hash(&bytes).as_bytes());
        let length = bytes.len() as u64;
        let desc = SnapshotDesc { term, index, length, digest, module, format: 1, configuration };
        let hold = put(store, &desc, bytes);
        Verified { desc, hold }
    }

    fn payload(&self, machine: &[u8]) -> Vec<u8> {
        let mut bytes = self.ledger.encode_envelope();
        assert!(bytes.len() <= ENVELOPE_BYTES_MAX, "an envelope exceeds its bound");
        bytes.put_raw(machine);
        bytes
    }

    fn range(&mut self, entries: Vec<Entry>, awaited: &BTreeSet<u64>, done: &mut Done) {
        let mut applied = Applied::default();
        for entry in entries {
            applied.bytes += entry.data.len() + entry.context.len() + 48;
            let index = entry.index;
            if self.amendments.skips(index) {
                done.told.push(format!("skips entry {index}"));
            }
            let before = self.amendments.module_from(index);
            let runs = self.ledger.bootstrap().map(|record| record.module);
            if let Some(module) = before.filter(|module| Some(*module) != runs)
                && !self.moved(module, index, done)
            {
                return self.trap("upgrade", Some(index), done);
            }
            let work = self.ledger.admit(&entry, &self.amendments).expect("an entry can be read");
            let answers = match work {
                Work::Done(answers) => answers,
                Work::Limit(profile) => {
                    let fuel_command = profile.fuel_command;
                    done.told.push(format!("has {fuel_command} fuel a command from {index} on"));
                    Vec::new()
                }
                Work::Move(module) => {
                    if !self.moved(module, index, done) {
                        return self.trap("upgrade", Some(index), done);
                    }
                    Vec::new()
                }
                Work::Init(_) => {
                    self.is_moved();
                    let footprint = Footprint { snapshot: 0, memory: self.machine.memory() };
                    done.events.push(Event::Built { index: 0, footprint });
                    Vec::new()
                }
                Work::Wake(moment) => {
                    self.tried = None;
                    if std::mem::take(&mut self.traps) {
                        return self.trap("wake", Some(index), done);
                    }
                    self.machine.wake(moment);
                    done.told.push(format!("is woken by entry {index}, at {}", moment.time_ms));
                    Vec::new()
                }
                Work::Apply(plan) if self.is_too_much(&plan.commands) => {
                    return self.trap("apply", Some(index), done);
                }
                Work::Apply(plan) => {
                    self.tried = None;
                    let Some((outcomes, emitted)) = self.call(plan.moment, &plan.commands) else {
                        return self.trap("apply", Some(index), done);
                    };
                    self.ledger.emitted(emitted);
                    self.ledger.settle(plan, outcomes).expect("each command has an outcome")
                }
            };
            self.applied(entry, answers, awaited, &mut applied, done);
        }
        (applied.last, applied.clock) = (self.ledger.applied(), Some(self.ledger.clock()));
        done.events.push(Event::Applied(applied));
    }

    /// An entry was applied or skipped.
    fn applied(
        &self,
        entry: Entry,
        answers: Vec<Answer>,
        awaited: &BTreeSet<u64>,
        applied: &mut Applied,
        done: &mut Done,
    ) {
        let (index, term) = (entry.index, entry.term);
        let ids = answers.iter().filter_map(|answer| match answer {
            Answer::Opened(id) => Some((index, *id)),
            Answer::Ok(_) | Answer::Rejected(_) => None,
        });
        done.opened.extend(ids);
        if !answers.is_empty() && awaited.contains(&index) {
            applied.answers.push(EntryAnswers { index, term, answers });
        }
        // Many sessions or long answers make the state large: then only some digests are computed.
        let sessions = self.ledger.sessions();
        let small = sessions.count() < 64 && sessions.answer_bytes() < 1 << 20;
        let payload = (small || index % 256 == 0).then(|| self.payload(&self.machine.encode()));
        let digest = payload.map(|payload| Digest(*blake3::hash(&payload).as_bytes()));
        done.applied.push((entry, digest));
    }

    /// Whether a command, `needs FUEL`, needs more fuel than the limits give it.
    fn is_too_much(&self, commands: &[Bytes]) -> bool {
        let needs = |command: &Bytes| {
            let text = str::from_utf8(command).ok()?;
            text.trim().strip_prefix("needs ")?.parse::<u64>().ok()
        };
        let Some(most) = commands.iter().filter_map(needs).max() else { return false };
        let Some(record) = self.ledger.bootstrap() else { return false };
        let Bootstrap { profile, .. } = self.amendments.lifted(record, self.ledger.applied() - 1);
        most > profile.fuel_command
    }

    fn call(&mut self, moment: Moment, commands: &[Bytes]) -> Option<(Vec<Outcome>, Emitted)> {
        if std::mem::take(&mut self.traps) {
            return None;
        }
        let mut emitted = Emitted::default();
        let apply = |command: &Bytes| self.machine.apply(moment, command, &mut emitted);
        let outcomes = commands.iter().map(apply).collect::<Option<_>>()?;
        Some((outcomes, emitted))
    }

    fn trap(&mut self, call: &'static str, index: Option<u64>, done: &mut Done) {
        self.dead = true;
        let fault = Fault::Guest(GuestFault {
            class: if self.lacks { FaultClass::Host } else { FaultClass::Trap },
            call,
            index,
            message: "the script says so".to_owned(),
        });
        done.events.push(Event::GuestFailed { build: self.build, fault });
    }
}

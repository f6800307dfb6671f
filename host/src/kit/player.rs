//! One replica in memory: a guest and its ledger, which are given entries one after another.
//!
//! - An entry means what it means to the server: the ledger is the server's own, and so are the
//!   entries.
//! - What each entry brought about is returned as a [`Trace`], which two replicas must agree on.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::amendment::Amendments;
use lockstep_core::apply::{Answer, Deadline, GuestEvent, Ledger, Setting, Work};
use lockstep_core::entry::{Bootstrap, Call, Commands, EntryBody};
use lockstep_core::fault::{FaultClass, GuestFault};
use lockstep_core::ids::ModuleId;
use lockstep_core::limits;
use raft::eraftpb::Entry;

use crate::config::GuestLimits;
use crate::guest::{Guest, GuestLog, Module, NoAnswer, Outcome, SnapshotHeader};

/// Makes replicas of one module.
pub struct Maker {
    pub module: Module,
    pub bootstrap: Bootstrap,
    pub log: Arc<GuestLog>,
}

/// How a guest runs the calls that change nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Looks {
    /// As on a server: on a copy, if the guest can have one.
    AsServer,
    /// On the guest itself, as on a server that cannot copy it.
    Live,
}

/// A guest with its ledger.
pub struct Player {
    maker: Arc<Maker>,
    ledger: Ledger,
    amendments: Amendments,
    /// There is none before the first entry.
    guest: Option<Box<dyn Guest>>,
    looks: Looks,
}

/// A snapshot with the ledger that belongs to it.
#[derive(Clone, Debug)]
pub struct Saved {
    ledger: Ledger,
    pub bytes: Vec<u8>,
    header: SnapshotHeader,
}

impl Saved {
    /// The last entry before it.
    pub fn index(&self) -> u64 {
        self.header.index
    }
}

/// An `init` that says no: the configuration is wrong, and nothing else is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}; give a configuration that `init` accepts with --config TEXT")]
pub struct ConfigRefused(GuestFault);

impl ConfigRefused {
    /// Returns the fault as `Err` if it is another.
    pub fn of(fault: GuestFault) -> Result<Self, GuestFault> {
        let refuses = fault.call == "init" && fault.class == FaultClass::Refused;
        if refuses { Ok(Self(fault)) } else { Err(fault) }
    }
}

/// What an entry brought about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trace {
    /// What the guest said of the commands that it was given.
    pub outcomes: Vec<Outcome>,
    /// What the ledger answers to the entry's calls, with those that the guest did not see.
    pub answers: Vec<Answer>,
    pub events: Vec<GuestEvent>,
    /// What the guest set its timer to, if it did.
    pub set: Option<Setting>,
    /// What the timer is set to afterwards, ms.
    pub deadline_ms: Option<u64>,
    /// Whether the guest was woken.
    pub woken: bool,
    /// What the call cost. Replicas may differ in it after a restore.
    pub fuel: u64,
}

impl Maker {
    /// For a group that is bootstrapped with this configuration and these limits.
    pub fn new(
        module: Module,
        config: Bytes,
        limits: GuestLimits,
        seed: u64,
        log: Arc<GuestLog>,
    ) -> Arc<Self> {
        let mut root = [0; 16];
        root[..8].copy_from_slice(&seed.to_le_bytes());
        let bootstrap = Bootstrap {
            module: module.id(),
            config,
            seed: root,
            profile: limits.of_component(module.engine_major()),
            initial_voters: Vec::new(),
        };
        Arc::new(Self { module, bootstrap, log })
    }

    /// For the same group, with another module.
    pub fn exchanged(&self, module: Module) -> Arc<Self> {
        let mut bootstrap = self.bootstrap.clone();
        bootstrap.module = module.id();
        bootstrap.profile.engine_major = module.engine_major();
        Arc::new(Self { module, bootstrap, log: Arc::clone(&self.log) })
    }

    /// The first entry of every log.
    pub fn first_entry(&self) -> Entry {
        entry(1, &EntryBody::Bootstrap(self.bootstrap.clone()))
    }

    fn fresh(&self, looks: Looks) -> Result<Box<dyn Guest>, GuestFault> {
        match looks {
            Looks::AsServer => self.module.instantiate(&self.bootstrap, &self.log),
            Looks::Live => self.module.instantiate_without_copy(&self.bootstrap, &self.log),
        }
    }
}

impl Player {
    /// A replica that was given no entry yet.
    pub fn new(maker: &Arc<Maker>, looks: Looks) -> Self {
        let maker = Arc::clone(maker);
        let amendments = Amendments::default();
        Self { maker, ledger: Ledger::default(), amendments, guest: None, looks }
    }

    /// The same replica, which knows these amendments.
    pub fn amended(self, amendments: &Amendments) -> Self {
        Self { amendments: amendments.clone(), ..self }
    }

    /// A replica that restored a snapshot.
    pub fn restored(maker: &Arc<Maker>, looks: Looks, from: &Saved) -> Result<Self, GuestFault> {
        Self::restored_from(maker, looks, from.ledger.clone(), &from.header, &mut &from.bytes[..])
    }

    /// A replica that restored a snapshot from a stream, with the ledger that belongs to it.
    pub fn restored_from(
        maker: &Arc<Maker>,
        looks: Looks,
        ledger: Ledger,
        header: &SnapshotHeader,
        input: &mut dyn io::Read,
    ) -> Result<Self, GuestFault> {
        let mut guest = maker.fresh(looks)?;
        guest.restore(header, &maker.bootstrap.config, input)?;
        let (maker, amendments) = (Arc::clone(maker), Amendments::default());
        Ok(Self { maker, ledger, amendments, guest: Some(guest), looks })
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn deadline(&self) -> Option<Deadline> {
        self.ledger.clock().deadline
    }

    /// The entry that a leader would make of these commands now.
    pub fn entry_of(&self, time_ms: u64, commands: &[Bytes]) -> Entry {
        let call = |payload: &Bytes| Call {
            session: 0,
            sequence: 0,
            lowest_unanswered: 0,
            payload: payload.clone(),
        };
        let calls = commands.iter().map(call).collect();
        self.next(&EntryBody::Commands(Commands { time_ms, calls }))
    }

    /// The entry with which a leader would wake the guest; `None` if no deadline is reached.
    pub fn wake_entry(&self, time_ms: u64) -> Option<Entry> {
        let Deadline { at_ms, set_by } = self.deadline()?;
        (at_ms <= time_ms).then(|| self.next(&EntryBody::Wake { time_ms, set_by }))
    }

    fn next(&self, body: &EntryBody) -> Entry {
        entry(self.ledger.applied() + 1, body)
    }

    /// Applies the next entry.
    pub fn play(&mut self, entry: &Entry) -> Result<Trace, GuestFault> {
        let index = entry.index;
        if let Some(module) = self.amendments.module_from(index) {
            self.stays_in(module, index)?;
        }
        let work = self.ledger.admit(entry, &self.amendments);
        let work = work.map_err(|why| internal(index, &why.to_string()))?;
        let before = self.fuel();
        let mut trace = Trace::default();
        let emitted = match work {
            Work::Done(answers) => {
                trace.answers = answers;
                None
            }
            Work::Init(moment) => {
                let mut guest = self.maker.fresh(self.looks)?;
                let emitted = guest.init(moment.into(), &self.maker.bootstrap.config)?;
                self.guest = Some(guest);
                Some(emitted)
            }
            Work::Apply(plan) => {
                let guest = self.guest.as_mut().ok_or_else(|| nobody(index))?;
                let applied = guest.apply(plan.moment.into(), &plan.commands)?;
                trace.outcomes = applied.outcomes.clone();
                let settled = applied.outcomes.into_iter().map(Into::into).collect();
                let answers = self.ledger.settle(plan, settled);
                trace.answers = answers.ok_or_else(|| wrong_number(index))?;
                Some(applied.emitted)
            }
            Work::Limit(profile) => {
                self.guest.as_mut().ok_or_else(|| nobody(index))?.limit(&profile);
                None
            }
            Work::Move(module) => {
                self.stays_in(module, index)?;
                None
            }
            Work::Wake(moment) => {
                let guest = self.guest.as_mut().ok_or_else(|| nobody(index))?;
                trace.woken = true;
                Some(guest.wake(moment.into())?)
            }
        };
        if let Some(emitted) = emitted {
            trace.events = emitted.events().cloned().collect();
            trace.set = emitted.timer;
            self.ledger.emitted(emitted);
        }
        trace.deadline_ms = self.deadline().map(|deadline| deadline.at_ms);
        trace.fuel = self.fuel().saturating_sub(before);
        Ok(trace)
    }

    /// A player has one module, and cannot go over to another one.
    fn stays_in(&self, module: ModuleId, index: u64) -> Result<(), GuestFault> {
        if self.ledger.bootstrap().is_some_and(|record| record.module == module) {
            return Ok(());
        }
        Err(GuestFault {
            class: FaultClass::Refused,
            call: "upgrade",
            index: Some(index),
            message: format!(
                "here the group goes over to module {module}: replay up to the entry before it, or \
                 with that module from a later snapshot"
            ),
        })
    }

    pub fn query(&mut self, request: &[u8]) -> Result<Result<Bytes, NoAnswer>, GuestFault> {
        let moment = self.ledger.moment();
        self.guest()?.query(moment.into(), request)
    }

    pub fn snapshot(&mut self) -> Result<Vec<u8>, GuestFault> {
        let mut bytes = Vec::new();
        self.snapshot_to(&mut bytes)?;
        Ok(bytes)
    }

    pub fn snapshot_to(&mut self, out: &mut dyn io::Write) -> Result<(), GuestFault> {
        let index = self.ledger.applied();
        let refused = |error: io::Error| GuestFault {
            class: FaultClass::Refused,
            call: "snapshot",
            index: Some(index),
            message: error.to_string(),
        };
        self.guest()?.snapshot(out)?.map_err(refused)
    }

    /// A snapshot, with all that is needed to restore it.
    pub fn save(&mut self) -> Result<Saved, GuestFault> {
        let bytes = self.snapshot()?;
        let info = self.maker.module.info();
        let header = SnapshotHeader::of(info, info.snapshot_format, &self.ledger);
        Ok(Saved { ledger: self.ledger.clone(), bytes, header })
    }

    pub fn digest(&mut self) -> Result<Option<Bytes>, GuestFault> {
        self.guest()?.digest()
    }

    pub fn memory_bytes(&self) -> u64 {
        self.guest.as_ref().map_or(0, |guest| guest.memory_bytes())
    }

    pub fn fuel(&self) -> u64 {
        self.guest.as_ref().map_or(0, |guest| guest.fuel_used())
    }

    /// Whether the guest can be entered again.
    pub fn is_usable(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.is_usable())
    }

    fn guest(&mut self) -> Result<&mut Box<dyn Guest>, GuestFault> {
        let index = self.ledger.applied();
        self.guest.as_mut().ok_or_else(|| nobody(index))
    }
}

impl Trace {
    /// The traces of entries that follow one another, as if they had been one.
    pub fn joined(traces: impl IntoIterator<Item = Self>) -> Self {
        let mut whole = Self::default();
        for trace in traces {
            whole.outcomes.extend(trace.outcomes);
            whole.answers.extend(trace.answers);
            whole.events.extend(trace.events);
            whole.set = trace.set.or(whole.set);
            whole.deadline_ms = trace.deadline_ms;
            whole.woken |= trace.woken;
            whole.fuel += trace.fuel;
        }
        whole
    }
}

/// Whether an entry has space for a command, beside those that were accepted before. There is
/// always space for the first one.
pub fn entry_space() -> impl FnMut(&Bytes) -> bool {
    let mut left = limits::COMMANDS_ENTRY_BYTES_MAX;
    move |command| {
        let rest = left.checked_sub(command.len() + limits::COMMAND_OVERHEAD_BYTES_MAX);
        left = rest.unwrap_or(left);
        rest.is_some()
    }
}

fn entry(index: u64, body: &EntryBody) -> Entry {
    Entry { index, term: 1, data: body.encode().into(), ..Entry::default() }
}

/// A mistake of the kit: it gave an entry that no log could hold.
fn internal(index: u64, why: &str) -> GuestFault {
    let message = format!("entry {index} makes no sense: {why}; please report this");
    GuestFault { class: FaultClass::Host, call: "apply", index: Some(index), message }
}

fn nobody(index: u64) -> GuestFault {
    internal(index, "there is no guest yet")
}

fn wrong_number(index: u64) -> GuestFault {
    let message = "the number of answers is not that of the commands".to_owned();
    GuestFault { class: FaultClass::Trap, call: "apply", index: Some(index), message }
}

//! The simulator's guest: registers, a chain of hashes over all that was applied, how often each
//! operation was applied, and ballast that makes snapshots as large as the setup wants them.
//!
//! It reports to [`Observed`] what it applies, so that the histories of all replicas can be
//! compared. It traps when it is told to, on its own replica only, so that a second try may
//! succeed. If the setup says so, each command takes memory, until one frees all of it, and some
//! commands emit events and set or cancel the timer. A command that needs more fuel than the
//! group's limits give traps on every replica. Two queries never get an answer: one traps, one runs
//! out of fuel. A state that goes astray, because it is told to, differs in snapshots only.
//!
//! There are [`MODULES`] modules, which do the same but for a number that goes into the hashes: so
//! it shows which module applied an entry. Into some of them no state can be moved, and some need
//! no fuel for a command that needs more than any limit gives.
//!
//! A replica that has two guests of one module at a time is a violation, too. Planted:
//! `restore_beside`. So is a guest that is woken although its timer is not set, or before its time:
//! the guest remembers the setting. Planted: `wake_again`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lockstep_core::apply::{Emitted, GuestEvent, Position, Setting};
use lockstep_core::entry::{Bootstrap, Profile};
use lockstep_core::fault::{FaultClass, GuestFault};
use lockstep_core::ids::{GroupId, ModuleId};
use lockstep_host::guest::{
    Applied, Context, Guest, GuestInfo, GuestLog, GuestModule, Lack, Module, Modules, NoAnswer,
    Outcome, SnapshotHeader,
};

use crate::check::Violation;
use crate::setup::Setup;

/// The window of events of a simulated group, bytes: so small that the oldest ones soon go.
pub const EVENT_WINDOW_BYTES: u32 = 4 << 10;

/// What was applied at each index, as the first replica that got there reported it.
#[derive(Default)]
pub struct Observed {
    groups: BTreeMap<GroupId, History>,
    /// The first property that did not hold: its checker, and what the guest saw.
    pub violation: Option<Violation>,
}

/// One group's history.
#[derive(Default)]
pub struct History {
    /// Entries that do something else than they did: the entry that orders it last, and the module
    /// that applies them from then on, or none if they are skipped.
    pub changed: BTreeMap<u64, (u64, Option<ModuleId>)>,
    /// The chain of hashes after each index.
    pub digests: BTreeMap<u64, [u8; 32]>,
    /// The operations that reached a guest, by index.
    pub operations: BTreeMap<u64, Vec<Operation>>,
    /// The events that were emitted, by position.
    pub events: BTreeMap<Position, GuestEvent>,
    /// How often a guest was woken, each entry counted once.
    pub woken: BTreeSet<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    pub id: u64,
    pub key: u64,
    pub value: u64,
    /// The value before; 0 if there was none.
    pub old: u64,
}

/// Shared by all guests of a cluster.
pub type SharedObserved = Arc<Mutex<Observed>>;

pub fn lock(observed: &SharedObserved) -> MutexGuard<'_, Observed> {
    observed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observed {
    pub fn group(&self, group: GroupId) -> Option<&History> {
        self.groups.get(&group)
    }

    /// A replica knows that an entry is skipped, or applied by this module: what was applied from
    /// there up to the order, by replicas that did not know it, counts for nothing.
    pub fn change(&mut self, group: GroupId, index: u64, by: u64, module: Option<ModuleId>) {
        let history = self.groups.entry(group).or_default();
        match history.changed.get(&index) {
            Some((known, None)) if *known != by && module.is_none() => {
                let what =
                    format!("group {group}: entry {index} is skipped by {known} and by {by}");
                return self.violated("orders", what);
            }
            Some((known, _)) if *known >= by => return,
            Some(_) | None => {}
        }
        history.changed.insert(index, (by, module));
        history.digests.retain(|at, _| !(index..by).contains(at));
        history.operations.retain(|at, _| !(index..by).contains(at));
        history.events.retain(|at, _| !(index..by).contains(&at.index));
        history.woken.retain(|at| !(index..by).contains(at));
    }

    /// Whether a replica knows that this module has not applied this entry.
    fn knows_better(&self, group: GroupId, index: u64, module: ModuleId) -> bool {
        let changed = self.group(group).and_then(|history| history.changed.get(&index));
        changed.is_some_and(|(_, by)| *by != Some(module))
    }

    pub(crate) fn violated(&mut self, checker: &'static str, what: String) {
        self.violation.get_or_insert(Violation { checker, what });
    }

    /// A guest applied an entry, after which its state has this digest.
    fn applied(
        &mut self,
        group: GroupId,
        index: u64,
        digest: [u8; 32],
        done: Vec<Operation>,
        emitted: &Emitted,
    ) {
        let history = self.groups.entry(group).or_default();
        let known = history.digests.entry(index).or_insert(digest);
        if *known != digest {
            let what = format!("state machines disagree at index {index} of group {group}");
            return self.violated("states", what);
        }
        history.operations.entry(index).or_insert(done);
        for (number, event) in (0..).zip(emitted.events()) {
            history.events.entry(Position { index, number }).or_insert_with(|| event.clone());
        }
    }
}

/// How many of a node's next calls of a guest trap.
pub type Traps = Arc<Mutex<u32>>;

/// What a node's next guest that applies an entry goes astray with; 0 if none does.
pub type Strays = Arc<Mutex<u64>>;

/// How many modules there are.
pub const MODULES: u8 = 8;

/// The module of this number.
pub fn module_id(number: u8) -> ModuleId {
    ModuleId([9 + number; 32])
}

/// What a module says into which no state can be moved.
pub const NO_STATE: &str = "it takes no state";

/// The number of such a module.
fn refuses(number: u8) -> bool {
    number % 4 == 3
}

/// Whether the module of this number applies what no limit lets pass.
fn needs_nothing(number: u8) -> bool {
    number % 4 == 2
}

/// All modules, as one replica has them.
pub struct SimModules(Vec<Module>);

impl SimModules {
    pub fn new(
        group: GroupId,
        observed: &SharedObserved,
        (traps, strays): &(Traps, Strays),
        setup: &Setup,
    ) -> Self {
        let module = |number| {
            let told = (Arc::clone(traps), Arc::clone(strays));
            Arc::new(SimModule::new(number, group, Arc::clone(observed), told, setup)) as Module
        };
        Self((0..MODULES).map(module).collect())
    }
}

impl Modules for SimModules {
    fn find(&self, id: ModuleId) -> Result<Module, Lack> {
        self.0.iter().find(|module| module.id() == id).cloned().ok_or(Lack::Absent { asked: 0 })
    }
}

pub struct SimModule {
    number: u8,
    pub group: GroupId,
    pub observed: SharedObserved,
    pub traps: Traps,
    pub strays: Strays,
    /// Bytes of ballast in the state.
    pub ballast: usize,
    /// Bytes of memory that each command takes.
    pub grows: u64,
    /// Some commands emit events and set the timer.
    pub emits: bool,
    /// Held by the replica's guest, so that a second one is noticed.
    alive: Arc<()>,
    info: GuestInfo,
}

/// The key of a query that traps, which fails the guest.
pub const FATAL_KEY: u64 = u64::MAX;
/// The key of a query that runs out of fuel.
pub const ENDLESS_KEY: u64 = u64::MAX - 1;

impl SimModule {
    fn new(
        number: u8,
        group: GroupId,
        observed: SharedObserved,
        (traps, strays): (Traps, Strays),
        setup: &Setup,
    ) -> Self {
        let info = GuestInfo {
            name: "sim".to_owned(),
            version: "1".to_owned(),
            snapshot_format: 1,
            oldest_readable_format: 1,
        };
        let Setup { ballast, grows, emits, .. } = *setup;
        let alive = Arc::default();
        Self { number, group, observed, traps, strays, ballast, grows, emits, alive, info }
    }
}

impl GuestModule for SimModule {
    fn id(&self) -> ModuleId {
        module_id(self.number)
    }

    fn info(&self) -> &GuestInfo {
        &self.info
    }

    fn engine_major(&self) -> u32 {
        0
    }

    fn instantiate(
        &self,
        bootstrap: &Bootstrap,
        _: &Arc<GuestLog>,
    ) -> Result<Box<dyn Guest>, GuestFault> {
        if Arc::strong_count(&self.alive) > 1 {
            let why = format!("a replica of group {} has two guests at a time", self.group);
            lock(&self.observed).violated("states", why);
        }
        Ok(Box::new(SimGuest {
            _alive: Arc::clone(&self.alive),
            number: self.number,
            group: self.group,
            observed: Arc::clone(&self.observed),
            traps: Arc::clone(&self.traps),
            strays: Arc::clone(&self.strays),
            ballast: self.ballast,
            grows: self.grows,
            emits: self.emits,
            most: bootstrap.profile.memory_bytes,
            fuel: bootstrap.profile.fuel_command,
            state: State::default(),
            taken: 0,
            unaware: false,
            dead: false,
        }))
    }
}

#[derive(Default)]
struct State {
    chain: [u8; 32],
    registers: BTreeMap<u64, u64>,
    counts: BTreeMap<u64, u64>,
    /// Bytes of memory that commands have taken since one freed all.
    grown: u64,
    /// What the timer is set to; 0 if it is not.
    due_ms: u64,
    /// What the state went astray with: it is in snapshots, and nowhere else to be seen. 0 if it
    /// did not.
    astray: u64,
}

impl State {
    /// Emits an event for every second operation; every seventh sets the timer, some to a time in
    /// the past, and every thirteenth cancels it.
    fn emit(&mut self, id: u64, now_ms: u64, emitted: &mut Emitted) {
        if id.is_multiple_of(2) {
            let topic = if id.is_multiple_of(4) { "four" } else { "two" };
            emitted.emit(event(topic, id), EVENT_WINDOW_BYTES as usize);
        }
        if id.is_multiple_of(7) {
            self.due_ms = now_ms + 137 * (id % 31) - 137;
            emitted.timer = Some(Setting::At(self.due_ms));
        } else if id.is_multiple_of(13) {
            self.due_ms = 0;
            emitted.timer = Some(Setting::Never);
        }
    }
}

fn event(topic: &str, number: u64) -> GuestEvent {
    GuestEvent { topic: topic.into(), payload: Bytes::copy_from_slice(&number.to_le_bytes()) }
}

struct SimGuest {
    _alive: Arc<()>,
    number: u8,
    group: GroupId,
    observed: SharedObserved,
    traps: Traps,
    strays: Strays,
    ballast: usize,
    grows: u64,
    emits: bool,
    /// The most bytes of memory that the guest may have.
    most: u64,
    /// The fuel of a command.
    fuel: u64,
    state: State,
    /// The most bytes that commands had taken at a time: freed memory is released only when the
    /// guest is built again.
    taken: u64,
    /// The guest applied an entry of which its replica did not know yet that it is skipped: what it
    /// does from there on will be undone.
    unaware: bool,
    dead: bool,
}

impl SimGuest {
    fn trap(&mut self, call: &'static str, index: u64) -> Result<(), GuestFault> {
        let mut traps = self.traps.lock().unwrap_or_else(PoisonError::into_inner);
        if *traps == 0 && !self.dead {
            return Ok(());
        }
        *traps = traps.saturating_sub(1);
        self.dead = true;
        Err(fault(FaultClass::Trap, call, index))
    }

    fn ballast(&self) -> impl Iterator<Item = [u8; 4096]> + '_ {
        let seed = u64::from_le_bytes(*self.state.chain.first_chunk().expect("32 bytes"));
        (0..self.ballast / 4096).map(move |page| {
            let word = (seed ^ page as u64).to_le_bytes();
            let mut bytes = [0; 4096];
            bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word));
            bytes
        })
    }
}

impl Guest for SimGuest {
    fn init(&mut self, _: Context, config: &[u8]) -> Result<Emitted, GuestFault> {
        self.state.chain = *blake3::hash(config).as_bytes();
        Ok(Emitted::default())
    }

    fn apply(&mut self, ctx: Context, commands: &[Bytes]) -> Result<Applied, GuestFault> {
        self.trap("apply", ctx.index)?;
        if self.memory_bytes() > self.most {
            self.dead = true;
            return Err(fault(FaultClass::OutOfMemory, "apply", ctx.index));
        }
        let strays =
            std::mem::take(&mut *self.strays.lock().unwrap_or_else(PoisonError::into_inner));
        let state = &mut self.state;
        if strays > 0 {
            state.astray = strays;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&state.chain);
        hasher.update(&[self.number]);
        hasher.update(&ctx.index.to_le_bytes());
        hasher.update(&ctx.time_ms.to_le_bytes());
        let (mut done, mut applied) = (Vec::new(), Applied::default());
        for command in commands {
            hasher.update(command);
            let mut numbers = command
                .chunks_exact(8)
                .map(|chunk| u64::from_le_bytes(*chunk.first_chunk().expect("eight bytes")));
            let mut next = || numbers.next().unwrap_or(0);
            let (id, key, value, frees) = (next(), next(), next(), next() == 1);
            let needs = next();
            if needs > self.fuel && !(needs == u64::MAX && needs_nothing(self.number)) {
                self.dead = true;
                let message = needs.to_string();
                return Err(GuestFault {
                    message,
                    ..fault(FaultClass::OutOfFuel, "apply", ctx.index)
                });
            }
            state.grown = if frees { 0 } else { state.grown + self.grows };
            self.taken = self.taken.max(state.grown);
            let old = state.registers.insert(key, value).unwrap_or(0);
            hasher.update(&old.to_le_bytes());
            *state.counts.entry(id).or_default() += 1;
            done.push(Operation { id, key, value, old });
            applied.outcomes.push(Outcome::Ok(Bytes::copy_from_slice(&old.to_le_bytes())));
            if self.emits {
                state.emit(id, ctx.time_ms, &mut applied.emitted);
            }
        }
        state.chain = *hasher.finalize().as_bytes();
        let mut observed = lock(&self.observed);
        self.unaware |= observed.knows_better(self.group, ctx.index, module_id(self.number));
        if !self.unaware {
            observed.applied(self.group, ctx.index, state.chain, done, &applied.emitted);
        }
        drop(observed);
        Ok(applied)
    }

    fn wake(&mut self, ctx: Context) -> Result<Emitted, GuestFault> {
        self.trap("wake", ctx.index)?;
        let due_ms = std::mem::take(&mut self.state.due_ms);
        let mut observed = lock(&self.observed);
        if due_ms == 0 || due_ms > ctx.time_ms {
            let (group, index, time_ms) = (self.group, ctx.index, ctx.time_ms);
            let what = format!(
                "group {group}: entry {index} woke a guest at {time_ms} ms; its timer: {due_ms}"
            );
            observed.violated("timers", what);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.state.chain);
        hasher.update(&[self.number]);
        hasher.update(&ctx.index.to_le_bytes());
        hasher.update(&ctx.time_ms.to_le_bytes());
        self.state.chain = *hasher.finalize().as_bytes();
        let mut emitted = Emitted::default();
        emitted.emit(event("woken", ctx.time_ms), EVENT_WINDOW_BYTES as usize);
        self.unaware |= observed.knows_better(self.group, ctx.index, module_id(self.number));
        if !self.unaware {
            observed.applied(self.group, ctx.index, self.state.chain, Vec::new(), &emitted);
            observed.groups.entry(self.group).or_default().woken.insert(ctx.index);
        }
        Ok(emitted)
    }

    fn query(
        &mut self,
        ctx: Context,
        request: &[u8],
    ) -> Result<Result<Bytes, NoAnswer>, GuestFault> {
        self.trap("query", ctx.index)?;
        let key = request.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        match key {
            FATAL_KEY => {
                self.dead = true;
                return Err(fault(FaultClass::Trap, "query", ctx.index));
            }
            ENDLESS_KEY => return Err(fault(FaultClass::OutOfFuel, "query", ctx.index)),
            _key => {}
        }
        let value = self.state.registers.get(&key).copied().unwrap_or(0);
        Ok(Ok(Bytes::copy_from_slice(&value.to_le_bytes())))
    }

    fn snapshot(&mut self, out: &mut dyn Write) -> Result<io::Result<()>, GuestFault> {
        if let Err(fault) = self.trap("snapshot", 0) {
            // Only once: after three traps in a row no snapshot is tried for ten minutes.
            *self.traps.lock().unwrap_or_else(PoisonError::into_inner) = 0;
            return Err(fault);
        }
        let mut bytes = self.state.chain.to_vec();
        bytes.extend(self.state.grown.to_le_bytes());
        bytes.extend(self.state.due_ms.to_le_bytes());
        bytes.extend(self.state.astray.to_le_bytes());
        for map in [&self.state.registers, &self.state.counts] {
            bytes.extend((map.len() as u64).to_le_bytes());
            for (key, value) in map {
                bytes.extend(key.to_le_bytes());
                bytes.extend(value.to_le_bytes());
            }
        }
        let written = out.write_all(&bytes);
        Ok(written.and_then(|()| self.ballast().try_for_each(|page| out.write_all(&page))))
    }

    fn restore(
        &mut self,
        header: &SnapshotHeader,
        _: &[u8],
        input: &mut dyn Read,
    ) -> Result<(), GuestFault> {
        let refused = |error: io::Error| GuestFault {
            class: FaultClass::Refused,
            call: "restore",
            index: Some(header.index),
            message: error.to_string(),
        };
        if refuses(self.number) {
            self.dead = true;
            let message = NO_STATE.to_owned();
            return Err(GuestFault { message, ..fault(FaultClass::Trap, "restore", header.index) });
        }
        input.read_exact(&mut self.state.chain).map_err(refused)?;
        self.state.grown = number(input).map_err(refused)?;
        self.state.due_ms = number(input).map_err(refused)?;
        self.state.astray = number(input).map_err(refused)?;
        self.taken = self.state.grown;
        for map in [&mut self.state.registers, &mut self.state.counts] {
            for _ in 0..number(input).map_err(refused)? {
                let key = number(input).map_err(refused)?;
                map.insert(key, number(input).map_err(refused)?);
            }
        }
        io::copy(input, &mut io::sink()).map_err(refused)?;
        Ok(())
    }

    fn digest(&mut self) -> Result<Option<Bytes>, GuestFault> {
        Ok(Some(Bytes::copy_from_slice(&self.state.chain)))
    }

    fn limit(&mut self, profile: &Profile) {
        (self.most, self.fuel) = (profile.memory_bytes, profile.fuel_command);
    }

    fn memory_bytes(&self) -> u64 {
        self.ballast as u64 + 4096 + self.taken
    }

    fn is_usable(&self) -> bool {
        !self.dead
    }
}

fn fault(class: FaultClass, call: &'static str, index: u64) -> GuestFault {
    GuestFault { class, call, index: Some(index), message: "told to".to_owned() }
}

fn number(input: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

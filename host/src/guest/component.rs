//! State machines that are WebAssembly components.
//!
//! - Each guest has a store of its own, which is dropped as a whole. A trap anywhere makes the
//!   store unusable, and so does a failure that the guest reports in `init` or `restore`.
//! - If all that a guest remembers lies in its memory, `query` and `snapshot` run on a copy
//!   (`copy.rs`) and can neither change nor break the live guest.
//! - `snapshot` and `restore` run the guest on a thread of its own, while the caller's thread
//!   writes or reads. So the guest's thread borrows nothing from the caller, and two chunks are in
//!   memory at a time. No state of the host outlives the call.
//!
//! The caller rebuilds a guest after a fault. [`world`](super::world) defines the values that cross
//! the boundary and their bounds.

use std::io::{self, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::apply::Emitted;
use lockstep_core::entry::{Bootstrap, Profile};
use lockstep_core::fault::{FaultClass, GuestFault};
use lockstep_core::ids::ModuleId;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::cache::CodeCache;
use super::check::{self, ModuleRefusal, Report};
use super::copy::GuestCopy;
use super::engine;
use super::imports::{self, HostState, Incoming, SnapshotIo};
use super::instance::{Instance, Recipe, instantiate_fault, new_store};
use super::lift::Columns;
use super::log::GuestLog;
use super::self_test::ComponentSelfTest;
use super::text::one_line;
use super::trap::{self, Call};
use super::world::{Failure, MachinePre};
use super::{
    Applied, Context, Guest, GuestInfo, GuestModule, NoAnswer, SelfTest, SnapshotHeader, memory,
    shape,
};

/// Bytes in each chunk of a snapshot that the guest reads, except the last.
const RESTORE_CHUNK_BYTES: usize = 256 << 10;

/// A compiled component that matches the world.
pub struct ComponentModule {
    report: Report,
    /// The module's name, as it appears in the log messages of its guests.
    name: Arc<str>,
    pre: MachinePre,
}

/// A live component.
pub struct ComponentGuest {
    live: Instance,
    /// Runs the calls that change nothing; without a copy they run on the live instance.
    copy: Option<GuestCopy>,
    budgets: Budgets,
}

/// Fuel of each kind of call.
#[derive(Clone, Copy, Debug)]
struct Budgets {
    init: u64,
    entry: u64,
    command: u64,
    snapshot: u64,
}

impl ComponentModule {
    /// Compiles and links the component, and has a throw-away instance describe itself.
    pub fn load(bytes: &[u8]) -> Result<Self, ModuleRefusal> {
        Self::load_with(bytes, None)
    }

    /// Like [`Self::load`]; takes the compiled code from the cache, or puts it there.
    pub fn load_with(bytes: &[u8], cache: Option<&CodeCache>) -> Result<Self, ModuleRefusal> {
        check::check_kind(bytes)?;
        let engine = engine::shared()?;
        let id = ModuleId(Sha256::digest(bytes).into());
        let kept = cache.and_then(|cache| cache.find(engine, id));
        let (component, compiled_in) = match kept {
            Some(component) => {
                tracing::info!(module = %id, bytes = bytes.len(), "module was compiled before");
                (component, None)
            }
            None => {
                let (component, took) = compile(engine, id, bytes)?;
                if let Some(cache) = cache {
                    cache.keep(engine, id, &component);
                }
                (component, Some(took))
            }
        };
        let ty = component.component_type();
        let names = check::check_names(
            bytes,
            ty.imports(engine).map(|(name, _)| name.to_owned()).collect(),
            ty.exports(engine).map(|(name, _)| name.to_owned()).collect(),
        )?;
        let mismatch =
            |error: wasmtime::Error| ModuleRefusal::TypeMismatch { reason: one_line(&error) };
        let linked = imports::linker(engine).and_then(|linker| linker.instantiate_pre(&component));
        let pre = linked.and_then(MachinePre::new).map_err(mismatch)?;
        let info = describe(&pre)?;
        check::check_info(&info)?;
        let name = info.name.as_str().into();
        let copied = shape::keeps_all_in_memory(bytes);
        let report = Report { id, info, bytes: bytes.len(), names, compiled_in, copied };
        Ok(Self { report, name, pre })
    }

    /// What the checks found out while the component was loaded.
    pub fn report(&self) -> &Report {
        &self.report
    }

    fn recipe(&self, profile: &Profile, log: &Arc<GuestLog>) -> Result<Recipe, GuestFault> {
        let call = Call::anywhere("instantiate");
        engine::check_profile(profile)
            .map_err(|mismatch| call.fault(FaultClass::Host, mismatch.to_string()))?;
        Ok(Recipe {
            pre: self.pre.clone(),
            name: Arc::clone(&self.name),
            log: Arc::clone(log),
            memory_bytes_max: profile.memory_bytes,
            event_window_bytes: profile.event_window_bytes as usize,
            fuel: Budgets::of(profile).init,
        })
    }

    /// Makes a fresh guest of the concrete type, which reports more than the trait [`Guest`] does.
    pub fn instantiate_component(
        &self,
        bootstrap: &Bootstrap,
        log: &Arc<GuestLog>,
    ) -> Result<ComponentGuest, GuestFault> {
        let recipe = self.recipe(&bootstrap.profile, log)?;
        let budgets = Budgets::of(&bootstrap.profile);
        let (live, memories) = memory::live(|| recipe.make());
        let copied = self.report.copied.is_ok() && memories.have_files();
        let copy = copied.then(|| GuestCopy::new(recipe, memories));
        Ok(ComponentGuest { live: live?, copy, budgets })
    }
}

impl GuestModule for ComponentModule {
    fn id(&self) -> ModuleId {
        self.report.id
    }

    fn info(&self) -> &GuestInfo {
        &self.report.info
    }

    fn engine_major(&self) -> u32 {
        engine::ENGINE_MAJOR
    }

    fn check_profile(&self, profile: &Profile) -> Result<(), String> {
        engine::check_profile(profile).map_err(|mismatch| mismatch.to_string())
    }

    fn instantiate(
        &self,
        bootstrap: &Bootstrap,
        log: &Arc<GuestLog>,
    ) -> Result<Box<dyn Guest>, GuestFault> {
        Ok(Box::new(self.instantiate_component(bootstrap, log)?))
    }

    fn instantiate_without_copy(
        &self,
        bootstrap: &Bootstrap,
        log: &Arc<GuestLog>,
    ) -> Result<Box<dyn Guest>, GuestFault> {
        Ok(Box::new(ComponentGuest { copy: None, ..self.instantiate_component(bootstrap, log)? }))
    }

    fn self_test(&self) -> Result<Option<Box<dyn SelfTest>>, GuestFault> {
        if !self.pre.has_self_test() {
            return Ok(None);
        }
        let recipe = self.recipe(&Profile::default(), &GuestLog::of_no_group())?;
        Ok(Some(Box::new(ComponentSelfTest::new(&recipe)?)))
    }
}

impl ComponentGuest {
    /// Fuel used by all calls so far, including the instantiation of the live guest, but not of its
    /// copies.
    pub fn fuel_used(&self) -> u64 {
        self.live.fuel_used + self.copy.as_ref().map_or(0, GuestCopy::fuel_used)
    }

    /// What the call on the live guest that just returned has emitted.
    fn take_emitted(&mut self) -> Emitted {
        self.live.store.data_mut().take_emitted()
    }

    /// The live instance, for a call that may change it.
    fn change(&mut self) -> &mut Instance {
        if let Some(copy) = &mut self.copy {
            copy.falls_behind();
        }
        &mut self.live
    }

    /// Makes a call that must change nothing: on the copy, if the guest can have one.
    fn look<R>(
        &mut self,
        call: Call,
        work: impl FnOnce(&mut Instance) -> Result<R, GuestFault>,
    ) -> Result<R, GuestFault> {
        match &mut self.copy {
            Some(_) if self.live.faulted => Err(Instance::spent(call)),
            Some(copy) => copy.enter(call, self.live.store.data().limiter.memory_bytes(), work),
            None => work(&mut self.live),
        }
    }

    /// The fault for a failure that the guest reported in `init` or `restore`; the guest is
    /// unusable.
    fn refused(&mut self, call: Call, failure: &Failure) -> GuestFault {
        self.live.faulted = true;
        call.fault(FaultClass::Refused, failure.text())
    }
}

impl Guest for ComponentGuest {
    fn init(&mut self, ctx: Context, config: &[u8]) -> Result<Emitted, GuestFault> {
        let call = Call::at("init", ctx.index);
        let fuel = self.budgets.init;
        self.change()
            .enter(call, fuel, |store, machine| machine.init(store, ctx, config))?
            .map_err(|failure| self.refused(call, &failure))?;
        Ok(self.take_emitted())
    }

    fn apply(&mut self, ctx: Context, commands: &[Bytes]) -> Result<Applied, GuestFault> {
        let call = Call::at("apply", ctx.index);
        let fuel = self.budgets.apply(commands.len());
        let told = self
            .change()
            .enter(call, fuel, |store, machine| machine.apply(store, ctx, commands))?;
        let malformed = match told {
            Columns::Outcomes(outcomes) if outcomes.len() == commands.len() => {
                return Ok(Applied { outcomes, emitted: self.take_emitted() });
            }
            Columns::Outcomes(outcomes) => format!("{} outcomes", outcomes.len()),
            Columns::Malformed(why) => why,
        };
        self.live.faulted = true;
        let message = format!(
            "the guest returned {malformed} for {} commands: `apply` must answer every command, in \
             order, as `outcomes` in wit/fsm.wit says",
            commands.len()
        );
        Err(call.fault(FaultClass::Trap, message))
    }

    fn wake(&mut self, ctx: Context) -> Result<Emitted, GuestFault> {
        let fuel = self.budgets.entry;
        self.change()
            .enter(Call::at("wake", ctx.index), fuel, |store, machine| machine.wake(store, ctx))?;
        Ok(self.take_emitted())
    }

    fn query(
        &mut self,
        ctx: Context,
        request: &[u8],
    ) -> Result<Result<Bytes, NoAnswer>, GuestFault> {
        let call = Call::at("query", ctx.index);
        self.look(call, |instance| {
            instance.enter(call, engine::QUERY_FUEL, |store, machine| {
                machine.query(store, ctx, request)
            })
        })
    }

    /// A failure that the guest reports fails the snapshot; the guest stays usable. If `out` fails,
    /// a copy is interrupted at its next write. The live guest is not, since that would cost a
    /// rebuild: it writes its snapshot to the end, and the remaining chunks are thrown away.
    fn snapshot(&mut self, out: &mut dyn io::Write) -> Result<io::Result<()>, GuestFault> {
        let call = Call::anywhere("snapshot");
        let fuel = self.budgets.snapshot;
        if let Some(copy) = &mut self.copy {
            // What earlier queries wrote to the copy is not part of the state.
            copy.falls_behind();
        }
        let on_copy = self.copy.is_some();
        let ran = self.look(call, |instance| {
            let (sender, chunks) = sync_channel(0);
            Ok(instance.enter_beside(
                call,
                fuel,
                SnapshotIo::Write(sender),
                |store, machine| machine.snapshot(store),
                // The closure owns the receiver: if `out` panics, the guest must not wait for it.
                move || {
                    if on_copy {
                        pass_on(&chunks, out)
                    } else {
                        pass_on(&chunks, out).inspect_err(|_| chunks.iter().for_each(drop))
                    }
                },
            ))
        });
        let (told, written) = match ran? {
            Ok(ended) => ended,
            Err(error) => return Ok(Err(error)),
        };
        let told = match told {
            // The failed write interrupted the guest, or came before the fault that ended it.
            Err(_) if on_copy && written.is_err() => return Ok(written),
            told => told?,
        };
        let told = told.map_err(|failure| {
            io::Error::other(format!("the guest wrote no snapshot: {}", failure.text()))
        });
        Ok(written.and(told))
    }

    fn restore(
        &mut self,
        header: &SnapshotHeader,
        config: &[u8],
        input: &mut dyn io::Read,
    ) -> Result<(), GuestFault> {
        let call = Call::at("restore", header.index);
        let (chunks, receiver) = sync_channel(0);
        let fuel = self.budgets.snapshot;
        let (result, ()) = self
            .change()
            .enter_beside(
                call,
                fuel,
                SnapshotIo::Read(Incoming::new(receiver)),
                |store, machine| machine.restore(store, header, config),
                move || feed(input, chunks),
            )
            .map_err(|error| call.fault(FaultClass::Host, format!("no thread starts: {error}")))?;
        result?.map_err(|failure| self.refused(call, &failure))
    }

    fn digest(&mut self) -> Result<Option<Bytes>, GuestFault> {
        let call = Call::anywhere("digest");
        self.look(call, |instance| {
            instance.enter(call, engine::QUERY_FUEL, |store, machine| machine.digest(store))
        })
    }

    fn limit(&mut self, profile: &Profile) {
        self.budgets = Budgets::of(profile);
        self.live.store.data_mut().limiter.limit(profile.memory_bytes);
    }

    fn memory_bytes(&self) -> u64 {
        self.live.store.data().limiter.memory_bytes()
    }

    fn is_usable(&self) -> bool {
        !self.live.faulted
    }

    fn fuel_used(&self) -> u64 {
        // The inherent method of this name.
        Self::fuel_used(self)
    }
}

impl Budgets {
    fn of(profile: &Profile) -> Self {
        Self {
            init: profile.fuel_entry.saturating_mul(engine::INIT_ENTRIES),
            entry: profile.fuel_entry,
            command: profile.fuel_command,
            snapshot: profile.fuel_entry.saturating_mul(engine::SNAPSHOT_ENTRIES),
        }
    }

    fn apply(&self, commands: usize) -> u64 {
        self.entry.saturating_add(self.command.saturating_mul(commands as u64))
    }
}

/// The component's code, and how long it took to compile.
fn compile(
    engine: &Engine,
    id: ModuleId,
    bytes: &[u8],
) -> Result<(Component, Duration), ModuleRefusal> {
    let started = Instant::now();
    // The bytes are not trusted, so a panic of the compiler only refuses them.
    let component = catch_unwind(AssertUnwindSafe(|| Component::new(engine, bytes)))
        .map_err(|_| ModuleRefusal::CompilerPanicked)?
        .map_err(|error| ModuleRefusal::invalid(bytes, one_line(&error)))?;
    let took = started.elapsed();
    let elapsed_ms = took.as_millis();
    tracing::info!(module = %id, bytes = bytes.len(), elapsed_ms, "module compiled");
    Ok((component, took))
}

/// Has a throw-away instance describe itself, and checks the types of its exports.
fn describe(pre: &MachinePre) -> Result<GuestInfo, ModuleRefusal> {
    let call = Call::anywhere("describe");
    let state = HostState::new(
        "(unknown)".into(),
        GuestLog::of_no_group(),
        Profile::default().memory_bytes,
        Profile::default().event_window_bytes as usize,
        pre.wakes(),
    );
    let mut store = new_store(pre, state, engine::DESCRIBE_FUEL);
    let machine = pre.instantiate(&mut store).map_err(|error| {
        ModuleRefusal::Describe(instantiate_fault(
            Call::anywhere("instantiate"),
            &error,
            store.data(),
        ))
    })?;
    // Only the names of the exports were checked before; here their types are.
    machine
        .check(&mut store)
        .map_err(|error| ModuleRefusal::TypeMismatch { reason: one_line(&error) })?;
    machine
        .describe(&mut store)
        .map_err(|error| ModuleRefusal::Describe(trap::fault(call, &error, store.data())))
}

/// Writes chunks to `out` until the guest closes the channel or a write fails.
fn pass_on(chunks: &Receiver<Vec<u8>>, out: &mut dyn io::Write) -> io::Result<()> {
    chunks.iter().try_for_each(|chunk| out.write_all(&chunk))
}

/// Sends chunks of the input until it ends or fails, or the guest stops reading.
fn feed(input: &mut dyn io::Read, chunks: SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let chunk = next_chunk(input);
        let last = chunk.as_ref().map_or(true, Vec::is_empty);
        if chunks.send(chunk).is_err() || last {
            return;
        }
    }
}

/// The next chunk of the input: full unless it is the last, however the input arrives, because the
/// guest's fuel depends on the size of chunks.
fn next_chunk(input: &mut dyn io::Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(RESTORE_CHUNK_BYTES);
    input.take(RESTORE_CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

//! State machines that are WebAssembly components.
//!
//! - One store per guest, dropped whole: a trap anywhere makes the store unusable, and so does a
//!   guest's own failure in `init` or `restore`.
//! - `query` and `snapshot` run on a copy (`copy.rs`) where all that the guest remembers lies
//!   in its memory: they can neither change nor spoil the live one.
//! - `snapshot` and `restore` run on a thread of their own, while the caller's thread does the
//!   writing or the reading: the guest's side owns nothing that is borrowed, and memory is two
//!   chunks. No state of the host outlives the call.
//!
//! Rebuilding after a fault is the caller's. What crosses, and how long it may be, is
//! [`world`](super::world)'s.

use std::io::{self, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use bytes::Bytes;
use lockstep_core::entry::{Install, Profile};
use lockstep_core::fault::{FaultClass, GuestFault};
use lockstep_core::ids::ModuleId;
use sha2::{Digest as _, Sha256};
use wasmtime::component::Component;

use super::check::{self, ModuleRefusal, Report};
use super::copy::GuestCopy;
use super::engine;
use super::imports::{self, HostState, Incoming, SnapshotIo};
use super::instance::{Instance, Recipe, instantiate_fault, new_store};
use super::log::GuestLog;
use super::trap::{self, Call};
use super::world::{Failure, MachinePre};
use super::{
    Context, Guest, GuestInfo, GuestModule, NoAnswer, Outcome, SnapshotHeader, memory, shape,
};

/// Bytes of a snapshot handed to the guest's reader at once, but for the last.
const RESTORE_CHUNK_BYTES: usize = 256 << 10;

/// A compiled component that fits the world.
pub struct ComponentModule {
    report: Report,
    /// The module's name as the guests' logs say it.
    name: Arc<str>,
    pre: MachinePre,
}

/// A live component.
pub struct ComponentGuest {
    live: Instance,
    /// For calls that change nothing; without one they are made on the live instance.
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
    /// Compiles the component, links it and asks it on a throw-away instance what it is.
    pub fn load(bytes: &[u8]) -> Result<Self, ModuleRefusal> {
        check::check_kind(bytes)?;
        let engine = engine::shared()?;
        let id = ModuleId(Sha256::digest(bytes).into());
        let started = Instant::now();
        // The compiler is the one part of the host that works on bytes of anybody's making.
        let component = catch_unwind(AssertUnwindSafe(|| Component::new(engine, bytes)))
            .map_err(|_| ModuleRefusal::CompilerPanicked)?
            .map_err(|error| ModuleRefusal::Invalid { reason: one_line(&error) })?;
        let compiled_in = started.elapsed();
        tracing::info!(
            module = %id,
            bytes = bytes.len(),
            elapsed_ms = compiled_in.as_millis(),
            "module compiled"
        );

        let ty = component.component_type();
        let names = check::check_names(
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

    /// What was found out while loading.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// A fresh guest, with what only a component can tell.
    pub fn instantiate_component(
        &self,
        install: &Install,
        log: &Arc<GuestLog>,
    ) -> Result<ComponentGuest, GuestFault> {
        let call = Call::anywhere("instantiate");
        engine::check_profile(&install.profile)
            .map_err(|mismatch| call.fault(FaultClass::Host, mismatch.to_string()))?;
        let budgets = Budgets::of(&install.profile);
        let recipe = Recipe {
            pre: self.pre.clone(),
            name: Arc::clone(&self.name),
            log: Arc::clone(log),
            memory_bytes_max: install.profile.memory_bytes,
            fuel: budgets.init,
        };
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
        install: &Install,
        log: &Arc<GuestLog>,
    ) -> Result<Box<dyn Guest>, GuestFault> {
        Ok(Box::new(self.instantiate_component(install, log)?))
    }
}

impl ComponentGuest {
    /// Fuel that all calls so far used, instantiation included; that of copies is not.
    pub fn fuel_used(&self) -> u64 {
        self.live.fuel_used + self.copy.as_ref().map_or(0, GuestCopy::fuel_used)
    }

    /// The live instance, to be changed.
    fn change(&mut self) -> &mut Instance {
        if let Some(copy) = &mut self.copy {
            copy.falls_behind();
        }
        &mut self.live
    }

    /// Makes a call that changes nothing: on a copy, if the guest can have one.
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

    /// What a guest's own failure is where none may happen.
    fn refused(&mut self, call: Call, failure: &Failure) -> GuestFault {
        self.live.faulted = true;
        call.fault(FaultClass::Refused, failure.text())
    }
}

impl Guest for ComponentGuest {
    fn init(&mut self, ctx: Context, config: &[u8]) -> Result<(), GuestFault> {
        let call = Call::at("init", ctx.index);
        let fuel = self.budgets.init;
        self.change()
            .enter(call, fuel, |store, machine| machine.init(store, ctx, config))?
            .map_err(|failure| self.refused(call, &failure))
    }

    fn apply(&mut self, ctx: Context, commands: &[Bytes]) -> Result<Vec<Outcome>, GuestFault> {
        let call = Call::at("apply", ctx.index);
        let fuel = self.budgets.apply(commands.len());
        let told = self
            .change()
            .enter(call, fuel, |store, machine| machine.apply(store, ctx, commands))?;
        let count = told.as_ref().map_or_else(|count| *count, Vec::len);
        match told {
            Ok(outcomes) if count == commands.len() => Ok(outcomes),
            _ => {
                self.live.faulted = true;
                let message = format!(
                    "it gave {count} outcomes for {} commands: `apply` must answer every command, \
                     in order",
                    commands.len()
                );
                Err(call.fault(FaultClass::Trap, message))
            }
        }
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

    /// A failure the guest reports is one of the snapshot: the guest goes on. A copy is interrupted
    /// at the first write that fails. The live guest is not, for that would cost a rebuild on this
    /// node: it writes to its end, as it would have, and its chunks are swallowed.
    fn snapshot(&mut self, out: &mut dyn io::Write) -> Result<io::Result<()>, GuestFault> {
        let call = Call::anywhere("snapshot");
        let fuel = self.budgets.snapshot;
        if let Some(copy) = &mut self.copy {
            // What queries wrote is no state.
            copy.falls_behind();
        }
        let on_copy = self.copy.is_some();
        let ran = self.look(call, |instance| {
            let (sender, chunks) = sync_channel(0);
            Ok(instance.enter_beside(
                (call, fuel),
                SnapshotIo::Write(sender),
                |store, machine| machine.snapshot(store),
                // It owns its end of the channel: should the writer panic, the guest must not wait.
                move || match on_copy {
                    true => pass_on(&chunks, out),
                    false => pass_on(&chunks, out).inspect_err(|_| chunks.iter().for_each(drop)),
                },
            ))
        });
        let (told, written) = match ran? {
            Ok(ended) => ended,
            Err(error) => return Ok(Err(error)),
        };
        let told = match told {
            // It was interrupted for this, or whatever else ended it came after.
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
                (call, fuel),
                SnapshotIo::Read(Incoming::new(receiver)),
                |store, machine| machine.restore(store, header, config),
                move || feed(input, chunks),
            )
            .map_err(|error| call.fault(FaultClass::Host, format!("no thread: {error}")))?;
        result?.map_err(|failure| self.refused(call, &failure))
    }

    fn memory_bytes(&self) -> u64 {
        self.live.store.data().limiter.memory_bytes()
    }

    fn is_usable(&self) -> bool {
        !self.live.faulted
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

/// Asks a throw-away instance what it is.
fn describe(pre: &MachinePre) -> Result<GuestInfo, ModuleRefusal> {
    let call = Call::anywhere("describe");
    let state = HostState::new(
        "(unknown)".into(),
        GuestLog::of_no_group(),
        Profile::default().memory_bytes,
    );
    let mut store = new_store(pre, state, engine::DESCRIBE_FUEL);
    let machine = pre.instantiate(&mut store).map_err(|error| {
        ModuleRefusal::Describe(instantiate_fault(
            Call::anywhere("instantiate"),
            &error,
            store.data(),
        ))
    })?;
    // The exports' types are compared here, names only were before.
    machine
        .check(&mut store)
        .map_err(|error| ModuleRefusal::TypeMismatch { reason: one_line(&error) })?;
    machine
        .describe(&mut store)
        .map_err(|error| ModuleRefusal::Describe(trap::fault(call, &error, store.data())))
}

/// Writes chunks until the guest closes the channel, or one cannot be written.
fn pass_on(chunks: &Receiver<Vec<u8>>, out: &mut dyn io::Write) -> io::Result<()> {
    chunks.iter().try_for_each(|chunk| out.write_all(&chunk))
}

/// Hands over the input until it ends, fails, or the guest has had enough.
fn feed(input: &mut dyn io::Read, chunks: SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let chunk = next_chunk(input);
        let last = chunk.as_ref().map_or(true, Vec::is_empty);
        if chunks.send(chunk).is_err() || last {
            return;
        }
    }
}

/// Always full but at the end, however the input comes in: a guest's fuel depends on it.
fn next_chunk(input: &mut dyn io::Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(RESTORE_CHUNK_BYTES);
    input.take(RESTORE_CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

/// The whole chain of causes, bounded.
pub(super) fn one_line(error: &wasmtime::Error) -> String {
    const BYTES_MAX: usize = 1024;
    let text = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    trap::bounded(&text, BYTES_MAX).into_owned()
}

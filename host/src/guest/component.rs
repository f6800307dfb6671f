//! State machines that are WebAssembly components.
//!
//! - One store per guest, dropped whole: a trap anywhere makes the store unusable, and so does a
//!   guest's own failure in `init` or `restore`.
//! - Every call has a budget of fuel of its own; what one call leaves is not the next one's.
//! - `snapshot` and `restore` run on a thread of their own, while the caller's thread does the
//!   writing or the reading: the guest's side owns nothing that is borrowed, and memory is two
//!   chunks. No state of the host outlives the call.
//!
//! Rebuilding after a fault and limits of answers are the caller's.

use std::any::Any;
use std::io::{self, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use lockstep_core::entry::{Install, Profile};
use lockstep_core::fault::{FaultClass, GuestFault};
use lockstep_core::ids::ModuleId;
use lockstep_core::limits;
use sha2::{Digest as _, Sha256};
use wasmtime::Store;
use wasmtime::component::Component;

use super::check::{self, ModuleRefusal, Report};
use super::engine;
use super::imports::bindings::lockstep::fsm::types;
use super::imports::bindings::{Fsm, FsmPre};
use super::imports::{self, HostState, Incoming, SnapshotIo};
use super::trap::{self, Call};
use super::{Context, Guest, GuestInfo, GuestModule, Outcome, SnapshotHeader};

/// Bytes of a snapshot handed to the guest's reader at once, but for the last.
const RESTORE_CHUNK_BYTES: usize = 256 << 10;

/// A compiled component that fits the world.
pub struct ComponentModule {
    report: Report,
    /// The module's name as the guests' logs say it.
    name: Arc<str>,
    pre: FsmPre<HostState>,
}

/// A live component.
pub struct ComponentGuest {
    store: Store<HostState>,
    fsm: Fsm,
    budgets: Budgets,
    /// Fuel that all calls together used.
    fuel_used: u64,
    /// Whether a call ended with a fault; no other one is made then.
    faulted: bool,
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
        let pre = linked.and_then(FsmPre::new).map_err(mismatch)?;
        let info = describe(&pre)?;
        check::check_info(&info)?;
        let name = info.name.as_str().into();
        let report = Report { id, info, bytes: bytes.len(), names, compiled_in };
        Ok(Self { report, name, pre })
    }

    /// What was found out while loading.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// A fresh guest, with what only a component can tell.
    pub fn instantiate_component(&self, install: &Install) -> Result<ComponentGuest, GuestFault> {
        let call = Call::anywhere("instantiate");
        engine::check_profile(&install.profile)
            .map_err(|mismatch| call.fault(FaultClass::Host, mismatch.to_string()))?;
        let budgets = Budgets::of(&install.profile);
        let state = HostState::new(Arc::clone(&self.name), install.profile.memory_bytes);
        let mut store = new_store(&self.pre, state, budgets.init);
        let fsm = self
            .pre
            .instantiate(&mut store)
            .map_err(|error| instantiate_fault(call, &error, store.data()))?;
        let fuel_used = budgets.init - remaining_fuel(&store);
        Ok(ComponentGuest { store, fsm, budgets, fuel_used, faulted: false })
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

    fn instantiate(&self, install: &Install) -> Result<Box<dyn Guest>, GuestFault> {
        Ok(Box::new(self.instantiate_component(install)?))
    }
}

impl ComponentGuest {
    /// Fuel that all calls so far used, instantiation included.
    pub fn fuel_used(&self) -> u64 {
        self.fuel_used
    }

    /// Makes one call. The guest counts as faulted until it has returned well.
    fn enter<R>(
        &mut self,
        call: Call,
        fuel: u64,
        work: impl FnOnce(&mut Store<HostState>, &Fsm) -> wasmtime::Result<R>,
    ) -> Result<R, GuestFault> {
        if self.faulted {
            return Err(call.fault(FaultClass::Host, "the guest was entered after a fault"));
        }
        self.faulted = true;
        self.store.data_mut().begin();
        set_fuel(&mut self.store, fuel);
        let result = work(&mut self.store, &self.fsm);
        self.fuel_used += fuel - remaining_fuel(&self.store);
        match result {
            Ok(returned) => {
                self.faulted = false;
                Ok(returned)
            }
            Err(error) => Err(trap::fault(call, &error, self.store.data())),
        }
    }

    /// [`Self::enter`] on a thread that is not the caller's, whose `beside` runs meanwhile. `Err`
    /// of the outer kind: there is no thread, and the guest was not entered.
    fn enter_beside<R: Send, B>(
        &mut self,
        call: Call,
        snapshot_io: SnapshotIo,
        work: impl FnOnce(&mut Store<HostState>, &Fsm) -> wasmtime::Result<R> + Send,
        beside: impl FnOnce() -> B,
    ) -> io::Result<(Result<R, GuestFault>, B)> {
        let fuel = self.budgets.snapshot;
        let span = tracing::Span::current();
        self.store.data_mut().snapshot_io = snapshot_io;
        let guest = &mut *self;
        let run = move || {
            let _span = span.enter();
            let result = catch_unwind(AssertUnwindSafe(|| guest.enter(call, fuel, work)));
            // Ends the loop on the caller's side; a panic must not leave it waiting.
            guest.store.data_mut().snapshot_io = SnapshotIo::Closed;
            result
        };
        let builder = thread::Builder::new()
            .name(format!("guest-{}", call.name))
            .stack_size(engine::THREAD_STACK_BYTES);
        let ended = thread::scope(|scope| {
            let guest = builder.spawn_scoped(scope, run)?;
            let beside = beside();
            io::Result::Ok((guest.join().and_then(|caught| caught), beside))
        });
        self.store.data_mut().snapshot_io = SnapshotIo::Closed;
        let (result, beside) = ended?;
        let result = result.unwrap_or_else(|panic| {
            let message = format!("the engine panicked: {}", panic_text(&*panic));
            Err(call.fault(FaultClass::Host, message))
        });
        Ok((result, beside))
    }

    /// What a guest's own failure is where none may happen.
    fn refused(&mut self, call: Call, failure: &types::Failure) -> GuestFault {
        self.faulted = true;
        call.fault(FaultClass::Refused, failure_text(failure))
    }
}

impl Guest for ComponentGuest {
    fn init(&mut self, ctx: Context, config: &[u8]) -> Result<(), GuestFault> {
        let call = Call::at("init", ctx.index);
        let fuel = self.budgets.init;
        self.enter(call, fuel, |store, fsm| {
            fsm.lockstep_fsm_state_machine().call_init(store, ctx.into(), config)
        })?
        .map_err(|failure| self.refused(call, &failure))
    }

    fn apply(&mut self, ctx: Context, commands: &[Bytes]) -> Result<Vec<Outcome>, GuestFault> {
        let call = Call::at("apply", ctx.index);
        let lent: Vec<_> = commands.iter().map(|payload| types::Command { payload }).collect();
        let fuel = self.budgets.apply(commands.len());
        let outcomes = self.enter(call, fuel, |store, fsm| {
            fsm.lockstep_fsm_state_machine().call_apply(store, ctx.into(), &lent)
        })?;
        if outcomes.len() != commands.len() {
            self.faulted = true;
            let message = format!(
                "it gave {} outcomes for {} commands: `apply` must answer every command, in order",
                outcomes.len(),
                commands.len()
            );
            return Err(call.fault(FaultClass::Trap, message));
        }
        Ok(outcomes.into_iter().map(Into::into).collect())
    }

    fn query(&mut self, ctx: Context, request: &[u8]) -> Result<Result<Bytes, Bytes>, GuestFault> {
        let call = Call::at("query", ctx.index);
        let answer = self.enter(call, engine::QUERY_FUEL, |store, fsm| {
            fsm.lockstep_fsm_state_machine().call_query(store, ctx.into(), request)
        })?;
        Ok(answer.map(Bytes::from).map_err(Bytes::from))
    }

    /// A failure the guest reports is one of the snapshot: the guest goes on.
    fn snapshot(&mut self, out: &mut dyn io::Write) -> Result<io::Result<()>, GuestFault> {
        let call = Call::anywhere("snapshot");
        let (sender, chunks) = sync_channel(0);
        let ran = self.enter_beside(
            call,
            SnapshotIo::Write(sender),
            |store, fsm| fsm.lockstep_fsm_state_machine().call_snapshot(store),
            // It owns its end of the channel: should the writer panic, the guest must not wait.
            move || drain(chunks, out),
        );
        let (result, written) = match ran {
            Ok(ended) => ended,
            Err(error) => return Ok(Err(error)),
        };
        let told = result?.map_err(|failure| {
            io::Error::other(format!("the guest wrote no snapshot: {}", failure_text(&failure)))
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
        let (result, ()) = self
            .enter_beside(
                call,
                SnapshotIo::Read(Incoming::new(receiver)),
                |store, fsm| {
                    let machine = fsm.lockstep_fsm_state_machine();
                    machine.call_restore(store, header.into(), config)
                },
                move || feed(input, chunks),
            )
            .map_err(|error| call.fault(FaultClass::Host, format!("no thread: {error}")))?;
        result?.map_err(|failure| self.refused(call, &failure))
    }

    fn memory_bytes(&self) -> u64 {
        self.store.data().limiter.memory_bytes()
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
fn describe(pre: &FsmPre<HostState>) -> Result<GuestInfo, ModuleRefusal> {
    let call = Call::anywhere("describe");
    let state = HostState::new("(unknown)".into(), Profile::default().memory_bytes);
    let mut store = new_store(pre, state, engine::DESCRIBE_FUEL);
    let instance = pre.instance_pre().instantiate(&mut store).map_err(|error| {
        ModuleRefusal::Describe(instantiate_fault(
            Call::anywhere("instantiate"),
            &error,
            store.data(),
        ))
    })?;
    // The exports' types are compared here, names only were before.
    let fsm = Fsm::new(&mut store, &instance)
        .map_err(|error| ModuleRefusal::TypeMismatch { reason: one_line(&error) })?;
    let info = fsm
        .lockstep_fsm_state_machine()
        .call_describe(&mut store)
        .map_err(|error| ModuleRefusal::Describe(trap::fault(call, &error, store.data())))?;
    Ok(GuestInfo {
        name: info.name,
        version: info.version,
        snapshot_format: info.snapshot_format,
        oldest_readable_format: info.oldest_readable_format,
    })
}

fn new_store(pre: &FsmPre<HostState>, state: HostState, fuel: u64) -> Store<HostState> {
    let mut store = Store::new(pre.engine(), state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(limits::HOSTCALL_BYTES_MAX);
    set_fuel(&mut store, fuel);
    store
}

/// Without a trap and without a refused memory, what fails an instantiation is the machine.
fn instantiate_fault(call: Call, error: &wasmtime::Error, state: &HostState) -> GuestFault {
    let guests_doing = error.is::<wasmtime::Trap>() || state.limiter.refused().is_some();
    if guests_doing {
        trap::fault(call, error, state)
    } else {
        call.fault(FaultClass::Host, one_line(error))
    }
}

fn set_fuel(store: &mut Store<HostState>, fuel: u64) {
    store.set_fuel(fuel).expect("the engine counts fuel");
}

fn remaining_fuel(store: &Store<HostState>) -> u64 {
    store.get_fuel().expect("the engine counts fuel")
}

/// Takes chunks until the guest closes the channel. After an error they are swallowed: a full disk
/// here must not become a trap there.
fn drain(chunks: Receiver<Vec<u8>>, out: &mut dyn io::Write) -> io::Result<()> {
    let mut written = Ok(());
    for chunk in chunks {
        if written.is_ok() {
            written = out.write_all(&chunk);
        }
    }
    written
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

fn failure_text(failure: &types::Failure) -> String {
    match failure {
        types::Failure::InvalidConfig(why) => format!("invalid configuration: {why}"),
        types::Failure::UnsupportedFormat(format) => {
            format!("it does not read snapshots of format {format}")
        }
        types::Failure::Corrupt(why) => format!("corrupt snapshot: {why}"),
        types::Failure::Other(why) => why.clone(),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

/// The whole chain of causes, bounded.
fn one_line(error: &wasmtime::Error) -> String {
    const BYTES_MAX: usize = 1024;
    let text = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    trap::bounded(&text, BYTES_MAX).into_owned()
}

impl From<Context> for types::Context {
    fn from(ctx: Context) -> Self {
        Self { index: ctx.index, time_ms: ctx.time_ms, seed: ctx.seed }
    }
}

impl<'a> From<&'a SnapshotHeader> for types::SnapshotHeader<'a> {
    fn from(header: &'a SnapshotHeader) -> Self {
        Self {
            writer_name: &header.writer_name,
            writer_version: &header.writer_version,
            format: header.format,
            index: header.index,
            time_ms: header.time_ms,
        }
    }
}

impl From<types::Outcome> for Outcome {
    fn from(outcome: types::Outcome) -> Self {
        match outcome {
            types::Outcome::Ok(answer) => Self::Ok(answer.into()),
            types::Outcome::Rejected(reason) => Self::Rejected(reason.into()),
        }
    }
}

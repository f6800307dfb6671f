//! One instance of a component, in a store of its own, and the way calls enter it.
//!
//! - Every call has its own budget of fuel: what one call leaves over is not added to the next.
//! - A trap anywhere makes the store unusable: an instance that faulted is not entered again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use lockstep_core::fault::{FaultClass, GuestFault};
use lockstep_core::limits;
use wasmtime::Store;

use super::engine;
use super::imports::{HostState, SnapshotIo};
use super::log::GuestLog;
use super::text::one_line;
use super::trap::{self, Call};
use super::world::{Machine, MachinePre};
use crate::panics::panic_text;

/// Makes the instances of one component for one group.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) pre: MachinePre,
    /// The module's name, as it appears in the log messages of its guests.
    pub(super) name: Arc<str>,
    pub(super) log: Arc<GuestLog>,
    pub(super) memory_bytes_max: u64,
    /// Most bytes of events that the group keeps.
    pub(super) event_window_bytes: usize,
    /// Fuel of the instantiation.
    pub(super) fuel: u64,
}

/// A component that can be called.
pub(super) struct Instance {
    pub(super) store: Store<HostState>,
    machine: Machine,
    /// Fuel that all calls used together.
    pub(super) fuel_used: u64,
    /// Whether a call ended with a fault; no further call is made then.
    pub(super) faulted: bool,
}

impl Recipe {
    pub(super) fn make(&self) -> Result<Instance, GuestFault> {
        let state = HostState::new(
            Arc::clone(&self.name),
            Arc::clone(&self.log),
            self.memory_bytes_max,
            self.event_window_bytes,
            self.pre.wakes(),
        );
        let mut store = new_store(&self.pre, state, self.fuel);
        let machine = self.pre.instantiate(&mut store).map_err(|error| {
            instantiate_fault(Call::anywhere("instantiate"), &error, store.data())
        })?;
        let fuel_used = self.fuel - remaining_fuel(&store);
        Ok(Instance { store, machine, fuel_used, faulted: false })
    }
}

impl Instance {
    /// The fault of a call on an instance that faulted before.
    pub(super) fn spent(call: Call) -> GuestFault {
        call.fault(FaultClass::Host, "the guest was entered after a fault")
    }

    /// Makes one call. Until the call has returned without a fault, the instance counts as faulted.
    pub(super) fn enter<R>(
        &mut self,
        call: Call,
        fuel: u64,
        work: impl FnOnce(&mut Store<HostState>, &Machine) -> wasmtime::Result<R>,
    ) -> Result<R, GuestFault> {
        if self.faulted {
            return Err(Self::spent(call));
        }
        self.faulted = true;
        self.store.data_mut().begin(call.may_emit());
        set_fuel(&mut self.store, fuel);
        let result = work(&mut self.store, &self.machine);
        self.fuel_used += fuel - remaining_fuel(&self.store);
        match result {
            Ok(returned) => {
                self.faulted = false;
                Ok(returned)
            }
            Err(error) => Err(trap::fault(call, &error, self.store.data())),
        }
    }

    /// Runs [`Self::enter`] on a new thread, and `beside` on the caller's thread meanwhile. The
    /// outer `Err` means that no thread could be started and the guest was not entered.
    pub(super) fn enter_beside<R: Send, B>(
        &mut self,
        call: Call,
        fuel: u64,
        snapshot_io: SnapshotIo,
        work: impl FnOnce(&mut Store<HostState>, &Machine) -> wasmtime::Result<R> + Send,
        beside: impl FnOnce() -> B,
    ) -> io::Result<(Result<R, GuestFault>, B)> {
        let span = tracing::Span::current();
        self.store.data_mut().snapshot_io = snapshot_io;
        let guest = &mut *self;
        let run = move || {
            let _span = span.enter();
            let result = catch_unwind(AssertUnwindSafe(|| guest.enter(call, fuel, work)));
            // Closing the channel ends the caller's loop, also after a panic.
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
}

pub(super) fn new_store(pre: &MachinePre, state: HostState, fuel: u64) -> Store<HostState> {
    let mut store = Store::new(pre.engine(), state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(limits::HOSTCALL_BYTES_MAX);
    set_fuel(&mut store, fuel);
    store
}

/// The fault of a failed instantiation: the guest's if it trapped or was refused memory, else the
/// host's.
pub(super) fn instantiate_fault(
    call: Call,
    error: &wasmtime::Error,
    state: &HostState,
) -> GuestFault {
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

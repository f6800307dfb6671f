//! One instance of a component in a store of its own, and how it is entered.
//!
//! - Every call has a budget of fuel of its own; what one call leaves is not the next one's.
//! - A trap anywhere makes the store unusable: an instance that faulted is entered no more.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use lockstep_core::fault::{FaultClass, GuestFault};
use lockstep_core::limits;
use wasmtime::Store;

use super::component::one_line;
use super::engine;
use super::imports::{HostState, SnapshotIo};
use super::log::GuestLog;
use super::trap::{self, Call};
use super::world::{Machine, MachinePre};
use crate::panics::panic_text;

/// How instances of one component are made for one group.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) pre: MachinePre,
    /// The module's name as the guests' logs say it.
    pub(super) name: Arc<str>,
    pub(super) log: Arc<GuestLog>,
    pub(super) memory_bytes_max: u64,
    /// Fuel of the instantiation.
    pub(super) fuel: u64,
}

/// A component that can be called.
pub(super) struct Instance {
    pub(super) store: Store<HostState>,
    machine: Machine,
    /// Fuel that all calls together used.
    pub(super) fuel_used: u64,
    /// Whether a call ended with a fault; no other one is made then.
    pub(super) faulted: bool,
}

impl Recipe {
    pub(super) fn make(&self) -> Result<Instance, GuestFault> {
        let state =
            HostState::new(Arc::clone(&self.name), Arc::clone(&self.log), self.memory_bytes_max);
        let mut store = new_store(&self.pre, state, self.fuel);
        let machine = self.pre.instantiate(&mut store).map_err(|error| {
            instantiate_fault(Call::anywhere("instantiate"), &error, store.data())
        })?;
        let fuel_used = self.fuel - remaining_fuel(&store);
        Ok(Instance { store, machine, fuel_used, faulted: false })
    }
}

impl Instance {
    /// What a call on one that faulted before ends with.
    pub(super) fn spent(call: Call) -> GuestFault {
        call.fault(FaultClass::Host, "the guest was entered after a fault")
    }

    /// Makes one call. The guest counts as faulted until it has returned well.
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
        self.store.data_mut().begin();
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

    /// [`Self::enter`] on a thread that is not the caller's, whose `beside` runs meanwhile. `Err`
    /// of the outer kind: there is no thread, and the guest was not entered.
    pub(super) fn enter_beside<R: Send, B>(
        &mut self,
        (call, fuel): (Call, u64),
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
}

pub(super) fn new_store(pre: &MachinePre, state: HostState, fuel: u64) -> Store<HostState> {
    let mut store = Store::new(pre.engine(), state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(limits::HOSTCALL_BYTES_MAX);
    set_fuel(&mut store, fuel);
    store
}

/// Without a trap and without a refused memory, what fails an instantiation is the machine.
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

//! A second instance over the live guest's memory, for calls that must leave no trace of
//! themselves: queries and snapshots.
//!
//! It costs the pages that a call touches. Whatever the call does, trap, loop or write, the live
//! guest is as it was. A copy is kept for the next call, and made anew where the live memory has
//! grown or a call ended badly. What calls wrote is forgotten before the first one that follows a
//! change of the live guest, behind every long call, and now and then: to find all pages again
//! takes longer than a short call itself.

use lockstep_core::fault::{FaultClass, GuestFault};

use super::instance::{Instance, Recipe};
use super::memory::{Memories, Mirrored};
use super::trap::Call;

/// Bytes of memory that a call may have beyond what the live guest has.
pub(crate) const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// Fuel of one call, and of all calls together, after which what they wrote is forgotten.
const CALL_FUEL_MAX: u64 = 1_000_000;
const CALLS_FUEL_MAX: u64 = 20_000_000_000;

/// The copy of one live guest, and how one is made.
pub(super) struct GuestCopy {
    recipe: Recipe,
    /// The live guest's.
    memories: Memories,
    made: Option<Mirrored<Instance>>,
    /// Fuel of the calls since it last forgot what they wrote; `None`: it is to forget now.
    since: Option<u64>,
    fuel_used: u64,
}

impl GuestCopy {
    pub(super) fn new(recipe: Recipe, memories: Memories) -> Self {
        Self { recipe, memories, made: None, since: None, fuel_used: 0 }
    }

    /// Fuel that the calls used.
    pub(super) fn fuel_used(&self) -> u64 {
        self.fuel_used
    }

    /// The next call must see the live guest as it will be then, and nothing else.
    pub(super) fn falls_behind(&mut self) {
        self.since = None;
    }

    /// Makes one call, while the live guest has so many bytes of memory in use and is not entered.
    pub(super) fn enter<R>(
        &mut self,
        call: Call,
        used: u64,
        work: impl FnOnce(&mut Instance) -> Result<R, GuestFault>,
    ) -> Result<R, GuestFault> {
        let mut copy = match self.made.take().filter(Mirrored::fits) {
            Some(mut copy) => {
                if self.since.is_none() {
                    copy.forget().map_err(|error| no_copy(call, &error))?;
                }
                copy
            }
            None => {
                self.since = None;
                let made = self.memories.mirror(|| self.recipe.make())?;
                made.map_err(|error| no_copy(call, &error))?
            }
        };
        let instance = copy.instance();
        instance.fuel_used = 0;
        instance.store.data_mut().limiter.stands_at(used, used.saturating_add(GROWTH_BYTES_MAX));
        let result = work(instance);
        let (faulted, fuel) = (instance.faulted, instance.fuel_used);
        self.fuel_used += fuel;
        let since = self.since.unwrap_or(0).saturating_add(fuel);
        self.since = Some(since).filter(|since| *since < CALLS_FUEL_MAX);
        // One that faulted is not entered again, and goes with what it wrote.
        if !faulted && copy.fits() {
            if fuel > CALL_FUEL_MAX {
                copy.forget().map_err(|error| no_copy(call, &error))?;
            }
            self.made = Some(copy);
        }
        result
    }
}

fn no_copy(call: Call, error: &std::io::Error) -> GuestFault {
    call.fault(FaultClass::Host, format!("no copy of the guest to ask: {error}"))
}

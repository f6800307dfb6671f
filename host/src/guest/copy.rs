//! A second instance over the live guest's memory, for the calls that must leave no trace: queries
//! and snapshots.
//!
//! Whatever a call on the copy does, trap, loop or write, the live guest stays as it was. A copy
//! costs the pages that its calls write to. It is reused for the next call, and made anew if the
//! live memory has grown or a call faulted. The pages that calls wrote are discarded, so that the
//! copy sees the live memory again: before the first call after a change of the live guest, after
//! every long call, and when many short calls have used much fuel together. They are not discarded
//! after each short call, since mapping all pages again takes longer than such a call.

use lockstep_core::fault::{FaultClass, GuestFault};

use super::instance::{Instance, Recipe};
use super::memory::{Memories, Mirrored};
use super::trap::Call;

/// Bytes of memory that a call may use in addition to what the live guest uses.
pub(crate) const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// Written pages are discarded after a call that used more fuel than this.
const CALL_FUEL_MAX: u64 = 1_000_000;
/// Written pages are discarded before the next call once the calls since the last time used this
/// much fuel together.
const CALLS_FUEL_MAX: u64 = 20_000_000_000;

/// The copy of one live guest, and the means to make it.
pub(super) struct GuestCopy {
    recipe: Recipe,
    /// The live guest's memories.
    memories: Memories,
    made: Option<Mirrored<Instance>>,
    /// Fuel of the calls since the written pages were last discarded before a call; `None` =
    /// discard them before the next call.
    since: Option<u64>,
    /// Fuel that all calls used.
    fuel_used: u64,
}

impl GuestCopy {
    pub(super) fn new(recipe: Recipe, memories: Memories) -> Self {
        Self { recipe, memories, made: None, since: None, fuel_used: 0 }
    }

    /// Fuel that all calls used.
    pub(super) fn fuel_used(&self) -> u64 {
        self.fuel_used
    }

    /// Makes the next call see the live guest as it is by then, without the writes of earlier
    /// calls.
    pub(super) fn falls_behind(&mut self) {
        self.since = None;
    }

    /// Makes one call on the copy. The live guest, which uses `used` bytes of memory, must not be
    /// entered meanwhile.
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
        // A copy whose call faulted is dropped here.
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
    call.fault(FaultClass::Host, format!("the guest could not be copied for this call: {error}"))
}

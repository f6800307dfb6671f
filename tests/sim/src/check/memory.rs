//! Commands are refused before a guest reaches its limit of memory. Planted:
//! `memory_without_bound`.

use lockstep_core::fault::{Fault, FaultClass};

use super::{Checked, violated};

/// A replica halts with this fault. The cause must not be that the guest ran out of memory.
pub fn had(fault: &Fault) -> Checked {
    match fault {
        Fault::Guest(guest) if guest.class == FaultClass::OutOfMemory => {
            violated("memory", fault.to_string())
        }
        _other => Ok(()),
    }
}

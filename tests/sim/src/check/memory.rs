//! Commands are refused before a guest reaches its limit of memory. Planted:
//! `memory_without_bound`.

use lockstep_core::fault::{Fault, FaultClass};

use super::{Checked, violated};

/// A replica halts with this fault: not for lack of the guest's own memory.
pub fn had(fault: &Fault) -> Checked {
    match fault {
        Fault::Guest(guest) if guest.class == FaultClass::OutOfMemory => {
            violated("memory", fault.to_string())
        }
        _other => Ok(()),
    }
}

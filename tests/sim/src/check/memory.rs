//! Commands are refused before a guest has all the memory that it may have. Planted:
//! `memory_without_bound`.

use lockstep_core::fault::{Fault, FaultClass};

use super::{Checked, violated};

/// A replica halts because of this.
pub fn had(fault: &Fault) -> Checked {
    match fault {
        Fault::Guest(guest) if guest.class == FaultClass::OutOfMemory => {
            violated("memory", fault.to_string())
        }
        _other => Ok(()),
    }
}

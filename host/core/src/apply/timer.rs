//! The guest's timer: one deadline in the log's time, at which the leader proposes that every
//! replica calls the guest.
//!
//! An entry names the deadline that it is for by the entry that set it. However often it is
//! proposed, and by however many leaders, the guest is called once for each deadline, and for none
//! that was replaced.

use crate::apply::Switches;
use crate::ids::ModuleId;

/// What a guest sets its timer to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting {
    /// The log's time, ms.
    At(u64),
    Never,
}

/// A deadline that was not reached yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadline {
    /// The log's time at which the guest is to be called, ms.
    pub at_ms: u64,
    /// The index of the entry that set it.
    pub set_by: u64,
}

/// What the rest of a replica has to know of the ledger after some entry: the log's time, the
/// deadline that is pending, what an operator has set, and the module that applies what follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogClock {
    pub time_ms: u64,
    pub deadline: Option<Deadline>,
    pub switches: Switches,
    /// `None` before entry 1.
    pub module: Option<ModuleId>,
    /// The module before the last upgrade.
    pub previous: Option<ModuleId>,
}

//! What must hold: one property a file.
//!
//! | file | property | source |
//! |---|---|---|
//! | `election` | one leader a term | raft paper, figure 3 |
//! | `promises` | votes, terms and acknowledgements leave only when durable | thesis 3.8 |
//! | `votes` | one vote a term, none by a replica whose disk is gone | thesis 3.4 |
//! | `logs` | equal index and term, equal entry | figure 3, log matching |
//! | `gapless` | no hole in the log, whose first entry follows a snapshot | `recovery_state` |
//! | `commits` | a process's commit index never falls | figure 3 |
//! | `states` | equal index, equal state | figure 3, state machine safety |
//! | `durable` | what was acknowledged is on a majority's disks | thesis 3.6 |
//! | `histories` | clients' histories are linearizable | Herlihy and Wing 1990 |
//! | `sessions` | an acknowledged operation was applied once, another at most once | thesis 6.3 |
//! | `fates` | what a client was told was not applied never is | `fault::Refusal` |
//! | `snapshots` | listed objects are whole | `store` |
//! | `recovery_points` | there is always one to start from | `recovery_state` |
//! | `marks` | equal index, equal digest of the snapshot | `store` |
//! | `budget` | the budget is kept, and every byte is counted in it | `store::reserve` |
//! | `leaks` | nothing stays that nobody needs | `store` |
//! | `memory` | commands are refused before memory ends | `memory` in the core |
//! | `descriptors` | a log waits for descriptors as it does for room | `fs::is_short` |
//! | `idle` | a log at rest writes nothing | `wal` |
//! | `copies` | old copies stop, lead nobody, and count for nothing | `Fault::OldCopy` |
//! | `time` | log time follows a majority of the voters' clocks | decision 0026 |
//! | `reports` | each transfer is reported once | `bulk` |
//!
//! Each file names a planted bug (`LOCKSTEP_MUTANT`) that it reports.

use std::collections::BTreeMap;

pub mod budget;
pub mod commits;
pub mod copies;
pub mod descriptors;
pub mod durable;
pub mod election;
pub mod fates;
pub mod gapless;
pub mod histories;
pub mod idle;
pub mod leaks;
pub mod logs;
pub mod marks;
pub mod memory;
pub mod promises;
pub mod recovery_points;
pub mod reports;
pub mod sessions;
pub mod snapshots;
pub mod states;
pub mod time;
pub mod votes;

/// A property that did not hold: which, and what was seen.
#[derive(Clone, Debug)]
pub struct Violation {
    pub checker: &'static str,
    pub what: String,
}

/// How a check ends.
pub type Checked = Result<(), Violation>;

pub fn violated<T>(checker: &'static str, what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { checker, what: what.into() })
}

/// Everything that checks along the way.
#[derive(Default)]
pub struct Checks {
    pub elections: election::Elections,
    pub votes: votes::Votes,
    pub reports: reports::Reports,
    pub marks: marks::Marks,
    pub entries: logs::Entries,
    pub configurations: durable::Configurations,
    pub times: time::Times,
    /// Durable logs of nodes that are down, as they were when they went.
    pub down: BTreeMap<lockstep_core::ids::NodeId, durable::Views>,
    /// Durable logs of disks that are gone, as they were when they went.
    pub lost: Vec<(lockstep_core::ids::GroupId, durable::View)>,
}

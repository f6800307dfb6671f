//! What must hold: one property in each file.
//!
//! | file | property | source |
//! |---|---|---|
//! | `election` | at most one leader a term | raft paper, figure 3 |
//! | `promises` | votes, terms and acknowledgements leave only when durable | thesis 3.8 |
//! | `votes` | at most one vote a term, none by a replica whose disk is lost | thesis 3.4 |
//! | `logs` | equal index and term mean equal entries | figure 3, log matching |
//! | `gapless` | the log has no gap, neither inside nor after a snapshot | `recovery_state` |
//! | `commits` | a process's commit index never falls | figure 3 |
//! | `states` | equal indexes mean equal states | figure 3, state machine safety |
//! | `durable` | an acknowledged entry is on the disks of a majority | thesis 3.6 |
//! | `events` | who watches sees every event once and in order, over restarts | decision 0048 |
//! | `timers` | a guest is woken once for each deadline, and not before it | decision 0048 |
//! | `histories` | clients' histories are linearizable | Herlihy and Wing 1990 |
//! | `sessions` | acknowledged operations are applied once, others at most once | thesis 6.3 |
//! | `fates` | a command that a client was told is not applied never is | `fault::Refusal` |
//! | `snapshots` | listed objects are whole | `store` |
//! | `recovery_points` | a replica can always start | `recovery_state` |
//! | `checkpoints` | snapshots of equal index have equal digests | `store` |
//! | `divergence` | only a minority halts as diverged, and sends no snapshot | decision 0051 |
//! | `budget` | the budget is kept, and counts every byte | `store::reserve` |
//! | `leaks` | no file that is not needed stays on a disk | `store` |
//! | `memory` | commands are refused before a guest runs out of memory | `memory` in the core |
//! | `descriptors` | a log waits for descriptors as for disk space | `fs::is_short` |
//! | `orders` | a skipped entry, and a command in a frozen group, has no effect | `amendment` |
//! | `idle` | a log at rest writes nothing | `wal` |
//! | `copies` | old copies stop, do not lead, and count for nothing | `Fault::OldCopy` |
//! | `time` | log time follows a majority of the voters' clocks | decision 0026 |
//! | `reports` | each transfer is reported to the core once | `bulk` |
//!
//! Each file names planted bugs (`LOCKSTEP_MUTANT`) that its checker reports.

use std::collections::BTreeMap;

pub mod budget;
pub mod checkpoints;
pub mod commits;
pub mod copies;
pub mod descriptors;
pub mod divergence;
pub mod durable;
pub mod election;
pub mod events;
pub mod fates;
pub mod gapless;
pub mod histories;
pub mod idle;
pub mod leaks;
pub mod logs;
pub mod memory;
pub mod orders;
pub mod promises;
pub mod recovery_points;
pub mod reports;
pub mod sessions;
pub mod snapshots;
pub mod states;
pub mod time;
pub mod votes;

/// A property that did not hold: its checker, and what the checker saw.
#[derive(Clone, Debug)]
pub struct Violation {
    pub checker: &'static str,
    pub what: String,
}

/// The result of a check.
pub type Checked = Result<(), Violation>;

pub fn violated<T>(checker: &'static str, what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { checker, what: what.into() })
}

/// The checkers that remember what they have seen of a run.
#[derive(Default)]
pub struct Checks {
    pub elections: election::Elections,
    pub votes: votes::Votes,
    pub reports: reports::Reports,
    pub checkpoints: checkpoints::Checkpoints,
    pub taken: divergence::Taken,
    pub entries: logs::Entries,
    pub configurations: durable::Configurations,
    pub times: time::Times,
    pub watchers: events::Watchers,
    /// The durable logs of nodes that are down, as they were when their processes ended.
    pub down: BTreeMap<lockstep_core::ids::NodeId, durable::Views>,
    /// The last durable logs of disks that were lost.
    pub lost: Vec<(lockstep_core::ids::GroupId, durable::View)>,
}

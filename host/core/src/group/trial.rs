//! What replicas tell each other of a trial of another module: [`super::upgrade`].

use crate::ids::ModuleId;
use crate::snapshot::chunk::REASON_BYTES_MAX;

/// Identifies a trial: the leader's term, and the trial's number, which that leader counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrialId {
    pub term: u64,
    pub number: u64,
}

/// What a leader has every replica try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trial {
    pub id: TrialId,
    pub module: ModuleId,
    /// A state may be moved once it includes this entry, after which nothing calls the guest; 0
    /// while the module is only prepared.
    pub from: u64,
}

/// How far a replica is with a trial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vote {
    pub trial: TrialId,
    pub stage: Stage,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stage {
    /// It gets the module and compiles it.
    Preparing,
    Prepared,
    /// A copy of its state is in a guest of the new module.
    Moved,
    /// It cannot follow, for this reason.
    Failed(String),
}

/// What a frame says of a trial.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TrialStatus {
    /// The sender leads, and has every replica try this module.
    pub trial: Option<Trial>,
    /// How far the sender is with the trial of its leader.
    pub vote: Option<Vote>,
}

/// What a worker has ready for a trial: this module, which has to read what `running` writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preparation {
    pub trial: TrialId,
    pub module: ModuleId,
    pub running: ModuleId,
}

impl Stage {
    /// It cannot follow, for this reason, which is cut if it is long.
    pub fn failed(mut why: String) -> Self {
        why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
        Self::Failed(why)
    }
}

//! What a replica has for a guest. This one value decides what becomes of entries that are handed
//! over, and what the replica shows as its state.
//!
//! | from | to | when |
//! |---|---|---|
//! | applies | applies, with a build | a start; memory is to be released; a snapshot of a peer is listed |
//! | applies, with a build | applies | the build ends with a guest |
//! | applies, with a build | missing | the build finds no recovery point that restores |
//! | missing | applies, with a build | an object that helps is listed; its own objects are tried again |
//! | any | halted | an entry, the module or the node fails the guest |
//! | halted | applies, with a build | a snapshot of a peer is listed; memory or descriptors are tried again |

use crate::group::effect::{ApplyJob, Halt};
use crate::snapshot::Configuration;

/// What a replica has for a guest.
pub(super) enum Guest {
    /// There is one, or the lane builds one. Entries are queued for it.
    Applies {
        build: Option<Build>,
        /// The capture that the lane was given. Later items wait until the guest has written it,
        /// because it may have to be retried.
        capturing: Option<Capture>,
    },
    /// There is nothing to build one from. Entries are not queued: the build that comes later
    /// covers them.
    Missing(Missing),
    /// It can apply no further entry. Entries are not queued: if the replica goes on, a build
    /// covers them.
    Halted(Halt),
    /// The replica stopped.
    Stopped,
}

/// How the lane builds a guest.
pub(super) enum Build {
    /// From the newest recovery point that restores, and the log up to the floor.
    Start {
        /// What the replica lacked when it began to try its own recovery points again. Peers are
        /// still asked for it.
        missing: Option<Missing>,
    },
    /// From a snapshot that a peer sent.
    Restore,
}

/// What a replica lacks that has nothing to build a guest from.
#[derive(Clone)]
pub(super) struct Missing {
    /// Why no recovery point restores, and what the replica does about it.
    pub(super) why: String,
    /// The index of the newest object that could not be restored. One that is listed later and is
    /// newer ends the need.
    pub(super) lacked: u64,
}

/// A snapshot for the lane to take.
#[derive(Clone)]
pub(super) struct Capture {
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) configuration: Configuration,
    /// Bytes of log that the replica can cut once it has the snapshot.
    pub(super) gain: u64,
}

impl Build {
    pub(super) const START: Self = Self::Start { missing: None };
}

impl Guest {
    /// A guest that is built so; with `None`, one that is there.
    pub(super) fn built(build: Option<Build>) -> Self {
        Self::Applies { build, capturing: None }
    }

    /// The build under way.
    pub(super) fn build(&self) -> Option<&Build> {
        match self {
            Self::Applies { build, .. } => build.as_ref(),
            Self::Missing(_) | Self::Halted(_) | Self::Stopped => None,
        }
    }

    pub(super) fn missing(&self) -> Option<&Missing> {
        match self {
            Self::Missing(missing) => Some(missing),
            Self::Applies { build: Some(Build::Start { missing }), .. } => missing.as_ref(),
            Self::Applies { .. } | Self::Halted(_) | Self::Stopped => None,
        }
    }

    pub(super) fn halt(&self) -> Option<&Halt> {
        match self {
            Self::Halted(halt) => Some(halt),
            Self::Applies { .. } | Self::Missing(_) | Self::Stopped => None,
        }
    }
}

impl Capture {
    pub(super) fn job(self) -> ApplyJob {
        let Self { term, index, configuration, gain } = self;
        ApplyJob::Capture { term, index, configuration, gain }
    }
}

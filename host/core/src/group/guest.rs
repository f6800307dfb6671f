//! Whether a replica has a guest, builds one, or lacks one. This one value decides what becomes of
//! entries that are handed over, and what the replica shows as its state.
//!
//! | from | to | when |
//! |---|---|---|
//! | applies | builds | at a start; to release memory; a peer's snapshot is listed |
//! | builds | applies | the build ends with a guest |
//! | applies, builds | missing | no recovery point restores |
//! | missing | builds | an object that helps is listed; its own objects are tried again |
//! | any | halted | the guest fails, the module is not the group's, the node lacks a resource |
//! | halted | builds | a peer's snapshot is listed; a lack of a resource may be over |

use crate::group::effect::{ApplyJob, Halt};
use crate::snapshot::Configuration;

/// Whether a replica has a guest, builds one, or lacks one.
pub(super) enum Guest {
    /// The replica has a guest, or the lane builds one. Entries are queued for it.
    Applies {
        build: Option<Build>,
        /// The capture that the lane was given. Later items wait until the guest has written it,
        /// because it may have to be retried.
        capturing: Option<Capture>,
    },
    /// There is nothing to build a guest from. Entries are not queued: the build that comes later
    /// covers them.
    Missing(Missing),
    /// The guest can apply no further entry. Entries are not queued: if the replica goes on, a
    /// build covers them.
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

/// What a replica lacks to build a guest.
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

impl Guest {
    /// A guest that is being built in this way; with `None`, one that is complete.
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

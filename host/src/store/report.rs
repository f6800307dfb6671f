//! What a store tells of itself: objects, bytes by class, and what happened since the start.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::snapshot::chunk::ObjectRef;

use super::layout::ObjectName;
use super::places::Work;
use super::reserve::{Lease, Use};
use super::{SnapshotStore, is_free};
use crate::fs::Space;

/// What happened since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// By producer (`local`, `received`) and reason.
    pub refusals: BTreeMap<(&'static str, &'static str), u64>,
    /// Files deleted to make room or because nobody needs them, by producer that asked or `idle`.
    pub reclaimed: BTreeMap<&'static str, u64>,
    /// Removals that failed; each is tried again.
    pub unremoved: u64,
    pub parked: u64,
    pub resumed: u64,
    /// Parked transfers that were given up.
    pub abandoned: u64,
}

/// An object as `status` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStatus {
    pub file: String,
    pub term: u64,
    pub index: u64,
    pub bytes: u64,
    /// The durable log lists it.
    pub listed: bool,
    /// It was promised to a follower.
    pub promised: bool,
    /// Somebody reads, sends or is about to list it.
    pub leased: bool,
    /// What for, where that is known.
    pub uses: Vec<Use>,
}

/// Bytes on disk by class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub listed: u64,
    /// Sealed, unlisted: about to be listed, or still leased, or not yet deleted.
    pub unlisted: u64,
    /// Reserved for staging files.
    pub staged: u64,
    /// Of a broken transfer that may go on.
    pub parked: u64,
}

/// Everything together, as a status or a metric needs it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreReport {
    pub objects: Vec<ObjectStatus>,
    pub usage: Usage,
    pub tally: Tally,
    /// What is parked, and its bytes.
    pub parked: Option<(ObjectRef, u64)>,
    /// Of the filesystem of the group's snapshots.
    pub space: Option<Space>,
    /// Bytes of the host's budget that are taken, and that there are.
    pub budget_used: u64,
    pub budget: u64,
    /// Groups of the host that take a snapshot now, or restore one, and those that ask for a place.
    pub captures: (usize, usize),
    pub restores: (usize, usize),
    /// Objects that were not what they should be, since the start.
    pub verification_failures: u64,
}

impl SnapshotStore {
    /// Every object, oldest first.
    pub fn list(&self) -> Vec<ObjectStatus> {
        let status = |(name, lease): (&ObjectName, &Arc<Lease>)| ObjectStatus {
            file: name.file(),
            term: name.term,
            index: name.index,
            bytes: lease.bytes(),
            listed: self.is_listed(*name),
            promised: self.is_promised(*name),
            leased: !is_free(lease),
            uses: self.uses_of(*name),
        };
        self.objects.iter().map(status).collect()
    }

    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for object in self.list() {
            match object.listed {
                true => usage.listed += object.bytes,
                false => usage.unlisted += object.bytes,
            }
        }
        usage.parked = self.parked.as_ref().map_or(0, |(parked, _)| parked.bytes());
        let parts: u64 = self.parts.values().map(|lease| lease.bytes()).sum();
        usage.staged = parts - usage.parked;
        usage
    }

    /// What happened since the start.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    pub fn report(&self) -> StoreReport {
        let budget = self.quota.budget();
        StoreReport {
            verification_failures: self.quota.bad(),
            objects: self.list(),
            usage: self.usage(),
            tally: self.tally.clone(),
            parked: self.parked().map(|(parked, _)| (parked.object(), parked.bytes())),
            space: self.fs.space(&self.dir).ok(),
            budget_used: budget.used(),
            budget: budget.limits().bytes,
            captures: budget.places(Work::Capture),
            restores: budget.places(Work::Restore),
        }
    }
}

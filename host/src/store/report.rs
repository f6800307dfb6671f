//! What a store reports: its objects, its bytes by class, and counts since the start.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::snapshot::chunk::ObjectRef;

use super::layout::ObjectName;
use super::places::Work;
use super::reserve::{Allocation, Use};
use super::{SnapshotStore, is_free};
use crate::fs::Space;

/// Counts since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Refusals by producer (`local`, `received`) and reason.
    pub refusals: BTreeMap<(&'static str, &'static str), u64>,
    /// Files deleted to make space for a reservation, by the producer that asked for it.
    pub reclaimed: BTreeMap<&'static str, u64>,
    /// Removals that failed; each is tried again.
    pub unremoved: u64,
    /// Transfers that broke and were suspended.
    pub suspended: u64,
    /// Suspended transfers that were resumed.
    pub resumed: u64,
    /// Suspended transfers that were given up.
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
    /// Its allocation is held: it is being read, sent or about to be listed.
    pub in_use: bool,
    /// What readers hold it for.
    pub uses: Vec<Use>,
}

/// Bytes on disk by class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Objects that the durable log lists.
    pub listed: u64,
    /// Sealed objects that the durable log does not list: about to be listed, held, promised or
    /// about to be deleted.
    pub unlisted: u64,
    /// Staging files, except the suspended one.
    pub staged: u64,
    /// The suspended transfer.
    pub suspended: u64,
}

/// All that a store reports for status and metrics.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreReport {
    pub objects: Vec<ObjectStatus>,
    pub usage: Usage,
    pub tally: Tally,
    /// The suspended object, and its bytes.
    pub suspended: Option<(ObjectRef, u64)>,
    /// Space on the filesystem of the group's snapshots.
    pub space: Option<Space>,
    /// Bytes of the host's budget that are taken.
    pub budget_used: u64,
    /// Bytes of the host's budget.
    pub budget: u64,
    /// Groups of the host that are taking a snapshot, and groups that wait for a place.
    pub captures: (usize, usize),
    /// Groups of the host that are restoring a snapshot, and groups that wait for a place.
    pub restores: (usize, usize),
    /// Objects found corrupt or missing since the start.
    pub verification_failures: u64,
}

impl SnapshotStore {
    /// Every object, oldest first.
    pub fn list(&self) -> Vec<ObjectStatus> {
        let status = |(name, allocation): (&ObjectName, &Arc<Allocation>)| ObjectStatus {
            file: name.file(),
            term: name.term,
            index: name.index,
            bytes: allocation.bytes(),
            listed: self.is_listed(*name),
            promised: self.is_promised(*name),
            in_use: !is_free(allocation),
            uses: self.uses_of(*name),
        };
        self.objects.iter().map(status).collect()
    }

    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for object in self.list() {
            let class = if object.listed { &mut usage.listed } else { &mut usage.unlisted };
            *class += object.bytes;
        }
        usage.suspended = self.suspended.as_ref().map_or(0, |(suspended, _)| suspended.bytes());
        let parts: u64 = self.parts.values().map(|allocation| allocation.bytes()).sum();
        usage.staged = parts - usage.suspended;
        usage
    }

    /// Counts since the start.
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
            suspended: self
                .suspended()
                .map(|(suspended, _)| (suspended.object(), suspended.bytes())),
            space: self.fs.space(&self.dir).ok(),
            budget_used: budget.used(),
            budget: budget.limits().bytes,
            captures: budget.places(Work::Capture),
            restores: budget.places(Work::Restore),
        }
    }
}

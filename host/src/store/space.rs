//! Whether there is space and a place for the next snapshot, and what a group can give up for it.

use std::sync::Arc;

use lockstep_core::limits;
use lockstep_core::snapshot::{SnapshotDesc, SnapshotSpace};

use super::layout::{ObjectName, object_bytes};
use super::places::Work;
use super::reserve::{Slot, SnapshotRefusal};
use super::{SnapshotStore, busy, is_free};

/// The expected payload of a local snapshot if the last one had `last` bytes: an eighth more, but
/// at most one block more, because a disk sized for two snapshots has no more to spare. A snapshot
/// that grew by more takes more space while it is written.
pub(crate) fn next_length(last: u64) -> u64 {
    last.saturating_add((last / 8).min(limits::SNAPSHOT_BLOCK_BYTES as u64))
}

impl SnapshotStore {
    /// Called at every tick. Returns the space that disk and quota have for the next local snapshot
    /// beside the newest object: on every call while it is too little, and once when it is enough
    /// again.
    pub fn next_space(&mut self) -> Option<SnapshotSpace> {
        let space = self.space()?;
        if !space.fits() {
            self.claim(space.need);
        }
        let short = space.shortage().is_some() || !space.fits();
        let was = std::mem::replace(&mut self.told_short, short);
        (short || was).then_some(space)
    }

    /// A local snapshot of `estimate` bytes found no more space while it was written. Returns the
    /// recovery point that is to be unlisted for it: the oldest that is neither in use nor
    /// promised. If there is none, the next snapshot is expected to need a quarter more.
    pub fn outgrew(&mut self, estimate: u64) -> Option<SnapshotDesc> {
        let spare = self.spare().last().cloned();
        if spare.is_none() {
            self.wanted = object_bytes(estimate.saturating_add(estimate / 4));
        }
        spare
    }

    /// The space for the next local snapshot. Objects that are still being sent count as free,
    /// because their space will be returned; space that the log takes meanwhile will not.
    fn space(&self) -> Option<SnapshotSpace> {
        let newest = self.listed.first();
        let next = newest.and_then(|desc| object_bytes(next_length(desc.length)));
        let stays = newest.map_or(0, |desc| self.bytes_of(&ObjectName::of(desc)));
        // `wanted` is a guess: at most what the group may have beside its newest object.
        let wanted = self.wanted.map(|wanted| wanted.min(self.quota.most().saturating_sub(stays)));
        let need = next.max(wanted)?;
        let free = self.quota.disk_space(self.fs.space(&self.dir).ok()?);
        let usage = self.usage();
        let all = usage.listed + usage.unlisted + usage.staged + usage.suspended;
        let comes_back = all.saturating_sub(stays.max(usage.staged));
        let have = free.saturating_add(comes_back);
        let quota = self.quota.left().saturating_add(comes_back);
        // The log may take two more segments before a reported shortage stops it.
        let margin = self.quota.budget().limits().headroom_bytes.saturating_mul(2);
        Some(SnapshotSpace { need, have, quota, margin })
    }

    /// Takes the group's place for an inbound transfer, with one of the host's.
    pub(super) fn inbound_slot(&self) -> Result<Slot, SnapshotRefusal> {
        let host = self.quota.take_inbound().ok_or(busy())?;
        Slot::take(&self.inbound, Arc::new(host)).ok_or(busy())
    }

    /// Takes the group's place for a local snapshot, with one of the host's.
    pub(super) fn local_slot(&self, gain: u64) -> Result<Slot, SnapshotRefusal> {
        if !Slot::is_free(&self.local) {
            return Err(busy());
        }
        let most = self.quota.budget().limits().captures;
        let taken = self.quota.take_place(Work::Capture, gain);
        let place = taken.ok_or(SnapshotRefusal::NoPlace { most })?;
        Slot::take(&self.local, Arc::new(place)).ok_or(busy())
    }

    /// Claims `bytes` that other groups of the host may have to spare.
    fn claim(&self, bytes: u64) {
        if let Ok(space) = self.fs.space(&self.dir) {
            self.quota.claim(bytes, space);
        }
    }

    /// Bytes that unlisting every spare recovery point would free.
    fn gain(&self) -> u64 {
        self.spare().iter().map(|desc| self.bytes_of(&ObjectName::of(desc))).sum()
    }

    fn bytes_of(&self, name: &ObjectName) -> u64 {
        self.objects.get(name).map_or(0, |allocation| allocation.bytes())
    }

    /// The recovery points, except the newest, that are neither in use nor promised; newest first.
    pub(super) fn spare(&self) -> Vec<SnapshotDesc> {
        let beyond = self.listed.get(1..).unwrap_or_default();
        beyond.iter().filter(|desc| !self.is_used(ObjectName::of(desc))).cloned().collect()
    }

    fn is_used(&self, name: ObjectName) -> bool {
        self.is_promised(name)
            || self.objects.get(&name).is_some_and(|allocation| !is_free(allocation))
    }

    /// The refusal for `need` bytes of which only `have` are left. If unlisting spare recovery
    /// points frees enough, it names the oldest of them. Else, if objects that are in use or
    /// promised hold enough, the snapshot is postponed until they are released. Else there is no
    /// space, and this claims it from the host's other groups.
    pub(super) fn no_space(&self, need: u64, have: u64) -> SnapshotRefusal {
        let (free, gain) = (self.spare(), self.gain());
        let newest = self.listed.first().map(ObjectName::of);
        let used =
            self.objects.keys().filter(|name| Some(**name) != newest && self.is_used(**name));
        let held: u64 = used.map(|name| self.bytes_of(name)).sum();
        match free.last() {
            Some(oldest) if have.saturating_add(gain) >= need => {
                SnapshotRefusal::NeedsUnlist(Box::new(oldest.clone()))
            }
            _ if held > 0 && have.saturating_add(gain).saturating_add(held) >= need => {
                SnapshotRefusal::Held { bytes: held }
            }
            Some(_) | None => {
                self.claim(need);
                SnapshotRefusal::NoSpace { need, have }
            }
        }
    }
}

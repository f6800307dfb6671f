//! Whether there is room, and what a group could give up to make some.

use lockstep_core::fault::Shortage;
use lockstep_core::snapshot::SnapshotDesc;

use super::SnapshotStore;
use super::is_free;
use super::layout::ObjectName;
use super::reserve::SnapshotRefusal;

impl SnapshotStore {
    /// How the disk stands if it is too small for so many bytes, whatever the limits are, and
    /// though the group gave up what it can spare.
    pub fn disk_shortage(&self, need: u64) -> Option<Shortage> {
        let free = self.quota.disk_room(self.fs.space(&self.dir).ok()?);
        let parked = self.parked.as_ref().map_or(0, |(parked, _)| parked.lease.bytes());
        let have = free.saturating_add(parked).saturating_add(self.gain());
        (have < need).then_some(Shortage { need, have })
    }

    /// To be called now and then: how the disk stands with the snapshot for which it had no room,
    /// `None` if there is none such.
    pub fn look_for_room(&mut self) -> Option<Option<Shortage>> {
        let need = self.wanted?;
        let short = self.disk_shortage(need);
        self.wanted = short.map(|_| need);
        Some(short)
    }

    /// Bytes of what may be unlisted and is used by nobody.
    fn gain(&self) -> u64 {
        self.spare().iter().map(|desc| self.bytes_of(&ObjectName::of(desc))).sum()
    }

    fn bytes_of(&self, name: &ObjectName) -> u64 {
        self.objects.get(name).map_or(0, |lease| lease.bytes())
    }

    /// Listed beyond the newest, and used by nobody.
    pub(super) fn spare(&self) -> Vec<SnapshotDesc> {
        let beyond = self.listed.get(1..).unwrap_or_default();
        beyond.iter().filter(|desc| !self.is_used(ObjectName::of(desc))).cloned().collect()
    }

    fn is_used(&self, name: ObjectName) -> bool {
        self.is_promised(name) || self.objects.get(&name).is_some_and(|lease| !is_free(lease))
    }

    /// A recovery point beyond the newest is asked for if that can make enough room; what is used
    /// or promised makes room only later.
    pub(super) fn no_space(&self, need: u64, have: u64) -> SnapshotRefusal {
        let (free, gain) = (self.spare(), self.gain());
        let newest = self.listed.first().map(ObjectName::of);
        let held =
            self.objects.keys().filter(|name| Some(**name) != newest && self.is_used(**name));
        let held: u64 = held.map(|name| self.bytes_of(name)).sum();
        match free.last() {
            Some(oldest) if have.saturating_add(gain) >= need => {
                SnapshotRefusal::NeedsUnlist(Box::new(oldest.clone()))
            }
            _ if held > 0 && have.saturating_add(gain).saturating_add(held) >= need => {
                SnapshotRefusal::Held { bytes: held }
            }
            Some(_) | None => {
                self.quota.claim(need);
                SnapshotRefusal::NoSpace { need, have }
            }
        }
    }
}

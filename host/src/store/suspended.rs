//! Suspended transfers: a group keeps the received part of one object whose transfer broke, so that
//! a later transfer can resume it.

use std::sync::Arc;

use lockstep_core::snapshot::chunk::ValidatedHeader;

use super::layout::{self, Header};
use super::reserve::SnapshotRefusal;
use super::staged::{StagedWriter, Suspended};
use super::{Collected, SnapshotStore, reader};
use crate::fs::{File, Space, is_short};

impl SnapshotStore {
    /// Counts a staging file of an earlier process as suspended if the budget has space for it, and
    /// deletes it otherwise. The time for which it is kept begins at the first call of
    /// [`SnapshotStore::tend`].
    pub(super) fn take_up(&mut self, part: &str) {
        let Some((object, length)) = layout::parse_part_in(part) else { return };
        let bytes = layout::object_bytes(length).expect("the sweep compared its size");
        // Its bytes are on the disk already, so only the budget can refuse them.
        let there = Space { total: u64::MAX, available: u64::MAX, device: 0 };
        let Ok(allocation) = self.quota.take(bytes, there) else {
            let path = layout::part_dir(&self.dir);
            self.unlink(&path, part, &mut Collected::default());
            return;
        };
        allocation.on_disk(bytes);
        self.parts.insert(part.to_owned(), Arc::clone(&allocation));
        let suspended = Suspended { part: part.to_owned(), object, length, allocation };
        tracing::info!(group = %self.identity.group, %object, "a suspended transfer can resume");
        self.suspended = Some((suspended, u64::MAX));
    }

    /// Reopens the suspended file to receive the rest of it; `None`, and the file is deleted, if it
    /// cannot be used after all.
    pub(super) fn resume(
        &mut self,
        header: &ValidatedHeader,
    ) -> Result<Option<StagedWriter>, SnapshotRefusal> {
        let slot = self.inbound_slot()?;
        let Some((suspended, until)) = self.suspended.take() else { return Ok(None) };
        let Suspended { part, allocation, object, length } = suspended;
        let desc = header.desc().clone();
        let path = layout::part_dir(&self.dir).join(&part);
        let file = match self.fs.open(&path, true) {
            Err(error) if is_short(&error) => {
                // The file is unharmed: its transfer can resume once there are descriptors or
                // memory again.
                let suspended = Suspended { part, allocation, object, length };
                self.suspended = Some((suspended, until));
                return Err(SnapshotRefusal::disk("opening a suspended transfer", &error));
            }
            opened => opened,
        };
        let fits = |file: &dyn File| {
            reader::read_header(file).is_ok_and(|have| have == Header::of(self.identity, &desc))
        };
        let Some(file) = file.ok().filter(|file| fits(&**file)) else {
            drop(allocation);
            self.tally.abandoned += 1;
            self.collect();
            return Ok(None);
        };
        self.tally.resumed += 1;
        Ok(Some(StagedWriter::resume(file, part, desc, self.identity, allocation, slot)))
    }

    /// Keeps the received part of a broken transfer, and gives up an earlier suspended one for it.
    /// The time for which it is kept begins at the next call of [`SnapshotStore::tend`].
    pub fn suspend(&mut self, suspended: Suspended) {
        let group = self.identity.group;
        tracing::info!(%group, object = %suspended.object, "transfer suspended");
        self.abandon();
        self.tally.suspended += 1;
        self.suspended = Some((suspended, u64::MAX));
        self.collect();
    }

    /// Gives up the suspended transfer, if there is one.
    pub fn abandon(&mut self) -> Collected {
        if self.suspended.take().is_none() {
            return Collected::default();
        }
        self.tally.abandoned += 1;
        self.collect()
    }
}

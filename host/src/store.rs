//! [`SnapshotStore`]: one group's snapshot objects on disk.
//!
//! The group's store lane owns it, and only that lane creates, renames and unlinks names. Payload
//! bytes do not pass through it: they flow through the values that it hands out.
//!
//! - An object is deleted once the durable `RecoveryState` does not list it, no follower was
//!   promised it and nothing else holds its allocation. The lane's own calls check this; nothing
//!   has to register or release a use.
//! - A value dropped at any stage, on any thread, leaves no object: the lane's next call unlinks
//!   the name and only then returns the bytes.
//! - A name stands for one payload: sealing over a good object of that name reuses it, sealing over
//!   a bad one replaces it. Of a listed name the log has the descriptor: an object with another
//!   descriptor is refused.
//! - Opening the store deletes the files that an intact `RecoveryState` does not list.
//! - A snapshot directory that disappears is not created again: its filesystem may be unmounted.
//! - Space is freed in this order: unlisted objects that nothing holds; the suspended transfer;
//!   then a recovery point, which the core is asked to unlist. Objects promised to a follower are
//!   kept. The host's other groups give up what they can spare in the same order. A snapshot whose
//!   disk fills while it is written asks for the recovery point at once.
//!
//! The core decides which snapshots are listed, when one is taken and which replica gets it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use lockstep_core::ids::GroupId;
use lockstep_core::limits;
use lockstep_core::mutant::{plant, planted};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{BUSY_RETRY_MS, ValidatedHeader};

use self::layout::ObjectName;
use self::reserve::{Allocation, Held, Source};
use crate::fs::{Fs, create_dirs, is_full, is_short, make_durable};

pub mod lane;
pub mod layout;
mod places;
pub mod reader;
mod report;
pub mod reserve;
mod snapshot_disk;
mod space;
pub mod staged;
mod suspended;
pub mod sweep;

#[cfg(test)]
pub(crate) mod tests;

pub use lane::{DirectLane, StoreHandle, StoreJob, ask_lane, on_lane, on_lane_within};
pub use layout::Identity;
pub use places::{Place, Work};
pub use reader::{OpenError, SnapshotReader};
pub use report::{ObjectStatus, StoreReport, Tally, Usage};
pub use reserve::{Budget, BudgetLimits, LocalHeader, Quota, Reservation, SnapshotRefusal, Use};
pub(crate) use snapshot_disk::DiskPlaces;
pub use snapshot_disk::{DiskPlace, SnapshotDisk};
pub(crate) use space::next_length;
pub use staged::{Finished, Staged, StagedWriter, Suspended};
pub use sweep::{ObjectContent, ObjectFile, Swept, list_directory, list_objects, verify_object};

/// A group's first snapshot starts if this much space is free, even if its estimate does not fit.
const FIRST_BYTES: u64 = 2 * limits::SNAPSHOT_BLOCK_BYTES as u64;

/// One group's snapshots.
pub struct SnapshotStore {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    /// Whether the directory was created or found; false as long as the disk is too full to create
    /// it.
    is_made: bool,
    identity: Identity,
    quota: Arc<Quota>,
    /// This group's sealed objects, under `snap/`.
    objects: BTreeMap<ObjectName, Arc<Allocation>>,
    /// What readers hold objects for; a reader that was dropped leaves a dead entry.
    uses: Vec<(ObjectName, Weak<Use>)>,
    /// This group's staging files, under `snap/part/`.
    parts: BTreeMap<String, Arc<Allocation>>,
    /// What the durable `RecoveryState` lists, newest first.
    listed: Vec<SnapshotDesc>,
    /// Objects promised to followers, which are kept even if unlisted.
    promised: Vec<SnapshotDesc>,
    /// The broken transfer that may resume, and the time until which it is kept.
    suspended: Option<(Suspended, u64)>,
    /// Bytes of object that the last local snapshot needed and did not get.
    wanted: Option<u64>,
    /// Whether the last call of [`Self::next_space`] reported a shortage.
    told_short: bool,
    /// The producer for which a recovery point has to be unlisted; the files deleted then are
    /// counted for this producer.
    asked: Option<&'static str>,
    /// The place for an inbound transfer: free while this is its only handle ([`reserve::Slot`]).
    inbound: Arc<()>,
    /// The place for a local snapshot: free while this is its only handle.
    local: Arc<()>,
    tally: Tally,
}

/// What a round of deletions did; one failure does not stop the others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    pub removed: Vec<String>,
    pub errors: Vec<String>,
}

impl SnapshotStore {
    /// Opens the directory and deletes the files that `state`, this replica's intact recovery
    /// state, does not list.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: PathBuf,
        identity: Identity,
        quota: Arc<Quota>,
        state: &RecoveryState,
    ) -> io::Result<(Self, Swept)> {
        if GroupId::of_name(&state.group) != identity.group {
            let why = format!("wrong recovery state: it belongs to group {:?}", state.group);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let is_made = match create_dirs(&*fs, &layout::part_dir(&dir)) {
            Ok(()) => true,
            // `take` tries again before the first snapshot is written.
            Err(error) if is_short(&error) => {
                tracing::warn!(group = %identity.group, %error,
                    "cannot create the snapshot directory yet; the first snapshot tries again");
                false
            }
            Err(error) => return Err(error),
        };
        let (stays, swept) = sweep::sweep(&*fs, &dir, identity, state)?;
        tracing::info!(
            group = %identity.group,
            kept = stays.objects.len(),
            removed = swept.removed.len(),
            foreign = swept.foreign.len(),
            missing = swept.missing.len(),
            "snapshot store opened"
        );
        for error in &swept.errors {
            tracing::warn!(group = %identity.group, error, "cannot read or remove a snapshot file");
        }
        if !swept.foreign.is_empty() {
            tracing::warn!(group = %identity.group, dir = %dir.display(), files = ?swept.foreign,
                "files that are not snapshots of this group were left alone");
        }
        let sweep::Stays { objects, parts } = stays;
        let objects =
            objects.into_iter().map(|(name, bytes)| (name, quota.charge(bytes))).collect();
        let parts = parts.into_iter().map(|(part, bytes)| (part, quota.charge(bytes))).collect();
        let mut store = Self {
            fs,
            dir,
            is_made,
            identity,
            quota,
            objects,
            uses: Vec::new(),
            parts,
            listed: state.snapshots.clone(),
            promised: Vec::new(),
            suspended: None,
            wanted: None,
            told_short: false,
            asked: None,
            inbound: Arc::new(()),
            local: Arc::new(()),
            tally: Tally::default(),
        };
        if let Some(part) = &swept.suspended {
            store.take_up(part);
        }
        Ok((store, swept))
    }

    /// Opens a staging file for an object that a peer offers: the suspended file of the same
    /// object, or a new one.
    pub fn receive(&mut self, header: &ValidatedHeader) -> Result<StagedWriter, SnapshotRefusal> {
        let object = ObjectName::of(header.desc());
        let taken = match &self.suspended {
            Some((suspended, _))
                if suspended.object == object && suspended.length == header.desc().length =>
            {
                self.resume(header)
            }
            Some((suspended, _)) if !header.displaces(suspended.object()) => {
                Err(SnapshotRefusal::Suspended(suspended.object()))
            }
            // The suspended transfer is given up only once there is a place for the new one.
            Some(_) => self.inbound_slot().map(|_free| self.abandon()).map(|_gone| None),
            None => Ok(None),
        };
        match taken {
            Ok(Some(writer)) => Ok(writer),
            Ok(None) => self.reserve(header).and_then(|reservation| self.create(reservation)),
            Err(refusal) => {
                self.count("received", header.desc().index, &refusal);
                Err(refusal)
            }
        }
    }

    /// Reserves space for an object that a peer offers.
    pub fn reserve(&mut self, header: &ValidatedHeader) -> Result<Reservation, SnapshotRefusal> {
        let identity = Identity { cluster: header.cluster(), group: header.group() };
        let result = if identity == self.identity {
            self.admit(Source::Received(header.desc().clone()), header.desc().length)
        } else {
            Err(SnapshotRefusal::WrongGroup)
        };
        result.inspect_err(|refusal| self.count("received", header.desc().index, refusal))
    }

    /// Called periodically with the time. Gives up a transfer that was suspended for too long. If
    /// another group of the host claims space, also gives up the suspended transfer for that group
    /// or, if there is none, returns a spare recovery point that should be unlisted.
    pub fn tend(&mut self, now_ms: u64) -> Option<SnapshotDesc> {
        if let Some((_, until)) = &mut self.suspended {
            *until = (*until).min(now_ms.saturating_add(limits::SUSPEND_MS));
            if *until <= now_ms {
                self.abandon();
            }
        }
        self.collect();
        self.quota.budget().tend(now_ms);
        let spare = self.spare().last().cloned();
        let suspended = self.suspended.is_some() && !planted("suspended_for_itself");
        if spare.is_none() && !suspended {
            return None;
        }
        let device = self.fs.space(&self.dir).ok().map(|space| space.device);
        let pressed = self.quota.take_pressure(device);
        if pressed && suspended {
            self.abandon();
        }
        spare.filter(|_| pressed && !suspended)
    }

    /// The suspended transfer, and until when it is kept.
    pub fn suspended(&self) -> Option<(&Suspended, u64)> {
        self.suspended.as_ref().map(|(suspended, until)| (suspended, *until))
    }

    /// Reserves space for a snapshot of this replica.
    pub fn reserve_local(&mut self, local: LocalHeader) -> Result<Reservation, SnapshotRefusal> {
        let newest = self.listed.first().map_or(0, |desc| desc.index);
        let (index, estimate) = (local.index, local.estimate);
        let first = self.listed.is_empty() && local.growable;
        let result = if index > newest || planted("capture_what_is_old") {
            match self.admit(Source::Local(local.clone()), estimate) {
                // The estimate of a first snapshot is a guess: it starts with the space that is
                // free, and takes more while it is written.
                Err(SnapshotRefusal::NoSpace { have, .. }) if first && have >= FIRST_BYTES => {
                    let estimate = layout::payload_in(have).min(estimate);
                    self.admit(Source::Local(LocalHeader { estimate, ..local }), estimate)
                }
                result => result,
            }
        } else {
            Err(SnapshotRefusal::Stale)
        };
        if let Err(SnapshotRefusal::NoSpace { need, .. }) = &result {
            self.wanted = Some(*need);
        }
        result.inspect_err(|refusal| self.count("local", index, refusal))
    }

    /// Creates the staging file of a reservation.
    pub fn create(&mut self, reservation: Reservation) -> Result<StagedWriter, SnapshotRefusal> {
        self.collect();
        let part = match &reservation.source {
            Source::Received(desc) => layout::part_in(desc),
            Source::Local(local) => layout::part_out(local.term, local.index),
        };
        let (producer, (_, index)) = (reservation.source.producer(), reservation.source.position());
        let allocation = reservation.allocation.clone();
        let path = layout::part_dir(&self.dir).join(&part);
        let received = matches!(reservation.source, Source::Received(_));
        let created = self.fs.create(&path).and_then(|file| {
            self.parts.insert(part.clone(), allocation);
            if received {
                // So that a power loss in the middle of a long transfer leaves a file to resume.
                make_durable(&*self.fs, &path)?;
            }
            StagedWriter::begin(file, part, reservation, self.identity, &self.fs, self.dir.clone())
        });
        created.map_err(|e| {
            let refusal = SnapshotRefusal::disk("creating a staging file", &e);
            self.collect();
            self.count(producer, index, &refusal);
            refusal
        })
    }

    /// Gives a finished object its durable name. If an object has that name already, a good one is
    /// reused and a bad one replaced.
    pub fn seal(&mut self, finished: Finished) -> Result<Staged, SnapshotRefusal> {
        let (producer, index) = (finished.producer, finished.desc.index);
        let result = self.publish(finished);
        self.collect();
        result.inspect_err(|refusal| self.count(producer, index, refusal))
    }

    /// Opens an object for reading; it is not deleted before the reader is dropped.
    pub fn open_object(
        &mut self,
        desc: &SnapshotDesc,
        purpose: Use,
    ) -> Result<SnapshotReader, OpenError> {
        let opened = self.try_open(desc, purpose);
        // Only a listed object counts as missing: an unlisted one was deleted on purpose.
        if let Err(OpenError::Missing { .. }) = &opened
            && self.is_listed(ObjectName::of(desc))
        {
            self.quota.note_bad();
        }
        opened
    }

    fn try_open(&mut self, desc: &SnapshotDesc, purpose: Use) -> Result<SnapshotReader, OpenError> {
        let name = ObjectName::of(desc);
        let known = self.objects.get(&name);
        let allocation = known.ok_or_else(|| OpenError::Missing { name: name.file() })?.clone();
        let opened = self.fs.open(&self.dir.join(name.file()), false);
        let file = opened.map_err(|e| reader::open_error(name, &e))?;
        let hold = Held::new(allocation, purpose);
        self.uses.retain(|(_, purpose)| purpose.strong_count() > 0);
        self.uses.push((name, hold.purpose()));
        SnapshotReader::open(file, self.identity, desc, Some(hold))
    }

    /// Checks that the object exists and is whole, by reading all of it. To read it on another
    /// thread, open it here and call [`SnapshotReader::verify`] there.
    pub fn recoverable(&mut self, desc: &SnapshotDesc) -> Result<(), OpenError> {
        self.open_object(desc, Use::Verifying)?.verify(&mut || ())
    }

    /// Records that the log now durably lists exactly `listed`, and that followers were promised
    /// `promised`. Deletes every object in neither list whose allocation nothing else holds. A
    /// value that holds a newly listed object must outlive this call, unless `Hold::disarm` was
    /// called on it.
    pub fn list_durable(
        &mut self,
        listed: &[SnapshotDesc],
        promised: &[SnapshotDesc],
    ) -> Collected {
        for desc in listed {
            match self.objects.get(&ObjectName::of(desc)) {
                Some(allocation) => allocation.keep(false),
                None => tracing::error!(index = desc.index, "a listed snapshot has no object"),
            }
        }
        if self.listed.first() != listed.first() {
            self.wanted = None;
        }
        self.listed = listed.to_vec();
        self.promised = promised.to_vec();
        let collected = self.collect();
        if let Some(producer) = self.asked.take() {
            self.reclaimed(producer, &collected);
        }
        collected
    }

    fn reclaimed(&mut self, producer: &'static str, collected: &Collected) {
        *self.tally.reclaimed.entry(producer).or_default() += collected.removed.len() as u64;
    }

    /// Unlinks every name that nothing needs any more, which returns its bytes to the budget. Calls
    /// that need or free space do this anyway; calling it on an idle lane frees space earlier.
    pub fn collect(&mut self) -> Collected {
        let mut collected = Collected::default();
        let unused = |allocation| is_free(allocation) || planted("delete_staging");
        let unneeded: Vec<_> =
            self.parts.iter().filter(|(_, allocation)| unused(allocation)).collect();
        let parts: Vec<_> = unneeded.into_iter().map(|(part, _)| part.clone()).collect();
        let part_dir = layout::part_dir(&self.dir);
        for part in parts {
            if !planted("leak_parts") && self.unlink(&part_dir, &part, &mut collected) {
                self.parts.remove(&part);
            }
        }
        let free = |(name, allocation): &(&ObjectName, &Arc<Allocation>)| {
            (is_free(allocation) || planted("delete_in_use"))
                && !planted("leak_unlisted")
                && !allocation.is_kept()
                && (!self.is_listed(**name) || planted("delete_listed"))
                && (!self.is_promised(**name) || planted("delete_promised"))
        };
        let objects: Vec<_> = self.objects.iter().filter(free).map(|(name, _)| *name).collect();
        for name in objects {
            if self.unlink(&self.dir, &name.file(), &mut collected) {
                self.objects.remove(&name);
            }
        }
        self.tally.unremoved += collected.errors.len() as u64;
        collected
    }

    /// What the log durably lists, newest first.
    pub fn listed(&self) -> &[SnapshotDesc] {
        &self.listed
    }

    /// Grants every permission to write an object: deletes the files that nothing needs, then takes
    /// a place and bytes.
    fn admit(&mut self, source: Source, payload: u64) -> Result<Reservation, SnapshotRefusal> {
        let freed = if planted("collect_late") { Collected::default() } else { self.collect() };
        let slot = match &source {
            Source::Received(_) => self.inbound_slot()?,
            Source::Local(local) => self.local_slot(local.gain)?,
        };
        self.reclaimed(source.producer(), &freed);
        let have = self.quota.most();
        let bytes = layout::object_bytes(payload);
        let need = bytes.ok_or(SnapshotRefusal::NoSpace { need: payload, have })?;
        let taken = match self.take(need)? {
            Err(_) if self.suspended.is_some() => {
                let freed = self.abandon();
                self.reclaimed(source.producer(), &freed);
                self.take(need)?
            }
            taken => taken,
        };
        let allocation =
            taken.map_err(|have| self.no_space(need, have)).inspect_err(|refusal| {
                if matches!(refusal, SnapshotRefusal::NeedsUnlist(_)) {
                    self.asked = Some(source.producer());
                }
            })?;
        Ok(Reservation { allocation, slot, source })
    }

    /// Takes `need` bytes, or says how many could be taken instead.
    fn take(&mut self, need: u64) -> Result<Result<Arc<Allocation>, u64>, SnapshotRefusal> {
        let part_dir = layout::part_dir(&self.dir);
        if !self.fs.exists(&part_dir).unwrap_or(true) {
            self.make_directory(&part_dir)?;
        }
        let measured = self.fs.space(&self.dir);
        let space = measured.map_err(|e| SnapshotRefusal::disk("asking for free space", &e))?;
        Ok(self.quota.take(need, space))
    }

    /// Creates the staging directory. Its missing parents are created only if the disk was too full
    /// for them when the store opened.
    fn make_directory(&mut self, part_dir: &Path) -> Result<(), SnapshotRefusal> {
        let is_gone = self.is_made && !self.fs.exists(&self.dir).unwrap_or(true);
        if is_gone && !planted("make_what_is_gone") {
            let dir = self.dir.display();
            let why = format!("directory {dir} is gone; mount its filesystem again");
            return Err(SnapshotRefusal::Disk(why));
        }
        let made = create_dirs(&*self.fs, part_dir);
        made.map_err(|e| SnapshotRefusal::disk("creating the snapshot directory", &e))?;
        self.is_made = true;
        Ok(())
    }

    fn publish(&mut self, finished: Finished) -> Result<Staged, SnapshotRefusal> {
        let Finished { part, desc, allocation, slot, .. } = finished;
        self.check_listed(&desc)?;
        let name = ObjectName::of(&desc);
        let from = layout::part_dir(&self.dir).join(&part);
        let to = self.dir.join(name.file());
        let disk = |e: io::Error| SnapshotRefusal::disk("sealing a snapshot", &e);
        let allocation = match self.fs.rename_new(&from, &to) {
            Ok(()) => {
                self.parts.remove(&part);
                self.objects.insert(name, allocation.clone());
                allocation
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.publish_over(&part, &desc, allocation)?
            }
            Err(error) => return Err(disk(error)),
        };
        plant!("skip_snapshot_directory_sync" skips make_durable(&*self.fs, &to).map_err(disk)?);
        // The staging name must not return after a crash: it would pass for a suspended transfer.
        make_durable(&*self.fs, &from).map_err(disk)?;
        let file = self.fs.open(&to, false).map_err(disk)?;
        tracing::info!(group = %self.identity.group, term = desc.term, index = desc.index,
            bytes = allocation.bytes(), stage = "sealed", "snapshot sealed");
        Ok(Staged { file, identity: self.identity, desc, allocation, slot })
    }

    /// Refuses an object whose name the log lists with another descriptor: only an object with the
    /// listed descriptor can be read under that name.
    fn check_listed(&self, desc: &SnapshotDesc) -> Result<(), SnapshotRefusal> {
        let name = ObjectName::of(desc);
        let content = |desc: &SnapshotDesc| (desc.length, desc.digest, desc.module, desc.format);
        let listed = self.listed.iter().find(|listed| ObjectName::of(listed) == name);
        let differs = listed.is_some_and(|listed| content(listed) != content(desc));
        if !differs || planted("believe_a_peers_desc") {
            return Ok(());
        }
        let why = format!(
            "the log lists snapshot {} with another module, format, length or digest",
            name.file()
        );
        Err(SnapshotRefusal::Incompatible { why })
    }

    /// Seals a staging file whose name an object has already: reuses that object if it is good,
    /// else replaces it. Returns the name's allocation.
    fn publish_over(
        &mut self,
        part: &str,
        desc: &SnapshotDesc,
        allocation: Arc<Allocation>,
    ) -> Result<Arc<Allocation>, SnapshotRefusal> {
        let name = ObjectName::of(desc);
        let to = self.dir.join(name.file());
        let quota = &self.quota;
        let held = self.objects.entry(name).or_insert_with(|| quota.charge(0)).clone();
        let checked = if planted("reuse_a_bad_object") { Ok(()) } else { self.recoverable(desc) };
        tracing::info!(group = %self.identity.group, index = desc.index, good = checked.is_ok(),
            "a snapshot of this name exists already");
        if checked.is_err() {
            let from = layout::part_dir(&self.dir).join(part);
            let renamed = self.fs.rename(&from, &to);
            renamed.map_err(|e| SnapshotRefusal::disk("replacing a bad snapshot", &e))?;
            self.parts.remove(part);
        }
        // Reused or replaced, the object now has the size of the staging file, whose own bytes
        // return when `allocation` is dropped.
        held.settle(allocation.bytes());
        Ok(held)
    }

    fn unlink(&self, dir: &Path, file: &str, collected: &mut Collected) -> bool {
        let path = dir.join(file);
        let removed = match self.fs.remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // btrfs may need free space to remove a file: truncating it first frees some.
            Err(error) if is_full(&error) => {
                let emptied = self.fs.open(&path, true).and_then(|file| file.truncate(0));
                emptied.and_then(|()| self.fs.remove(&path))
            }
            other => other,
        };
        match removed.and_then(|()| make_durable(&*self.fs, &path)) {
            Ok(()) => {
                tracing::info!(group = %self.identity.group, file, "snapshot file removed");
                collected.removed.push(file.to_owned());
                true
            }
            Err(error) => {
                tracing::warn!(group = %self.identity.group, file, %error,
                    "cannot remove a snapshot file; the store tries again");
                collected.errors.push(format!("{file}: {error}"));
                false
            }
        }
    }

    fn is_listed(&self, name: ObjectName) -> bool {
        self.listed.iter().any(|desc| ObjectName::of(desc) == name)
    }

    fn is_promised(&self, name: ObjectName) -> bool {
        self.promised.iter().any(|desc| ObjectName::of(desc) == name)
    }

    fn uses_of(&self, name: ObjectName) -> Vec<Use> {
        let live = |(of, purpose): &(ObjectName, Weak<Use>)| {
            (*of == name).then(|| purpose.upgrade()).flatten().map(|purpose| *purpose)
        };
        self.uses.iter().filter_map(live).collect()
    }

    fn count(&mut self, producer: &'static str, index: u64, refusal: &SnapshotRefusal) {
        plant!("refuse_silently" does return);
        *self.tally.refusals.entry((producer, refusal.reason())).or_default() += 1;
        if let SnapshotRefusal::NoPlace { .. } = refusal {
            // The group asks again about every second, so this refusal is counted but not logged.
            return;
        }
        tracing::warn!(group = %self.identity.group, producer, index, reason = refusal.reason(),
            %refusal, "snapshot refused");
    }
}

fn busy() -> SnapshotRefusal {
    SnapshotRefusal::Busy { retry_after_ms: BUSY_RETRY_MS }
}

/// Whether the store has the only handle of a file. If so, no other handle can appear before the
/// lane acts: handles are cloned only on this lane, or from another live handle.
fn is_free(allocation: &Arc<Allocation>) -> bool {
    Arc::strong_count(allocation) == 1
}

const _: () = assert!(limits::RECOVERY_POINTS >= 1);

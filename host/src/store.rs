//! [`SnapshotStore`]: one group's snapshot objects on disk.
//!
//! It belongs to the group's store lane, which alone creates, renames and unlinks names (N1).
//! Payload bytes flow elsewhere, through the values it hands out.
//!
//! - A name is deleted iff the durable `RecoveryState` does not list it and nobody holds its lease
//!   (N7). Both are looked at when the lane is here anyway; nothing registers or releases.
//! - A value dropped at any stage, on any thread, leaves no object: the lane's next call unlinks
//!   the name and only then returns the bytes.
//! - An object of one name always holds the same payload (N3): sealing over a good one reuses it,
//!   sealing over a bad one repairs it.
//! - What is unlisted is swept at the start only with an intact `RecoveryState` in hand (N20).
//!
//! Which snapshots are listed, when one is taken and who gets it is decided elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::ids::GroupId;
use lockstep_core::limits;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{BUSY_RETRY_MS, ValidatedHeader};

use self::layout::ObjectName;
use self::reserve::{Lease, Slot, Source};
use crate::fs::{Fs, make_durable};

pub mod lane;
pub mod layout;
pub mod reader;
pub mod reserve;
pub mod staged;
pub mod sweep;

#[cfg(test)]
pub(crate) mod tests;

pub use lane::{DirectLane, StoreHandle, StoreJob, ask_lane, on_lane};
pub use layout::Identity;
pub use reader::{OpenError, SnapshotReader};
pub use reserve::{Budget, BudgetLimits, LocalHeader, Reservation, SnapshotRefusal};
pub use staged::{Finished, Staged, StagedWriter};
pub use sweep::{ObjectContent, ObjectFile, Swept, list_objects};

/// One group's snapshots.
pub struct SnapshotStore {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    identity: Identity,
    budget: Arc<Budget>,
    /// Everything under `snap/` that is ours.
    objects: BTreeMap<ObjectName, Arc<Lease>>,
    /// Everything under `snap/part/` that is ours.
    parts: BTreeMap<String, Arc<Lease>>,
    /// What the durable `RecoveryState` lists, newest first.
    listed: Vec<SnapshotDesc>,
    /// The only handle of a free place; see [`Slot`].
    inbound: Arc<()>,
    local: Arc<()>,
    refusals: BTreeMap<&'static str, u64>,
}

/// What a round of deletion did. One failure does not stop the rest (K17).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    pub removed: Vec<String>,
    pub errors: Vec<String>,
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
    /// Somebody reads, sends or is about to list it.
    pub leased: bool,
}

/// Bytes on disk by class (V4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub listed: u64,
    /// Sealed, unlisted: about to be listed, or still leased, or not yet deleted.
    pub unlisted: u64,
    /// Reserved for staging files.
    pub staged: u64,
}

impl SnapshotStore {
    /// Opens the directory and removes what `state`, this replica's intact one, does not list.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: PathBuf,
        identity: Identity,
        budget: Arc<Budget>,
        state: &RecoveryState,
    ) -> io::Result<(Self, Swept)> {
        if GroupId::of_name(&state.group) != identity.group {
            let why = format!("the recovery state is of group {:?}, not of this one", state.group);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        create_dirs(&*fs, &dir)?;
        let (kept, swept) = sweep::sweep(&*fs, &dir, state)?;
        tracing::info!(
            group = %identity.group,
            kept = kept.len(),
            removed = swept.removed.len(),
            foreign = swept.foreign.len(),
            missing = swept.missing.len(),
            "snapshot store opened"
        );
        let objects = kept.into_iter().map(|(name, bytes)| (name, budget.charge(bytes))).collect();
        let store = Self {
            fs,
            dir,
            identity,
            budget,
            objects,
            parts: BTreeMap::new(),
            listed: state.snapshots.clone(),
            inbound: Arc::new(()),
            local: Arc::new(()),
            refusals: BTreeMap::new(),
        };
        Ok((store, swept))
    }

    /// Room for an object that a peer offers.
    pub fn reserve(&mut self, header: &ValidatedHeader) -> Result<Reservation, SnapshotRefusal> {
        let identity = Identity { cluster: header.cluster(), group: header.group() };
        let result = match identity == self.identity {
            true => self.admit(Source::Received(header.desc().clone()), header.desc().length),
            false => Err(SnapshotRefusal::WrongGroup),
        };
        result.inspect_err(|refusal| self.count(refusal))
    }

    /// Room for a snapshot of this replica.
    pub fn reserve_local(&mut self, local: LocalHeader) -> Result<Reservation, SnapshotRefusal> {
        let newest = self.listed.first().map_or(0, |desc| desc.index);
        let estimate = local.estimate;
        let result = match local.index > newest {
            true => self.admit(Source::Local(local), estimate),
            false => Err(SnapshotRefusal::Stale),
        };
        result.inspect_err(|refusal| self.count(refusal))
    }

    /// Creates the staging file of a reservation.
    pub fn create(&mut self, reservation: Reservation) -> Result<StagedWriter, SnapshotRefusal> {
        self.collect();
        let part = match &reservation.source {
            Source::Received(desc) => layout::part_in(desc),
            Source::Local(local) => layout::part_out(local.term, local.index),
        };
        let need = reservation.lease.bytes();
        let lease = reservation.lease.clone();
        let path = layout::part_dir(&self.dir).join(&part);
        let created = self.fs.create(&path).and_then(|file| {
            self.parts.insert(part.clone(), lease);
            let place = (self.identity, &self.fs, self.dir.clone());
            StagedWriter::begin(file, part, reservation, place)
        });
        created.map_err(|e| {
            let refusal = SnapshotRefusal::disk("creating a staging file", need, &e);
            self.collect();
            self.count(&refusal);
            refusal
        })
    }

    /// Gives a finished object its durable name. An equal and good one that has it already is
    /// reused, a bad one is replaced.
    pub fn seal(&mut self, finished: Finished) -> Result<Staged, SnapshotRefusal> {
        let result = self.publish(finished);
        self.collect();
        result.inspect_err(|refusal| self.count(refusal))
    }

    /// Opens an object for reading; it stays until the reader is dropped.
    pub fn open_object(&self, desc: &SnapshotDesc) -> Result<SnapshotReader, OpenError> {
        let name = ObjectName::of(desc);
        let lease = self.objects.get(&name);
        let lease = lease.ok_or_else(|| OpenError::Missing { name: name.file() })?.clone();
        let file = self.fs.open(&self.dir.join(name.file()), false);
        let file = file.map_err(|e| reader::open_error(name, &e))?;
        SnapshotReader::open(file, self.identity, desc, Some(lease))
    }

    /// Whether the object is there and whole: reads all of it. To do that elsewhere, open it here
    /// and call [`SnapshotReader::verify`] there.
    pub fn recoverable(&self, desc: &SnapshotDesc) -> Result<(), OpenError> {
        self.open_object(desc)?.verify(&mut || ())
    }

    /// The log now durably lists exactly these. Deletes what neither it nor a lease keeps (N7).
    /// Values that hold a newly listed object may be dropped after this, not before, unless they
    /// were kept.
    pub fn list_durable(&mut self, listed: &[SnapshotDesc]) -> Collected {
        for desc in listed {
            match self.objects.get(&ObjectName::of(desc)) {
                Some(lease) => lease.keep(false),
                None => tracing::error!(index = desc.index, "a listed snapshot has no object"),
            }
        }
        self.listed = listed.to_vec();
        self.collect()
    }

    /// Unlinks every name that nobody needs, and so returns its bytes. Every other call begins with
    /// it; call it when the lane is idle to get space back early.
    pub fn collect(&mut self) -> Collected {
        let mut collected = Collected::default();
        let parts: Vec<_> = self.parts.iter().filter(|(_, lease)| is_free(lease)).collect();
        let parts: Vec<_> = parts.into_iter().map(|(part, _)| part.clone()).collect();
        let part_dir = layout::part_dir(&self.dir);
        for part in parts {
            if self.unlink(&part_dir, &part, &mut collected) {
                self.parts.remove(&part);
            }
        }
        let free = |(name, lease): &(&ObjectName, &Arc<Lease>)| {
            is_free(lease) && !lease.is_kept() && !self.is_listed(**name)
        };
        let objects: Vec<_> = self.objects.iter().filter(free).map(|(name, _)| *name).collect();
        for name in objects {
            if self.unlink(&self.dir, &name.file(), &mut collected) {
                self.objects.remove(&name);
            }
        }
        collected
    }

    /// Every object, oldest first.
    pub fn list(&self) -> Vec<ObjectStatus> {
        let status = |(name, lease): (&ObjectName, &Arc<Lease>)| ObjectStatus {
            file: name.file(),
            term: name.term,
            index: name.index,
            bytes: lease.bytes(),
            listed: self.is_listed(*name),
            leased: !is_free(lease),
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
        usage.staged = self.parts.values().map(|lease| lease.bytes()).sum();
        usage
    }

    /// Refusals since the start, by reason (V1).
    pub fn refusals(&self) -> &BTreeMap<&'static str, u64> {
        &self.refusals
    }

    /// What the log durably lists, newest first.
    pub fn listed(&self) -> &[SnapshotDesc] {
        &self.listed
    }

    /// The one gate of permission to write: reclaims, then takes a place and bytes.
    fn admit(&mut self, source: Source, payload: u64) -> Result<Reservation, SnapshotRefusal> {
        self.collect();
        let busy = SnapshotRefusal::Busy { retry_after_ms: BUSY_RETRY_MS };
        let slot = match &source {
            Source::Received(_) => {
                let host = self.budget.take_inbound().ok_or(busy.clone())?;
                Slot::take(&self.inbound, Some(host)).ok_or(busy)?
            }
            Source::Local(_) => Slot::take(&self.local, None).ok_or(busy)?,
        };
        let have = self.budget.limits().bytes;
        let need = layout::object_bytes(payload);
        let need = need.ok_or(SnapshotRefusal::NoSpace { need: payload, have })?;
        let space = self.fs.space(&self.dir);
        let space = space.map_err(|e| SnapshotRefusal::disk("asking for free space", need, &e))?;
        let lease = self.budget.take(need, space.available);
        let lease = lease.map_err(|have| self.no_space(need, have))?;
        Ok(Reservation { lease, slot, source })
    }

    /// The oldest recovery point beyond the newest is asked for if that can make enough room.
    fn no_space(&self, need: u64, have: u64) -> SnapshotRefusal {
        let beyond = self.listed.get(1..).unwrap_or_default();
        let bytes = |desc| self.objects.get(&ObjectName::of(desc)).map_or(0, |lease| lease.bytes());
        let gain: u64 = beyond.iter().map(bytes).sum();
        match beyond.last() {
            Some(oldest) if have.saturating_add(gain) >= need => {
                SnapshotRefusal::NeedsUnlist(Box::new(oldest.clone()))
            }
            Some(_) | None => SnapshotRefusal::NoSpace { need, have },
        }
    }

    fn publish(&mut self, finished: Finished) -> Result<Staged, SnapshotRefusal> {
        let Finished { part, desc, lease, slot } = finished;
        let name = ObjectName::of(&desc);
        let from = layout::part_dir(&self.dir).join(&part);
        let to = self.dir.join(name.file());
        let disk = |e: io::Error| SnapshotRefusal::disk("sealing a snapshot", 0, &e);
        let lease = match self.fs.rename_new(&from, &to) {
            Ok(()) => {
                self.parts.remove(&part);
                self.objects.insert(name, lease.clone());
                lease
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.publish_over(&part, &desc, lease)?
            }
            Err(error) => return Err(disk(error)),
        };
        make_durable(&*self.fs, &to).map_err(disk)?;
        let file = self.fs.open(&to, false).map_err(disk)?;
        tracing::info!(group = %self.identity.group, term = desc.term, index = desc.index,
            bytes = lease.bytes(), stage = "sealed", "snapshot sealed");
        Ok(Staged { file, identity: self.identity, desc, lease, slot })
    }

    /// The name is taken: reuses the object if it is good, else replaces it. Returns the name's
    /// lease.
    fn publish_over(
        &mut self,
        part: &str,
        desc: &SnapshotDesc,
        lease: Arc<Lease>,
    ) -> Result<Arc<Lease>, SnapshotRefusal> {
        let name = ObjectName::of(desc);
        let to = self.dir.join(name.file());
        let budget = &self.budget;
        let held = self.objects.entry(name).or_insert_with(|| budget.charge(0)).clone();
        let checked = self.recoverable(desc);
        tracing::info!(group = %self.identity.group, index = desc.index, good = checked.is_ok(),
            "a snapshot of this name exists");
        if checked.is_err() {
            let from = layout::part_dir(&self.dir).join(part);
            let renamed = self.fs.rename(&from, &to);
            renamed.map_err(|e| SnapshotRefusal::disk("replacing a bad snapshot", 0, &e))?;
            self.parts.remove(part);
        }
        // The file has the size of the one that was to take its place; what the part took goes with
        // it.
        held.settle(lease.bytes());
        Ok(held)
    }

    fn unlink(&self, dir: &Path, file: &str, collected: &mut Collected) -> bool {
        let path = dir.join(file);
        let removed = match self.fs.remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        match removed.and_then(|()| make_durable(&*self.fs, &path)) {
            Ok(()) => {
                tracing::info!(group = %self.identity.group, file, "snapshot file removed");
                collected.removed.push(file.to_owned());
                true
            }
            Err(error) => {
                tracing::warn!(group = %self.identity.group, file, %error, "snapshot file stays");
                collected.errors.push(format!("{file}: {error}"));
                false
            }
        }
    }

    fn is_listed(&self, name: ObjectName) -> bool {
        self.listed.iter().any(|desc| ObjectName::of(desc) == name)
    }

    fn count(&mut self, refusal: &SnapshotRefusal) {
        *self.refusals.entry(refusal.reason()).or_default() += 1;
        tracing::warn!(group = %self.identity.group, reason = refusal.reason(), %refusal,
            "snapshot refused");
    }
}

/// Whether only the store itself knows of the name. No new handle can appear meanwhile: they are
/// all cloned on this lane or from a handle that exists.
fn is_free(lease: &Arc<Lease>) -> bool {
    Arc::strong_count(lease) == 1
}

/// Makes the directory, its staging directory and their names durable, up to the data directory.
fn create_dirs(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    let part = layout::part_dir(dir);
    fs.create_dir_all(&part)?;
    part.ancestors()
        .take(4)
        .filter(|dir| dir.parent().is_some())
        .try_for_each(|dir| make_durable(fs, dir))
}

const _: () = assert!(limits::RECOVERY_POINTS >= 1);

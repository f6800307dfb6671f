//! [`SnapshotStore`]: one group's snapshot objects on disk.
//!
//! It belongs to the group's store lane, which alone creates, renames and unlinks names.
//! Payload bytes flow elsewhere, through the values it hands out.
//!
//! - A name is deleted iff the durable `RecoveryState` does not list it and nobody holds its
//!   lease. Both are looked at when the lane is here anyway; nothing registers or releases.
//! - A value dropped at any stage, on any thread, leaves no object: the lane's next call unlinks
//!   the name and only then returns the bytes.
//! - An object of one name always holds the same payload: sealing over a good one reuses it,
//!   sealing over a bad one repairs it.
//! - What is unlisted is swept at the start only with an intact `RecoveryState` in hand.
//! - Room is made in this order: what is unlisted and unleased; what is parked; then the core is
//!   asked to unlist a recovery point. What was promised to a follower stays. Other groups of the
//!   host give what they can spare in the same order.
//!
//! Which snapshots are listed, when one is taken and who gets it is decided elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use lockstep_core::ids::GroupId;
use lockstep_core::limits;
use lockstep_core::mutant::planted;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{BUSY_RETRY_MS, ValidatedHeader};

use self::layout::{Header, ObjectName};
use self::reserve::{Held, Lease, Source};
use crate::fs::{File, Fs, Space, create_dirs, is_full, is_short, make_durable};

pub mod lane;
pub mod layout;
mod places;
pub mod reader;
mod report;
pub mod reserve;
mod room;
pub mod staged;
pub mod sweep;

#[cfg(test)]
pub(crate) mod tests;

pub use lane::{DirectLane, StoreHandle, StoreJob, ask_lane, on_lane, on_lane_within};
pub use layout::Identity;
pub use places::{Place, Work};
pub use reader::{OpenError, SnapshotReader};
pub use report::{ObjectStatus, StoreReport, Tally, Usage};
pub use reserve::{
    Budget, BudgetLimits, LocalHeader, OutboundSlot, Quota, Reservation, SnapshotRefusal, Use,
};
pub(crate) use room::next_length;
pub use staged::{Finished, Parked, Staged, StagedWriter};
pub use sweep::{ObjectContent, ObjectFile, Swept, list_directory, list_objects, verify_object};

/// A first snapshot is begun with this much room, if there is no more.
const FIRST_BYTES: u64 = 2 * limits::SNAPSHOT_BLOCK_BYTES as u64;

/// One group's snapshots.
pub struct SnapshotStore {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    identity: Identity,
    quota: Arc<Quota>,
    /// Everything under `snap/` that is ours.
    objects: BTreeMap<ObjectName, Arc<Lease>>,
    /// What readers that may still live hold objects for.
    uses: Vec<(ObjectName, Weak<Use>)>,
    /// Everything under `snap/part/` that is ours.
    parts: BTreeMap<String, Arc<Lease>>,
    /// What the durable `RecoveryState` lists, newest first.
    listed: Vec<SnapshotDesc>,
    /// What followers were promised: it stays though it may be unlisted.
    promised: Vec<SnapshotDesc>,
    /// The one transfer that broke and may go on, until this time.
    parked: Option<(Parked, u64)>,
    /// Bytes that the last local snapshot was refused.
    wanted: Option<u64>,
    /// The last word on room for the next one was that there is too little.
    told_short: bool,
    /// Whoever asked for a recovery point to be unlisted: what then goes is reclaimed for it.
    asked: Option<&'static str>,
    /// The only handle of a free place; see [`reserve::Slot`].
    inbound: Arc<()>,
    local: Arc<()>,
    tally: Tally,
}

/// What a round of deletion did. One failure does not stop the rest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    pub removed: Vec<String>,
    pub errors: Vec<String>,
}

impl SnapshotStore {
    /// Opens the directory and removes what `state`, this replica's intact one, does not list.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: PathBuf,
        identity: Identity,
        quota: Arc<Quota>,
        state: &RecoveryState,
    ) -> io::Result<(Self, Swept)> {
        if GroupId::of_name(&state.group) != identity.group {
            let why = format!("the recovery state is of group {:?}, not of this one", state.group);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        match create_dirs(&*fs, &layout::part_dir(&dir)) {
            // It is tried again when there is something to write.
            Err(error) if is_short(&error) => tracing::warn!(group = %identity.group, %error,
                "there is no room for the directory of the snapshots yet"),
            created => created?,
        }
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
            tracing::warn!(group = %identity.group, error, "a snapshot file was left as it is");
        }
        if !swept.foreign.is_empty() {
            tracing::warn!(group = %identity.group, dir = %dir.display(), files = ?swept.foreign,
                "these are no snapshots of this group: left alone");
        }
        let sweep::Stays { objects, parts } = stays;
        let objects =
            objects.into_iter().map(|(name, bytes)| (name, quota.charge(bytes))).collect();
        let parts = parts.into_iter().map(|(part, bytes)| (part, quota.charge(bytes))).collect();
        let mut store = Self {
            fs,
            dir,
            identity,
            quota,
            objects,
            uses: Vec::new(),
            parts,
            listed: state.snapshots.clone(),
            promised: Vec::new(),
            parked: None,
            wanted: None,
            told_short: false,
            asked: None,
            inbound: Arc::new(()),
            local: Arc::new(()),
            tally: Tally::default(),
        };
        if let Some(part) = &swept.parked {
            store.take_up(part);
        }
        Ok((store, swept))
    }

    /// Counts a staging file of an earlier process as parked, if the budget has room for it. Its
    /// time begins when the lane is first told the time.
    fn take_up(&mut self, part: &str) {
        let Some((object, length)) = layout::parse_part_in(part) else { return };
        let bytes = layout::object_bytes(length).expect("the sweep compared its size");
        // It is on the disk already: of that only the budget is asked.
        let there = Space { total: u64::MAX, available: u64::MAX, device: 0 };
        let Ok(lease) = self.quota.take(bytes, there) else {
            let path = layout::part_dir(&self.dir);
            self.unlink(&path, part, &mut Collected::default());
            return;
        };
        lease.allocated(bytes);
        self.parts.insert(part.to_owned(), Arc::clone(&lease));
        let parked = Parked { part: part.to_owned(), object, length, lease };
        tracing::info!(group = %self.identity.group, %object, "a broken transfer may go on");
        self.parked = Some((parked, u64::MAX));
    }

    /// A place to write an object that a peer offers: the parked file of the same one, or room for
    /// a new one.
    pub fn receive(&mut self, header: &ValidatedHeader) -> Result<StagedWriter, SnapshotRefusal> {
        let object = ObjectName::of(header.desc());
        let taken = match &self.parked {
            Some((parked, _))
                if parked.object == object && parked.length == header.desc().length =>
            {
                self.resume(header)
            }
            Some((parked, _)) if !header.displaces(parked.object()) => {
                Err(SnapshotRefusal::Parked(parked.object()))
            }
            // Without a place for the new one the old one stays.
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

    /// Room for an object that a peer offers.
    pub fn reserve(&mut self, header: &ValidatedHeader) -> Result<Reservation, SnapshotRefusal> {
        let identity = Identity { cluster: header.cluster(), group: header.group() };
        let result = match identity == self.identity {
            true => self.admit(Source::Received(header.desc().clone()), header.desc().length),
            false => Err(SnapshotRefusal::WrongGroup),
        };
        result.inspect_err(|refusal| self.count("received", header.desc().index, refusal))
    }

    /// Opens the parked file for the rest of its transfer; `None` if it cannot be used after all.
    fn resume(
        &mut self,
        header: &ValidatedHeader,
    ) -> Result<Option<StagedWriter>, SnapshotRefusal> {
        let slot = self.inbound_slot()?;
        let Some((parked, _)) = self.parked.take() else { return Ok(None) };
        let Parked { part, lease, .. } = parked;
        let desc = header.desc().clone();
        let path = layout::part_dir(&self.dir).join(&part);
        let file = self.fs.open(&path, true);
        let fits = |file: &dyn File| {
            reader::read_header(file).is_ok_and(|have| have == Header::of(self.identity, &desc))
        };
        let Some(file) = file.ok().filter(|file| fits(&**file)) else {
            drop(lease);
            self.tally.abandoned += 1;
            self.collect();
            return Ok(None);
        };
        self.tally.resumed += 1;
        Ok(Some(StagedWriter::resume(file, part, desc, self.identity, (lease, slot))))
    }

    /// Keeps what a broken transfer left, in place of what an earlier one did. Its time begins when
    /// the lane is next told the time.
    pub fn park(&mut self, parked: Parked) {
        tracing::info!(group = %self.identity.group, object = %parked.object, "transfer parked");
        self.abandon();
        self.tally.parked += 1;
        self.parked = Some((parked, u64::MAX));
        self.collect();
    }

    /// Gives up the parked transfer, if there is one.
    pub fn abandon(&mut self) -> Collected {
        if self.parked.take().is_none() {
            return Collected::default();
        }
        self.tally.abandoned += 1;
        self.collect()
    }

    /// To be called now and then with the time: what was parked too long is given up. If another
    /// group of the host needs room, what is parked makes some; if nothing is, returns a recovery
    /// point that should be unlisted for it.
    pub fn tend(&mut self, now_ms: u64) -> Option<SnapshotDesc> {
        if let Some((_, until)) = &mut self.parked {
            *until = (*until).min(now_ms.saturating_add(limits::PARK_MS));
            if *until <= now_ms {
                self.abandon();
            }
        }
        self.collect();
        self.quota.budget().tend(now_ms);
        let spare = self.spare().last().cloned();
        let parked = self.parked.is_some() && !planted("parked_for_itself");
        if spare.is_none() && !parked {
            return None;
        }
        let device = self.fs.space(&self.dir).ok().map(|space| space.device);
        let pressed = self.quota.take_pressure(device);
        if pressed && parked {
            self.abandon();
        }
        spare.filter(|_| pressed && !parked)
    }

    /// What is parked, and until when.
    pub fn parked(&self) -> Option<(&Parked, u64)> {
        self.parked.as_ref().map(|(parked, until)| (parked, *until))
    }

    /// Room for a snapshot of this replica.
    pub fn reserve_local(&mut self, local: LocalHeader) -> Result<Reservation, SnapshotRefusal> {
        let newest = self.listed.first().map_or(0, |desc| desc.index);
        let (index, estimate) = (local.index, local.estimate);
        let first = self.listed.is_empty() && local.growable;
        let result = match index > newest || planted("capture_what_is_old") {
            true => match self.admit(Source::Local(local.clone()), estimate) {
                // Nothing says how long the first one is, and it may grow: what there is will do.
                Err(SnapshotRefusal::NoSpace { have, .. }) if first && have >= FIRST_BYTES => {
                    let estimate = layout::payload_in(have).min(estimate);
                    self.admit(Source::Local(LocalHeader { estimate, ..local }), estimate)
                }
                result => result,
            },
            false => Err(SnapshotRefusal::Stale),
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
        let need = reservation.lease.bytes();
        let lease = reservation.lease.clone();
        let path = layout::part_dir(&self.dir).join(&part);
        let received = matches!(reservation.source, Source::Received(_));
        let created = self.fs.create(&path).and_then(|file| {
            self.parts.insert(part.clone(), lease);
            if received {
                // A power loss in the middle of a long transfer leaves what came before it.
                make_durable(&*self.fs, &path)?;
            }
            let place = (self.identity, &self.fs, self.dir.clone());
            StagedWriter::begin(file, part, reservation, place)
        });
        created.map_err(|e| {
            let refusal = SnapshotRefusal::disk("creating a staging file", need, &e);
            self.collect();
            self.count(producer, index, &refusal);
            refusal
        })
    }

    /// Gives a finished object its durable name. An equal and good one that has it already is
    /// reused, a bad one is replaced.
    pub fn seal(&mut self, finished: Finished) -> Result<Staged, SnapshotRefusal> {
        let (producer, index) = (finished.producer, finished.desc.index);
        let result = self.publish(finished);
        self.collect();
        result.inspect_err(|refusal| self.count(producer, index, refusal))
    }

    /// Opens an object for reading; it stays until the reader is dropped.
    pub fn open_object(
        &mut self,
        desc: &SnapshotDesc,
        purpose: Use,
    ) -> Result<SnapshotReader, OpenError> {
        let opened = self.try_open(desc, purpose);
        if let Err(OpenError::Missing { .. }) = &opened {
            self.quota.note_bad();
        }
        opened
    }

    fn try_open(&mut self, desc: &SnapshotDesc, purpose: Use) -> Result<SnapshotReader, OpenError> {
        let name = ObjectName::of(desc);
        let lease = self.objects.get(&name);
        let lease = lease.ok_or_else(|| OpenError::Missing { name: name.file() })?.clone();
        let file = self.fs.open(&self.dir.join(name.file()), false);
        let file = file.map_err(|e| reader::open_error(name, &e))?;
        let hold = Held::new(lease, purpose);
        self.uses.retain(|(_, purpose)| purpose.strong_count() > 0);
        self.uses.push((name, hold.purpose()));
        SnapshotReader::open(file, self.identity, desc, Some(hold))
    }

    /// Whether the object is there and whole: reads all of it. To do that elsewhere, open it here
    /// and call [`SnapshotReader::verify`] there.
    pub fn recoverable(&mut self, desc: &SnapshotDesc) -> Result<(), OpenError> {
        self.open_object(desc, Use::Verifying)?.verify(&mut || ())
    }

    /// The log now durably lists exactly these, and these were promised to followers. Deletes what
    /// neither of them nor a lease keeps. Values that hold a newly listed object may be
    /// dropped after this, not before, unless they were kept.
    pub fn list_durable(
        &mut self,
        listed: &[SnapshotDesc],
        promised: &[SnapshotDesc],
    ) -> Collected {
        for desc in listed {
            match self.objects.get(&ObjectName::of(desc)) {
                Some(lease) => lease.keep(false),
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

    /// Unlinks every name that nobody needs, and so returns its bytes. Every other call begins with
    /// it; call it when the lane is idle to get space back early.
    pub fn collect(&mut self) -> Collected {
        let mut collected = Collected::default();
        let unused = |lease| is_free(lease) || planted("delete_staging");
        let parts: Vec<_> = self.parts.iter().filter(|(_, lease)| unused(lease)).collect();
        let parts: Vec<_> = parts.into_iter().map(|(part, _)| part.clone()).collect();
        let part_dir = layout::part_dir(&self.dir);
        for part in parts {
            if !planted("leak_parts") && self.unlink(&part_dir, &part, &mut collected) {
                self.parts.remove(&part);
            }
        }
        let free = |(name, lease): &(&ObjectName, &Arc<Lease>)| {
            (is_free(lease) || planted("delete_leased"))
                && !planted("leak_unlisted")
                && !lease.is_kept()
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

    /// The one gate of permission to write: reclaims, then takes a place and bytes.
    fn admit(&mut self, source: Source, payload: u64) -> Result<Reservation, SnapshotRefusal> {
        let freed = match planted("collect_late") {
            true => Collected::default(),
            false => self.collect(),
        };
        let slot = match &source {
            Source::Received(_) => self.inbound_slot()?,
            Source::Local(local) => self.local_slot(local.gain)?,
        };
        self.reclaimed(source.producer(), &freed);
        let have = self.quota.most();
        let need = layout::object_bytes(payload);
        let need = need.ok_or(SnapshotRefusal::NoSpace { need: payload, have })?;
        let lease = match self.take(need)? {
            Err(_) if self.parked.is_some() => {
                let freed = self.abandon();
                self.reclaimed(source.producer(), &freed);
                self.take(need)?
            }
            taken => taken,
        };
        let lease = lease.map_err(|have| self.no_space(need, have)).inspect_err(|refusal| {
            if matches!(refusal, SnapshotRefusal::NeedsUnlist(_)) {
                self.asked = Some(source.producer());
            }
        })?;
        Ok(Reservation { lease, slot, source })
    }

    /// Takes bytes from the budget, or says how many it could have had.
    fn take(&self, need: u64) -> Result<Result<Arc<Lease>, u64>, SnapshotRefusal> {
        // There may have been no room for it at the start.
        let part_dir = layout::part_dir(&self.dir);
        if !self.fs.exists(&part_dir).unwrap_or(true) {
            let made = create_dirs(&*self.fs, &part_dir);
            made.map_err(|e| SnapshotRefusal::disk("creating the directory", need, &e))?;
        }
        let space = self.fs.space(&self.dir);
        let space = space.map_err(|e| SnapshotRefusal::disk("asking for free space", need, &e))?;
        Ok(self.quota.take(need, space))
    }

    fn publish(&mut self, finished: Finished) -> Result<Staged, SnapshotRefusal> {
        let Finished { part, desc, lease, slot, .. } = finished;
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
        if !planted("skip_snapshot_directory_sync") {
            make_durable(&*self.fs, &to).map_err(disk)?;
        }
        // The staging name is gone for good: a stale one would be taken for a parked transfer.
        make_durable(&*self.fs, &from).map_err(disk)?;
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
        let quota = &self.quota;
        let held = self.objects.entry(name).or_insert_with(|| quota.charge(0)).clone();
        let checked = match planted("reuse_a_bad_object") {
            true => Ok(()),
            false => self.recoverable(desc),
        };
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
            // btrfs may need free space to remove a file: emptying it first gives some back.
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
                tracing::warn!(group = %self.identity.group, file, %error, "snapshot file stays");
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
        if planted("refuse_silently") {
            return;
        }
        *self.tally.refusals.entry((producer, refusal.reason())).or_default() += 1;
        if let SnapshotRefusal::NoPlace { .. } = refusal {
            // It is asked for again and again.
            return;
        }
        tracing::warn!(group = %self.identity.group, producer, index, reason = refusal.reason(),
            %refusal, "snapshot refused");
    }
}

fn busy() -> SnapshotRefusal {
    SnapshotRefusal::Busy { retry_after_ms: BUSY_RETRY_MS }
}

/// Whether only the store itself knows of the name. No new handle can appear meanwhile: they are
/// all cloned on this lane or from a handle that exists.
fn is_free(lease: &Arc<Lease>) -> bool {
    Arc::strong_count(lease) == 1
}

const _: () = assert!(limits::RECOVERY_POINTS >= 1);

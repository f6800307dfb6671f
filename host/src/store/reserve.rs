//! Admission: the host's [`Budget`], and the [`Reservation`] without which no object is written.
//!
//! - Every byte under `snap/` is covered by an `Allocation`, which is taken from the host's budget
//!   before the byte is written. Its bytes return when its last handle is dropped; a finished file
//!   returns what it did not use.
//! - An allocation also protects its name: the store lane unlinks a name only if no log lists it
//!   and nothing else holds its allocation. Handles are counted; no use has to be registered.
//! - Free space is not given away twice: bytes that are reserved but not yet on the disk are
//!   subtracted from what the filesystem reports as free, and a fixed headroom is left to the log.
//! - A group's [`Quota`] caps its own share of the budget.
//! - A group that finds no space [claims](Quota::claim) it. Other groups then give up what they can
//!   spare, and what becomes free is kept for the claimant: otherwise groups that write often would
//!   starve one that seldom does. A claim is for space of the budget, of a filesystem or of both;
//!   groups that hold none of the space that is short give up nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lockstep_core::ids::{ModuleId, ReplicaId};
use lockstep_core::mutant::{plant, planted};
use lockstep_core::snapshot::chunk::{BUSY_RETRY_MS, BulkReply, NO_SPACE_RETRY_MS, ObjectRef};
use lockstep_core::snapshot::{Configuration, SnapshotDesc};

use super::places::{Place, Places, Work};
use super::snapshot_disk::{DiskPlace, DiskPlaces, SnapshotDisk};
use crate::disk_watch::DiskWatch;
use crate::fs::{Space, is_full, is_short};

/// Why the store refused an object. A refused object leaves nothing on the disk.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotRefusal {
    #[error("a snapshot at or above this index is already listed")]
    Stale,
    #[error("another snapshot is under way; try again in {retry_after_ms} ms")]
    Busy { retry_after_ms: u64 },
    #[error("this node takes at most {most} snapshots at a time; the group tries again shortly")]
    NoPlace { most: usize },
    #[error(
        "no space: {need} bytes are needed and {have} are available; free disk space, or raise the \
         snapshot budget or the group's cap"
    )]
    NoSpace { need: u64, have: u64 },
    /// The system lacked space, descriptors or memory for an operation.
    #[error("{why}; the node tries again by itself")]
    Short { why: String, is_full: bool },
    #[error("incompatible: {why}")]
    Incompatible { why: String },
    #[error("the recovery point at index {} must be unlisted first to free space", .0.index)]
    NeedsUnlist(Box<SnapshotDesc>),
    /// There will be enough space once objects that are in use or promised are released.
    #[error(
        "postponed: {bytes} bytes belong to snapshots that are being read or sent, or are \
         promised to followers"
    )]
    Held { bytes: u64 },
    #[error("a broken transfer of the snapshot at index {} is suspended here", .0.index)]
    Suspended(ObjectRef),
    #[error("the snapshot belongs to another cluster or group")]
    WrongGroup,
    #[error("the payload does not match its descriptor")]
    Corrupt,
    /// The disk failed; the message names the operation.
    #[error("snapshot storage: {0}")]
    Disk(String),
    /// The group's store lane is gone.
    #[error("the snapshot store is shutting down")]
    Closed,
}

/// A local snapshot about to be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalHeader {
    pub term: u64,
    pub index: u64,
    pub module: ModuleId,
    /// The guest's snapshot format number.
    pub format: u32,
    /// The group's configuration as of `index`.
    pub configuration: Configuration,
    /// Expected bytes of payload.
    pub estimate: u64,
    /// Whether the payload may exceed the estimate as long as there is space.
    pub growable: bool,
    /// Bytes of log that the replica no longer needs once it has the snapshot.
    pub gain: u64,
}

/// The host's limits on the snapshots of all its groups together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BudgetLimits {
    /// Bytes of all objects and staging files.
    pub bytes: u64,
    /// Bytes of the filesystem that snapshots leave to the log.
    pub headroom_bytes: u64,
    /// The log's filesystem, the only one on which the headroom is kept free; `None` = it is kept
    /// free on every filesystem.
    pub log_device: Option<u64>,
    /// Inbound transfers at a time.
    pub inbound: usize,
    /// Outbound transfers at a time.
    pub outbound: usize,
    /// Groups that take a snapshot at the same time.
    pub captures: usize,
    /// Groups that restore a snapshot at the same time.
    pub restores: usize,
}

/// What the groups of a host share: the budget of snapshot bytes, and the places for transfers,
/// captures and restores.
#[derive(Debug)]
pub struct Budget {
    limits: BudgetLimits,
    inbound: DiskPlaces,
    outbound: DiskPlaces,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Bytes that allocations cover.
    bytes: u64,
    /// Of these, bytes that are not on the disk yet, by filesystem.
    unwritten: BTreeMap<u64, u64>,
    captures: Places,
    restores: Places,
    claim: Option<Claim>,
    /// The time that [`Budget::tend`] was last called with.
    now_ms: u64,
}

/// Space that is kept for a group that found none and had nothing of its own to give up. A budget
/// has at most one claim at a time.
#[derive(Debug)]
struct Claim {
    by: Weak<Quota>,
    bytes: u64,
    /// The claim is for space of the budget.
    of_budget: bool,
    /// The filesystem that the claim is for, if it is for one.
    device: Option<u64>,
    /// When the claim expires.
    until_ms: u64,
    /// Whether no group has given anything up since the claim was last made.
    pressing: bool,
}

/// How long a claim lasts, and how long its group makes no new one after it expired, milliseconds
/// of wall time: more than the longest wait between two captures that find no space.
const CLAIM_MS: u64 = 60_000;

/// A group's share of the host's budget.
#[derive(Debug)]
pub struct Quota {
    budget: Arc<Budget>,
    disk: Arc<SnapshotDisk>,
    cap: u64,
    /// Bytes that the group has taken. Changed only under the budget's lock.
    bytes: AtomicU64,
    /// Until when the group may not claim space, because its last claim expired. Changed only under
    /// the budget's lock.
    rests_until_ms: AtomicU64,
    /// Objects that were found corrupt or missing.
    bad: AtomicU64,
}

/// The bytes of the budget that one file takes, and a hold on the file's name. All users of the
/// file share one allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    quota: Arc<Quota>,
    /// The filesystem on which the unwritten bytes will be written.
    device: u64,
    /// Bytes taken. Changed only under the budget's lock.
    bytes: AtomicU64,
    /// Of these, bytes that are not on the disk yet. Changed only under the budget's lock.
    unwritten: AtomicU64,
    /// Set while the batch that lists the object is on its way to the log: the object is kept even
    /// if nothing else holds it.
    kept: AtomicBool,
}

/// A group's only place for an inbound transfer or for a local snapshot, together with one of the
/// host's places. Both are free again when the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    _group: Arc<()>,
    _host: HostPlace,
}

/// The host's place for an inbound transfer or for a capture.
type HostPlace = Arc<dyn std::fmt::Debug + Send + Sync>;

/// What an object is held for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    Restoring,
    Verifying,
    Scrubbing,
    Sending(ReplicaId),
}

/// A hold on an object's name and bytes, with its purpose.
#[derive(Debug)]
pub(crate) struct Held {
    allocation: Arc<Allocation>,
    purpose: Arc<Use>,
}

/// Permission to write one object. Dropping it returns its bytes.
#[derive(Debug)]
pub struct Reservation {
    pub(crate) allocation: Arc<Allocation>,
    pub(crate) slot: Slot,
    pub(crate) source: Source,
}

/// The snapshot for which space is reserved.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Received(SnapshotDesc),
    Local(LocalHeader),
}

/// The labels of the producers that ask for space: local snapshots and received ones.
pub const PRODUCERS: [&str; 2] = ["local", "received"];
/// Every value of [`SnapshotRefusal::reason`].
pub const REASONS: [&str; 12] = [
    "stale",
    "busy",
    "no_place",
    "no_space",
    "incompatible",
    "needs_unlist",
    "held",
    "suspended",
    "wrong_group",
    "corrupt",
    "disk",
    "closed",
];

impl SnapshotRefusal {
    /// The label of the refusal's metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Busy { .. } => "busy",
            Self::NoPlace { .. } => "no_place",
            Self::NoSpace { .. } | Self::Short { .. } => "no_space",
            Self::Incompatible { .. } => "incompatible",
            Self::NeedsUnlist(_) => "needs_unlist",
            Self::Held { .. } => "held",
            Self::Suspended(_) => "suspended",
            Self::WrongGroup => "wrong_group",
            Self::Corrupt => "corrupt",
            Self::Disk(_) => "disk",
            Self::Closed => "closed",
        }
    }

    /// The reply that tells the sender of an object that it was refused.
    pub fn to_reply(&self) -> BulkReply {
        match self {
            Self::Stale => BulkReply::Stale,
            Self::Busy { retry_after_ms } => BulkReply::Busy { retry_after_ms: *retry_after_ms },
            Self::NoSpace { need, have } => {
                BulkReply::NoSpace { need: *need, have: *have, retry_after_ms: NO_SPACE_RETRY_MS }
            }
            Self::Short { .. } => {
                BulkReply::NoSpace { need: 0, have: 0, retry_after_ms: NO_SPACE_RETRY_MS }
            }
            Self::Incompatible { why } => BulkReply::Incompatible { why: why.clone() },
            Self::WrongGroup => BulkReply::WrongGroup,
            Self::Corrupt => BulkReply::Corrupt,
            Self::Suspended(object) => BulkReply::Prefer(*object),
            Self::NoPlace { .. }
            | Self::NeedsUnlist(_)
            | Self::Held { .. }
            | Self::Disk(_)
            | Self::Closed => BulkReply::Busy { retry_after_ms: BUSY_RETRY_MS },
        }
    }

    /// The refusal for a system error during the operation `what`.
    pub(crate) fn disk(what: &str, error: &io::Error) -> Self {
        let why = format!("{what}: {error}");
        if is_short(error) { Self::Short { why, is_full: is_full(error) } } else { Self::Disk(why) }
    }
}

impl Budget {
    pub fn new(limits: BudgetLimits) -> Arc<Self> {
        let outbound = if planted("outbound_without_bound") { usize::MAX } else { limits.outbound };
        let (inbound, outbound) = (DiskPlaces::new(limits.inbound), DiskPlaces::new(outbound));
        Arc::new(Self { limits, inbound, outbound, taken: Mutex::default() })
    }

    pub fn limits(&self) -> BudgetLimits {
        self.limits
    }

    /// Bytes that objects, staging files and reservations take now.
    pub fn used(&self) -> u64 {
        self.taken().bytes
    }

    /// Inbound transfers under way.
    pub fn inbound(&self) -> usize {
        self.inbound.in_use()
    }

    /// Groups that do `work` now, and groups that wait for a place.
    pub fn places(&self, work: Work) -> (usize, usize) {
        self.taken().places(work).counts()
    }

    /// Called periodically with the time, to end claims, places and asks that are over. A claim
    /// expires [`CLAIM_MS`] after the first call that sees it.
    pub(crate) fn tend(&self, now_ms: u64) {
        let mut taken = self.taken();
        // The groups of a host call this in no fixed order, so a later call may have an earlier
        // time.
        let now_ms = now_ms.max(taken.now_ms);
        taken.now_ms = now_ms;
        taken.captures.tend(now_ms);
        taken.restores.tend(now_ms);
        let over = taken.claim.take_if(|claim| {
            claim.until_ms = claim.until_ms.min(now_ms.saturating_add(CLAIM_MS));
            claim.until_ms <= now_ms
        });
        if let Some(quota) = over.and_then(|claim| claim.by.upgrade()) {
            quota.rests_until_ms.store(now_ms.saturating_add(CLAIM_MS), Ordering::Relaxed);
        }
    }

    /// The quota of a group that may take at most `cap` bytes and has a disk of its own.
    pub fn quota(self: &Arc<Self>, cap: u64) -> Arc<Quota> {
        self.quota_on(Arc::default(), cap)
    }

    /// The quota of a group whose snapshots lie on `disk`.
    pub(crate) fn quota_on(self: &Arc<Self>, disk: Arc<SnapshotDisk>, cap: u64) -> Arc<Quota> {
        let (bytes, bad, rests_until_ms) = Default::default();
        Arc::new(Quota { budget: Arc::clone(self), disk, cap, bytes, rests_until_ms, bad })
    }

    /// A place for an outbound transfer from `disk`, if one is free and the disk answers.
    pub fn take_outbound(&self, disk: &Arc<SnapshotDisk>) -> Option<DiskPlace> {
        self.outbound.take(disk)
    }

    pub(super) fn give_back(&self, work: Work, number: u64) {
        self.taken().places(work).give_back(number);
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Budget {
    /// Bytes that a filesystem has left for snapshots: its free bytes without those that are
    /// reserved and not written yet, and without the log's headroom.
    fn disk_space(&self, taken: &Taken, space: Space) -> u64 {
        let of_the_log = self.limits.log_device.is_none_or(|device| device == space.device);
        let has_headroom = of_the_log && !planted("no_headroom");
        let headroom = if has_headroom { self.limits.headroom_bytes } else { 0 };
        let unwritten = taken.unwritten.get(&space.device).copied().unwrap_or(0);
        space.available.saturating_sub(unwritten.saturating_add(headroom))
    }
}

impl Held {
    pub(crate) fn new(allocation: Arc<Allocation>, purpose: Use) -> Self {
        Self { allocation, purpose: Arc::new(purpose) }
    }

    /// Counts the object as corrupt.
    pub(crate) fn note_bad(&self) {
        self.allocation.quota.note_bad();
    }

    /// A watch for the thread that reads the object.
    pub(crate) fn watch(&self) -> Arc<DiskWatch> {
        self.allocation.watch()
    }

    /// The purpose, readable while the hold lives.
    pub(crate) fn purpose(&self) -> Weak<Use> {
        Arc::downgrade(&self.purpose)
    }
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Restoring => f.write_str("restoring"),
            Self::Verifying => f.write_str("verifying"),
            Self::Scrubbing => f.write_str("scrubbing"),
            Self::Sending(to) => write!(f, "sending to {to}"),
        }
    }
}

impl Quota {
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Takes one of the host's places for `work`, if it is this group's turn; groups with a larger
    /// `gain`, in bytes of log, come first. A group that gets `None` has to ask again.
    pub fn take_place(self: &Arc<Self>, work: Work, gain: u64) -> Option<Place> {
        let limits = self.budget.limits;
        let most = match work {
            Work::Capture => limits.captures,
            Work::Restore => limits.restores,
        };
        let number = self.budget.taken().places(work).take(self, gain, most)?;
        Some(Place::new(Arc::clone(&self.budget), work, number))
    }

    /// A place for an inbound transfer, if one is free and the group's disk answers.
    pub(crate) fn take_inbound(&self) -> Option<DiskPlace> {
        self.budget.inbound.take(&self.disk)
    }

    /// What the filesystem has left for snapshots.
    pub(crate) fn disk_space(&self, space: Space) -> u64 {
        self.budget.disk_space(&self.budget.taken(), space)
    }

    /// The most bytes that the group may ever take.
    pub(crate) fn most(&self) -> u64 {
        self.cap.min(self.budget.limits.bytes)
    }

    /// Bytes that the group may still take of the budget and of its own cap.
    pub(crate) fn left(&self) -> u64 {
        self.left_of(&self.budget.taken())
    }

    fn left_of(&self, taken: &Taken) -> u64 {
        let claim = taken.claim_of_others(self).filter(|claim| claim.of_budget);
        let claimed = claim.map_or(0, |claim| claim.bytes);
        let cap = if planted("forget_cap") { u64::MAX } else { self.cap };
        let of_cap = cap.saturating_sub(self.bytes.load(Ordering::Relaxed));
        of_cap.min(self.budget.limits.bytes.saturating_sub(taken.bytes.saturating_add(claimed)))
    }

    /// Objects found corrupt or missing since the start.
    pub(crate) fn bad(&self) -> u64 {
        self.bad.load(Ordering::Relaxed)
    }

    pub(crate) fn note_bad(&self) {
        self.bad.fetch_add(1, Ordering::Relaxed);
    }

    /// Claims `bytes` of the budget and of the filesystem that `space` describes, which the host's
    /// other groups may have to spare. Does nothing while another group's claim lasts, for
    /// [`CLAIM_MS`] after a claim of this group expired, or if no other group could help.
    pub(crate) fn claim(self: &Arc<Self>, bytes: u64, space: Space) {
        let mut taken = self.budget.taken();
        let own = self.bytes.load(Ordering::Relaxed);
        // If the clock was set back, the group must still wait no longer than `CLAIM_MS`.
        let latest = taken.now_ms.saturating_add(CLAIM_MS);
        self.rests_until_ms.fetch_min(latest, Ordering::Relaxed);
        let rests = self.rests_until_ms.load(Ordering::Relaxed) > taken.now_ms;
        let possible = self.most().saturating_sub(own) >= bytes;
        if rests || !possible || taken.claim_of_others(self).is_some() {
            return;
        }
        let of_budget = self.budget.limits.bytes.saturating_sub(taken.bytes) < bytes;
        let device = (self.budget.disk_space(&taken, space) < bytes).then_some(space.device);
        if !of_budget && device.is_none() {
            return;
        }
        // Repeating a claim does not prolong it.
        let until_ms = taken.claim.as_ref().map_or(u64::MAX, |claim| claim.until_ms);
        let by = Arc::downgrade(self);
        taken.claim = Some(Claim { by, bytes, of_budget, device, until_ms, pressing: true });
    }

    /// Whether another group claims space of the budget or on `device`, and no group was asked to
    /// give it yet. A caller that gets `true` must give up space: no other group is asked.
    pub(crate) fn take_pressure(&self, device: Option<u64>) -> bool {
        let mut taken = self.budget.taken();
        let here = |claim: &Claim| {
            claim.of_budget || claim.device.is_some_and(|short| Some(short) == device)
        };
        let mine = taken.claim_of_others(self).is_some_and(here);
        mine && taken.claim.as_mut().is_some_and(|claim| std::mem::take(&mut claim.pressing))
    }

    /// Charges bytes that are on the disk already, even beyond the limits.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Arc<Allocation> {
        self.budget.taken().bytes += bytes;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.allocation(bytes, 0, 0)
    }

    /// Takes bytes that will be written to the filesystem that `space` describes. The error is how
    /// many bytes could be taken instead.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64, space: Space) -> Result<Arc<Allocation>, u64> {
        plant!("forget_reservation" does return Ok(self.allocation(0, 0, space.device)));
        self.admit(bytes, space)?;
        self.budget.taken().claim.take_if(|claim| claim.is_by(self));
        Ok(self.allocation(bytes, bytes, space.device))
    }

    fn admit(&self, bytes: u64, space: Space) -> Result<(), u64> {
        let mut taken = self.budget.taken();
        let claim = taken.claim_of_others(self);
        let claimed = claim.filter(|claim| claim.device == Some(space.device));
        let free = self.budget.disk_space(&taken, space);
        let disk = free.saturating_sub(claimed.map_or(0, |claim| claim.bytes));
        let have = self.left_of(&taken).min(disk);
        if bytes > have {
            return Err(have);
        }
        taken.bytes += bytes;
        *taken.unwritten.entry(space.device).or_default() += bytes;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn allocation(self: &Arc<Self>, bytes: u64, unwritten: u64, device: u64) -> Arc<Allocation> {
        let (bytes, unwritten) = (AtomicU64::new(bytes), AtomicU64::new(unwritten));
        let (quota, kept) = (Arc::clone(self), AtomicBool::new(false));
        Arc::new(Allocation { quota, device, bytes, unwritten, kept })
    }
}

impl Claim {
    fn is_by(&self, quota: &Quota) -> bool {
        std::ptr::eq(self.by.as_ptr(), quota)
    }
}

impl Taken {
    fn places(&mut self, work: Work) -> &mut Places {
        match work {
            Work::Capture => &mut self.captures,
            Work::Restore => &mut self.restores,
        }
    }

    fn claim_of_others(&self, quota: &Quota) -> Option<&Claim> {
        let claim = self.claim.as_ref().filter(|claim| claim.by.strong_count() > 0);
        claim.filter(|claim| !claim.is_by(quota))
    }

    /// Stops counting these bytes as unwritten: they are on the disk now, or were given back.
    fn now_written(&mut self, device: u64, bytes: u64) {
        if let Some(unwritten) = self.unwritten.get_mut(&device) {
            *unwritten -= bytes;
        }
    }
}

impl Allocation {
    /// A watch for a thread that works on the name's file.
    pub(crate) fn watch(&self) -> Arc<DiskWatch> {
        self.quota.disk.watch()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes more bytes of the budget for the same file.
    pub(crate) fn grow(&self, bytes: u64, space: Space) -> Result<(), u64> {
        self.quota.admit(bytes, space)?;
        let _taken = self.quota.budget.taken();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.unwritten.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Records that this many of the unwritten bytes are on the disk now.
    pub(crate) fn on_disk(&self, bytes: u64) {
        let mut taken = self.quota.budget.taken();
        let bytes = bytes.min(self.unwritten.load(Ordering::Relaxed));
        self.unwritten.fetch_sub(bytes, Ordering::Relaxed);
        taken.now_written(self.device, bytes);
    }

    /// Records that the file is finished and has exactly this size; bytes beyond it are given back.
    pub(crate) fn settle(&self, bytes: u64) {
        let mut taken = self.quota.budget.taken();
        let unwritten = self.unwritten.swap(0, Ordering::Relaxed);
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        taken.now_written(self.device, unwritten);
        taken.bytes = taken.bytes - before + bytes;
        let quota = self.quota.bytes.load(Ordering::Relaxed);
        self.quota.bytes.store(quota - before + bytes, Ordering::Relaxed);
    }

    pub(crate) fn keep(&self, kept: bool) {
        self.kept.store(kept, Ordering::Release);
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut taken = self.quota.budget.taken();
        let bytes = *self.bytes.get_mut();
        taken.bytes -= bytes;
        self.quota.bytes.fetch_sub(bytes, Ordering::Relaxed);
        taken.now_written(self.device, *self.unwritten.get_mut());
    }
}

impl Slot {
    /// `None` if `place` is taken.
    pub(crate) fn take(place: &Arc<()>, host: HostPlace) -> Option<Self> {
        Self::is_free(place).then(|| Self { _group: place.clone(), _host: host })
    }

    /// Whether a place is free: the store's own handle is the only one.
    pub(crate) fn is_free(place: &Arc<()>) -> bool {
        Arc::strong_count(place) == 1
    }
}

impl Source {
    /// The label of this producer in metrics.
    pub(crate) fn producer(&self) -> &'static str {
        match self {
            Self::Received(_) => "received",
            Self::Local(_) => "local",
        }
    }

    pub(crate) fn position(&self) -> (u64, u64) {
        match self {
            Self::Received(desc) => (desc.term, desc.index),
            Self::Local(local) => (local.term, local.index),
        }
    }
}

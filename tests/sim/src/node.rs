//! One node: a disk, and while its process runs, the production log, stores, lanes and cores.
//!
//! Nothing here moves by itself: the world runs one step of one lane at a time. A crash drops the
//! process and all that its disk had not made durable.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::entry::Profile;
use lockstep_core::group::{ApplyJob, Effect, Group, GroupConfig};
use lockstep_core::ids::{GroupId, NodeId, ReplicaId, Ticket};
use lockstep_core::limits::DISK_STALL_MS;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::ObjectRef;
use lockstep_core::wal::LogJob;
use lockstep_host::clock::Clock;
use lockstep_host::fs::mem::MemFs;
use lockstep_host::fs::{Fs, make_durable};
use lockstep_host::group::apply_lane::{ApplyLane, Tools};
use lockstep_host::group::event_board::EventBoard;
use lockstep_host::group::gauges::Gauges;
use lockstep_host::group::log_lane::LogWriter;
use lockstep_host::group::reopen::{Disk, Reopened, SnapshotDir, recover, reopen};
use lockstep_host::store::layout::snapshot_dir;
use lockstep_host::store::{Budget, BudgetLimits, StoreHandle, on_lane};
use lockstep_host::wal::{RecoveredGroup, Wal, WalError, WalOptions, WalReader};

use crate::copies::{Copy, Image};
use crate::guest::{EVENT_WINDOW_BYTES, SharedObserved, SimModules, Strays, Traps, module_id};
use crate::rot::Batch;
use crate::setup::Setup;
use crate::store::StoreQueue;

pub const CLUSTER: [u8; 16] = [5; 16];
pub const DATA: &str = "/data";
/// Where snapshots lie if they have a disk of their own.
pub const SNAPSHOTS: &str = "/snapshots";

pub struct Node {
    pub id: NodeId,
    pub fs: MemFs,
    pub process: Option<Process>,
    /// The node's configuration names nodes 1 to this.
    pub members: u16,
    /// How far the node's wall clock was ahead of simulated time when it was last set, ms.
    pub clock_ms: i64,
    /// How much faster than simulated time the node's clock runs, in millionths.
    pub drift: i64,
    /// Since when the clock has had this drift.
    pub drift_since: u64,
    pub time: SimClock,
    /// The process is paused, and runs nothing, until then.
    pub paused_until: u64,
    pub traps: Traps,
    pub strays: Strays,
    /// Ids of replicas whose disk was lost.
    pub gone: Vec<ReplicaId>,
    /// Bits of its disk were flipped or sectors lost: data that does not verify is no bug.
    pub rotted: bool,
    /// When one of its snapshots was last damaged.
    pub snapshot_rotted_at: u64,
    /// The log segment that was damaged, and the file that held it then.
    pub corrupt_log: Option<(u64, PathBuf)>,
    /// How many batches its process had written when that segment was no longer part of the log.
    left_at: Option<u64>,
    /// The sectors that cannot be read are in the log.
    pub log_lost: bool,
    /// The batch of the last segment that is to be damaged.
    pub batch: Option<Batch>,
    /// Reads have been made to fail since this process started.
    pub unreadable: bool,
    /// Other data fills the disk of its log.
    pub log_filled: bool,
    /// When other data last stopped filling the disk of its log.
    pub log_freed_at: u64,
    /// Since when the disk of its log hangs: no operation on it returns.
    pub hangs_since: Option<u64>,
    /// Whether the separate disk of its snapshots hangs.
    pub store_hangs: StoreHang,
    /// An image of its disk, taken when an earlier process ended.
    pub image: Option<Image>,
    /// Set while the node runs on such an image.
    pub copy: Option<Copy>,
}

/// Whether a separate disk of snapshots hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreHang {
    /// The disk answers.
    No,
    /// The disk hangs, and no apply lane has waited for it yet.
    Unnoticed,
    /// The disk hangs, and an apply lane has waited for it in vain.
    Noticed,
}

/// One run of a node's process.
pub struct Process {
    /// The number of this process: actions of an earlier one are dropped.
    pub epoch: u64,
    pub log: LogWriter,
    pub reader: WalReader,
    pub queue: Vec<(u64, LogJob)>,
    pub log_scheduled: bool,
    /// Whether the replicas were last told that the disk hangs.
    pub stalled: bool,
    pub budget: Arc<Budget>,
    pub replicas: BTreeMap<GroupId, Replica>,
    /// The highest boot count heard from each replica.
    pub heard: BTreeMap<(GroupId, ReplicaId), u64>,
}

pub struct Replica {
    pub group: Group,
    pub lane: ApplyLane,
    /// Where those who watch find the group's events.
    pub board: Arc<EventBoard>,
    pub jobs: VecDeque<ApplyJob>,
    pub lane_scheduled: bool,
    pub store: Arc<StoreQueue>,
    pub store_scheduled: bool,
    pub listed: Arc<Mutex<Vec<SnapshotDesc>>>,
    /// Who waits for each ticket.
    pub tickets: BTreeMap<Ticket, Waiter>,
    pub next_ticket: u64,
    /// The received object that the core has yet to take or leave, and its transfer.
    pub judged: Option<(ObjectRef, u64)>,
    pub seen: Seen,
    /// Captures that are written but not sealed yet.
    pub sealing: usize,
    /// When the restore under way will be done.
    pub restores_until: Option<u64>,
}

/// A client that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    /// The client's number in the world.
    pub client: usize,
    /// The client's attempt: once it makes another one, it no longer waits for this.
    pub attempt: u64,
}

/// What a replica's status said when it was last checked.
#[derive(Default)]
pub struct Seen {
    pub commit: u64,
    /// The snapshots that the replica lists.
    pub listed: Vec<SnapshotDesc>,
    /// Those of them that the replica knows, or was just told, to be corrupt.
    pub corrupt: Vec<ObjectRef>,
}

/// The clock of one node: wall time in ms, and simulated time in µs.
#[derive(Clone, Default)]
pub struct SimClock(Arc<Mutex<(u64, u64)>>);

impl SimClock {
    pub fn set(&self, wall_ms: u64, now: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (wall_ms, now);
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn running(&self) -> Duration {
        Duration::from_micros(self.0.lock().unwrap_or_else(PoisonError::into_inner).1)
    }
}

/// The log, and what it holds of each group.
pub type OpenedLog = (Wal, BTreeMap<GroupId, RecoveredGroup>);

/// Why a process did not come up.
pub enum NoStart {
    /// The disk failed or halted during the start, which is tried again.
    Disk(String),
    /// The log is damaged: the node has to join as a new replica.
    Damaged(String),
    /// The disk holds snapshots of a group that its log does not know.
    Strays(String),
}

impl NoStart {
    fn of_log(error: WalError) -> Self {
        match error {
            WalError::Corrupt { .. } => Self::Damaged(error.to_string()),
            other => Self::Disk(other.to_string()),
        }
    }
}

impl Process {
    fn new(
        epoch: u64,
        log: LogWriter,
        budget: Arc<Budget>,
        replicas: BTreeMap<GroupId, Replica>,
    ) -> Self {
        let (reader, queue) = (log.reader(), Vec::new());
        let (log_scheduled, stalled) = (false, false);
        let heard = BTreeMap::new();
        Self { epoch, log, reader, queue, log_scheduled, stalled, budget, replicas, heard }
    }
}

impl Node {
    pub fn new(id: NodeId, setup: &Setup) -> Self {
        Self {
            id,
            fs: disk(setup),
            process: None,
            members: setup.initial_voters,
            clock_ms: 0,
            drift: 0,
            drift_since: 0,
            time: SimClock::default(),
            paused_until: 0,
            traps: Traps::default(),
            strays: Strays::default(),
            gone: Vec::new(),
            rotted: false,
            snapshot_rotted_at: 0,
            corrupt_log: None,
            left_at: None,
            log_lost: false,
            batch: None,
            unreadable: false,
            log_filled: false,
            log_freed_at: 0,
            hangs_since: None,
            store_hangs: StoreHang::No,
            image: None,
            copy: None,
        }
    }

    /// Whether an operation on its disk has hung for so long that its replicas must be told.
    pub fn is_stalled(&self, now: u64) -> bool {
        self.hangs_since.is_some_and(|since| now > since + DISK_STALL_MS * 1_000)
    }

    /// Whether an operation on its snapshots would hang.
    pub fn store_is_hanging(&self) -> bool {
        self.store_hangs != StoreHang::No || self.hangs_since.is_some()
    }

    /// The node's wall time.
    pub fn wall_ms(&self, now: u64) -> u64 {
        let gone = i64::try_from(now.saturating_sub(self.drift_since)).unwrap_or(i64::MAX);
        let drifted = gone / 1_000 * self.drift / 1_000_000;
        (now / 1_000).saturating_add_signed(self.clock_ms + drifted)
    }

    /// Simulated time between two of its ticks: a fast clock ticks more often.
    pub fn tick_us(&self) -> u64 {
        let share = 1_000_000_i64.saturating_add(self.drift).max(1).unsigned_abs();
        100_000 * 1_000_000 / share
    }

    /// Removes the other data that filled its disks.
    pub fn free_disk(&mut self, disk_bytes: u64, now: u64) {
        self.fs.set_capacity(disk_bytes);
        if self.fs.has(Path::new(SNAPSHOTS)) {
            self.fs.mount(Path::new(SNAPSHOTS), disk_bytes);
        }
        // While the disk hangs, the log cannot see that space is free again.
        if self.log_filled && self.hangs_since.is_none() {
            (self.log_filled, self.log_freed_at) = (false, now);
        }
    }

    /// Whether the process may still read the damaged segment.
    pub fn log_rots(&self) -> bool {
        let Some((segment, path)) = &self.corrupt_log else { return false };
        let counts = |process: &Process| {
            process.reader.segments().iter().any(|(number, _)| number == segment)
        };
        self.fs.has(path) && self.process.as_ref().is_none_or(counts)
    }

    /// Whether a start may still read the damaged segment: the segment is part of the log, or no
    /// batch since has recorded that it no longer is. Its file may be deleted by then, and come
    /// back with a crash.
    pub fn log_may_rot(&mut self) -> bool {
        if self.log_rots() {
            self.left_at = None;
            return true;
        }
        let Some(process) = self.process.as_ref().filter(|_| self.corrupt_log.is_some()) else {
            return false;
        };
        let batches = process.log.stats().batches;
        batches == *self.left_at.get_or_insert(batches)
    }

    /// Whether the simulator's faults may be the cause of data that does not verify here.
    pub fn is_doubtful(&self) -> bool {
        self.rotted || self.unreadable
    }

    /// Replaces the node's disk with an empty one.
    pub fn wipe(&mut self, setup: &Setup) {
        self.process = None;
        self.fs = disk(setup);
        self.log_filled = false;
        (self.rotted, self.corrupt_log, self.log_lost) = (false, None, false);
        (self.image, self.copy) = (None, None);
    }

    /// Starts a process on what the disk holds; returns the effects of opening each group.
    pub fn start(
        &mut self,
        setup: &Setup,
        observed: &SharedObserved,
        epoch: u64,
        seed: u64,
    ) -> Result<Vec<(GroupId, Vec<Effect>)>, NoStart> {
        let fs: Arc<dyn Fs> = Arc::new(self.fs.clone());
        let (wal, mut recovered) = self.open_log(setup, &fs, seed ^ epoch)?;
        let log = LogWriter::new(wal);
        let reader = log.reader();
        let budget = budget(setup);
        let (mut replicas, mut first) = (BTreeMap::new(), Vec::new());
        for name in &setup.groups {
            let id = GroupId::of_name(name);
            let config = self.config(setup, name, seed ^ id.0, epoch);
            let quota = budget.quota(setup.cap_bytes);
            let disk = Disk {
                fs: Arc::clone(&fs),
                cluster: CLUSTER,
                snapshots: SnapshotDir::Usable(self.snapshots(name)),
                quota: Arc::clone(&quota),
                waits: false,
            };
            let recovered = recovered.remove(&id).map(|group| recover(&reader, &group));
            let recovered = recovered.transpose().map_err(NoStart::of_log)?;
            let Reopened { group, first: effects, store } = reopen(disk, config, recovered);
            let strays = |why: &String| why.contains("the log knows nothing of this group");
            let store = Arc::new(StoreQueue::new(store.map_err(|why| {
                if strays(&why) { NoStart::Strays(why) } else { NoStart::Disk(why) }
            })?));
            let listed = Arc::new(Mutex::new(group.recovery_state().snapshots.clone()));
            let board = Arc::new(EventBoard::default());
            let tools = Tools {
                group: id,
                modules: self.modules(setup, id, observed),
                config: None,
                log: reader.clone(),
                store: Arc::clone(&store) as Arc<dyn StoreHandle>,
                clock: Arc::new(self.time.clone()),
                listed: Arc::clone(&listed),
                gauges: Arc::new(Gauges::default()),
                board: Arc::clone(&board),
                quota,
            };
            let replica = Replica {
                board,
                seen: Seen::default(),
                group,
                lane: ApplyLane::new(tools),
                jobs: VecDeque::new(),
                lane_scheduled: false,
                store,
                store_scheduled: false,
                listed,
                tickets: BTreeMap::new(),
                next_ticket: 0,
                judged: None,
                sealing: 0,
                restores_until: None,
            };
            replicas.insert(id, replica);
            first.push((id, effects));
        }
        self.process = Some(Process::new(epoch, log, budget, replicas));
        Ok(first)
    }

    /// Opens the log of a node that is down.
    pub fn open(&self, setup: &Setup, nonce: u64) -> Result<OpenedLog, NoStart> {
        let fs: Arc<dyn Fs> = Arc::new(self.fs.clone());
        self.open_log(setup, &fs, nonce)
    }

    fn open_log(&self, setup: &Setup, fs: &Arc<dyn Fs>, nonce: u64) -> Result<OpenedLog, NoStart> {
        let disk = |error: std::io::Error| NoStart::Disk(error.to_string());
        let data = Path::new(DATA);
        fs.create_dir_all(data).map_err(disk)?;
        make_durable(&**fs, data).map_err(disk)?;
        let options = WalOptions {
            cluster: CLUSTER,
            node: self.id,
            segment_bytes: setup.segment_bytes,
            // Small segments are written in blocks of one sector of the simulated disk.
            block_bytes: 512,
            spares: 2,
            nonce,
        };
        let opened = Wal::open(Arc::clone(fs), &data.join("wal"), options);
        opened.map_err(NoStart::of_log)
    }

    pub fn snapshots(&self, group: &str) -> PathBuf {
        let apart = self.fs.has(Path::new(SNAPSHOTS));
        snapshot_dir(Path::new(if apart { SNAPSHOTS } else { DATA }), group)
    }

    fn modules(&self, setup: &Setup, group: GroupId, observed: &SharedObserved) -> Arc<SimModules> {
        let told = (Arc::clone(&self.traps), Arc::clone(&self.strays));
        Arc::new(SimModules::new(group, observed, &told, setup))
    }

    fn config(&self, setup: &Setup, name: &str, seed: u64, epoch: u64) -> GroupConfig {
        GroupConfig {
            name: name.to_owned(),
            node: self.id,
            nodes: (1..=self.members).map(NodeId).collect(),
            module: module_id(0),
            lineage: None,
            guest_config: Bytes::from_static(b"config"),
            profile: Profile {
                engine_major: 0,
                memory_bytes: setup.memory_bytes,
                event_window_bytes: EVENT_WINDOW_BYTES,
                ..Profile::default()
            },
            snapshot_policy: setup.policy,
            snapshots_share_log_disk: !setup.apart,
            seed,
            nonce: epoch,
        }
    }
}

/// The budget of a host's snapshots.
fn budget(setup: &Setup) -> Arc<Budget> {
    Budget::new(BudgetLimits {
        bytes: setup.budget_bytes,
        headroom_bytes: setup.segment_bytes,
        log_device: Some(0),
        inbound: 2,
        outbound: 2,
        captures: setup.places,
        restores: setup.places,
    })
}

/// An empty disk, with a second one for snapshots if the setup says so.
fn disk(setup: &Setup) -> MemFs {
    let fs = if setup.apart {
        MemFs::with_dir(Path::new(SNAPSHOTS))
    } else {
        MemFs::with_dir(Path::new("/"))
    };
    fs.set_capacity(setup.disk_bytes);
    fs.set_late_full(setup.late);
    if setup.apart {
        fs.mount(Path::new(SNAPSHOTS), setup.disk_bytes);
    }
    fs
}

impl Process {
    /// The id of the replica of `group` that runs here.
    pub fn replica_id(&self, group: GroupId) -> Option<ReplicaId> {
        Some(self.replicas.get(&group)?.group.recovery_state().replica)
    }
}

impl Replica {
    /// Has the store lane do a job, after all jobs that wait there.
    pub fn with_store<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut lockstep_host::store::SnapshotStore) -> R + Send + 'static,
    ) -> R {
        on_lane(&*self.store, job).expect("the lane does its jobs")
    }
}

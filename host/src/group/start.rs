//! Starting a hosted group: from what the log holds to a running actor and its lanes.

use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use lockstep_core::fault::Fault;
use lockstep_core::group::{Effect, Group, GroupConfig, Recovered, ReplicaState, Stopped};
use lockstep_core::ids::GroupId;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::fs::Fs;
use crate::group::apply_lane::Tools;
use crate::group::apply_thread;
use crate::group::gauges::Gauges;
use crate::group::inbox::{GroupInbox, Judged};
use crate::group::mailbox::Mailbox;
use crate::group::prepare::Preparer;
use crate::group::readers::Readers;
use crate::group::reopen::{Disk, Reopened, SnapshotDir, recover, reopen};
use crate::group::store_lane::{StoreLane, StoreWatch};
use crate::group::{GroupActor, GroupHandle, GroupReport, LaneJob, Lanes, LogLane};
use crate::guest::Modules;
use crate::metrics::Transfers;
use crate::starting::{StartError, once_there_is_space, thread};
use crate::store::{Budget, Quota, SnapshotDisk, StoreHandle};
use crate::transport::Transport;
use crate::wal::{RecoveredGroup, WalError};

/// What all groups of a node share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub cluster: [u8; 16],
    pub fs: Arc<dyn Fs>,
    pub clock: Arc<dyn Clock>,
    pub log: LogLane,
    pub budget: Arc<Budget>,
    /// Bytes a second of an outbound transfer; 0 = no limit.
    pub rate: u64,
    pub readers: Readers,
    pub modules: Arc<dyn Modules>,
}

/// Where a group's snapshots lie, and how many bytes they may take.
pub(crate) struct Place {
    pub dir: SnapshotDir,
    pub cap: u64,
}

/// A group that was opened and waits for the transport before it runs.
pub(crate) struct Opened {
    pub handle: GroupHandle,
    inbox: Option<GroupInbox>,
    group: Group,
    first: Vec<Effect>,
    mailbox: Mailbox,
    state: watch::Sender<ReplicaState>,
    report: watch::Sender<crate::group::GroupReport>,
    apply: mpsc::Sender<LaneJob>,
    store: Arc<dyn StoreHandle>,
    listed: Arc<Mutex<Vec<lockstep_core::snapshot::SnapshotDesc>>>,
    gauges: Arc<Gauges>,
    judged: Judged,
    transfers: Arc<Transfers>,
    stored: StoreWatch,
    shared: Shared,
    threads: Vec<JoinHandle<()>>,
}

/// How opening a group went.
pub(crate) enum Started {
    Opened(Box<Opened>),
    /// Stopped from the start; the handle tells why.
    Unusable(GroupHandle),
}

/// Opens one group on what the log recovered for it. Nothing is sent yet.
pub(crate) fn open(
    shared: &Shared,
    config: GroupConfig,
    place: Place,
    recovered: Option<RecoveredGroup>,
) -> Result<Started, StartError> {
    let (name, id) = (config.name.clone(), GroupId::of_name(&config.name));
    let disk = SnapshotDisk::at(place.dir.path());
    let gauges = Arc::new(Gauges::of(Arc::clone(&disk)));
    let recovered = recovered.map(|group| shared.read_window(&group)).transpose()?;
    let guest_config = config.guest_config.clone();
    let quota = shared.budget.quota_on(Arc::clone(&disk), place.cap);
    let Reopened { group, first, store } =
        reopen(shared.disk(place.dir, &quota), config, recovered);
    let store = match store {
        Ok(store) => store,
        Err(why) => return Ok(Started::Unusable(unusable(id, &group, why))),
    };
    let listed = Arc::new(Mutex::new(group.recovery_state().snapshots.clone()));
    let (store, stored, store_thread) = StoreLane::start(&name, store, Arc::clone(&gauges))
        .map_err(|e| thread(format!("store lane of {name:?}"), e))?;
    let store: Arc<dyn StoreHandle> = Arc::new(store);

    let (state_in, state_out) = watch::channel(group.state().clone());
    let (apply, jobs) = mpsc::channel();
    let (report_in, report_out) = watch::channel(GroupReport::blank(group.status()));
    let (handle, mailbox) = GroupHandle::new(id, &name, state_out, report_out);
    handle.set_store(Arc::clone(&store), disk);
    let tools = Tools {
        group: id,
        modules: Arc::clone(&shared.modules),
        config: Some(guest_config),
        log: shared.log.reader(),
        store: Arc::clone(&store),
        clock: Arc::clone(&shared.clock),
        listed: Arc::clone(&listed),
        gauges: Arc::clone(&gauges),
        board: Arc::clone(handle.events()),
        quota,
    };
    let threads = vec![store_thread, apply_thread::start(&name, tools, jobs, handle.clone())?];
    let (judged, transfers) = (Judged::default(), Arc::new(Transfers::default()));
    let inbox = GroupInbox {
        cluster: shared.cluster,
        handle: handle.clone(),
        store: Arc::clone(&store),
        clock: Arc::clone(&shared.clock),
        judged: judged.clone(),
        transfers: Arc::clone(&transfers),
    };
    Ok(Started::Opened(Box::new(Opened {
        handle,
        inbox: Some(inbox),
        group,
        first,
        mailbox,
        state: state_in,
        report: report_in,
        apply,
        store,
        listed,
        gauges,
        judged,
        transfers,
        stored,
        shared: shared.clone(),
        threads,
    })))
}

impl Shared {
    /// Reads the part of a group's log that is kept in memory; waits while the machine lacks the
    /// memory or descriptors for it.
    fn read_window(&self, group: &RecoveredGroup) -> Result<Recovered, StartError> {
        Ok(once_there_is_space(WalError::is_short, || recover(&self.log.reader(), group))?)
    }

    /// A group's part of the disk.
    fn disk(&self, snapshots: SnapshotDir, quota: &Arc<Quota>) -> Disk {
        Disk {
            fs: Arc::clone(&self.fs),
            cluster: self.cluster,
            snapshots,
            quota: Arc::clone(quota),
            waits: true,
        }
    }
}

/// The handle of a group that cannot run: its state says why. The node's other groups go on.
fn unusable(id: GroupId, group: &Group, why: String) -> GroupHandle {
    tracing::error!(group = group.recovery_state().group, why, "the group cannot run");
    let state = ReplicaState::Stopped(Stopped::Failed(Fault::Unusable(why)));
    let mut report = GroupReport::blank(group.status());
    report.status.state = state.clone();
    let (_, state) = watch::channel(state);
    let (_, report) = watch::channel(report);
    GroupHandle::new(id, &group.recovery_state().group, state, report).0
}

impl Opened {
    /// Takes the receiving end for snapshots; there is one.
    pub(crate) fn take_inbox(&mut self) -> GroupInbox {
        self.inbox.take().expect("the inbox is taken once")
    }

    /// Starts the actor. The lanes' threads end once the actor and every transfer have ended.
    pub(crate) fn run(
        self,
        transport: Arc<dyn Transport>,
    ) -> (tokio::task::JoinHandle<()>, Vec<JoinHandle<()>>) {
        let lanes = Lanes {
            cluster: self.shared.cluster,
            log: self.shared.log.clone(),
            apply: self.apply,
            store: self.store,
            transport,
            clock: self.shared.clock,
            listed: self.listed,
            gauges: self.gauges,
            judged: self.judged,
            budget: self.shared.budget,
            transfers: self.transfers,
            stored: self.stored,
            rate: self.shared.rate,
            readers: self.shared.readers,
            preparer: Preparer::new(self.shared.modules),
        };
        self.report.send_replace(GroupReport::of(&lanes, self.group.status()));
        let actor =
            GroupActor::new(self.group, self.handle, self.mailbox, lanes, self.state, self.report);
        (tokio::spawn(actor.run(self.first)), self.threads)
    }
}

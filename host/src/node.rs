//! A node: everything one process hosts, from the data directory to the open port.
//!
//! Start-up order, each step before anything that depends on it: ports (health is answered from
//! here on), modules, data directory (locks, owner), log, groups, transport, services, actors. A
//! step that fails says why and touches nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_core::group::{Event, GroupConfig};
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::limits;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest, Offer};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::bulk::BulkChannel;
use crate::clock::{Clock, SystemClock};
use crate::config::address::out_of_reach;
use crate::config::{GroupSpec, ModuleSource, NodeConfig};
use crate::data_dir::{DataDir, DataDirError, SnapshotDirError};
use crate::fs::disk::raise_descriptor_limit;
use crate::fs::{DiskFs, Fs, Promise, Space};
use crate::group::inbox::GroupInbox;
use crate::group::readers::Readers;
use crate::group::reopen::SnapshotDir;
use crate::group::start::{self, Opened, Started};
use crate::group::{GroupHandle, LogLane};
use crate::guest::CodeCache;
use crate::guest::check::ModuleRefusal;
use crate::guest::component::ComponentModule;
use crate::guest::native::NativeModule;
use crate::guest::{GuestModule, Module};
use crate::metrics::{self, NodeMetrics, Sources};
use crate::modules::ModuleStore;
use crate::router::{Addresses, Router};
use crate::rpc::peer_api::SnapshotInbox;
use crate::rpc::peer_link::GrpcTransport;
use crate::rpc::port::PortState;
use crate::rpc::server::{Front, Services};
use crate::rpc::versions::PeerVersions;
use crate::rpc::{self, HelloInfo};
pub use crate::starting::StartError;
use crate::starting::{once_there_is_space, thread};
use crate::store::layout::{ObjectName, snapshot_dir};
use crate::store::{Budget, BudgetLimits};
use crate::wal::{RecoveredGroup, Wal, WalError, WalOptions};

mod clients;
mod scrub;
mod sizing;
#[cfg(test)]
mod tests;

/// Snapshots that a node receives at once, and sends at once.
const INBOUND_MAX: usize = 4;
const OUTBOUND_MAX: usize = 4;
/// Groups of a node that may take a snapshot at a time, and that may restore one. With two, one
/// writes while the other computes; with more, each would only take longer.
const CAPTURES_MAX: usize = 2;
const RESTORES_MAX: usize = 2;
/// How long a node tries to hand leadership over before it stops anyway.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);
/// How long services and lanes may take to end after that.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// The ports, which are open before anything else.
struct Ports {
    front: Front,
    listening: SocketAddr,
    metrics: Arc<NodeMetrics>,
    /// Stops serving metrics when it is set or dropped.
    stop: watch::Sender<bool>,
}

/// A running node.
pub struct Node {
    router: Router,
    front: Front,
    listening: SocketAddr,
    /// Set once the node refuses clients because it stops.
    closing: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    actors: Vec<tokio::task::JoinHandle<()>>,
    threads: Vec<JoinHandle<()>>,
    _data: DataDir,
}

impl Node {
    /// Starts on the machine's own files and clock.
    pub async fn start(config: NodeConfig, rejoin: bool) -> Result<Self, StartError> {
        Self::start_with(None, config, rejoin).await
    }

    /// Starts like [`Node::start`], on a socket that already listens.
    pub async fn start_on(
        socket: std::net::TcpListener,
        config: NodeConfig,
    ) -> Result<Self, StartError> {
        Self::start_with(Some(socket), config, false).await
    }

    async fn start_with(
        socket: Option<std::net::TcpListener>,
        config: NodeConfig,
        rejoin: bool,
    ) -> Result<Self, StartError> {
        raise_descriptor_limit();
        let listener = listen_on(socket, &config.listen).await?;
        let listening = listener.local_addr().expect("a bound socket has an address");
        tokio::spawn(tell_if_out_of_reach(config.listen.clone(), listening, peers_of(&config)));
        let metrics = match &config.metrics_listen {
            Some(address) => Some(listen(address, "metrics-listen").await?),
            None => None,
        };
        let port = PortState::new(clients::port_limits(&config), config.nodes.len());
        let front = Front::open(listener, Arc::clone(&port)).await?;
        let (stop, stopped) = watch::channel(false);
        let all = Arc::new(NodeMetrics::new(Arc::clone(&port)));
        if let Some(listener) = metrics {
            serve_metrics(listener, Arc::clone(&all), stopped);
        }
        let ports = Ports { front, listening, metrics: all, stop };
        // Compiling and reading take long, so they run on a thread of their own: signals and probes
        // are answered meanwhile, and a caller that gives up need not wait for the thread.
        let (tell, told) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        let started = std::thread::Builder::new().name("start".to_owned()).spawn(move || {
            let _inside = runtime.enter();
            drop(tell.send(Self::start_behind(ports, &config, rejoin)));
        });
        started.map_err(|source| thread("start", source))?;
        told.await.map_err(|_panicked| StartError::Broke)?
    }

    fn start_behind(ports: Ports, config: &NodeConfig, rejoin: bool) -> Result<Self, StartError> {
        let fs: Arc<dyn Fs> = Arc::new(DiskFs);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock { offset_ms: config.clock_offset_ms });
        let (mut modules, mut components) = (BTreeMap::new(), BTreeMap::new());
        for spec in &config.groups {
            let (module, bytes) = load_module(spec, &modules, config)?;
            components.entry(module.id()).or_insert((Arc::clone(&module), bytes));
            modules.insert(spec.name.clone(), module);
        }
        let mut data =
            once_there_is_space(DataDirError::is_short, || DataDir::open(&fs, config, rejoin))?;
        if rejoin {
            data.move_snapshots_aside(&*fs, config)?;
        }
        let store =
            Arc::new(ModuleStore::open(Arc::clone(&fs), data.path(), components.into_values()));
        let (wal, mut recovered) = open_log(&fs, config, &mut data)?;
        let (log, log_thread) = start_log(wal, &data)?;
        let (log_reader, log_times) = (log.reader(), log.times());
        let disk = space(&*fs, data.path())?;
        let budget = Budget::new(budget_limits(config, disk));
        let shared = start::Shared {
            cluster: config.cluster_id(),
            fs: Arc::clone(&fs),
            clock: Arc::clone(&clock),
            log,
            budget,
            rate: config.snapshot_rate_bytes,
            readers: Readers::default(),
            modules: Arc::clone(&store) as _,
        };
        let (mut opened, mut unusable, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for spec in &config.groups {
            let state = recovered.remove(&GroupId::of_name(&spec.name));
            let module = &modules[&spec.name];
            let dir = snapshot_dir_of_group(&*fs, config, spec, &mut data, state.as_ref());
            let space = nearest_space(&*fs, dir.path())?;
            let cap = spec.snapshot_cap.map_or(u64::MAX, |share| share.of(space.total));
            let mut group = group_config(spec, config, &**module);
            group.snapshots_share_log_disk = space.device == disk.device;
            shares.push(sizing::Share::of(&group, state.as_ref()));
            let place = start::Place { dir, cap };
            match start::open(&shared, group, place, state)? {
                Started::Opened(group) => opened.push(*group),
                Started::Unusable(handle) => unusable.push(handle),
            }
        }
        sizing::tell_if_too_small(data.path(), disk, config.log_segment_bytes, &shares);
        for left in recovered.values() {
            tracing::warn!(
                group = left.state.group,
                "the log has a group that is not configured: it is kept, but not run"
            );
        }
        drop(shared);
        let metrics = Arc::clone(&ports.metrics);
        let node = Self::run(config, data, ports, opened, unusable, store, log_thread);
        let (router, closing) = (node.router.clone(), node.closing.subscribe());
        metrics.started(Sources { router, clock, log: log_times, closing });
        if config.scrub_seconds > 0 {
            let groups: Vec<GroupHandle> = node.router.groups().cloned().collect();
            let every = Duration::from_secs(config.scrub_seconds);
            scrub::start(groups, log_reader, every, node.stop.subscribe());
        }
        Ok(node)
    }

    fn run(
        config: &NodeConfig,
        data: DataDir,
        ports: Ports,
        opened: Vec<Opened>,
        unusable: Vec<GroupHandle>,
        modules: Arc<ModuleStore>,
        log_thread: JoinHandle<()>,
    ) -> Self {
        let handles: Vec<GroupHandle> = opened.iter().map(|group| group.handle.clone()).collect();
        let all = handles.iter().cloned().chain(unusable);
        let addresses =
            Addresses { peers: config.nodes.clone(), advertised: config.clients.advertise.clone() };
        let router = Router::new(config.node, all, addresses);
        modules.fetch_with(rpc::modules::fetch(&modules, &router));
        let hello = HelloInfo {
            cluster: config.cluster_id(),
            cluster_name: config.cluster.clone(),
            node: config.node,
            nodes: config.nodes.keys().copied().collect(),
            versions: PeerVersions::OURS,
        };
        let lost = handles;
        let transport = Arc::new(GrpcTransport::start(
            hello.clone(),
            &config.nodes,
            Arc::new(move |node: NodeId| {
                lost.iter().for_each(|group| group.raise(Event::Unreachable(node)));
            }),
        ));
        let mut inboxes = BTreeMap::new();
        let mut threads = vec![log_thread];
        let mut actors = Vec::new();
        let mut starting = Vec::new();
        for mut group in opened {
            inboxes.insert(group.handle.id(), group.take_inbox());
            starting.push(group);
        }
        let (closing, closed) = watch::channel(false);
        let services = Services {
            closing: closed,
            router: router.clone(),
            modules,
            inbox: Arc::new(Inboxes(inboxes)),
            hello,
            transport: Arc::clone(&transport),
        };
        let Ports { front, listening, stop, .. } = ports;
        front.offer(services);
        for group in starting {
            let (actor, lanes) = group.run(Arc::clone(&transport) as _);
            actors.push(actor);
            threads.extend(lanes);
        }
        Self { router, listening, closing, stop, front, actors, threads, _data: data }
    }

    pub fn router(&self) -> &Router {
        &self.router
    }

    pub fn listening(&self) -> SocketAddr {
        self.listening
    }

    /// Stops the node: it refuses new requests, hands leadership over, stops serving its peers and
    /// waits for its lanes, each step for a bounded time.
    pub async fn stop(self) {
        self.closing.send_replace(true);
        let deadline = tokio::time::Instant::now() + HAND_OVER_MAX;
        let all_stopped = || self.router.groups().all(|group| group.watch().borrow().is_stopped());
        while !all_stopped() && tokio::time::Instant::now() < deadline {
            self.router.groups().for_each(|group| group.raise(Event::HandOver));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(DRAIN_MAX, self.front.close()).await;
        for actor in &self.actors {
            actor.abort();
        }
        drop(self.router);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in self.threads {
                let _ = thread.join();
            }
        });
        if tokio::time::timeout(DRAIN_MAX, joined).await.is_err() {
            tracing::warn!(
                "some threads did not end in time; unfinished work is recovered at the next start"
            );
        }
    }
}

/// Opens the log, and records in the data directory that there is one.
fn open_log(
    fs: &Arc<dyn Fs>,
    config: &NodeConfig,
    data: &mut DataDir,
) -> Result<(Wal, BTreeMap<GroupId, RecoveredGroup>), StartError> {
    let segment_bytes = config.log_segment_bytes;
    let options = WalOptions::new(config.cluster_id(), config.node, segment_bytes, entropy());
    let open = || Wal::open(Arc::clone(fs), &data.wal(), options);
    let (wal, recovered) = once_there_is_space(WalError::is_short, open)?;
    tell_promise(&**fs, &wal);
    once_there_is_space(DataDirError::is_short, || data.log_begun(&**fs))?;
    Ok((wal, recovered))
}

/// Logs whether the filesystem lets the log write on when the disk is full.
fn tell_promise(fs: &dyn Fs, wal: &Wal) {
    match fs.promise(&wal.active_path()) {
        Ok(Promise { filesystem, in_place: true }) => tracing::info!(
            filesystem,
            "the log is overwritten in place: on a full disk, writes under way still complete"
        ),
        Ok(Promise { filesystem, in_place: false }) => tracing::warn!(
            filesystem,
            "this filesystem may lack the space that the log has reserved: on a full disk, writes \
            may have to wait before a shortage is reported"
        ),
        Err(error) => {
            tracing::warn!(%error, "cannot find out whether the log's filesystem keeps reserved \
                space")
        }
    }
}

/// Routes offers to groups.
struct Inboxes(BTreeMap<GroupId, GroupInbox>);

impl SnapshotInbox for Inboxes {
    fn begin(
        &self,
        group: GroupId,
        offer: Offer,
        mut channel: Box<dyn BulkChannel<BulkReply, BulkRequest> + Send>,
    ) {
        match self.0.get(&group) {
            Some(inbox) => inbox.receive(&offer, &mut *channel),
            // Tells the peer why. If the channel is gone, the peer notices that without a reply.
            None => drop(channel.send(BulkReply::WrongGroup)),
        }
    }
}

fn space(fs: &dyn Fs, dir: &Path) -> Result<Space, StartError> {
    fs.space(dir).map_err(|source| StartError::Space { dir: dir.to_owned(), source })
}

fn start_log(wal: Wal, data: &DataDir) -> Result<(LogLane, JoinHandle<()>), StartError> {
    LogLane::start(wal, &data.wal()).map_err(|source| thread("log lane", source))
}

/// The space of the filesystem where `dir` will be.
fn nearest_space(fs: &dyn Fs, dir: &Path) -> Result<Space, StartError> {
    let there = dir.ancestors().find(|dir| matches!(fs.exists(dir), Ok(true)));
    space(fs, there.unwrap_or(Path::new("/")))
}

/// Where a group's snapshots lie. A directory outside of the data directory is recorded as this
/// node's.
fn snapshot_dir_of_group(
    fs: &dyn Fs,
    config: &NodeConfig,
    spec: &GroupSpec,
    data: &mut DataDir,
    known: Option<&RecoveredGroup>,
) -> SnapshotDir {
    let Some(dir) = spec.snapshot_dir.clone() else {
        return SnapshotDir::Usable(snapshot_dir(data.path(), &spec.name));
    };
    let listed = known.iter().flat_map(|group| &group.state.snapshots);
    let listed: Vec<String> = listed.map(|desc| ObjectName::of(desc).file()).collect();
    let take = || data.take_snapshots(fs, config, &spec.name, &dir, &listed);
    match once_there_is_space(SnapshotDirError::is_short, take) {
        Ok(()) => SnapshotDir::Usable(dir),
        Err(error) if error.is_full() => {
            tracing::warn!(group = spec.name, %error, "snapshots wait for space; the next start \
                makes the directory this node's");
            SnapshotDir::Usable(dir)
        }
        Err(error) => SnapshotDir::Unusable { dir, why: error.to_string() },
    }
}

/// Serves metrics from the first moment of a start.
fn serve_metrics(listener: TcpListener, all: Arc<NodeMetrics>, mut stopped: watch::Receiver<bool>) {
    let until = async move { drop(stopped.wait_for(|stop| *stop).await) };
    tokio::spawn(async move {
        if let Err(error) = metrics::serve::serve(listener, all, until).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
}

async fn listen(address: &str, key: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen {
        address: address.to_owned(),
        key,
        source,
    })
}

/// The other nodes' addresses.
fn peers_of(config: &NodeConfig) -> BTreeMap<NodeId, String> {
    let peers = config.nodes.iter().filter(|(node, _)| **node != config.node);
    peers.map(|(node, address)| (*node, address.clone())).collect()
}

/// Warns of an address that other machines cannot reach. Names may take long to resolve, so nothing
/// waits for this.
async fn tell_if_out_of_reach(
    listen: String,
    bound: SocketAddr,
    addresses: BTreeMap<NodeId, String>,
) {
    let mut peers = BTreeMap::new();
    for (node, address) in addresses {
        // A name that is not found is reported when the node connects to it.
        let found = tokio::net::lookup_host(address).await;
        peers.insert(node, found.map(Iterator::collect).unwrap_or_default());
    }
    if let Some(why) = out_of_reach(&listen, bound, &peers) {
        tracing::warn!("{why}");
    }
}

fn budget_limits(config: &NodeConfig, disk: Space) -> BudgetLimits {
    BudgetLimits {
        bytes: config.snapshot_budget.map_or(u64::MAX, |share| share.of(disk.total)),
        headroom_bytes: config.log_segment_bytes,
        log_device: Some(disk.device),
        inbound: INBOUND_MAX,
        outbound: OUTBOUND_MAX,
        captures: CAPTURES_MAX,
        restores: RESTORES_MAX,
    }
}

/// Uses the socket, which already listens, or listens on the address.
async fn listen_on(
    socket: Option<std::net::TcpListener>,
    address: &str,
) -> Result<TcpListener, StartError> {
    let Some(socket) = socket else { return listen(address, "listen").await };
    let taken = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
    let (address, key) = (address.to_owned(), "listen");
    taken.map_err(|source| StartError::Listen { address, key, source })
}

fn group_config(spec: &GroupSpec, config: &NodeConfig, module: &dyn GuestModule) -> GroupConfig {
    GroupConfig {
        name: spec.name.clone(),
        node: config.node,
        nodes: spec.nodes.clone(),
        module: module.id(),
        lineage: spec.lineage,
        guest_config: spec.config.clone().into(),
        profile: spec.limits.profile(&spec.module, module.engine_major()),
        snapshot_policy: spec.snapshot_policy,
        snapshots_share_log_disk: true,
        seed: entropy(),
        nonce: entropy(),
    }
}

/// Randomness from the system, for ids and nonces.
pub(crate) fn entropy() -> u64 {
    getrandom::u64().expect("the system gives randomness")
}

fn load_module(
    spec: &GroupSpec,
    loaded: &BTreeMap<String, Module>,
    config: &NodeConfig,
) -> Result<(Module, Option<Vec<u8>>), StartError> {
    // Groups with the same module share it.
    let same = config.groups.iter().find(|other| other.module == spec.module);
    if let Some(module) = same.and_then(|other| loaded.get(&other.name)) {
        return Ok((Arc::clone(module), None));
    }
    match &spec.module {
        ModuleSource::File(path) => {
            let (group, path) = (spec.name.clone(), path.clone());
            let read = read_component(&DiskFs, &path);
            let compile = |bytes: Vec<u8>| compile_component(&bytes).map(|module| (module, bytes));
            match read.map(|read| read.and_then(compile)) {
                Ok(Ok((module, bytes))) => Ok((Arc::new(module), Some(bytes))),
                Ok(Err(why)) => Err(StartError::Module { group, path, why }),
                Err(source) => Err(StartError::ModuleFile { group, path, source }),
            }
        }
        ModuleSource::Native(name) => match native(name) {
            Some(module) => Ok((module, None)),
            None => Err(StartError::NativeModule { group: spec.name.clone(), name: name.clone() }),
        },
    }
}

fn native(name: &str) -> Option<Module> {
    Some(match name.split_once(':') {
        None if name == "hash-chain" => Arc::new(NativeModule::hash_chain()),
        None if name == "register" => Arc::new(NativeModule::register()),
        Some(("ballast", bytes)) => Arc::new(NativeModule::ballast(bytes.parse().ok()?)),
        None | Some(_) => return None,
    })
}

/// Reads a component; a file over the limit is not even read.
pub(crate) fn read_component(
    fs: &dyn Fs,
    path: &Path,
) -> std::io::Result<Result<Vec<u8>, ModuleRefusal>> {
    let file = fs.open(path, false)?;
    let bytes = file.len()?;
    if bytes > limits::MODULE_BYTES_MAX as u64 {
        return Ok(Err(ModuleRefusal::TooLarge { bytes }));
    }
    let mut component = vec![0; bytes as usize];
    crate::fs::read_exact_at(&*file, &mut component, 0)?;
    Ok(Ok(component))
}

/// Compiles a component, or takes its code from this user's cache.
pub(crate) fn compile_component(component: &[u8]) -> Result<ComponentModule, ModuleRefusal> {
    ComponentModule::load_with(component, CodeCache::of_user().as_ref())
}

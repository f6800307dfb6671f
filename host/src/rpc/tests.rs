//! Ports with real clients and peers, but with groups that answer by a script instead of by raft.
//!
//! All nodes of a test share one [`Machine`], which records what was applied on any of them.

mod calls;
mod commands;
mod crowds;
mod forwards;
mod hostile;
mod peers;
mod raw;
mod streams;
mod watches;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_client::{Client, Options};
use lockstep_core::apply::Answer;
use lockstep_core::entry::Call;
use lockstep_core::fault::{Refusal, Rejection};
use lockstep_core::group::{GroupStatus, Inbound, ReplicaState, Role, Running};
use lockstep_core::ids::{GroupId, Lineage, ModuleId, NodeId, ReplicaId};
use lockstep_core::limits;
use lockstep_core::snapshot::Configuration;
use lockstep_core::snapshot::chunk::Offer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::fs::mem::MemFs;
use crate::group::line::Reply;
use crate::group::mailbox::{Mailbox, Request};
use crate::group::{GroupHandle, GroupReport, QueryAnswer};
use crate::modules::ModuleStore;
use crate::router::{Addresses, Router};
use crate::rpc::HelloInfo;
use crate::rpc::peer_api::{Inbox, SnapshotInbox};
use crate::rpc::peer_link::GrpcTransport;
use crate::rpc::port::{PortLimits, PortState};
use crate::rpc::server::{Front, Services};
use crate::rpc::versions::PeerVersions;

const GROUP: &str = "bank";
/// How long a test waits before it counts as hanging.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The group that all nodes share: what it has applied, and how it is to answer.
#[derive(Default)]
struct Machine {
    leader: Option<NodeId>,
    /// (session, sequence, command) of each applied command, in order.
    applied: Vec<(u64, u64, Bytes)>,
    outcomes: BTreeMap<(u64, u64), Bytes>,
    sessions: BTreeSet<u64>,
    /// No session is opened before this time.
    opens_from: Option<Instant>,
    /// How many sessions were ever opened.
    opened: u64,
    /// Most sessions at a time, if they are bounded.
    sessions_max: Option<usize>,
    /// What happens to the next commands at the leader; later ones are applied.
    script: VecDeque<Turn>,
    /// The highest `lowest_unanswered` that the leader received.
    lowest_seen: u64,
    /// While a test holds commands back: those that wait.
    held: Option<Vec<(Call, Reply)>>,
}

/// What happens to one command.
#[derive(Clone, Copy)]
enum Turn {
    /// Applied, then this node becomes the leader, and the outcome is told to be unknown.
    AppliedThenLeads(u16),
    /// Applied, but the outcome is told to be unknown.
    AppliedUnknown,
    /// Not applied.
    Refused(fn() -> Refusal),
    /// Applied, but never answered.
    Silence,
}

/// A handle to the machine that all nodes share.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Machine>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Applies the commands that were held back, and holds none back from now on.
    fn release(&self) {
        let held = self.lock().held.take().unwrap_or_default();
        for (call, answer) in held {
            let applied = self.lock().apply(&call);
            answer.send(Ok(applied));
        }
    }

    /// How often each command was applied.
    fn counts(&self) -> BTreeMap<Bytes, usize> {
        let mut counts = BTreeMap::new();
        for (_, _, command) in &self.lock().applied {
            *counts.entry(command.clone()).or_default() += 1;
        }
        counts
    }
}

impl Machine {
    fn apply(&mut self, call: &Call) -> Answer {
        let key = (call.session, call.sequence);
        self.lowest_seen = self.lowest_seen.max(call.lowest_unanswered);
        if call.session != 0 && !self.sessions.contains(&call.session) {
            return Answer::Rejected(Rejection::SessionExpired);
        }
        if call.session != 0
            && let Some(first) = self.outcomes.get(&key)
        {
            return Answer::Ok(first.clone());
        }
        if call.payload.starts_with(b"bad") {
            return Answer::Rejected(Rejection::Guest(Bytes::from_static(b"no")));
        }
        self.applied.push((call.session, call.sequence, call.payload.clone()));
        let outcome = if call.payload.starts_with(b"big") {
            Bytes::from(vec![b'#'; limits::OUTCOME_BYTES_MAX])
        } else {
            Bytes::from(format!("#{}", self.applied.len()))
        };
        self.outcomes.insert(key, outcome.clone());
        Answer::Ok(outcome)
    }
}

/// Plays the group's actor on one node.
async fn play(node: NodeId, handle: GroupHandle, mut mailbox: Mailbox, shared: Shared) {
    let mut silent = Vec::new();
    while let Some(request) = mailbox.requests.recv().await {
        handle.took_request(&request);
        if let Request::Propose { answer, .. } = &request
            && let Some(refusal) = answer.refusal()
        {
            request.refuse(refusal);
            continue;
        }
        let mut machine = shared.lock();
        let not_leader = Refusal::NotLeader { leader: machine.leader };
        let leads = machine.leader == Some(node);
        match request {
            Request::Propose { call, answer, .. } if leads && machine.held.is_some() => {
                let held = machine.held.get_or_insert_default();
                let bytes: usize = held.iter().map(|(call, _)| call.payload.len()).sum();
                if bytes + call.payload.len() > limits::PROPOSALS_WAITING_BYTES_MAX {
                    answer.send(Err(Refusal::Overloaded));
                } else {
                    held.push((call, answer));
                }
            }
            Request::Propose { call, answer, .. } if leads => {
                propose(&mut machine, &call, answer, &mut silent);
            }
            Request::OpenSession { nonce: _, answer }
                if leads && machine.opens_from.is_some_and(|from| Instant::now() < from) =>
            {
                answer.send(Err(Refusal::Lost));
            }
            Request::OpenSession { nonce: _, answer }
                if leads && machine.sessions_max.is_some_and(|m| m <= machine.sessions.len()) =>
            {
                answer.send(Ok(Answer::Rejected(Rejection::TooManySessions)));
            }
            Request::OpenSession { nonce: _, answer } if leads => {
                machine.opened += 1;
                let id = 99 + machine.opened;
                machine.sessions.insert(id);
                answer.send(Ok(Answer::Opened(id)));
            }
            Request::CloseSession { session, answer } if leads => {
                machine.sessions.remove(&session);
                answer.send(Ok(Answer::Ok(Bytes::new())));
            }
            Request::Propose { answer, .. }
            | Request::OpenSession { answer, .. }
            | Request::CloseSession { answer, .. } => {
                answer.send(Err(not_leader));
            }
            Request::Checkpoint { answer } | Request::Order { answer, .. } => {
                let index = machine.applied.len() as u64;
                let _ = answer.send(if leads { Ok(index) } else { Err(not_leader) });
            }
            Request::Report { .. } | Request::Entry { .. } | Request::Repair { .. } => {}
            Request::Query { request, linearizable, asker, answer } => {
                let result = match &request[..] {
                    [b'b', b'a', b'd', ..] => Err(Bytes::from_static(b"no")),
                    b"asker" => Ok(Bytes::from(asker.0.to_string())),
                    _ => Ok(Bytes::from(format!("{node}"))),
                };
                let reply =
                    QueryAnswer { result, applied: machine.applied.len() as u64, halted: None };
                let _ =
                    answer.send(if leads || !linearizable { Ok(reply) } else { Err(not_leader) });
            }
        }
    }
}

fn propose(machine: &mut Machine, call: &Call, answer: Reply, silent: &mut Vec<Reply>) {
    let said = match machine.script.pop_front() {
        None => Ok(machine.apply(call)),
        Some(Turn::Refused(refusal)) => Err(refusal()),
        Some(Turn::AppliedUnknown) => {
            machine.apply(call);
            Err(Refusal::Unknown { why: "leadership was lost".to_owned() })
        }
        Some(Turn::AppliedThenLeads(node)) => {
            machine.apply(call);
            machine.leader = Some(NodeId(node));
            Err(Refusal::Unknown { why: "leadership was lost".to_owned() })
        }
        Some(Turn::Silence) => {
            machine.apply(call);
            return silent.push(answer);
        }
    };
    answer.send(said);
}

/// One node: a port with one group.
struct Node {
    address: String,
    handle: GroupHandle,
    frames: mpsc::UnboundedReceiver<Inbound>,
    port: Arc<PortState>,
    closing: watch::Sender<bool>,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

/// How a test sets up a node.
struct Setup {
    node: NodeId,
    cluster: u8,
    lineage: Option<Lineage>,
    nodes: BTreeMap<NodeId, String>,
    advertised: BTreeMap<NodeId, String>,
    inbox: Arc<dyn SnapshotInbox>,
    limits: PortLimits,
    versions: PeerVersions,
    /// Whether the node connects to the others.
    linked: bool,
}

impl Setup {
    fn hello(&self) -> HelloInfo {
        let hello = Self::hello_of(self.cluster, self.node.0, &self.nodes);
        HelloInfo { versions: self.versions, ..hello }
    }

    /// What a node of these says of itself.
    fn hello_of(cluster: u8, node: u16, nodes: &BTreeMap<NodeId, String>) -> HelloInfo {
        HelloInfo {
            cluster: [cluster; 16],
            cluster_name: format!("cluster {cluster}"),
            node: NodeId(node),
            nodes: nodes.keys().copied().collect(),
            versions: PeerVersions::OURS,
        }
    }
}

/// An inbox that drops every offer.
struct NoInbox;

impl SnapshotInbox for NoInbox {
    fn begin(&self, _group: GroupId, _offer: Offer, _channel: Inbox) {}
}

pub(super) fn report(node: NodeId) -> GroupReport {
    let status = GroupStatus {
        name: GROUP.to_owned(),
        module: ModuleId([8; 32]),
        previous_module: None,
        upgrade: None,
        node,
        replica: ReplicaId::new(node, 1),
        boot: 1,
        lineage: None,
        strangers: Vec::new(),
        state: ReplicaState::Running(Running::Serving),
        role: Role::Follower,
        leader: None,
        term: 2,
        commit: 3,
        applied: 3,
        first_index: 1,
        last_index: 4,
        snapshots: Vec::new(),
        configuration: Configuration::default(),
        peers: Vec::new(),
        reluctant: false,
        clock_is_off: false,
        log_time_ms: 0,
        log_time_ahead_ms: 0,
        wakes_at_ms: None,
        checkpoints_skipped: 0,
        captures_failed: 0,
        capture_failure: None,
        log_pin: None,
        shortage: None,
        memory: None,
        relief_commands: 0,
        rebuilds: Default::default(),
        corrupt: Vec::new(),
        wanted: None,
        alarms: 0,
        alarm: None,
        unheard: Vec::new(),
        leaderless_ticks: 0,
        leader_changes: 0,
        frames_misdirected: 0,
    };
    GroupReport::blank(status)
}

impl Node {
    fn start(setup: Setup, listener: TcpListener, shared: Shared) -> Self {
        let address = setup.nodes[&setup.node].clone();
        let (state_in, state) = watch::channel(ReplicaState::Running(Running::Serving));
        let mut report = report(setup.node);
        report.status.lineage = setup.lineage;
        report.status.leader = shared.lock().leader.map(|leader| ReplicaId::new(leader, 1));
        let (report_in, report) = watch::channel(report);
        let (handle, mut mailbox) = GroupHandle::new(GroupId::of_name(GROUP), GROUP, state, report);
        let (frames_in, frames) = mpsc::unbounded_channel();
        let (_, none) = mpsc::channel(1);
        let mut inward = std::mem::replace(&mut mailbox.frames, none);
        tokio::spawn(async move {
            while let Some(inbound) = inward.recv().await {
                let _ = frames_in.send(inbound);
            }
            drop((state_in, report_in));
        });
        tokio::spawn(play(setup.node, handle.clone(), mailbox, shared));
        let hello = setup.hello();
        let (closing, closed) = watch::channel(false);
        let port = PortState::new(setup.limits, 2);
        let links = if setup.linked { setup.nodes.clone() } else { BTreeMap::new() };
        let addresses = Addresses { peers: setup.nodes, advertised: setup.advertised };
        let services = Services {
            closing: closed,
            modules: Arc::new(ModuleStore::open(
                Arc::new(MemFs::with_dir(Path::new("/data"))),
                Path::new("/data"),
                [],
            )),
            router: Router::new(setup.node, [handle.clone()], addresses),
            inbox: setup.inbox,
            transport: Arc::new(GrpcTransport::start(hello.clone(), &links, Arc::new(|_| {}))),
            hello,
        };
        let (stop, stopped) = oneshot::channel();
        let state = Arc::clone(&port);
        let served = tokio::spawn(async move {
            let stopped = async move {
                let _ = stopped.await;
            };
            let front = Front::open(listener, state).await.expect("the port opens");
            front.offer(services);
            stopped.await;
            front.close().await;
        });
        Self { address, handle, frames, port, closing, stop, served }
    }

    async fn stop(self) {
        self.closing.send_replace(true);
        let _ = self.stop.send(());
        self.served.await.expect("the server does not panic");
    }
}

/// Starts a cluster of `count` nodes whose leader is node 1.
async fn cluster(count: u16) -> (Vec<Node>, Shared) {
    cluster_with(count, PortLimits::default()).await
}

async fn cluster_with(count: u16, limits: PortLimits) -> (Vec<Node>, Shared) {
    cluster_at(count, limits, &[]).await
}

/// Starts a cluster that advertises these addresses of nodes to its clients.
async fn cluster_at(
    count: u16,
    limits: PortLimits,
    advertised: &[(u16, &str)],
) -> (Vec<Node>, Shared) {
    let told = advertised.iter().map(|(node, at)| (NodeId(*node), (*at).to_owned()));
    let advertised: BTreeMap<NodeId, String> = told.collect();
    let mut listeners = Vec::new();
    let mut nodes = BTreeMap::new();
    for id in 1..=count {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        nodes.insert(NodeId(id), address);
        listeners.push(listener);
    }
    let shared = Shared::default();
    shared.lock().leader = Some(NodeId(1));
    let started = listeners.into_iter().zip(1..).map(|(listener, id)| {
        let node = NodeId(id);
        let inbox = Arc::new(NoInbox);
        let (nodes, versions) = (nodes.clone(), PeerVersions::OURS);
        let advertised = advertised.clone();
        let (cluster, lineage, linked) = (1, None, false);
        let setup =
            Setup { node, cluster, lineage, nodes, advertised, inbox, limits, versions, linked };
        Node::start(setup, listener, shared.clone())
    });
    (started.collect(), shared)
}

fn client_of(nodes: &[&Node]) -> Client {
    let endpoints = nodes.iter().map(|node| node.address.clone());
    let options = Options { group: GROUP.to_owned(), ..Options::default() };
    Client::connect(endpoints, options).expect("good endpoints")
}

async fn patiently<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_elapsed) => panic!("{what}: nothing happens"),
    }
}

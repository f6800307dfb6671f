//! The scheduler: simulated time, one queue of actions, and the phases of a run.
//!
//! *Safety*: faults strike until the run has had enough events and acknowledged operations. *Heal*:
//! all faults end. *Liveness*: within a bounded time all replicas serve and agree. At the end
//! everything is checked once more.

use std::collections::BTreeMap;

use lockstep_core::group::{Event, Frame, Inbound, ReplicaState, Running};
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::snapshot::SnapshotDesc;

use crate::check::{Checked, Checks, Violation, idle, violated};
use crate::client::{Client, Record};
use crate::counters::Counters;
use crate::guest::SharedObserved;
use crate::network::Network;
use crate::node::{Node, StoreHang};
use crate::operator;
use crate::rng::Rng;
use crate::setup::Setup;
use crate::transfer::Transfer;

/// Microseconds of simulated time.
pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000 * MS;
/// A seed with fewer events, or fewer acknowledged operations, does not count.
pub const EVENTS_MIN: u64 = 20_000;
pub const ACKNOWLEDGED_MIN: u64 = 500;
/// Faults strike for at least this long.
const SAFETY_MIN: u64 = 150 * SECOND;
/// A run without enough events and operations after this time counts as stuck.
const SAFETY_MAX: u64 = 3_600 * SECOND;
/// Ticks (of 100 ms) within which a healed cluster must serve and agree.
pub const CONVERGE_TICKS: u64 = 1_500;

/// One step of a run, scheduled for some time.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a capture is rare, and moved once")]
pub enum Action {
    Tick {
        node: NodeId,
    },
    Deliver {
        to: NodeId,
        inbound: Box<Inbound>,
    },
    Log {
        node: NodeId,
        epoch: u64,
    },
    Apply {
        node: NodeId,
        epoch: u64,
        group: GroupId,
    },
    Event {
        node: NodeId,
        epoch: u64,
        group: GroupId,
        event: Box<Event>,
    },
    Fetch {
        node: NodeId,
        epoch: u64,
        group: GroupId,
        from: u64,
        to: u64,
        bytes: u64,
    },
    Seal {
        node: NodeId,
        epoch: u64,
        group: GroupId,
        capture: Captured,
    },
    Store {
        node: NodeId,
        epoch: u64,
        group: GroupId,
    },
    Prove {
        node: NodeId,
        epoch: u64,
        group: GroupId,
        snapshot: SnapshotDesc,
    },
    Bulk {
        transfer: u64,
        to_receiver: bool,
    },
    BulkTick {
        transfer: u64,
    },
    Report {
        transfer: u64,
        node: NodeId,
        epoch: u64,
        group: GroupId,
        event: Box<Event>,
    },
    Trouble {
        transfer: u64,
    },
    Client {
        client: usize,
    },
    Timeout {
        client: usize,
        attempt: u64,
    },
    Fault,
    Start {
        node: NodeId,
    },
    Mend {
        what: Mend,
    },
    Look,
    /// The operator looks at the groups.
    Operate,
    /// The state of a guest on this node goes astray.
    Stray {
        node: NodeId,
    },
    /// A node's scrubber reads everything on its disk.
    Scrub {
        node: NodeId,
    },
}

/// A capture that is written and waits to be sealed.
pub struct Captured(pub lockstep_host::group::apply_lane::Capture);

impl std::fmt::Debug for Captured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Captured")
    }
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub enum Mend {
    Links,
    Weather,
    Disk(NodeId),
    Clock(NodeId),
    /// The disk of the log answers again.
    Hang(NodeId),
    /// The separate disk of snapshots answers again.
    StoreHang(NodeId),
    /// The process can open files again.
    Descriptors(NodeId),
}

pub struct World {
    pub seed: u64,
    pub setup: Setup,
    pub now: u64,
    pub rng: Rng,
    queue: BTreeMap<(u64, u64), Action>,
    order: u64,
    pub nodes: BTreeMap<NodeId, Node>,
    pub network: Network,
    pub clients: Vec<Client>,
    pub records: Vec<Record>,
    pub transfers: BTreeMap<u64, Transfer>,
    pub observed: SharedObserved,
    pub checks: Checks,
    pub counters: Counters,
    pub events: u64,
    /// The last id given to a process or a transfer.
    pub ids: u64,
    pub trace: u64,
    pub calm: bool,
    /// Some state went astray: snapshots may differ.
    pub strayed: bool,
    /// The first property that did not hold.
    pub violation: Option<Violation>,
    /// The next transfer that begins will be cut or stalled.
    pub ambush: bool,
    /// Print every action.
    pub verbose: bool,
    /// Nodes 1 to this are members of the groups.
    pub members: u16,
    /// How often `look` has run.
    pub looks: u64,
    /// What a crash keeps of unsynced writes, if that is not drawn: `Some(None)` keeps nothing,
    /// `Some(Some(seed))` the part that the seed chooses.
    pub keep: Option<Option<u64>>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let setup = Setup::drawn(seed, &mut rng);
        Self::of(seed, rng, setup)
    }

    /// A world with this setup instead of the one that the seed would draw.
    pub fn with_setup(seed: u64, setup: Setup) -> Self {
        Self::of(seed, Rng::new(seed), setup)
    }

    fn of(seed: u64, rng: Rng, setup: Setup) -> Self {
        let nodes =
            (1..=setup.nodes).map(|id| (NodeId(id), Node::new(NodeId(id), &setup))).collect();
        let mut world = Self {
            seed,
            now: 1_000 * SECOND,
            queue: BTreeMap::new(),
            order: 0,
            nodes,
            network: Network::default(),
            clients: Vec::new(),
            records: Vec::new(),
            transfers: BTreeMap::new(),
            observed: SharedObserved::default(),
            checks: Checks::default(),
            counters: Counters::default(),
            events: 0,
            ids: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            calm: false,
            strayed: false,
            violation: None,
            ambush: false,
            verbose: false,
            keep: None,
            members: setup.initial_voters,
            looks: 0,
            setup,
            rng,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        match self.members {
            1 => self.counters.add("groups of one"),
            2 => self.counters.add("groups of two"),
            _more => {}
        }
        if self.setup.groups.len() > 2 {
            self.counters.add("disks with many groups");
        }
        if self.setup.cap_bytes < u64::MAX {
            self.counters.add("groups with a cap");
        }
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in &ids {
            let late = self.rng.below(3 * SECOND);
            if node.0 <= self.members {
                self.after(late, Action::Start { node: *node });
            }
            let scrub = self.rng.between(20 * SECOND, 60 * SECOND);
            self.after(scrub, Action::Scrub { node: *node });
            let phase = self.rng.below(100 * MS);
            self.after(phase, Action::Tick { node: *node });
        }
        let groups: Vec<GroupId> =
            self.setup.groups.iter().map(|name| GroupId::of_name(name)).collect();
        for number in 0..6 {
            let group = groups[number % groups.len()];
            let target = *self.rng.pick(&self.member_ids());
            let rng = self.rng.fork();
            // Every third client of a group has no session.
            let plain = number / groups.len() % 3 == 2;
            self.clients.push(Client::new(group, target, rng, plain, self.setup.command_bytes));
            self.after(5 * SECOND, Action::Client { client: number });
        }
        self.after(8 * SECOND, Action::Fault);
        self.after(SECOND, Action::Look);
        self.after(operator::FIRST, Action::Operate);
        for _ in 0..self.setup.strays {
            let node = *self.rng.pick(&ids);
            let at = self.rng.between(9 * SECOND, 60 * SECOND);
            self.after(at, Action::Stray { node });
        }
    }

    /// The whole run.
    pub fn run(&mut self) -> Result<(), Violation> {
        let until = self.now + SAFETY_MAX;
        let least = self.now + SAFETY_MIN;
        while self.events < EVENTS_MIN || self.acknowledged() < ACKNOWLEDGED_MIN || self.now < least
        {
            if self.now > until {
                let what = format!("too little happened in a simulated hour: {}", self.describe());
                return violated("liveness", what);
            }
            self.step()?;
        }
        self.heal();
        self.converge()?;
        self.finish()
    }

    pub fn member_ids(&self) -> Vec<NodeId> {
        (1..=self.members).map(NodeId).collect()
    }

    pub fn acknowledged(&self) -> u64 {
        self.counters.get("acknowledged")
    }

    pub(crate) fn step(&mut self) -> Checked {
        let Some(((at, _), action)) = self.queue.pop_first() else {
            return violated("liveness", "no action is scheduled any more");
        };
        self.now = self.now.max(at);
        self.events += 1;
        self.note(&action);
        self.act(action);
        match self.violation.take() {
            None => Ok(()),
            Some(violation) => Err(violation),
        }
    }

    pub fn after(&mut self, delay: u64, action: Action) {
        self.at(self.now + delay, action);
    }

    pub fn at(&mut self, time: u64, action: Action) {
        self.order += 1;
        self.queue.insert((time, self.order), action);
    }

    /// Remembers the first violation.
    pub fn check(&mut self, checked: Checked) {
        if let Err(violation) = checked {
            self.violation.get_or_insert(violation);
        }
    }

    /// Mixes an action into the hash of the trace.
    fn note(&mut self, action: &Action) {
        let (kind, node, more): (u64, u64, u64) = match action {
            Action::Tick { node } => (1, node.0.into(), 0),
            Action::Deliver { to, inbound } => (2, to.0.into(), frame_checkpoint(&inbound.frame)),
            Action::Log { node, epoch } => (3, node.0.into(), *epoch),
            Action::Apply { node, group, .. } => (4, node.0.into(), group.0),
            Action::Event { node, group, .. } => (5, node.0.into(), group.0),
            Action::Fetch { node, from, .. } => (6, node.0.into(), *from),
            Action::Seal { node, group, .. } => (7, node.0.into(), group.0),
            Action::Bulk { transfer, to_receiver } => (8, *transfer, u64::from(*to_receiver)),
            Action::BulkTick { transfer } => (9, *transfer, 0),
            Action::Report { transfer, .. } => (10, *transfer, 0),
            Action::Trouble { transfer } => (17, *transfer, 0),
            Action::Client { client } => (11, *client as u64, 0),
            Action::Timeout { client, attempt } => (12, *client as u64, *attempt),
            Action::Fault => (13, 0, 0),
            Action::Start { node } => (14, node.0.into(), 0),
            Action::Mend { .. } => (15, 0, 0),
            Action::Look => (16, 0, 0),
            Action::Operate => (21, 0, 0),
            Action::Stray { node } => (22, node.0.into(), 0),
            Action::Scrub { node } => (18, node.0.into(), 0),
            Action::Prove { node, group, .. } => (19, node.0.into(), group.0),
            Action::Store { node, group, .. } => (20, node.0.into(), group.0),
        };
        for word in [self.now, kind, node, more] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01b3);
        }
        if self.verbose {
            eprintln!("{:>12} {action:?}", self.now);
        }
    }

    fn heal(&mut self) {
        self.calm = true;
        self.network.cut.clear();
        self.network.weather = Default::default();
        self.grow();
        let now = self.now;
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            let disk_bytes = self.setup.disk_bytes;
            let node = self.nodes.get_mut(&id).expect("a node");
            node.fs.heal();
            node.free_disk(disk_bytes, now);
            node.fs.set_descriptors(true);
            (node.clock_ms, node.drift, node.paused_until) = (0, 0, now);
            (node.unreadable, node.hangs_since, node.store_hangs) = (false, None, StoreHang::No);
            *node.traps.lock().expect("no panic holds it") = 0;
            *node.strays.lock().expect("no panic holds it") = 0;
            if node.process.is_none() {
                self.after(0, Action::Start { node: id });
            }
        }
        for transfer in self.transfers.values_mut() {
            transfer.stalled_until = now;
        }
    }

    /// Runs until all replicas serve and agree and each client has had one more operation served,
    /// which must not take longer than [`CONVERGE_TICKS`].
    pub(crate) fn converge(&mut self) -> Checked {
        let deadline = self.now + CONVERGE_TICKS * 100 * MS;
        for client in &mut self.clients {
            client.end();
        }
        let mut quiet_since = None;
        let mut before: Option<(u64, idle::Operations)> = None;
        while self.now < deadline {
            self.step()?;
            if !self.is_converged() {
                (quiet_since, before) = (None, None);
                continue;
            }
            let since = *quiet_since.get_or_insert(self.now);
            // Wait for everything that is under way to end.
            if self.now <= since + 10 * SECOND {
                continue;
            }
            let (looked, operations) = before.get_or_insert_with(|| (self.now, self.operations()));
            if self.now <= *looked + 5 * SECOND {
                continue;
            }
            // A log may still have old segments to clean.
            let rests = idle::rests(operations, &self.operations());
            if rests.is_ok() || self.now > since + 60 * SECOND {
                return rests;
            }
            before = None;
        }
        self.checks.reports.overdue(self.now)?;
        violated("liveness", self.describe())
    }

    fn operations(&self) -> idle::Operations {
        self.nodes.values().map(|node| (node.id, node.fs.ops())).collect()
    }

    fn is_converged(&self) -> bool {
        let groups: Vec<GroupId> = self.setup.groups.iter().map(|n| GroupId::of_name(n)).collect();
        self.clients.iter().all(Client::is_idle)
            && self.transfers.is_empty()
            && groups.into_iter().all(|group| self.agrees(group))
    }

    fn agrees(&self, group: GroupId) -> bool {
        let mut applied = Vec::new();
        for node in self.nodes.values() {
            let Some(process) = &node.process else { return false };
            // Corrupt objects must be repaired by now. A damaged log segment may still be there: it
            // is deleted when the log is cut.
            if node.rotted && node.corrupt_log.is_none() {
                return false;
            }
            let replica = &process.replicas[&group];
            let status = replica.group.status();
            // A replica in state memory high counts as serving: clients that it refuses send
            // commands that free memory.
            let high = matches!(status.state, ReplicaState::Running(Running::MemoryHigh(_)));
            let serves = high || status.state.refusal().is_none();
            if !serves || !replica.store.is_idle() || status.configuration.is_joint() {
                return false;
            }
            if status.configuration.voters.len() != usize::from(self.members) {
                return false;
            }
            // A deadline that was reached is one that nobody was woken at.
            if status.wakes_at_ms.is_some() {
                return false;
            }
            applied.push((status.applied, status.commit));
        }
        applied.iter().all(|(a, c)| a == c && *a == applied[0].0)
    }

    pub fn describe(&self) -> String {
        let mut text = "the cluster does not come to rest:".to_owned();
        for node in self.nodes.values() {
            match &node.process {
                None => text += &format!("\n  node {} is down", node.id),
                Some(process) => {
                    for replica in process.replicas.values() {
                        let s = replica.group.status();
                        text += &format!(
                            "\n  node {} {}: {:?} {:?} term {} log {}..{} commit {} applied {} \
                             snapshots {:?} voters {:?} learners {:?} cause {:?} peers {:?} wanted \
                             {:?} jobs {} {:?} {:?}",
                            node.id,
                            s.name,
                            s.role,
                            s.state.name(),
                            s.term,
                            s.first_index,
                            s.last_index,
                            s.commit,
                            s.applied,
                            s.snapshots.iter().map(|d| d.index).collect::<Vec<_>>(),
                            s.configuration.voters,
                            s.configuration.learners,
                            s.state.cause(),
                            s.peers,
                            s.wanted,
                            replica.jobs.len(),
                            replica.store.peek(|store| store.tally().clone()),
                            replica.store.peek(|store| store.usage()),
                        );
                    }
                }
            }
        }
        let waiting = self.clients.iter().filter(|client| !client.is_idle()).count();
        text + &format!("\n  {waiting} clients wait, {} transfers", self.transfers.len())
    }
}

/// A number that stands for a frame in the trace.
fn frame_checkpoint(frame: &Frame) -> u64 {
    let body = match &frame.body {
        lockstep_core::group::Body::Raft(message) => {
            message.term ^ (message.index << 20) ^ ((message.entries.len() as u64) << 50)
        }
        _other => 7,
    };
    frame.from.0 ^ body
}

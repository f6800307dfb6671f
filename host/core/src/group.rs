//! One replica of one group, as a pure function of events: [`Group::handle`] then [`Group::flush`].
//!
//! A replica is either *meeting* its group (it has an id but no log) or *hosting* it (raft runs).
//! Each child module owns one concern. Only they and this file call raft, and only `ready` knows
//! the order in which a `Ready` is carried out.
//!
//! - `handle` takes one event; `flush` turns what has gathered into entries, reads and messages.
//!   The host drains its mailbox between flushes: that is the group commit.
//! - A message that promises durability leaves only after the batch that backs the promise was
//!   reported as `Persisted`.
//! - Every ticket is answered exactly once, and every `SendSnapshot` is reported exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::entry::Profile;
use crate::fault::{Fault, Refusal, Shortage, Stall};
use crate::ids::{GroupId, Lineage, ModuleId, NodeId, ReplicaId};
use crate::limits;
use crate::memory::MemoryUse;
use crate::mutant::planted;
use crate::recovery_state::RecoveryState;
use crate::snapshot::chunk::ObjectRef;
use crate::wal::LogJob;

pub mod alone;
mod build;
mod catch_up;
mod chance;
mod checkpoint;
mod checkpoint_requests;
mod damage;
mod divergence;
mod effect;
mod election;
mod event;
mod flush;
pub mod frame;
mod guest;
mod halt;
mod hosting;
mod install;
mod meeting;
mod membership;
mod memory;
mod orders;
mod outgoing;
mod persist;
mod pipeline;
mod places;
mod proposals;
mod raft_log;
mod raft_node;
mod reads;
mod ready;
mod rebuild;
mod reconcile;
mod retry;
mod route;
mod space;
mod stall;
mod status;
mod strangers;
mod time;
mod timer;
pub mod trial;
mod upgrade;
mod vet;
mod wants;

pub use effect::{ApplyJob, Effect, Halt, ReplicaState, Running, Stands, Stopped};
pub use event::{Event, Found};
pub use frame::{Body, Frame, GuestIs, Inbound};
pub use orders::{Order, Resume};
pub use rebuild::RebuildTally;
pub use status::{GroupStatus, Leads, PeerStatus, Role};

use chance::Chance;
use divergence::Divergence;
use halt::Before;
use hosting::Hosting;
use meeting::{Meeting, Outcome};
use orders::Standing;
use persist::PersistQueue;
use rebuild::Turns;
use space::Space;
use strangers::Strangers;
use time::LogTime;
use trial::TrialStatus;
use upgrade::Modules;

/// What a replica is started with.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    pub name: String,
    pub node: NodeId,
    /// Every configured node of the group, this one included.
    pub nodes: BTreeSet<NodeId>,
    /// The module that this node would run; a bootstrap records it.
    pub module: ModuleId,
    /// The only lineage that the replica may join; if it is set, the replica bootstraps no group.
    pub lineage: Option<Lineage>,
    /// Handed to the guest; a bootstrap records it.
    pub guest_config: Bytes,
    pub profile: Profile,
    pub snapshot_policy: SnapshotPolicy,
    /// Snapshots and the log share a disk: deleting a snapshot frees space for the log.
    pub snapshots_share_log_disk: bool,
    /// Root of this process's randomness: election timeouts, the bootstrap seed.
    pub seed: u64,
    /// Drawn at each start: tells two processes with the same boot count apart.
    pub nonce: u64,
}

/// When a leader proposes a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotPolicy {
    /// Entries since the last checkpoint after which the next one is due.
    pub entries: u64,
    /// Bytes of entries since the last checkpoint after which the next one is due.
    pub log_bytes: u64,
    /// Trailing entries: kept before the newest snapshot for followers that lag a little.
    pub catch_up: u64,
}

impl SnapshotPolicy {
    /// How many bytes of log may be kept for followers and transfers.
    fn log_pin_bytes(&self) -> u64 {
        limits::LOG_PIN_CHECKPOINTS.saturating_mul(self.log_bytes)
    }
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self { entries: 50_000, log_bytes: 64 << 20, catch_up: limits::CATCH_UP_ENTRIES }
    }
}

/// What the log holds of this group when the process starts.
pub struct Recovered {
    pub state: RecoveryState,
    /// Runs of terms from the entry before the log's first: (first index, term).
    pub terms: Vec<(u64, u64)>,
    /// The entries from the floor (or before it) to the end.
    pub window: Vec<Entry>,
    /// Bytes of the log before the window, in pieces: (first index, bytes), ascending.
    pub sizes: Vec<(u64, u64)>,
}

/// One replica.
pub struct Group {
    shared: Shared,
    stage: Stage,
}

enum Stage {
    Meeting(Meeting),
    Hosting(Box<Hosting>),
}

/// The state that both stages share.
pub(crate) struct Shared {
    config: GroupConfig,
    id: GroupId,
    /// What the log will hold once everything emitted so far is durable.
    recovery: RecoveryState,
    persist: PersistQueue,
    /// Ticks since the start.
    now: u64,
    wall_ms: u64,
    chance: Chance,
    /// For each replica, what the frames of its latest process said.
    seen: BTreeMap<ReplicaId, Seen>,
    log_time: LogTime,
    strangers: Strangers,
    state: ReplicaState,
    space: Space,
    /// Set while the log's disk hangs.
    stalled: Option<Stall>,
    orders: Standing,
    before: Before,
    divergence: Divergence,
    /// The memory use of the guest, as the apply lane last reported it.
    memory: Option<MemoryUse>,
    /// Frames dropped because they were meant for another replica or group, or because no correct
    /// replica sends them.
    misdirected: u64,
    own: Own,
    turns: Turns,
    modules: Modules,
}

/// What frames say of this replica's guest and snapshots.
struct Own {
    /// The last entry that the guest applied.
    applied: u64,
    /// The index of the newest good snapshot; 0 if there is none.
    snapshot: u64,
    /// The newest snapshot that the guest wrote.
    taken: Option<ObjectRef>,
    guest: GuestIs,
}

/// What the latest frames of one process of a replica said.
struct Seen {
    boot: u64,
    nonce: u64,
    /// The address that the last frame came from.
    via: Arc<str>,
    /// The tick at which the last frame came.
    tick: u64,
    /// The wall clocks of the sender and of this node at `tick`; 0 for a clock not read yet.
    clocks: (u64, u64),
    short: Option<Shortage>,
    /// The last entry that the sender's guest applied.
    applied: u64,
    /// The sender applies no further entry: it is halted at this one, which it has never applied,
    /// or at 0 otherwise.
    halted: Option<u64>,
    /// The sender has diverged and waits for an operator: it takes no snapshot.
    diverged: bool,
    stalled: bool,
    memory: Option<MemoryUse>,
    /// The index of the newest good snapshot that the sender lists; 0 if it lists none.
    snapshot: u64,
    /// The newest snapshot that the sender's own guest wrote.
    taken: Option<ObjectRef>,
    guest: GuestIs,
    /// The sender leads, and allows this replica to rebuild its guest.
    grants: bool,
    trial: Option<Box<TrialStatus>>,
}

impl Group {
    /// Opens a replica on what the log holds. It sends nothing before its new boot count is
    /// durable.
    pub fn open(
        config: GroupConfig,
        recovered: Option<Recovered>,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let mut chance = Chance(config.seed);
        let (mut recovery, log) = match recovered {
            Some(recovered) => (recovered.state.clone(), Some(recovered)),
            None => {
                let replica = ReplicaId::new(config.node, chance.next());
                (RecoveryState::blank(&config.name, replica), None)
            }
        };
        let mut shared = Shared {
            id: GroupId::of_name(&config.name),
            before: Before { last: 0, unapplied: recovery.start() },
            recovery,
            persist: PersistQueue::default(),
            now: 0,
            wall_ms: 0,
            chance,
            seen: BTreeMap::new(),
            log_time: LogTime::default(),
            strangers: Strangers::default(),
            state: ReplicaState::Running(Running::Joining),
            space: Space::default(),
            stalled: None,
            orders: Standing::default(),
            divergence: Divergence::default(),
            memory: None,
            misdirected: 0,
            own: Own { applied: 0, snapshot: 0, taken: None, guest: GuestIs::Absent },
            turns: Turns::default(),
            modules: Modules::of(config.module),
            config,
        };
        shared.persist_now(Vec::new(), effects);
        let stage = match log {
            Some(recovered) if shared.recovery.bootstrapped => {
                Stage::Hosting(Box::new(Hosting::open(&mut shared, recovered, effects)))
            }
            Some(_) | None => Stage::Meeting(Meeting::default()),
        };
        if let Some(stopped) = shared.must_not_run() {
            shared.stop(stopped, effects);
        }
        Self { shared, stage }
    }

    /// Takes one event. Call [`Group::flush`] once no more events wait.
    pub fn handle(&mut self, event: Event, effects: &mut Vec<Effect>) {
        if self.shared.state.is_stopped() {
            return self.refuse(event, effects);
        }
        match event {
            Event::Tick { wall_ms } => self.tick(wall_ms, effects),
            Event::Frame(inbound) => self.frame(inbound, effects),
            Event::Persisted { seq } => self.persisted(seq, effects),
            Event::Faulted(fault) => self.fault(fault, effects),
            Event::LogSpace(shortage) if matches!(self.stage, Stage::Meeting(_)) => {
                self.shared.space.log_reports(shortage);
            }
            Event::DiskStalled(stall) if matches!(self.stage, Stage::Meeting(_)) => {
                self.shared.stalled = stall;
            }
            other => match &mut self.stage {
                Stage::Hosting(hosting) => route::event(hosting, &mut self.shared, other, effects),
                Stage::Meeting(_) => self.refuse(other, effects),
            },
        }
    }

    /// Proposes what waits, asks for read indexes, and carries out what raft has ready.
    pub fn flush(&mut self, effects: &mut Vec<Effect>) {
        if self.shared.state.is_stopped() {
            return;
        }
        match &mut self.stage {
            Stage::Meeting(meeting) => {
                let hosting = match meeting.take_outcome() {
                    None => return,
                    Some(Outcome::Bootstrap(record)) => {
                        Hosting::begin(&mut self.shared, record, effects)
                    }
                    Some(Outcome::Exists(lineage)) => {
                        Hosting::join(&mut self.shared, lineage, effects)
                    }
                };
                self.stage = Stage::Hosting(Box::new(hosting));
                self.flush(effects);
            }
            Stage::Hosting(hosting) => flush::flush(hosting, &mut self.shared, effects),
        }
    }

    pub fn state(&self) -> &ReplicaState {
        &self.shared.state
    }

    pub fn recovery_state(&self) -> &RecoveryState {
        &self.shared.recovery
    }

    pub fn status(&self) -> GroupStatus {
        let hosting = match &self.stage {
            Stage::Hosting(hosting) => Some(hosting.as_ref()),
            Stage::Meeting(_) => None,
        };
        status::of(&self.shared, hosting)
    }

    /// How far the log reaches, if this replica leads.
    pub fn leads(&self) -> Option<Leads> {
        match &self.stage {
            Stage::Hosting(hosting) => status::leads(hosting),
            Stage::Meeting(_) => None,
        }
    }

    fn tick(&mut self, wall_ms: u64, effects: &mut Vec<Effect>) {
        self.shared.now += 1;
        self.shared.wall_ms = wall_ms;
        match &mut self.stage {
            Stage::Meeting(meeting) => meeting.tick(&mut self.shared, effects),
            Stage::Hosting(hosting) => route::tick(hosting, &mut self.shared, effects),
        }
    }

    fn frame(&mut self, inbound: Inbound, effects: &mut Vec<Effect>) {
        if matches!(&self.stage, Stage::Hosting(hosting) if !hosting.raw.has_entries()) {
            self.shared.hear_say(&inbound.frame, effects);
        }
        match self.shared.admit(&inbound, effects) {
            Ok(true) => {}
            Ok(false) => return,
            Err(fault) => return self.fail(fault, effects),
        }
        let Inbound { frame, .. } = inbound;
        match &mut self.stage {
            Stage::Meeting(meeting) => meeting.frame(&mut self.shared, frame, effects),
            Stage::Hosting(hosting) => route::frame(hosting, &mut self.shared, frame, effects),
        }
    }

    fn persisted(&mut self, seq: u64, effects: &mut Vec<Effect>) {
        self.shared.persist.durable(seq);
        match &mut self.stage {
            Stage::Meeting(_) => {}
            Stage::Hosting(hosting) => {
                ready::release(hosting, &mut self.shared, effects);
            }
        }
    }

    fn fail(&mut self, fault: Fault, effects: &mut Vec<Effect>) {
        let failed = Stopped::Failed(fault);
        match &mut self.stage {
            Stage::Meeting(_) => self.shared.stop(failed, effects),
            Stage::Hosting(hosting) => hosting.end(&mut self.shared, failed, effects),
        }
    }

    fn fault(&mut self, fault: Fault, effects: &mut Vec<Effect>) {
        match &mut self.stage {
            Stage::Meeting(_) => self.shared.stop(Stopped::Failed(fault), effects),
            Stage::Hosting(hosting) => build::fail(hosting, &mut self.shared, fault, effects),
        }
    }

    /// Ends an event that this replica cannot take: refuses its request or its snapshot, stops for
    /// a hand-over, and drops all others.
    fn refuse(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let ticket = match event {
            Event::Propose { ticket, .. }
            | Event::OpenSession { ticket, .. }
            | Event::CloseSession { ticket, .. }
            | Event::Checkpoint { ticket }
            | Event::Order { ticket, .. }
            | Event::Repair { ticket }
            | Event::Query { ticket, .. } => ticket,
            Event::HandOver if self.shared.state.is_stopped() => return,
            Event::HandOver => return self.shared.stop(Stopped::Requested, effects),
            Event::Tick { .. }
            | Event::Frame(_)
            | Event::Unreachable(_)
            | Event::Gone { .. }
            | Event::Persisted { .. }
            | Event::Fetched { .. }
            | Event::LogDamaged { .. }
            | Event::Started { .. }
            | Event::Built { .. }
            | Event::Applied(_)
            | Event::Restored { .. }
            | Event::NotRestored { .. }
            | Event::Stands { .. }
            | Event::CaptureWritten { .. }
            | Event::SpaceWanted { .. }
            | Event::NoPlace { .. }
            | Event::Captured(_)
            | Event::CaptureFailed { .. }
            | Event::Corrupt { .. }
            | Event::Read { .. }
            | Event::Overtaken { .. }
            | Event::NeedsSnapshot { .. }
            | Event::Faulted(_)
            | Event::GuestFailed { .. }
            | Event::Memory(_)
            | Event::LogSpace(_)
            | Event::DiskStalled(_)
            | Event::SnapshotSpace(_)
            | Event::Tried { .. }
            | Event::TransferEnded { .. } => return,
            Event::Received { snapshot } => {
                let object = ObjectRef::of(&snapshot.desc);
                return effects.push(Effect::Judged { object, taken: false });
            }
        };
        let refusal = self.shared.state.refusal().unwrap_or(Refusal::NotLeader { leader: None });
        effects.push(Effect::Answer { ticket, answer: Err(refusal) });
    }
}

impl Shared {
    fn me(&self) -> ReplicaId {
        self.recovery.replica
    }

    /// Emits the present recovery state and `entries` as one batch; returns its sequence number.
    fn persist_now(&mut self, entries: Vec<Entry>, effects: &mut Vec<Effect>) -> u64 {
        debug_assert_eq!(self.recovery.validate(), Ok(()), "only a valid state is written");
        let seq = self.persist.next();
        let job = LogJob { group: self.id, state: self.recovery.clone(), entries };
        effects.push(Effect::Persist { seq, job });
        seq
    }

    fn send(&self, to: NodeId, replica: Option<ReplicaId>, body: Body, effects: &mut Vec<Effect>) {
        let frame = self.address(replica, body);
        effects.push(Effect::Send { to, frame: Box::new(frame) });
    }

    fn address(&self, to: Option<ReplicaId>, body: Body) -> Frame {
        Frame {
            group: self.id,
            // A replica without entries has only heard of its group and cannot vouch for it.
            lineage: if matches!(body, Body::Nothing) {
                self.config.lineage
            } else {
                self.lineage()
            },
            from: self.me(),
            to,
            boot: self.recovery.boot,
            nonce: self.config.nonce,
            known: to.and_then(|to| self.seen.get(&to)).map(|seen| (seen.boot, seen.nonce)),
            wall_ms: self.wall_ms,
            short: self.space.shortage(),
            applied: self.own.applied,
            halted: self.state.halted_at(),
            diverged: self.state.waits_for_repair(),
            stalled: self.stalled.is_some(),
            memory: self.memory,
            snapshot: self.own.snapshot,
            taken: self.own.taken,
            guest: self.own.guest,
            grants: self.grants(to),
            trial: self.modules.trial_status(),
            body,
        }
    }

    /// The other configured nodes: whom to ask while the group's configuration is unknown or does
    /// not contain this replica.
    fn peers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.config.nodes.iter().copied().filter(|node| *node != self.config.node)
    }

    /// Configured nodes that were silent for twice the time after which a joining replica repeats
    /// its requests.
    fn unheard(&self) -> Vec<NodeId> {
        let lately = |seen: &Seen| self.now < seen.tick + 2 * limits::JOIN_RETRY_TICKS;
        let recent = self.seen.iter().filter(|(_, seen)| lately(seen));
        let heard: BTreeSet<NodeId> = recent.map(|(replica, _)| replica.node()).collect();
        self.peers().filter(|node| !heard.contains(node)).collect()
    }

    /// The only place that changes the replica's state.
    fn set_state(&mut self, state: ReplicaState, effects: &mut Vec<Effect>) {
        if self.state == state {
            return;
        }
        assert!(!self.state.is_stopped(), "a stopped replica stays stopped");
        self.state = state.clone();
        effects.push(Effect::State(state));
    }

    fn stop(&mut self, stopped: Stopped, effects: &mut Vec<Effect>) {
        self.set_state(ReplicaState::Stopped(stopped), effects);
    }

    /// Checks a frame's sender and addressee. Returns false if the frame is to be dropped, and a
    /// fault if this process must stop.
    fn admit(&mut self, inbound: &Inbound, effects: &mut Vec<Effect>) -> Result<bool, Fault> {
        let frame = &inbound.frame;
        if frame.group != self.id || frame.from.node() == self.config.node {
            return self.judge_our_own(inbound);
        }
        if self.is_strange(frame, effects) {
            self.misdirected += 1;
            return Ok(false);
        }
        if frame.to.is_some_and(|to| to != self.me()) {
            self.misdirected += 1;
            return Ok(false);
        }
        self.is_whom_it_is_for(frame)?;
        if let Body::Superseded { address } = &frame.body {
            // The frame came to this node's address, but may be meant for an earlier process, or
            // for one that runs on a copy of the data directory.
            let told = (frame.boot, frame.nonce) == (self.recovery.boot, self.config.nonce);
            let fault = Fault::Superseded { address: address.clone() };
            return if told { Err(fault) } else { Ok(false) };
        }
        match self.seen.get(&frame.from).map(|seen| seen.boot) {
            None => self.make_place(),
            Some(known) if vet::is_countable(frame.boot, known) => {}
            Some(known) if frame.boot > known => {
                self.misdirected += 1;
                return Ok(false);
            }
            // The count known so far is too far ahead to be the result of counting starts.
            Some(_) => drop(self.seen.remove(&frame.from)),
        }
        let now = self.now;
        let seen = self.seen.entry(frame.from).or_insert_with(|| Seen::of(inbound, now));
        let older = frame.boot < seen.boot && !planted("believe_older_boots");
        if older || (frame.boot == seen.boot && frame.nonce != seen.nonce) {
            let body = Body::Superseded { address: seen.via.to_string() };
            let mut answer = self.address(Some(frame.from), body);
            (answer.boot, answer.nonce) = (frame.boot, frame.nonce);
            // A replica sends nothing before its id is durable.
            if self.persist.is_booted() {
                effects.push(Effect::Send { to: frame.from.node(), frame: Box::new(answer) });
            }
            return Ok(false);
        }
        // An append may be overtaken by frames that its sender sent later. The next heartbeat
        // corrects most of what it says, but an outdated clock looks wrong, and an outdated turn
        // may belong to another replica by now.
        let late = frame.is_append() && !planted("believe_late_appends");
        let (clocks, grants) = if late {
            (seen.clocks, seen.grants)
        } else {
            ((frame.wall_ms, self.wall_ms), frame.grants)
        };
        *seen = Seen { clocks, grants, ..Seen::of(inbound, now) };
        Ok(true)
    }

    fn judge_our_own(&mut self, inbound: &Inbound) -> Result<bool, Fault> {
        self.misdirected += 1;
        let frame = &inbound.frame;
        if frame.group == self.id && frame.from == self.me() && frame.nonce != self.config.nonce {
            Err(Fault::Superseded { address: inbound.via.to_string() })
        } else {
            Ok(false)
        }
    }
}

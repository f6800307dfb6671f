//! What a replica reports of itself: the source of `lockstep status`.

use raft::StateRole;

use crate::fault::Shortage;
use crate::group::effect::ReplicaState;
use crate::group::hosting::{Hosting, Snapshots};
use crate::group::rebuild::RebuildTally;
use crate::group::{Shared, reconcile};
use crate::ids::{Lineage, ModuleId, NodeId, ReplicaId};
use crate::memory::MemoryUse;
use crate::mutant::planted;
use crate::retention::{self, Pin};
use crate::snapshot::chunk::{ObjectRef, Want};
use crate::snapshot::{Configuration, SnapshotDesc};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
    /// The replica is in no configuration.
    None,
}

/// One replica's view of its group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    pub name: String,
    /// The module that applies what follows.
    pub module: ModuleId,
    /// The module before the last upgrade.
    pub previous_module: Option<ModuleId>,
    /// On a leader, the upgrade under way, or why the last one came to nothing.
    pub upgrade: Option<String>,
    pub node: NodeId,
    pub replica: ReplicaId,
    pub boot: u64,
    /// Identifies the bootstrap that the group goes back to; `None` before this replica met the
    /// group.
    pub lineage: Option<Lineage>,
    /// Configured nodes that recently spoke for another group of this name.
    pub strangers: Vec<(NodeId, Lineage)>,
    pub state: ReplicaState,
    pub role: Role,
    pub leader: Option<ReplicaId>,
    pub term: u64,
    pub commit: u64,
    /// The guest's applied index.
    pub applied: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub snapshots: Vec<SnapshotDesc>,
    pub configuration: Configuration,
    /// Every other replica, as this one sees it; empty unless this one leads.
    pub peers: Vec<PeerStatus>,
    pub reluctant: bool,
    pub clock_is_off: bool,
    /// The log's time, milliseconds since 1970.
    pub log_time_ms: u64,
    /// How far the log's time is ahead of the voters' clocks.
    pub log_time_ahead_ms: u64,
    /// The log's time to which the guest's timer is set.
    pub wakes_at_ms: Option<u64>,
    pub checkpoints_skipped: u64,
    pub captures_failed: u64,
    /// Why the last capture failed; `None` if one has succeeded since.
    pub capture_failure: Option<String>,
    /// What keeps the log from being cut, and the first index that it needs.
    pub log_pin: Option<(Pin, u64)>,
    /// What this replica is short of, if it is.
    pub shortage: Option<Shortage>,
    /// The guest's memory use, once there is a guest.
    pub memory: Option<MemoryUse>,
    /// How many accepted commands were meant to free memory.
    pub relief_commands: u64,
    /// Rebuilds of the guest to release memory, since the start.
    pub rebuilds: RebuildTally,
    /// Listed objects that are corrupt and wait for repair.
    pub corrupt: Vec<ObjectRef>,
    /// What this replica asks its peers for.
    pub wanted: Option<Want>,
    /// How often, since the start, states were found to have diverged, and the last of these alarms
    /// in words.
    pub alarms: u64,
    pub alarm: Option<String>,
    /// Configured nodes that were not heard recently.
    pub unheard: Vec<NodeId>,
    /// Ticks since a leader was last known.
    pub leaderless_ticks: u64,
    /// How many leaders this process learnt of.
    pub leader_changes: u64,
    /// Frames that were dropped because they were for another replica or broke the protocol's
    /// rules.
    pub frames_misdirected: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    pub replica: ReplicaId,
    pub matched: u64,
    pub active: bool,
    /// A snapshot is on its way to this peer.
    pub sending_snapshot: bool,
    /// Snapshots that this peer was sent in a row without catching up (0 if it has caught up), and
    /// how many bytes of log are kept for peers that were sent one.
    pub snapshots_in_a_row: u32,
    pub log_kept_bytes: u64,
}

/// How far a leader's log reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leads {
    pub term: u64,
    pub last_index: u64,
    pub commit: u64,
}

pub(super) fn of(shared: &Shared, hosting: Option<&Hosting>) -> GroupStatus {
    let recovery = &shared.recovery;
    let raft = hosting.map(|hosting| &hosting.raw.raft);
    let (checkpoints_skipped, captures_failed) =
        hosting.map_or((0, 0), |h| h.snapshots.checkpoints.counts());
    GroupStatus {
        name: shared.config.name.clone(),
        module: shared.modules.running,
        previous_module: shared.modules.previous,
        upgrade: hosting.and_then(|h| h.clients.upgrades.told(shared)),
        node: shared.config.node,
        replica: recovery.replica,
        boot: recovery.boot,
        lineage: shared.lineage(),
        strangers: shared.strangers.list(shared.now),
        state: shared.state.clone(),
        role: role(shared, hosting),
        leader: hosting.and_then(|h| h.members.election.led_by(&h.raw, shared.now)),
        term: raft.map_or(0, |raft| raft.term),
        commit: if planted("commit_falls") && hosting.is_some_and(|hosting| hosting.raw.is_leader())
        {
            hosting.map_or(0, |hosting| hosting.applying.pipeline.applied())
        } else {
            raft.map_or(0, |raft| raft.raft_log.committed)
        },
        applied: hosting.map_or(0, |hosting| hosting.applying.pipeline.applied()),
        first_index: recovery.first_index,
        last_index: raft.map_or(0, |raft| raft.raft_log.last_index()),
        snapshots: recovery.snapshots.clone(),
        configuration: recovery.configuration.clone(),
        peers: hosting
            .filter(|hosting| hosting.raw.is_leader())
            .map(|hosting| peers(hosting, shared))
            .unwrap_or_default(),
        reluctant: hosting.is_some_and(|hosting| hosting.members.election.is_reluctant()),
        clock_is_off: shared.clock_is_off(),
        log_time_ms: shared.log_time.applied_ms(),
        // A follower hears its leader's clock only, and cannot tell whose clock is off.
        log_time_ahead_ms: hosting
            .filter(|hosting| hosting.raw.is_leader())
            .map_or(0, |_leads| shared.log_time_ahead_ms()),
        wakes_at_ms: hosting.and_then(|h| h.applying.timer.at_ms()),
        checkpoints_skipped,
        captures_failed,
        capture_failure: hosting.and_then(|h| h.snapshots.checkpoints.failure()).map(str::to_owned),
        log_pin: hosting.and_then(|h| pinned_by(h, shared)),
        shortage: shared.space.shortage(),
        memory: shared.memory,
        relief_commands: hosting.map_or(0, |h| h.clients.proposals.relieved()),
        rebuilds: hosting.map_or(RebuildTally::default(), |h| h.applying.rebuilds.tally()),
        corrupt: hosting.map(corrupt).unwrap_or_default(),
        wanted: hosting.and_then(|h| h.snapshots.wants.asked()),
        alarms: shared.divergence.alarms().0,
        alarm: shared.divergence.alarms().1.map(str::to_owned),
        unheard: shared.unheard(),
        leaderless_ticks: hosting.map_or(0, |h| h.members.election.leaderless(shared.now)),
        leader_changes: hosting.map_or(0, |h| h.members.election.leaders()),
        frames_misdirected: shared.misdirected,
    }
}

/// How far this leader's log reaches, and how much of it is committed.
pub(super) fn leads(hosting: &Hosting) -> Option<Leads> {
    let raft = &hosting.raw.raft;
    let (last_index, commit) = (raft.raft_log.last_index(), raft.raft_log.committed);
    hosting.raw.is_leader().then_some(Leads { term: raft.term, last_index, commit })
}

fn role(shared: &Shared, hosting: Option<&Hosting>) -> Role {
    let Some(hosting) = hosting.filter(|_| !shared.state.is_stopped()) else { return Role::None };
    let configuration = &shared.recovery.configuration;
    match hosting.raw.raft.state {
        StateRole::Leader => Role::Leader,
        StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        StateRole::Follower if configuration.is_voter(shared.me()) => Role::Follower,
        StateRole::Follower if configuration.contains(shared.me()) => Role::Learner,
        StateRole::Follower => Role::None,
    }
}

fn pinned_by(hosting: &Hosting, shared: &Shared) -> Option<(retention::Pin, u64)> {
    let Hosting { raw, snapshots, .. } = hosting;
    let Snapshots { outgoing, catch_ups, .. } = snapshots;
    let pins = reconcile::pins(raw, outgoing, catch_ups, shared);
    let pinned = retention::pinned_by(&shared.recovery, &pins);
    pinned.map(|(pin, after)| (pin, after + 1))
}

fn corrupt(hosting: &Hosting) -> Vec<ObjectRef> {
    let object = |(term, index, digest): &retention::ObjectName| ObjectRef {
        term: *term,
        index: *index,
        digest: *digest,
    };
    hosting.snapshots.retention.corrupt().iter().map(object).collect()
}

fn peers(hosting: &Hosting, shared: &Shared) -> Vec<PeerStatus> {
    let raft = &hosting.raw.raft;
    let mut peers: Vec<PeerStatus> = raft
        .prs()
        .iter()
        .filter(|(id, _)| **id != raft.id)
        .map(|(id, peer)| PeerStatus {
            replica: ReplicaId(*id),
            matched: peer.matched,
            active: peer.recent_active,
            sending_snapshot: hosting.snapshots.outgoing.is_sending_to(ReplicaId(*id)),
            snapshots_in_a_row: hosting.snapshots.catch_ups.sent_to(ReplicaId(*id)),
            log_kept_bytes: hosting.snapshots.catch_ups.log_bytes(&shared.config.snapshot_policy),
        })
        .collect();
    peers.sort_unstable_by_key(|peer| peer.replica);
    peers
}

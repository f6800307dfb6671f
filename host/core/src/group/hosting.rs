//! A replica that has a log: owns raft and the state of every concern.
//!
//! No concern knows this type; each gets what it reads or writes. [`super::route`] takes each event
//! to the concern that it is for, [`super::ready`] carries out what raft has ready, and
//! [`super::build`] builds the guest.

use std::collections::BTreeSet;

use raft::Storage as _;
use raft::eraftpb::Entry;

use crate::entry::{Bootstrap, EntryBody};
use crate::fault::Refusal;
use crate::group::catch_up::CatchUps;
use crate::group::checkpoint::Checkpoints;
use crate::group::checkpoint_requests::CheckpointRequests;
use crate::group::divergence::{self, Comparison};
use crate::group::effect::{Effect, ReplicaState, Running, Stopped};
use crate::group::election::Election;
use crate::group::frame::GuestIs;
use crate::group::install::Installs;
use crate::group::membership::Membership;
use crate::group::orders::Orders;
use crate::group::outgoing::Outgoing;
use crate::group::pipeline::Pipeline;
use crate::group::proposals::Proposals;
use crate::group::raft_log::RaftLog;
use crate::group::raft_node::RaftNode;
use crate::group::reads::Reads;
use crate::group::rebuild::Rebuilds;
use crate::group::reconcile::{Around, Retention};
use crate::group::retry::Retry;
use crate::group::space::Concerns;
use crate::group::timer::Timer;
use crate::group::upgrade::Upgrades;
use crate::group::vet::NonMember;
use crate::group::wants::Wants;
use crate::group::{Recovered, Shared};
use crate::ids::{Lineage, ReplicaId, Ticket};
use crate::snapshot::Configuration;

/// A replica with a log.
pub(crate) struct Hosting {
    pub(super) raw: RaftNode,
    pub(super) clients: Clients,
    pub(super) applying: Applying,
    pub(super) snapshots: Snapshots,
    pub(super) members: Members,
    pub(super) durable: Durable,
}

/// What clients wait for.
#[derive(Default)]
pub(super) struct Clients {
    pub(super) proposals: Proposals,
    pub(super) reads: Reads,
    pub(super) checkpoint_requests: CheckpointRequests,
    pub(super) orders: Orders,
    pub(super) upgrades: Upgrades,
}

/// What the apply lane is given, and the guest that it builds.
pub(super) struct Applying {
    pub(super) pipeline: Pipeline,
    pub(super) rebuilds: Rebuilds,
    pub(super) retry: Retry,
    pub(super) timer: Timer,
}

/// Recovery points: taken here, sent to peers, received from them.
pub(super) struct Snapshots {
    pub(super) checkpoints: Checkpoints,
    pub(super) retention: Retention,
    pub(super) outgoing: Outgoing,
    pub(super) catch_ups: CatchUps,
    pub(super) installs: Installs,
    pub(super) wants: Wants,
}

/// Who leads, and who belongs to the group.
#[derive(Default)]
pub(super) struct Members {
    pub(super) election: Election,
    pub(super) membership: Membership,
    pub(super) non_member: NonMember,
    pub(super) comparison: Comparison,
}

/// What this process knows to be durable.
pub(super) struct Durable {
    /// The tick since which the recovery state holds a commit index that no batch carries.
    pub(super) unwritten_since: Option<u64>,
    /// The highest term known to be durable here.
    pub(super) durable_term: u64,
    /// The first batch that this process emitted for this log. Until it is durable, no node is told
    /// that the group exists.
    pub(super) began: u64,
    /// The batch with entry 1, if this process bootstrapped the group. raft considers that entry
    /// durable at once, but it is applied only after this batch, because a rebuild reads it from
    /// the log.
    pub(super) bootstrapped_in: u64,
}

impl Clients {
    /// Answers everything that waits with this refusal.
    fn abandon(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        self.proposals.abandon(refusal, effects);
        self.reads.abandon(refusal, effects);
        self.checkpoint_requests.abandon(refusal, effects);
        self.orders.abandon(refusal, effects);
        self.upgrades.abandon(refusal, effects);
    }

    /// Drops waiting requests whose clients are gone.
    pub(super) fn forget(&mut self, gone: &BTreeSet<Ticket>, effects: &mut Vec<Effect>) {
        self.proposals.forget(gone, effects);
        self.reads.forget(gone, effects);
        self.checkpoint_requests.forget(gone, effects);
    }
}

impl Hosting {
    /// Continues from what the log holds.
    pub(super) fn open(
        shared: &mut Shared,
        recovered: Recovered,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let state = &shared.recovery;
        let Recovered { terms, window, sizes, .. } = recovered;
        // Pieces small enough to tell from their sum when a snapshot is due.
        let piece_bytes = (shared.config.snapshot_policy.log_bytes / 256).clamp(256, 256 << 10);
        let log = RaftLog::open(state, &terms, window, sizes, piece_bytes);
        let last = log.last();
        let newest = state.newest().map_or(0, |desc| desc.index);
        let checkpoints = Checkpoints::since(newest, log.bytes_between(newest, state.floor));
        let mut raw = RaftNode::open(state.replica, state.floor, log);
        let halt = divergence::halt(state);
        let running = halt.clone().map_or(Running::Restoring, Running::Halted);
        raw.mut_store().serve_nothing(halt.is_some());
        let pipeline = Pipeline::start(state, halt, effects);
        shared.set_state(ReplicaState::Running(running), effects);
        shared.before.last = last;
        let mut retention = Retention::default();
        retention.distrust(&shared.recovery);
        Self {
            raw,
            clients: Clients::default(),
            applying: Applying {
                pipeline,
                rebuilds: Rebuilds::default(),
                retry: Retry::default(),
                timer: Timer::default(),
            },
            snapshots: Snapshots {
                checkpoints,
                retention,
                outgoing: Outgoing::default(),
                catch_ups: CatchUps::default(),
                installs: Installs::default(),
                wants: Wants::default(),
            },
            members: Members::default(),
            durable: Durable {
                unwritten_since: None,
                durable_term: shared.recovery.term,
                began: shared.persist.emitted(),
                bootstrapped_in: 0,
            },
        }
    }

    /// Begins the group's log with entry 1, which counts as committed in term 1 by the initial
    /// voters.
    pub(super) fn begin(shared: &mut Shared, record: Bootstrap, effects: &mut Vec<Effect>) -> Self {
        let initial_voters = Configuration::of_voters(record.initial_voters.iter().copied());
        let data = EntryBody::Bootstrap(record).encode();
        shared.recovery.begin(Lineage::bootstrapped_with(&data));
        shared.recovery.bootstrap(initial_voters);
        let mut entry = Entry::default();
        (entry.index, entry.term) = (1, 1);
        entry.data = data.into();
        shared.persist_now(vec![entry.clone()], effects);
        let (state, terms) = (shared.recovery.clone(), vec![(1, 1)]);
        let recovered = Recovered { state, terms, window: vec![entry], sizes: Vec::new() };
        let bootstrapped_in = shared.persist.emitted();
        let mut hosting = Self::open(shared, recovered, effects);
        hosting.durable.bootstrapped_in = bootstrapped_in;
        hosting
    }

    /// Begins with nothing, not even a configuration: all of it comes from the group's leader.
    pub(super) fn join(shared: &mut Shared, lineage: Lineage, effects: &mut Vec<Effect>) -> Self {
        shared.belong_to(lineage);
        shared.persist_now(Vec::new(), effects);
        let state = shared.recovery.clone();
        let (terms, window, sizes) = (Vec::new(), Vec::new(), Vec::new());
        Self::open(shared, Recovered { state, terms, window, sizes }, effects)
    }

    pub(super) fn not_leader(&self, shared: &Shared) -> Refusal {
        let leader = self.members.election.led_by(&self.raw, shared.now);
        Refusal::NotLeader { leader: leader.map(ReplicaId::node) }
    }

    /// Whether this replica leads the group and is able to act as its leader now.
    pub(super) fn may_lead(&self, shared: &Shared) -> Result<(), Refusal> {
        if let Some(refusal) = shared.state.query_refusal() {
            return Err(refusal);
        }
        self.leads(shared)
    }

    /// Whether this replica leads the group, and is not about to hand over.
    fn leads(&self, shared: &Shared) -> Result<(), Refusal> {
        if !self.raw.is_leader() {
            Err(self.not_leader(shared))
        } else if self.raw.raft.lead_transferee.is_some() {
            Err(Refusal::NotLeader { leader: None })
        } else {
            Ok(())
        }
    }

    /// Whether this replica leads the group, and can put an operator's order into its log. It may
    /// be halted.
    pub(super) fn may_order(&self, shared: &Shared) -> Result<(), Refusal> {
        match &shared.state {
            ReplicaState::Running(Running::Halted(_)) => self.leads(shared),
            _other => self.may_lead(shared),
        }
    }

    /// Leadership was lost: this replica cannot tell what becomes of the requests under way.
    pub(super) fn stepped_down(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        shared.log_time.stepped_down();
        let refusal = self.not_leader(shared);
        self.clients.abandon(&refusal, effects);
        self.members.membership.stepped_down();
        self.snapshots.wants.stepped_down();
    }

    /// Ends the tickets at or below `index`, because no answer to them will come.
    pub(super) fn pass(&mut self, index: u64, effects: &mut Vec<Effect>) {
        let log = self.raw.store();
        self.clients.proposals.passed(index, |index| log.term(index).ok(), effects);
    }

    /// What this replica reports of its guest.
    pub(super) fn guest(&self, shared: &Shared) -> GuestIs {
        let Applying { pipeline, rebuilds, .. } = &self.applying;
        let Snapshots { checkpoints, retention, .. } = &self.snapshots;
        rebuilds.guest(shared, pipeline, checkpoints, retention)
    }

    /// The list of recovery points, and the concerns that decide it.
    pub(super) fn retention(&mut self) -> (&mut Retention, Around<'_>) {
        let Snapshots { checkpoints, retention, outgoing, catch_ups, .. } = &mut self.snapshots;
        let (raw, pipeline) = (&self.raw, &mut self.applying.pipeline);
        (retention, Around { raw, pipeline, checkpoints, outgoing, catch_ups })
    }

    /// What the replica asks its peers for, and the concerns that such requests or a lack of space
    /// affect.
    pub(super) fn wants<'a>(
        &'a mut self,
        effects: &'a mut Vec<Effect>,
    ) -> (&'a mut Wants, Concerns<'a>) {
        let Snapshots { checkpoints, retention, wants, .. } = &mut self.snapshots;
        let (raw, pipeline) = (&self.raw, &mut self.applying.pipeline);
        let proposals = &mut self.clients.proposals;
        (wants, Concerns { raw, pipeline, checkpoints, retention, proposals, effects })
    }

    /// The concerns that a lack of space affects.
    pub(super) fn concerns<'a>(&'a mut self, effects: &'a mut Vec<Effect>) -> Concerns<'a> {
        self.wants(effects).1
    }

    /// Tells the store lane which snapshots are listed, if that changed.
    pub(super) fn tell_list(&mut self, effects: &mut Vec<Effect>) {
        self.snapshots.retention.tell(
            &self.applying.pipeline,
            self.raw.store(),
            &self.snapshots.outgoing,
            effects,
        );
    }

    pub(super) fn end(&mut self, shared: &mut Shared, stop: Stopped, effects: &mut Vec<Effect>) {
        self.applying.pipeline.stop();
        if stop == Stopped::Removed {
            shared.recovery.remove();
            shared.persist_now(Vec::new(), effects);
        }
        shared.stop(stop, effects);
        self.refuse_everything(shared, effects);
    }

    pub(super) fn refuse_everything(&mut self, shared: &Shared, effects: &mut Vec<Effect>) {
        let refusal = shared.state.refusal().expect("a replica that does not serve refuses");
        self.clients.abandon(&refusal, effects);
    }

    /// Derives the state that this replica shows.
    pub(super) fn settle_state(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        let running = match &shared.state {
            ReplicaState::Stopped(_) => return,
            ReplicaState::Running(_) => {
                if let Some(halt) = self.applying.pipeline.halt() {
                    Running::Halted(halt.clone())
                } else if !shared.recovery.configuration.contains(shared.me()) {
                    Running::Joining
                } else if let Some(missing) = self.applying.pipeline.missing() {
                    Running::NeedsSnapshot(missing.why.clone())
                } else if self.applying.pipeline.is_restoring() {
                    self.applying.rebuilds.before().map_or(Running::Restoring, Running::Rebuilding)
                } else if let Some(stall) = &shared.stalled {
                    Running::DiskStalled(stall.clone())
                } else if let Some(shortage) = shared.space.shortage() {
                    Running::DiskFull(shortage)
                } else if shared.switches().frozen {
                    Running::Frozen
                } else if let Some(high) = shared.memory_high() {
                    Running::MemoryHigh(high)
                } else {
                    Running::Serving
                }
            }
        };
        shared.set_state(ReplicaState::Running(running), effects);
    }
}

//! The stage of a replica that has a log: owns raft and routes each event to the concern it is for.

use raft::eraftpb::Entry;
use raft::{RawNode, StateRole, Storage as _};

use crate::entry::{Bootstrap, EntryBody};
use crate::fault::Refusal;
use crate::group::catch_up::CatchUps;
use crate::group::checkpoint::Checkpoints;
use crate::group::checkpoint_requests::CheckpointRequests;
use crate::group::effect::{ApplyJob, Effect, ReplicaState, Running, Stopped};
use crate::group::election::Election;
use crate::group::event::Event;
use crate::group::frame::{Body, Frame};
use crate::group::halt::Halts;
use crate::group::install::Installs;
use crate::group::membership::Membership;
use crate::group::outgoing::Outgoing;
use crate::group::pipeline::Pipeline;
use crate::group::proposals::{Proposal, Proposals};
use crate::group::raft_log::RaftLog;
use crate::group::reads::{Read, Reads};
use crate::group::rebuild::Rebuilds;
use crate::group::reconcile::Retention;
use crate::group::retry::Retry;
use crate::group::status::Leads;
use crate::group::vet::NonMember;
use crate::group::wants::Wants;
use crate::group::{Recovered, Shared, raft_node, ready};
use crate::ids::{Lineage, NodeId, ReplicaId};
use crate::limits;
use crate::memory::MemoryUse;
use crate::mutant::planted;
use crate::retention;
use crate::snapshot::Configuration;

/// A replica with a log.
pub(crate) struct Hosting {
    pub(super) raw: RawNode<RaftLog>,
    pub(super) proposals: Proposals,
    pub(super) reads: Reads,
    pub(super) pipeline: Pipeline,
    pub(super) election: Election,
    pub(super) membership: Membership,
    pub(super) installs: Installs,
    pub(super) checkpoints: Checkpoints,
    pub(super) checkpoint_requests: CheckpointRequests,
    pub(super) outgoing: Outgoing,
    pub(super) catch_ups: CatchUps,
    pub(super) wants: Wants,
    pub(super) halts: Halts,
    pub(super) retry: Retry,
    pub(super) retention: Retention,
    pub(super) non_member: NonMember,
    pub(super) rebuilds: Rebuilds,
    /// How many bytes of log may be kept for followers and transfers.
    pub(super) log_pin_bytes: u64,
    /// How many trailing entries are kept for followers that lag a little.
    pub(super) catch_up: u64,
    /// The tick at which a leader was last known.
    pub(super) led: u64,
    /// How many leaders this process learnt of, and the term of the last one.
    pub(super) leaders: (u64, u64),
    /// The tick since which the recovery state holds a commit index that no batch carries.
    pub(super) unwritten_since: Option<u64>,
    /// The highest term known to be durable here.
    pub(super) durable_term: u64,
    /// The first batch that this process emitted for this log. Until it is durable, no node is told
    /// that the group exists.
    began: u64,
    /// The batch with entry 1, if this process bootstrapped the group. raft considers that entry
    /// durable at once, but it is applied only after this batch, because a rebuild reads it from
    /// the log.
    bootstrapped_in: u64,
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
        // Small enough to tell when a snapshot is due.
        let piece_bytes = (shared.config.snapshot_policy.log_bytes / 256).clamp(256, 256 << 10);
        let log = RaftLog::open(state, &terms, window, sizes, piece_bytes);
        let newest = state.newest().map_or(0, |desc| desc.index);
        let checkpoints = Checkpoints::since(newest, log.bytes_between(newest, state.floor));
        let raw = raft_node::open(state.replica, state.floor, log);
        let pipeline = Pipeline::start(state, effects);
        shared.set_state(ReplicaState::Running(Running::Restoring), effects);
        Self {
            raw,
            proposals: Proposals::default(),
            reads: Reads::default(),
            pipeline,
            election: Election::default(),
            membership: Membership::default(),
            installs: Installs::default(),
            checkpoints,
            checkpoint_requests: CheckpointRequests::default(),
            outgoing: Outgoing::default(),
            catch_ups: CatchUps::default(),
            wants: Wants::default(),
            halts: Halts::default(),
            retry: Retry::default(),
            retention: Retention::default(),
            non_member: NonMember::default(),
            rebuilds: Rebuilds::default(),
            log_pin_bytes: limits::LOG_PIN_CHECKPOINTS
                .saturating_mul(shared.config.snapshot_policy.log_bytes),
            catch_up: shared.config.snapshot_policy.catch_up,
            led: 0,
            leaders: (0, 0),
            unwritten_since: None,
            durable_term: shared.recovery.term,
            began: shared.persist.emitted(),
            bootstrapped_in: 0,
        }
    }

    /// Begins the group's log with entry 1, which counts as committed in term 1 by the initial
    /// voters.
    pub(super) fn begin(shared: &mut Shared, record: Bootstrap, effects: &mut Vec<Effect>) -> Self {
        let initial_voters = Configuration::of_voters(record.initial_voters.iter().copied());
        let state = &mut shared.recovery;
        let data = EntryBody::Bootstrap(record).encode();
        state.bootstrapped = true;
        state.lineage = Some(Lineage::bootstrapped_with(&data));
        (state.term, state.commit) = (1, 1);
        (state.configuration, state.configuration_index) = (initial_voters, 1);
        let mut entry = Entry::default();
        (entry.index, entry.term) = (1, 1);
        entry.data = data.into();
        shared.persist_now(vec![entry.clone()], effects);
        let (state, terms) = (shared.recovery.clone(), vec![(1, 1)]);
        let recovered = Recovered { state, terms, window: vec![entry], sizes: Vec::new() };
        let bootstrapped_in = shared.persist.emitted();
        Self { bootstrapped_in, ..Self::open(shared, recovered, effects) }
    }

    /// Begins with nothing, not even a configuration: all of it comes from the group's leader.
    pub(super) fn join(shared: &mut Shared, lineage: Lineage, effects: &mut Vec<Effect>) -> Self {
        shared.recovery.bootstrapped = true;
        shared.belong_to(lineage);
        shared.persist_now(Vec::new(), effects);
        let state = shared.recovery.clone();
        let (terms, window, sizes) = (Vec::new(), Vec::new(), Vec::new());
        Self::open(shared, Recovered { state, terms, window, sizes }, effects)
    }

    pub(super) fn has_entries(&self) -> bool {
        self.raw.raft.raft_log.last_index() > 0
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub(super) fn leader(&self) -> Option<ReplicaId> {
        Some(self.raw.raft.leader_id).filter(|id| *id != 0).map(ReplicaId)
    }

    /// Counts the leader that raft knows now. A term has at most one.
    pub(super) fn count_leader(&mut self) {
        let term = self.raw.raft.term;
        if self.leader().is_some() && self.leaders.1 != term {
            self.leaders = (self.leaders.0 + 1, term);
        }
    }

    /// How far this leader's log reaches, and how much of it is committed.
    pub(super) fn leading(&self) -> Option<Leads> {
        let raft = &self.raw.raft;
        let (last_index, commit) = (raft.raft_log.last_index(), raft.raft_log.committed);
        self.is_leader().then_some(Leads { term: raft.term, last_index, commit })
    }

    fn not_leader(&self, shared: &Shared) -> Refusal {
        Refusal::NotLeader { leader: self.led_by(shared.now).map(ReplicaId::node) }
    }

    pub(super) fn handle(&mut self, shared: &mut Shared, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Propose { ticket, call, relief } => {
                let taken = self
                    .may_propose(shared)
                    .and_then(|()| self.has_memory(shared, relief))
                    .and_then(|()| self.proposals.push_call(ticket, call, relief));
                answer_refusal(ticket, taken, effects);
            }
            Event::OpenSession { ticket, nonce } => {
                let taken =
                    self.may_propose(shared).and_then(|()| self.proposals.push_open(ticket, nonce));
                answer_refusal(ticket, taken, effects);
            }
            Event::CloseSession { ticket, session } => {
                let taken = self.may_propose(shared);
                let taken = taken.and_then(|()| self.proposals.push_close(ticket, session));
                answer_refusal(ticket, taken, effects);
            }
            Event::Query { ticket, request, linearizable: true } => {
                let read = Read { ticket, request, since: shared.now };
                let taken = self.may_lead(shared).and_then(|()| self.reads.push(read));
                answer_refusal(ticket, taken, effects);
            }
            Event::Query { ticket, request, linearizable: false } => {
                match shared.state.local_refusal() {
                    Some(refusal) => answer_refusal(ticket, Err(refusal), effects),
                    None => {
                        let job = ApplyJob::Query { ticket, request, index: 0 };
                        effects.push(Effect::Apply(job));
                    }
                }
            }
            Event::Gone { tickets } => {
                self.proposals.forget(&tickets, effects);
                self.reads.forget(&tickets, effects);
                self.checkpoint_requests.forget(&tickets, effects);
            }
            Event::Checkpoint { ticket } => self.checkpoint_asked_for(shared, ticket, effects),
            Event::Unreachable(node) => self.unreachable(node),
            Event::Fetched { from, entries } => self.fetched(from, entries),
            Event::LogDamaged { below } => self.log_is_damaged(below),
            Event::TransferEnded { to, purpose, report, prefers } => {
                self.transfer_ended(shared, (to, purpose), report, prefers);
            }
            Event::Room(shortage) => self.room(shared, shortage, effects),
            Event::DiskStalled(stall) => self.disk_stalled(shared, stall, effects),
            Event::Memory(memory) => self.memory(shared, memory, effects),
            Event::SnapshotRoom(room) => self.checkpoints.told_of_room(room),
            Event::HandOver => self.hand_over(shared, effects),
            other => self.lane_event(shared, other, effects),
        }
    }

    /// Handles the events that the apply lane and the bulk workers raise.
    fn lane_event(&mut self, shared: &mut Shared, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Started { build, applied, time_ms }
            | Event::Restored { build, index: applied, time_ms } => {
                self.has_guest(shared, (build, applied), time_ms, effects);
            }
            Event::Built { index, footprint } => {
                self.retention.restored(index);
                self.rebuilds.built(index, footprint);
            }
            Event::Applied(applied) => {
                self.pipeline.progressed(applied.last, applied.bytes);
                shared.log_time.applied(applied.time_ms);
                for entry in applied.answers {
                    self.proposals.applied(entry, effects);
                }
                self.pass(applied.last, effects);
            }
            Event::NotRestored { build, index: tried, why }
            | Event::NeedsSnapshot { build, tried, why } => {
                self.cannot_restore(shared, (build, tried), why, effects);
            }
            Event::Stands { at } => self.stands(shared, at, effects),
            Event::Captured(snapshot) => self.captured(shared, snapshot),
            Event::CaptureWritten { index } => self.capture_written(shared, index),
            Event::NoPlace { index, why } => self.no_place(shared, index, why),
            Event::CaptureFailed { index, why, postponed } => {
                self.capture_failed(shared, index, why, postponed);
            }
            Event::RoomWanted { unlist, capture } => {
                self.retention.room_wanted(unlist, capture, shared.now);
            }
            Event::Corrupt { snapshot, .. } => self.found_corrupt(shared, &snapshot),
            Event::Read { snapshot, found } => self.was_read(shared, &snapshot, found),
            Event::Overtaken { build } => self.overtaken(shared, build, effects),
            Event::GuestFailed { build, fault } => {
                self.guest_failed(shared, build, fault, effects);
            }
            Event::Received { snapshot } => self.received(shared, snapshot, effects),
            Event::Tick { .. }
            | Event::Frame(_)
            | Event::Persisted { .. }
            | Event::Faulted(_)
            | Event::Propose { .. }
            | Event::OpenSession { .. }
            | Event::CloseSession { .. }
            | Event::Query { .. }
            | Event::Gone { .. }
            | Event::Checkpoint { .. }
            | Event::Unreachable(_)
            | Event::Fetched { .. }
            | Event::LogDamaged { .. }
            | Event::TransferEnded { .. }
            | Event::Memory(_)
            | Event::Room(_)
            | Event::DiskStalled(_)
            | Event::SnapshotRoom(_)
            | Event::HandOver => unreachable!("handled before the lanes' events"),
        }
    }

    pub(super) fn flush(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        self.reconcile(shared, effects);
        shared.applied = self.pipeline.applied();
        let newest = retention::newest_good(&shared.recovery.snapshots, self.retention.corrupt());
        // A replica that needs a snapshot cannot start from those that it lists.
        let good = newest.filter(|_| self.wants.needs().is_none());
        shared.snapshot = good.map_or(0, |desc| desc.index);
        shared.guest = self.guest(shared);
        self.installs.offer(&mut self.raw, effects);
        self.propose_waiting(shared, effects);
        self.ask_for_reads(shared);
        loop {
            while self.raw.has_ready() {
                ready::process(self, shared, effects);
            }
            if !ready::keep_promises(self, shared, effects) && !self.raw.has_ready() {
                break;
            }
        }
        for (from, to) in self.raw.store().take_wanted_fetches() {
            effects.push(Effect::Fetch { from, to, bytes: limits::APPEND_BYTES_MAX });
        }
        self.tell_list(effects);
        if shared.persist.reached(self.bootstrapped_in) {
            self.pipeline.dispatch(effects);
        }
        for (index, Read { ticket, request, .. }) in self.reads.ready(self.pipeline.dispatched()) {
            effects.push(Effect::Apply(ApplyJob::Query { ticket, request, index }));
        }
    }

    pub(super) fn tick(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        if !shared.persist.is_booted() {
            return;
        }
        self.tick_raft(shared);
        if self.is_leader() {
            shared.tick_log_time();
        }
        self.reads.tick(shared.now, effects);
        self.tick_membership(shared, effects);
        self.tick_rebuild(shared, effects);
        self.tick_capture(shared);
        self.tick_checkpoints(shared);
        self.tick_proof(shared);
        self.tick_places(shared, effects);
        self.tick_room(shared, effects);
        self.tick_damage(shared);
        self.tick_outgoing(shared);
        self.tick_catch_up(shared);
        self.tick_retry(shared, effects);
        self.tick_halt(shared, effects);
        self.tick_wants(shared, effects);
        if self.led_by(shared.now).is_some() {
            self.led = shared.now;
        }
        self.settle_state(shared, effects);
        let due = |since: u64| shared.now >= since + limits::LAZY_STATE_TICKS;
        // While the disk hangs, such batches would only pile up.
        if self.unwritten_since.is_some_and(due) && shared.persist.is_idle() {
            self.unwritten_since = None;
            shared.persist_now(Vec::new(), effects);
        }
    }

    pub(super) fn persisted(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        ready::keep_promises(self, shared, effects);
    }

    pub(super) fn frame(&mut self, shared: &mut Shared, frame: Frame, effects: &mut Vec<Effect>) {
        if !shared.persist.is_booted() {
            return;
        }
        let from = frame.from;
        match frame.body {
            Body::Raft(message) => self.raft_message(shared, from, message, effects),
            Body::Probe if shared.persist.reached(self.began) && self.has_entries() => {
                shared.send(from.node(), Some(from), Body::Have, effects);
                if !shared.recovery.configuration.contains(from) {
                    self.answer_non_member(shared, from, effects);
                }
            }
            // A replica without entries has only heard of the group and cannot vouch for it.
            Body::Probe if !self.has_entries() => {
                shared.send(from.node(), Some(from), Body::Nothing, effects);
            }
            // Entries that are not durable yet prove neither that the group exists nor that it does
            // not.
            Body::Probe => {}
            Body::Want(want) if shared.recovery.configuration.contains(from) => {
                self.asked_for(from, want, shared.now, effects);
            }
            Body::Want(_) => {}
            Body::Join => self.asked_to_join(shared, from),
            Body::NotMember { configuration_index } => {
                self.told_non_member(shared, from.node(), configuration_index, effects);
            }
            Body::Nothing | Body::Have | Body::Stranger | Body::Superseded { .. } => {}
        }
    }

    /// Ends the tickets at or below `index`, because no answer to them will come.
    pub(super) fn pass(&mut self, index: u64, effects: &mut Vec<Effect>) {
        let log = self.raw.store();
        self.proposals.passed(index, |index| log.term(index).ok(), effects);
    }

    /// Whether this replica accepts commands now.
    fn may_propose(&self, shared: &Shared) -> Result<(), Refusal> {
        self.may_lead(shared)?;
        shared.may_write()?;
        self.has_room(shared)
    }

    /// Whether this replica leads the group and is able to act as its leader now.
    pub(super) fn may_lead(&self, shared: &Shared) -> Result<(), Refusal> {
        if let Some(refusal) = shared.state.query_refusal() {
            return Err(refusal);
        }
        if !self.is_leader() {
            Err(self.not_leader(shared))
        } else if self.raw.raft.lead_transferee.is_some() {
            Err(Refusal::NotLeader { leader: None })
        } else {
            Ok(())
        }
    }

    fn propose_waiting(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        if !self.is_leader() || self.raw.raft.lead_transferee.is_some() {
            // Where these commands go is known soon: into this leader's log after all, or back with
            // a refusal.
            return;
        }
        if self.proposals.has_waiting() {
            self.refuse_for_memory(shared, effects);
        }
        let commands_max = shared.memory.map_or(usize::MAX, MemoryUse::commands_max);
        // Entries that are committed but not durable here still count as in flight.
        let log = &self.raw.raft.raft_log;
        let settled = log.committed.min(log.persisted);
        while self.proposals.has_waiting()
            && !self.pipeline.is_behind()
            && self.proposals.above(settled) < limits::ENTRIES_INFLIGHT_MAX
            && self.has_memory_for_more(shared)
        {
            let next = self.proposals.next(shared.stamp(), commands_max);
            let Some(Proposal { body, tickets, bytes }) = next else { break };
            match self.propose(&body) {
                Some(place) => self.proposals.proposed(place, tickets, bytes),
                None => {
                    for ticket in tickets {
                        answer_refusal(ticket, Err(Refusal::Overloaded), effects);
                    }
                }
            }
        }
    }

    /// Puts an entry into this leader's log; returns its (index, term), or `None` if raft dropped
    /// it.
    pub(super) fn propose(&mut self, body: &EntryBody) -> Option<(u64, u64)> {
        self.raw.propose(Vec::new(), body.encode()).ok()?;
        Some((self.raw.raft.raft_log.last_index(), self.raw.raft.term))
    }

    fn ask_for_reads(&mut self, shared: &Shared) {
        let unique = (shared.me().0, shared.recovery.boot);
        // raft silently drops read requests before the first commit of a leader's term.
        if self.is_leader()
            && self.raw.raft.commit_to_current_term()
            && let Some(context) = self.reads.start_round(unique, shared.now)
        {
            if planted("read_without_quorum") {
                self.reads.confirm(&context, self.raw.raft.raft_log.committed);
            }
            self.raw.read_index(context);
        }
    }

    /// Leadership was lost: this replica cannot tell what becomes of the requests under way.
    pub(super) fn stepped_down(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        shared.log_time.stepped_down();
        let refusal = self.not_leader(shared);
        self.proposals.abandon(&refusal, effects);
        self.reads.abandon(&refusal, effects);
        self.checkpoint_requests.abandon(&refusal, effects);
        self.membership.stepped_down();
        self.wants.stepped_down();
    }

    fn fetched(&mut self, from: u64, entries: Option<Vec<Entry>>) {
        for context in self.raw.mut_store().fetched(from, entries) {
            self.raw.on_entries_fetched(context);
        }
        self.raw.mut_store().forget_fetched();
    }

    fn unreachable(&mut self, node: NodeId) {
        let ids: Vec<u64> = self.raw.raft.prs().iter().map(|(id, _)| *id).collect();
        for id in ids.into_iter().filter(|id| ReplicaId(*id).node() == node) {
            self.raw.report_unreachable(id);
        }
    }

    fn hand_over(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        self.proposals.refuse_waiting(&Refusal::ShuttingDown, effects);
        let under_way = self.raw.raft.lead_transferee.is_some();
        if self.is_leader() && (under_way || self.transfer_to_best(shared)) {
            return;
        }
        self.end(shared, Stopped::Requested, effects);
    }

    pub(super) fn end(&mut self, shared: &mut Shared, stop: Stopped, effects: &mut Vec<Effect>) {
        self.pipeline.halt();
        if stop == Stopped::Removed {
            // Otherwise it would ask to join again at its next start.
            shared.recovery.removed = true;
            shared.persist_now(Vec::new(), effects);
        }
        shared.stop(stop, effects);
        self.refuse_everything(shared, effects);
    }

    pub(super) fn refuse_everything(&mut self, shared: &Shared, effects: &mut Vec<Effect>) {
        let refusal = shared.state.refusal().expect("a replica that does not serve refuses");
        self.proposals.abandon(&refusal, effects);
        self.reads.abandon(&refusal, effects);
        self.checkpoint_requests.abandon(&refusal, effects);
    }

    /// Works out which running state this replica is in. A halted replica stays halted.
    pub(super) fn settle_state(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        let running = match &shared.state {
            ReplicaState::Stopped(_) => return,
            ReplicaState::Running(_) if self.pipeline.is_halted() => return,
            ReplicaState::Running(_) => {
                if !shared.recovery.configuration.contains(shared.me()) {
                    Running::Joining
                } else if let Some(why) = self.wants.needs() {
                    Running::NeedsSnapshot(why.to_owned())
                } else if self.pipeline.is_restoring() {
                    self.rebuilds.before().map_or(Running::Restoring, Running::Rebuilding)
                } else if let Some(stall) = &shared.stalled {
                    Running::DiskStalled(stall.clone())
                } else if let Some(shortage) = shared.short {
                    Running::DiskFull(shortage)
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

fn answer_refusal(
    ticket: crate::ids::Ticket,
    taken: Result<(), Refusal>,
    effects: &mut Vec<Effect>,
) {
    if let Err(refusal) = taken {
        effects.push(Effect::Answer { ticket, answer: Err(refusal) });
    }
}

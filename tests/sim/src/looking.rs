//! What is checked of a replica as it runs: after each event, at each list of snapshots, in each
//! state.

use lockstep_core::apply::LogClock;
use lockstep_core::fault::{Fault, Shortage};
use lockstep_core::group::trial::Stage;
use lockstep_core::group::{Event, Halt, ReplicaState, Role, Running, Stopped};
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::snapshot::{Hold, SnapshotDesc};
use lockstep_host::store::SnapshotStore;

use crate::check::{
    budget, commits, descriptors, memory, orders, recovery_points, snapshots, states,
};
use crate::world::{Action, MS, SECOND, World};

impl World {
    /// Computes how far each group's log time may have come by now.
    pub(crate) fn lift_times(&mut self) {
        for process in self.nodes.values().filter_map(|node| node.process.as_ref()) {
            for (group, replica) in &process.replicas {
                let configuration = &replica.group.recovery_state().configuration;
                self.checks.times.lift(*group, self.now, configuration);
            }
        }
    }

    /// An apply lane applied entries: the log's time must be one that the voters' clocks allow.
    pub(crate) fn check_time(&mut self, group: GroupId, event: &Event) {
        if let Event::Tried { stage, .. } = event {
            self.counters.add(match stage {
                Stage::Moved => "states moved in a trial",
                _failed => "states that did not move",
            });
        }
        let Event::Applied(applied) = event else { return };
        let Some(LogClock { time_ms, switches, previous, .. }) = applied.clock else { return };
        if previous.is_some() {
            self.counters.add("entries applied after an upgrade");
        }
        let frozen = orders::frozen(&self.observed, group, applied.last, switches.frozen);
        self.check(frozen);
        if self.checks.times.applied(group, time_ms).is_err() {
            // The ceiling is that of the last tick: compute it for now.
            self.lift_times();
            let plausible = self.checks.times.applied(group, time_ms);
            self.check(plausible);
        }
    }

    pub(crate) fn observe(&mut self, node: NodeId, group: GroupId) {
        let Some(process) = self.nodes.get_mut(&node).and_then(|node| node.process.as_mut()) else {
            return;
        };
        let Some(replica) = process.replicas.get_mut(&group) else { return };
        let status = replica.group.status();
        let state = replica.group.recovery_state();
        let made_by = state.configuration_index;
        self.checks.configurations.seen(group, made_by, &state.configuration);
        let kept = recovery_points::decided(&mut replica.seen, state.first_index, &status);
        let moved = commits::moves(&mut replica.seen.commit, &status);
        self.check(kept);
        self.check(moved);
        if status.role == Role::Leader {
            let leads = self.checks.elections.leads(group, status.term, status.replica);
            self.check(leads);
        }
        self.checks.taken.listed(group, status.replica, &status.snapshots);
        if !self.strayed {
            let checkpoints = self.checks.checkpoints.listed(group, &status.snapshots);
            self.check(checkpoints);
        }
        let agreed = states::agree(&self.observed);
        self.check(agreed);
        self.watch_copy(node, group, &status);
    }

    /// Queues the new list of snapshots for the store lane, which deletes what is not needed.
    pub(crate) fn list(
        &mut self,
        node: NodeId,
        group: GroupId,
        snapshots: Vec<SnapshotDesc>,
        promised: Vec<SnapshotDesc>,
        pressure: bool,
        mut holds: Vec<Box<dyn Hold>>,
    ) {
        let Some(process) = &self.nodes[&node].process else { return };
        let replica = &process.replicas[&group];
        replica.listed.lock().expect("no panic holds it").clone_from(&snapshots);
        let listed = snapshots.clone();
        let job = move |store: &mut SnapshotStore| {
            if pressure {
                store.abandon();
            }
            store.list_durable(&snapshots, &promised);
            holds.iter_mut().for_each(|hold| hold.listed());
            drop(holds);
        };
        let first_index = process.reader.first_index(group).unwrap_or(1);
        replica.store.list_later(listed, first_index, Box::new(job));
        self.schedule_store(node, group);
    }

    /// The store lane carries out its next list; afterwards there must still be a snapshot, or a
    /// log from entry 1, that a start can use.
    pub(crate) fn list_now(&mut self, node: NodeId, group: GroupId) {
        let at = &self.nodes[&node];
        let Some(process) = &at.process else { return };
        let replica = &process.replicas[&group];
        let Some((listed, first_index)) = replica.store.next_list() else { return };
        let listed_before = replica.store.peek(|store| store.listed().to_vec());
        let looks = listed != listed_before && !at.fs.is_halted() && !at.unreadable;
        let before = looks.then(|| recovery_points::Before::of(replica, listed_before));
        replica.store.step();
        if let Some(before) = before.filter(|_| !at.fs.is_halted() && !at.unreadable) {
            // A paused node reads nothing: its time to find the damage begins with the pause's end.
            let since = at.snapshot_rotted_at.max(at.paused_until);
            let rotted = at.rotted.then(|| self.now.saturating_sub(since));
            let checked = recovery_points::listed(replica, first_index, rotted, &before, &listed);
            self.check(checked);
        }
    }

    pub(crate) fn state(&mut self, node: NodeId, group: GroupId, state: &ReplicaState) {
        match state {
            ReplicaState::Stopped(Stopped::Failed(fault)) => self.fails(node, group, fault),
            // The node joins as a new replica.
            ReplicaState::Stopped(Stopped::Removed) => {
                self.counters.add("removed replicas");
                self.after(SECOND, Action::Start { node });
            }
            ReplicaState::Running(Running::Halted(halt)) => self.halts(node, group, halt),
            ReplicaState::Running(Running::DiskFull(shortage)) => self.is_short(node, *shortage),
            ReplicaState::Running(Running::DiskStalled(_)) => {
                self.counters.add("disk stalled state");
            }
            ReplicaState::Running(Running::Rebuilding(_)) => {
                self.counters.add("rebuilding state");
            }
            ReplicaState::Running(Running::MemoryHigh(_)) => {
                self.counters.add("memory high state");
            }
            ReplicaState::Running(Running::Frozen) => self.counters.add("frozen state"),
            ReplicaState::Running(Running::NeedsSnapshot(_)) => self.needs_snapshot(node, group),
            ReplicaState::Stopped(Stopped::Requested)
            | ReplicaState::Running(Running::Serving | Running::Restoring | Running::Joining) => {}
        }
    }

    fn fails(&mut self, node: NodeId, group: GroupId, fault: &Fault) {
        self.counters.add("stopped replicas");
        match fault {
            // The process is started again, on a disk that works.
            Fault::Log(why) => {
                self.after(200 * MS, Action::Start { node });
                let waited = descriptors::waited_for(why);
                self.check(waited);
            }
            Fault::RolledBack { .. } | Fault::OldCopy { .. } | Fault::Superseded { .. }
                if self.nodes[&node].copy.is_some() =>
            {
                self.copy_stops(node, fault);
            }
            Fault::RolledBack { .. }
            | Fault::OldCopy { .. }
            | Fault::Superseded { .. }
            | Fault::Diverged { .. }
            | Fault::Internal(_)
            | Fault::LogRefused(_)
            | Fault::Unusable(_)
            | Fault::Restore(_)
            | Fault::NoRecoverableSnapshot(_)
            | Fault::NoModule { .. }
            | Fault::WrongLineage { .. }
            | Fault::Guest(_) => {
                let what = format!("node {node}, group {group} failed: {fault}");
                self.check(crate::check::violated("liveness", what));
            }
        }
    }

    fn halts(&mut self, node: NodeId, group: GroupId, halt: &Halt) {
        let had_memory = memory::had(&halt.fault);
        self.check(had_memory);
        if let Fault::Diverged { index, repairing } = halt.fault {
            return self.diverges(node, group, index, repairing);
        }
        let trapped = halt.fault.entry().is_some();
        match halt.applied_by {
            // The replica tries again by itself once it can open files.
            _ if halt.fault.lacks_resource() && self.nodes[&node].unreadable => {
                self.counters.add("replicas halted for want of descriptors");
            }
            _ if !trapped => {
                let what = format!("node {node}, group {group} halts: {}", halt.fault);
                self.check(crate::check::violated("liveness", what));
            }
            // A peer's snapshot takes it past the entry. If all others halt as well, a start must.
            Some(_) => {
                self.counters.add("replicas halted alone");
                self.after(60 * SECOND, Action::Start { node });
            }
            None => {
                self.counters.add("halted replicas");
                self.after(30 * SECOND, Action::Start { node });
            }
        }
    }

    /// The operator has it repaired.
    fn diverges(&mut self, node: NodeId, group: GroupId, index: u64, repairing: bool) {
        let what = if repairing { "replicas to be repaired" } else { "replicas that diverged" };
        self.counters.add(what);
        let process = self.nodes[&node].process.as_ref();
        let replica = process.and_then(|process| process.replicas.get(&group));
        let Some(replica) = replica.map(|it| it.group.recovery_state().replica) else { return };
        let judged = self.checks.taken.judged(group, replica, index);
        self.check(judged);
    }

    fn is_short(&mut self, node: NodeId, shortage: Shortage) {
        self.counters.add("disk full state");
        match shortage {
            // The log itself needs two segments at most; a larger need includes the next snapshot.
            Shortage::Disk { need, .. } if need > 2 * self.setup.segment_bytes => {
                self.counters.add("logs near the next snapshot's space");
            }
            Shortage::Disk { .. } => {}
            Shortage::Log { .. } => self.counters.add("logs at their bound"),
        }
        let kept = budget::undisturbed(&self.nodes[&node], self.setup.apart, self.now, shortage);
        self.check(kept);
    }

    fn needs_snapshot(&mut self, node: NodeId, group: GroupId) {
        self.counters.add("needs snapshot state");
        let at = &self.nodes[&node];
        let replica = at.process.as_ref().and_then(|process| process.replicas.get(&group));
        // The damage may be in the log after a good snapshot.
        let undamaged = replica.filter(|_| !at.unreadable && at.corrupt_log.is_none());
        let checked = undamaged.map_or(Ok(()), snapshots::needs_one);
        self.check(checked);
    }
}

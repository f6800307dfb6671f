//! One step of one lane of a node, and what follows from it.

use lockstep_core::fault::{Fault, Refusal};
use lockstep_core::group::{ApplyJob, Event, Found};
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_host::group::Asker;
use lockstep_host::group::apply_lane::{Output, restores};
use lockstep_host::group::log_lane::LogOutput;

use crate::node::StoreHang;
use crate::stalls::needs_disk;
use crate::world::{Action, Captured, MS, SECOND, World};

/// How long a step waits before it looks again whether a hanging disk answers.
const HANGS_AGAIN: u64 = 100 * MS;
/// How long an apply lane waits at a checkpoint for the disk of its snapshots.
const DISK_PATIENCE: u64 = 3 * SECOND;
/// The first number of callers outside the simulated clients.
const STRANGERS: u64 = 1_000;

impl World {
    pub(crate) fn schedule_log(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(process) = node.process.as_mut().filter(|p| !p.log_scheduled) else { return };
        process.log_scheduled = true;
        let epoch = process.epoch;
        let slow = self.rng.percent(1) && !self.calm;
        if slow {
            self.counters.add("stalled disks");
        }
        let delay =
            if slow { self.rng.between(SECOND, 4 * SECOND) } else { self.rng.below(4 * MS) };
        self.after(delay, Action::Log { node: id, epoch });
    }

    pub(crate) fn log_step(&mut self, id: NodeId, epoch: u64) {
        if self.is_paused(id) {
            return self.put_off(id, Action::Log { node: id, epoch });
        }
        if self.nodes[&id].hangs_since.is_some() {
            return self.after(HANGS_AGAIN, Action::Log { node: id, epoch });
        }
        let watched = self.before_a_batch(id);
        let Some(process) = self.process(id, epoch) else { return };
        process.log_scheduled = false;
        let mut outputs = Vec::new();
        let durable = &mut |batch| outputs.extend(batch);
        let stepped = if process.log.is_stalled() || process.queue.is_empty() {
            process.log.tend(durable)
        } else {
            let round = std::mem::take(&mut process.queue);
            let written = process.log.write(round, durable);
            written.and_then(|rest| Ok([rest, process.log.housekeep()?.0].concat()))
        };
        let again = process.log.is_stalled() || !process.queue.is_empty();
        let groups: Vec<GroupId> = process.replicas.keys().copied().collect();
        if again {
            self.schedule_log(id);
        }
        self.fall_if_halted(id);
        if self.process(id, epoch).is_none() {
            return;
        }
        let failed = match stepped {
            Ok(rest) => {
                outputs.extend(rest);
                None
            }
            Err(error) => Some(Fault::Log(error.to_string())),
        };
        let persisted = |output: &LogOutput| matches!(output, LogOutput::Persisted { .. });
        let durable = failed.is_none() && outputs.iter().any(persisted);
        if let Some(before) = watched.filter(|_| durable) {
            self.batch_written(id, before);
        }
        let mut events = Vec::new();
        for output in outputs {
            match output {
                LogOutput::Persisted { group, seq } => {
                    events.push((group, Event::Persisted { seq }));
                }
                LogOutput::Space(shortage) => {
                    events.extend(groups.iter().map(|g| (*g, Event::LogSpace(shortage))));
                }
                LogOutput::Damaged { group, below } => {
                    events.push((group, Event::LogDamaged { below }));
                }
                LogOutput::Refused { group, why } => {
                    let what = format!("group {group}: {why}");
                    self.check(crate::check::violated("gapless", what));
                }
            }
        }
        if let Some(fault) = failed {
            self.counters.add("io errors");
            events.extend(groups.iter().map(|group| (*group, Event::Faulted(fault.clone()))));
        }
        for (group, event) in events {
            self.event(id, group, vec![event]);
        }
    }

    pub(crate) fn schedule_store(&mut self, node: NodeId, group: GroupId) {
        let slow = self.rng.percent(10) && !self.calm;
        let delay =
            if slow { self.rng.between(50 * MS, 3 * SECOND) } else { self.rng.below(3 * MS) };
        let process = self.nodes.get_mut(&node).and_then(|node| node.process.as_mut());
        let Some(process) = process else { return };
        let epoch = process.epoch;
        let Some(replica) = process.replicas.get_mut(&group) else { return };
        if !replica.store_scheduled && !replica.store.is_idle() {
            replica.store_scheduled = true;
            if slow {
                self.counters.add("deletions that wait");
            }
            self.after(delay, Action::Store { node, epoch, group });
        }
    }

    pub(crate) fn store_step(&mut self, node: NodeId, epoch: u64, group: GroupId) {
        if self.is_paused(node) {
            return self.put_off(node, Action::Store { node, epoch, group });
        }
        if self.nodes[&node].store_is_hanging() {
            return self.after(HANGS_AGAIN, Action::Store { node, epoch, group });
        }
        let Some(process) = self.process(node, epoch) else { return };
        let Some(replica) = process.replicas.get_mut(&group) else { return };
        replica.store_scheduled = false;
        self.list_now(node, group);
        self.fall_if_halted(node);
        self.schedule_store(node, group);
    }

    pub(crate) fn schedule_apply(&mut self, node: NodeId, group: GroupId) {
        let delay = if self.rng.percent(2) && !self.calm {
            self.counters.add("slow guests");
            self.rng.between(50 * MS, 600 * MS)
        } else {
            self.rng.below(2 * MS)
        };
        let Some(process) = self.nodes.get_mut(&node).and_then(|n| n.process.as_mut()) else {
            return;
        };
        let epoch = process.epoch;
        let Some(replica) = process.replicas.get_mut(&group) else { return };
        if !replica.lane_scheduled && !replica.jobs.is_empty() {
            replica.lane_scheduled = true;
            self.after(delay, Action::Apply { node, epoch, group });
        }
    }

    pub(crate) fn apply_step(&mut self, node: NodeId, epoch: u64, group: GroupId) {
        if self.is_paused(node) {
            return self.put_off(node, Action::Apply { node, epoch, group });
        }
        if self.nodes[&node].store_hangs != StoreHang::No && self.fail_capture(node, epoch, group) {
            return;
        }
        if self.restore_waits(node, epoch, group) {
            return self.after(HANGS_AGAIN, Action::Apply { node, epoch, group });
        }
        let hangs = self.nodes[&node].store_is_hanging();
        let Some(process) = self.process(node, epoch) else { return };
        let replica = process.replicas.get_mut(&group).expect("a group of this node");
        // The guest is in memory: only jobs that read or write snapshots wait for the disk.
        if hangs && replica.jobs.front().is_some_and(needs_disk) {
            return self.after(HANGS_AGAIN, Action::Apply { node, epoch, group });
        }
        replica.lane_scheduled = false;
        let Some(job) = replica.jobs.pop_front() else { return };
        let starts = matches!(job, ApplyJob::Start { .. });
        let outputs = match job {
            ApplyJob::Query { ticket, request, index } => {
                let client = replica.tickets.get(&ticket).map(|waiter| waiter.client as u64);
                let asker = Asker(client.unwrap_or(STRANGERS + ticket.0));
                let (answer, mut outputs) = replica.lane.ask(asker, &request, index);
                outputs.insert(0, Output::Queried { ticket, answer });
                outputs
            }
            job => replica.lane.run(job),
        };
        self.count_outputs(starts, &outputs);
        self.schedule_apply(node, group);
        self.fall_if_halted(node);
        for output in outputs {
            self.lane_says(node, epoch, group, output);
        }
    }

    /// Whether the lane's next job is a restore that is not done yet: it waits for a place, or
    /// takes its time.
    fn restore_waits(&mut self, node: NodeId, epoch: u64, group: GroupId) -> bool {
        let (now, calm) = (self.now, self.calm);
        let mut rng = self.rng.fork();
        let Some(process) = self.process(node, epoch) else { return false };
        let replica = process.replicas.get_mut(&group).expect("a group of this node");
        let Some(job) = replica.jobs.front().filter(|job| restores(job)) else { return false };
        if !replica.lane.may_begin(job) {
            self.counters.add("restores that waited for a place");
            return true;
        }
        let took = if rng.percent(20) && !calm { rng.between(SECOND, 5 * SECOND) } else { 0 };
        if now < *replica.restores_until.get_or_insert(now + took) {
            return true;
        }
        replica.restores_until = None;
        false
    }

    /// Carries out one output of a step of the apply lane.
    fn lane_says(&mut self, node: NodeId, epoch: u64, group: GroupId, output: Output) {
        if let Output::Event(event) = &output {
            self.count_event(event);
            self.check_time(group, event);
        }
        let Some(process) = self.process(node, epoch) else { return };
        let replica = process.replicas.get_mut(&group).expect("a group of this node");
        match output {
            Output::Event(event) => self.event(node, group, vec![event]),
            Output::Queried { ticket, answer } => match (replica.tickets.remove(&ticket), answer) {
                (Some(waiter), answer) => self.queried(waiter, answer),
                (None, Err(Refusal::QueryFaulted { .. })) => {
                    self.counters.add("queries that took the guest with them");
                }
                (None, Err(Refusal::QueryTooMuch { .. })) => {
                    self.counters.add("queries that took too much");
                }
                (None, _) => {}
            },
            Output::Rest(job) => {
                replica.jobs.push_front(job);
                self.schedule_apply(node, group);
            }
            Output::Later(_) => unreachable!("a restore begins only once it has its place"),
            Output::Seal(capture) => {
                replica.sealing += 1;
                let stalls = self.rng.percent(5) && !self.calm;
                if stalls {
                    self.counters.add("stalled stores");
                }
                let most = if stalls { 10 * SECOND } else { 300 * MS };
                let delay = self.rng.between(MS, most);
                let capture = Captured(capture);
                self.after(delay, Action::Seal { node, epoch, group, capture });
            }
        }
    }

    /// Fails the lane's next job, if that is a capture, because the disk of snapshots hangs: the
    /// first one after a wait, later ones at once until the disk answers. True if it was a capture.
    fn fail_capture(&mut self, node: NodeId, epoch: u64, group: GroupId) -> bool {
        let unnoticed = self.nodes[&node].store_hangs == StoreHang::Unnoticed;
        let Some(process) = self.process(node, epoch) else { return false };
        let replica = process.replicas.get_mut(&group).expect("a group of this node");
        let Some(ApplyJob::Capture { index, .. }) = replica.jobs.front() else { return false };
        let (index, why) = (*index, "the disk of its snapshots does not answer".to_owned());
        replica.jobs.pop_front();
        self.nodes.get_mut(&node).expect("a node").store_hangs = StoreHang::Noticed;
        self.counters.add("captures given up for a disk that hangs");
        let delay = if unnoticed { DISK_PATIENCE } else { 0 };
        let event = Box::new(Event::CaptureFailed { index, why, postponed: false });
        self.after(delay, Action::Event { node, epoch, group, event });
        self.after(delay, Action::Apply { node, epoch, group });
        true
    }

    /// Counts starts from an older recovery point, and installs that built a guest.
    fn count_outputs(&mut self, starts: bool, outputs: &[Output]) {
        let any = |is: fn(&Event) -> bool| {
            outputs.iter().any(|output| matches!(output, Output::Event(event) if is(event)))
        };
        let corrupt = any(|event| matches!(event, Event::Corrupt { .. }));
        if starts && corrupt && any(|event| matches!(event, Event::Started { applied: 1.., .. })) {
            self.counters.add("fallback starts");
        }
        let lost = any(|event| {
            matches!(
                event,
                Event::GuestFailed { .. } | Event::NeedsSnapshot { .. } | Event::Overtaken { .. }
            )
        });
        if !lost && any(|event| matches!(event, Event::Restored { .. })) {
            self.counters.add("installs");
        }
    }

    fn count_event(&mut self, event: &Event) {
        match event {
            Event::Corrupt { .. } => self.counters.add("corrupt objects found"),
            Event::SpaceWanted { .. } => self.counters.add("recovery points unlisted for space"),
            Event::CaptureFailed { .. } => self.counters.add("captures failed"),
            Event::NoPlace { .. } => self.counters.add("captures that found no place"),
            _other => {}
        }
    }

    /// Reads a recovery point whole before the core gives up others for it.
    pub(crate) fn prove(
        &mut self,
        node: NodeId,
        epoch: u64,
        group: GroupId,
        snapshot: SnapshotDesc,
    ) {
        if self.nodes[&node].store_is_hanging() {
            return self.after(HANGS_AGAIN, Action::Prove { node, epoch, group, snapshot });
        }
        let Some(process) = self.process(node, epoch) else { return };
        let object = snapshot.clone();
        let replica = &process.replicas[&group];
        let read = replica.with_store(move |store| store.recoverable(&object));
        self.fall_if_halted(node);
        self.counters.add("recovery points read before others were given up");
        let found = read.map_or_else(Found::from, |()| Found::Whole);
        if self.nodes[&node].rotted && matches!(found, Found::Bad(_)) {
            self.counters.add("rot found before others were given up");
        }
        self.event(node, group, vec![Event::Read { snapshot, found }]);
    }

    pub(crate) fn seal_step(
        &mut self,
        node: NodeId,
        epoch: u64,
        group: GroupId,
        capture: Captured,
    ) {
        if self.is_paused(node) {
            return self.put_off(node, Action::Seal { node, epoch, group, capture });
        }
        if self.nodes[&node].store_is_hanging() {
            return self.after(HANGS_AGAIN, Action::Seal { node, epoch, group, capture });
        }
        let Some(process) = self.process(node, epoch) else { return };
        let replica = process.replicas.get_mut(&group).expect("it captured");
        replica.sealing -= 1;
        let store = std::sync::Arc::clone(&replica.store);
        let event = capture.0.seal(&*store);
        if matches!(event, Event::Captured(_)) {
            self.counters.add("local snapshots");
        }
        self.fall_if_halted(node);
        if self.process(node, epoch).is_some() {
            self.event(node, group, vec![event]);
        }
    }
}

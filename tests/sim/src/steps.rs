//! One step of one lane, and where its effects go.

use lockstep_core::entry::is_mark;
use lockstep_core::fault::{Fault, Stall};
use lockstep_core::group::{
    ApplyJob, Body, Effect, Event, Frame, Inbound, ReplicaState, Running, Stopped,
};
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::ObjectRef;
use lockstep_host::group::apply_lane::Output;
use lockstep_host::group::log_lane::LogOutput;

use crate::check::durable::{self, View, Views};
use crate::check::promises;
use crate::node::{DATA, NoStart, Process};
use crate::stalls::needs_disk;
use crate::world::{Action, Captured, MS, SECOND, World};

/// How soon it is looked again whether a disk that hangs is back.
const HANGS_AGAIN: u64 = 100 * MS;

impl World {
    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Event { node, .. }
            | Action::Report { node, .. }
            | Action::Fetch { node, .. }
            | Action::Prove { node, .. }
                if self.is_paused(node) =>
            {
                self.put_off(node, action);
            }
            Action::Tick { node } => self.tick(node),
            Action::Deliver { to, inbound } => self.deliver(to, *inbound),
            Action::Log { node, epoch } => self.log_step(node, epoch),
            Action::Apply { node, epoch, group } => self.apply_step(node, epoch, group),
            Action::Event { node, epoch, group, event } => {
                if self.process(node, epoch).is_some() {
                    self.event(node, group, vec![*event]);
                }
            }
            Action::Fetch { node, epoch, group, from, to, bytes } => {
                let Some(process) = self.process(node, epoch) else { return };
                let entries = process.reader.entries(group, from, to, bytes).ok();
                self.event(node, group, vec![Event::Fetched { from, entries }]);
            }
            Action::Seal { node, epoch, group, capture } => {
                self.seal_step(node, epoch, group, capture);
            }
            Action::Prove { node, epoch, group, snapshot } => {
                self.prove(node, epoch, group, snapshot);
            }
            Action::Bulk { transfer, to_receiver } => self.bulk_step(transfer, to_receiver),
            Action::BulkTick { transfer } => self.bulk_tick(transfer),
            Action::Report { transfer, node, epoch, group, event } => {
                if self.process(node, epoch).is_none() {
                    self.checks.reports.forgotten(transfer);
                } else {
                    let reported = self.checks.reports.reported(transfer);
                    self.check(reported);
                    self.event(node, group, vec![*event]);
                }
            }
            Action::Trouble { transfer } => self.trouble(transfer),
            Action::Client { client } => self.client_step(client),
            Action::Timeout { client, attempt } => self.client_timeout(client, attempt),
            Action::Fault => self.fault_step(),
            Action::Start { node } => self.start(node),
            Action::Mend { what } => self.mend(what),
            Action::Look => self.look(),
            Action::Scrub { node } => self.scrub(node),
        }
    }

    /// The process of a node, if it is still the one of `epoch` and not paused.
    pub(crate) fn process(&mut self, node: NodeId, epoch: u64) -> Option<&mut Process> {
        let node = self.nodes.get_mut(&node)?;
        node.process.as_mut().filter(|process| process.epoch == epoch)
    }

    pub(crate) fn is_paused(&self, node: NodeId) -> bool {
        self.nodes[&node].paused_until > self.now
    }

    /// Puts an action of a paused node off.
    fn put_off(&mut self, node: NodeId, action: Action) {
        // Not until its end: healing ends the pause early.
        let until = self.nodes[&node].paused_until.min(self.now + SECOND);
        self.at(until + 1, action);
    }

    fn tick(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let every = node.tick_us();
        self.after(every, Action::Tick { node: id });
        if self.is_paused(id) {
            return;
        }
        let node = self.nodes.get_mut(&id).expect("a node");
        let wall_ms = node.wall_ms(self.now);
        node.time.set(wall_ms, self.now);
        self.checks.times.ticks(id, self.now, wall_ms);
        self.lift_times();
        let node = self.nodes.get_mut(&id).expect("a node");
        let running_ms = self.now / MS;
        let (hangs, stalled) = (node.hangs_since.is_some(), node.is_stalled(self.now));
        let Some(process) = &mut node.process else { return };
        let groups: Vec<GroupId> = process.replicas.keys().copied().collect();
        let changed = std::mem::replace(&mut process.stalled, stalled) != stalled;
        let (mut wanted, mut rooms) = (Vec::new(), Vec::new());
        // The store lane hangs as well.
        for (group, replica) in process.replicas.iter().filter(|_| !hangs) {
            let (unlist, room) =
                replica.with_store(move |store| (store.tend(running_ms), store.next_room()));
            wanted.extend(unlist.map(|unlist| (*group, unlist)));
            rooms.extend(room.map(|room| (*group, room)));
        }
        if !process.log_scheduled && (self.now / (100 * MS)).is_multiple_of(3) {
            self.schedule_log(id);
        }
        for (group, unlist) in wanted {
            self.counters.add("recovery points given to other groups");
            self.event(id, group, vec![Event::RoomWanted { unlist, capture: None }]);
        }
        for (group, room) in rooms {
            self.event(id, group, vec![Event::SnapshotRoom(room)]);
        }
        for group in groups {
            if changed {
                let stall = stalled.then(|| Stall { path: DATA.to_owned() });
                self.event(id, group, vec![Event::DiskStalled(stall)]);
            }
            self.event(id, group, vec![Event::Tick { wall_ms }]);
        }
    }

    fn deliver(&mut self, to: NodeId, inbound: Inbound) {
        if self.is_paused(to) {
            return self.put_off(to, Action::Deliver { to, inbound: Box::new(inbound) });
        }
        let group = inbound.frame.group;
        if self.nodes[&to].process.is_some() {
            self.event(to, group, vec![Event::Frame(inbound)]);
        }
    }

    /// Hands events to a group, flushes, carries out what follows, and looks at it.
    pub(crate) fn event(&mut self, node: NodeId, group: GroupId, events: Vec<Event>) {
        let Some(process) = self.nodes.get_mut(&node).and_then(|node| node.process.as_mut()) else {
            return;
        };
        let Some(replica) = process.replicas.get_mut(&group) else { return };
        let mut effects = Vec::new();
        for event in events {
            if self.verbose && !matches!(event, Event::Tick { .. } | Event::Frame(_)) {
                eprintln!("{:>12}   node {node} hears {event:?}", self.now);
            }
            if let Event::Rotten { snapshot, .. } | Event::Read { snapshot, bad: Some(_) } = &event
            {
                replica.seen.rotten.push(ObjectRef::of(snapshot));
            }
            replica.group.handle(event, &mut effects);
        }
        replica.group.flush(&mut effects);
        self.carry_out(node, group, effects);
        self.observe(node, group);
        self.fall_if_halted(node);
    }

    pub(crate) fn carry_out(&mut self, node: NodeId, group: GroupId, effects: Vec<Effect>) {
        for effect in effects {
            let Some(process) = self.nodes.get_mut(&node).and_then(|n| n.process.as_mut()) else {
                return;
            };
            let epoch = process.epoch;
            let replica = process.replicas.get_mut(&group).expect("a group of this node");
            match effect {
                Effect::Persist { seq, job } => {
                    process.queue.push((seq, job));
                    self.schedule_log(node);
                }
                Effect::Fetch { from, to, bytes } => {
                    let delay = self.rng.between(100, 5 * MS);
                    self.after(delay, Action::Fetch { node, epoch, group, from, to, bytes });
                }
                Effect::Apply(job) => {
                    if let ApplyJob::Capture { index, .. } = &job
                        && let Ok(entries) = process.reader.entries(group, *index, *index + 1, 1)
                        && !entries.iter().any(|entry| is_mark(&entry.data))
                    {
                        self.counters.add("snapshots between marks");
                    }
                    replica.jobs.push_back(job);
                    self.schedule_apply(node, group);
                }
                Effect::List { snapshots, promised, pressure, holds } => {
                    self.list(node, group, (snapshots, promised), (pressure, holds));
                }
                Effect::Prove { snapshot } => {
                    let delay = self.rng.between(MS, 500 * MS);
                    self.after(delay, Action::Prove { node, epoch, group, snapshot });
                }
                Effect::Send { to, frame } => self.send(node, to, *frame),
                Effect::SendSnapshot { to, snapshot, purpose, insist } => {
                    self.begin_transfer(node, group, (to, snapshot, purpose, insist));
                }
                Effect::Judged { object, taken } => {
                    if let Some((_, transfer)) = replica.judged.take_if(|(o, _)| *o == object) {
                        self.judged(transfer, taken);
                    }
                }
                Effect::Answer { ticket, answer } => {
                    if let Some(to) = replica.tickets.remove(&ticket) {
                        self.answer(to, node, group, answer);
                    }
                }
                Effect::State(state) => self.state(node, group, &state),
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        let process = self.nodes[&from].process.as_ref().expect("it sends");
        let promised = promises::sends(&frame, &process.reader);
        self.check(promised);
        let voted = self.checks.votes.sends(&frame);
        self.check(voted);
        if matches!(frame.body, Body::Want(_)) {
            self.counters.add("wants");
        }
        let mut rng = self.rng.fork();
        let arrivals = self.network.arrivals(from, to, self.now, &mut rng, &mut self.counters);
        for at in arrivals {
            let via = format!("node-{from}").into();
            let inbound = Box::new(Inbound { frame: frame.clone(), via });
            self.at(at, Action::Deliver { to, inbound });
        }
    }

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

    fn log_step(&mut self, id: NodeId, epoch: u64) {
        if self.is_paused(id) {
            return self.put_off(id, Action::Log { node: id, epoch });
        }
        if self.nodes[&id].hangs_since.is_some() {
            return self.after(HANGS_AGAIN, Action::Log { node: id, epoch });
        }
        let Some(process) = self.process(id, epoch) else { return };
        process.log_scheduled = false;
        let mut outputs = Vec::new();
        let durable = &mut |batch| outputs.extend(batch);
        let stepped = match process.log.is_stalled() || process.queue.is_empty() {
            true => process.log.tend(durable),
            false => {
                let round = std::mem::take(&mut process.queue);
                let written = process.log.write(round, durable);
                written.and_then(|rest| Ok([rest, process.log.housekeep()?].concat()))
            }
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
        let mut events = Vec::new();
        for output in outputs {
            match output {
                LogOutput::Persisted { group, seq } => {
                    events.push((group, Event::Persisted { seq }));
                }
                LogOutput::Room(shortage) => {
                    events.extend(groups.iter().map(|g| (*g, Event::Room(shortage))));
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

    fn schedule_apply(&mut self, node: NodeId, group: GroupId) {
        let delay = match self.rng.percent(2) && !self.calm {
            true => {
                self.counters.add("slow guests");
                self.rng.between(50 * MS, 600 * MS)
            }
            false => self.rng.below(2 * MS),
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

    fn apply_step(&mut self, node: NodeId, epoch: u64, group: GroupId) {
        if self.is_paused(node) {
            return self.put_off(node, Action::Apply { node, epoch, group });
        }
        let hangs = self.nodes[&node].hangs_since.is_some();
        let Some(process) = self.process(node, epoch) else { return };
        let replica = process.replicas.get_mut(&group).expect("a group of this node");
        // The guest lives in memory, but snapshots do not.
        if hangs && replica.jobs.front().is_some_and(needs_disk) {
            return self.after(HANGS_AGAIN, Action::Apply { node, epoch, group });
        }
        replica.lane_scheduled = false;
        let Some(job) = replica.jobs.pop_front() else { return };
        let starts = matches!(job, ApplyJob::Start { .. });
        let outputs = replica.lane.run(job);
        self.count_outputs(starts, &outputs);
        self.schedule_apply(node, group);
        self.fall_if_halted(node);
        for output in outputs {
            match output {
                Output::Event(event) => {
                    self.count_event(&event);
                    self.check_time(group, &event);
                    if self.process(node, epoch).is_some() {
                        self.event(node, group, vec![event]);
                    }
                }
                Output::Queried { ticket, answer } => {
                    let Some(process) = self.process(node, epoch) else { continue };
                    let replica = process.replicas.get_mut(&group).expect("a group of this node");
                    if let Some(to) = replica.tickets.remove(&ticket) {
                        self.queried(to, answer);
                    }
                }
                Output::Rest(job) => {
                    let Some(process) = self.process(node, epoch) else { continue };
                    let replica = process.replicas.get_mut(&group).expect("a group of this node");
                    replica.jobs.push_front(job);
                    self.schedule_apply(node, group);
                }
                Output::Seal(capture) => {
                    let stalls = self.rng.percent(5) && !self.calm;
                    if stalls {
                        self.counters.add("stalled stores");
                    }
                    let most = if stalls { 10 * SECOND } else { 300 * MS };
                    let delay = self.rng.between(MS, most);
                    let capture = Captured(capture);
                    let Some(process) = self.process(node, epoch) else { continue };
                    process.replicas.get_mut(&group).expect("it captured").sealing += 1;
                    self.after(delay, Action::Seal { node, epoch, group, capture });
                }
            }
        }
    }

    /// A start that took an older recovery point, and an install that brought a guest.
    fn count_outputs(&mut self, starts: bool, outputs: &[Output]) {
        let any = |is: fn(&Event) -> bool| {
            outputs.iter().any(|output| matches!(output, Output::Event(event) if is(event)))
        };
        let rotten = any(|event| matches!(event, Event::Rotten { .. }));
        if starts && rotten && any(|event| matches!(event, Event::Started { applied: 1.., .. })) {
            self.counters.add("fallback starts");
        }
        let lost = any(|event| {
            matches!(event, Event::Faulted(_) | Event::NeedsSnapshot { .. } | Event::Overtaken)
        });
        if !lost && any(|event| matches!(event, Event::Restored { .. })) {
            self.counters.add("installs");
        }
    }

    fn count_event(&mut self, event: &Event) {
        match event {
            Event::Rotten { .. } => self.counters.add("rotten objects found"),
            Event::RoomWanted { .. } => self.counters.add("recovery points unlisted for room"),
            Event::CaptureFailed { .. } => self.counters.add("captures failed"),
            _other => {}
        }
    }

    /// Reads a recovery point before others are given up for it.
    fn prove(&mut self, node: NodeId, epoch: u64, group: GroupId, snapshot: SnapshotDesc) {
        let Some(process) = self.process(node, epoch) else { return };
        let object = snapshot.clone();
        let replica = &process.replicas[&group];
        let read = replica.with_store(move |store| store.recoverable(&object));
        self.fall_if_halted(node);
        self.counters.add("recovery points read before others went");
        if self.nodes[&node].rotted && read.is_err() {
            self.counters.add("rot found before others went");
        }
        let bad = read.err().map(|error| error.to_string());
        self.event(node, group, vec![Event::Read { snapshot, bad }]);
    }

    fn seal_step(&mut self, node: NodeId, epoch: u64, group: GroupId, capture: Captured) {
        if self.is_paused(node) {
            return self.put_off(node, Action::Seal { node, epoch, group, capture });
        }
        if self.nodes[&node].hangs_since.is_some() {
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

    pub(crate) fn start(&mut self, id: NodeId) {
        let running = self.nodes[&id].process.as_ref().map(|process| process.epoch);
        if running.is_some() {
            let node = &self.nodes[&id];
            let process = node.process.as_ref().expect("it runs");
            let states: Vec<ReplicaState> =
                process.replicas.values().map(|r| r.group.state().clone()).collect();
            let removed =
                states.iter().any(|s| matches!(s, ReplicaState::Stopped(Stopped::Removed)));
            let ended = states.iter().any(ReplicaState::is_stopped);
            // Nobody has what it could go on from.
            let halted = |state: &ReplicaState| {
                matches!(state, ReplicaState::Running(Running::Halted(halt))
                    if halt.applied_by.is_none())
            };
            if !ended && !states.iter().any(halted) {
                return;
            }
            self.fall(id, true);
            if removed {
                self.lose_disk(id);
            }
        }
        if self.nodes[&id].hangs_since.is_some() {
            return self.after(SECOND, Action::Start { node: id });
        }
        self.ids += 1;
        let (epoch, seed) = (self.ids, self.rng.next_u64());
        let node = self.nodes.get_mut(&id).expect("a node");
        node.time.set(node.wall_ms(self.now), self.now);
        match node.start(&self.setup, &self.observed, epoch, seed) {
            Ok(first) => {
                let before =
                    self.checks.down.remove(&id).filter(|_| !self.nodes[&id].is_doubtful());
                if let Some(before) = before {
                    let kept = durable::kept(&before, &self.views_of(id));
                    self.check(kept);
                }
                self.counters.add("starts");
                self.fall_if_halted(id);
                self.check_start(id);
                for (group, effects) in first {
                    self.carry_out(id, group, effects);
                }
            }
            Err(NoStart::Disk(_)) => {
                self.counters.add("starts failed");
                self.nodes[&id].fs.crash();
                let again = self.rng.between(100 * MS, SECOND);
                self.after(again, Action::Start { node: id });
            }
            Err(ref refused @ (NoStart::Damaged(ref why) | NoStart::Strays(ref why))) => {
                let node = &self.nodes[&id];
                let excused = match refused {
                    NoStart::Strays(_) => node.rotted,
                    NoStart::Damaged(_) | NoStart::Disk(_) => node.rotten_log.is_some(),
                };
                if !excused {
                    let what = format!("node {id} does not start, though no bit rotted: {why}");
                    return self.check(crate::check::violated("gapless", what));
                }
                self.counters.add("log rejoins");
                self.lose_disk(id);
                self.after(SECOND, Action::Start { node: id });
            }
        }
        self.fall_if_halted(id);
    }

    /// What a node's durable logs are like.
    pub(crate) fn views_of(&self, node: NodeId) -> Views {
        let Some(process) = &self.nodes[&node].process else { return Views::new() };
        let groups = process.replicas.keys();
        groups.filter_map(|group| Some((*group, view(process, *group)?))).collect()
    }
}

pub(crate) fn view(process: &Process, group: GroupId) -> Option<View> {
    let state = process.reader.state(group)?;
    let last_index = process.reader.last_index(group)?;
    let terms = process.reader.terms(group)?;
    Some(View {
        replica: state.replica,
        term: state.term,
        vote: state.vote,
        commit: state.commit,
        first_index: state.first_index,
        terms,
        last_index,
    })
}

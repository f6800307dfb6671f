//! One step of the world: carries out an action, and the effects of a group.

use lockstep_core::entry::is_checkpoint;
use lockstep_core::fault::Stall;
use lockstep_core::group::trial::{Preparation, Stage};
use lockstep_core::group::{ApplyJob, Body, Effect, Event, Found, Frame, Inbound};
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::snapshot::chunk::ObjectRef;

use crate::bulk::Wish;
use crate::check::{divergence, promises};
use crate::node::{DATA, Process};
use crate::world::{Action, MS, SECOND, World};

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
            Action::Fetch { node, .. } if self.nodes[&node].hangs_since.is_some() => {
                self.after(100 * MS, action);
            }
            Action::Fetch { node, epoch, group, from, to, bytes } => {
                let Some(process) = self.process(node, epoch) else { return };
                let entries = process.reader.entries(group, from, to, bytes).ok();
                self.event(node, group, vec![Event::Fetched { from, entries }]);
            }
            Action::Seal { node, epoch, group, capture } => {
                self.seal_step(node, epoch, group, capture);
            }
            Action::Store { node, epoch, group } => self.store_step(node, epoch, group),
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
            Action::Operate => self.operate(),
            Action::Stray { node } => self.stray(node),
        }
    }

    /// The process of a node, if it is still the one of `epoch`.
    pub(crate) fn process(&mut self, node: NodeId, epoch: u64) -> Option<&mut Process> {
        let node = self.nodes.get_mut(&node)?;
        node.process.as_mut().filter(|process| process.epoch == epoch)
    }

    pub(crate) fn is_paused(&self, node: NodeId) -> bool {
        self.nodes[&node].paused_until > self.now
    }

    /// Postpones an action of a paused node.
    pub(crate) fn put_off(&mut self, node: NodeId, action: Action) {
        // Postpones by a second at most, because healing may end the pause early.
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
        let (hangs, stalled) = (node.store_is_hanging(), node.is_stalled(self.now));
        let Some(process) = &mut node.process else { return };
        let groups: Vec<GroupId> = process.replicas.keys().copied().collect();
        let changed = std::mem::replace(&mut process.stalled, stalled) != stalled;
        let (mut wanted, mut spaces) = (Vec::new(), Vec::new());
        // A store lane that hangs, or has lists in its queue, is skipped.
        for (group, replica) in process.replicas.iter().filter(|(_, r)| !hangs && r.store.is_idle())
        {
            let (unlist, space) =
                replica.with_store(move |store| (store.tend(running_ms), store.next_space()));
            wanted.extend(unlist.map(|unlist| (*group, unlist)));
            spaces.extend(space.map(|space| (*group, space)));
        }
        if !process.log_scheduled && (self.now / (100 * MS)).is_multiple_of(3) {
            self.schedule_log(id);
        }
        for (group, unlist) in wanted {
            self.counters.add("recovery points given up for other groups");
            self.event(id, group, vec![Event::SpaceWanted { unlist, capture: None }]);
        }
        for (group, space) in spaces {
            self.event(id, group, vec![Event::SnapshotSpace(space)]);
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
        // An old copy may count as many starts as the newer life: frames from it do not show that
        // their receiver knows of that life.
        let sender = self.nodes.get(&inbound.frame.from.node());
        let by_a_copy = sender.is_some_and(|sender| sender.copy.is_some());
        if let Some(process) = &mut self.nodes.get_mut(&to).expect("a node").process {
            if !by_a_copy {
                process.hears(&inbound.frame);
            }
            self.event(to, group, vec![Event::Frame(inbound)]);
        }
    }

    /// Hands events to a group, flushes it, carries out its effects, and checks it.
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
            if let Event::Corrupt { snapshot, .. }
            | Event::Read { snapshot, found: Found::Bad(_) } = &event
            {
                replica.seen.corrupt.push(ObjectRef::of(snapshot));
            }
            replica.group.handle(event, &mut effects);
        }
        replica.group.flush(&mut effects);
        self.carry_out(node, group, effects);
        self.note_orders(node, group);
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
                        && !entries.iter().any(|entry| is_checkpoint(&entry.data))
                    {
                        self.counters.add("snapshots between checkpoints");
                    }
                    replica.jobs.push_back(job);
                    self.schedule_apply(node, group);
                }
                Effect::List { snapshots, promised, pressure, holds } => {
                    self.list(node, group, snapshots, promised, pressure, holds);
                }
                Effect::Prove { snapshot } => {
                    let delay = self.rng.between(MS, 500 * MS);
                    self.after(delay, Action::Prove { node, epoch, group, snapshot });
                }
                Effect::Send { to, frame } => self.send(node, to, *frame),
                Effect::SendSnapshot { to, snapshot, purpose, insist } => {
                    let sends = divergence::sends(replica.group.state(), &snapshot);
                    let wish = Wish { to, snapshot, purpose, insist };
                    self.check(sends);
                    self.begin_transfer(node, group, wish);
                }
                Effect::Prepare(Preparation { trial, .. }) => {
                    let delay = self.rng.between(MS, 2 * SECOND);
                    let fails = self.rng.percent(10) && !self.calm;
                    let failed = || Stage::failed("told to".to_owned());
                    let stage = if fails { failed() } else { Stage::Prepared };
                    let event = Box::new(Event::Tried { trial, stage });
                    self.after(delay, Action::Event { node, epoch, group, event });
                }
                Effect::Judged { object, taken } => {
                    if let Some((_, transfer)) = replica.judged.take_if(|(o, _)| *o == object) {
                        self.judged(transfer, taken);
                    }
                }
                Effect::Answer { ticket, answer } => {
                    if let Some(waiter) = replica.tickets.remove(&ticket) {
                        self.answer(waiter, node, group, answer);
                    }
                }
                Effect::Entered { .. } => self.counters.add("orders obeyed"),
                Effect::State(state) => self.state(node, group, &state),
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        let process = self.nodes[&from].process.as_ref().expect("it sends");
        let promised = promises::sends(&frame, &process.reader);
        self.check(promised);
        // The votes of an old copy are left out: it may have forgotten some that it gave.
        if self.nodes[&from].copy.is_none() {
            let voted = self.checks.votes.sends(&frame);
            self.check(voted);
        }
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
}

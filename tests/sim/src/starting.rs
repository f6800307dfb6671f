//! A process starts on what its disk holds, or fails to.

use lockstep_core::group::{ReplicaState, Running, Stopped};
use lockstep_core::ids::{GroupId, NodeId};

use crate::check::durable::{self, View, Views};
use crate::node::{NoStart, Process};
use crate::operator;
use crate::world::{Action, MS, SECOND, World};

impl World {
    pub(crate) fn start(&mut self, id: NodeId) {
        if let Some(process) = &self.nodes[&id].process {
            if !self.is_over(id, process) {
                return;
            }
            let removed = process.replicas.values().any(|replica| {
                matches!(replica.group.state(), ReplicaState::Stopped(Stopped::Removed))
            });
            self.fall(id, true);
            if removed {
                self.lose_disk(id);
            }
        }
        if self.nodes[&id].store_is_hanging() {
            return self.after(SECOND, Action::Start { node: id });
        }
        self.ids += 1;
        let (epoch, seed) = (self.ids, self.rng.next_u64());
        let node = self.nodes.get_mut(&id).expect("a node");
        node.time.set(node.wall_ms(self.now), self.now);
        match node.start(&self.setup, &self.observed, epoch, seed) {
            Ok(first) => {
                // Damaged or not, a disk that a start accepts holds all that was durable.
                let before = self.checks.down.remove(&id).filter(|_| !self.nodes[&id].unreadable);
                if let Some(before) = before {
                    let kept = durable::kept(&before, &self.views_of(id));
                    self.check(kept);
                }
                self.counters.add("starts");
                self.fall_if_halted(id);
                self.check_start(id);
                self.copy_starts(id);
                for (group, effects) in first {
                    self.carry_out(id, group, effects);
                }
            }
            // Another start on the old copy would count as a later life.
            Err(NoStart::Disk(_)) if self.nodes[&id].copy.is_some() => {
                self.copy_ends(id);
                self.after(SECOND, Action::Start { node: id });
            }
            // A lost sector of the log does not come back, so the operator has the node join anew.
            Err(NoStart::Disk(_)) if self.nodes[&id].log_lost => {
                self.counters.add("rejoins with a bad log");
                self.lose_disk(id);
                self.after(SECOND, Action::Start { node: id });
            }
            Err(NoStart::Disk(why)) => {
                if self.verbose {
                    eprintln!("{:>12}   node {id} does not start: {why}", self.now);
                }
                self.counters.add("starts failed");
                self.nodes[&id].fs.crash();
                let again = self.rng.between(100 * MS, SECOND);
                self.after(again, Action::Start { node: id });
            }
            Err(ref refused @ (NoStart::Damaged(ref why) | NoStart::Strays(ref why))) => {
                let node = &self.nodes[&id];
                let excused = match refused {
                    NoStart::Strays(_) => node.rotted,
                    NoStart::Damaged(_) | NoStart::Disk(_) => node.corrupt_log.is_some(),
                };
                if !excused {
                    let what = format!("node {id} does not start on a sound disk: {why}");
                    return self.check(crate::check::violated("gapless", what));
                }
                self.counters.add("rejoins with a bad log");
                self.lose_disk(id);
                self.after(SECOND, Action::Start { node: id });
            }
        }
        self.fall_if_halted(id);
    }

    /// Whether a process has a replica that goes on only after a restart.
    fn is_over(&self, id: NodeId, process: &Process) -> bool {
        // An old copy runs until each of its groups has stopped.
        if self.nodes[&id].copy.is_some() {
            return process.has_stopped();
        }
        process.replicas.iter().any(|(group, replica)| match replica.group.state() {
            ReplicaState::Stopped(_) => true,
            // A halted replica needs a restart if no replica has a snapshot that it could go on
            // from.
            ReplicaState::Running(Running::Halted(halt)) => {
                let helps = operator::needs_more(halt).is_none();
                helps && (halt.applied_by.is_none() || self.all_halt(*group))
            }
            ReplicaState::Running(
                Running::Serving
                | Running::Restoring
                | Running::Joining
                | Running::NeedsSnapshot(_)
                | Running::DiskFull(_)
                | Running::DiskStalled(_)
                | Running::MemoryHigh(_)
                | Running::Frozen
                | Running::Rebuilding(_),
            ) => false,
        })
    }

    /// Whether no running replica of a group applies entries: all are halted, or wait for a replica
    /// that is not.
    fn all_halt(&self, group: GroupId) -> bool {
        let running = self.nodes.values().filter_map(|node| node.process.as_ref());
        let mut states = running.map(|process| process.replicas[&group].group.state());
        let waits = |running: &Running| {
            matches!(running, Running::Halted(_) | Running::Joining | Running::NeedsSnapshot(_))
        };
        states.all(|state| matches!(state, ReplicaState::Running(running) if waits(running)))
    }

    /// A node's durable logs, in short.
    pub(crate) fn views_of(&self, node: NodeId) -> Views {
        let Some(process) = &self.nodes[&node].process else { return Views::new() };
        let groups = process.replicas.keys();
        groups.filter_map(|group| Some((*group, view(process, *group)?))).collect()
    }
}

/// A group's durable log, in short.
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

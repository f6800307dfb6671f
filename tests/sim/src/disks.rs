//! What goes wrong with disks: operations and reads that fail, no room, no answer, rot, and loss.

use std::path::Path;

use lockstep_core::group::ReplicaState;
use lockstep_core::ids::{NodeId, ReplicaId};
use lockstep_host::fs::mem::DiskFault;

use crate::node::{DATA, Node, SNAPSHOTS, StoreHang};
use crate::world::{Action, MS, Mend, SECOND, World};

impl World {
    pub(crate) fn fail_an_operation(&mut self, node: NodeId) {
        let fault = if self.rng.percent(50) { DiskFault::Io } else { DiskFault::Full };
        let op = self.rng.between(1, 60);
        let node = self.nodes.get_mut(&node).expect("a node");
        node.fs.fail_op(node.fs.ops() + op, fault);
        // A full disk, as far as its log can tell.
        node.log_filled |= fault == DiskFault::Full;
        self.counters.add("operations told to fail");
    }

    /// One of the next reads fails.
    pub(crate) fn fail_a_read(&mut self, node: NodeId) {
        if self.nodes[&node].process.is_none() {
            return;
        }
        let read = self.rng.between(1, 60);
        let node = self.nodes.get_mut(&node).expect("a node");
        node.fs.fail_read(node.fs.reads() + read, DiskFault::Io);
        node.unreadable = true;
        self.counters.add("reads told to fail");
    }

    /// Whatever else the process does takes all descriptors: nothing more can be opened.
    pub(crate) fn take_descriptors(&mut self, node: NodeId) {
        if self.nodes[&node].process.is_none() {
            return;
        }
        let taken = self.nodes.get_mut(&node).expect("a node");
        taken.fs.set_descriptors(false);
        // Nor by a checker.
        taken.unreadable = true;
        self.counters.add("processes without descriptors");
        let until = self.rng.between(100 * MS, 5 * SECOND);
        self.after(until, Action::Mend { what: Mend::Descriptors(node) });
    }

    /// Something else takes the rest of the disk, or of the one that snapshots have of their own.
    pub(crate) fn fill_disk(&mut self, node: NodeId) {
        // Sometimes so that the next snapshot just fits.
        let most = *self.rng.pick(&[3, 9]);
        let left = match self.rng.percent(30) {
            true => 0,
            false => self.rng.below(most * self.setup.segment_bytes),
        };
        let of_snapshots = self.setup.apart && self.rng.percent(60);
        let filled = self.nodes.get_mut(&node).expect("a node");
        match of_snapshots {
            true => {
                let dir = Path::new(SNAPSHOTS);
                filled.fs.mount(dir, filled.fs.used(dir) + left);
                self.counters.add("disks of snapshots fill up");
            }
            false => {
                filled.fs.set_capacity(filled.fs.used(Path::new(DATA)) + left);
                filled.log_filled = true;
                self.counters.add("disk fills up");
            }
        }
        let until = self.rng.between(SECOND, 15 * SECOND);
        self.after(until, Action::Mend { what: Mend::Disk(node) });
    }

    /// Nothing on its disk comes back, for a while or until all faults end.
    pub(crate) fn hang(&mut self, node: NodeId) {
        if self.nodes.values().any(|node| node.hangs_since.is_some()) {
            return;
        }
        self.counters.add("hanging disks");
        // Without it and another one that lost its disk there may be no majority.
        let stays = self.rng.percent(30) && self.may_weaken(node);
        self.nodes.get_mut(&node).expect("a node").hangs_since = Some(self.now);
        if stays {
            self.counters.add("disks that hang to the end");
        } else {
            let until = self.rng.between(SECOND, 60 * SECOND);
            self.after(until, Action::Mend { what: Mend::Hang(node) });
        }
    }

    /// Nothing on the disk that its snapshots have of their own comes back, for a while.
    pub(crate) fn hang_store(&mut self, node: NodeId) {
        if !self.setup.apart || self.nodes[&node].store_hangs != StoreHang::No {
            return;
        }
        self.counters.add("hanging disks of snapshots");
        self.nodes.get_mut(&node).expect("a node").store_hangs = StoreHang::Unnoticed;
        let until = self.rng.between(SECOND, 60 * SECOND);
        self.after(until, Action::Mend { what: Mend::StoreHang(node) });
    }

    /// Whether the disk of `node` may be lost or damaged now.
    pub(crate) fn may_weaken(&self, node: NodeId) -> bool {
        // Of two none may go, and of one there is nothing else.
        let few = self.members < 3;
        let weak = |node: &Node| node.hangs_since.is_some() || node.copy.is_some();
        if few || self.nodes.values().any(weak) {
            return false;
        }
        let groups: Vec<_> = self
            .setup
            .groups
            .iter()
            .map(|name| lockstep_core::ids::GroupId::of_name(name))
            .collect();
        let sound = |group| {
            self.nodes.values().filter(|other| other.id.0 <= self.members).all(|other| {
                let Some(process) = &other.process else { return false };
                let status = process.replicas[&group].group.status();
                // A configuration that only memory knows may be forgotten with the next crash.
                let known = process
                    .reader
                    .state(group)
                    .is_some_and(|durable| durable.configuration == status.configuration);
                known
                    && !status.configuration.is_joint()
                    && status.configuration.voters.len() == usize::from(self.members)
                    && status.configuration.is_voter(status.replica)
                    && matches!(status.state, ReplicaState::Running(_))
                    && status.state.query_refusal().is_none()
                    && !(other.rotted && other.id != node)
            })
        };
        groups.into_iter().all(sound)
    }

    pub(crate) fn wipe(&mut self, id: NodeId) {
        if !self.may_weaken(id) || self.nodes.values().any(|node| node.rotted && node.id != id) {
            return;
        }
        self.counters.add("wipes");
        self.fall(id, false);
        self.lose_disk(id);
        let down = self.rng.between(100 * MS, 3 * SECOND);
        self.after(down, Action::Start { node: id });
    }

    /// The node's disk is empty from now on; who lived there is gone.
    pub(crate) fn lose_disk(&mut self, id: NodeId) {
        let lived = self.empty_disk(id);
        self.are_gone(id, lived);
    }

    /// The node's disk is empty from now on; the replicas that lived there.
    pub(crate) fn empty_disk(&mut self, id: NodeId) -> Vec<ReplicaId> {
        let views: Vec<_> = self.checks.down.remove(&id).into_iter().flatten().collect();
        let lived = views.iter().map(|(_, view)| view.replica).collect();
        self.checks.lost.extend(views);
        let setup = self.setup.clone();
        self.count_strikes(id);
        self.nodes.get_mut(&id).expect("a node").wipe(&setup);
        lived
    }

    /// Nobody hears of these replicas of a node again.
    pub(crate) fn are_gone(&mut self, id: NodeId, lived: impl IntoIterator<Item = ReplicaId>) {
        for replica in lived {
            self.nodes.get_mut(&id).expect("a node").gone.push(replica);
            self.checks.votes.wiped(replica);
        }
    }
}

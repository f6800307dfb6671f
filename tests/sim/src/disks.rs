//! What goes wrong with disks: operations and reads that fail, full and hanging disks, bit rot, and
//! lost disks.

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
        // The log cannot tell this from a full disk.
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

    /// Another part of the process takes all descriptors: no file can be opened.
    pub(crate) fn take_descriptors(&mut self, node: NodeId) {
        if self.nodes[&node].process.is_none() {
            return;
        }
        let taken = self.nodes.get_mut(&node).expect("a node");
        taken.fs.set_descriptors(false);
        // Checkers cannot open files either.
        taken.unreadable = true;
        self.counters.add("processes without descriptors");
        let until = self.rng.between(100 * MS, 5 * SECOND);
        self.after(until, Action::Mend { what: Mend::Descriptors(node) });
    }

    /// Other data fills the disk, or the separate disk of snapshots.
    pub(crate) fn fill_disk(&mut self, node: NodeId) {
        // Sometimes the next snapshot just fits.
        let most = *self.rng.pick(&[3, 9]);
        let left =
            if self.rng.percent(30) { 0 } else { self.rng.below(most * self.setup.segment_bytes) };
        let of_snapshots = self.setup.apart && self.rng.percent(60);
        let filled = self.nodes.get_mut(&node).expect("a node");
        if of_snapshots {
            let dir = Path::new(SNAPSHOTS);
            filled.fs.mount(dir, filled.fs.used(dir) + left);
            self.counters.add("disks of snapshots fill up");
        } else {
            filled.fs.set_capacity(filled.fs.used(Path::new(DATA)) + left);
            filled.log_filled = true;
            self.counters.add("disks of logs fill up");
        }
        let until = self.rng.between(SECOND, 15 * SECOND);
        self.after(until, Action::Mend { what: Mend::Disk(node) });
    }

    /// No operation on its disk returns, for a while or until all faults end.
    pub(crate) fn hang(&mut self, node: NodeId) {
        if self.nodes.values().any(|node| node.hangs_since.is_some()) {
            return;
        }
        self.counters.add("hanging disks");
        // If the disk hung to the end while another node had lost its disk, no majority might be
        // left.
        let stays = self.rng.percent(30) && self.may_weaken(node);
        self.nodes.get_mut(&node).expect("a node").hangs_since = Some(self.now);
        if stays {
            self.counters.add("disks that hang to the end");
        } else {
            let until = self.rng.between(SECOND, 60 * SECOND);
            self.after(until, Action::Mend { what: Mend::Hang(node) });
        }
    }

    /// No operation on the separate disk of its snapshots returns, for a while.
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
        // Groups of one and two survive no lost disk.
        self.members >= 3 && self.all_are_sound(node)
    }

    /// Whether every disk has all that its node should have; that of `node` may be rotted.
    pub(crate) fn all_are_sound(&self, node: NodeId) -> bool {
        let weak = |node: &Node| node.hangs_since.is_some() || node.copy.is_some();
        if self.nodes.values().any(weak) {
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
                // A crash may forget a configuration that is not durable yet.
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

    /// Empties the node's disk; its replicas are gone for good.
    pub(crate) fn lose_disk(&mut self, id: NodeId) {
        let lived = self.empty_disk(id);
        self.are_gone(id, lived);
    }

    /// Empties the disk of a node that is down; returns the replicas that it held.
    pub(crate) fn empty_disk(&mut self, id: NodeId) -> Vec<ReplicaId> {
        let views: Vec<_> = self.checks.down.remove(&id).into_iter().flatten().collect();
        let lived = views.iter().map(|(_, view)| view.replica).collect();
        self.checks.lost.extend(views);
        let setup = self.setup.clone();
        self.count_strikes(id);
        self.nodes.get_mut(&id).expect("a node").wipe(&setup);
        lived
    }

    /// No frame of these replicas may ever be sent again.
    pub(crate) fn are_gone(&mut self, id: NodeId, lived: impl IntoIterator<Item = ReplicaId>) {
        for replica in lived {
            self.nodes.get_mut(&id).expect("a node").gone.push(replica);
            self.checks.votes.wiped(replica);
        }
    }
}

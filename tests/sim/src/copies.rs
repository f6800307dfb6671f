//! Old copies of disks: an image that was kept when a process ended replaces its node's disk, as
//! when an operator starts a node on a backup of its data directory.
//!
//! A process on an old copy has a boot count that an earlier life of its replicas has had already.
//! The first frame from a peer that has heard of the newer life shows this to the process, and each
//! of its groups stops before it acts on that frame. The operator then has the node join anew with
//! an empty disk. What the newer life had promised is lost with its disk; one disk at a time may be
//! lost.
//!
//! Peers keep boot counts in memory only, and only the leader hears a follower's. An old copy that
//! no peer can recognize behaves like the right process. So the simulator takes the old copy down
//! as soon as a replica that does not know of the newer life leads or campaigns, or the old copy
//! itself does so while not all others know.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lockstep_core::fault::Fault;
use lockstep_core::group::{Frame, GroupStatus, ReplicaState, Role};
use lockstep_core::ids::{GroupId, NodeId, ReplicaId};
use lockstep_core::snapshot::Configuration;
use lockstep_host::fs::mem::MemFs;
use lockstep_host::fs::{Fs as _, create_dirs, make_durable};

use crate::check::{Checked, copies};
use crate::node::{Process, StoreHang};
use crate::world::{Action, MS, SECOND, World};

/// A replica in one life, which is one run of its process.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    pub replica: ReplicaId,
    /// Its boot count.
    pub boot: u64,
    /// Where its durable log ended.
    pub last_index: u64,
}

/// The lives of a node's replicas.
pub type Lives = BTreeMap<GroupId, Life>;

/// What a disk held when its process ended.
pub struct Image {
    files: BTreeMap<PathBuf, Vec<u8>>,
    lives: Lives,
}

/// A node whose disk is an old copy.
pub struct Copy {
    /// The lives that the copy lacks: those that its peers heard of last.
    newer: Lives,
    /// Looks in a row at which the copy still ran, though its peers could reach it.
    looks: u64,
}

impl Process {
    /// Notes the boot count of the frame's sender.
    pub fn hears(&mut self, frame: &Frame) {
        if frame.to.is_none() || frame.to == self.replica_id(frame.group) {
            let boot = self.heard.entry((frame.group, frame.from)).or_default();
            *boot = frame.boot.max(*boot);
        }
    }

    fn knows(&self, group: GroupId, life: &Life) -> bool {
        self.heard.get(&(group, life.replica)).is_some_and(|boot| *boot >= life.boot)
    }

    fn lives(&self) -> Lives {
        let life = |(group, replica): (&GroupId, &crate::node::Replica)| {
            let state = replica.group.recovery_state();
            let last_index = self.reader.last_index(*group).unwrap_or(0);
            (*group, Life { replica: state.replica, boot: state.boot, last_index })
        };
        self.replicas.iter().map(life).collect()
    }

    /// Whether each of its replicas is one of several voters, in memory and on disk: a sole voter
    /// would talk to no peer.
    fn votes_with_others(&self) -> bool {
        self.replicas.iter().all(|(group, replica)| {
            let known = replica.group.recovery_state();
            let durable = self.reader.state(*group);
            among_others(&known.configuration, known.replica)
                && durable.is_some_and(|state| among_others(&state.configuration, state.replica))
        })
    }

    /// Whether all replicas of an old copy have stopped.
    pub fn has_stopped(&self) -> bool {
        self.replicas
            .values()
            .all(|replica| matches!(replica.group.state(), ReplicaState::Stopped(_)))
    }
}

fn among_others(configuration: &Configuration, replica: ReplicaId) -> bool {
    let outgoing = configuration.voters_outgoing.len();
    configuration.is_voter(replica) && configuration.voters.len() > 1 && outgoing != 1
}

impl World {
    /// A process is about to end: returns its lives if an image of its disk is to be kept.
    pub(crate) fn lives_to_keep(&mut self, id: NodeId) -> Option<Lives> {
        let drawn = self.rng.percent(60);
        let node = &self.nodes[&id];
        if !drawn || node.rotted || node.copy.is_some() || node.fs.has_bad_sectors() {
            return None;
        }
        let process = node.process.as_ref().filter(|process| process.votes_with_others())?;
        Some(process.lives())
    }

    /// The process has ended: keeps an image of its disk.
    pub(crate) fn keep_image(&mut self, id: NodeId, lives: Lives) {
        let node = self.nodes.get_mut(&id).expect("a node");
        node.image = Some(Image { files: node.fs.image(), lives });
    }

    /// Puts an image back onto a node's disk.
    pub(crate) fn put_back(&mut self) {
        let mut candidates = self.member_ids();
        candidates.retain(|id| self.may_put_back(*id));
        if candidates.is_empty() {
            return;
        }
        let id = *self.rng.pick(&candidates);
        let node = self.nodes.get_mut(&id).expect("a node");
        let image = node.image.take().expect("`may_put_back` checked it");
        let newer = node.process.as_ref().expect("`may_put_back` checked it").lives();
        self.fall(id, false);
        self.empty_disk(id);
        let (disk_bytes, now) = (self.setup.disk_bytes, self.now);
        let node = self.nodes.get_mut(&id).expect("a node");
        // A copy of a sparse file takes its whole length.
        node.free_disk(u64::MAX, now);
        fill(&node.fs, &image.files);
        node.free_disk(disk_bytes, now);
        node.copy = Some(Copy { newer, looks: 0 });
        let down = self.rng.between(100 * MS, SECOND);
        self.after(down, Action::Start { node: id });
    }

    fn may_put_back(&self, id: NodeId) -> bool {
        let node = &self.nodes[&id];
        if !self.may_weaken(id) || !self.is_fair() || node.store_hangs != StoreHang::No {
            return false;
        }
        let (Some(image), Some(process)) = (&node.image, &node.process) else { return false };
        process.lives().iter().all(|(group, life)| {
            let durable = process.reader.state(*group).is_some_and(|s| s.boot == life.boot);
            let older = image.lives.get(group).is_some_and(|old| {
                // The next start on the image counts no higher than the newer life that peers know.
                old.replica == life.replica && old.boot < life.boot
            });
            durable && older && self.leader_knows(id, *group, life)
        })
    }

    /// Whether the leader will recognize an old copy; if the copy is the leader's, whether every
    /// possible successor will.
    fn leader_knows(&self, id: NodeId, group: GroupId, life: &Life) -> bool {
        let all = self.all_know(id, group, life);
        let statuses = self.member_ids().into_iter().filter_map(|member| {
            Some((member, self.status(member, group).filter(|s| s.role == Role::Leader)?))
        });
        let leader = statuses.max_by_key(|(_, status)| status.term).map(|(member, _)| member);
        leader.is_some_and(|leader| all || (leader != id && self.knows(leader, group, life)))
    }

    fn status(&self, node: NodeId, group: GroupId) -> Option<GroupStatus> {
        Some(self.nodes[&node].process.as_ref()?.replicas.get(&group)?.group.status())
    }

    fn knows(&self, node: NodeId, group: GroupId, life: &Life) -> bool {
        let process = self.nodes[&node].process.as_ref();
        process.is_some_and(|process| process.knows(group, life))
    }

    /// Whether all members but `id` have heard of this life.
    fn all_know(&self, id: NodeId, group: GroupId, life: &Life) -> bool {
        let others = self.member_ids().into_iter().filter(|other| *other != id);
        others.into_iter().all(|other| self.knows(other, group, life))
    }

    /// Whether all members run and can reach each other.
    fn is_fair(&self) -> bool {
        let mut members = self.member_ids().into_iter().map(|id| &self.nodes[&id]);
        self.network.cut.is_empty()
            && members.all(|node| {
                node.process.is_some()
                    && node.paused_until <= self.now
                    && node.hangs_since.is_none()
            })
    }

    /// The node that runs on an old copy, and the newer life of this group that it lacks.
    fn old_copy(&self, group: GroupId) -> Option<(NodeId, Life)> {
        let node = self.nodes.values().find(|node| node.copy.is_some())?;
        let life = node.process.as_ref().and(node.copy.as_ref())?.newer.get(&group)?;
        Some((node.id, *life))
    }

    /// A process has started, perhaps on an old copy: then checks that copy and all its peers.
    pub(crate) fn copy_starts(&mut self, id: NodeId) {
        if self.nodes[&id].copy.is_none() {
            return;
        }
        let groups = self.setup.groups.iter().map(|name| GroupId::of_name(name));
        for group in groups.collect::<Vec<_>>() {
            for member in self.member_ids() {
                if let Some(status) = self.status(member, group) {
                    self.watch_copy(member, group, &status);
                }
            }
        }
        if self.nodes[&id].process.is_some() {
            self.counters.add("old copies put back");
        }
    }

    /// Checks a replica while there may be an old copy: the copy itself, or one of its peers.
    pub(crate) fn watch_copy(&mut self, node: NodeId, group: GroupId, status: &GroupStatus) {
        let Some((id, life)) = self.old_copy(group) else { return };
        let stands = matches!(status.role, Role::Leader | Role::Candidate);
        let known = if node == id {
            !stands || self.all_know(id, group, &life)
        } else {
            !stands || self.knows(node, group, &life)
        };
        if !known {
            self.counters.add("old copies that were not recognizable");
            return self.take_down(id);
        }
        let checked = if node == id {
            copies::leads_nobody(status)
        } else {
            copies::is_not_counted(&life, status)
        };
        self.check(checked);
    }

    fn take_down(&mut self, id: NodeId) {
        self.fall(id, true);
        let down = self.rng.between(100 * MS, 3 * SECOND);
        self.after(down, Action::Start { node: id });
    }

    /// A group of an old copy has stopped.
    pub(crate) fn copy_stops(&mut self, id: NodeId, fault: &Fault) {
        self.counters.add(match fault {
            Fault::OldCopy { .. } => "old copies found out",
            _late => "old copies found out late",
        });
        if self.nodes[&id].process.as_ref().is_some_and(Process::has_stopped) {
            self.after(SECOND, Action::Start { node: id });
        }
    }

    /// Checks once a second that old copies stop soon.
    pub(crate) fn look_at_copies(&mut self) {
        let fair = self.is_fair();
        for node in self.nodes.values_mut() {
            let stopped = node.process.as_ref().is_none_or(Process::has_stopped);
            let Some(copy) = node.copy.as_mut().filter(|_| !stopped) else { continue };
            copy.looks = if fair { copy.looks + 1 } else { 0 };
        }
        let mut looks =
            self.nodes.values().filter_map(|node| Some((node.id, node.copy.as_ref()?.looks)));
        let checked: Checked = looks.try_for_each(|(id, looks)| copies::stops(id, looks));
        self.check(checked);
    }

    /// The process of an old copy has ended: its node joins anew with an empty disk.
    pub(crate) fn copy_ends(&mut self, id: NodeId) {
        let Some(copy) = self.nodes.get_mut(&id).and_then(|node| node.copy.take()) else { return };
        // The copy's log held nothing that the newer log lacked, or nothing that counted.
        self.checks.down.remove(&id);
        self.empty_disk(id);
        self.are_gone(id, copy.newer.into_values().map(|life| life.replica));
    }
}

/// Writes the files of an image onto an empty disk.
fn fill(fs: &MemFs, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, bytes) in files {
        let written = create_dirs(fs, path.parent().expect("a file has a directory"))
            .and_then(|()| fs.create(path))
            .and_then(|file| file.write_at(bytes, 0).and_then(|()| file.sync()))
            .and_then(|()| make_durable(fs, path));
        written.expect("the disk had space for these files before");
    }
}

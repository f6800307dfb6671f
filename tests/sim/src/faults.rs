//! What goes wrong, when, and how it ends.
//!
//! One node at a time may have lost or damaged its disk, and only while everybody else is whole:
//! more than that no replication survives. Everything else strikes whom it will.

use std::path::Path;

use lockstep_core::group::{Event, ReplicaState};
use lockstep_core::ids::NodeId;
use lockstep_host::fs::Fs as _;
use lockstep_host::fs::mem::DiskFault;
use lockstep_host::store::{Use, list_directory, verify_object};

use crate::check::{Checked, budget, gapless, leaks, recovery_points, snapshots, violated};
use crate::node::{DATA, SNAPSHOTS};
use crate::world::{Action, MS, Mend, SECOND, World};

impl World {
    pub(crate) fn fault_step(&mut self) {
        if self.calm {
            return;
        }
        let next = self.rng.between(200 * MS, 2_500 * MS);
        self.after(next, Action::Fault);
        let ids = self.member_ids();
        let node = *self.rng.pick(&ids);
        let kind = self.rng.below(100);
        if self.verbose {
            eprintln!("{:>12}   fault {kind} of node {node}", self.now);
        }
        match kind {
            0..11 => self.crash(node),
            11..20 => self.crash_at_an_operation(node),
            20..27 => self.cut_links(&ids),
            27..34 => self.bad_weather(),
            34..41 => self.pause(node),
            41..46 => self.clock(node),
            46..50 => self.drift(node),
            50..58 => self.fail_an_operation(node),
            58..62 => self.fail_a_read(node),
            62..69 => self.fill_disk(node),
            69..80 => self.trouble_transfers(),
            80..84 => self.trap(node),
            84..90 => self.rot(node),
            90..96 => self.wipe(node),
            96..98 => self.grow(),
            98..100 => self.hang(node),
            _ => {}
        }
    }

    /// Every node belongs to the groups from now on: each starts again with the configuration that
    /// says so.
    pub(crate) fn grow(&mut self) {
        if self.members == self.setup.nodes {
            return;
        }
        if !self.calm {
            self.counters.add("members added");
        }
        self.members = self.setup.nodes;
        for id in self.member_ids() {
            self.nodes.get_mut(&id).expect("a node").members = self.members;
            if self.nodes[&id].process.is_some() {
                self.fall(id, true);
            }
            let late = self.rng.between(100 * MS, 3 * SECOND);
            self.after(late, Action::Start { node: id });
        }
    }

    fn crash(&mut self, node: NodeId) {
        if self.nodes[&node].process.is_some() {
            self.counters.add("crashes");
            let killed = self.rng.percent(30);
            if killed {
                self.counters.add("kills");
            }
            self.fall(node, killed);
            let down = self.rng.between(100 * MS, 5 * SECOND);
            self.after(down, Action::Start { node });
        }
    }

    /// The disk halts behind the k-th operation from now on; the process falls when it notices.
    fn crash_at_an_operation(&mut self, node: NodeId) {
        let op = self.rng.between(1, 40);
        let fs = &self.nodes[&node].fs;
        fs.halt_after(fs.ops() + op);
    }

    pub(crate) fn fall_if_halted(&mut self, node: NodeId) {
        if self.nodes[&node].fs.is_halted() {
            self.counters.add("crashes at an operation");
            self.fall(node, false);
            let down = self.rng.between(100 * MS, 5 * SECOND);
            self.after(down, Action::Start { node });
        }
    }

    /// The process is gone, and unless it `ended` by itself or was killed, the power too.
    pub(crate) fn fall(&mut self, id: NodeId, ended: bool) {
        let views = self.views_of(id);
        let node = self.nodes.get_mut(&id).expect("a node");
        let drawn = (self.rng.percent(50), self.rng.next_u64());
        match (ended, self.keep, drawn) {
            (true, _, _) => {}
            (false, Some(None), _) | (false, None, (true, _)) => node.fs.crash(),
            (false, Some(Some(seed)), _) | (false, None, (false, seed)) => {
                node.fs.crash_keeping(seed);
            }
        }
        // A crash forgets what was to fail.
        node.unreadable &= ended;
        let Some(process) = node.process.take() else { return };
        self.checks.down.insert(id, views);
        let epoch = process.epoch;
        drop(process);
        if ended {
            // Its files are closed; what it did not sync may still be lost later.
            let node = self.nodes.get_mut(&id).expect("a node");
            node.fs.heal();
            node.unreadable = false;
        }
        self.forget_transfers_of(id, epoch);
    }

    fn cut_links(&mut self, ids: &[NodeId]) {
        let lonely = *self.rng.pick(ids);
        let one_way = self.rng.percent(40);
        for other in ids.iter().copied().filter(|other| *other != lonely) {
            self.network.cut.insert((lonely, other));
            if !one_way {
                self.network.cut.insert((other, lonely));
            }
        }
        self.counters.add(if one_way { "one-way cuts" } else { "links cut" });
        let until = self.rng.between(SECOND, 8 * SECOND);
        self.after(until, Action::Mend { what: Mend::Links });
    }

    fn bad_weather(&mut self) {
        let weather = &mut self.network.weather;
        weather.drop = self.rng.below(25);
        weather.duplicate = self.rng.below(10);
        weather.reorder = self.rng.below(15);
        let until = self.rng.between(SECOND, 6 * SECOND);
        self.after(until, Action::Mend { what: Mend::Weather });
    }

    fn pause(&mut self, node: NodeId) {
        let most = if self.rng.percent(15) { 60 * SECOND } else { 3 * SECOND };
        let until = self.now + self.rng.between(200 * MS, most);
        self.nodes.get_mut(&node).expect("a node").paused_until = until;
        self.counters.add("pauses");
    }

    /// Its clock goes up to a tenth too fast or too slow.
    fn drift(&mut self, node: NodeId) {
        let drift = self.rng.between(0, 200_000) as i64 - 100_000;
        let since = self.now;
        let drifting = self.nodes.get_mut(&node).expect("a node");
        (drifting.drift, drifting.drift_since) = (drift, since);
        self.counters.add("clock drifts");
        let until = self.rng.between(10 * SECOND, 90 * SECOND);
        self.after(until, Action::Mend { what: Mend::Clock(node) });
    }

    fn clock(&mut self, node: NodeId) {
        let jump = match self.rng.percent(15) {
            true => 365 * 86_400_000,
            false => self.rng.between(0, 7_200_000) as i64 - 3_600_000,
        };
        self.nodes.get_mut(&node).expect("a node").clock_ms = jump;
        self.counters.add(if jump > 3_600_000 { "clock jumps by a year" } else { "clock jumps" });
        let until = self.rng.between(SECOND, 20 * SECOND);
        self.after(until, Action::Mend { what: Mend::Clock(node) });
    }

    fn fail_an_operation(&mut self, node: NodeId) {
        let fault = if self.rng.percent(50) { DiskFault::Io } else { DiskFault::Full };
        let op = self.rng.between(1, 60);
        let node = self.nodes.get_mut(&node).expect("a node");
        node.fs.fail_op(node.fs.ops() + op, fault);
        // A full disk, as far as its log can tell.
        node.log_filled |= fault == DiskFault::Full;
        self.counters.add("operations told to fail");
    }

    /// One of the next reads fails.
    fn fail_a_read(&mut self, node: NodeId) {
        if self.nodes[&node].process.is_none() {
            return;
        }
        let read = self.rng.between(1, 60);
        let node = self.nodes.get_mut(&node).expect("a node");
        node.fs.fail_read(node.fs.reads() + read, DiskFault::Io);
        node.unreadable = true;
        self.counters.add("reads told to fail");
    }

    /// Something else takes the rest of the disk, or of the one that snapshots have of their own.
    fn fill_disk(&mut self, node: NodeId) {
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
    fn hang(&mut self, node: NodeId) {
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

    fn trouble_transfers(&mut self) {
        let ids: Vec<u64> = self.transfers.keys().copied().collect();
        match ids.is_empty() {
            // Few are under way at any time: the next one will not get through.
            true => self.ambush = true,
            false => {
                let id = *self.rng.pick(&ids);
                self.trouble(id);
            }
        }
    }

    /// Cuts a transfer, or stalls it for a while.
    pub(crate) fn trouble(&mut self, id: u64) {
        if !self.transfers.contains_key(&id) || self.calm {
            return;
        }
        if self.rng.percent(70) {
            self.counters.add("transfers cut");
            return self.cut_transfer(id);
        }
        self.counters.add("stalled transfers");
        let until = self.now + self.rng.between(SECOND, 45 * SECOND);
        if let Some(transfer) = self.transfers.get_mut(&id) {
            transfer.stalled_until = until;
        }
    }

    fn trap(&mut self, node: NodeId) {
        // The second in a row halts the replica.
        let traps = *self.rng.pick(&[1, 1, 2, 2, 3, 7]);
        *self.nodes[&node].traps.lock().expect("no panic holds it") = traps;
        self.counters.add("guest traps");
    }

    /// Whether the disk of `node` may be lost or damaged now.
    fn may_weaken(&self, node: NodeId) -> bool {
        // Of two none may go, and of one there is nothing else.
        let few = self.members < 3;
        if few || self.nodes.values().any(|node| node.hangs_since.is_some()) {
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

    /// Flips a bit of an object or of the log.
    fn rot(&mut self, id: NodeId) {
        if !self.may_weaken(id) {
            return;
        }
        let in_log = self.rng.percent(30);
        let files = self.nodes[&id].fs.image_names();
        let mut segments = match &self.nodes[&id].process {
            Some(process) => process.reader.segments(),
            None => Vec::new(),
        };
        // The last segment's end may be a torn tail.
        segments.pop();
        let candidates: Vec<_> = match in_log {
            true => segments.iter().map(|(_, path)| path).collect(),
            false => files.iter().filter(|path| path.to_string_lossy().ends_with("snap")).collect(),
        };
        if candidates.is_empty() {
            return;
        }
        let path = match !in_log && self.rng.percent(50) {
            // The newest: what others would be given up for.
            true => candidates.iter().max_by_key(|path| path.file_name()),
            false => Some(self.rng.pick(&candidates)),
        };
        let Some(path) = path.map(|path| path.to_path_buf()) else { return };
        let length = self.nodes[&id].fs.open(&path, false).and_then(|f| f.len()).unwrap_or(1);
        let offset = self.rng.below(length.max(1));
        let node = self.nodes.get_mut(&id).expect("a node");
        if node.fs.corrupt(&path, offset).is_ok() {
            node.rotted = true;
            match in_log {
                true => {
                    let segment = segments.iter().find(|(_, at)| *at == path);
                    node.rotten_log = segment.cloned();
                }
                false => node.snapshot_rotted_at = self.now,
            }
            self.weak = Some(id);
            self.counters.add(if in_log { "bit rot in a log" } else { "bit rot in a snapshot" });
            // One that runs on has its scrubber to find it.
            if self.rng.percent(if in_log { 30 } else { 70 }) {
                self.crash(id);
            }
        }
    }

    fn wipe(&mut self, id: NodeId) {
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
        let views: Vec<_> = self.checks.down.remove(&id).into_iter().flatten().collect();
        let lost: Vec<_> = views.iter().map(|(_, view)| view.replica).collect();
        self.checks.lost.extend(views);
        let setup = self.setup.clone();
        self.count_strikes(id);
        let node = self.nodes.get_mut(&id).expect("a node");
        node.wipe(&setup);
        node.gone.extend(lost.iter().copied());
        lost.into_iter().for_each(|replica| self.checks.votes.wiped(replica));
    }

    pub(crate) fn mend(&mut self, what: Mend) {
        match what {
            Mend::Links => self.network.cut.clear(),
            Mend::Weather => self.network.weather = Default::default(),
            Mend::Disk(node) => {
                let bytes = self.setup.disk_bytes;
                self.nodes.get_mut(&node).expect("a node").free_disk(bytes);
            }
            Mend::Hang(node) => {
                self.nodes.get_mut(&node).expect("a node").hangs_since = None;
            }
            Mend::Clock(node) => {
                let node = self.nodes.get_mut(&node).expect("a node");
                (node.clock_ms, node.drift) = (0, 0);
            }
        }
    }

    /// A look around, once a second.
    pub(crate) fn look(&mut self) {
        self.after(SECOND, Action::Look);
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        self.looks += 1;
        // One node's logs now and then, in turn: reading them is what costs.
        if self.looks.is_multiple_of(4) {
            let turn = ids[(self.looks / 4) as usize % ids.len()];
            let read = self.read_logs(turn);
            self.check(read);
            self.check_recovery_points(turn);
        }
        for id in ids {
            let node = &self.nodes[&id];
            let mut checked = vec![budget::kept(node, &self.setup)];
            if let Some(process) = &node.process {
                let replicas = process.replicas.values();
                checked.extend(replicas.map(|replica| budget::accounted(node, replica)));
            }
            checked.into_iter().for_each(|result| self.check(result));
            let repaired = self.nodes[&id].process.as_ref().is_some_and(|process| {
                process.replicas.values().all(|replica| {
                    let status = replica.group.status();
                    status.rotten.is_empty() && status.state.query_refusal().is_none()
                })
            });
            let node = &self.nodes[&id];
            if node.rotted && repaired && !node.log_rots() && self.is_whole(id) {
                let node = self.nodes.get_mut(&id).expect("a node");
                (node.rotted, node.rotten_log) = (false, None);
            }
        }
    }

    /// There is something to start from, whether or not the list changed just now.
    fn check_recovery_points(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let Some(process) = &node.process else { return };
        if node.is_doubtful() || node.fs.is_halted() {
            return;
        }
        let check = |(group, replica): (&lockstep_core::ids::GroupId, &crate::node::Replica)| {
            let first_index = process.reader.first_index(*group).unwrap_or(1);
            recovery_points::stand(replica, first_index)
        };
        let checked: Vec<Checked> = process.replicas.iter().map(check).collect();
        checked.into_iter().for_each(|result| self.check(result));
    }

    /// Whether everything on a node's disk verifies.
    fn is_whole(&self, id: NodeId) -> bool {
        let node = &self.nodes[&id];
        let Some(process) = &node.process else { return false };
        let objects = process.replicas.values().all(|replica| {
            snapshots::whole(replica.group.recovery_state(), replica, false).is_ok()
        });
        let unlisted = self.setup.groups.iter().all(|name| {
            let files = list_directory(&node.fs, name, &node.snapshots(name)).unwrap_or_default();
            files.iter().all(|file| verify_object(&node.fs, file, &mut || ()).is_ok())
        });
        objects && unlisted && process.reader.scrub(&mut |_| ()).is_empty()
    }

    /// A process just opened its disk: what it goes on from is whole.
    pub(crate) fn check_start(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let Some(process) = &node.process else { return };
        let checked: Vec<Checked> = process
            .replicas
            .values()
            .map(|replica| {
                let doubtful = node.is_doubtful();
                snapshots::whole(replica.group.recovery_state(), replica, doubtful)
            })
            .collect();
        checked.into_iter().for_each(|result| self.check(result));
    }

    /// Reads the durable logs of a node whole, and compares them with what others have.
    fn read_logs(&mut self, id: NodeId) -> Checked {
        let node = &self.nodes[&id];
        let Some(process) = &node.process else { return Ok(()) };
        // Rot that nobody has met yet says nothing of the program.
        if node.log_rots() || node.unreadable || node.fs.is_halted() {
            return Ok(());
        }
        for group in process.replicas.keys() {
            let entries = gapless::whole(*group, &process.reader)?;
            let before = process.reader.state(*group).map_or(0, |state| state.previous_term);
            self.checks.entries.agree(*group, before, &entries)?;
        }
        Ok(())
    }

    /// What the disk of a node did, and how far its log got.
    fn count_strikes(&mut self, id: NodeId) {
        let fs = self.nodes[&id].fs.clone();
        fs.struck().into_iter().for_each(|(what, count)| self.counters.add_many(what, count));
        let process = self.nodes[&id].process.as_ref();
        let last = process.and_then(|process| Some(process.reader.segments().last()?.0));
        let last = last.unwrap_or(1);
        self.counters.add_many("segments rolled", last.saturating_sub(1));
    }

    /// What the scrubber does in a node: rot is told to the group, a bad segment to the log.
    pub(crate) fn scrub(&mut self, id: NodeId) {
        let next = self.rng.between(20 * SECOND, 60 * SECOND);
        self.after(next, Action::Scrub { node: id });
        if self.is_paused(id) {
            return;
        }
        let Some(process) = &self.nodes[&id].process else { return };
        let (mut events, mut found) = (Vec::new(), 0);
        for (group, replica) in &process.replicas {
            for desc in replica.group.status().snapshots {
                let object = desc.clone();
                let read = replica.with_store(move |store| {
                    store.open_object(&object, Use::Scrubbing)?.verify(&mut || ())
                });
                if let Err(error) = read {
                    let why = error.to_string();
                    found += u64::from(self.nodes[&id].rotted);
                    events.push((*group, Event::Rotten { snapshot: desc, why }));
                }
            }
        }
        if !process.reader.scrub(&mut |_| ()).is_empty() {
            self.counters.add("damaged segments");
            self.schedule_log(id);
        }
        self.counters.add("scrubs");
        self.counters.add_many("rot found by scrubbing", found);
        self.fall_if_halted(id);
        for (group, event) in events {
            self.event(id, group, vec![event]);
        }
    }

    /// Everything, once all is quiet.
    pub(crate) fn finish(&mut self) -> Checked {
        let names = self.setup.groups.clone();
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.read_logs(node)?;
            self.count_strikes(node);

            if !self.nodes[&node].gone.is_empty() {
                // Somebody new lives there, and it came to rest with the others.
                self.counters.add("rejoins");
            }
        }
        for name in &names {
            let group = lockstep_core::ids::GroupId::of_name(name);
            for node in self.nodes.values() {
                let Some(process) = &node.process else {
                    return violated("liveness", format!("node {} is down", node.id));
                };
                let replica = &process.replicas[&group];
                snapshots::whole(replica.group.recovery_state(), replica, node.is_doubtful())?;
                budget::accounted(node, replica)?;
                let receives = |transfer: &crate::transfer::Transfer| {
                    transfer.to.0 == node.id && transfer.group == group
                };
                let receives = self.transfers.values().any(receives);
                leaks::none(node, name, replica, receives)?;
            }
            let records: Vec<_> = self.records.iter().filter(|r| r.group == group).collect();
            let observed = crate::guest::lock(&self.observed);
            if let Some(applied) = observed.group(group) {
                crate::check::sessions::exactly_once(&records, applied)?;
                crate::check::fates::kept(&records, applied)?;
                crate::check::histories::linearizable(&records, applied)?;
            }
        }
        let transfers = &self.transfers;
        self.checks.reports.finish(|id| transfers.contains_key(&id))
    }
}

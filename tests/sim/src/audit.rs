//! What is checked of whole nodes: once a second, when their scrubbers read, at each start, and at
//! the end of a run.

use lockstep_core::group::Event;
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_host::store::{Use, list_directory, verify_object};

use crate::check::{Checked, budget, gapless, leaks, recovery_points, snapshots, violated};
use crate::world::{Action, SECOND, World};

impl World {
    /// The checks of every second.
    pub(crate) fn look(&mut self) {
        self.after(SECOND, Action::Look);
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        self.looks += 1;
        self.look_at_copies();
        self.watch_events();
        // Reading logs takes the most time: every fourth second one node's are read, in turn.
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
                    status.corrupt.is_empty() && status.state.query_refusal().is_none()
                })
            });
            let node = self.nodes.get_mut(&id).expect("a node");
            // The file with an unreadable sector may be used again for the log's next segment.
            let lost = node.log_lost && node.fs.has_bad_sectors();
            let rots = lost || node.log_may_rot();
            if node.rotted && repaired && !rots && self.is_whole(id) {
                let node = self.nodes.get_mut(&id).expect("a node");
                (node.rotted, node.corrupt_log, node.log_lost) = (false, None, false);
            }
        }
    }

    /// Each group's watcher reads at one of the nodes that run.
    fn watch_events(&mut self) {
        let names = self.setup.groups.clone();
        for group in names.iter().map(|name| GroupId::of_name(name)) {
            let running = self.nodes.values().filter_map(|node| node.process.as_ref());
            let boards: Vec<_> = running.map(|process| &*process.replicas[&group].board).collect();
            let observed = crate::guest::lock(&self.observed);
            let Some(history) = observed.group(group) else { continue };
            let read = self.checks.watchers.read(group, &boards, history);
            drop(observed);
            self.check(read);
        }
    }

    /// Checks that a start on this disk, if it had no faults, would find something to restore or
    /// replay; also when the list of snapshots has not changed.
    fn check_recovery_points(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let Some(process) = &node.process else { return };
        if node.is_doubtful() || node.fs.is_halted() {
            return;
        }
        let check = |(group, replica): (&lockstep_core::ids::GroupId, &crate::node::Replica)| {
            let state = process.reader.state(*group);
            state.map_or(Ok(()), |state| recovery_points::stand(replica, &state))
        };
        let checked: Vec<Checked> = process.replicas.iter().map(check).collect();
        checked.into_iter().for_each(|result| self.check(result));
    }

    /// Whether all snapshots and log segments on a node's disk verify.
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

    /// A process has just opened its disk: the snapshots that its log lists must be whole.
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

    /// Reads all durable logs of a node, and compares them with those of the other nodes.
    fn read_logs(&mut self, id: NodeId) -> Checked {
        let node = &self.nodes[&id];
        let Some(process) = &node.process else { return Ok(()) };
        // Damage that the simulator caused and the node has not found yet is no bug.
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

    /// Counts the faults that a node's disk has had, and the segments of its log.
    pub(crate) fn count_strikes(&mut self, id: NodeId) {
        let fs = self.nodes[&id].fs.clone();
        fs.struck().into_iter().for_each(|(what, count)| self.counters.add_many(what, count));
        let process = self.nodes[&id].process.as_ref();
        let last = process.and_then(|process| Some(process.reader.segments().last()?.0));
        let last = last.unwrap_or(1);
        self.counters.add_many("segments rolled", last.saturating_sub(1));
    }

    /// A node's scrubber runs: it reports a corrupt snapshot to its group, a damaged segment to the
    /// log lane.
    pub(crate) fn scrub(&mut self, id: NodeId) {
        let next = self.rng.between(20 * SECOND, 60 * SECOND);
        self.after(next, Action::Scrub { node: id });
        if self.is_paused(id) || self.nodes[&id].store_is_hanging() {
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
                if let Err(error) = read
                    && !error.is_short()
                {
                    let why = error.to_string();
                    found += u64::from(self.nodes[&id].rotted);
                    events.push((*group, Event::Corrupt { snapshot: desc, why }));
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

    /// Checks everything once the cluster has come to rest.
    pub(crate) fn finish(&mut self) -> Checked {
        let names = self.setup.groups.clone();
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.read_logs(node)?;
            self.count_strikes(node);
            if !self.nodes[&node].gone.is_empty() {
                // A new replica of the group runs on that node, and came to rest with the others.
                self.counters.add("rejoins");
            }
        }
        self.counters.add_many("events watched", self.checks.watchers.seen);
        self.counters
            .add_many("events gone before they were watched", self.checks.watchers.compacted);
        for name in &names {
            let group = GroupId::of_name(name);
            for node in self.nodes.values() {
                let Some(process) = &node.process else {
                    return violated("liveness", format!("node {} is down", node.id));
                };
                let replica = &process.replicas[&group];
                snapshots::whole(replica.group.recovery_state(), replica, node.is_doubtful())?;
                budget::accounted(node, replica)?;
                let is_to_here = |transfer: &crate::transfer::Transfer| {
                    transfer.to.0 == node.id && transfer.group == group
                };
                let receives = self.transfers.values().any(is_to_here);
                leaks::none(node, name, replica, receives)?;
            }
            let records: Vec<_> = self.records.iter().filter(|r| r.group == group).collect();
            let observed = crate::guest::lock(&self.observed);
            if let Some(applied) = observed.group(group) {
                self.counters.add_many("guests woken", applied.woken.len() as u64);
                crate::check::sessions::exactly_once(&records, applied)?;
                crate::check::fates::kept(&records, applied)?;
                crate::check::histories::linearizable(&records, applied)?;
            }
        }
        let transfers = &self.transfers;
        self.checks.reports.finish(|id| transfers.contains_key(&id))
    }
}

//! The faults of a run: which strike, when, and how they end.
//!
//! At most one node at a time has a lost or damaged disk, and only while all others are sound: no
//! replication survives more than that. Every other fault strikes any node at any time.

use lockstep_core::ids::NodeId;

use crate::node::StoreHang;
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
        let kind = self.rng.below(122);
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
            100..104 => self.ask_badly(node),
            104..106 => self.take_descriptors(node),
            106..108 => self.hang_store(node),
            108..110 => self.lose_the_majority(node),
            110..113 => self.rot_a_batch(node),
            113..118 => self.put_back(),
            118..122 => self.poison(node),
            _ => {}
        }
    }

    /// Makes all nodes members of the groups: each restarts with a configuration that names all.
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

    pub(crate) fn crash(&mut self, node: NodeId) {
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

    /// Has the disk halt after one of its next operations; the process then crashes.
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

    /// Ends a node's process. Unless it `ended` by itself or was killed, the power fails, too, and
    /// unsynced writes may be lost.
    pub(crate) fn fall(&mut self, id: NodeId, ended: bool) {
        let views = self.views_of(id);
        let lives = self.lives_to_keep(id);
        let node = self.nodes.get_mut(&id).expect("a node");
        let drawn = (self.rng.percent(50), self.rng.next_u64());
        match (ended, self.keep, drawn) {
            (true, _, _) => {}
            (false, Some(None), _) | (false, None, (true, _)) => node.fs.crash(),
            (false, Some(Some(seed)), _) | (false, None, (false, seed)) => {
                node.fs.crash_keeping(seed);
            }
        }
        // A crash disarms the reads that were to fail.
        node.unreadable &= ended;
        // The next process has descriptors again.
        node.fs.set_descriptors(true);
        node.batch = None;
        let Some(process) = node.process.take() else { return };
        self.checks.down.insert(id, views);
        let epoch = process.epoch;
        drop(process);
        if ended {
            // The process's files are closed, but a later loss of power may still take what it did
            // not sync.
            let node = self.nodes.get_mut(&id).expect("a node");
            node.fs.heal();
            node.unreadable = false;
        }
        self.forget_transfers_of(id, epoch);
        if let Some(lives) = lives {
            self.keep_image(id, lives);
        }
        self.copy_ends(id);
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

    /// Makes a node's clock run up to a tenth too fast or too slow.
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
        let jump = if self.rng.percent(15) {
            365 * 86_400_000
        } else {
            self.rng.between(0, 7_200_000) as i64 - 3_600_000
        };
        self.nodes.get_mut(&node).expect("a node").clock_ms = jump;
        self.counters.add(if jump > 3_600_000 { "clock jumps by a year" } else { "clock jumps" });
        let until = self.rng.between(SECOND, 20 * SECOND);
        self.after(until, Action::Mend { what: Mend::Clock(node) });
    }

    fn trouble_transfers(&mut self) {
        let ids: Vec<u64> = self.transfers.keys().copied().collect();
        if ids.is_empty() {
            // Few transfers are under way at any time, so the next one is struck.
            self.ambush = true;
        } else {
            let id = *self.rng.pick(&ids);
            self.trouble(id);
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
        // Two traps in a row halt the replica.
        let traps = *self.rng.pick(&[1, 1, 2, 2, 3, 7]);
        *self.nodes[&node].traps.lock().expect("no panic holds it") = traps;
        self.counters.add("guest traps");
    }

    /// The next guest on this node that applies an entry is no longer in the state of the others:
    /// it answers as they do, but its snapshots differ.
    pub(crate) fn stray(&mut self, node: NodeId) {
        if self.calm {
            return;
        }
        self.strayed = true;
        *self.nodes[&node].strays.lock().expect("no panic holds it") = self.rng.between(1, 3);
        self.counters.add("states that go astray");
    }

    pub(crate) fn mend(&mut self, what: Mend) {
        match what {
            Mend::Links => self.network.cut.clear(),
            Mend::Weather => self.network.weather = Default::default(),
            Mend::Disk(node) => {
                let (bytes, now) = (self.setup.disk_bytes, self.now);
                self.nodes.get_mut(&node).expect("a node").free_disk(bytes, now);
            }
            Mend::Hang(node) => {
                self.nodes.get_mut(&node).expect("a node").hangs_since = None;
            }
            Mend::StoreHang(node) => {
                self.nodes.get_mut(&node).expect("a node").store_hangs = StoreHang::No;
            }
            Mend::Descriptors(node) => self.nodes[&node].fs.set_descriptors(true),
            Mend::Clock(node) => {
                let node = self.nodes.get_mut(&node).expect("a node");
                (node.clock_ms, node.drift) = (0, 0);
            }
        }
    }
}

//! The commands of the scripts. `NODE` is a process: `n1`, or the name given to a copy.
//!
//! ```text
//! cluster N [seed=S] [absent=NODE] [OPTIONS]     adds N nodes and starts them; options:
//!                                                entries=E log_bytes=B catch_up=E: the policy,
//!                                                snapshots=apart: on a disk of their own,
//!                                                config=L: the length of the group's config,
//!                                                memory=M: bytes that a guest may have
//! bootstrapped N [...]                           the same, and runs silently until all serve
//! grow N                                         N nodes; each learns of it at its next start
//! start|crash|restart|wipe NODE                  wipe: crash, lose the disk, start
//! expect NODE wrong|right · anew                 the lineage that its file admits; the checks
//!                                                forget the group, a second one is bootstrapped
//! copy NODE NAME · route NODE NAME               a copy of its data directory; the process that
//!                                                its address leads to
//! keep NODE · rewind NODE                        an image of its disk; back to that, except for
//!                                                the boot count
//! tick NODE [K] · drain NODE K                   K ticks, each flushed; K ticks in one flush
//! run K · run until WHAT                         ticks everywhere, each followed by stabilize
//! stabilize · deliver [K] · sync NODE [K]
//! clock NODE +6s · disk|lane NODE stuck|ok · bulk go|hold|fail
//! stall|unstall NODE                             its disk hangs, and it knows; answers again
//! refuse NODE                                    its log refuses the entries that wait for it
//! reads NODE hold|go                             hold: reads of its log wait; go: they are
//!                                                answered, the last one first
//! reads NODE short|ok                            short: its snapshots cannot be read for now
//! captures NODE fail|tight|full|ok · restores NODE fail|ok · traps NODE [short]
//!                                                short: for want of memory of the machine
//! space NODE short|ok · next NODE short|near|over|ok
//! memory NODE BYTES                              what its guest takes, of 1000
//! suspends NODE INDEX · damage NODE INDEX        suspends: it holds a part of that snapshot;
//!                                                damage: its log below cannot be read any more
//! overtaken NODE                                 its lane lost the guest, which is built anew
//! corrupt|found-corrupt|unlist NODE INDEX|newest|oldest
//!                                                a snapshot is damaged on the disk; is reported
//!                                                to be corrupt; has to be unlisted
//! forge A->B WHAT [KEY=NUMBER]...                a frame that A never sent: `forge.rs`
//! partition A B | C · cut A->B · drop A->B · heal
//! late NODE · arrive                             frames that it sent are held back; arrive
//! propose|relief NODE COMMAND [; COMMAND] · call NODE SESSION SEQ LOWEST COMMAND [; ...]
//! open NODE · close NODE SESSION · query|local NODE KEY
//! flood NODE K COMMAND · leave NODE              leave: the callers of all open requests are gone
//! entries NODE K · sessions NODE K               K entries: commands and openings; openings only
//! twice NODE SESSION COMMAND · hostile NODE SESSION
//! answers NODE SESSION FIRST LAST LOWEST         calls with answers as long as they may be
//! skip NODE INDEX [ABANDONED]... · limits NODE FUEL [MEMORY] · freeze|unfreeze NODE
//! on-fault NODE skip|halt                        orders of an operator
//! upgrade NODE MODULE [INDEX [ABANDONED]...]     another module, from the entry at INDEX on
//! abort NODE                                     ends that
//! prepares NODE go|hang|fail · moves NODE fail|ok
//!                                                its node has modules ready, or not; has the
//!                                                memory for another guest, or not
//! strays NODE WITH · repair NODE                 the state of its guest goes astray; it is to go
//!                                                on from another's snapshot
//! checkpoint NODE [told] · handover NODE · fault NODE WHY · unreachable NODE OTHER
//! status [NODE] · more NODE · log NODE · objects NODE · bootstrap NODE · time NODE
//! ```

use lockstep_core::entry::Call;
use lockstep_core::fault::{Fault, Shortage};
use lockstep_core::group::{Event, Frame, GroupStatus, Role};
use lockstep_core::ids::Lineage;
use lockstep_core::limits;
use lockstep_core::memory::MemoryUse;
use lockstep_core::snapshot::SnapshotSpace;

use super::cluster::{Bulk, Cluster};
use super::disk::Image;
use super::words::{after, ends, number, pairs};
use super::{forge, more, setup, trials};

/// A cluster, and what its script has set.
#[derive(Default)]
pub(crate) struct Session {
    cluster: Cluster,
    seed: u64,
    /// The image that `keep` took of a disk.
    kept: Option<Image>,
    /// Frames that `late` holds back.
    late: Vec<((String, String), Frame)>,
}

const RUN_TICKS_MAX: usize = 2_000;
/// The memory limit of every guest, for `memory`.
const MEMORY_BYTES: u64 = 1_000;

impl Session {
    /// Carries out one line of a script; gives the lines that it shows.
    pub(crate) fn run(&mut self, line: &str) -> Vec<String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        let known = self.nodes(word, &words)
            || self.moves(word, &words)
            || self.faults(word, rest, &words)
            || self.space_and_rot(word, &words)
            || self.requests(word, rest, &words)
            || self.orders(word, rest, &words)
            || self.views(word, &words);
        assert!(known, "unknown command: {line}");
        self.cluster.check();
        for (text, count) in std::mem::take(&mut self.cluster.counts) {
            self.cluster.tell(format!("{count} times {text}"));
        }
        std::mem::take(&mut self.cluster.trace)
    }

    fn nodes(&mut self, word: &str, words: &[&str]) -> bool {
        let cluster = &mut self.cluster;
        match (word, words) {
            ("cluster", [count, options @ ..]) => self.seed = setup::add(cluster, count, options),
            ("bootstrapped", _) => {
                self.nodes("cluster", words);
                self.run_until(&["serving"]);
                (0..2).for_each(|_| self.tick_all());
                self.cluster.trace.clear();
            }
            ("grow", [count]) => setup::grow(cluster, count),
            ("start", [node]) => cluster.start(node, self.seed),
            ("crash", [node]) => cluster.crash(node),
            ("restart", [node]) => {
                cluster.crash(node);
                cluster.start(node, self.seed);
            }
            ("wipe", [node]) => {
                cluster.crash(node);
                let process = cluster.processes.get_mut(*node).expect("a process");
                process.disk = Default::default();
                process.store = Default::default();
                cluster.start(node, self.seed);
            }
            ("copy", [node, name]) => {
                let from = &cluster.processes[*node];
                let (id, policy) = (from.node, from.config.snapshot_policy);
                let (count, image) = (from.config.nodes.len() as u16, from.disk.durable.clone());
                let store = from.store.clone();
                cluster.add(name, id, count, policy);
                let process = cluster.processes.get_mut(*name).expect("just added");
                (process.disk.durable, process.store) = (image, store);
            }
            ("route", [node, name]) => {
                let id = cluster.processes[*node].node;
                cluster.routes.insert(id, (*name).to_owned());
            }
            ("expect", [node, which]) => {
                let mut all = cluster.processes.values().filter_map(|p| p.disk.durable.as_ref());
                let lineage = match *which {
                    "right" => all.find_map(|image| image.state().lineage),
                    _wrong => Some(Lineage([0xee; 16])),
                };
                cluster.processes.get_mut(*node).expect("a process").config.lineage = lineage;
            }
            ("anew", []) => cluster.checks.begin_anew(),
            ("keep", [node]) => self.kept = cluster.processes[*node].disk.durable.clone(),
            ("rewind", [node]) => {
                cluster.crash(node);
                let disk = &mut cluster.processes.get_mut(*node).expect("a process").disk;
                let boot = disk.durable.as_ref().expect("it had a disk").state().boot;
                let mut image = self.kept.clone().expect("keep comes first");
                image.set_boot(boot);
                disk.durable = Some(image);
                cluster.start(node, self.seed);
            }
            _other => return false,
        }
        true
    }

    fn moves(&mut self, word: &str, words: &[&str]) -> bool {
        let cluster = &mut self.cluster;
        match (word, words) {
            ("tick", [node, ticks @ ..]) => {
                for _ in 0..number(ticks, 1) {
                    cluster.time_ms += 100;
                    cluster.tick(node);
                }
            }
            ("drain", [node, ticks]) => {
                let wall_ms = cluster.time_ms;
                let count = number(&[ticks], 1);
                cluster.events(node, (0..count).map(|_| Event::Tick { wall_ms }).collect());
            }
            ("run", ["until", what @ ..]) => self.run_until(what),
            ("run", ticks) => (0..number(ticks, 1)).for_each(|_| self.tick_all()),
            ("stabilize", []) => cluster.stabilize(),
            ("deliver", rounds) => {
                for _ in 0..number(rounds, 1) {
                    cluster.deliver();
                }
            }
            ("sync", [node, batches @ ..]) => {
                cluster.sync(node, number(batches, usize::MAX), true);
            }
            _other => return false,
        }
        true
    }

    fn run_until(&mut self, what: &[&str]) {
        let came = (0..RUN_TICKS_MAX).any(|_| {
            let here = holds(&self.cluster, what);
            if !here {
                self.tick_all();
            }
            here
        });
        if !came {
            self.cluster.tell(format!("never: {}", what.join(" ")));
        }
    }

    fn tick_all(&mut self) {
        self.cluster.time_ms += 100;
        for name in self.cluster.running() {
            self.cluster.tick(&name);
        }
        self.cluster.stabilize();
    }

    fn faults(&mut self, word: &str, rest: &str, words: &[&str]) -> bool {
        let cluster = &mut self.cluster;
        match (word, words) {
            ("clock", [node, offset]) => {
                let seconds: i64 = offset.trim_end_matches('s').parse().expect("clock NODE +6s");
                cluster.processes.get_mut(*node).expect("a process").clock_ms = seconds * 1000;
            }
            ("disk", [node, how]) => {
                cluster.processes.get_mut(*node).expect("a process").disk.stuck = *how == "stuck";
            }
            ("reads", [node, "hold"]) => {
                cluster.processes.get_mut(*node).expect("a process").disk.reads = Some(Vec::new());
            }
            ("reads", [node, "go"]) => {
                let disk = &mut cluster.processes.get_mut(*node).expect("a process").disk;
                let waiting = disk.reads.take().unwrap_or_default().into_iter().rev();
                waiting.for_each(|(from, to, bytes)| cluster.fetch(node, from, to, bytes));
            }
            ("lane", [node, how]) => {
                cluster.processes.get_mut(*node).expect("a process").lane.stuck = *how == "stuck";
            }
            ("captures" | "restores" | "traps" | "strays" | "moves", [node, how @ ..]) => {
                cluster.processes.get_mut(*node).expect("a process").lane.told(word, how);
            }
            ("prepares", [node, how]) => trials::told(cluster, node, how),
            ("bulk", [how]) => {
                cluster.bulk = Some(match *how {
                    "go" => Bulk::Go,
                    "hold" => Bulk::Hold,
                    "fail" => Bulk::Fail,
                    other => panic!("bulk {other}"),
                });
            }
            ("partition", _) => {
                let sides: Vec<Vec<&str>> =
                    rest.split('|').map(|side| side.split_whitespace().collect()).collect();
                for (left, right) in pairs(&sides) {
                    cluster.cut.insert((left, right));
                }
            }
            ("cut", [link]) => {
                cluster.cut.insert(ends(link));
            }
            ("drop", [link]) => {
                let gone = cluster.links.remove(&ends(link)).map_or(0, |frames| frames.len());
                cluster.tell(format!("{gone} frames are lost"));
            }
            ("late", [node]) => {
                for (link, frames) in &mut cluster.links {
                    if link.0 == **node {
                        self.late
                            .extend(std::mem::take(frames).into_iter().map(|f| (link.clone(), f)));
                    }
                }
            }
            ("arrive", []) => {
                for (link, frame) in std::mem::take(&mut self.late) {
                    cluster.links.entry(link).or_default().push_back(frame);
                }
            }
            ("heal", []) => cluster.cut.clear(),
            ("forge", [link, what, options @ ..]) => forge::forge(cluster, link, what, options),
            _other => return false,
        }
        true
    }

    fn space_and_rot(&mut self, word: &str, words: &[&str]) -> bool {
        let cluster = &mut self.cluster;
        match (word, words) {
            ("space", [node, how]) => {
                let shortage = (*how == "short").then_some(Shortage::Disk { need: 64, have: 1 });
                cluster.event(node, Event::LogSpace(shortage));
            }
            ("stall" | "unstall", [node]) => more::stall(cluster, node, word == "stall"),
            ("refuse", [node]) => more::refuse(cluster, node),
            ("memory", [node, bytes]) => {
                let bytes = bytes.parse().expect("memory NODE BYTES");
                cluster.event(node, Event::Memory(MemoryUse { bytes, most: MEMORY_BYTES }));
            }
            ("next", [node, how]) => {
                let (have, quota) = match *how {
                    "short" => (100, 2_000),
                    "near" => (950, 2_000),
                    "over" => (2_000, 100),
                    "ok" => (2_000, 2_000),
                    other => panic!("next NODE {other}"),
                };
                let space = SnapshotSpace { need: 900, have, quota, margin: 100 };
                cluster.event(node, Event::SnapshotSpace(space));
            }
            ("damage", [node, below]) => {
                let below = below.parse().expect("damage NODE INDEX");
                cluster.event(node, Event::LogDamaged { below });
            }
            ("corrupt", [node, index]) => {
                let index = cluster.listed(node, index).index;
                let store = &cluster.processes[*node].store;
                store.lock().expect("no panic holds the lock").corrupt(index);
            }
            ("reads", [node, how]) => {
                let mut store = cluster.processes[*node].store.lock().expect("no panic");
                (store.short, store.slow) = match *how {
                    "short" => (true, false),
                    "slow" => (false, true),
                    "ok" => (false, false),
                    other => panic!("reads NODE {other}"),
                };
            }
            ("found-corrupt", [node, index]) => {
                let snapshot = cluster.listed(node, index);
                cluster
                    .event(node, Event::Corrupt { snapshot, why: "the script says so".to_owned() });
            }
            ("overtaken" | "lost", [node, tried @ ..]) => more::no_guest(cluster, node, tried),
            ("suspends", [node, index]) => {
                let process = cluster.processes.get_mut(*node).expect("a process");
                process.suspended = Some(index.parse().expect("suspends NODE INDEX"));
            }
            ("unlist", [node, index]) => {
                let unlist = cluster.listed(node, index);
                cluster.event(node, Event::SpaceWanted { unlist, capture: None });
            }
            _other => return false,
        }
        true
    }

    fn requests(&mut self, word: &str, rest: &str, words: &[&str]) -> bool {
        match (word, words) {
            ("propose", [node, ..]) => self.calls(node, after(rest, 1), 0, 0, 0, false),
            ("relief", [node, ..]) => self.calls(node, after(rest, 1), 0, 0, 0, true),
            ("call", [node, session, sequence, lowest, ..]) => {
                let number =
                    |text: &str| text.parse::<u64>().expect("call NODE SESSION SEQ LOWEST");
                let text = after(rest, 4);
                self.calls(node, text, number(session), number(sequence), number(lowest), false);
            }
            ("twice", [node, session, command @ ..]) => {
                let call = (0..2).map(|_| (1, 1, command.join(" "))).collect();
                let session = session.parse().expect("twice NODE SESSION COMMAND");
                self.commands(node, session, call, true);
            }
            ("hostile", [node, session]) => {
                let claim = |sequence| (sequence, if sequence > 1000 { 1001 } else { 1 });
                let calls = (1..=2024).map(claim).map(|(seq, low)| (seq, low, String::new()));
                let session = session.parse().expect("hostile NODE SESSION");
                self.commands(node, session, calls.collect(), false);
            }
            ("answers", [node, session, first, last, lowest]) => {
                let number =
                    |text: &str| text.parse().expect("answers NODE SESSION FIRST LAST LOWEST");
                let command = format!("big {}", limits::OUTCOME_BYTES_MAX);
                let calls = (number(first)..=number(last)).map(|seq| (seq, number(lowest)));
                let calls = calls.map(|(seq, low)| (seq, low, command.clone())).collect();
                self.commands(node, number(session), calls, false);
                self.cluster.stabilize();
            }
            ("open", [node]) => more::open(&mut self.cluster, node),
            ("close", [node, session]) => more::close(&mut self.cluster, node, session),
            ("query" | "local", [node, key]) => more::query(&mut self.cluster, word, node, key),
            ("leave", [node]) => {
                let tickets = self.cluster.open_tickets();
                self.cluster.event(node, Event::Gone { tickets });
            }
            ("flood", [node, count, ..]) => self.flood(node, number(&[count], 1), after(rest, 2)),
            ("sessions" | "entries", [node, count]) => {
                for first in (0..number(&[count], 1)).step_by(16) {
                    let places = first..number(&[count], 1).min(first + 16);
                    let all = word == "sessions";
                    let events = places.map(|place| self.one_entry(all || place % 2 == 1, place));
                    let events = events.collect();
                    self.cluster.events(node, events);
                    self.cluster.stabilize();
                }
                self.cluster.counts.clear();
            }
            _other => return false,
        }
        true
    }

    fn orders(&mut self, word: &str, rest: &str, words: &[&str]) -> bool {
        match (word, words) {
            ("checkpoint", [node, told @ ..]) => {
                // Most scripts do not show when the checkpoint is committed.
                let label = told.first().map_or("", |_| "checkpoint").to_owned();
                let ticket = self.cluster.ticket(label, false);
                self.cluster.event(node, Event::Checkpoint { ticket });
            }
            (_, [node, how @ ..]) if more::ORDERS.contains(&word) => {
                more::order(&mut self.cluster, word, node, how);
            }
            ("repair", [node]) => {
                let ticket = self.cluster.ticket("repair".to_owned(), false);
                self.cluster.event(node, Event::Repair { ticket });
            }
            ("handover", [node]) => self.cluster.event(node, Event::HandOver),
            ("fault", [node, ..]) => {
                let fault = Fault::Internal(after(rest, 1).to_owned());
                self.cluster.event(node, Event::Faulted(fault));
            }
            ("unreachable", [node, other]) => {
                let other = Event::Unreachable(self.cluster.processes[*other].node);
                self.cluster.event(node, other);
            }
            _other => return false,
        }
        true
    }

    /// Proposes commands that are separated by `;`, all before one flush. In a session each has the
    /// next sequence, from `first` on, and those below `low` have their answers.
    fn calls(&mut self, node: &str, text: &str, session: u64, first: u64, low: u64, relief: bool) {
        let session = self.cluster.session(session);
        let commands = text.split(';').map(str::trim);
        let events = commands.enumerate().map(|(place, command)| {
            let ticket = self.cluster.ticket(command.to_owned(), true);
            let sequence = first + place as u64;
            let payload = command.as_bytes().to_vec().into();
            let call = Call { session, sequence, lowest_unanswered: low, payload };
            Event::Propose { ticket, call, relief }
        });
        let events = events.collect();
        self.cluster.events(node, events);
    }

    /// Proposes calls of one session (sequence, lowest unanswered, command) before one flush. Their
    /// answers are shown one by one if `told`, else counted.
    fn commands(&mut self, node: &str, session: u64, calls: Vec<(u64, u64, String)>, told: bool) {
        let session = self.cluster.session(session);
        let events = calls.into_iter().map(|(sequence, lowest_unanswered, command)| {
            let label = if told { command.clone() } else { String::new() };
            let ticket = self.cluster.ticket(label, true);
            let payload = command.into_bytes().into();
            let call = Call { session, sequence, lowest_unanswered, payload };
            Event::Propose { ticket, call, relief: false }
        });
        let events = events.collect();
        self.cluster.events(node, events);
    }

    /// A request that makes an entry of its own: a session opening, or a command between two of
    /// them.
    fn one_entry(&mut self, open: bool, place: usize) -> Event {
        let ticket = self.cluster.ticket(String::new(), false);
        let payload = format!("set k {place}").into_bytes().into();
        let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload };
        if open {
            Event::OpenSession { ticket, nonce: ticket.0 }
        } else {
            Event::Propose { ticket, call, relief: false }
        }
    }

    fn flood(&mut self, node: &str, count: usize, command: &str) {
        let padding = " ".repeat(command.split_whitespace().last().map_or(0, |last| {
            last.strip_prefix('*').and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
        }));
        let text = format!("{command}{padding}");
        let events = (0..count).map(|_| {
            let ticket = self.cluster.ticket(String::new(), false);
            let payload = text.clone().into_bytes().into();
            let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload };
            Event::Propose { ticket, call, relief: false }
        });
        let events = events.collect();
        self.cluster.events(node, events);
        self.cluster.stabilize();
    }

    fn views(&mut self, word: &str, words: &[&str]) -> bool {
        let cluster = &mut self.cluster;
        match (word, words) {
            ("status", []) => {
                for name in cluster.running() {
                    self.status(&name);
                }
            }
            ("status", [node]) => self.status(node),
            ("more", [node]) => more::tell(cluster, node),
            ("log", [node]) => more::log(cluster, node),
            ("objects", [node]) => {
                let store = cluster.processes[*node].store.clone();
                let indexes = store.lock().expect("no panic holds the lock").indexes();
                cluster.tell(format!("{node} has objects {indexes:?}"));
            }
            ("bootstrap", [node]) => {
                more::bootstrap(cluster, node);
            }
            ("time", [node]) => {
                let ledger = &cluster.processes[*node].lane.ledger;
                let sessions = ledger.sessions();
                let (count, evicted) = (sessions.count(), sessions.evicted());
                let mut text = format!("{node} log time {} sessions {count}", ledger.log_time_ms());
                if evicted + sessions.refused() > 0 {
                    text += &format!(", {evicted} evicted, {} refused", sessions.refused());
                }
                cluster.tell(text);
            }
            _other => return false,
        }
        true
    }

    fn status(&mut self, name: &str) {
        let Some(group) = &self.cluster.processes[name].group else {
            return self.cluster.tell(format!("{name} is down"));
        };
        let GroupStatus {
            state,
            role,
            leader,
            term,
            applied,
            first_index,
            last_index,
            snapshots,
            ..
        } = group.status();
        let leader = leader.map_or("nobody".to_owned(), |id| self.cluster.name_of(id));
        let indexes: Vec<u64> = snapshots.iter().map(|desc| desc.index).collect();
        let status = group.status();
        let mut text = format!(
            "{name} {}: {role:?} of {leader} in term {term}, log {first_index}..{last_index}, \
             applied {applied}, snapshots {indexes:?}",
            more::describe(&state),
        );
        if status.log_time_ahead_ms > limits::CLOCK_SKEW_MS_MAX {
            text += &format!(", log time {} ms ahead", status.log_time_ahead_ms);
        }
        for (node, lineage) in &status.strangers {
            assert_ne!(Some(*lineage), status.lineage, "a stranger has our lineage");
            text += &format!(", n{node} is a stranger");
        }
        for (flag, word) in [
            (status.reluctant, ", reluctant"),
            (status.clock_is_off, ", clock off"),
            (status.checkpoints_skipped > 0, ", skipped a checkpoint"),
            (status.captures_failed > 0, ", failed a capture"),
            (!status.corrupt.is_empty(), ", has a corrupt object"),
            (status.wanted.is_some(), ", asks for an object"),
            (status.frames_misdirected > 0, ", misdirected frames"),
        ] {
            text += if flag { word } else { "" };
        }
        self.cluster.tell(text);
    }
}

/// Whether the condition of `run until` holds.
fn holds(cluster: &Cluster, what: &[&str]) -> bool {
    let status = |name: &str| cluster.processes.get(name)?.group.as_ref().map(|g| g.status());
    let all = || cluster.running().into_iter().filter_map(|name| status(&name));
    match what {
        ["leader"] => all().any(|s| s.role == Role::Leader),
        ["leader", name] => status(name).is_some_and(|s| s.role == Role::Leader),
        ["serving"] => {
            let highest = all().map(|s| s.commit).max();
            all().any(|s| s.role == Role::Leader)
                && all().all(|s| s.state.refusal().is_none() && Some(s.applied) == highest)
        }
        ["joint", name] => status(name).is_some_and(|s| s.configuration.is_joint()),
        ["voters", names @ ..] => all().any(|s| {
            let text = cluster.configuration(&s.configuration);
            s.role == Role::Leader && text == names.join(" ")
        }),
        ["state", name, state] => status(name).is_some_and(|s| s.state.name() == *state),
        other => panic!("run until {other:?}"),
    }
}

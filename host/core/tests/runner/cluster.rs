//! A whole cluster in one thread: processes, their disks and lanes, links, transfers and a clock.
//!
//! Nothing happens by itself. Frames wait on their link, batches on their disk, jobs on their lane,
//! and objects in their transfer until a command moves them; [`Cluster::stabilize`] moves all that
//! is not stuck.
//!
//! - The network loses only what a script cuts or drops, and keeps the order of each link.
//! - A crash loses what is not durable: batches, jobs, holds. Frames that were sent still arrive.
//! - A process shows a line for each thing that a reader of the story wants to know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lockstep_core::apply::Answer;
use lockstep_core::fault::Refusal;
use lockstep_core::group::frame::Body;
use lockstep_core::group::{
    Effect, Event, Found, Frame, Group, GroupConfig, Inbound, Role, SnapshotPolicy,
};
use lockstep_core::ids::{ModuleId, NodeId, ReplicaId, Ticket};
use lockstep_core::snapshot::chunk::{ObjectRef, Purpose};
use lockstep_core::snapshot::send::Report;
use lockstep_core::snapshot::{Configuration, SnapshotDesc, Verified};
use raft::eraftpb::{Entry, MessageType};

use super::checks::Checks;
use super::disk::{Disk, Image, SharedStore, put};
use super::lane::{Done, Lane};
use super::more::{brief, describe, refused};
use super::trials::Trials;

/// One process of a node. Two processes may run on copies of one node's data directory.
pub(crate) struct Process {
    pub(crate) node: NodeId,
    pub(crate) config: GroupConfig,
    pub(crate) group: Option<Group>,
    pub(crate) disk: Disk,
    pub(crate) store: SharedStore,
    pub(crate) lane: Lane,
    pub(crate) clock_ms: i64,
    /// The index of the snapshot of which this process keeps a suspended part.
    pub(crate) suspended: Option<u64>,
    /// Recovery points to read before others are given up for them.
    pub(crate) proofs: VecDeque<SnapshotDesc>,
    /// Whether the core took the objects that it received; shown by `more`.
    pub(crate) judged: Vec<String>,
    /// How often it asked a peer for an object; shown by `more`.
    pub(crate) asked: usize,
    pub(crate) trials: Trials,
    /// The list of snapshots that was shown last.
    told: Option<Vec<u64>>,
    /// Role, and term and configuration index, as shown last.
    seen: (Option<Role>, (u64, u64)),
}

/// A snapshot on its way to another replica.
struct Transfer {
    from: String,
    to: ReplicaId,
    desc: SnapshotDesc,
    bytes: Bytes,
    purpose: Purpose,
    insist: bool,
}

/// What happens to transfers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bulk {
    Go,
    Hold,
    Fail,
}

#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) processes: BTreeMap<String, Process>,
    /// The process that each node's configured address leads to.
    pub(crate) routes: BTreeMap<NodeId, String>,
    pub(crate) links: BTreeMap<(String, String), VecDeque<Frame>>,
    pub(crate) cut: BTreeSet<(String, String)>,
    transfers: Vec<Transfer>,
    pub(crate) bulk: Option<Bulk>,
    pub(crate) time_ms: u64,
    names: BTreeMap<ReplicaId, String>,
    /// The id of each session, by the index of the entry that opened it, which scripts name.
    pub(crate) sessions: BTreeMap<u64, u64>,
    /// What each ticket asked for, and whether that is a command.
    labels: BTreeMap<Ticket, (String, bool)>,
    /// Counts of the answers to tickets without a label, such as those of a flood.
    pub(crate) counts: BTreeMap<String, usize>,
    pub(crate) checks: Checks,
    starts: u64,
    pub(crate) trace: Vec<String>,
}

impl Cluster {
    pub(crate) fn tell(&mut self, line: impl Into<String>) {
        self.trace.push(line.into());
    }

    pub(crate) fn add(&mut self, name: &str, node: NodeId, nodes: u16, policy: SnapshotPolicy) {
        let config = GroupConfig {
            name: "g".to_owned(),
            node,
            nodes: (1..=nodes).map(NodeId).collect(),
            module: ModuleId([7; 32]),
            lineage: None,
            guest_config: Bytes::from_static(b"config"),
            profile: Default::default(),
            snapshot_policy: policy,
            snapshots_share_log_disk: true,
            seed: 0,
            nonce: 0,
        };
        let process = Process {
            node,
            config,
            group: None,
            disk: Disk::default(),
            store: Arc::new(Mutex::default()),
            lane: Lane::default(),
            clock_ms: 0,
            suspended: None,
            proofs: VecDeque::new(),
            judged: Vec::new(),
            asked: 0,
            told: None,
            trials: Trials::default(),
            seen: (None, (0, 0)),
        };
        self.processes.insert(name.to_owned(), process);
        self.routes.entry(node).or_insert_with(|| name.to_owned());
    }

    /// Starts a process on what its disk holds.
    pub(crate) fn start(&mut self, name: &str, seed: u64) {
        self.starts += 1;
        let process = self.processes.get_mut(name).expect("the process was added");
        process.config.nonce = self.starts;
        process.config.seed = seed.wrapping_add(self.starts.wrapping_mul(0x9e37_79b9));
        process.lane = Lane::default();
        process.seen = (None, (0, 0));
        let recovered = process.disk.durable.as_ref().map(Image::recovered);
        if let Some(image) = &process.disk.durable {
            let listed = image.state().snapshots.clone();
            process.store.lock().expect("no panic holds the lock").list(&listed, &[]);
        }
        let mut effects = Vec::new();
        let group = Group::open(process.config.clone(), recovered, &mut effects);
        let replica = group.recovery_state().replica;
        process.group = Some(group);
        let node = process.node;
        let earlier = self.names.keys().filter(|id| id.node() == node && **id != replica).count();
        let suffix = if earlier == 0 { String::new() } else { format!(".{}", earlier + 1) };
        self.names.entry(replica).or_insert_with(|| format!("n{node}{suffix}"));
        self.carry_out(name, effects);
    }

    /// Ends a process at once; what was not durable is lost.
    pub(crate) fn crash(&mut self, name: &str) {
        let process = self.processes.get_mut(name).expect("the process was added");
        process.group = None;
        process.disk.crash();
        process.lane = Lane::default();
        process.proofs.clear();
        process.trials.wanted.clear();
        self.transfers.retain(|transfer| transfer.from != name);
    }

    pub(crate) fn event(&mut self, name: &str, event: Event) {
        self.events(name, vec![event]);
    }

    /// Hands events to a group and flushes once, as a host drains its mailbox.
    pub(crate) fn events(&mut self, name: &str, events: Vec<Event>) {
        let process = self.processes.get_mut(name).expect("the process was added");
        let Some(group) = &mut process.group else { return };
        let mut effects = Vec::new();
        let plain = events.iter().all(is_plain);
        events.into_iter().for_each(|event| group.handle(event, &mut effects));
        group.flush(&mut effects);
        let recovery = group.recovery_state();
        let same = process.seen.1 == (recovery.term, recovery.configuration_index);
        let settled = matches!(process.seen.0, Some(Role::Leader | Role::Follower));
        self.carry_out(name, effects);
        // Making a status after every frame would take most of the time.
        if !(plain && same && settled) {
            self.observe(name);
        }
    }

    pub(crate) fn tick(&mut self, name: &str) {
        let wall_ms = self.time_ms.saturating_add_signed(self.processes[name].clock_ms);
        self.event(name, Event::Tick { wall_ms });
    }

    /// The id of the session that the entry at `index` opened; `index` if there is none.
    pub(crate) fn session(&self, index: u64) -> u64 {
        self.sessions.get(&index).copied().unwrap_or(index)
    }

    pub(crate) fn ticket(&mut self, label: String, command: bool) -> Ticket {
        let ticket = Ticket(self.labels.len() as u64 + 1);
        self.labels.insert(ticket, (label, command));
        ticket
    }

    /// The requests that have no answer yet.
    pub(crate) fn open_tickets(&self) -> BTreeSet<Ticket> {
        self.labels.keys().copied().filter(|ticket| !self.checks.has_answer(*ticket)).collect()
    }

    fn carry_out(&mut self, name: &str, effects: Vec<Effect>) {
        for effect in effects {
            let process = self.processes.get_mut(name).expect("the process was added");
            match effect {
                Effect::Persist { seq, job } => process.disk.queue(seq, job),
                Effect::Fetch { from, to, bytes } => match &mut process.disk.reads {
                    Some(waiting) => waiting.push((from, to, bytes)),
                    None => self.fetch(name, from, to, bytes),
                },
                Effect::Apply(job) => process.lane.push(job),
                Effect::List { snapshots, promised, pressure, holds } => {
                    let mut store = process.store.lock().expect("no panic holds the lock");
                    store.list(&snapshots, &promised);
                    drop(store);
                    drop(holds);
                    if pressure {
                        process.suspended = None;
                    }
                    let indexes: Vec<u64> = snapshots.iter().map(|desc| desc.index).collect();
                    if process.told != Some(indexes.clone()) {
                        self.tell(format!("{name} lists snapshots {indexes:?}"));
                    }
                    self.processes.get_mut(name).expect("a process").told = Some(indexes);
                }
                Effect::Prove { snapshot } => process.proofs.push_back(snapshot),
                Effect::Send { to, frame } => {
                    Checks::sends(&frame, process.disk.durable.as_ref());
                    process.asked += usize::from(matches!(frame.body, Body::Want(_)));
                    let there = self.routes.get(&to).cloned().unwrap_or_default();
                    self.links.entry((name.to_owned(), there)).or_default().push_back(*frame);
                }
                Effect::SendSnapshot { to, snapshot, purpose, insist } => {
                    self.send(Transfer {
                        from: name.to_owned(),
                        to,
                        desc: snapshot,
                        bytes: Bytes::new(),
                        purpose,
                        insist,
                    });
                }
                Effect::Prepare(wanted) => process.trials.wanted.push(wanted),
                Effect::Judged { object, taken } => {
                    let word = if taken { "taken" } else { "left" };
                    process.judged.push(format!("{}:{word}", object.index));
                }
                Effect::Answer { ticket, answer } => self.answer(ticket, answer),
                Effect::Entered { ticket, index } => {
                    self.checks.answered(ticket);
                    let label = self.labels[&ticket].0.clone();
                    if !label.is_empty() {
                        self.tell(format!("\"{label}\" -> at {index}"));
                    }
                }
                Effect::State(state) => {
                    let text = describe(&state);
                    self.tell(format!("{name} is {text}"));
                }
            }
        }
    }

    /// Reads the entries of `[from, to)` back from the log, at most `bytes` of them, and hands them
    /// to the group.
    pub(crate) fn fetch(&mut self, name: &str, from: u64, to: u64, bytes: u64) {
        let image = self.processes[name].disk.durable.as_ref();
        let entries = image.and_then(|image| image.read(from, to, bytes));
        let found = entries.as_ref().map_or(0, Vec::len);
        self.tell(format!("{name} reads {found} entries from {from} for a follower"));
        self.event(name, Event::Fetched { from, entries });
    }

    fn send(&mut self, mut transfer: Transfer) {
        let Transfer { from, to, desc, purpose, insist, .. } = &transfer;
        let same = |t: &&Transfer| (&t.from, t.to, t.purpose) == (from, *to, *purpose);
        assert!(!self.transfers.iter().any(|t| same(&t)), "two transfers to one follower");
        let store = self.processes[from].store.lock().expect("no panic holds the lock");
        let bytes = store.get(desc).expect("only a listed or promised object is sent");
        drop(store);
        let how = match (purpose, insist) {
            (Purpose::Wanted, _) => " as asked",
            (Purpose::Follow, true) => " and insists",
            (Purpose::Follow, false) => "",
        };
        let text = format!("{from} sends snapshot {} to {}{how}", desc.index, self.name_of(*to));
        self.tell(text);
        transfer.bytes = bytes;
        self.transfers.push(transfer);
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Refusal>) {
        self.checks.answered(ticket);
        let (label, command) = self.labels[&ticket].clone();
        if command && !label.is_empty() && matches!(answer, Ok(Answer::Ok(_))) {
            self.checks.acknowledged(label.as_bytes());
        }
        let text = match answer {
            Ok(Answer::Ok(bytes)) if bytes.len() > 40 => format!("ok, {} bytes", bytes.len()),
            Ok(Answer::Ok(bytes)) => format!("ok {}", String::from_utf8_lossy(&bytes)),
            Ok(Answer::Opened(id)) => {
                let by_index = self.sessions.iter().find(|(_, known)| **known == id);
                format!("session {}", by_index.expect("the lane has told its id").0)
            }
            Ok(Answer::Rejected(rejection)) => format!("rejected: {}", brief(&rejection)),
            Err(refusal) => format!("refused: {}", refused(&refusal)),
        };
        if label.is_empty() {
            *self.counts.entry(text).or_default() += 1;
        } else {
            self.tell(format!("\"{label}\" -> {text}"));
        }
    }

    /// Shows role and configuration if they changed.
    fn observe(&mut self, name: &str) {
        let process = self.processes.get_mut(name).expect("the process was added");
        let Some(group) = &process.group else { return };
        let status = group.status();
        let recovery = group.recovery_state();
        let seen = (Some(status.role), (recovery.term, recovery.configuration_index));
        let before = std::mem::replace(&mut process.seen, seen).0;
        let index = recovery.configuration_index;
        let configuration = recovery.configuration.clone();
        if status.role == Role::Leader {
            self.checks.leads(status.term, status.replica);
        }
        if self.checks.configured(index, &configuration) {
            let text = self.configuration(&configuration);
            self.tell(format!("configuration at {index}: {text}"));
        }
        let role = format!("{:?}", status.role).to_lowercase();
        let was_quiet = matches!(before, None | Some(Role::None));
        let is_quiet = matches!(status.role, Role::Follower | Role::None);
        // That it stopped has been shown already.
        let ended = status.state.is_stopped();
        if before != Some(status.role) && !(was_quiet && is_quiet) && !ended {
            self.tell(format!("{name} is {role} in term {}", status.term));
        }
    }

    /// Syncs every disk, runs every lane and delivers every frame, until nothing moves any more.
    pub(crate) fn stabilize(&mut self) {
        for _ in 0..10_000 {
            let mut moved = false;
            for name in self.running() {
                moved |= self.sync(&name, usize::MAX, false);
                moved |= self.run_lane(&name);
                moved |= self.prove(&name);
                moved |= self.prepare(&name);
            }
            moved |= self.deliver();
            moved |= self.carry_objects();
            if !moved {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    pub(crate) fn running(&self) -> Vec<String> {
        let up = self.processes.iter().filter(|(_, process)| process.group.is_some());
        up.map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn sync(&mut self, name: &str, batches: usize, by_hand: bool) -> bool {
        let process = self.processes.get_mut(name).expect("the process was added");
        if process.disk.is_idle() && !by_hand {
            return false;
        }
        let Some(seq) = process.disk.sync(batches) else { return false };
        self.event(name, Event::Persisted { seq });
        true
    }

    fn run_lane(&mut self, name: &str) -> bool {
        let process = self.processes.get_mut(name).expect("the process was added");
        let Some(image) = process.disk.durable.as_ref().filter(|_| !process.lane.is_idle()) else {
            return false;
        };
        let Some(done) = process.lane.run(image, &process.store) else {
            return false;
        };
        self.checks.amended(&process.lane.amendments);
        let Done { events, applied, answer, opened, told } = done;
        self.sessions.extend(opened);
        // The bootstrapping node applies its record before it is durable, when no other node has
        // it.
        let durable = |entry: &Entry| image.term(entry.index) == Some(entry.term);
        applied
            .iter()
            .filter(|(entry, _)| durable(entry))
            .for_each(|(entry, digest)| self.checks.applied(entry, *digest));
        if let Some((ticket, text)) = answer {
            self.checks.answered(ticket);
            let label = self.labels[&ticket].0.clone();
            self.tell(format!("\"{label}\" -> {text}"));
        }
        told.into_iter().for_each(|what| self.tell(format!("{name} {what}")));
        self.events(name, events);
        true
    }

    /// Reads a recovery point whole before the core gives up others for it.
    fn prove(&mut self, name: &str) -> bool {
        let process = self.processes.get_mut(name).expect("the process was added");
        let store = process.store.lock().expect("no panic holds the lock");
        let Some(snapshot) = process.proofs.pop_front_if(|_| !store.slow) else { return false };
        let (what, found) = match (store.short, store.is_good(&snapshot)) {
            (true, _) => ("unreadable", Found::Unread("too many open files".to_owned())),
            (false, true) => ("whole", Found::Whole),
            (false, false) => ("corrupt", Found::Bad("corrupt".to_owned())),
        };
        drop(store);
        let index = snapshot.index;
        self.tell(format!("{name} reads snapshot {index} before it gives up another: {what}"));
        self.event(name, Event::Read { snapshot, found });
        true
    }

    /// Delivers the first frame of every link.
    pub(crate) fn deliver(&mut self) -> bool {
        let waiting: Vec<_> = self.links.keys().cloned().collect();
        let mut moved = false;
        for link in waiting {
            let Some(frame) = self.links.get_mut(&link).and_then(VecDeque::pop_front) else {
                continue;
            };
            moved = true;
            if !self.cut.contains(&link) && self.processes.contains_key(&link.1) {
                let via = link.0.as_str().into();
                self.event(&link.1, Event::Frame(Inbound { frame, via }));
            }
        }
        moved
    }

    fn carry_objects(&mut self) -> bool {
        if self.bulk == Some(Bulk::Hold) || self.transfers.is_empty() {
            return false;
        }
        let Transfer { from, to, desc, bytes, purpose, insist } = self.transfers.remove(0);
        let there = self.routes.get(&to.node()).cloned().unwrap_or_default();
        let lives = |process: &&mut Process| {
            process.group.as_ref().is_some_and(|g| g.recovery_state().replica == to)
        };
        let cut = self.cut.contains(&(from.clone(), there.clone()));
        let receiver = self.processes.get_mut(&there).filter(lives);
        let mut prefers = None;
        let report = match receiver {
            Some(Process { suspended: Some(at), .. }) if *at != desc.index && !insist && !cut => {
                let index = *at;
                let listed = self.processes[&from].group.as_ref().map(|g| g.recovery_state());
                let known = listed.iter().flat_map(|state| &state.snapshots);
                let found = known.into_iter().find(|desc| desc.index == index);
                let object = |desc: &SnapshotDesc| ObjectRef::of(desc);
                let other = ObjectRef { term: 0, index, digest: [0; 16] };
                prefers = Some(found.map_or(other, object));
                self.tell(format!("{there} prefers snapshot {index}"));
                Report::Failure
            }
            Some(process) if !cut && self.bulk != Some(Bulk::Fail) => {
                let hold = put(&process.store, &desc, bytes);
                let index = desc.index;
                process.suspended = None;
                let before = process.group.as_ref().map(|g| g.recovery_state().snapshots.clone());
                self.event(&there, Event::Received { snapshot: Verified { desc, hold } });
                let after = self.snapshots(&there);
                let taken = before != after;
                self.tell(match (taken, purpose) {
                    (_, Purpose::Wanted) => format!("{there} got snapshot {index}"),
                    (true, Purpose::Follow) => format!("{there} installs snapshot {index}"),
                    (false, Purpose::Follow) => {
                        format!("{there} does not need snapshot {index} now")
                    }
                });
                Report::Finish
            }
            Some(_) | None => {
                self.tell(format!("the transfer to {} fails", self.name_of(to)));
                Report::Interrupted
            }
        };
        self.event(&from, Event::TransferEnded { to, purpose, report, prefers });
        true
    }

    fn snapshots(&self, name: &str) -> Option<Vec<SnapshotDesc>> {
        self.processes[name].group.as_ref().map(|g| g.recovery_state().snapshots.clone())
    }

    /// Checks what must hold after each command.
    pub(crate) fn check(&self) {
        let disks: Vec<_> = self
            .routes
            .values()
            .map(|name| &self.processes[name])
            .map(|process| process.disk.durable.as_ref())
            .filter_map(|image| image.map(|image| (image.state().replica, Some(image))))
            .collect();
        self.checks.nothing_is_lost(&disks);
        for (name, process) in &self.processes {
            let Some(image) = &process.disk.durable else { continue };
            let store = process.store.lock().expect("no panic holds the lock");
            for desc in &image.state().snapshots {
                assert!(store.get(desc).is_some(), "{name} lacks {}, which it lists", desc.index);
            }
        }
    }

    /// A snapshot that a node's log lists: `newest`, `oldest`, or an index.
    pub(crate) fn listed(&self, name: &str, which: &str) -> SnapshotDesc {
        let group = self.processes[name].group.as_ref().expect("it runs");
        let listed = &group.recovery_state().snapshots;
        let found = match which {
            "newest" => listed.first(),
            "oldest" => listed.last(),
            index => {
                let index: u64 = index.parse().expect("an index");
                listed.iter().find(|desc| desc.index == index)
            }
        };
        found.expect("it is listed").clone()
    }

    pub(crate) fn name_of(&self, replica: ReplicaId) -> String {
        self.names.get(&replica).cloned().unwrap_or_else(|| replica.to_string())
    }

    pub(crate) fn configuration(&self, configuration: &Configuration) -> String {
        let names = |ids: &BTreeSet<ReplicaId>| {
            let mut names: Vec<String> = ids.iter().map(|id| self.name_of(*id)).collect();
            names.sort();
            names
        };
        let mut text = names(&configuration.voters).join(" ");
        for (word, ids) in [
            ("learners", &configuration.learners),
            ("leaving", &configuration.voters_outgoing),
            ("next learners", &configuration.learners_next),
        ] {
            if !ids.is_empty() {
                text += &format!(", {word} {}", names(ids).join(" "));
            }
        }
        text
    }
}

/// Whether an event changes no role unless it changes the term.
fn is_plain(event: &Event) -> bool {
    match event {
        Event::Propose { .. } | Event::Applied(_) | Event::Persisted { .. } => true,
        Event::Frame(Inbound { frame: Frame { body: Body::Raft(message), .. }, .. }) => matches!(
            message.get_msg_type(),
            MessageType::MsgAppend | MessageType::MsgAppendResponse | MessageType::MsgHeartbeat
        ),
        _other => false,
    }
}

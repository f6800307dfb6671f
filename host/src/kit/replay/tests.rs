//! Logs made by hand, on a disk in memory; and one that a real node wrote.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_core::amendment::{Amendment, Change};
use lockstep_core::apply::{Answer, Emitted, GuestEvent, Setting};
use lockstep_core::entry::{Call, CheckpointReason, Commands, Profile};
use lockstep_core::fault::Rejection;
use lockstep_core::ids::{GroupId, Lineage, NodeId, ReplicaId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::Configuration;
use lockstep_core::wal::LogJob;

use super::*;
use crate::config::{GuestLimits, NodeConfig};
use crate::data_dir::{DataDir, DataDirError};
use crate::fs::mem::{DiskFault, MemFs};
use crate::fs::{DiskFs, Fs, create_dirs, make_durable};
use crate::guest::native::{NativeMachine, NativeModule};
use crate::guest::{Context, Outcome};
use crate::kit::export::{self, Export};
use crate::kit::past::{PastError, StoppedLog};
use crate::node::Node;
use crate::store::Identity;
use crate::store::layout::{Header, ObjectName, Trailer, snapshot_dir};
use crate::wal::{Wal, WalOptions};

const CONFIG: &str = r#"
    cluster = "demo"
    node = 1
    data-dir = "d"
    log-segment = "4MiB"
    [nodes]
    1 = "127.0.0.1:7101"
    [[groups]]
    name = "kv"
    module = "native:register"
    snapshot-entries = 100
"#;

/// Adds numbers; each sum is told, and the timer follows it.
struct Adder {
    sum: u64,
    /// The sum from which on answers are wrong.
    wrong_from: u64,
    emitted: Emitted,
}

fn adder(wrong_from: u64) -> Module {
    // The version is part of the name, and so of the id.
    let name = format!("adder-{wrong_from}");
    let make = move || Adder { sum: 0, wrong_from, emitted: Emitted::default() };
    Arc::new(NativeModule::new(&name, make))
}

impl NativeMachine for Adder {
    fn init(&mut self, _: Context, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn apply(&mut self, ctx: Context, command: &[u8]) -> Result<Outcome, String> {
        let number: u64 = String::from_utf8_lossy(command).parse().map_err(|_| "no number")?;
        self.sum += number;
        let payload = self.sum.to_string().into();
        self.emitted.emit(GuestEvent { topic: "sum".into(), payload }, 1 << 16);
        self.emitted.timer = Some(Setting::At(ctx.time_ms + self.sum));
        let told = self.sum + u64::from(self.sum >= self.wrong_from);
        Ok(Outcome::Ok(told.to_string().into()))
    }

    fn query(&self, _: Context, _: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
        Ok(Ok(Bytes::new()))
    }

    fn snapshot(&self, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&self.sum.to_le_bytes())
    }

    fn restore(&mut self, _: &[u8], input: &mut dyn Read) -> io::Result<()> {
        let mut sum = [0; 8];
        input.read_exact(&mut sum)?;
        self.sum = u64::from_le_bytes(sum);
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        8
    }

    fn emitted(&mut self) -> Emitted {
        std::mem::take(&mut self.emitted)
    }
}

/// A log being made, with the replica that would have applied it.
struct Story {
    module: Module,
    player: Player,
    entries: Vec<Entry>,
    snapshots: Vec<(SnapshotDesc, Vec<u8>)>,
}

impl Story {
    fn new(module: Module) -> Self {
        let (limits, log) = (GuestLimits::default(), GuestLog::of_no_group());
        let maker = Maker::new(Arc::clone(&module), Bytes::new(), limits, 7, log);
        let player = Player::new(&maker, Looks::AsServer);
        let mut this = Self { module, player, entries: Vec::new(), snapshots: Vec::new() };
        let profile = Profile { engine_major: 0, ..Profile::default() };
        this.body(&EntryBody::Bootstrap(Bootstrap { profile, ..maker.bootstrap.clone() }));
        this
    }

    /// An entry that the replica applies, too, unless it fails there.
    fn body(&mut self, body: &EntryBody) -> Vec<Answer> {
        let index = self.entries.len() as u64 + 1;
        let entry = Entry { index, term: 2, data: body.encode().into(), ..Entry::default() };
        let trace = self.player.play(&entry);
        self.entries.push(entry);
        trace.map(|trace| trace.answers).unwrap_or_default()
    }

    fn calls(&mut self, calls: &[(u64, u64, &str)]) -> Vec<Answer> {
        let time_ms = 1_000 * self.entries.len() as u64;
        let call = |(session, sequence, text): &(u64, u64, &str)| Call {
            session: *session,
            sequence: *sequence,
            lowest_unanswered: 0,
            payload: Bytes::copy_from_slice(text.as_bytes()),
        };
        let calls = calls.iter().map(call).collect();
        self.body(&EntryBody::Commands(Commands { time_ms, calls }))
    }

    fn say(&mut self, text: &str) {
        self.calls(&[(0, 0, text)]);
    }

    fn members(&mut self) {
        let index = self.entries.len() as u64 + 1;
        let mut entry = Entry { index, term: 2, data: "any".into(), ..Entry::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        self.player.play(&entry).expect("the guest is not called");
        self.entries.push(entry);
    }

    /// A checkpoint, with a snapshot that the log lists.
    fn checkpoint(&mut self) {
        self.body(&EntryBody::Checkpoint { time_ms: 1, reason: CheckpointReason::Entries });
        let mut payload = self.player.ledger().encode_envelope();
        payload.extend(self.player.snapshot().expect("it has no snapshot traps"));
        let desc = SnapshotDesc {
            term: 2,
            index: self.entries.len() as u64,
            length: payload.len() as u64,
            digest: Digest(*blake3::hash(&payload).as_bytes()),
            module: self.module.id(),
            format: 1,
            configuration: Configuration::of_voters([replica()]),
        };
        self.snapshots.insert(0, (desc, payload));
    }

    /// A stopped node's disk with the entries from `first` on.
    fn disk(&self, first: u64, commit: u64) -> Arc<MemFs> {
        let fs = Arc::new(MemFs::with_dir(Path::new("/")));
        let shared: Arc<dyn Fs> = fs.clone();
        let config = NodeConfig::parse(CONFIG, Path::new("/")).expect("it is good");
        let mut data = DataDir::open(&shared, &config, false).expect("it is new");
        let cluster = config.cluster_id();
        let options = WalOptions::new(cluster, NodeId(1), 4 << 20, 1);
        let (mut wal, _) = Wal::open(shared, &data.wal(), options).expect("it is new");
        data.log_begun(&*fs).expect("the disk works");
        let group = GroupId::of_name("kv");
        let mut state = RecoveryState::blank("kv", replica());
        (state.bootstrapped, state.lineage) = (true, Some(Lineage([3; 16])));
        (state.term, state.commit) = (2, commit);
        state.floor = commit;
        for entry in self.entries.iter().filter(|it| it.index <= commit) {
            if let Ok(EntryBody::Skip { index, .. }) = EntryBody::decode(entry.data.clone()) {
                state.amendments.add(Amendment { at: entry.index, change: Change::Skip { index } });
            }
        }
        let entries = self.entries.clone();
        let job = LogJob { group, state: state.clone(), entries };
        wal.append(&[job], &mut |_| {}).expect("there is space");
        state.snapshots = self.snapshots.iter().map(|(desc, _)| desc.clone()).collect();
        (state.first_index, state.previous_term) = (first, if first == 1 { 0 } else { 2 });
        let job = LogJob { group, state, entries: Vec::new() };
        wal.append(&[job], &mut |_| {}).expect("there is space");
        create_dirs(&*fs, &snapshots()).expect("the disk works");
        for (desc, payload) in &self.snapshots {
            let head = Header::of(Identity { cluster, group }, desc).encode();
            let tail = Trailer { length: desc.length, digest: desc.digest }.encode(&head);
            let crc = crc32c::crc32c(payload).to_le_bytes();
            let file = fs.create(&object(desc)).expect("the disk works");
            let bytes = [&head[..], payload, &crc, &tail].concat();
            file.write_at(&bytes, 0).and_then(|()| file.sync()).expect("the disk works");
            make_durable(&*fs, &object(desc)).expect("the disk works");
        }
        fs
    }
}

fn replica() -> ReplicaId {
    ReplicaId::new(NodeId(1), 7)
}

fn snapshots() -> PathBuf {
    snapshot_dir(Path::new("/d"), "kv")
}

fn object(desc: &SnapshotDesc) -> PathBuf {
    snapshots().join(ObjectName::of(desc).file())
}

fn stopped(fs: &Arc<MemFs>) -> StoppedLog {
    StoppedLog::open(fs.clone(), Path::new("/d"), "kv", None).expect("it is there")
}

/// How a replay began, all entries that were applied, and its end.
fn replay(
    past: &dyn Past,
    module: &Module,
    against: Option<&Module>,
    plan: Plan,
) -> (Begun, Vec<Step>, End) {
    let log = GuestLog::of_no_group();
    let replay = Replay::begin(past, module, against, &plan, &log).expect("it begins");
    let (begun, mut steps) = (replay.begun().clone(), Vec::new());
    let end = replay.run(&mut |step| steps.push(step)).expect("the log is whole");
    (begun, steps, end)
}

fn reached(end: &End) -> &Standing {
    match end {
        End::Reached(standing) => standing,
        End::Faulted { .. } | End::Differs { .. } | End::Diverged { .. } => panic!("{end:?}"),
    }
}

/// Sums in a session, and two snapshots, at 5 and 9; entry 11 is the last.
fn sums() -> Story {
    let mut story = Story::new(adder(u64::MAX));
    let opened = story.body(&EntryBody::Open { time_ms: 9, nonce: 4 });
    let [Answer::Opened(session)] = opened[..] else { panic!("{opened:?}") };
    story.calls(&[(session, 1, "1"), (session, 2, "2")]);
    story.members();
    story.checkpoint();
    story.calls(&[(session, 2, "2"), (session, 3, "3")]);
    story.say("4");
    story.body(&EntryBody::Empty);
    story.checkpoint();
    story.say("5");
    story.say("6");
    story
}

#[test]
fn a_replay_begins_with_the_newest_snapshot_or_where_it_is_told_to() {
    let fs = sums().disk(1, 11);
    let before = fs.image();
    let past = stopped(&fs);
    let module = adder(u64::MAX);
    let (begun, steps, end) = replay(&past, &module, None, Plan::default());
    assert!(matches!(begun.start, Start::Snapshot { index: 9, .. }), "{begun:?}");
    assert_eq!(steps.iter().map(|step| step.index).collect::<Vec<_>>(), [10, 11]);
    let standing = reached(&end);
    assert_eq!((standing.applied, standing.events), (11, 6));
    assert_eq!(standing.deadline_ms, Some(10_000 + 21), "the timer follows the sum");
    for (from_snapshot, look) in [(Some(0), None), (Some(5), None), (None, Some(8))] {
        let plan = Plan { from_snapshot, look, ..Plan::default() };
        let (begun, steps, end) = replay(&past, &module, None, plan);
        let listed: Vec<u64> =
            steps.iter().filter(|it| it.snapshot.is_some()).map(|it| it.index).collect();
        match from_snapshot {
            Some(0) => assert_eq!((begun.start, listed), (Start::First, vec![5, 9])),
            Some(_) | None => assert_eq!(listed, [9], "the replay comes by it"),
        }
        assert_eq!(reached(&end).snapshot, standing.snapshot, "{plan:?}");
    }
    drop(past);
    assert_eq!(fs.image(), before, "nothing was changed");
}

#[test]
fn what_a_session_repeats_is_answered_and_not_applied_again() {
    let fs = sums().disk(1, 11);
    let plan = Plan { from_snapshot: Some(0), ..Plan::default() };
    let (_, steps, _) = replay(&stopped(&fs), &adder(u64::MAX), None, plan);
    let Step { trace, kind, .. } = &steps[5];
    assert!(matches!(kind, Kind::Body(EntryBody::Commands(_))));
    let sums = ["3", "6"].map(|text| Answer::Ok(text.into()));
    assert_eq!((&trace.answers[..], trace.outcomes.len()), (&sums[..], 1));
    assert_eq!(steps[3].kind, Kind::Members);
}

#[test]
fn entries_above_the_commit_index_are_applied_only_if_asked_for() {
    let fs = sums().disk(1, 10);
    let past = stopped(&fs);
    let module = adder(u64::MAX);
    let (begun, _, end) = replay(&past, &module, None, Plan::default());
    assert_eq!((reached(&end).applied, begun.left), (10, 1));
    let plan = Plan { uncommitted: true, ..Plan::default() };
    let (begun, _, end) = replay(&past, &module, None, plan);
    assert_eq!((reached(&end).applied, begun.left), (11, 0));
    let plan = Plan { until: Some(11), ..Plan::default() };
    let refused = Replay::begin(&past, &module, None, &plan, &GuestLog::of_no_group());
    let why = refused.err().expect("it is not committed").to_string();
    assert!(why.contains("up to 10 are") && why.contains("--uncommitted"), "{why}");
}

#[test]
fn a_trap_is_told_with_its_entry() {
    let mut story = Story::new(Arc::new(NativeModule::register()));
    story.say("set a b");
    story.calls(&[(0, 0, "set a c"), (0, 0, "fault on-purpose")]);
    story.say("set a d");
    let fs = story.disk(1, 4);
    let module: Module = Arc::new(NativeModule::register());
    let (_, steps, end) = replay(&stopped(&fs), &module, None, Plan::default());
    assert_eq!(steps.len(), 2, "the others are not applied");
    let End::Faulted { place: Place::Entry(step), faults } = end else { panic!("{end:?}") };
    assert_eq!((step.index, step.term), (3, 2));
    let Kind::Body(EntryBody::Commands(commands)) = &step.kind else { panic!("{step:?}") };
    assert_eq!(commands.calls[1].payload, "fault on-purpose");
    assert_eq!(faults[0].1.to_string(), "trap in apply at index 3: on-purpose");
}

#[test]
fn an_entry_that_is_skipped_is_not_applied() {
    let mut story = Story::new(Arc::new(NativeModule::register()));
    story.say("set a b");
    story.calls(&[(0, 0, "set a c"), (0, 0, "fault on-purpose")]);
    story.say("set a d");
    story.body(&EntryBody::Skip { time_ms: 9, index: 3 });
    let module: Module = Arc::new(NativeModule::register());
    let past = stopped(&story.disk(1, 5));
    let of_log = replay(&past, &module, None, Plan::default());
    let (_, steps, end) = &of_log;
    assert_eq!(reached(end).applied, 5);
    let skipped = || Answer::Rejected(Rejection::Skipped);
    assert_eq!(steps[2].trace.answers, [skipped(), skipped()]);

    let mut bytes = Vec::new();
    export::write(&past, &Plan::default(), &mut bytes).expect("it is written");
    let export = Export::decode(bytes.into()).expect("it was just written");
    assert_eq!(replay(&export, &module, None, Plan::default()), of_log);
}

#[test]
fn two_modules_are_compared_up_to_the_first_difference() {
    let fs = sums().disk(1, 11);
    let past = stopped(&fs);
    let plan = Plan { from_snapshot: Some(0), ..Plan::default() };
    let (begun, steps, end) = replay(&past, &adder(u64::MAX), Some(&adder(6)), plan);
    assert!(begun.compares_snapshots);
    assert_eq!(steps.len(), 5);
    let End::Differs { place: Place::Entry(step), difference } = end else { panic!("{end:?}") };
    assert_eq!((step.index, &*difference.what), (6, "the answer to command 2"));
    assert_eq!((&*difference.first, &*difference.other), ("`6`", "`7`"));

    let (begun, _, end) = replay(&past, &adder(u64::MAX), Some(&adder(99)), plan);
    assert_eq!((reached(&end).applied, begun.bootstrapped), (11, adder(u64::MAX).id()));
}

#[test]
fn a_corrupt_snapshot_is_passed_over_and_another_state_is_told() {
    let mut story = sums();
    let fs = story.disk(1, 11);
    fs.corrupt(&object(&story.snapshots[0].0), 100).expect("it is there");
    let module = adder(u64::MAX);
    let (begun, _, end) = replay(&stopped(&fs), &module, None, Plan::default());
    assert!(matches!(begun.start, Start::Snapshot { index: 5, .. }), "{begun:?}");
    assert!(matches!(&begun.passed[..], [(9, why)] if why.contains("corrupt")), "{begun:?}");
    assert_eq!(reached(&end).applied, 11);

    // What is listed at 9 is good, and not what the entries come to.
    let (desc, payload) = &mut story.snapshots[0];
    *payload.last_mut().expect("it has bytes") ^= 1;
    desc.digest = Digest(*blake3::hash(payload).as_bytes());
    let fs = story.disk(1, 11);
    let plan = Plan { from_snapshot: Some(5), ..Plan::default() };
    let (_, steps, end) = replay(&stopped(&fs), &module, None, plan);
    let End::Diverged { step, listed } = end else { panic!("{end:?}") };
    assert_eq!((step.index, steps.len()), (9, 3));
    assert_eq!(listed.digest, story.snapshots[0].0.digest);
}

#[test]
fn an_export_replays_like_the_log() {
    for (first, begins) in [(1, None), (6, Some(5)), (10, Some(9))] {
        let mut story = sums();
        story.snapshots.truncate(if first == 10 { 1 } else { 2 });
        let fs = story.disk(first, 11);
        let past = stopped(&fs);
        let mut bytes = Vec::new();
        let exported = export::write(&past, &Plan::default(), &mut bytes).expect("it is written");
        assert_eq!((exported.snapshot, exported.last, exported.left), (begins, 11, 0));
        let export = Export::decode(bytes.into()).expect("it was just written");
        let module = adder(u64::MAX);
        let plan = Plan { from_snapshot: Some(begins.unwrap_or(0)), ..Plan::default() };
        let of_log = replay(&past, &module, None, plan);
        let of_export = replay(&export, &module, None, Plan::default());
        assert_eq!(of_log, of_export, "from {first} on");
        assert_eq!(reached(&of_log.2).applied, 11);
    }
}

#[test]
fn what_cannot_be_replayed_says_why() {
    let story = sums();
    let fs = story.disk(6, 11);
    let open = |group| StoppedLog::open(fs.clone(), Path::new("/d"), group, None);
    let why = open("other").err().expect("there is none").to_string();
    assert!(why.contains("no group \"other\"; it has kv"), "{why}");
    let held = fs.lock(Path::new("/d/LOCK")).expect("nobody has it");
    let locked = open("kv").err().expect("a node has it");
    assert!(matches!(locked, PastError::DataDir(DataDirError::Locked(_))), "{locked}");
    drop(held);
    fs.fail_read(fs.reads() + 1, DiskFault::Io);
    let unread = open("kv").err().expect("the disk fails").to_string();
    assert!(unread.contains("cannot look for its log"), "{unread}");
    let past = open("kv").expect("it is there");
    let check = |plan: Plan, expect: &str| {
        let why = plan.span(past.facts()).expect_err("there is no way").to_string();
        assert!(why.contains(expect), "{why}");
    };
    check(Plan { from_snapshot: Some(0), ..Plan::default() }, "begins at entry 6");
    check(Plan { from_snapshot: Some(7), ..Plan::default() }, "there are: 9, 5");
    check(Plan { until: Some(4), ..Plan::default() }, "no snapshot at or below entry 4");
    drop(past);
    for (desc, _) in &story.snapshots {
        fs.corrupt(&object(desc), 100).expect("it is there");
    }
    let past = stopped(&fs);
    let log = GuestLog::of_no_group();
    let begun = Replay::begin(&past, &adder(u64::MAX), None, &Plan::default(), &log);
    let why = begun.err().expect("nothing is whole").to_string();
    assert!(why.contains("snapshot at 9") && why.contains("snapshot at 5"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_did_is_replayed_to_the_same_digest() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let mut config = NodeConfig::parse(CONFIG, data.path()).expect("it is good");
    config.listen = "127.0.0.1:0".to_owned();
    let dir = config.data_dir.clone();
    let node = Node::start(config, false).await.expect("it starts");
    let group = node.router().group("kv").expect("it is hosted").clone();
    for number in 0..150 {
        let payload = Bytes::from(format!("set k{number} v"));
        let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload };
        while group.propose(call.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let at = group.checkpoint().await.expect("nothing is short");
    let taken = loop {
        let taken = group.report().status.snapshots;
        match taken.into_iter().find(|desc| desc.index == at) {
            Some(desc) => break desc,
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let open = || StoppedLog::open(Arc::new(DiskFs), &dir, "kv", None);
    let running = open().err().expect("the node has it").to_string();
    assert!(running.contains("is locked"), "{running}");
    drop(group);
    node.stop().await;
    let past = open().expect("the node has stopped");
    let first = past.facts().first_index == 1;
    let oldest = past.facts().snapshots.last().map_or(0, |desc| desc.index);
    let from_snapshot = Some(if first { 0 } else { oldest });
    let plan = Plan { until: Some(at), from_snapshot, ..Plan::default() };
    let module: Module = Arc::new(NativeModule::register());
    let (_, _, end) = replay(&past, &module, None, plan);
    assert_eq!(reached(&end).snapshot, taken.digest);
}

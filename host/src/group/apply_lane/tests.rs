//! The apply lane: how many answers it holds unreported, when a start may begin, and what it does
//! about a log or a snapshot that cannot be read.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use lockstep_core::entry::{Bootstrap, Call, Commands, EntryBody, Profile};
use lockstep_core::ids::{NodeId, ReplicaId};
use lockstep_core::limits::{APPLY_ANSWERS_BYTES_MAX, ENTRY_COMMANDS_MAX, OUTCOME_BYTES_MAX};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::Configuration;
use lockstep_core::wal::LogJob;

use super::*;
use crate::fs::mem::{DiskFault, MemFs};
use crate::guest::native::{NativeMachine, NativeModule};
use crate::guest::{Context, GuestModule as _, OneModule, Outcome};
use crate::store::layout::ObjectName;
use crate::store::tests::{Bed, desc, quota};
use crate::store::{self, DirectLane, SnapshotStore, StoreJob, Work};
use crate::wal::{Wal, WalOptions};

const ENTRIES: u64 = 16;
const FULL_ENTRY: usize = ENTRY_COMMANDS_MAX * OUTCOME_BYTES_MAX;

/// Bytes of answers held now, and the most that were held at once.
#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// An answer of full length that is counted and takes no memory itself.
struct Answered(Arc<Held>);

impl Answered {
    fn new(held: &Arc<Held>) -> Self {
        let now = held.now.fetch_add(OUTCOME_BYTES_MAX, Ordering::Relaxed) + OUTCOME_BYTES_MAX;
        held.most.fetch_max(now, Ordering::Relaxed);
        Self(Arc::clone(held))
    }
}

impl AsRef<[u8]> for Answered {
    fn as_ref(&self) -> &[u8] {
        &[0; OUTCOME_BYTES_MAX]
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.now.fetch_sub(OUTCOME_BYTES_MAX, Ordering::Relaxed);
    }
}

/// Answers every command at full length.
struct Wordy(Arc<Held>);

impl NativeMachine for Wordy {
    fn init(&mut self, _: Context, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
    fn apply(&mut self, _: Context, _: &[u8]) -> Result<Outcome, String> {
        Ok(Outcome::Ok(Bytes::from_owner(Answered::new(&self.0))))
    }
    fn query(&self, _: Context, _: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
        Ok(Ok(Bytes::new()))
    }
    fn snapshot(&self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
    fn restore(&mut self, _: &[u8], _: &mut dyn Read) -> io::Result<()> {
        Ok(())
    }
    fn memory_bytes(&self) -> u64 {
        1
    }
}

/// A clock that stands still: no answer is reported early because applying took long.
struct Still;

impl Clock for Still {
    fn wall_ms(&self) -> u64 {
        0
    }
    fn running(&self) -> Duration {
        Duration::ZERO
    }
}

/// A store for lanes that take and restore no snapshots.
struct NoStore;

impl StoreHandle for NoStore {
    fn run(&self, _: StoreJob) {}
}

fn entry(index: u64, body: &EntryBody) -> Entry {
    Entry { index, term: 1, data: body.encode().into(), ..Entry::default() }
}

fn commands(index: u64) -> Entry {
    let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload: "big".into() };
    let calls = vec![call; ENTRY_COMMANDS_MAX];
    entry(index, &EntryBody::Commands(Commands { time_ms: index, calls }))
}

/// An empty log.
fn log(fs: &MemFs) -> Wal {
    let options = WalOptions::new([7; 16], NodeId(1), 1 << 20, 1);
    Wal::open(Arc::new(fs.clone()), Path::new("/data/wal"), options).expect("a log").0
}

/// A lane that has done nothing yet, and the first entry of its group.
fn fresh_lane(held: &Arc<Held>, log: WalReader, store: Arc<dyn StoreHandle>) -> (ApplyLane, Entry) {
    let held = Arc::clone(held);
    let module = Arc::new(NativeModule::new("wordy", move || Wordy(Arc::clone(&held))));
    let bootstrap = Bootstrap {
        module: module.id(),
        config: Bytes::new(),
        seed: [1; 16],
        profile: Profile { engine_major: 0, ..Profile::default() },
        initial_voters: Vec::new(),
    };
    let lane = ApplyLane::new(Tools {
        group: GroupId::of_name("g"),
        modules: OneModule::of(module),
        config: None,
        log,
        store,
        clock: Arc::new(Still),
        listed: Arc::default(),
        gauges: Arc::default(),
        board: Arc::default(),
        quota: quota(),
    });
    (lane, entry(1, &EntryBody::Bootstrap(bootstrap)))
}

/// A lane that has initialised its guest.
fn lane(held: &Arc<Held>) -> ApplyLane {
    let log = log(&MemFs::with_dir(Path::new("/data"))).reader();
    let (mut lane, bootstrapped) = fresh_lane(held, log, Arc::new(NoStore));
    drop(lane.run(range(1, 1, vec![bootstrapped], BTreeSet::new())));
    lane
}

fn range(first: u64, last: u64, entries: Vec<Entry>, awaited: BTreeSet<u64>) -> ApplyJob {
    ApplyJob::Range { first, last, bytes: 0, entries, awaited }
}

/// Applies, in one job, as many full entries with full answers as a leader has under way. Returns
/// how many answers were reported, and the most bytes of them held at once.
fn run(awaited: BTreeSet<u64>) -> (usize, usize) {
    let held = Arc::new(Held::default());
    let mut lane = lane(&held);
    let entries = (2..2 + ENTRIES).map(commands).collect();
    let mut job = Some(range(2, 1 + ENTRIES, entries, awaited));
    let mut told = 0;
    while let Some(next) = job.take() {
        for output in lane.run(next) {
            match output {
                Output::Event(Event::Applied(applied)) => {
                    told += applied.answers.iter().map(|entry| entry.answers.len()).sum::<usize>();
                }
                Output::Rest(rest) => job = Some(rest),
                _ => {}
            }
        }
    }
    assert_eq!(lane.applied(), 1 + ENTRIES);
    (told, held.most.load(Ordering::Relaxed))
}

/// Answers that callers wait for are reported before many gather.
#[test]
fn answers_are_told_before_they_are_many() {
    let (told, most) = run((2..2 + ENTRIES).collect());
    assert_eq!(told, ENTRIES as usize * ENTRY_COMMANDS_MAX);
    assert!(most <= FULL_ENTRY + APPLY_ANSWERS_BYTES_MAX, "{most} bytes");
}

/// Answers that no caller waits for are not kept beyond their entry.
#[test]
fn answers_that_nobody_waits_for_are_not_kept() {
    assert_eq!(run(BTreeSet::new()), (0, FULL_ENTRY));
    let (told, most) = run([5].into());
    assert_eq!(told, ENTRY_COMMANDS_MAX);
    assert!(most <= FULL_ENTRY + APPLY_ANSWERS_BYTES_MAX, "{most} bytes");
}

/// The events of a start that has to read three entries back, from a disk that suffered `harm`.
fn told_of_a_start(harm: impl FnOnce(&MemFs, &Path)) -> Vec<Event> {
    let fs = MemFs::with_dir(Path::new("/data"));
    let mut wal = log(&fs);
    let (mut lane, bootstrapped) = fresh_lane(&Arc::default(), wal.reader(), Arc::new(NoStore));
    let state = RecoveryState { commit: 3, floor: 3, ..RecoveryState::blank("g", ReplicaId(9)) };
    let entries = vec![bootstrapped, commands(2), commands(3)];
    let job = LogJob { group: GroupId::of_name("g"), state: state.clone(), entries };
    wal.append(&[job], &mut |_jobs| {}).expect("space");
    harm(&fs, &wal.active_path());
    started(&mut lane, state)
}

/// The events of a start.
fn started(lane: &mut ApplyLane, state: RecoveryState) -> Vec<Event> {
    let outputs = lane.run(ApplyJob::Start { build: 0, state: Box::new(state) }).into_iter();
    let events = outputs.filter_map(|output| match output {
        Output::Event(event) => Some(event),
        _other => None,
    });
    events.collect()
}

/// Whether a lack of resources is reported, and no damage.
fn is_short(told: &[Event]) -> bool {
    let any = |is: fn(&Event) -> bool| told.iter().any(is);
    any(|event| matches!(event, Event::GuestFailed { fault, .. } if fault.lacks_resource()))
        && !any(|event| matches!(event, Event::Corrupt { .. } | Event::NeedsSnapshot { .. }))
}

/// A log that cannot be read is damaged, as one with bit rot is: a snapshot from a peer replaces
/// it.
#[test]
fn a_lane_that_cannot_read_the_log_asks_for_a_snapshot() {
    let well = told_of_a_start(|_fs, _path| ());
    assert!(
        well.iter().any(|event| matches!(event, Event::Started { applied: 3, .. })),
        "{well:?}"
    );
    let rot = told_of_a_start(|fs, path| {
        let at = fs.image()[path].iter().rposition(|byte| *byte != 0).expect("an entry");
        fs.corrupt(path, at as u64).expect("it is there");
    });
    let unreadable =
        told_of_a_start(|fs, path| fs.bad_sectors(path, 0..1 << 20).expect("it is there"));
    for told in [rot, unreadable] {
        assert!(told.iter().any(|event| matches!(event, Event::NeedsSnapshot { .. })), "{told:?}");
        assert!(!told.iter().any(|event| matches!(event, Event::GuestFailed { .. })), "{told:?}");
    }
}

/// A lack of descriptors is no damage: the lane halts, and is started again.
#[test]
fn a_lane_without_descriptors_halts_until_it_is_started_again() {
    let told = told_of_a_start(|fs, _path| fs.fail_read(fs.reads() + 1, DiskFault::Descriptors));
    assert!(is_short(&told), "{told:?}");
}

/// A lane without a guest, on a disk that holds a snapshot and no log before it; and the state to
/// start it from.
fn with_a_snapshot() -> (MemFs, PathBuf, ApplyLane, RecoveryState) {
    let bed = Bed::new();
    let fs = bed.fs.clone();
    let mut wal = log(&fs);
    let store: Arc<dyn StoreHandle> = Arc::new(DirectLane::new(bed.store));
    let (mut lane, bootstrapped) = fresh_lane(&Arc::default(), wal.reader(), Arc::clone(&store));
    drop(lane.run(range(1, 2, vec![bootstrapped, commands(2)], BTreeSet::new())));
    let configuration = Configuration::default();
    let capture = lane.run(ApplyJob::Capture { term: 1, index: 2, configuration, gain: 0 }).pop();
    let Some(Output::Seal(capture)) = capture else { panic!("there is space") };
    let Event::Captured(mut verified) = capture.seal(&*store) else { panic!("there is space") };
    verified.hold.disarm();
    let desc = verified.desc.clone();
    let state = RecoveryState {
        first_index: 3,
        previous_term: 1,
        term: 1,
        commit: 2,
        floor: 2,
        snapshots: vec![desc.clone()],
        ..RecoveryState::blank("g", ReplicaId(9))
    };
    let job = LogJob { group: GroupId::of_name("g"), state: state.clone(), entries: Vec::new() };
    wal.append(&[job], &mut |_jobs| {}).expect("space");
    let path = store::tests::dir().join(ObjectName::of(&desc).file());
    let listed = move |store: &mut SnapshotStore| drop(store.list_durable(&[desc], &[]));
    store.run(Box::new(listed));
    let (lane, _bootstrapped) = fresh_lane(&Arc::default(), wal.reader(), store);
    (fs, path, lane, state)
}

/// A snapshot that cannot be read for lack of descriptors counts as good, whichever read fails: the
/// lane asks for no other one, and the next start restores it.
#[test]
fn a_restore_without_descriptors_is_tried_again() {
    let (fs, path, mut lane, state) = with_a_snapshot();
    let before = fs.reads();
    let told = started(&mut lane, state);
    assert!(
        told.iter().any(|event| matches!(event, Event::Started { applied: 2, .. })),
        "{told:?}"
    );
    let reads = fs.reads() - before;
    assert!(reads > 2 && fs.has(&path), "a header, a trailer and a block are read");
    for read in 0..=reads {
        let (fs, _path, mut lane, state) = with_a_snapshot();
        match read {
            0 => fs.set_descriptors(false),
            read => fs.fail_read(fs.reads() + read, DiskFault::Descriptors),
        }
        let told = started(&mut lane, state.clone());
        assert!(is_short(&told), "read {read}: {told:?}");
        fs.set_descriptors(true);
        let told = started(&mut lane, state);
        assert!(matches!(told[..], [.., Event::Started { applied: 2, .. }]), "{read}: {told:?}");
    }
    let (fs, path, mut lane, state) = with_a_snapshot();
    fs.bad_sectors(&path, 0..1 << 20).expect("it is there");
    let told = started(&mut lane, state);
    assert!(told.iter().any(|event| matches!(event, Event::Corrupt { .. })), "{told:?}");
    assert!(told.iter().any(|event| matches!(event, Event::NeedsSnapshot { .. })), "{told:?}");
}

/// A snapshot that raft installed and that cannot be read is reported as corrupt, so that a peer is
/// asked for its copy. The lane waits for that copy, and does not halt.
#[test]
fn a_restore_that_cannot_read_its_snapshot_waits_for_another() {
    let log = log(&MemFs::with_dir(Path::new("/data"))).reader();
    let store = Arc::new(DirectLane::new(Bed::new().store));
    let (mut lane, bootstrapped) = fresh_lane(&Arc::default(), log, store);
    drop(lane.run(range(1, 1, vec![bootstrapped], BTreeSet::new())));
    let unread = desc(7, b"gone");
    let told = lane.run(ApplyJob::Restore { build: 0, snapshot: unread.clone() });
    let [Output::Event(first), Output::Event(second)] = &told[..] else {
        panic!("{} outputs", told.len())
    };
    assert!(matches!(first, Event::Corrupt { snapshot, .. } if *snapshot == unread), "{first:?}");
    assert!(matches!(second, Event::NotRestored { index: 7, .. }), "{second:?}");
    assert!(lane.fault.is_none() && lane.waiting);
}

/// A start waits for one of the host's places, and gives it back when it is done.
#[test]
fn a_start_waits_for_a_place() {
    let mut lane = lane(&Arc::default());
    let budget = Arc::clone(lane.tools.quota.budget());
    let others: Vec<_> = (0..budget.limits().restores)
        .map(|_| budget.quota(u64::MAX).take_place(Work::Restore, 0).expect("it is free"))
        .collect();
    let replica = ReplicaId::new(NodeId(1), 1);
    let state = Box::new(RecoveryState { floor: 1, ..RecoveryState::blank("g", replica) });
    let mut job = ApplyJob::Start { build: 0, state };
    for _ in 0..3 {
        let outputs = lane.run(job);
        let [Output::Later(again)] = <[Output; 1]>::try_from(outputs).ok().expect("one") else {
            panic!("it began without a place")
        };
        job = again;
        assert_eq!(budget.places(Work::Restore), (others.len(), 1));
    }
    drop(others);
    let outputs = lane.run(job);
    assert!(!outputs.iter().any(|output| matches!(output, Output::Later(_))));
    assert_eq!(budget.places(Work::Restore), (0, 0));
}

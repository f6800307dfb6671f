//! What the lane holds of the answers that it has not told yet.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::AtomicUsize;

use lockstep_core::entry::{Call, EntryBody, Install, Pack, Profile};
use lockstep_core::ids::NodeId;
use lockstep_core::limits::{APPLY_ANSWERS_BYTES_MAX, OUTCOME_BYTES_MAX, PACK_COMMANDS_MAX};

use super::*;
use crate::fs::mem::MemFs;
use crate::group::log_lane::LogLane;
use crate::guest::native::{NativeMachine, NativeModule};
use crate::guest::{GuestModule as _, Outcome};
use crate::store::StoreJob;
use crate::wal::{Wal, WalOptions};

const PACKS: u64 = 16;
const FULL_ENTRY: usize = PACK_COMMANDS_MAX * OUTCOME_BYTES_MAX;

/// Bytes of answers that somebody holds, and the most there were at once.
#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// A full answer, which takes no memory itself.
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

/// No time passes: nothing is told early because it took long.
struct Still;

impl Clock for Still {
    fn wall_ms(&self) -> u64 {
        0
    }
    fn running(&self) -> Duration {
        Duration::ZERO
    }
}

/// No snapshots here.
struct NoStore;

impl StoreHandle for NoStore {
    fn run(&self, _: StoreJob) {}
}

fn entry(index: u64, body: &EntryBody) -> Entry {
    Entry { index, term: 1, data: body.encode().into(), ..Entry::default() }
}

fn pack(index: u64) -> Entry {
    let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload: "big".into() };
    let calls = vec![call; PACK_COMMANDS_MAX];
    entry(index, &EntryBody::Pack(Pack { time_ms: index, calls }))
}

/// A lane that initialised its guest.
fn lane(held: &Arc<Held>) -> ApplyLane {
    let held = Arc::clone(held);
    let module = Arc::new(NativeModule::new("wordy", move || Wordy(Arc::clone(&held))));
    let fs = Arc::new(MemFs::with_dir(Path::new("/data")));
    let options = WalOptions::new([7; 16], NodeId(1), 1 << 20, 1);
    let (wal, _) = Wal::open(fs, Path::new("/data/wal"), options).expect("a log");
    let (log, _) = LogLane::start(wal, Path::new("/data/wal")).expect("a thread");
    let install = Install {
        module: module.id(),
        config: Bytes::new(),
        seed: [1; 16],
        profile: Profile { engine_major: 0, ..Profile::default() },
        founders: Vec::new(),
    };
    let mut lane = ApplyLane::new(Tools {
        group: GroupId::of_name("g"),
        module,
        log: log.reader(),
        store: Arc::new(NoStore),
        clock: Arc::new(Still),
        listed: Arc::default(),
        gauges: Arc::default(),
    });
    let founded = vec![entry(1, &EntryBody::Install(install))];
    drop(lane.run(range((1, 1), founded, BTreeSet::new())));
    lane
}

fn range((first, last): (u64, u64), entries: Vec<Entry>, awaited: BTreeSet<u64>) -> ApplyJob {
    ApplyJob::Range { first, last, bytes: 0, entries, awaited }
}

/// Full packs of full answers, as many as a leader has under way, in one job; how many answers were
/// told, and the most bytes that were held at once.
fn run(awaited: BTreeSet<u64>) -> (usize, usize) {
    let held = Arc::new(Held::default());
    let mut lane = lane(&held);
    let entries = (2..2 + PACKS).map(pack).collect();
    let mut job = Some(range((2, 1 + PACKS), entries, awaited));
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
    assert_eq!(lane.applied(), 1 + PACKS);
    (told, held.most.load(Ordering::Relaxed))
}

/// Where callers wait, they are told as soon as their answers are many.
#[test]
fn answers_are_told_before_they_are_many() {
    let (told, most) = run((2..2 + PACKS).collect());
    assert_eq!(told, PACKS as usize * PACK_COMMANDS_MAX);
    assert!(most <= FULL_ENTRY + APPLY_ANSWERS_BYTES_MAX, "{most} bytes");
}

/// Where nobody waits, nothing is kept beyond the entry.
#[test]
fn answers_that_nobody_waits_for_are_not_kept() {
    assert_eq!(run(BTreeSet::new()), (0, FULL_ENTRY));
    let (told, most) = run([5].into());
    assert_eq!(told, PACK_COMMANDS_MAX);
    assert!(most <= FULL_ENTRY + APPLY_ANSWERS_BYTES_MAX, "{most} bytes");
}

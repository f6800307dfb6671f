//! Hosted groups with their real lanes, on a disk in memory: how they end, and what waits for what.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockstep_core::entry::{Call, Profile};
use lockstep_core::group::{Frame, GroupConfig, SnapshotPolicy};
use lockstep_core::ids::NodeId;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest};
use tokio::task::JoinSet;

use super::reopen::SnapshotDir;
use super::start::{self, Opened, Place, Shared, Started};
use super::*;
use crate::budget::{Budget as ClientBudget, Budgets, Share};
use crate::bulk::BulkChannel;
use crate::clock::SystemClock;
use crate::fs::Fs;
use crate::fs::mem::MemFs;
use crate::guest::OneModule;
use crate::guest::native::{NativeMachine, NativeModule};
use crate::guest::{Context, GuestModule as _, Module, Outcome};
use crate::store::tests::limits_of;
use crate::store::{BudgetLimits, Work};
use crate::wal::{Wal, WalOptions};

const CLUSTER: [u8; 16] = [7; 16];
const SNAPSHOTS: &str = "/data/groups/g/snap";
/// Only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A group of one has no peers.
struct Nowhere;

impl Transport for Nowhere {
    fn send(&self, _: NodeId, _: Box<Frame>) {}

    fn bulk(&self, _: NodeId) -> io::Result<Box<dyn BulkChannel<BulkRequest, BulkReply> + Send>> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

fn config(name: &str) -> GroupConfig {
    let module = NativeModule::register();
    GroupConfig {
        name: name.to_owned(),
        node: NodeId(1),
        nodes: [NodeId(1)].into(),
        module: module.id(),
        lineage: None,
        guest_config: bytes::Bytes::new(),
        profile: Profile { engine_major: module.engine_major(), ..Profile::default() },
        snapshot_policy: SnapshotPolicy::default(),
        snapshots_share_log_disk: true,
        seed: 1,
        nonce: 1,
    }
}

/// The report of a group in which nothing happened yet.
pub(crate) fn blank(name: &str) -> GroupReport {
    GroupReport::blank(Group::open(config(name), None, &mut Vec::new()).status())
}

struct Hosted {
    fs: MemFs,
    handle: GroupHandle,
    actor: tokio::task::JoinHandle<()>,
}

/// Opens the group on what this disk has.
fn open(fs: &MemFs) -> Started {
    open_with(fs, Arc::new(NativeModule::register()))
}

fn open_with(fs: &MemFs, module: Module) -> Started {
    open_on(fs, module, budget())
}

/// A budget for one group, with one place of each kind.
fn budget() -> Arc<Budget> {
    Budget::new(BudgetLimits { outbound: 1, captures: 1, restores: 1, ..limits_of(u64::MAX, 0, 1) })
}

fn open_on(fs: &MemFs, module: Module, budget: Arc<Budget>) -> Started {
    let doors: Arc<dyn Fs> = Arc::new(fs.clone());
    let options = WalOptions::new(CLUSTER, NodeId(1), 1 << 20, 1);
    let (wal, _) = Wal::open(Arc::clone(&doors), Path::new("/data/wal"), options).expect("a log");
    let (log, _) = LogLane::start(wal, Path::new("/data/wal")).expect("a thread");
    let clock = Arc::new(SystemClock { offset_ms: 0 });
    let shared = Shared {
        cluster: CLUSTER,
        fs: doors,
        clock,
        log,
        budget,
        rate: 0,
        readers: Default::default(),
        modules: OneModule::of(Arc::clone(&module)),
    };
    let place = Place { dir: SnapshotDir::Usable(SNAPSHOTS.into()), cap: u64::MAX };
    let config = GroupConfig { module: module.id(), ..config("g") };
    start::open(&shared, config, place, None).expect("the log is whole")
}

/// A group of one that serves.
async fn hosted() -> Hosted {
    hosted_with(Arc::new(NativeModule::register())).await
}

async fn hosted_with(module: Module) -> Hosted {
    let fs = MemFs::with_dir(Path::new("/data"));
    let Started::Opened(opened) = open_with(&fs, module) else { panic!("it can run") };
    let mut opened: Opened = *opened;
    drop(opened.take_inbox());
    let handle = opened.handle.clone();
    let (actor, _) = opened.run(Arc::new(Nowhere));
    let hosted = Hosted { fs, handle, actor };
    let mut watch = hosted.handle.watch();
    let serves = watch.wait_for(|state| state.refusal().is_none());
    tokio::time::timeout(PATIENCE, serves).await.expect("in time").expect("its actor lives");
    let led = async {
        while hosted.propose("set a 1").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let led = tokio::time::timeout(PATIENCE, led).await;
    led.unwrap_or_else(|_| panic!("it does not lead: {:?}", hosted.handle.report().status));
    hosted
}

impl Hosted {
    async fn propose(&self, command: &str) -> Result<Answer, Refusal> {
        let payload = command.to_owned().into();
        let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload };
        let answer = self.handle.propose(call);
        tokio::time::timeout(PATIENCE, answer).await.expect("it is answered")
    }

    /// Lets the disk fail while a command is on its way.
    async fn fail(&self) -> Result<Answer, Refusal> {
        self.fs.halt_after(self.fs.ops());
        self.propose("set a 2").await
    }
}

/// The state and its cause are published together and once, and stay visible to earlier and later
/// watchers.
/// Covers L1 L2.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_once_with_its_cause() {
    let hosted = hosted().await;
    let mut early = hosted.handle.watch();
    hosted.fail().await.expect_err("it cannot be written");
    let stopped = early.wait_for(ReplicaState::is_stopped).await.expect("it is told").clone();
    let ReplicaState::Stopped(Stopped::Failed(Fault::Log(_))) = &stopped else {
        panic!("it failed for the log: {stopped:?}")
    };
    tokio::time::timeout(PATIENCE, hosted.actor).await.expect("in time").expect("no panic");
    assert!(early.changed().await.is_err(), "nothing is told after it");
    for _ in 0..2 {
        let mut late = hosted.handle.watch();
        let seen = late.wait_for(ReplicaState::is_stopped).await.expect("it stays").clone();
        assert_eq!(seen, stopped);
    }
    assert_eq!(hosted.handle.report().status.state, stopped);
}

/// A request that waits is told the cause, and so is one that comes later.
/// Covers L10.
#[tokio::test(flavor = "multi_thread")]
async fn everybody_who_waits_is_told_the_cause() {
    let hosted = hosted().await;
    let waiting = hosted.fail().await.expect_err("it cannot be written");
    let cause = "the log could not be written";
    assert!(waiting.to_string().contains(cause), "{waiting}");
    let state = hosted.handle.watch().wait_for(ReplicaState::is_stopped).await.map(|s| s.clone());
    assert!(state.expect("it stays").cause().expect("it has one").contains(cause));
    let later = hosted.propose("set a 3").await.expect_err("it has failed");
    assert!(later.to_string().contains(cause), "{later}");
    let query = hosted.handle.query("get a".into(), false).await.expect_err("it has failed");
    assert!(query.to_string().contains(cause), "{query}");
}

/// A start waits until the host has a place for it. Stopping the group does not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_a_place_goes_on_or_ends() {
    for stops in [false, true] {
        let (fs, budget) = (MemFs::with_dir(Path::new("/data")), budget());
        let another = budget.quota(u64::MAX).take_place(Work::Restore, 0).expect("it is free");
        let module = Arc::new(NativeModule::register());
        let Started::Opened(opened) = open_on(&fs, module, Arc::clone(&budget)) else {
            panic!("it can run")
        };
        let mut opened: Opened = *opened;
        drop(opened.take_inbox());
        let handle = opened.handle.clone();
        let (actor, threads) = opened.run(Arc::new(Nowhere));
        until(|| budget.places(Work::Restore) == (1, 1)).await;
        assert_eq!(handle.watch().borrow().name(), "restoring");
        if !stops {
            drop(another);
            let mut watch = handle.watch();
            let serves = watch.wait_for(|state| state.refusal().is_none());
            tokio::time::timeout(PATIENCE, serves).await.expect("in time").expect("it lives");
            until(|| budget.places(Work::Restore) == (0, 0)).await;
            continue;
        }
        handle.raise(Event::HandOver);
        tokio::time::timeout(PATIENCE, actor).await.expect("in time").expect("no panic");
        drop(handle);
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        });
        tokio::time::timeout(PATIENCE, joined).await.expect("in time").expect("no panic");
        drop(another);
    }
}

/// If the log was lost, or is another node's, the snapshots may hold a state that is still needed:
/// every start refuses the group and keeps them.
/// Covers O8.
#[test]
fn snapshots_that_the_log_knows_nothing_of_stay() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let desc = crate::store::tests::desc(10, b"precious");
    let object = Path::new(SNAPSHOTS).join(crate::store::layout::ObjectName::of(&desc).file());
    fs.create_dir_all(Path::new(SNAPSHOTS)).expect("a folder");
    Fs::create(&fs, &object).and_then(|file| file.write_at(b"precious", 0)).expect("a file");
    for start in 1..=2 {
        let Started::Unusable(handle) = open(&fs) else { panic!("start {start}: it runs") };
        let cause = handle.watch().borrow().cause().expect("it has one");
        assert!(cause.contains("nothing was touched"), "start {start}: {cause}");
        assert_eq!(fs.image()[&object], b"precious", "start {start}");
    }
}

/// A state machine whose queries return only when the test lets them go.
struct Held {
    go: Arc<Mutex<mpsc::Receiver<()>>>,
    asked: Arc<AtomicUsize>,
}

impl NativeMachine for Held {
    fn init(&mut self, _: Context, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn apply(&mut self, _: Context, _: &[u8]) -> Result<Outcome, String> {
        Ok(Outcome::Ok(Bytes::new()))
    }

    fn query(&self, _: Context, _: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let go = self.go.lock().unwrap_or_else(PoisonError::into_inner);
        go.recv_timeout(PATIENCE).map_err(|error| error.to_string())?;
        Ok(Ok(Bytes::new()))
    }

    fn snapshot(&self, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }

    fn restore(&mut self, _: &[u8], _: &mut dyn io::Read) -> io::Result<()> {
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// A group with such a state machine, and `queries` local queries of one caller under way, the
/// first of which is being answered.
async fn held(queries: usize) -> (Hosted, mpsc::Sender<()>, Arc<AtomicUsize>, JoinSet<bool>) {
    let (let_go, go) = mpsc::channel();
    let (go, asked) = (Arc::new(Mutex::new(go)), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&asked);
    let make = move || Held { go: Arc::clone(&go), asked: Arc::clone(&counted) };
    let hosted = hosted_with(Arc::new(NativeModule::new("held", make))).await;
    let mut waiting = JoinSet::new();
    for _ in 0..queries {
        let handle = hosted.handle.clone();
        waiting.spawn(async move { handle.query_by(Asker(1), Bytes::new(), false).await.is_ok() });
    }
    until(|| asked.load(Ordering::SeqCst) == 1).await;
    (hosted, let_go, asked, waiting)
}

async fn until(done: impl Fn() -> bool) {
    let done = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.expect("in time");
}

/// However many queries wait, a command waits only for the one that is being answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_does_not_wait_for_queries() {
    let (hosted, go, asked, mut waiting) = held(100).await;
    let handle = hosted.handle.clone();
    let command = tokio::spawn(async move {
        let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload: "x".into() };
        handle.propose(call).await
    });
    let commit = hosted.handle.report().status.commit;
    until(|| hosted.handle.report().status.commit > commit).await;
    go.send(()).expect("somebody waits for it");
    let answer = tokio::time::timeout(PATIENCE, command).await.expect("in time");
    answer.expect("no panic").expect("it is applied");
    assert!(asked.load(Ordering::SeqCst) <= 2, "{asked:?}");
    (0..99).for_each(|_| go.send(()).expect("somebody waits for it"));
    while let Some(answered) = waiting.join_next().await {
        assert!(answered.expect("no panic"), "it is answered");
    }
}

/// A query whose caller left is not asked, and a command whose caller left is not proposed.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_for_those_who_left() {
    let (hosted, go, asked, mut waiting) = held(100).await;
    waiting.shutdown().await;
    let mut left = Vec::new();
    for _ in 0..100 {
        let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload: "x".into() };
        // The receiver is dropped: the caller left.
        left.push(hosted.handle.submit(call, false).expect("there is space"));
        left.clear();
    }
    let last = hosted.handle.report().status.last_index;
    go.send(()).expect("somebody waits for it");
    go.send(()).expect("somebody waits for it");
    let answer = hosted.handle.query_by(Asker(2), Bytes::new(), false);
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("in time");
    answer.expect("it is answered");
    assert_eq!(asked.load(Ordering::SeqCst), 2, "the first, and the last");
    hosted.propose("y").await.expect("it is applied");
    let status = hosted.handle.report().status;
    assert!(status.last_index <= last + 2, "{last} {status:?}");
}

/// A command of a stream is not taken after one that was refused, even if the group could take it
/// by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_line_takes_nothing_more() {
    let (hosted, go, _asked, mut waiting) = held(1).await;
    go.send(()).expect("somebody waits for it");
    waiting.shutdown().await;
    let submit = async |line: &Arc<line::Line>| {
        let permit = hosted.handle.stream_permits().take(1).await;
        let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload: "x".into() };
        let answer = hosted.handle.submit_in(line, call, false, permit).expect("there is space");
        tokio::time::timeout(PATIENCE, answer)
            .await
            .expect("in time")
            .expect("it is answered")
            .answer
    };
    let (broken, whole) = (line(), line());
    submit(&broken).await.expect("it is applied");
    broken.break_at(&Refusal::Overloaded);
    assert_eq!(submit(&broken).await, Err(Refusal::Overloaded));
    submit(&whole).await.expect("other lines are not concerned");
}

/// A line of a connection of its own.
fn line() -> Arc<line::Line> {
    let budgets = Budgets { clients: ClientBudget::new(1 << 20), peers: ClientBudget::new(0) };
    Arc::new(line::Line::new(Share::new(budgets, 1 << 20)))
}

/// A client's next stream sends again what has no outcome, in order. That order is kept only if its
/// last stream left no gap in what was applied.
#[tokio::test]
async fn what_is_taken_of_a_line_has_no_gap() {
    let hosted = hosted().await;
    let submit = |line: &Arc<line::Line>, command: &str| {
        let permit = hosted.handle.stream_permits().try_take(1).expect("there is enough");
        let payload = command.to_owned().into();
        let call = Call { session: 0, sequence: 0, lowest_unanswered: 0, payload };
        hosted.handle.submit_in(line, call, false, permit).expect("there is space")
    };
    // The actor runs while this task waits, so it finds the stream half dropped.
    let half_dropped = line();
    drop([submit(&half_dropped, "set a 2"), submit(&half_dropped, "set a 3")]);
    let third = submit(&half_dropped, "set a 4");
    let third = tokio::time::timeout(PATIENCE, third).await.expect("in time");
    let before = third.expect("it is answered").answer;
    assert_eq!(before, Ok(Answer::Ok("3".into())), "those before it were taken");

    let dropped = line();
    let _receivers = [submit(&dropped, "set a 5"), submit(&dropped, "set a 6")];
    dropped.leave();
    let before = hosted.propose("set a 7").await;
    assert_eq!(before, Ok(Answer::Ok("4".into())), "none was taken");
}

/// Waits are not measured in wall time: a clock that is set back an hour does not change them.
#[test]
fn the_time_that_passes_is_not_wall_time() {
    let clocks = [0, -3_600_000, i64::MAX, i64::MIN].map(|offset_ms| SystemClock { offset_ms });
    let times = clocks.map(|clock| crate::clock::Clock::running(&clock));
    assert!(times.is_sorted(), "{times:?}");
    assert!(times[3] - times[0] < PATIENCE, "{times:?}");
}

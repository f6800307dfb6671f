//! The end of a hosted group, with its real lanes, on a disk in memory.

use std::io;
use std::path::Path;

use lockstep_core::entry::{Call, Profile};
use lockstep_core::group::{Frame, GroupConfig, SnapshotPolicy};
use lockstep_core::ids::NodeId;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest};

use super::reopen::SnapshotDir;
use super::start::{self, Opened, Place, Shared, Started};
use super::*;
use crate::bulk::BulkChannel;
use crate::clock::SystemClock;
use crate::fs::Fs;
use crate::fs::mem::MemFs;
use crate::guest::GuestModule;
use crate::guest::native::NativeModule;
use crate::store::BudgetLimits;
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
    start::blank_report(&Group::open(config(name), None, &mut Vec::new()))
}

struct Hosted {
    fs: MemFs,
    handle: GroupHandle,
    actor: tokio::task::JoinHandle<()>,
}

/// Opens the group on what this disk has.
fn open(fs: &MemFs) -> Started {
    let doors: Arc<dyn Fs> = Arc::new(fs.clone());
    let options = WalOptions {
        cluster: CLUSTER,
        node: NodeId(1),
        segment_bytes: 1 << 20,
        ballast_bytes: 1 << 20,
    };
    let (wal, _) = Wal::open(Arc::clone(&doors), Path::new("/data/wal"), options).expect("a log");
    let (log, _) = LogLane::start(wal).expect("a thread");
    let limits = BudgetLimits {
        bytes: u64::MAX,
        headroom_bytes: 0,
        log_device: None,
        inbound: 1,
        outbound: 1,
    };
    let clock = Arc::new(SystemClock { offset_ms: 0 });
    let budget = Budget::new(limits);
    let shared = Shared { cluster: CLUSTER, fs: doors, clock, log, budget, rate: 0 };
    let place = Place { dir: SnapshotDir::Inside(SNAPSHOTS.into()), cap: u64::MAX };
    let module = Arc::new(NativeModule::register());
    start::open(&shared, config("g"), module, place, None).expect("the log is whole")
}

/// A group of one that serves.
async fn hosted() -> Hosted {
    let fs = MemFs::with_dir(Path::new("/data"));
    let Started::Opened(opened) = open(&fs) else { panic!("it can run") };
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

    /// The disk fails under a command that is on its way.
    async fn fail(&self) -> Result<Answer, Refusal> {
        self.fs.halt_after(self.fs.ops());
        self.propose("set a 2").await
    }
}

/// The state and its cause come together, once; they stay, for who watched and for who comes.
#[tokio::test(flavor = "multi_thread")]
async fn l1_l2_a_failure_is_told_once_with_its_cause() {
    let hosted = hosted().await;
    let mut early = hosted.handle.watch();
    hosted.fail().await.expect_err("it cannot be written");
    let stopped = early.wait_for(ReplicaState::is_stopped).await.expect("it is told").clone();
    let ReplicaState::Stopped(Stopped::Failed(Fault::Log(_))) = &stopped else {
        panic!("it failed for the log: {stopped:?}")
    };
    tokio::time::timeout(PATIENCE, hosted.actor).await.expect("in time").expect("no panic");
    assert!(early.changed().await.is_err(), "nothing is told behind it");
    for _ in 0..2 {
        let mut late = hosted.handle.watch();
        let seen = late.wait_for(ReplicaState::is_stopped).await.expect("it stays").clone();
        assert_eq!(seen, stopped);
    }
    assert_eq!(hosted.handle.report().status.state, stopped);
}

/// What waits is told the cause, and so is what comes later.
#[tokio::test(flavor = "multi_thread")]
async fn l10_everybody_who_waits_is_told_the_cause() {
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

/// The log was lost, or is another's: what lies there is somebody's state. The group says so, and
/// so it is at the next start.
#[test]
fn o8_snapshots_that_the_log_knows_nothing_of_stay() {
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

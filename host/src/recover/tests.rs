use std::path::Path;

use lockstep_core::ids::NodeId;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::wal::LogJob;
use raft::eraftpb::Entry;

use super::*;
use crate::fs::create_dirs;
use crate::fs::mem::{DiskFault, MemFs};

const CONFIG: &str = r#"
    cluster = "demo"
    node = 1
    data-dir = "d"
    log-segment = "4MiB"
    [nodes]
    1 = "127.0.0.1:7101"
    2 = "127.0.0.1:7102"
    3 = "127.0.0.1:7103"
    [[groups]]
    name = "kv"
    module = "native:register"
"#;

fn config() -> NodeConfig {
    NodeConfig::parse(CONFIG, Path::new("/")).expect("it is good")
}

fn replica(node: u16) -> ReplicaId {
    ReplicaId::new(NodeId(node), 7)
}

fn entry(index: u64, term: u64) -> Entry {
    let mut entry = Entry::default();
    (entry.index, entry.term) = (index, term);
    entry
}

/// A disk on which node 1 has a log of the groups `kv` (bootstrapped, three entries) and `empty`.
fn disk() -> Arc<MemFs> {
    let fs = Arc::new(MemFs::with_dir(Path::new("/")));
    let shared: Arc<dyn Fs> = fs.clone();
    let mut data = DataDir::open(&shared, &config(), false).expect("it is new");
    let options = WalOptions::new(config().cluster_id(), NodeId(1), 4 << 20, 1);
    let (mut wal, _) = Wal::open(shared, &data.wal(), options).expect("it is new");
    data.log_begun(&*fs).expect("the disk works");
    let mut state = RecoveryState::blank("kv", replica(1));
    (state.bootstrapped, state.lineage) = (true, Some(Lineage([3; 16])));
    (state.term, state.commit, state.boot) = (2, 2, 1);
    state.configuration = Configuration::of_voters([replica(1), replica(2), replica(3)]);
    state.configuration_index = 1;
    let entries = vec![entry(1, 1), entry(2, 2), entry(3, 2)];
    let kv = LogJob { group: GroupId::of_name("kv"), state, entries };
    let state = RecoveryState::blank("empty", replica(1));
    let empty = LogJob { group: GroupId::of_name("empty"), state, entries: Vec::new() };
    wal.append(&[kv, empty], &mut |_| {}).expect("there is space");
    fs
}

#[test]
fn a_lost_majority_leaves_the_survivor_alone_with_all_it_has() {
    let fs = disk();
    let stopped = StoppedGroup::open(fs.clone(), &config(), "kv").expect("it is there");
    assert_eq!((stopped.last(), stopped.replica()), ((2, 3), replica(1)));
    assert_eq!(stopped.configuration().voters.len(), 3);
    stopped.keep_only_me().expect("it can be kept");
    fs.crash();
    let kept = StoppedGroup::open(fs, &config(), "kv").expect("it is there");
    let state = &kept.found.state;
    assert_eq!(state.configuration, Configuration::of_voters([replica(1)]));
    assert_eq!((state.commit, state.configuration_index), (5, 5), "the log says it, too");
    assert_eq!(kept.last(), (3, 5));
    assert_eq!((state.term, state.vote), (3, 0), "older messages and votes do not count");
    assert_ne!(state.lineage, Some(Lineage([3; 16])), "the lost ones are strangers from now on");
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    let fs = disk();
    let before = fs.image();
    let open = |group| StoppedGroup::open(fs.clone(), &config(), group);
    let unknown = open("other").err().expect("there is no such group").to_string();
    assert!(unknown.contains("knows no group \"other\"; it has"), "{unknown}");
    let nothing = open("empty").expect("it is there").keep_only_me().expect_err("no log");
    assert!(nothing.to_string().contains("nothing that could be kept"), "{nothing}");
    let held = open("kv").expect("it is there");
    let locked = open("kv").err().expect("one at a time").to_string();
    assert!(locked.contains("is locked"), "{locked}");
    let configured = held.forget(&config()).expect_err("it is configured");
    assert!(configured.to_string().contains("remove it from node.toml first"), "{configured}");
    let after = fs.image();
    let logs = |image: &std::collections::BTreeMap<PathBuf, Vec<u8>>| {
        let log = |(path, _): &(&PathBuf, &Vec<u8>)| path.to_string_lossy().contains("0001.wal");
        image.iter().filter(log).map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
    };
    let (before, after): (Vec<_>, Vec<_>) = (logs(&before), logs(&after));
    assert_eq!(before, after);
}

/// Makes this the durable state of the group.
fn write(mut stopped: StoppedGroup, state: RecoveryState) {
    let group = GroupId::of_name("kv");
    let job = LogJob { group, state, entries: Vec::new() };
    stopped.wal.append(&[job], &mut |_| {}).expect("there is space");
}

/// A survivor without a readable snapshot would never serve: it is not made the whole group.
#[test]
fn what_no_start_could_begin_with_is_not_kept() {
    let fs = disk();
    let stopped = StoppedGroup::open(fs.clone(), &config(), "kv").expect("it is there");
    assert_eq!(stopped.starts_from().expect("the log is whole"), None);
    let mut state = stopped.found.state.clone();
    state.snapshots = vec![lockstep_core::snapshot::SnapshotDesc {
        term: 2,
        index: 2,
        length: 9,
        digest: lockstep_core::ids::Digest([1; 32]),
        module: lockstep_core::ids::ModuleId([1; 32]),
        format: 1,
        configuration: state.configuration.clone(),
    }];
    (state.first_index, state.previous_term, state.floor) = (3, 2, 2);
    write(stopped, state);
    let stopped = StoppedGroup::open(fs.clone(), &config(), "kv").expect("it is there");
    let why = stopped.keep_only_me().expect_err("its snapshot is not there").to_string();
    assert!(why.contains("could not start") && why.contains("another survivor"), "{why}");
    let after = StoppedGroup::open(fs, &config(), "kv").expect("it is there");
    assert_eq!(after.configuration().voters.len(), 3, "nothing was changed");
}

/// A replica that its group removed can be forgotten although the group is configured: otherwise
/// its node could come back only by giving up its other groups.
#[test]
fn a_removed_replica_can_be_forgotten() {
    let fs = disk();
    let stopped = StoppedGroup::open(fs.clone(), &config(), "kv").expect("it is there");
    let state = RecoveryState { removed: true, ..stopped.found.state.clone() };
    write(stopped, state);
    let stopped = StoppedGroup::open(fs.clone(), &config(), "kv").expect("it is there");
    stopped.forget(&config()).expect("it may go");
    fs.crash();
    let gone = StoppedGroup::open(fs, &config(), "kv").err().expect("it is gone").to_string();
    assert!(gone.contains("it has empty"), "{gone}");
}

#[test]
fn a_group_that_is_configured_no_more_can_be_forgotten() {
    let fs = disk();
    let dir = snapshot_dir(Path::new("/d"), "empty");
    fs.create_dir_all(&crate::store::layout::part_dir(&dir)).expect("the disk works");
    Fs::create(&*fs, &dir.join("an-object")).expect("the disk works");
    let record = Path::new("/d/snapshot-dirs/empty");
    let above = record.parent().expect("a file lies in a directory");
    create_dirs(&*fs, above).expect("the disk works");
    Fs::create(&*fs, record).expect("the disk works");
    make_durable(&*fs, record).expect("the disk works");
    let stopped = StoppedGroup::open(fs.clone(), &config(), "empty").expect("it is there");
    stopped.forget(&config()).expect("it may go");
    fs.crash();
    assert_eq!(fs.list(&dir).unwrap_or_default(), [""; 0]);
    assert!(!fs.has(record), "nor is it remembered that its snapshots were elsewhere");
    let gone = StoppedGroup::open(fs, &config(), "empty").err().expect("it is gone").to_string();
    assert!(gone.contains("it has kv"), "{gone}");
}

/// The snapshot directory of the group `empty`, with an object and a staging file in it.
fn with_snapshots(fs: &MemFs) -> PathBuf {
    let dir = snapshot_dir(Path::new("/d"), "empty");
    let part = layout::part_dir(&dir);
    crate::fs::create_dirs(fs, &part).expect("the disk works");
    let object = ObjectName::new(1, 9, lockstep_core::ids::Digest([1; 32])).file();
    for file in [dir.join(object), part.join(layout::part_out(1, 9))] {
        Fs::create(fs, &file).and_then(|file| file.sync()).expect("the disk works");
        make_durable(fs, &file).expect("the disk works");
    }
    dir
}

/// Wherever a drop is interrupted, the next one finishes it, and the first says what to do.
#[test]
fn a_drop_that_was_interrupted_is_finished_by_the_next_one() {
    for fault in [DiskFault::Io, DiskFault::Full] {
        for op in 1.. {
            let fs = disk();
            let dir = with_snapshots(&fs);
            let stopped = StoppedGroup::open(fs.clone(), &config(), "empty").expect("it is there");
            fs.fail_op(fs.ops() + op, fault);
            let first = stopped.forget(&config());
            if fs.struck().is_empty() {
                first.expect("nothing failed");
                assert!(op > 4, "files and log were changed by {op} operations");
                break;
            }
            if let Err(why @ (RecoverError::Full { .. } | RecoverError::Files { .. })) = &first {
                assert!(why.to_string().contains("run the command again"), "{why}");
            }
            fs.crash();
            match StoppedGroup::open(fs.clone(), &config(), "empty") {
                Ok(again) => again.forget(&config()).expect("nothing fails now"),
                Err(error) => {
                    assert!(matches!(error, RecoverError::UnknownGroup { .. }), "{error}");
                }
            }
            fs.crash();
            let left: Vec<PathBuf> = fs.image_names();
            assert!(left.iter().all(|path| !path.starts_with(&dir)), "{op}: {left:?}");
            let gone = StoppedGroup::open(fs, &config(), "empty").err().expect("it is gone");
            assert!(matches!(gone, RecoverError::UnknownGroup { .. }), "{op}: {gone}");
        }
    }
}

/// A full disk is no error of the operator's: the log is as it was, and another call may succeed.
#[test]
fn a_recovery_without_space_says_to_try_again() {
    let fs = disk();
    let stopped = StoppedGroup::open(fs.clone(), &config(), "kv").expect("it is there");
    fs.set_late_full(crate::fs::mem::LateFull { write: true, ..Default::default() });
    fs.set_capacity(1);
    let full = stopped.keep_only_me().expect_err("there is no space");
    assert!(matches!(full, RecoverError::Full { .. }), "{full}");
    assert!(full.to_string().contains("free disk space, then run the command again"), "{full}");
    fs.set_capacity(1 << 30);
    fs.crash();
    let stopped = StoppedGroup::open(fs.clone(), &config(), "kv").expect("it is there");
    stopped.keep_only_me().expect("there is space");
}

//! Data directories in which something is denied to this process, and snapshot directories that
//! lie elsewhere.

use super::*;
use crate::fs::mem::{DiskFault, MemFs};

fn config() -> NodeConfig {
    let text = "cluster = \"c\"\nnode = 1\ndata-dir = \"/srv/data\"\n[nodes]\n1 = \
        \"127.0.0.1:7101\"\n\
        [[groups]]\nname = \"g\"\nmodule = \"native:register\"\n";
    NodeConfig::parse(text, Path::new("/")).expect("it is complete")
}

fn open(fs: &MemFs) -> Result<DataDir, DataDirError> {
    let door: Arc<dyn Fs> = Arc::new(fs.clone());
    let mut data = DataDir::open(&door, &config(), false)?;
    if !data.has_log(fs).unwrap_or(false) {
        let segment = data.wal().join("0000000000000001.wal");
        let made = fs.create_dir_all(&data.wal()).and_then(|()| fs.create(&segment).map(drop));
        let dir = data.path().to_owned();
        made.map_err(|source| DataDirError::Io { dir, doing: "begin a log", source })?;
    }
    data.log_begun(fs)?;
    Ok(data)
}

fn without_lock(fs: &MemFs) -> BTreeMap<PathBuf, Vec<u8>> {
    fs.image().into_iter().filter(|(path, _)| path != Path::new("/srv/data/LOCK")).collect()
}

/// Each step of a first start, and of a second one, is denied once: the error says so, and the next
/// start, to which nothing is denied, succeeds.
#[test]
fn what_is_denied_is_said_and_spoils_nothing() {
    for again in [false, true] {
        let fresh = || {
            let fs = MemFs::with_dir(Path::new("/srv"));
            if again {
                drop(open(&fs).expect("nothing is denied"));
            }
            fs
        };
        let mut denied = 0;
        for (ops, reads) in (1..40).map(|n| (n, 0)).chain((1..40).map(|n| (0, n))) {
            let fs = fresh();
            match ops {
                0 => fs.fail_read(fs.reads() + reads, DiskFault::Denied),
                ops => fs.fail_op(fs.ops() + ops, DiskFault::Denied),
            }
            let before = without_lock(&fs);
            let Err(error) = open(&fs) else { continue };
            denied += 1;
            let said = error.to_string();
            for word in ["/srv/data", "make it writable", "another data-dir"] {
                assert!(said.contains(word), "operation {ops}, read {reads}: {said}");
            }
            assert!(!again || without_lock(&fs) == before, "operation {ops}, read {reads}: {said}");
            fs.heal();
            drop(open(&fs).unwrap_or_else(|e| panic!("operation {ops}, read {reads}: {e}")));
        }
        assert!(denied > 5, "{denied} steps were denied");
    }
}

/// Parent directories that exist may be somebody else's, whose names this process cannot sync, or
/// lie on squashfs or autofs, which cannot sync them. The names that a start creates have to be
/// durable, and so has one that an earlier start may have created.
#[test]
fn only_directories_that_are_made_here_have_to_be_synced() {
    let fs = MemFs::with_dir(Path::new("/srv"));
    fs.fail_op(1, DiskFault::Denied);
    drop(open(&fs).expect("the first is of /srv, which was there"));
    assert_eq!(fs.struck()["denied operations"], 1);
    for (op, fault) in [(1, DiskFault::Io), (3, DiskFault::Io), (3, DiskFault::Denied)] {
        let fs = MemFs::with_dir(Path::new("/srv"));
        fs.fail_op(op, fault);
        assert!(open(&fs).is_err(), "the name of /srv, or of /srv/data");
        fs.heal();
        drop(open(&fs).expect("the second time"));
        fs.crash();
        assert!(fs.has(Path::new("/srv/data/node")), "its name is durable");
    }
}

/// With `--rejoin` a node gets its groups from the others. A group that it alone hosts would begin
/// anew, without a word: so nothing is moved.
#[test]
fn no_group_that_only_this_node_hosts_is_rejoined() {
    let fs = MemFs::with_dir(Path::new("/srv"));
    drop(open(&fs).expect("it is new"));
    let (before, door): (_, Arc<dyn Fs>) = (without_lock(&fs), Arc::new(fs.clone()));
    let Err(error) = DataDir::open(&door, &config(), true) else { panic!("it rejoined") };
    let said = error.to_string();
    for word in ["/srv/data", "group \"g\"", "nothing was touched", "from a copy"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(without_lock(&fs) == before);
}

/// A snapshot that the log lists.
const LISTED: &str = "listed";
/// The owner of the snapshot directory of [`apart`].
const OWNER: &str = "/mnt/c-1/g/owner";

/// The same group, with its snapshots below /mnt.
fn apart(data: &str) -> NodeConfig {
    let mut config = config();
    config.data_dir = PathBuf::from(data);
    config.groups[0].snapshot_dir = Some(PathBuf::from("/mnt/c-1/g/snap"));
    config
}

/// A disk with the parents of both directories.
fn disk() -> MemFs {
    let (fs, mounted) = (MemFs::with_dir(Path::new("/srv")), Path::new("/mnt"));
    fs.create_dir_all(mounted).and_then(|()| make_durable(&fs, mounted)).expect("it works");
    fs
}

/// A start, up to the snapshot directory of its only group.
fn start(fs: &MemFs, data: &str, listed: bool) -> Result<DataDir, DataDirError> {
    let (door, config): (Arc<dyn Fs>, _) = (Arc::new(fs.clone()), apart(data));
    let mut data = DataDir::open(&door, &config, false)?;
    let spec = &config.groups[0];
    let dir = spec.snapshot_dir.clone().expect("it has one");
    let listed = if listed { vec![LISTED.to_owned()] } else { Vec::new() };
    data.take_snapshots(fs, &config, &spec.name, &dir, &listed)?;
    Ok(data)
}

/// A directory that was used and has no owner is not there, whatever else lies in its place. An
/// operator can say that it is empty on purpose.
#[test]
fn a_snapshot_directory_without_its_owner_is_missing() {
    let fs = disk();
    drop(start(&fs, "/srv/data", false).expect("it is new"));
    let text = b"lockstep format=1 cluster=c node=1 group=g\n";
    assert_eq!(fs.image()[Path::new(OWNER)], text);
    assert_eq!(fs.image()[Path::new("/srv/data/snapshot-dirs/g")], text);
    drop(start(&fs, "/srv/data", true).expect("it is this node's"));

    Fs::remove(&fs, Path::new(OWNER)).expect("it is there");
    fs.create_dir_all(Path::new("/mnt/c-1/g/snap/part")).expect("as earlier builds did");
    let before = fs.image();
    for listed in [false, true] {
        let Err(error) = start(&fs, "/srv/data", listed) else { panic!("it is taken") };
        let said = error.to_string();
        for word in ["/mnt/c-1/g/snap is missing", OWNER, "mount its filesystem", "empty"] {
            assert!(said.contains(word), "{said}");
        }
        assert!(fs.image() == before, "nothing is touched");
    }
    drop(Fs::create(&fs, Path::new(OWNER)).expect("an operator's word"));
    drop(start(&fs, "/srv/data", true).expect("it is empty on purpose"));
    assert_eq!(fs.image()[Path::new(OWNER)], text);

    Fs::remove(&fs, Path::new(OWNER)).expect("it is there");
    let other = Fs::create(&fs, Path::new(OWNER)).expect("it was removed");
    other.write_at(b"lockstep format=1 cluster=d node=1 group=g\n", 0).expect("there is space");
    let Err(error) = start(&fs, "/srv/data", false) else { panic!("it is taken") };
    assert!(error.to_string().contains("belongs to"), "{error}");
}

/// A directory of an earlier build, which has no owner, is used on if a listed snapshot is in it.
/// An earlier build may have made an empty one below the mount point.
#[test]
fn a_listed_snapshot_directory_gets_its_owner_only_if_it_is_there() {
    let fs = disk();
    let Err(error) = start(&fs, "/srv/data", true) else { panic!("it is taken") };
    assert!(matches!(error, DataDirError::Snapshots(SnapshotDirError::Missing { .. })), "{error}");
    assert!(!fs.has(Path::new("/mnt/c-1")), "nothing was made there");
    let dir = Path::new("/mnt/c-1/g/snap");
    fs.create_dir_all(dir).expect("as earlier builds did");
    assert!(start(&fs, "/srv/data", true).is_err(), "it is empty");
    drop(Fs::create(&fs, &dir.join(LISTED)).expect("it is mounted"));
    drop(start(&fs, "/srv/data", true).expect("it is taken over"));
    assert!(fs.has(Path::new(OWNER)));
}

/// A power loss at any operation of a first start leaves a node that starts.
#[test]
fn every_crash_point_of_taking_a_snapshot_directory() {
    for op in 0..200 {
        let fs = disk();
        fs.halt_after(fs.ops() + op);
        let interrupted = start(&fs, "/srv/data", false).is_err();
        if op % 2 == 0 {
            fs.crash();
        } else {
            fs.crash_keeping(op);
        }
        drop(start(&fs, "/srv/data", false).unwrap_or_else(|e| panic!("operation {op}: {e}")));
        fs.crash();
        assert!(fs.has(Path::new(OWNER)), "operation {op}: it is durable");
        if !interrupted {
            assert!(op > 10, "{op} operations were interrupted");
            return;
        }
    }
    panic!("every start was interrupted");
}

/// A second process with the same snapshot directory, such as one that runs on a copy of the data
/// directory, is refused before it deletes or moves anything.
#[test]
fn a_snapshot_directory_has_one_process() {
    let fs = disk();
    let first = start(&fs, "/srv/data", false).expect("it is new");
    let before = fs.image();
    let door: Arc<dyn Fs> = Arc::new(fs.clone());
    for rejoin in [false, true] {
        let Err(error) = DataDir::open(&door, &apart("/srv/copy"), rejoin) else {
            panic!("it is open twice")
        };
        assert!(error.to_string().contains("/mnt/c-1/g/snap is locked"), "{error}");
    }
    let below = |image: BTreeMap<PathBuf, Vec<u8>>| -> BTreeMap<PathBuf, Vec<u8>> {
        image.into_iter().filter(|(path, _)| path.starts_with("/mnt")).collect()
    };
    assert!(below(fs.image()) == below(before), "nothing is touched");
    drop(first);
    drop(start(&fs, "/srv/copy", false).expect("the first one has ended"));
}

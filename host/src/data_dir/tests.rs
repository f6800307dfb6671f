//! Data directories in which something is denied to this process.

use std::collections::BTreeMap;

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

/// Parent directories that exist need not be syncable, for squashfs and autofs cannot sync them.
/// Those that a start creates have to be.
#[test]
fn only_directories_that_are_made_here_have_to_be_synced() {
    let fs = MemFs::with_dir(Path::new("/srv"));
    fs.fail_op(1, DiskFault::Io);
    drop(open(&fs).expect("the first is of /srv, which was there"));
    assert_eq!(fs.struck()["failed operations"], 1);
    let fs = MemFs::with_dir(Path::new("/srv"));
    fs.fail_op(3, DiskFault::Io);
    assert!(open(&fs).is_err(), "the name of /srv/data");
    fs.heal();
    drop(open(&fs).expect("the second time"));
    fs.crash();
    assert!(fs.has(Path::new("/srv/data/node")), "its name is durable");
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

//! Logs and snapshot directories that cannot be read when a replica is opened.

use std::path::Path;

use lockstep_core::ids::{NodeId, ReplicaId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::wal::LogJob;
use raft::eraftpb::Entry;

use super::*;
use crate::fs::mem::{DiskFault, MemFs};
use crate::node::StartError;
use crate::store::tests::quota;
use crate::wal::{Wal, WalOptions};

const ENTRIES: u64 = 9;

/// A log of some entries, opened again, and what it holds of the group.
fn log() -> (MemFs, Wal, RecoveredGroup) {
    let (fs, dir) = (MemFs::with_dir(Path::new("/d")), Path::new("/d/wal"));
    let options = WalOptions::new([7; 16], NodeId(1), 1 << 20, 1);
    let open = || Wal::open(Arc::new(fs.clone()), dir, options).expect("a log");
    let (mut wal, _none) = open();
    let state = RecoveryState::blank("g", ReplicaId(9));
    let entry = |index| Entry { index, term: 1, data: vec![1; 99].into(), ..Entry::default() };
    let (group, entries) = (GroupId::of_name("g"), (1..=ENTRIES).map(entry).collect());
    wal.append(&[LogJob { group, state, entries }], &mut |_jobs| {}).expect("space");
    drop(wal);
    let (wal, mut groups) = open();
    let recovered = groups.remove(&group).expect("it was written");
    (fs, wal, recovered)
}

/// The error of a start on a log that suffered `harm`; the start leaves the log as it is.
fn refused(harm: impl FnOnce(&MemFs, &Path)) -> WalError {
    let (fs, wal, recovered) = log();
    harm(&fs, &wal.active_path());
    let image = fs.image();
    let error = recover(&wal.reader(), &recovered).err().expect("it cannot be read");
    assert!(fs.image() == image, "nothing is touched");
    error
}

/// A sector that cannot be read keeps a replica from starting as bit rot does, with the same way
/// out; a lack of descriptors only makes it wait.
#[test]
fn a_start_does_without_no_entry_and_waits_for_descriptors() {
    let (_fs, wal, recovered) = log();
    let well = recover(&wal.reader(), &recovered).expect("it is well");
    assert_eq!(well.window.len() as u64, ENTRIES);

    let rot = refused(|fs, path| {
        let at = fs.image()[path].iter().rposition(|byte| *byte == 1).expect("an entry");
        fs.corrupt(path, at as u64).expect("it is there");
    });
    let unreadable = refused(|fs, path| fs.bad_sectors(path, 4096..1 << 20).expect("it is there"));
    assert!(matches!(rot, WalError::Corrupt { .. }), "{rot}");
    assert!(matches!(unreadable, WalError::Io { .. }), "{unreadable}");
    for error in [rot, unreadable] {
        assert!(error.is_damage() && !error.is_short(), "{error}");
        let told = StartError::from(error).to_string();
        assert_eq!(told.matches("--rejoin").count(), 1, "{told}");
        assert!(told.contains("0000000000000001.wal"), "{told}");
    }
    let short = refused(|fs, _path| fs.fail_read(fs.reads() + 1, DiskFault::Descriptors));
    assert!(short.is_short() && !short.is_damage(), "{short}");
}

/// Without descriptors a start cannot tell what lies in a snapshot directory: it waits for some,
/// and refuses nothing.
#[test]
fn a_snapshot_directory_that_cannot_be_listed_is_waited_for() {
    let (fs, dir) = (MemFs::with_dir(Path::new("/d")), PathBuf::from("/d/snap"));
    let identity = Identity { cluster: [7; 16], group: GroupId::of_name("g") };
    let state = RecoveryState::blank("g", ReplicaId(9));
    let disk = Disk {
        fs: Arc::new(fs.clone()),
        cluster: identity.cluster,
        snapshots: SnapshotDir::Usable(dir),
        quota: quota(),
        waits: false,
    };
    for known in [false, true] {
        open_store(&disk, identity, known, &state).expect("it is made");
        fs.set_descriptors(false);
        let unopened = open_store(&disk, identity, known, &state).err().expect("not listed");
        assert!(unopened.is_short, "{unopened}");
        fs.set_descriptors(true);
        open_store(&disk, identity, known, &state).expect("nothing was lost");
    }
}

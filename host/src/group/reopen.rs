//! What a replica finds on its disk, and what is refused: the part of a start that needs no thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::group::{Effect, Event, Group, GroupConfig, Recovered};
use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;

use crate::fs::Fs;
use crate::store::layout::ObjectName;
use crate::store::{Identity, Quota, SnapshotStore};
use crate::wal::{RecoveredGroup, WalError, WalReader};

#[cfg(test)]
mod tests;

/// Bytes of entries read at once.
const READ_BYTES: u64 = 16 << 20;

/// A replica's part of its node's disk.
pub struct Disk {
    pub fs: Arc<dyn Fs>,
    pub cluster: [u8; 16],
    /// Its snapshot directory, and what may lie there.
    pub snapshots: SnapshotDir,
    pub quota: Arc<Quota>,
}

/// Where a group's snapshots lie.
pub enum SnapshotDir {
    /// In the data directory.
    Inside(PathBuf),
    /// Where the configuration says: perhaps on a filesystem that is not mounted.
    Apart(PathBuf),
}

impl SnapshotDir {
    pub fn path(&self) -> &Path {
        let (Self::Inside(path) | Self::Apart(path)) = self;
        path
    }
}

/// A replica as its disk left it.
pub struct Reopened {
    pub group: Group,
    /// What opening it led to.
    pub first: Vec<Effect>,
    /// Its snapshots, or why the group cannot run.
    pub store: Result<SnapshotStore, String>,
}

/// What the log holds of a group, with the entries that raft must find in memory: from the floor
/// on. Without them the replica does not start, whatever keeps them from being read. It said once
/// that it has them, and they may be committed for that: who cannot show them must neither vote nor
/// lead as if it could, which is to join as a new replica, and not for a program to decide.
pub fn recover(log: &WalReader, group: &RecoveredGroup) -> Result<Recovered, WalError> {
    let RecoveredGroup { state, last_index, terms, sizes } = group.clone();
    let id = GroupId::of_name(&state.group);
    let mut next = state.first_index.max(state.floor);
    let mut window = Vec::new();
    while next <= last_index {
        let entries = log.entries(id, next, last_index + 1, READ_BYTES)?;
        next = entries.last().expect("at least one is read, for some were asked for").index + 1;
        window.extend(entries);
    }
    Ok(Recovered { state, terms, window, sizes })
}

/// Opens what the log recovered of a group.
pub fn reopen(disk: Disk, config: GroupConfig, recovered: Option<Recovered>) -> Reopened {
    let id = GroupId::of_name(&config.name);
    let known = recovered.is_some();
    let mut first = Vec::new();
    let mut group = Group::open(config, recovered, &mut first);
    let identity = Identity { cluster: disk.cluster, group: id };
    let state = group.recovery_state();
    let opened = match unmounted(&disk, state) {
        Some(why) => Err(why),
        None => {
            let dir = disk.snapshots.path().to_owned();
            open_store(disk.fs, dir, identity, disk.quota, known, state)
        }
    };
    let store = opened.map(|(store, missing)| {
        for snapshot in missing {
            let why = "its file is missing".to_owned();
            group.handle(Event::Rotten { snapshot, why }, &mut first);
        }
        store
    });
    Reopened { group, first, store }
}

/// Opens the group's snapshots, and says which listed ones have no file. What the log does not list
/// is swept only if it knows the group.
fn open_store(
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    identity: Identity,
    quota: Arc<Quota>,
    known: bool,
    state: &RecoveryState,
) -> Result<(SnapshotStore, Vec<SnapshotDesc>), String> {
    let fail = |e: std::io::Error| {
        format!(
            "snapshot directory {}: {e}; see that this user may read and write it, then start \
             again",
            dir.display()
        )
    };
    if !known && !planted("sweep_without_state") {
        refuse_strays(&*fs, &dir).map_err(fail)??;
    }
    let (store, swept) =
        SnapshotStore::open(fs, dir.clone(), identity, quota, state).map_err(fail)?;
    Ok((store, swept.missing))
}

/// Why a snapshot directory that ought to be there is not made anew: what is listed would be
/// fetched to another filesystem, and be missing from this one's when that is back.
fn unmounted(disk: &Disk, state: &RecoveryState) -> Option<String> {
    let SnapshotDir::Apart(dir) = &disk.snapshots else { return None };
    let gone = !state.snapshots.is_empty() && !disk.fs.exists(dir).unwrap_or(true);
    gone.then(|| {
        let (dir, count) = (dir.display(), state.snapshots.len());
        format!(
            "snapshot directory {dir} is not there, and the log lists {count} snapshots in it; \
             nothing was touched: mount its filesystem, or make the directory, and the peers send \
             copies"
        )
    })
}

/// Snapshots of a group that the log does not know tell of a lost log: they are not swept (N20).
fn refuse_strays(fs: &dyn Fs, dir: &Path) -> std::io::Result<Result<(), String>> {
    if !fs.exists(dir)? {
        return Ok(Ok(()));
    }
    match fs.list(dir)?.into_iter().find(|name| ObjectName::parse(name).is_some()) {
        None => Ok(Ok(())),
        Some(name) => Ok(Err(format!(
            "snapshot directory {}: it holds {name}, but the log knows nothing of this group; \
             nothing was touched: restore the log, or move the snapshots away to join as a new \
             replica",
            dir.display()
        ))),
    }
}

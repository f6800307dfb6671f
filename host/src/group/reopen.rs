//! What a replica finds on its disk, and what is refused: the part of a start that needs no thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::group::{Effect, Event, Group, GroupConfig, Recovered};
use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;

use crate::fs::{Fs, is_short};
use crate::node::once_there_is_room;
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
    /// Whether a start waits where the machine lacks what it takes to look at the snapshots.
    pub waits: bool,
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
    let open = || open_store(&disk, identity, known, state);
    let opened = match unmounted(&disk, state) {
        Some(why) => Err(Unopened { why, is_short: false }),
        None if disk.waits => once_there_is_room(|unopened: &Unopened| unopened.is_short, open),
        None => open(),
    };
    let store = opened.map_err(|unopened| unopened.why).map(|(store, missing)| {
        for snapshot in missing {
            let why = "its file is missing".to_owned();
            group.handle(Event::Rotten { snapshot, why }, &mut first);
        }
        store
    });
    Reopened { group, first, store }
}

/// Why a group has no snapshots to start with.
#[derive(Debug)]
struct Unopened {
    why: String,
    /// The machine lacks descriptors or memory, and what lies there is as good as ever.
    is_short: bool,
}

impl std::fmt::Display for Unopened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// Opens the group's snapshots, and says which listed ones have no file. What the log does not list
/// is swept only if it knows the group.
fn open_store(
    disk: &Disk,
    identity: Identity,
    known: bool,
    state: &RecoveryState,
) -> Result<(SnapshotStore, Vec<SnapshotDesc>), Unopened> {
    let dir = disk.snapshots.path();
    let fail = |error: std::io::Error| {
        let (is_short, dir) = (is_short(&error), dir.display());
        let way_out = "; see that this user may read and write it, then start again";
        let way_out = if is_short { "" } else { way_out };
        Unopened { why: format!("snapshot directory {dir}: {error}{way_out}"), is_short }
    };
    if !known
        && !planted("sweep_without_state")
        && let Some(why) = stray(&*disk.fs, dir).map_err(fail)?
    {
        return Err(Unopened { why, is_short: false });
    }
    let (fs, quota) = (Arc::clone(&disk.fs), Arc::clone(&disk.quota));
    let opened = SnapshotStore::open(fs, dir.to_owned(), identity, quota, state);
    let (store, swept) = opened.map_err(fail)?;
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

/// Snapshots of a group that the log does not know tell of a lost log: they are not swept.
fn stray(fs: &dyn Fs, dir: &Path) -> std::io::Result<Option<String>> {
    if !fs.exists(dir)? {
        return Ok(None);
    }
    let stray = fs.list(dir)?.into_iter().find(|name| ObjectName::parse(name).is_some());
    Ok(stray.map(|name| {
        format!(
            "snapshot directory {}: it holds {name}, but the log knows nothing of this group; \
             nothing was touched: restore the log, or move the snapshots away to join as a new \
             replica",
            dir.display()
        )
    }))
}

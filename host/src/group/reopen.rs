//! Opening a replica from its disk, and what is refused there: the part of a start that needs no
//! thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::group::{Effect, Event, Group, GroupConfig, Recovered};
use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;

use crate::fs::{Fs, is_short};
use crate::starting::once_there_is_space;
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
    /// Its snapshot directory, and how much may lie there.
    pub snapshots: SnapshotDir,
    pub quota: Arc<Quota>,
    /// Whether a start that lacks descriptors or memory for opening the snapshots waits for them.
    pub waits: bool,
}

/// Where a group's snapshots lie.
pub enum SnapshotDir {
    /// A directory that is made if it is missing.
    Usable(PathBuf),
    /// A directory that is left as it is, such as one whose filesystem is not mounted.
    Unusable { dir: PathBuf, why: String },
}

impl SnapshotDir {
    pub fn path(&self) -> &Path {
        let (Self::Usable(dir) | Self::Unusable { dir, .. }) = self;
        dir
    }
}

/// A replica opened from its disk.
pub struct Reopened {
    pub group: Group,
    /// The effects of opening it.
    pub first: Vec<Effect>,
    /// Its snapshots, or why the group cannot run.
    pub store: Result<SnapshotStore, String>,
}

/// Reads the entries that raft needs in memory: those from the floor on. If any of them cannot be
/// read, for any reason, the replica does not start. It once acknowledged these entries, which may
/// be why they are committed, so without them it must neither vote nor lead. It may only join as a
/// new replica, which is for an operator to decide.
pub fn recover(log: &WalReader, group: &RecoveredGroup) -> Result<Recovered, WalError> {
    let RecoveredGroup { state, last_index, terms, sizes } = group.clone();
    let id = GroupId::of_name(&state.group);
    let mut next = state.first_index.max(state.floor);
    let mut window = Vec::new();
    while next <= last_index {
        let entries = log.entries(id, next, last_index + 1, READ_BYTES)?;
        next = entries.last().expect("a range that is not empty gives an entry").index + 1;
        window.extend(entries);
    }
    Ok(Recovered { state, terms, window, sizes })
}

/// Opens a group and its snapshots from what the log recovered of it.
pub fn reopen(disk: Disk, config: GroupConfig, recovered: Option<Recovered>) -> Reopened {
    let id = GroupId::of_name(&config.name);
    let known = recovered.is_some();
    let mut first = Vec::new();
    let mut group = Group::open(config, recovered, &mut first);
    let identity = Identity { cluster: disk.cluster, group: id };
    let state = group.recovery_state();
    let open = || open_store(&disk, identity, known, state);
    let opened = match &disk.snapshots {
        SnapshotDir::Unusable { why, .. } => Err(Unopened { why: why.clone(), is_short: false }),
        SnapshotDir::Usable(_) if disk.waits => {
            once_there_is_space(|unopened: &Unopened| unopened.is_short, open)
        }
        SnapshotDir::Usable(_) => open(),
    };
    let store = opened.map_err(|unopened| unopened.why).map(|(store, missing)| {
        for snapshot in missing {
            let why = "its file is missing".to_owned();
            group.handle(Event::Corrupt { snapshot, why }, &mut first);
        }
        store
    });
    Reopened { group, first, store }
}

/// Why a group's snapshots could not be opened.
#[derive(Debug)]
struct Unopened {
    why: String,
    /// The machine lacks space, descriptors or memory, which says nothing about the snapshots.
    is_short: bool,
}

impl std::fmt::Display for Unopened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// Opens the group's snapshots, and returns which listed ones have no file. Snapshots that the log
/// does not list are deleted only if it knows the group.
fn open_store(
    disk: &Disk,
    identity: Identity,
    known: bool,
    state: &RecoveryState,
) -> Result<(SnapshotStore, Vec<SnapshotDesc>), Unopened> {
    let dir = disk.snapshots.path();
    let fail = |error: std::io::Error| {
        let (is_short, dir) = (is_short(&error), dir.display());
        let way_out = "; make sure that this user can read and write it, then start again";
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

/// Why snapshots of a group that the log does not know are not deleted: the log may be lost.
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

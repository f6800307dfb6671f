//! What can be replayed: a group's log as it was when its node stopped, or an excerpt of it.
//!
//! - [`StoppedLog`] reads a data directory under its lock and changes nothing in it. The lock is
//!   held as long as the value lives, so the node cannot start meanwhile.
//! - A snapshot can be read whole and verified before its first byte is used.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::amendment::Amendments;
use lockstep_core::ids::{GroupId, ReplicaId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;
use raft::eraftpb::Entry;

use crate::data_dir::{DataDirError, lock_to_read};
use crate::fs::Fs;
use crate::store::layout::{ObjectName, snapshot_dir};
use crate::store::{Identity, SnapshotReader};
use crate::wal::{WalError, WalReader, open_to_read};

/// A group's log, or a part of it.
pub trait Past {
    fn facts(&self) -> &Facts;
    /// The entries from `from` up to, but not including, `to_exclusive`: as many as are read at
    /// once, at least one.
    fn entries(&self, from: u64, to_exclusive: u64) -> Result<Vec<Entry>, String>;
    /// Reads one of the snapshots whole; the error says what is wrong with it.
    fn verify(&self, snapshot: &SnapshotDesc) -> Result<(), String>;
    /// The payload of a snapshot that was verified.
    fn open(&self, snapshot: &SnapshotDesc) -> Result<Box<dyn io::Read + '_>, String>;
}

/// What is known of a group's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    pub group: String,
    pub replica: ReplicaId,
    /// The commit index that is durable. The group may have committed more.
    pub commit: u64,
    pub first_index: u64,
    pub last_index: u64,
    /// The snapshots from which a replay may begin, newest first.
    pub snapshots: Vec<SnapshotDesc>,
    /// All snapshots whose digests are known, newest first: a replay can be compared with them.
    pub listed: Vec<SnapshotDesc>,
    /// Entries that are skipped, and limits that are raised.
    pub amendments: Amendments,
}

/// Why a stopped node's log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    #[error("{} holds no node's log; give the data-dir of a stopped node", .0.display())]
    NoLog(PathBuf),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("{0}")]
    Log(#[from] WalError),
    #[error("the log in {} knows no group {group:?}; it has {known}", data.display())]
    UnknownGroup { group: String, data: PathBuf, known: String },
    #[error("group {group:?} has no log here yet: its replica has not met the group")]
    Nothing { group: String },
}

/// Bytes of entries read at once.
const READ_BYTES: u64 = 16 << 20;

/// The log of a group on a stopped node.
pub struct StoppedLog {
    fs: Arc<dyn Fs>,
    log: WalReader,
    identity: Identity,
    snapshots: PathBuf,
    facts: Facts,
    _lock: Option<Box<dyn Send + Sync>>,
}

impl StoppedLog {
    /// Locks the directory and reads the log. `apart` is the group's snapshot directory if it lies
    /// outside of the data directory.
    pub fn open(
        fs: Arc<dyn Fs>,
        data: &Path,
        group: &str,
        apart: Option<PathBuf>,
    ) -> Result<Self, PastError> {
        let wal = data.join("wal");
        let looked = fs.exists(&wal).map_err(|source| {
            let doing = "look for its log";
            DataDirError::Io { dir: data.to_owned(), doing, source }
        });
        if !looked? {
            return Err(PastError::NoLog(data.to_owned()));
        }
        let lock = lock_to_read(&*fs, data)?;
        let (options, log) = open_to_read(&*fs, &wal)?;
        let id = GroupId::of_name(group);
        let (Some(state), Some(last_index)) = (log.state(id), log.last_index(id)) else {
            let names = log.names();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let (group, data) = (group.to_owned(), data.to_owned());
            return Err(PastError::UnknownGroup { group, data, known });
        };
        if !state.bootstrapped || last_index == 0 {
            return Err(PastError::Nothing { group: group.to_owned() });
        }
        let snapshots = apart.unwrap_or_else(|| snapshot_dir(data, group));
        let identity = Identity { cluster: options.cluster, group: id };
        let facts = Facts::of(state, last_index);
        Ok(Self { fs, log, identity, snapshots, facts, _lock: lock })
    }

    fn reader(&self, snapshot: &SnapshotDesc) -> Result<SnapshotReader, String> {
        let path = self.snapshots.join(ObjectName::of(snapshot).file());
        let file = self.fs.open(&path, false).map_err(|e| format!("{}: {e}", path.display()))?;
        let reader = SnapshotReader::open(file, self.identity, snapshot, None);
        reader.map_err(|error| error.to_string())
    }
}

impl Past for StoppedLog {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn entries(&self, from: u64, to_exclusive: u64) -> Result<Vec<Entry>, String> {
        let read = self.log.entries(self.identity.group, from, to_exclusive, READ_BYTES);
        read.map_err(|error| error.to_string())
    }

    fn verify(&self, snapshot: &SnapshotDesc) -> Result<(), String> {
        self.reader(snapshot)?.verify(&mut || ()).map_err(|error| error.to_string())
    }

    fn open(&self, snapshot: &SnapshotDesc) -> Result<Box<dyn io::Read + '_>, String> {
        Ok(Box::new(self.reader(snapshot)?))
    }
}

impl Facts {
    fn of(state: RecoveryState, last_index: u64) -> Self {
        let undone = |desc: &SnapshotDesc| state.amendments.undo(desc.index);
        let mut snapshots = state.snapshots;
        snapshots.retain(|desc| !undone(desc));
        Self {
            group: state.group,
            replica: state.replica,
            commit: state.commit,
            first_index: state.first_index,
            last_index,
            listed: snapshots.clone(),
            snapshots,
            amendments: state.amendments,
        }
    }
}

//! Recovery by hand, on the data directory of a stopped node: makes one replica the whole group
//! after a quorum was lost, or forgets a group.
//!
//! Both lock the directory as a node does, first show what they found, so that an operator can
//! decide, and change the log in one batch.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::group::alone::alone;
use lockstep_core::ids::{GroupId, Lineage, ReplicaId};
use lockstep_core::snapshot::{Configuration, SnapshotDesc};
use raft::eraftpb::Entry;

use crate::config::NodeConfig;
use crate::data_dir::{DataDir, DataDirError};
use crate::fs::{Fs, make_durable};
use crate::node::entropy;
use crate::store::layout::{self, ObjectName, snapshot_dir};
use crate::store::{Identity, SnapshotReader};
use crate::wal::{RecoveredGroup, Wal, WalError, WalOptions, WalReader};

/// Bytes of entries read at once.
const READ_BYTES: u64 = 16 << 20;

/// Why a recovery by hand failed. The message says what was changed, if anything was.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("{0}")]
    Log(#[source] WalError),
    #[error(
        "no space for {bytes} bytes of log in {}: {why}; the command did not complete: free disk \
         space, then run the command again", path.display()
    )]
    Full { path: PathBuf, bytes: u64, why: String },
    #[error(
        "no space for {bytes} bytes of log in {}: {why}; the snapshots of group {group:?} are \
         deleted, and the log still has the group: free disk space, then run the command again",
        path.display()
    )]
    HalfForgotten { group: String, path: PathBuf, bytes: u64, why: String },
    #[error("{} holds no node's data: nothing was touched; check `data-dir`", .0.display())]
    NoData(PathBuf),
    #[error("the log in {} knows no group {group:?}; it has {known}", data.display())]
    UnknownGroup { group: String, data: PathBuf, known: String },
    #[error(
        "group {group:?} has no log here yet: this node holds nothing that could be kept; keep the \
         group on a node that does"
    )]
    Nothing { group: String },
    #[error(
        "group {group:?} could not start from what is here ({why}); nothing was changed: keep the \
         group on another survivor, or restore its snapshots from a copy"
    )]
    NoSnapshot { group: String, why: String },
    #[error("the log of group {group:?} cannot be read: {why}; nothing was changed")]
    Unreadable { group: String, why: String },
    #[error("group {group:?} is configured on this node; remove it from node.toml first")]
    Configured { group: String },
    #[error("{}: {source}; the group is still in the log: fix the cause, then run the command \
        again", dir.display())]
    Files { dir: PathBuf, source: std::io::Error },
}

impl From<WalError> for RecoverError {
    fn from(error: WalError) -> Self {
        match error {
            WalError::Full { path, bytes, why } => Self::Full { path, bytes, why },
            other => Self::Log(other),
        }
    }
}

/// A stopped node's directory, locked, with one of its groups.
pub struct StoppedGroup {
    fs: Arc<dyn Fs>,
    data: DataDir,
    wal: Wal,
    group: String,
    /// The group's snapshot directory: the configured one, or the default if the configuration
    /// names none.
    snapshots: PathBuf,
    cluster: [u8; 16],
    found: RecoveredGroup,
}

impl StoppedGroup {
    /// Locks the directory and reads the log.
    pub fn open(fs: Arc<dyn Fs>, config: &NodeConfig, group: &str) -> Result<Self, RecoverError> {
        if !fs.exists(&config.data_dir.join("node")).is_ok_and(|there| there) {
            return Err(RecoverError::NoData(config.data_dir.clone()));
        }
        let data = DataDir::open(&fs, config, false)?;
        let (cluster, segment_bytes) = (config.cluster_id(), config.log_segment_bytes);
        let options = WalOptions::new(cluster, config.node, segment_bytes, entropy());
        let (wal, mut groups) = Wal::open(Arc::clone(&fs), &data.wal(), options)?;
        let found = groups.remove(&GroupId::of_name(group));
        let found = found.ok_or_else(|| {
            let known: Vec<&str> = groups.values().map(|group| &*group.state.group).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let (group, data) = (group.to_owned(), data.path().to_owned());
            RecoverError::UnknownGroup { group, data, known }
        })?;
        let spec = config.groups.iter().find(|spec| spec.name == group);
        let apart = spec.and_then(|spec| spec.snapshot_dir.clone());
        let cluster = config.cluster_id();
        let snapshots = apart.unwrap_or_else(|| snapshot_dir(data.path(), group));
        Ok(Self { fs, data, wal, group: group.to_owned(), snapshots, cluster, found })
    }

    /// Term and index of the last entry: the survivor with the highest should be kept.
    pub fn last(&self) -> (u64, u64) {
        let term = self.found.terms.last().map_or(0, |(_, term)| *term);
        (term, self.found.last_index)
    }

    pub fn replica(&self) -> ReplicaId {
        self.found.state.replica
    }

    pub fn configuration(&self) -> &Configuration {
        &self.found.state.configuration
    }

    /// The index of the snapshot that a start would begin with, after reading it whole; `None` if
    /// no snapshot can be read, but the log goes back to its first entry.
    pub fn starts_from(&self) -> Result<Option<u64>, RecoverError> {
        let state = &self.found.state;
        let mut causes = Vec::new();
        for desc in &state.snapshots {
            match self.read(desc) {
                Ok(()) => return Ok(Some(desc.index)),
                Err(why) => causes.push(why),
            }
        }
        match state.first_index {
            1 => Ok(None),
            _cut => {
                let (group, why) = (self.group.clone(), causes.join("; "));
                Err(RecoverError::NoSnapshot { group, why })
            }
        }
    }

    fn read(&self, desc: &SnapshotDesc) -> Result<(), String> {
        let group = GroupId::of_name(&self.group);
        let identity = Identity { cluster: self.cluster, group };
        let path = self.snapshots.join(ObjectName::of(desc).file());
        let file = self.fs.open(&path, false).map_err(|e| format!("{}: {e}", path.display()))?;
        let reader = SnapshotReader::open(file, identity, desc, None);
        reader.and_then(|reader| reader.verify(&mut || ())).map_err(|error| error.to_string())
    }

    /// Makes this replica the whole group. Everything in its log counts as committed.
    pub fn keep_only_me(mut self) -> Result<(), RecoverError> {
        let (_, last) = self.last();
        let state = &self.found.state;
        if !state.bootstrapped || last == 0 {
            return Err(RecoverError::Nothing { group: self.group });
        }
        self.starts_from()?;
        let mut lineage = [0; 16];
        getrandom::fill(&mut lineage).expect("the system gives randomness");
        let rest = rest(&self.wal.reader(), &self.group, state.floor, last)?;
        let job = alone(state, last, &rest, Lineage(lineage))
            .map_err(|why| RecoverError::Unreadable { group: self.group.clone(), why })?;
        self.wal.append(&[job], &mut |_jobs| {})?;
        Ok(())
    }

    /// Deletes the group's snapshots, then removes the group from the log: as long as the log has
    /// the group, another call finishes an interrupted one. A group that is still configured can be
    /// forgotten only if it removed this replica; the node then joins it anew.
    pub fn forget(mut self, config: &NodeConfig) -> Result<(), RecoverError> {
        let configured = config.groups.iter().any(|spec| spec.name == self.group);
        if configured && !self.found.state.removed {
            return Err(RecoverError::Configured { group: self.group });
        }
        let (fs, dir) = (&*self.fs, self.snapshots);
        let mut removed = remove_files(fs, &dir);
        if !configured {
            removed = removed.and_then(|()| self.data.forget_snapshots(fs, &self.group));
        }
        removed.map_err(|source| RecoverError::Files { dir, source })?;
        let dropped = self.wal.drop_group(GroupId::of_name(&self.group));
        dropped.map_err(|error| match RecoverError::from(error) {
            RecoverError::Full { path, bytes, why } => {
                RecoverError::HalfForgotten { group: self.group, path, bytes, why }
            }
            other => other,
        })?;
        while self.wal.housekeep()? {}
        Ok(())
    }
}

/// The entries after the floor, up to `last`.
pub fn rest(
    log: &WalReader,
    group: &str,
    floor: u64,
    last: u64,
) -> Result<Vec<Entry>, RecoverError> {
    let mut rest: Vec<Entry> = Vec::new();
    while let Some(next) = Some(floor + 1 + rest.len() as u64).filter(|next| *next <= last) {
        let read = log.entries(GroupId::of_name(group), next, last + 1, READ_BYTES)?;
        if read.is_empty() {
            let why = format!("entry {next} is missing");
            return Err(RecoverError::Unreadable { group: group.to_owned(), why });
        }
        rest.extend(read);
    }
    Ok(rest)
}

/// Deletes the snapshots and staging files of a snapshot directory; files of other names stay.
fn remove_files(fs: &dyn Fs, dir: &Path) -> std::io::Result<()> {
    for dir in [layout::part_dir(dir), dir.to_owned()] {
        if !fs.exists(&dir)? {
            continue;
        }
        for name in fs.list(&dir)? {
            let path = dir.join(&name);
            if layout::ObjectName::parse(&name).is_some() || layout::is_part_name(&name) {
                fs.remove(&path)?;
            }
        }
        make_durable(fs, &dir.join("*"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! What is done to a stopped node's data directory by hand: a lost quorum, and a group to forget.
//!
//! Both lock the directory like a node does, change the log in one batch, and say what they found
//! first, so that a person can decide.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::ids::{GroupId, Lineage, ReplicaId};
use lockstep_core::snapshot::{Configuration, SnapshotDesc};
use lockstep_core::wal::LogJob;

use crate::config::NodeConfig;
use crate::data_dir::{DataDir, DataDirError};
use crate::fs::{Fs, make_durable};
use crate::node::entropy;
use crate::store::layout::{self, ObjectName, snapshot_dir};
use crate::store::{Identity, SnapshotReader};
use crate::wal::{RecoveredGroup, Wal, WalError, WalOptions};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("{0}")]
    Log(#[from] WalError),
    #[error("{} is no data directory of a node that ran: nothing was touched", .0.display())]
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
         group on another survivor, or put its snapshots back from a copy"
    )]
    NoSnapshot { group: String, why: String },
    #[error("group {group:?} is configured on this node; take it out of the file first")]
    Configured { group: String },
    #[error("{}: {source}; the group is out of the log, remove the directory by \
        hand", dir.display())]
    Files { dir: PathBuf, source: std::io::Error },
}

/// A stopped node's directory, locked, with one of its groups.
pub struct StoppedGroup {
    fs: Arc<dyn Fs>,
    _data: DataDir,
    wal: Wal,
    group: String,
    /// Where they lie, as far as the configuration still says it.
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
        Ok(Self { fs, _data: data, wal, group: group.to_owned(), snapshots, cluster, found })
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

    /// The index of the snapshot that a start would begin with, which was read whole; `None` if it
    /// has the log from its first entry on.
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
        let mut state = self.found.state.clone();
        if !state.founded || last == 0 {
            return Err(RecoverError::Nothing { group: self.group });
        }
        self.starts_from()?;
        state.configuration = Configuration::of_voters([state.replica]);
        // Changes of configuration in the log speak of a group that is no more.
        state.configuration_index = last;
        state.commit = last;
        // Nobody takes the old group's replicas for this one's.
        let mut lineage = [0; 16];
        getrandom::fill(&mut lineage).expect("the system gives randomness");
        state.lineage = Some(Lineage(lineage));
        // Messages and votes of that group are old from now on.
        (state.term, state.vote) = (state.term + 1, 0);
        let group = GroupId::of_name(&self.group);
        self.wal.append(&[LogJob { group, state, entries: Vec::new() }], &mut |_jobs| {})?;
        Ok(())
    }

    /// Takes the group out of the log, then removes its snapshots. One that goes on without this
    /// replica may be configured: the node joins it anew.
    pub fn forget(mut self, config: &NodeConfig) -> Result<(), RecoverError> {
        let configured = config.groups.iter().any(|spec| spec.name == self.group);
        if configured && !self.found.state.removed {
            return Err(RecoverError::Configured { group: self.group });
        }
        self.wal.drop_group(GroupId::of_name(&self.group))?;
        self.wal.housekeep()?;
        let dir = self.snapshots;
        remove_files(&*self.fs, &dir).map_err(|source| RecoverError::Files { dir, source })
    }
}

/// Removes the snapshots and staging files of a snapshot directory; what has another name stays.
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

//! What is done to a stopped node's data directory by hand: a lost quorum, and a group to forget.
//!
//! Both lock the directory like a node does, change the log in one batch, and say what they found
//! first, so that a person can decide.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::ids::{GroupId, ReplicaId};
use lockstep_core::snapshot::Configuration;
use lockstep_core::wal::LogJob;

use crate::config::NodeConfig;
use crate::data_dir::{DataDir, DataDirError};
use crate::fs::{Fs, make_durable};
use crate::store::layout::{self, group_dir, snapshot_dir};
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
    #[error("group {group:?} is configured on this node; take it out of the file first")]
    Configured { group: String },
    #[error("{}: {source}; the group is out of the log, remove the directory by \
        hand", dir.display())]
    Files { dir: PathBuf, source: std::io::Error },
}

/// A stopped node's directory, locked, with one of its groups.
pub struct StoppedGroup {
    fs: Arc<dyn Fs>,
    data: DataDir,
    wal: Wal,
    group: String,
    found: RecoveredGroup,
}

impl StoppedGroup {
    /// Locks the directory and reads the log.
    pub fn open(fs: Arc<dyn Fs>, config: &NodeConfig, group: &str) -> Result<Self, RecoverError> {
        if !fs.exists(&config.data_dir.join("node")).is_ok_and(|there| there) {
            return Err(RecoverError::NoData(config.data_dir.clone()));
        }
        let data = DataDir::open(&fs, config, false)?;
        let options = WalOptions {
            cluster: config.cluster_id(),
            node: config.node,
            segment_bytes: config.log_segment_bytes,
            ballast_bytes: config.log_segment_bytes,
        };
        let (wal, mut groups) = Wal::open(Arc::clone(&fs), &data.wal(), options)?;
        let found = groups.remove(&GroupId::of_name(group));
        let found = found.ok_or_else(|| {
            let known: Vec<&str> = groups.values().map(|group| &*group.state.group).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let (group, data) = (group.to_owned(), data.path().to_owned());
            RecoverError::UnknownGroup { group, data, known }
        })?;
        Ok(Self { fs, data, wal, group: group.to_owned(), found })
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

    /// Makes this replica the whole group. Everything in its log counts as committed.
    pub fn keep_only_me(mut self) -> Result<(), RecoverError> {
        let (_, last) = self.last();
        let mut state = self.found.state;
        if !state.founded || last == 0 {
            return Err(RecoverError::Nothing { group: self.group });
        }
        state.configuration = Configuration::of_voters([state.replica]);
        // Changes of configuration in the log speak of a group that is no more.
        state.configuration_index = last;
        state.commit = last;
        // Messages and votes of that group are old from now on.
        (state.term, state.vote) = (state.term + 1, 0);
        let group = GroupId::of_name(&self.group);
        self.wal.append(&[LogJob { group, state, entries: Vec::new() }])?;
        Ok(())
    }

    /// Takes the group out of the log, then removes its snapshots.
    pub fn forget(mut self, config: &NodeConfig) -> Result<(), RecoverError> {
        if config.groups.iter().any(|spec| spec.name == self.group) {
            return Err(RecoverError::Configured { group: self.group });
        }
        self.wal.drop_group(GroupId::of_name(&self.group))?;
        let dir = snapshot_dir(self.data.path(), &self.group);
        let removed = remove_files(&*self.fs, &dir);
        removed.map_err(|source| {
            let dir = group_dir(self.data.path(), &self.group);
            RecoverError::Files { dir, source }
        })
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

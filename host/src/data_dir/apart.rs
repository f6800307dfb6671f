//! Snapshot directories that lie outside of the data directory: whose they are, whether they are
//! there, and their locks.
//!
//! ```text
//! <snapshot-dir>/<cluster>-<node>/<group>/LOCK     exclusive lock, held for process life
//! <snapshot-dir>/<cluster>-<node>/<group>/owner    text: format, cluster, node, group
//! <data>/snapshot-dirs/<group>                     the same text: the group has such a directory
//! ```
//! - `owner` is durable before the data directory has its record, so an interrupted start is
//!   repeated as if it were the first.
//! - A directory without `owner` that was used before, or that has none of the snapshots that the
//!   log lists in it, is missing rather than empty, for its filesystem may not be mounted. Nothing
//!   is created there.
//! - An empty `owner` is an operator's word that the directory is empty on purpose.
//!
//! A copy of a data directory has the same owner as the original. The lock keeps the two from
//! using a snapshot directory at once, and nothing keeps them from using it in turn.

use std::io;
use std::path::{Path, PathBuf};

use lockstep_core::mutant::planted;

use super::{DataDir, FORMAT, owner_of, parse_owner, read_text, write_owner};
use crate::config::NodeConfig;
use crate::fs::{Fs, create_dirs, has_no_locks, is_full, is_short, make_durable};
use crate::store::layout;

/// Most characters that are quoted of another owner.
const QUOTED_MAX: usize = 200;

/// Why a group's snapshot directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotDirError {
    #[error("snapshot directory {}: cannot {doing}: {source}; make sure that this user can read \
        and write it, then start again", dir.display())]
    Io { dir: PathBuf, doing: &'static str, source: io::Error },
    #[error("snapshot directory {} is locked: another process uses it; stop that one, or give \
        this node its own snapshot-dir", .0.display())]
    Locked(PathBuf),
    #[error("snapshot directory {} is missing: this node has used it, and {} is not there; \
        nothing was touched: mount its filesystem, or, if what it held is lost for good, create \
        that file, empty, to begin with an empty directory", dir.display(), owner.display())]
    Missing { dir: PathBuf, owner: PathBuf },
    #[error("snapshot directory {} belongs to {have:?}, not to {want}; nothing was touched: point \
        snapshot-dir at this node's own directory", dir.display())]
    Foreign { dir: PathBuf, have: String, want: String },
}

impl SnapshotDirError {
    /// Whether there is no space for it: snapshots wait for some, and the group does not.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }

    /// Whether the machine lacks descriptors or memory, which says nothing about the directory.
    pub fn is_short(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_short(source) && !is_full(source))
    }
}

impl DataDir {
    /// Takes a group's snapshot directory for use by this node: locks it, and makes it this node's
    /// if it is new. `listed` are the files of the snapshots that the log lists.
    pub fn take_snapshots(
        &mut self,
        fs: &dyn Fs,
        config: &NodeConfig,
        group: &str,
        dir: &Path,
        listed: &[String],
    ) -> Result<(), SnapshotDirError> {
        let io = |doing| move |source| SnapshotDirError::Io { dir: dir.to_owned(), doing, source };
        let want = format!("{} group={group}", owner_of(config));
        let is_ours = self.judge_snapshots(fs, group, dir, &want, listed)?;
        let owner = layout::owner_file(dir);
        if !is_ours {
            let above = owner.parent().expect("a file lies in a directory");
            create_dirs(fs, above).map_err(io("create it"))?;
        }
        self.lock_snapshots(fs, dir)?;
        if !is_ours {
            tracing::info!(group, dir = %dir.display(), "a snapshot directory is used from now on");
            write_owner(fs, &owner, &want).map_err(io("write its owner"))?;
        }
        let record = self.record(group);
        if !fs.exists(&record).map_err(io("look for its record"))? {
            let above = record.parent().expect("a file lies in a directory");
            let written = create_dirs(fs, above).and_then(|()| write_owner(fs, &record, &want));
            written.map_err(io("record in the data directory that it is used"))?;
        }
        Ok(())
    }

    /// Forgets that a group has a snapshot directory of its own.
    pub fn forget_snapshots(&self, fs: &dyn Fs, group: &str) -> io::Result<()> {
        let record = self.record(group);
        if !fs.exists(&record)? {
            return Ok(());
        }
        fs.remove(&record)?;
        make_durable(fs, &record)
    }

    /// Locks those of the configured snapshot directories that have an owner. A directory that
    /// cannot be locked for another reason than its lock stops its group alone, later.
    pub(super) fn lock_owned_snapshots(
        &mut self,
        fs: &dyn Fs,
        config: &NodeConfig,
    ) -> Result<(), SnapshotDirError> {
        for dir in config.groups.iter().filter_map(|group| group.snapshot_dir.as_ref()) {
            if !matches!(fs.exists(&layout::owner_file(dir)), Ok(true)) {
                continue;
            }
            if let Err(error @ SnapshotDirError::Locked(_)) = self.lock_snapshots(fs, dir) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Locks a snapshot directory, unless this process has done so before.
    fn lock_snapshots(&mut self, fs: &dyn Fs, dir: &Path) -> Result<(), SnapshotDirError> {
        if self.snapshot_locks.contains_key(dir) || planted("share_a_snapshot_directory") {
            return Ok(());
        }
        let lock = match fs.lock(&layout::lock_file(dir)) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(SnapshotDirError::Locked(dir.to_owned()));
            }
            // Network filesystems may have none.
            Err(error) if has_no_locks(&error) => {
                tracing::warn!(dir = %dir.display(), %error, "the snapshot directory is used \
                    without a lock: no other process may use it");
                Box::new(())
            }
            Err(source) => {
                let dir = dir.to_owned();
                return Err(SnapshotDirError::Io { dir, doing: "lock it", source });
            }
        };
        self.snapshot_locks.insert(dir.to_owned(), lock);
        Ok(())
    }

    /// Whether a snapshot directory is this node's already, or new; or why it cannot be used.
    /// Touches nothing.
    fn judge_snapshots(
        &self,
        fs: &dyn Fs,
        group: &str,
        dir: &Path,
        want: &str,
        listed: &[String],
    ) -> Result<bool, SnapshotDirError> {
        let io = |doing| move |source| SnapshotDirError::Io { dir: dir.to_owned(), doing, source };
        let owner = layout::owner_file(dir);
        if !fs.exists(&owner).map_err(io("look for its owner"))? {
            let recorded = fs.exists(&self.record(group)).map_err(io("look for its record"))?;
            let mut there = listed.is_empty();
            for file in listed {
                there |= fs.exists(&dir.join(file)).map_err(io("look for its snapshots"))?;
            }
            if (recorded || !there) && !planted("make_what_is_gone") {
                return Err(SnapshotDirError::Missing { dir: dir.to_owned(), owner });
            }
            return Ok(false);
        }
        let text = read_text(fs, &owner).map_err(io("read its owner"))?;
        match parse_owner(&text) {
            Some((FORMAT, have)) if have == want => Ok(true),
            _other if text.trim().is_empty() => Ok(false),
            _other => Err(SnapshotDirError::Foreign {
                dir: dir.to_owned(),
                have: text.trim().chars().take(QUOTED_MAX).collect(),
                want: want.to_owned(),
            }),
        }
    }

    /// The file whose presence says that a group has a snapshot directory of its own.
    fn record(&self, group: &str) -> PathBuf {
        self.path.join("snapshot-dirs").join(group)
    }
}

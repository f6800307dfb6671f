//! The data directory of a node: its lock, and the file that says whose it is.
//!
//! ```text
//! <data>/LOCK             exclusive lock, held for process life
//! <data>/node             text: format, cluster, node, whether its log was begun; checked at each
//!                         start
//! <data>/wal/             the log
//! <data>/groups/          snapshots
//! <data>/snapshot-dirs/   which groups have their snapshots elsewhere
//! ```
//! A directory that is locked, foreign or of a newer format is refused, and nothing in it is
//! touched. Snapshot directories that lie elsewhere are locked and checked in the same way.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::mutant::planted;

use crate::config::NodeConfig;
use crate::fs::{Fs, create_dirs, is_short, make_durable, write_durably};
use crate::store::list_objects;

mod apart;
#[cfg(test)]
mod tests;

pub use apart::SnapshotDirError;

/// The format of the directory as a whole.
const FORMAT: u32 = 1;
const LOCK: &str = "LOCK";
/// The end of the line in the file `node`, until the log has its first segment.
const NO_LOG: &str = " log=none";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data directory {}: cannot {doing}: {source}; make it writable for this process or \
        choose another data-dir", dir.display())]
    Io { dir: PathBuf, doing: &'static str, source: io::Error },
    #[error("data directory {} is locked: another process uses it; stop that one, or give this \
        node its own data-dir", .0.display())]
    Locked(PathBuf),
    #[error("data directory {} belongs to {have}, but the configuration says {want}; nothing was \
        touched: point data-dir at this node's own directory", dir.display())]
    Foreign { dir: PathBuf, have: String, want: String },
    #[error("data directory {} has format {have}, this binary knows up to {FORMAT}; nothing was \
        touched: use a newer lockstep", dir.display())]
    Newer { dir: PathBuf, have: u32 },
    #[error("data directory {} holds a log but no file `node`; nothing was touched: restore the \
        file, or start with --rejoin to move the old data aside", .0.display())]
    Unnamed(PathBuf),
    #[error("data directory {}: its file `node` is damaged; nothing was touched: restore it, or \
        start with --rejoin to move the old data aside", .0.display())]
    Damaged(PathBuf),
    #[error("data directory {} holds snapshots but neither a file `node` nor a log; nothing was \
        touched: restore them, or start with --rejoin to move the old data aside", .0.display())]
    Strays(PathBuf),
    #[error("data directory {} has lost its log (wal/ is missing or empty); nothing was touched: \
        restore it, or start with --rejoin to join as a new replica", .0.display())]
    NoLog(PathBuf),
    #[error("data directory {}: with --rejoin, {groups} would begin anew and empty, because no \
        other node has it; nothing was touched: restore the directory from a copy, or move it \
        aside by hand to give up what it holds", dir.display())]
    Alone { dir: PathBuf, groups: String },
    #[error(transparent)]
    Snapshots(#[from] SnapshotDirError),
}

impl DataDirError {
    /// Whether the operation may succeed later, once the machine has disk space, descriptors or
    /// memory again.
    pub fn is_short(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_short(source))
    }
}

/// An open data directory.
pub struct DataDir {
    path: PathBuf,
    /// The owner, as long as the file `node` says that the log has no segment yet.
    unbegun: Option<String>,
    _lock: Box<dyn Send + Sync>,
    /// The locks of snapshot directories that lie elsewhere.
    snapshot_locks: BTreeMap<PathBuf, Box<dyn Send + Sync>>,
}

/// Locks the directory of a stopped node, for a tool that only reads it, whichever node it belongs
/// to. A copy that no node ever opened has no lock, and gets none.
pub fn lock_to_read(fs: &dyn Fs, dir: &Path) -> Result<Option<Box<dyn Send + Sync>>, DataDirError> {
    let io = |doing| move |source| DataDirError::Io { dir: dir.to_owned(), doing, source };
    let has_lock = fs.exists(&dir.join(LOCK)).map_err(io("look for its lock"))?;
    let lock = has_lock.then(|| lock(fs, dir)).transpose()?;
    let owner = dir.join("node");
    if fs.exists(&owner).map_err(io("look for its owner"))? {
        let text = read_text(fs, &owner).map_err(io("read its owner"))?;
        if let Some((have, _)) = parse_owner(&text).filter(|(format, _)| *format > FORMAT) {
            return Err(DataDirError::Newer { dir: dir.to_owned(), have });
        }
    }
    Ok(lock)
}

fn lock(fs: &dyn Fs, dir: &Path) -> Result<Box<dyn Send + Sync>, DataDirError> {
    fs.lock(&dir.join(LOCK)).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => DataDirError::Locked(dir.to_owned()),
        _other => DataDirError::Io { dir: dir.to_owned(), doing: "lock it", source },
    })
}

impl DataDir {
    /// Locks a directory and checks that it is this node's; a new one is marked as such.
    pub fn open(fs: &Arc<dyn Fs>, config: &NodeConfig, rejoin: bool) -> Result<Self, DataDirError> {
        let path = config.data_dir.clone();
        let io = |doing| {
            let dir = path.clone();
            move |source| DataDirError::Io { dir, doing, source }
        };
        // Nothing in it is durable unless its own name is.
        create_dirs(&**fs, &path).map_err(io("create it"))?;
        let lock = lock(&**fs, &path)?;
        let snapshot_locks = BTreeMap::new();
        let mut this = Self { path: path.clone(), unbegun: None, _lock: lock, snapshot_locks };
        this.lock_owned_snapshots(&**fs, config)?;
        let judged = this.judge(&**fs, config);
        let lost = |error: &DataDirError| {
            use DataDirError::{Damaged, NoLog, Strays, Unnamed};
            matches!(error, Damaged(_) | NoLog(_) | Strays(_) | Unnamed(_))
        };
        // `--rejoin` leaves another node's directory alone.
        let aside = rejoin && judged.as_ref().map_or_else(lost, |owner| *owner != Owner::Nobody);
        let owner = if aside {
            if let Some(groups) = alone(config) {
                return Err(DataDirError::Alone { dir: path, groups });
            }
            this.move_aside(&**fs).map_err(io("move the old data aside"))?;
            this.judge(&**fs, config)?
        } else {
            judged?
        };
        let name = owner_of(config);
        if owner == Owner::Nobody {
            tracing::info!(dir = %path.display(), "no data found: this is a new node");
            let file = path.join("node");
            write_owner(&**fs, &file, &format!("{name}{NO_LOG}")).map_err(io("write its owner"))?;
        }
        this.unbegun = (owner != Owner::WithLog).then_some(name);
        Ok(this)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn wal(&self) -> PathBuf {
        self.path.join("wal")
    }

    /// Records that the log has its first segment. From now on, a directory without a log has lost
    /// it.
    pub fn log_begun(&mut self, fs: &dyn Fs) -> Result<(), DataDirError> {
        let Some(owner) = &self.unbegun else { return Ok(()) };
        let dir = self.path.clone();
        let written = write_owner(fs, &self.path.join("node"), owner);
        written.map_err(|source| DataDirError::Io { dir, doing: "write its owner", source })?;
        self.unbegun = None;
        Ok(())
    }

    /// Renames the snapshot directories that lie elsewhere, to names that nothing reads: `--rejoin`
    /// begins without snapshots.
    pub fn move_snapshots_aside(
        &self,
        fs: &dyn Fs,
        config: &NodeConfig,
    ) -> Result<(), DataDirError> {
        for dir in config.groups.iter().filter_map(|group| group.snapshot_dir.as_ref()) {
            let moved = move_directory_aside(fs, dir);
            moved.map_err(|source| {
                let doing = "move old snapshots aside";
                DataDirError::Io { dir: dir.clone(), doing, source }
            })?;
        }
        Ok(())
    }

    /// Whose directory it is, or why it cannot be used; touches nothing.
    fn judge(&self, fs: &dyn Fs, config: &NodeConfig) -> Result<Owner, DataDirError> {
        let path = self.path.clone();
        let dir = || path.clone();
        let io = |doing| move |source| DataDirError::Io { dir: dir(), doing, source };
        let file = self.path.join("node");
        let want = owner_of(config);
        let has_log = self.has_log(fs).map_err(io("look for the log"))?;
        if !fs.exists(&file).map_err(io("look for its owner"))? {
            if has_log {
                return Err(DataDirError::Unnamed(dir()));
            }
            if !list_objects(fs, &self.path).map_err(io("look for snapshots"))?.is_empty() {
                return Err(DataDirError::Strays(dir()));
            }
            return Ok(Owner::Nobody);
        }
        let text = read_text(fs, &file).map_err(io("read its owner"))?;
        let (format, owner) = parse_owner(&text).ok_or_else(|| DataDirError::Damaged(dir()))?;
        if format > FORMAT {
            return Err(DataDirError::Newer { dir: dir(), have: format });
        }
        let have = owner.strip_suffix(NO_LOG).unwrap_or(owner);
        if have != want {
            return Err(DataDirError::Foreign { dir: dir(), have: have.to_owned(), want });
        }
        if owner.ends_with(NO_LOG) {
            Ok(Owner::WithoutLog)
        } else if has_log {
            Ok(Owner::WithLog)
        } else {
            Err(DataDirError::NoLog(dir()))
        }
    }

    /// Whether there is a segment of a log.
    fn has_log(&self, fs: &dyn Fs) -> io::Result<bool> {
        if !fs.exists(&self.wal())? {
            return Ok(false);
        }
        let is_segment = |name: &String| {
            name.strip_suffix(".wal").is_some_and(|seq| u64::from_str_radix(seq, 16).is_ok())
        };
        Ok(fs.list(&self.wal())?.iter().any(is_segment))
    }

    /// Moves the data into a subdirectory that nothing reads, so that a new log can begin here.
    fn move_aside(&self, fs: &dyn Fs) -> io::Result<()> {
        let old: Vec<String> = fs
            .list(&self.path)?
            .into_iter()
            .filter(|n| n == "wal" || n == "groups" || n == "node")
            .collect();
        if old.is_empty() {
            return Ok(());
        }
        let aside = (1..)
            .map(|number| self.path.join(format!("old-{number}")))
            .find(|path| matches!(fs.exists(path), Ok(false)))
            .expect("some number is free");
        fs.create_dir_all(&aside)?;
        // The file `node` is moved first: a crash in between leaves a directory that asks for
        // --rejoin again.
        for name in ["node", "groups", "wal"].iter().filter(|name| old.iter().any(|o| o == *name)) {
            fs.rename(&self.path.join(name), &aside.join(name))?;
        }
        make_durable(fs, &aside.join("node"))?;
        make_durable(fs, &aside)?;
        tracing::warn!(aside = %aside.display(), "the old data was moved aside; this node joins \
            its groups anew");
        Ok(())
    }
}

/// Whose directory it is, if this node may use it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The directory is new.
    Nobody,
    /// The directory is this node's, and its log has no segment yet.
    WithoutLog,
    WithLog,
}

fn owner_of(config: &NodeConfig) -> String {
    format!("cluster={} node={}", config.cluster, config.node)
}

fn move_directory_aside(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    if !fs.exists(dir)? {
        return Ok(());
    }
    let aside = (1..)
        .map(|number| dir.with_extension(format!("old-{number}")))
        .find(|path| matches!(fs.exists(path), Ok(false)))
        .expect("some number is free");
    fs.rename(dir, &aside)?;
    tracing::warn!(aside = %aside.display(), "old snapshots were moved aside");
    make_durable(fs, &aside)
}

fn write_owner(fs: &dyn Fs, file: &Path, owner: &str) -> io::Result<()> {
    write_durably(fs, file, format!("lockstep format={FORMAT} {owner}\n").as_bytes())
}

fn read_text(fs: &dyn Fs, file: &Path) -> io::Result<String> {
    let handle = fs.open(file, false)?;
    let length = handle.len()?.min(4096) as usize;
    let mut bytes = vec![0; length];
    crate::fs::read_exact_at(&*handle, &mut bytes, 0)?;
    // Bytes that are not text are damage, which parsing the text finds.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Splits `lockstep format=N cluster=NAME node=ID` into the format and the owner.
fn parse_owner(text: &str) -> Option<(u32, &str)> {
    let rest = text.trim_end().strip_prefix("lockstep format=")?;
    let (format, owner) = rest.split_once(' ')?;
    Some((format.parse().ok()?, owner))
}

/// The groups that only this node hosts, if there are any: no other node has a copy of their data.
fn alone(config: &NodeConfig) -> Option<String> {
    let me = [config.node];
    let own = config.groups.iter().filter(|group| {
        group.lineage.is_none() && group.nodes.iter().eq(&me) && !planted("rejoin_alone")
    });
    let names: Vec<String> = own.map(|group| format!("group {:?}", group.name)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

//! [`WalError`]: what can be wrong with a log, in which file, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use lockstep_core::ids::{GroupId, NodeId, hex};
use lockstep_core::wal::record::FORMAT_VERSION;

use crate::fs::is_short;

#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("the log: {}", told(doing, path, source))]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("no space for {bytes} bytes of log in {}: {why}; nothing is lost: writes that \
        wait continue once there is space", path.display())]
    Full { path: PathBuf, bytes: u64, why: String },
    #[error("the log is corrupt: {} at offset {offset}: {reason}; nothing was touched: restore the \
        disk, or start with --rejoin to join as a new replica", path.display())]
    Corrupt { path: PathBuf, offset: u64, reason: String },
    #[error("{} belongs to node {found_node} of cluster {}, this is node {node} of cluster {}; \
        nothing was touched: start with the data directory of this \
        node", path.display(), hex(found_cluster), hex(cluster))]
    Foreign {
        path: PathBuf,
        found_cluster: [u8; 16],
        found_node: NodeId,
        cluster: [u8; 16],
        node: NodeId,
    },
    #[error("{} has log format {found}, this program knows {FORMAT_VERSION}; nothing was touched: \
        start the newer program", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("{} holds a {what} of version {found}, this program knows {known}; nothing was \
        touched: start the newer program", path.display())]
    NewerRecord { path: PathBuf, what: &'static str, found: u8, known: u8 },
    #[error(
        "the log accepts no more writes because an earlier one failed ({cause}): restart the node \
         once the disk works again"
    )]
    Poisoned { cause: String },
    #[error("job of group {group} does not fit its log: {reason}; nothing was written")]
    Refused { group: GroupId, reason: String },
    #[error("the log holds no group {group}")]
    UnknownGroup { group: GroupId },
    #[error("entry {index} of group {group} was compacted; the log begins at {first_index}")]
    Compacted { group: GroupId, index: u64, first_index: u64 },
    #[error("entry {index} of group {group} is not in the log; it ends at {last_index}")]
    Unavailable { group: GroupId, index: u64, last_index: u64 },
}

impl WalError {
    /// For `map_err`: adds what was attempted, and where.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    pub(super) fn full(path: &Path, bytes: u64, error: &io::Error) -> Self {
        Self::Full { path: path.to_owned(), bytes, why: error.to_string() }
    }

    /// Whether a retry may succeed once space, descriptors or memory are freed.
    pub fn is_short(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => is_short(source),
            _other => false,
        }
    }

    /// Whether the error shows that the log's bytes are not those that were written, or cannot be
    /// read.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } => true,
            Self::Io { source, .. } => !is_short(source),
            _other => false,
        }
    }

    pub(super) fn corrupt(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), offset, reason: reason.into() }
    }
}

/// The text of an error, with the operation and the path unless the text names the path already, as
/// most errors of the `Fs` door do.
fn told(doing: &str, path: &Path, source: &io::Error) -> String {
    let (path, text) = (path.display().to_string(), source.to_string());
    if text.contains(&path) { text } else { format!("{doing} {path}: {text}") }
}

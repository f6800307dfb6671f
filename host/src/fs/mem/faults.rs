//! How operations of the disk in memory fail: with the errors of a real system.

use std::io;
use std::path::Path;

use crate::fs::Named;

/// What an injected failure looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFault {
    /// EIO.
    Io,
    /// ENOSPC.
    Full,
    /// EACCES.
    Denied,
    /// EMFILE.
    Descriptors,
}

/// The operations that a full filesystem fails besides those that take space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LateFull {
    /// Creating or renaming to a new name, for which its directory needs a block.
    pub name: bool,
    /// Overwriting bytes of a file, which copies on write.
    pub write: bool,
    pub sync: bool,
    pub remove: bool,
    pub sync_dir: bool,
}

impl LateFull {
    /// Each kind alone, all of them together, and a name that can neither be made durable nor taken
    /// back.
    pub const EACH: [Self; 7] = {
        let none = Self { name: false, write: false, sync: false, remove: false, sync_dir: false };
        [
            Self { name: true, ..none },
            Self { write: true, ..none },
            Self { sync: true, ..none },
            Self { remove: true, ..none },
            Self { sync_dir: true, ..none },
            Self { name: true, write: true, sync: true, remove: true, sync_dir: true },
            Self { remove: true, sync_dir: true, ..none },
        ]
    };

    pub(super) fn strikes(self, doing: &str) -> bool {
        match doing {
            "create" | "create directory" | "rename" => self.name,
            "write" => self.write,
            "sync" => self.sync,
            "remove" => self.remove,
            "sync directory" => self.sync_dir,
            _other => false,
        }
    }
}

/// The error of `fault`, if there is one.
pub(super) fn injected(fault: Option<DiskFault>, doing: &str, path: &Path) -> io::Result<()> {
    match fault {
        None => Ok(()),
        Some(DiskFault::Io) => {
            let text = format!("{doing} {}: input/output error", path.display());
            Err(io::Error::other(text))
        }
        Some(DiskFault::Full) => Err(error(io::ErrorKind::StorageFull, doing, path)),
        Some(DiskFault::Denied) => Err(error(io::ErrorKind::PermissionDenied, doing, path)),
        Some(DiskFault::Descriptors) => {
            let of = io::Error::from_raw_os_error(24);
            Err(Named::error(format!("{doing} {}: {of}", path.display()), &of))
        }
    }
}

pub(super) fn error(kind: io::ErrorKind, doing: &str, path: &Path) -> io::Error {
    io::Error::new(kind, format!("{doing} {}: {kind}", path.display()))
}

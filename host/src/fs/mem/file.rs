//! Open files and held locks of the disk in memory.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::content::Inode;
use super::{Disk, DiskFault, error, guard, injected};
use crate::fs::{Dir, File, is_full};
use crate::rng::Rng;

/// Bytes of zeros written at a time where space cannot be reserved.
const ZEROS_BYTES: usize = 1 << 20;

pub(super) struct MemFile {
    pub(super) disk: Arc<Mutex<Disk>>,
    pub(super) inode: Arc<Mutex<Inode>>,
    pub(super) path: PathBuf,
    pub(super) boot: u64,
    pub(super) writable: bool,
}

pub(super) struct MemDir {
    pub(super) disk: Arc<Mutex<Disk>>,
    pub(super) path: PathBuf,
    pub(super) boot: u64,
}

pub(super) struct MemLock {
    pub(super) disk: Arc<Mutex<Disk>>,
    pub(super) path: PathBuf,
    pub(super) boot: u64,
}

impl File for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.live()?;
        disk.read("read", &self.path)?;
        let inode = guard(&self.inode);
        if inode.is_bad(offset..offset + buf.len() as u64) {
            disk.strike("bad sectors");
            injected(Some(DiskFault::Io), "read", &self.path)?;
        }
        drop(disk);
        Ok(inode.read(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.live_for_writing("write")?;
        let done = disk.op("write", &self.path);
        let mut inode = guard(&self.inode);
        if let Err(failed) = done {
            if disk.halt_after.is_none() {
                inode.write(&buf[..buf.len() / 2], offset);
            }
            return Err(failed);
        }
        let growth = (offset + buf.len() as u64).saturating_sub(inode.len());
        drop(inode);
        disk.check_space("write", &self.path, growth)?;
        guard(&self.inode).write(buf, offset);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.live()?;
        let done = disk.op("sync", &self.path);
        let mut inode = guard(&self.inode);
        match &done {
            Ok(()) => inode.sync(),
            Err(_) if disk.halt_after.is_some() => {}
            Err(error) if is_full(error) => inode.lose_partly(&mut Rng::new(disk.ops)),
            Err(_) => inode.lose(),
        }
        done
    }

    fn len(&self) -> io::Result<u64> {
        self.live()?.read("measure", &self.path)?;
        Ok(guard(&self.inode).len())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.live_for_writing("preallocate")?;
        disk.op("preallocate", &self.path)?;
        let have = guard(&self.inode).len();
        let growth = len.saturating_sub(have);
        disk.check_space("preallocate", &self.path, growth)?;
        let unreserved = disk.unreserved;
        drop(disk);
        match (growth, unreserved) {
            (0, _) => {}
            (_, false) => guard(&self.inode).set_len(len),
            (_, true) => {
                let zeros = vec![0; ZEROS_BYTES];
                for offset in (have..len).step_by(ZEROS_BYTES) {
                    let count = (len - offset).min(ZEROS_BYTES as u64);
                    self.write_at(&zeros[..count as usize], offset)?;
                }
            }
        }
        Ok(())
    }

    fn extend(&self, len: u64) -> io::Result<bool> {
        let mut disk = self.live_for_writing("preallocate")?;
        disk.op("preallocate", &self.path)?;
        let growth = len.saturating_sub(guard(&self.inode).len());
        disk.check_space("preallocate", &self.path, growth)?;
        if growth > 0 {
            guard(&self.inode).set_len(len);
        }
        Ok(!disk.unreserved)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.live_for_writing("truncate")?;
        disk.op("truncate", &self.path)?;
        guard(&self.inode).set_len(len);
        Ok(())
    }

    fn drop_cache(&self) {
        if self.live().is_ok() {
            guard(&self.inode).drop_cache();
        }
    }
}

impl Dir for MemDir {
    fn sync(&self) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        if disk.boot != self.boot {
            let what = "use of a directory from before the crash";
            return Err(error(io::ErrorKind::Other, what, &self.path));
        }
        disk.sync_dir(&self.path)
    }
}

impl MemFile {
    fn live(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = guard(&self.disk);
        if disk.boot != self.boot {
            return Err(error(
                io::ErrorKind::Other,
                "use of a file from before the crash",
                &self.path,
            ));
        }
        Ok(disk)
    }

    fn live_for_writing(&self, doing: &str) -> io::Result<MutexGuard<'_, Disk>> {
        if !self.writable {
            return Err(error(io::ErrorKind::PermissionDenied, doing, &self.path));
        }
        self.live()
    }
}

impl Drop for MemLock {
    fn drop(&mut self) {
        let mut disk = guard(&self.disk);
        if disk.boot == self.boot {
            disk.locks.remove(&self.path);
        }
    }
}

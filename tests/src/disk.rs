//! Small filesystems of their own for nodes: tmpfs of a fixed size, mounted for as long as the
//! value lives. Needs root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::FallocateFlags;

/// The file that something else fills the disk with.
const FILLER: &str = "filler";

/// It grows by so many bytes at a time, in the end by less.
const FILL_STEP: u64 = 16 << 20;
const FILL_LEAST: u64 = 16 << 10;

/// A mounted filesystem.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Mounts a filesystem of so many bytes on a directory, which is created.
    pub fn mount(dir: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(dir);
        let status = mount.status().context("starting mount")?;
        ensure!(status.success(), "mounting a filesystem needs root ({status}); run this as root");
        Ok(Self { dir: dir.to_owned() })
    }

    /// Bytes in use.
    pub fn used(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir).context("asking for free space")?;
        Ok((stat.f_blocks - stat.f_bavail) * stat.f_frsize)
    }

    /// Bytes that are free.
    pub fn free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir).context("asking for free space")?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Something else takes all but so many bytes.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let file = File::create(self.dir.join(FILLER)).context("creating the filler")?;
        let (mut taken, mut step) = (0, FILL_STEP);
        // The node writes meanwhile: what was free a moment ago may be so no more.
        while step >= FILL_LEAST {
            let free = self.free()?.saturating_sub(leave);
            step = step.min(free);
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), taken, step.max(1)) {
                Ok(()) => taken += step,
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
        Ok(())
    }

    /// It gives them back.
    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.dir.join(FILLER)).context("removing the filler")
    }

    /// All files are gone.
    pub fn wipe(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).context("listing a disk")? {
            let path = entry.context("listing a disk")?.path();
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is about to be killed may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

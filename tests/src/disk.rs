//! Small filesystems for nodes: a tmpfs, or an image of another kind on a loop device. Each is
//! mounted until its value is dropped. Needs root.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::FallocateFlags;

/// The file that fills the disk, as another program might.
const FILLER: &str = "filler";

/// By how much the filler grows at a time, and the least at the end.
const FILL_STEP: u64 = 16 << 20;
const FILL_LEAST: u64 = 16 << 10;
/// What is written to the filler until nothing more fits: blocks of these sizes, single bytes last.
const BLOCK_SIZES: [usize; 3] = [1 << 20, 4 << 10, 1];

/// A kind of filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filesystem {
    Tmpfs,
    Ext4,
    Xfs,
    Btrfs,
}

/// A mounted filesystem.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    image: Option<PathBuf>,
}

impl Filesystem {
    /// The filesystems that servers keep their data on.
    pub const REAL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The smallest size of such a filesystem that is usable for a node, bytes.
    pub fn least_bytes(self) -> u64 {
        match self {
            Self::Tmpfs | Self::Ext4 => 96 << 20,
            Self::Xfs => 320 << 20,
            Self::Btrfs => 160 << 20,
        }
    }

    /// The program that makes the filesystem, the package that has the program, and its arguments.
    fn mkfs(self) -> Option<(&'static str, &'static str, &'static [&'static str])> {
        match self {
            Self::Tmpfs => None,
            Self::Ext4 => Some(("mkfs.ext4", "e2fsprogs", &["-q", "-F"])),
            Self::Xfs => Some(("mkfs.xfs", "xfsprogs", &["-q", "-f"])),
            Self::Btrfs => Some(("mkfs.btrfs", "btrfs-progs", &["-q", "-f"])),
        }
    }

    /// What this machine lacks to mount one; `None` if nothing.
    pub fn lacks(self) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("mounting a filesystem needs root".to_owned());
        }
        let (program, package, _) = self.mkfs()?;
        if !Path::new("/dev/loop-control").exists() {
            return Some("there are no loop devices".to_owned());
        }
        let mut version = Command::new(program);
        version.arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_err().then(|| format!("{program} is not installed (package {package})"))
    }
}

impl Disk {
    /// Creates a directory and mounts a filesystem of this many bytes on it. The image, if there is
    /// one, lies beside the directory.
    pub fn mount(dir: &Path, kind: Filesystem, bytes: u64) -> Result<Self> {
        if let Some(what) = kind.lacks() {
            bail!("{}: {what}", kind.name());
        }
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let mut mount = Command::new("mount");
        let image = match kind.mkfs() {
            None => {
                mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]);
                None
            }
            Some((program, _, arguments)) => {
                let image = dir.with_extension("img");
                let file = File::create(&image).context("creating an image")?;
                file.set_len(bytes).context("making an image as large as the disk")?;
                run(Command::new(program).args(arguments).arg(&image))?;
                mount.args(["-o", "loop"]).arg(&image);
                Some(image)
            }
        };
        run(mount.arg(dir))?;
        Ok(Self { dir: dir.to_owned(), image })
    }

    /// Bytes in use.
    pub fn used(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir).context("asking for free space")?;
        Ok((stat.f_blocks - stat.f_bavail) * stat.f_frsize)
    }

    /// Free bytes.
    pub fn free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir).context("asking for free space")?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Fills the disk with a file, except for this many bytes.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let file = File::create(self.dir.join(FILLER)).context("creating the filler")?;
        let (mut taken, mut step) = (0, FILL_STEP);
        // The node writes meanwhile, so what was free a moment ago may be taken now.
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

    /// Writes to the filler until not one more byte fits, which also takes what became free since
    /// the last time.
    pub fn fill_to_the_last_byte(&self) -> Result<()> {
        let path = self.dir.join(FILLER);
        let mut file = match OpenOptions::new().create(true).append(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            opened => opened.context("opening the filler")?,
        };
        for size in BLOCK_SIZES {
            let block = vec![b'x'; size];
            loop {
                match file.write_all(&block) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("filling the disk"),
                }
            }
        }
        // The filler need not be durable, so it does not matter if this fails.
        let _full = file.sync_all();
        Ok(())
    }

    /// Removes the filler.
    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.dir.join(FILLER)).context("removing the filler")
    }

    /// Removes all files.
    pub fn wipe(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).context("listing a disk")? {
            let path = entry.context("listing a disk")?.path();
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A lazy unmount, because a process that is about to be killed may still have files open.
        // The loop device is released when the last of them is closed.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        if let Some(image) = &self.image {
            let _ = fs::remove_file(image);
        }
    }
}

/// Runs a program; fails with its error output if it fails.
fn run(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?} failed ({}): {}", done.status, said.trim());
    Ok(())
}

//! Small filesystems of their own for nodes: a tmpfs, or an image of another one on a loop device,
//! mounted for as long as the value lives. Needs root.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::FallocateFlags;

/// The file that something else fills the disk with.
const FILLER: &str = "filler";

/// It grows by so many bytes at a time, in the end by less.
const FILL_STEP: u64 = 16 << 20;
const FILL_LEAST: u64 = 16 << 10;
/// What is written at a time until nothing more fits: blocks of this size, then single bytes.
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
    /// Those that servers keep their data on.
    pub const REAL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The smallest that can be made and is of use, bytes.
    pub fn least_bytes(self) -> u64 {
        match self {
            Self::Tmpfs | Self::Ext4 => 96 << 20,
            Self::Xfs => 320 << 20,
            Self::Btrfs => 160 << 20,
        }
    }

    /// The program that makes it, the package that has that program, and how it is called.
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
    /// Mounts a filesystem of so many bytes on a directory, which is created. Its image, if it
    /// needs one, lies beside that.
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

    /// Something else writes until not a byte more fits, and takes what became free since the last
    /// time.
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
        // What it cannot keep it need not keep.
        let _full = file.sync_all();
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
        // Lazily: a process that is about to be killed may still have files open. The loop device
        // goes with the last of them.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        if let Some(image) = &self.image {
            let _ = fs::remove_file(image);
        }
    }
}

/// Runs a program that says nothing if it succeeds.
fn run(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?} failed ({}): {}", done.status, said.trim());
    Ok(())
}

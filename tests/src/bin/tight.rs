//! `cargo xtask tight`: see `lockstep_tests::tight`.

use std::process::ExitCode;

use anyhow::Result;
use lockstep_tests::cli::{self, Options};
use lockstep_tests::disk::Filesystem;
use lockstep_tests::filled;
use lockstep_tests::tell::Teller;
use lockstep_tests::tight::{self, Plan};

const HELP: &str = "\
usage: cargo xtask tight [--mib N] [--cycles N] [--fills N] [--filled] [--quick]

Three nodes, each on a disk of 2.3 times its state (a tmpfs; needs root): snapshots under load, with
a follower wiped every tenth time, and nobody may be short of room. Then something else fills the
disks: commands must stop and come back by themselves, and nothing acknowledged may be lost. The
same, to the last byte and with a node started in between, on images of ext4, xfs and btrfs.

  --mib N     size of the state, MiB (512)
  --cycles N  snapshots (200)
  --fills N   how often the disks are filled, of each filesystem (20)
  --filled    only ext4, xfs and btrfs
  --quick     only ext4, xfs and btrfs, once, on small images; what is missing here is left out
  --ext4, --xfs, --btrfs
              only that one";

const NUMBERS: [(&str, u64); 3] = [("mib", 512), ("cycles", 200), ("fills", 20)];
const FLAGS: [&str; 5] = ["filled", "quick", "ext4", "xfs", "btrfs"];
/// Bytes of an image, unless it has to be quick.
const IMAGE_BYTES: u64 = 320 << 20;

fn main() -> ExitCode {
    cli::main(HELP, &NUMBERS, &FLAGS, run)
}

async fn run(options: Options) -> Result<()> {
    let fills = u32::try_from(options.number("fills"))?;
    let quick = options.flag("quick");
    let one = Filesystem::REAL.into_iter().find(|kind| options.flag(kind.name()));
    if !quick && !options.flag("filled") && one.is_none() {
        let plan = Plan {
            state_bytes: options.number("mib") << 20,
            cycles: u32::try_from(options.number("cycles"))?,
            fills,
        };
        let mut tell = Teller::new("Snapshots on disks that are little more than two of them");
        tight::run(plan, &mut tell).await?;
    }
    let mut tell = Teller::new("Disks that something else fills to the last byte");
    for filesystem in Filesystem::REAL.into_iter().filter(|kind| one.is_none_or(|one| one == *kind))
    {
        match filesystem.lacks() {
            Some(what) if quick => tell.say(format!("NOT RUN on {}: {what}", filesystem.name())),
            Some(_) | None => {
                let (disk_bytes, fills) = match quick {
                    true => (filesystem.least_bytes(), 1),
                    false => (IMAGE_BYTES, fills),
                };
                filled::run(filled::Plan { filesystem, disk_bytes, fills }, &mut tell).await?;
            }
        }
    }
    Ok(())
}

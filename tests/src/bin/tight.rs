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

Three nodes, each on a disk of 2.3 times its state (a tmpfs; needs root), take snapshots under load.
Every tenth time a follower is wiped, and no node may run out of space. Then the disks are filled:
commands must stop and resume by themselves, and nothing acknowledged may be lost. The same follows
on images of ext4, xfs and btrfs, filled to the last byte, with a node started while they are full.

  --mib N     size of the state, MiB (512)
  --cycles N  snapshots (200)
  --fills N   how often the disks of each filesystem are filled (20)
  --filled    only ext4, xfs and btrfs
  --quick     only ext4, xfs and btrfs, once, on small images; without those that this machine
              cannot mount
  --ext4, --xfs, --btrfs
              only that one";

const NUMBERS: [(&str, u64); 3] = [("mib", 512), ("cycles", 200), ("fills", 20)];
const FLAGS: [&str; 5] = ["filled", "quick", "ext4", "xfs", "btrfs"];
/// Bytes of an image, unless `--quick` is given.
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
        let mut tell = Teller::new("Snapshots on disks that are hardly larger than two of them");
        tight::run(plan, &mut tell).await?;
    }
    let mut tell = Teller::new("Disks that are filled to the last byte");
    for filesystem in Filesystem::REAL.into_iter().filter(|kind| one.is_none_or(|one| one == *kind))
    {
        match filesystem.lacks() {
            Some(what) if quick => tell.say(format!("NOT RUN on {}: {what}", filesystem.name())),
            Some(_) | None => {
                let (disk_bytes, fills) =
                    if quick { (filesystem.least_bytes(), 1) } else { (IMAGE_BYTES, fills) };
                filled::run(filled::Plan { filesystem, disk_bytes, fills }, &mut tell).await?;
            }
        }
    }
    Ok(())
}

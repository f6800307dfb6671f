//! How fast snapshots are compared with the plain disk: writing one until it is sealed, compared
//! with `dd conv=fdatasync`, and restoring it with cold caches, compared with a plain cold read.
//! Native guests, real files, rounds that alternate. `cargo xtask bench snapshots [MIB]`.
//!
//! Two guests restore: one only looks at the bytes, so that the figure is the host's; the other
//! fills fresh memory with them, as a real state does.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use lockstep_core::entry::{Bootstrap, Profile};
use lockstep_core::ids::{GroupId, NodeId, ReplicaId};
use lockstep_core::limits;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::{Configuration, SnapshotDesc};
use lockstep_host::fs::{DiskFs, Fs};
use lockstep_host::guest::native::{NativeMachine, NativeModule};
use lockstep_host::guest::{Context, Guest, GuestLog, GuestModule, Outcome, SnapshotHeader};
use lockstep_host::store::{Budget, BudgetLimits, Identity, LocalHeader, SnapshotStore, Use};

const GROUP: &str = "bench";
const CLUSTER: [u8; 16] = [1; 16];
const ROUNDS: usize = 5;

/// The results of one round, in MiB/s.
struct Round {
    write: f64,
    dd: f64,
    verify: f64,
    restore: f64,
    fill: f64,
    read: f64,
}

/// A guest that looks at the bytes that it restores, and keeps nothing.
struct Looks(u64);

impl NativeMachine for Looks {
    fn init(&mut self, _: Context, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn apply(&mut self, _: Context, _: &[u8]) -> Result<Outcome, String> {
        Err("it takes no commands".to_owned())
    }

    fn query(&self, _: Context, _: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
        Ok(Ok(self.0.to_string().into()))
    }

    fn snapshot(&self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn restore(&mut self, _: &[u8], input: &mut dyn Read) -> io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            match input.read(&mut buffer)? {
                0 => return Ok(()),
                count => self.0 += u64::from(buffer[count / 2]),
            }
        }
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

fn main() -> Result<()> {
    // cargo passes `--bench`, which is no number.
    let mib = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1024_usize);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no parent directory")?;
    let dir = root.join("target/bench/snapshots");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    println!("snapshots of {mib} MiB, {ROUNDS} rounds, files in {}", dir.display());
    let module = NativeModule::ballast(mib << 20);
    let mut guest = module
        .instantiate(&bootstrap(&module), &GuestLog::of_no_group())
        .map_err(anyhow::Error::new)?;
    guest.init(Context { index: 1, time_ms: 0, seed: (1, 2) }, b"")?;
    let rounds = (0..ROUNDS)
        .map(|number| round(&dir, &module, &mut *guest, number, mib))
        .collect::<Result<Vec<_>>>()?;
    std::fs::remove_dir_all(&dir)?;
    let median = |of: fn(&Round) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (write, dd) = (median(|r| r.write), median(|r| r.dd));
    let (restore, read) = (median(|r| r.restore), median(|r| r.read));
    println!("\nmedians, MiB/s");
    println!(
        "write to seal       {write:8.0}   dd conv=fdatasync {dd:8.0}   ratio {:.2}",
        write / dd
    );
    println!(
        "restore, cold       {restore:8.0}   cold read         {read:8.0}   ratio {:.2}",
        restore / read
    );
    println!("restore into fresh memory {:.0}", median(|r| r.fill));
    println!("read-back, by itself      {:.0}", median(|r| r.verify));
    for (what, ratio) in [("write", write / dd), ("restore", restore / read)] {
        let checkpoint = if ratio >= 0.7 { "✓" } else { "✗" };
        println!("{checkpoint} {what}: {ratio:.2}, goal 0.70");
    }
    Ok(())
}

fn bootstrap(module: &NativeModule) -> Bootstrap {
    Bootstrap {
        module: module.id(),
        config: Bytes::new(),
        seed: [0; 16],
        profile: Profile { engine_major: 0, ..Profile::default() },
        initial_voters: Vec::new(),
    }
}

fn round(
    dir: &Path,
    module: &NativeModule,
    guest: &mut dyn Guest,
    number: usize,
    mib: usize,
) -> Result<Round> {
    let plain = dir.join("plain");
    let dd = write_plain(&plain, mib)?;
    let snap = dir.join("snap");
    let mut store = open(&snap)?;

    let index = number as u64 + 1;
    let began = Instant::now();
    let reservation = store.reserve_local(LocalHeader {
        term: 1,
        index,
        module: module.id(),
        format: 1,
        configuration: Configuration::of_voters([ReplicaId::new(NodeId(1), 1)]),
        estimate: guest.memory_bytes() + limits::SNAPSHOT_BLOCK_BYTES as u64,
        growable: true,
        gain: 0,
    })?;
    let mut writer = store.create(reservation)?;
    guest.snapshot(&mut writer)?.context("writing a snapshot")?;
    let staged = store.seal(writer.finish()?)?;
    let write = rate(mib, began);
    let began = Instant::now();
    let mut verified = staged.verify(&mut || ())?;
    let verify = rate(mib, began);
    verified.hold.disarm();
    let desc = verified.desc.clone();
    store.list_durable(std::slice::from_ref(&desc), &[]);

    drop_caches()?;
    let began = Instant::now();
    read_plain(&plain)?;
    let read = rate(mib, began);
    drop_caches()?;
    let looks = NativeModule::new("looks", || Looks(0));
    let restored = restore(&mut store, &looks, &desc, mib)?;
    drop_caches()?;
    let fill = restore(&mut store, module, &desc, mib)?;
    store.list_durable(&[], &[]);
    std::fs::remove_file(&plain)?;
    println!(
        "round {}: write {write:.0}, dd {dd:.0}, read-back {verify:.0}, restore {restored:.0}, \
         into fresh memory {fill:.0}, read {read:.0} MiB/s",
        number + 1
    );
    Ok(Round { write, dd, verify, restore: restored, fill, read })
}

fn open(dir: &Path) -> Result<SnapshotStore> {
    let fs: Arc<dyn Fs> = Arc::new(DiskFs);
    let limits = BudgetLimits {
        bytes: u64::MAX,
        headroom_bytes: 0,
        log_device: None,
        inbound: 1,
        outbound: 1,
        captures: 1,
        restores: 1,
    };
    let quota = Budget::new(limits).quota(u64::MAX);
    let identity = Identity { cluster: CLUSTER, group: GroupId::of_name(GROUP) };
    let state = RecoveryState::blank(GROUP, ReplicaId::new(NodeId(1), 1));
    Ok(SnapshotStore::open(fs, PathBuf::from(dir), identity, quota, &state)?.0)
}

fn restore(
    store: &mut SnapshotStore,
    module: &NativeModule,
    desc: &SnapshotDesc,
    mib: usize,
) -> Result<f64> {
    let mut fresh = module
        .instantiate(&bootstrap(module), &GuestLog::of_no_group())
        .map_err(anyhow::Error::new)?;
    let info = module.info();
    let header = SnapshotHeader {
        writer_name: info.name.clone(),
        writer_version: info.version.clone(),
        format: 1,
        index: desc.index,
        time_ms: 0,
    };
    let began = Instant::now();
    let mut reader = store.open_object(desc, Use::Restoring)?;
    fresh.restore(&header, b"", &mut reader)?;
    std::io::copy(&mut reader, &mut std::io::sink())?;
    Ok(rate(mib, began))
}

fn rate(mib: usize, began: Instant) -> f64 {
    mib as f64 / began.elapsed().as_secs_f64()
}

fn write_plain(file: &Path, mib: usize) -> Result<f64> {
    let began = Instant::now();
    let status = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "conv=fdatasync"])
        .arg(format!("of={}", file.display()))
        .arg(format!("count={mib}"))
        .stderr(Stdio::null())
        .status()
        .context("starting dd")?;
    ensure!(status.success(), "dd ended with {status}");
    Ok(rate(mib, began))
}

fn read_plain(file: &Path) -> Result<()> {
    let mut file = File::open(file)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Drops the system's caches, so that data is read from the disk. Needs root.
fn drop_caches() -> Result<()> {
    let status = Command::new("sync").status().context("starting sync")?;
    ensure!(status.success(), "sync ended with {status}");
    std::fs::write("/proc/sys/vm/drop_caches", "3\n")
        .context("dropping the caches of the machine: run this as root")
}

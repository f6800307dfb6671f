//! What a log of many groups costs: bytes written per byte of payload, bytes of files per live
//! byte, and how long appends and `stats()` take, on real files. `cargo xtask bench log [MIB]`.
//!
//! 200 groups keep MIB MiB or more each, in segments of MIB MiB. It runs once with groups that
//! append equally often, and once with some that append seldom and so keep old segments alive.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use lockstep_core::ids::{Digest, GroupId, ModuleId, NodeId, ReplicaId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::{Configuration, SnapshotDesc};
use lockstep_core::wal::LogJob;
use lockstep_host::fs::DiskFs;
use lockstep_host::wal::{Wal, WalOptions};
use raft::eraftpb::Entry;

const GROUPS: u64 = 200;
/// Bytes of an entry. Smaller entries would mostly measure the padding of batches to blocks.
const ENTRY_BYTES: usize = 16 << 10;
/// Jobs of a round, each for another group: about one batch.
const JOBS: u64 = 8;
/// Entries are appended until there are this many times the live bytes.
const TURNS: u64 = 3;

/// How often groups append.
#[derive(Clone, Copy, PartialEq)]
enum Load {
    Alike,
    Uneven,
}

struct Groups {
    chance: u64,
    /// For each group, its first index and its next one.
    places: Vec<(u64, u64)>,
    /// How many entries a group keeps at least, and how many it cuts off at a time.
    keep: u64,
    load: Load,
}

fn main() -> Result<()> {
    let mib = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let mib: u64 = mib.map_or(Ok(4), |mib| mib.parse()).context("MIB must be a number")?;
    ensure!(mib >= 4, "MIB must be at least 4, the size of the smallest segment");
    let dir = PathBuf::from("target/bench/log");
    println!(
        "log: {GROUPS} groups of at least {mib} MiB, segments of {mib} MiB, entries of 16 KiB"
    );
    for load in [Load::Alike, Load::Uneven] {
        measure(&dir, mib << 20, load)?;
    }
    std::fs::remove_dir_all(&dir).context("removing the log")
}

fn measure(dir: &Path, bytes: u64, load: Load) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).context("removing an earlier log")?;
    }
    let options = WalOptions::new([1; 16], NodeId(1), bytes, 1);
    let (mut wal, _none) = Wal::open(Arc::new(DiskFs), dir, options)?;
    let places = vec![(1, 1); GROUPS as usize];
    let keep = bytes / ENTRY_BYTES as u64;
    let mut groups = Groups { chance: 1, places, keep, load };
    let (mut payload, mut most) = (0, 0.0_f64);
    let (mut appends, mut cleaning) = (Vec::new(), Duration::ZERO);
    while payload < TURNS * GROUPS * bytes * 3 / 2 {
        let jobs = groups.jobs();
        payload += (jobs.len() * ENTRY_BYTES) as u64;
        let began = Instant::now();
        wal.append(&jobs, &mut |_jobs| {})?;
        appends.push(began.elapsed());
        let began = Instant::now();
        while wal.housekeep()? {}
        cleaning += began.elapsed();
        let stats = wal.stats();
        most = most.max((stats.bytes as f64 - 4.0 * bytes as f64) / stats.live as f64);
    }
    let stats = wal.stats();
    appends.sort_unstable();
    let at = |part: f64| appends[(part * (appends.len() - 1) as f64) as usize].as_secs_f64() * 1e3;
    let name = if load == Load::Alike { "alike" } else { "uneven" };
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{name}: {:.3} bytes written per byte ({} MiB, {} MiB of it moved), {} MiB live, files at \
         most {most:.2} times that and four segments",
        stats.written_bytes as f64 / payload as f64,
        mib(stats.written_bytes),
        mib(stats.moved_bytes),
        mib(stats.live),
    );
    let written = stats.written_bytes as f64 / payload as f64;
    ensure!(written <= 1.3, "{name}: {written:.3} bytes were written per byte, of at most 1.3");
    // Where most bytes live for ever, files may be larger: see decision 0031.
    ensure!(
        load == Load::Uneven || most <= 2.0,
        "{name}: files had {most:.2} times the live bytes"
    );
    println!(
        "{name}: append p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; cleaning between them {:.1} s",
        at(0.5),
        at(0.99),
        at(1.0),
        cleaning.as_secs_f64()
    );
    let began = Instant::now();
    for _ in 0..1000 {
        std::hint::black_box(wal.stats());
    }
    // Of a thousand calls, seconds are what milliseconds are of one.
    let stats_ms = began.elapsed().as_secs_f64();
    println!("{name}: stats() {stats_ms:.3} ms");
    ensure!(stats_ms < 1.0, "{name}: stats() takes {stats_ms:.3} ms");
    while wal.housekeep()? || wal.seal_idle()? {}
    let before = wal.stats().written_bytes;
    for _ in 0..1000 {
        ensure!(!wal.housekeep()? && !wal.seal_idle()?, "an idle log still has work to do");
    }
    println!("{name}: {} bytes written while idle", wal.stats().written_bytes - before);
    Ok(())
}

impl Groups {
    fn below(&mut self, bound: u64) -> u64 {
        let next = self.chance.wrapping_mul(0x5851_f42d_4c95_7f2d);
        self.chance = next.wrapping_add(0x1405_7b7e_f767_814f);
        (self.chance >> 33) % bound
    }

    fn jobs(&mut self) -> Vec<LogJob> {
        let mut chosen: Vec<u64> = (0..JOBS)
            .map(|_| match self.load {
                Load::Alike => self.below(GROUPS),
                Load::Uneven => self.below(GROUPS).min(self.below(GROUPS)),
            })
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen.into_iter().map(|group| self.job(group)).collect()
    }

    /// A job with one entry for a group. Once the group has twice what it keeps, the job also cuts
    /// off the older half, as checkpoints do.
    fn job(&mut self, group: u64) -> LogJob {
        let (first, next) = &mut self.places[group as usize];
        let data = Bytes::from(vec![group as u8; ENTRY_BYTES]);
        let entry = Entry { index: *next, term: 1, data, ..Entry::default() };
        *next += 1;
        if *next - *first >= 2 * self.keep {
            *first = *next - self.keep;
        }
        let mut state = RecoveryState::blank("bench", ReplicaId(group + 1));
        (state.first_index, state.commit) = (*first, entry.index - 1);
        if *first > 1 {
            (state.previous_term, state.term) = (1, 1);
            state.snapshots.push(SnapshotDesc {
                term: 1,
                index: *first - 1,
                length: 0,
                digest: Digest([0; 32]),
                module: ModuleId([0; 32]),
                format: 0,
                configuration: Configuration::default(),
            });
        }
        LogJob { group: GroupId(group + 1), state, entries: vec![entry] }
    }
}

//! Measures a state machine: commands in entries of several sizes, and snapshots.
//!
//! - Time is that of the guest's calls and of the ledger's work for them, on this machine and with
//!   nothing beside them: no network, no disk, no raft.
//! - Fuel is the same on every machine, so it is what a regression test should look at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::fault::GuestFault;

use super::compare;
use super::player::{ConfigRefused, Looks, Maker, Player, entry_space};
use super::source::{Source, SourceError};
use crate::guest::Outcome;
use crate::rng::Rng;

/// Commands in an entry.
pub const BATCHES: [usize; 3] = [1, 16, 128];
/// Commands made up before anything is measured; they are used again and again.
const COMMANDS: usize = 4096;
/// How often a snapshot is taken and restored; the fastest counts.
const SNAPSHOTS: usize = 3;
/// The log's time between two entries, ms.
const ENTRY_MS: u64 = 1;

/// Entries of one size.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    pub commands_in_entry: usize,
    pub commands: u64,
    pub ns_per_command: f64,
    pub fuel_per_command: u64,
}

/// What was measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    pub batches: Vec<Batch>,
    pub commands: u64,
    /// Commands that were refused: measuring little else says little.
    pub rejected: u64,
    /// A refusal, for the author to see why.
    pub refusal: Option<String>,
    pub snapshot_bytes: u64,
    pub snapshot: Duration,
    pub restore: Duration,
    pub memory_bytes: u64,
}

/// Why nothing was measured.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{0}")]
    Source(#[from] SourceError),
    #[error(transparent)]
    Refused(ConfigRefused),
    #[error("the state machine failed: {0}; `lockstep test` finds a small case")]
    Guest(GuestFault),
}

impl From<GuestFault> for BenchError {
    fn from(fault: GuestFault) -> Self {
        ConfigRefused::of(fault).map_or_else(Self::Guest, Self::Refused)
    }
}

/// Measures; each size of entries for about as long as `each`.
pub fn run(
    maker: &Arc<Maker>,
    source: &mut Source,
    seed: u64,
    each: Duration,
) -> Result<Measured, BenchError> {
    let mut rng = Rng::new(seed);
    let commands = (0..COMMANDS).map(|_| source.command(&mut rng));
    let commands = commands.collect::<Result<Vec<Bytes>, _>>()?;
    let mut player = Player::new(maker, Looks::AsServer);
    player.play(&maker.first_entry())?;
    let mut measured = Measured {
        batches: Vec::new(),
        commands: 0,
        rejected: 0,
        refusal: None,
        snapshot_bytes: 0,
        snapshot: Duration::MAX,
        restore: Duration::MAX,
        memory_bytes: 0,
    };
    for size in BATCHES {
        let batch = measure(&mut player, &commands, size, each, &mut measured)?;
        measured.batches.push(batch);
    }
    for _ in 0..SNAPSHOTS {
        let began = Instant::now();
        let saved = player.save()?;
        measured.snapshot = measured.snapshot.min(began.elapsed());
        measured.snapshot_bytes = saved.bytes.len() as u64;
        let began = Instant::now();
        Player::restored(maker, Looks::AsServer, &saved)?;
        measured.restore = measured.restore.min(began.elapsed());
    }
    measured.memory_bytes = player.memory_bytes();
    Ok(measured)
}

fn measure(
    player: &mut Player,
    commands: &[Bytes],
    size: usize,
    each: Duration,
    measured: &mut Measured,
) -> Result<Batch, GuestFault> {
    let (mut time, mut fuel, mut count) = (Duration::ZERO, 0, 0);
    let mut rest = commands.iter().cycle();
    let began = Instant::now();
    while began.elapsed() < each {
        let time_ms = player.ledger().log_time_ms() + ENTRY_MS;
        let mut fits = entry_space();
        let next = rest.by_ref().take(size).take_while(|command| fits(command));
        let entry = player.entry_of(time_ms, &next.cloned().collect::<Vec<_>>());
        let started = Instant::now();
        let trace = player.play(&entry)?;
        time += started.elapsed();
        fuel += trace.fuel;
        count += trace.outcomes.len() as u64;
        for outcome in &trace.outcomes {
            if matches!(outcome, Outcome::Rejected(_)) {
                measured.rejected += 1;
                measured.refusal.get_or_insert_with(|| compare::outcome(outcome));
            }
        }
        if let Some(entry) = player.wake_entry(time_ms) {
            player.play(&entry)?;
        }
    }
    measured.commands += count;
    Ok(Batch {
        commands_in_entry: size,
        commands: count,
        ns_per_command: time.as_nanos() as f64 / count.max(1) as f64,
        fuel_per_command: fuel / count.max(1),
    })
}

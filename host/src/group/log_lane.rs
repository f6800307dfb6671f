//! The log lane: one thread per node that turns whatever all groups queued into one write and one
//! fdatasync.
//!
//! - Jobs of one group become durable in the order they came.
//! - After a failed write the log is dead (N19): every group is told once, and nothing is tried
//!   again.
//! - An idle log proves within [`limits::LOG_IDLE_SEAL_MS`] that its last batch is whole.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_core::fault::Fault;
use lockstep_core::group::Event;
use lockstep_core::ids::GroupId;
use lockstep_core::limits;
use lockstep_core::wal::LogJob;

use crate::group::{GroupHandle, panic_text};
use crate::wal::{Wal, WalReader, WalStats};

/// One batch of one group, and who is told of it.
pub(crate) struct PersistJob {
    pub seq: u64,
    pub job: LogJob,
    pub group: GroupHandle,
}

/// The way to the log lane.
#[derive(Clone)]
pub(crate) struct LogLane {
    jobs: mpsc::Sender<PersistJob>,
    reader: WalReader,
    stats: Arc<Mutex<WalStats>>,
}

/// Bytes of entries taken into one round; the rest waits for the next.
const ROUND_BYTES_MAX: usize = 2 * limits::LOG_BATCH_BYTES_MAX;

impl LogLane {
    /// Starts the lane; it ends when the last handle is dropped and everything queued is durable.
    pub(crate) fn start(wal: Wal) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel();
        let stats = Arc::new(Mutex::new(wal.stats()));
        let lane = Self { jobs, reader: wal.reader(), stats: Arc::clone(&stats) };
        let thread = std::thread::Builder::new()
            .name("log-lane".to_owned())
            .spawn(move || run(wal, &queue, &stats))?;
        Ok((lane, thread))
    }

    pub(crate) fn persist(&self, job: PersistJob) {
        // The lane is gone only after a failure that every group was told of.
        let _ = self.jobs.send(job);
    }

    pub(crate) fn reader(&self) -> WalReader {
        self.reader.clone()
    }

    pub(crate) fn stats(&self) -> WalStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn run(mut wal: Wal, queue: &mpsc::Receiver<PersistJob>, stats: &Mutex<WalStats>) {
    let served = catch_unwind(AssertUnwindSafe(|| serve(&mut wal, queue, stats)));
    let why = match served {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_text(&*panic),
    };
    tracing::error!(why, "the log failed; every group of this node stops");
    // Whoever comes now is told too, until the last handle is gone.
    for job in queue {
        job.group.raise(Event::Faulted(Fault::Log(why.clone())));
    }
}

/// Works until the last handle is dropped, or the log fails and all known groups are told.
fn serve(
    wal: &mut Wal,
    queue: &mpsc::Receiver<PersistJob>,
    stats: &Mutex<WalStats>,
) -> Result<(), crate::wal::WalError> {
    let idle = Duration::from_millis(limits::LOG_IDLE_SEAL_MS);
    let mut known: BTreeMap<GroupId, GroupHandle> = BTreeMap::new();
    let mut counted = Instant::now();
    loop {
        let result = match queue.recv_timeout(idle) {
            Ok(first) => {
                let round = gather(first, queue);
                known.extend(round.iter().map(|job| (job.group.id(), job.group.clone())));
                write(wal, round)
            }
            Err(RecvTimeoutError::Timeout) => tend(wal),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        if let Err(error) = result {
            for group in known.values() {
                group.raise(Event::Faulted(Fault::Log(error.to_string())));
            }
            return Err(error);
        }
        // Counting looks at the whole index: not for every batch.
        if counted.elapsed() >= idle {
            *stats.lock().unwrap_or_else(PoisonError::into_inner) = wal.stats();
            counted = Instant::now();
        }
    }
}

/// Everything that queued meanwhile, up to a bound.
fn gather(first: PersistJob, queue: &mpsc::Receiver<PersistJob>) -> Vec<PersistJob> {
    let cost =
        |job: &PersistJob| job.job.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
    let mut bytes = cost(&first);
    let mut round = vec![first];
    while bytes < ROUND_BYTES_MAX {
        let Ok(next) = queue.try_recv() else { break };
        bytes += cost(&next);
        round.push(next);
    }
    round
}

fn write(wal: &mut Wal, round: Vec<PersistJob>) -> Result<(), crate::wal::WalError> {
    let mut told: BTreeMap<GroupId, (GroupHandle, u64)> = BTreeMap::new();
    let mut jobs = Vec::with_capacity(round.len());
    for PersistJob { seq, job, group } in round {
        told.insert(group.id(), (group, seq));
        jobs.push(job);
    }
    wal.append(&jobs)?;
    for (group, seq) in told.into_values() {
        group.raise(Event::Persisted { seq });
    }
    Ok(())
}

/// What an idle lane does: seal the last batch, keep a reserve segment ready.
fn tend(wal: &mut Wal) -> Result<(), crate::wal::WalError> {
    wal.seal_idle()?;
    wal.ensure_reserve()?;
    Ok(())
}

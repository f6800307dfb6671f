//! The log lane: one thread per node that turns whatever all groups queued into one write and one
//! fdatasync.
//!
//! - Jobs of one group become durable in the order they came.
//! - After a failed write the log is dead (N19): every group is told once, and nothing is tried
//!   again. A job that does not fit its group's log ends that group, and no other.
//! - A full disk is no failure: what cannot be written yet waits, and the groups hear of the
//!   shortage while there is still room for what is under way.
//! - A damaged segment is told to each group whose entries keep it, so that it can go.
//! - Whether the thread hangs in an operation is seen from outside ([`DiskWatch`]): it can say
//!   nothing itself.
//! - An idle log proves within [`limits::LOG_IDLE_SEAL_MS`] that its last batch is whole.
//!
//! [`LogWriter`] is what the lane does, a step at a time; the thread around it only waits.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_core::fault::{Fault, Shortage};
use lockstep_core::group::Event;
use lockstep_core::ids::GroupId;
use lockstep_core::limits;
use lockstep_core::mutant::planted;
use lockstep_core::wal::LogJob;
use prometheus_client::metrics::histogram::Histogram;

use crate::group::disk_watch::{DiskWatch, Hanging};
use crate::group::{GroupHandle, panic_text};
use crate::wal::{Wal, WalError, WalReader, WalStats};

/// The log, and whom it owes a word.
pub struct LogWriter {
    wal: Wal,
    /// The last batch of each group that waits for room.
    owed: BTreeMap<GroupId, u64>,
    short: bool,
    /// Damaged segments that the groups were told of.
    damaged: BTreeSet<u64>,
    /// Groups of which a job was refused. What they queued before they heard of it goes nowhere.
    refused: BTreeSet<GroupId>,
}

/// What a step of the log lane led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogOutput {
    /// Every batch of the group up to this one is durable.
    Persisted { group: GroupId, seq: u64 },
    /// How the disk stands, for every group.
    Room(Option<Shortage>),
    /// Of the group's log what is below this index has to go: it keeps a damaged segment.
    Damaged { group: GroupId, below: u64 },
    /// The group's job does not fit its log; the others go on.
    Refused { group: GroupId, why: String },
}

impl LogWriter {
    pub fn new(wal: Wal) -> Self {
        let (owed, damaged, refused) = Default::default();
        Self { wal, owed, short: false, damaged, refused }
    }

    pub fn reader(&self) -> WalReader {
        self.wal.reader()
    }

    pub fn stats(&self) -> WalStats {
        self.wal.stats()
    }

    /// Whether jobs wait for room: nothing more may be written until [`LogWriter::tend`] got it.
    pub fn is_stalled(&self) -> bool {
        self.wal.is_stalled()
    }

    /// Makes a round of jobs durable. An error is the end of the log.
    pub fn write(&mut self, mut round: Vec<(u64, LogJob)>) -> Result<Vec<LogOutput>, WalError> {
        let mut outputs = Vec::new();
        round.retain(|(_, job)| !self.refused.contains(&job.group));
        self.owed = round.iter().map(|(seq, job)| (job.group, *seq)).collect();
        let mut jobs: Vec<LogJob> = round.into_iter().map(|(_, job)| job).collect();
        loop {
            match self.wal.append(&jobs) {
                Ok(_) => {
                    self.pay(&mut outputs);
                    break;
                }
                Err(WalError::Full { .. }) => {
                    if planted("acknowledge_when_full") {
                        self.pay(&mut outputs);
                    }
                    break;
                }
                Err(WalError::Refused { group, reason }) => {
                    jobs.retain(|job| job.group != group);
                    self.owed.remove(&group);
                    self.refused.insert(group);
                    outputs.push(LogOutput::Refused { group, why: reason });
                }
                Err(error) => return Err(error),
            }
        }
        self.look(&mut outputs);
        Ok(outputs)
    }

    /// What an idle or stalled lane does: go on with what waits, seal the last batch, keep the
    /// spare files ready.
    pub fn tend(&mut self) -> Result<Vec<LogOutput>, WalError> {
        let mut outputs = Vec::new();
        self.wal.ensure_reserve()?;
        if self.wal.is_stalled() {
            match self.wal.resume() {
                Ok(()) => self.pay(&mut outputs),
                Err(WalError::Full { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.wal.seal_idle()?;
        self.look(&mut outputs);
        Ok(outputs)
    }

    fn pay(&mut self, outputs: &mut Vec<LogOutput>) {
        let owed = std::mem::take(&mut self.owed);
        outputs.extend(owed.into_iter().map(|(group, seq)| LogOutput::Persisted { group, seq }));
    }

    fn look(&mut self, outputs: &mut Vec<LogOutput>) {
        let shortage = self.wal.shortage();
        if shortage.is_some() || (self.short && !planted("full_for_ever")) {
            self.short = shortage.is_some();
            outputs.push(LogOutput::Room(shortage));
        }
        let damaged = self.wal.damaged();
        if let Some(newest) = damaged.difference(&self.damaged).max() {
            let keeping = self.wal.live_up_to(*newest).into_iter();
            outputs.extend(keeping.map(|(group, below)| LogOutput::Damaged { group, below }));
        }
        self.damaged = damaged;
    }
}

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
    watch: Arc<DiskWatch>,
}

/// Bytes of entries taken into one round; the rest waits for the next.
const ROUND_BYTES_MAX: usize = 2 * limits::LOG_BATCH_BYTES_MAX;

impl LogLane {
    /// Starts the lane; it ends when the last handle is dropped and everything queued is durable.
    pub(crate) fn start(wal: Wal, dir: &Path) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel();
        let stats = Arc::new(Mutex::new(wal.stats()));
        let watch = Arc::new(DiskWatch::new(dir));
        let shown = (Arc::clone(&stats), Arc::clone(&watch));
        let lane = Self { jobs, reader: wal.reader(), stats, watch };
        let writer = LogWriter::new(wal);
        let thread = std::thread::Builder::new()
            .name("log-lane".to_owned())
            .spawn(move || run(writer, &queue, &shown.0, &shown.1))?;
        Ok((lane, thread))
    }

    pub(crate) fn persist(&self, job: PersistJob) {
        // The lane is gone only after a failure that every group was told of.
        let _ = self.jobs.send(job);
    }

    pub(crate) fn reader(&self) -> WalReader {
        self.reader.clone()
    }

    /// The operation that hangs, if one does.
    pub(crate) fn hanging(&self) -> Option<Hanging> {
        self.watch.hanging()
    }

    /// How long jobs took to become durable, seconds.
    pub(crate) fn writes(&self) -> Histogram {
        self.watch.writes()
    }

    pub(crate) fn stats(&self) -> WalStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Every group that the lane ever wrote for.
type Known = BTreeMap<GroupId, GroupHandle>;

fn run(
    mut writer: LogWriter,
    queue: &mpsc::Receiver<PersistJob>,
    stats: &Arc<Mutex<WalStats>>,
    watch: &DiskWatch,
) {
    let mut known = Known::new();
    let serve = || serve(&mut writer, queue, (stats, watch), &mut known);
    let served = catch_unwind(AssertUnwindSafe(serve));
    let why = match served {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_text(&*panic),
    };
    tracing::error!(why, "the log failed; every group of this node stops");
    for group in known.values() {
        group.raise(Event::Faulted(Fault::Log(why.clone())));
    }
    // Whoever comes now is told too, until the last handle is gone.
    for job in queue {
        job.group.raise(Event::Faulted(Fault::Log(why.clone())));
    }
}

/// Works until the last handle is dropped, or the log fails.
fn serve(
    writer: &mut LogWriter,
    queue: &mpsc::Receiver<PersistJob>,
    (stats, watch): (&Arc<Mutex<WalStats>>, &DiskWatch),
    known: &mut Known,
) -> Result<(), WalError> {
    let idle = Duration::from_millis(limits::LOG_IDLE_SEAL_MS);
    let mut counted = Instant::now();
    loop {
        let outputs = if writer.is_stalled() {
            if Arc::strong_count(stats) == 1 {
                // Nobody waits any more for what waits for room.
                return Ok(());
            }
            std::thread::sleep(idle);
            watch.housekeeping(|| writer.tend())?
        } else {
            match queue.recv_timeout(idle) {
                Ok(first) => {
                    let round = gather(first, queue, known);
                    watch.write(|| writer.write(round))?
                }
                Err(RecvTimeoutError::Timeout) => watch.housekeeping(|| writer.tend())?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        };
        outputs.into_iter().for_each(|output| tell(output, known));
        // Counting looks at the whole index: not for every batch.
        if counted.elapsed() >= idle {
            let figures = watch.housekeeping(|| writer.stats());
            *stats.lock().unwrap_or_else(PoisonError::into_inner) = figures;
            counted = Instant::now();
        }
    }
}

/// Everything that queued meanwhile, up to a bound.
fn gather(
    first: PersistJob,
    queue: &mpsc::Receiver<PersistJob>,
    known: &mut Known,
) -> Vec<(u64, LogJob)> {
    let cost =
        |job: &PersistJob| job.job.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
    let mut bytes = cost(&first);
    let mut round = vec![first];
    while bytes < ROUND_BYTES_MAX {
        let Ok(next) = queue.try_recv() else { break };
        bytes += cost(&next);
        round.push(next);
    }
    let mut jobs = Vec::with_capacity(round.len());
    for PersistJob { seq, job, group } in round {
        known.entry(group.id()).or_insert(group);
        jobs.push((seq, job));
    }
    jobs
}

fn tell(output: LogOutput, known: &Known) {
    match output {
        LogOutput::Persisted { group, seq } => {
            if let Some(group) = known.get(&group) {
                group.raise(Event::Persisted { seq });
            }
        }
        LogOutput::Room(shortage) => {
            known.values().for_each(|group| group.raise(Event::Room(shortage)));
        }
        LogOutput::Damaged { group, below } => {
            if let Some(group) = known.get(&group) {
                group.raise(Event::LogDamaged { below });
            }
        }
        LogOutput::Refused { group, why } => {
            if let Some(group) = known.get(&group) {
                group.raise(Event::Faulted(Fault::LogRefused(why)));
            }
        }
    }
}

#[cfg(test)]
mod tests;

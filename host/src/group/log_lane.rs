//! The log lane: one thread per node that turns what all groups have queued into one write and one
//! fdatasync.
//!
//! - Jobs of one group become durable in order of arrival. A job is reported with the batch that
//!   completes it, whatever the lane still has to do.
//! - Housekeeping (deleting segments, making spares) is done while no job waits, after
//!   [`WRITES_IN_A_ROW_MAX`] rounds, or after a round that took a spare.
//! - After a failed write the log is dead: every group is told, and nothing is tried again. A job
//!   that does not fit its group's log ends that group, and no other.
//! - A full disk is no failure: jobs that cannot be written yet wait, and the groups hear of the
//!   shortage while what is under way still fits.
//! - A damaged segment is reported to each group whose entries keep it or an older one, so that it
//!   can be deleted. If one of these groups does not run, the segment stays, and a message says so:
//!   only an operator may give up that group's log.
//! - Other threads find out whether this thread hangs in a disk operation ([`DiskWatch`]), because
//!   a hanging thread cannot report it.
//! - An idle log proves within [`limits::LOG_IDLE_SEAL_MS`] that its last batch is whole.
//!
//! [`LogWriter`] does the lane's work, a step at a time; the thread around it only waits and passes
//! on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_core::fault::{Fault, Shortage};
use lockstep_core::group::Event;
use lockstep_core::ids::GroupId;
use lockstep_core::limits;
use lockstep_core::mutant::{plant, planted};
use lockstep_core::wal::LogJob;
use prometheus_client::metrics::histogram::Histogram;

use crate::disk_watch::{DiskWatch, Hanging};
use crate::group::GroupHandle;
use crate::metrics::seconds_histogram;
use crate::panics::panic_text;
use crate::wal::{Wal, WalError, WalReader, WalStats};

/// The log, and the jobs that are to be reported once they are durable.
pub struct LogWriter {
    wal: Wal,
    /// Group and number of each job that is not durable yet, in order.
    owed: VecDeque<(GroupId, u64)>,
    short: bool,
    /// Damaged segments that were reported to the groups.
    damaged: BTreeSet<u64>,
    /// Groups with a job that was refused. Later jobs of theirs are dropped: they were queued
    /// before the group heard of the refusal.
    refused: BTreeSet<GroupId>,
}

/// What a step of the log lane led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogOutput {
    /// Every job of the group up to this one is durable.
    Persisted { group: GroupId, seq: u64 },
    /// Which shortage the log has, if any; for every group.
    Space(Option<Shortage>),
    /// The group has to drop its log below this index, for it keeps a damaged segment.
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

    /// Whether jobs wait for disk space: nothing more may be written until [`LogWriter::tend`] has
    /// written them.
    pub fn is_stalled(&self) -> bool {
        self.wal.is_stalled()
    }

    /// Makes a round of jobs durable. After each batch, calls `durable` with the jobs that have
    /// become durable; the returned outputs belong to no batch. After an error the log takes no
    /// more writes.
    pub fn write(
        &mut self,
        mut round: Vec<(u64, LogJob)>,
        durable: &mut dyn FnMut(Vec<LogOutput>),
    ) -> Result<Vec<LogOutput>, WalError> {
        let mut outputs = Vec::new();
        round.retain(|(_, job)| !self.refused.contains(&job.group));
        let (numbers, mut jobs): (Vec<u64>, Vec<LogJob>) = round.into_iter().unzip();
        self.owed = jobs.iter().map(|job| job.group).zip(numbers).collect();
        loop {
            let owed = &mut self.owed;
            match self.wal.append(&jobs, &mut |jobs| durable(pay(owed, jobs))) {
                Ok(_) => break,
                Err(WalError::Full { .. }) => {
                    plant!("acknowledge_when_full" does durable(pay(&mut self.owed, usize::MAX)));
                    break;
                }
                Err(WalError::Refused { group, reason }) => {
                    jobs.retain(|job| job.group != group);
                    self.owed.retain(|(of, _)| *of != group);
                    self.refused.insert(group);
                    outputs.push(LogOutput::Refused { group, why: reason });
                }
                Err(error) => return Err(error),
            }
        }
        self.look(&mut outputs);
        Ok(outputs)
    }

    /// Whether housekeeping cannot wait: a spare is lacking, and the groups have not been told of a
    /// shortage yet.
    pub fn must_housekeep(&self) -> bool {
        self.wal.lacks_spare() && !self.short
    }

    /// Takes a step of housekeeping: deletes a segment, or makes a spare file. Also returns whether
    /// another step may be taken at once.
    pub fn housekeep(&mut self) -> Result<(Vec<LogOutput>, bool), WalError> {
        let mut outputs = Vec::new();
        let more = self.wal.housekeep()?;
        self.look(&mut outputs);
        Ok((outputs, more))
    }

    /// The work of an idle or stalled lane: does housekeeping, writes jobs that waited for space,
    /// and seals the last batch.
    pub fn tend(
        &mut self,
        durable: &mut dyn FnMut(Vec<LogOutput>),
    ) -> Result<Vec<LogOutput>, WalError> {
        let mut outputs = Vec::new();
        while self.wal.housekeep()? && self.wal.is_stalled() {}
        if self.wal.is_stalled() {
            let owed = &mut self.owed;
            match self.wal.resume(&mut |jobs| durable(pay(owed, jobs))) {
                Ok(()) | Err(WalError::Full { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.wal.seal_idle()?;
        self.look(&mut outputs);
        Ok(outputs)
    }

    /// The names of groups that were told of damage but do not run: their entries keep the damaged
    /// segments for as long as this process lives.
    fn keepers(&self, told: &[LogOutput], runs: impl Fn(GroupId) -> bool) -> Vec<String> {
        let still = told.iter().filter_map(|output| match output {
            LogOutput::Damaged { group, .. } if !runs(*group) => Some(self.wal.name_of(*group)),
            LogOutput::Damaged { .. }
            | LogOutput::Persisted { .. }
            | LogOutput::Space(_)
            | LogOutput::Refused { .. } => None,
        });
        still.collect()
    }

    fn look(&mut self, outputs: &mut Vec<LogOutput>) {
        let shortage = self.wal.shortage();
        if shortage.is_some() || (self.short && !planted("full_for_ever")) {
            self.short = shortage.is_some();
            outputs.push(LogOutput::Space(shortage));
        }
        let damaged = self.wal.damaged();
        if let Some(newest) = damaged.difference(&self.damaged).max() {
            let keeping = self.wal.live_up_to(*newest).into_iter();
            outputs.extend(keeping.map(|(group, below)| LogOutput::Damaged { group, below }));
        }
        self.damaged = damaged;
    }
}

/// Reports that the next `jobs` of the owed jobs are durable; for each group the last one stands
/// for all.
fn pay(owed: &mut VecDeque<(GroupId, u64)>, jobs: usize) -> Vec<LogOutput> {
    let paid: BTreeMap<GroupId, u64> = owed.drain(..jobs.min(owed.len())).collect();
    paid.into_iter().map(|(group, seq)| LogOutput::Persisted { group, seq }).collect()
}

/// A job, and the group that is told once it is durable.
pub(crate) struct PersistJob {
    pub seq: u64,
    pub job: LogJob,
    pub group: GroupHandle,
}

/// A handle of the log lane.
#[derive(Clone)]
pub(crate) struct LogLane {
    jobs: mpsc::Sender<PersistJob>,
    reader: WalReader,
    stats: Arc<Mutex<WalStats>>,
    watch: Arc<DiskWatch>,
    times: LogTimes,
}

/// Seconds that batches took to become durable, and that their syncs took.
#[derive(Clone)]
pub(crate) struct LogTimes {
    pub writes: Histogram,
    pub syncs: Histogram,
}

/// Bytes of entries taken into one round; the rest waits for the next.
const ROUND_BYTES_MAX: usize = 2 * limits::LOG_BATCH_BYTES_MAX;
/// Rounds written in a row before housekeeping goes first although jobs wait.
const WRITES_IN_A_ROW_MAX: usize = 8;

impl LogLane {
    /// Starts the lane; it ends when the last handle is dropped and the queue is written, or waits
    /// for disk space.
    pub(crate) fn start(wal: Wal, dir: &Path) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel();
        let stats = Arc::new(Mutex::new(wal.stats()));
        let watch = Arc::new(DiskWatch::new("log", dir));
        let times = LogTimes { writes: seconds_histogram(), syncs: wal.syncs() };
        let shown = Shown {
            stats: Arc::clone(&stats),
            watch: Arc::clone(&watch),
            writes: times.writes.clone(),
        };
        let lane = Self { jobs, reader: wal.reader(), stats, watch, times };
        let writer = LogWriter::new(wal);
        let thread = std::thread::Builder::new()
            .name("log-lane".to_owned())
            .spawn(move || run(writer, &queue, &shown))?;
        Ok((lane, thread))
    }

    pub(crate) fn persist(&self, job: PersistJob) {
        // The lane ends only with its last handle; after a failure it still answers jobs.
        let _ = self.jobs.send(job);
    }

    pub(crate) fn reader(&self) -> WalReader {
        self.reader.clone()
    }

    /// The disk operation in which the lane hangs, if it does.
    pub(crate) fn hanging(&self) -> Option<Hanging> {
        self.watch.hanging()
    }

    pub(crate) fn times(&self) -> LogTimes {
        self.times.clone()
    }

    pub(crate) fn stats(&self) -> WalStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Every group that the lane ever wrote for.
type Known = BTreeMap<GroupId, GroupHandle>;

/// What the thread publishes.
struct Shown {
    stats: Arc<Mutex<WalStats>>,
    watch: Arc<DiskWatch>,
    writes: Histogram,
}

fn run(mut writer: LogWriter, queue: &mpsc::Receiver<PersistJob>, shown: &Shown) {
    let mut known = Known::new();
    let serve = || serve(&mut writer, queue, shown, &mut known);
    let served = catch_unwind(AssertUnwindSafe(serve));
    let why = match served {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_text(&*panic).to_owned(),
    };
    tracing::error!(why, "the log failed; every group of this node stops");
    for group in known.values() {
        group.raise(Event::Faulted(Fault::Log(why.clone())));
    }
    // Jobs that come later are answered in the same way, until the last handle is dropped.
    for job in queue {
        job.group.raise(Event::Faulted(Fault::Log(why.clone())));
    }
}

/// Works until the last handle is dropped, or the log fails.
fn serve(
    writer: &mut LogWriter,
    queue: &mpsc::Receiver<PersistJob>,
    Shown { stats, watch, writes }: &Shown,
    known: &mut Known,
) -> Result<(), WalError> {
    let idle = Duration::from_millis(limits::LOG_IDLE_SEAL_MS);
    let mut counted = Instant::now();
    // Rounds since the last housekeeping; not 0 while any housekeeping is left to do.
    let mut rounds = 0;
    loop {
        let step = if !writer.is_stalled() {
            next(queue, known, rounds, idle)
        } else if Arc::strong_count(stats) == 1 {
            // Jobs wait for disk space, but no handle is left to hear of them.
            Step::End
        } else {
            std::thread::sleep(idle);
            Step::Tend
        };
        let mut durable = |outputs: Vec<LogOutput>| {
            writes.observe(watch.answered().as_secs_f64());
            outputs.into_iter().for_each(|output| tell(output, known));
        };
        let outputs = match step {
            Step::Write(round) => {
                let outputs = watch.at_disk(|| writer.write(round, &mut durable))?;
                let urgent = writer.must_housekeep();
                rounds = if urgent { WRITES_IN_A_ROW_MAX } else { rounds + 1 };
                outputs
            }
            Step::Housekeep => {
                let (outputs, more) = watch.at_disk(|| writer.housekeep())?;
                rounds = usize::from(more);
                outputs
            }
            Step::Tend => watch.at_disk(|| writer.tend(&mut durable))?,
            Step::End => return Ok(()),
        };
        let keepers = writer.keepers(&outputs, |group| runs(known, group));
        if !keepers.is_empty() {
            tracing::error!(groups = ?keepers, segments = ?writer.damaged, "damaged segments of \
                the log stay, because groups that this node does not run have entries there; a \
                start would refuse the log: once the other nodes are healthy, start this node \
                with --rejoin");
        }
        outputs.into_iter().for_each(|output| tell(output, known));
        if counted.elapsed() >= idle {
            let figures = watch.at_disk(|| writer.stats());
            *stats.lock().unwrap_or_else(PoisonError::into_inner) = figures;
            counted = Instant::now();
        }
    }
}

/// What the lane does next.
enum Step {
    Write(Vec<(u64, LogJob)>),
    Housekeep,
    Tend,
    End,
}

fn next(
    queue: &mpsc::Receiver<PersistJob>,
    known: &mut Known,
    rounds: usize,
    idle: Duration,
) -> Step {
    if rounds >= WRITES_IN_A_ROW_MAX {
        return Step::Housekeep;
    }
    let first = match rounds {
        0 => queue.recv_timeout(idle),
        _some => queue.try_recv().map_err(|none| match none {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        }),
    };
    match first {
        Ok(first) => Step::Write(gather(first, queue, known)),
        Err(RecvTimeoutError::Timeout) if rounds == 0 => Step::Tend,
        Err(RecvTimeoutError::Timeout) => Step::Housekeep,
        Err(RecvTimeoutError::Disconnected) => Step::End,
    }
}

/// Takes the other queued jobs into the round, up to a bound.
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

/// Whether the group runs, so that it can drop its log.
fn runs(known: &Known, group: GroupId) -> bool {
    known.get(&group).is_some_and(|group| !group.watch().borrow().is_stopped())
}

fn tell(output: LogOutput, known: &Known) {
    match output {
        LogOutput::Persisted { group, seq } => {
            if let Some(group) = known.get(&group) {
                group.raise(Event::Persisted { seq });
            }
        }
        LogOutput::Space(shortage) => {
            known.values().for_each(|group| group.raise(Event::LogSpace(shortage)));
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

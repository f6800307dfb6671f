//! The guest's builds: what happens when one ends, and when to begin another.
//!
//! The lane builds a guest from a recovery point and the log: at a start, after a fault, to release
//! memory, and when a snapshot was installed or repaired.

use crate::amendment::Amendment;
use crate::apply::LogClock;
use crate::fault::Fault;
use crate::group::Shared;
use crate::group::effect::{ApplyJob, Effect, Halt, Stands, Stopped};
use crate::group::hosting::Hosting;
use crate::group::{divergence, wants};
use crate::mutant::{plant, planted};

/// A build that ended with a guest.
pub(super) struct Built {
    pub(super) build: u64,
    /// The guest has applied everything up to this index.
    pub(super) applied: u64,
    /// The log's time there, and what the guest's timer is set to.
    pub(super) clock: LogClock,
}

pub(super) fn has_guest(
    hosting: &mut Hosting,
    shared: &mut Shared,
    built: Built,
    effects: &mut Vec<Effect>,
) {
    let Built { build, applied, clock } = built;
    hosting.applying.pipeline.progressed(applied, 0);
    if !hosting.applying.pipeline.ended(build) {
        return;
    }
    shared.log_time.applied(clock.time_ms);
    shared.switched(applied, clock.switches);
    shared.runs(&clock);
    hosting.applying.timer.applied(applied, clock);
    hosting.snapshots.wants.met();
    hosting.applying.retry.over();
    hosting.applying.rebuilds.is_over(shared);
    hosting.tell_list(effects);
    hosting.settle_state(shared, effects);
}

/// The lane has no guest. If a snapshot is being installed, the guest comes from that; otherwise
/// the list changed during the rebuild, which begins again with what is listed now.
pub(super) fn overtaken(
    hosting: &mut Hosting,
    shared: &mut Shared,
    build: u64,
    effects: &mut Vec<Effect>,
) {
    if hosting.applying.pipeline.ended(build) && !hosting.applying.pipeline.is_restoring() {
        restart(hosting, shared, effects);
    }
}

/// A build found no recovery point that restores; `tried` is the newest one that it knew of.
pub(super) fn cannot_restore(
    hosting: &mut Hosting,
    shared: &mut Shared,
    build: u64,
    tried: u64,
    why: &str,
    effects: &mut Vec<Effect>,
) {
    if !hosting.applying.pipeline.ended(build) {
        return;
    }
    hosting.tell_list(effects);
    let newest = wants::newest_listed(hosting.raw.store(), hosting.snapshots.retention.corrupt());
    if hosting.applying.pipeline.halt().is_some() {
        // A query failed the guest of this halted replica, which stood before the halting entry.
        stands(hosting, shared, None, effects);
    } else if hosting.applying.pipeline.is_restoring() {
        // A newer snapshot is being installed anyway.
    } else if newest > tried && !planted("wait_for_a_peers_snapshot") {
        // A newer recovery point was listed during the build.
        restart(hosting, shared, effects);
    } else {
        needs_snapshot(hosting, shared, tried, why, effects);
    }
}

/// There is no guest and nothing to build one from: requests that wait cannot be answered here.
fn needs_snapshot(
    hosting: &mut Hosting,
    shared: &mut Shared,
    tried: u64,
    why: &str,
    effects: &mut Vec<Effect>,
) {
    plant!("rely_on_peers" skips hosting.applying.retry.failed(shared.now));
    hosting.applying.pipeline.misses(wants::missing(shared, tried, why));
    hosting.snapshots.checkpoints.abandon_capture();
    hosting.settle_state(shared, effects);
    hosting.refuse_everything(shared, effects);
}

/// Builds the guest again if the time has come.
pub(super) fn tick(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    if shared.state.is_stopped()
        || hosting.applying.pipeline.is_restoring()
        || !hosting.applying.retry.take_due(shared.now)
    {
        return;
    }
    if hosting.applying.pipeline.halt().is_some() {
        restart(hosting, shared, effects);
    } else if hosting.applying.pipeline.missing().is_some() {
        prepare(hosting, shared, effects);
        hosting.applying.pipeline.try_again(&shared.recovery, effects);
    }
}

/// Rebuilds the guest up to the floor.
pub(super) fn restart(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    if shared.recovery.diverged > 0 {
        return;
    }
    hosting.snapshots.wants.met();
    prepare(hosting, shared, effects);
    if shared.recovery.unapplied > 0 {
        // The entry may be applied now. The batch of the ready under way says so, or a tick: one
        // that was written here could be ahead of the entries of that ready.
        shared.recovery.never_applied(0);
        hosting.durable.unwritten_since = Some(0);
    }
    hosting.applying.pipeline.start_again(&shared.recovery, effects);
    hosting.settle_state(shared, effects);
}

/// Entries after the one at `before` were handed over. If there are amendments among them, a
/// replica that is halted, or that may have applied an entry which is skipped now, builds its guest
/// again. Any other one does if its guest fails.
pub(super) fn amended(
    hosting: &mut Hosting,
    shared: &mut Shared,
    before: u64,
    effects: &mut Vec<Effect>,
) {
    if shared.recovery.amendments.last() <= before {
        return;
    }
    let reaches = |it: &Amendment| it.change.reaches_back_to().is_some();
    let reaches_back = shared.recovery.amendments.after(before).any(reaches);
    hosting.snapshots.retention.distrust(&shared.recovery);
    let pipeline = &mut hosting.applying.pipeline;
    if pipeline.halt().is_some()
        || (reaches_back && pipeline.captures() && !pipeline.is_superseded())
    {
        restart(hosting, shared, effects);
    } else {
        pipeline.amend();
    }
}

/// Halts the replica if it was found to have diverged and is not halted for that.
pub(super) fn judged(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    let halted = hosting.applying.pipeline.halt().is_some_and(Halt::is_diverged);
    if let Some(halt) = divergence::halt(&shared.recovery).filter(|_| !halted) {
        hosting.snapshots.retention.distrust(&shared.recovery);
        hosting.raw.mut_store().serve_nothing(true);
        fail(hosting, shared, halt.fault, effects);
    }
}

/// Ends what a build up to the floor makes impossible: the capture under way, and answers to
/// entries up to the floor, which the build replays without producing answers.
fn prepare(hosting: &mut Hosting, shared: &Shared, effects: &mut Vec<Effect>) {
    hosting.snapshots.checkpoints.abandon_capture();
    hosting.pass(shared.recovery.floor, effects);
}

/// The guest of this build failed. If the lane was given a newer build since, the replica does not
/// halt, and keeps the entries queued for the newer build.
pub(super) fn guest_failed(
    hosting: &mut Hosting,
    shared: &mut Shared,
    build: u64,
    fault: Fault,
    effects: &mut Vec<Effect>,
) {
    if hosting.applying.pipeline.ended(build) || planted("heed_an_old_fault") {
        fail(hosting, shared, fault, effects);
    }
}

/// The guest failed twice, its state cannot be built, or the log failed. The replica halts (it
/// votes and keeps the log, but applies nothing), or, if the log failed, stops.
pub(super) fn fail(
    hosting: &mut Hosting,
    shared: &mut Shared,
    fault: Fault,
    effects: &mut Vec<Effect>,
) {
    hosting.snapshots.checkpoints.abandon_capture();
    hosting.snapshots.wants.guest_failed();
    if shared.state.is_stopped() {
        hosting.applying.pipeline.stop();
        return hosting.tell_list(effects);
    }
    let refused = matches!(fault, Fault::LogRefused(_)) && !planted("outlive_a_refusal");
    if refused || matches!(fault, Fault::Log(_)) {
        // A replica that cannot write its log can neither vote nor append. The messages that wait
        // for the failed batch must never leave, so no later batch may release them.
        hosting.applying.pipeline.stop();
        hosting.tell_list(effects);
        return hosting.end(shared, Stopped::Failed(fault), effects);
    }
    // A replica that has diverged stays halted for that, whatever else fails.
    let fault = divergence::halt(&shared.recovery).map_or(fault, |halt| halt.fault);
    if fault.entry().is_some() && hosting.applying.pipeline.take_amended() {
        // What was committed meanwhile may keep the guest from failing.
        return restart(hosting, shared, effects);
    }
    let machine = fault.lacks_resource();
    let before = fault.entry().filter(|_| !planted("halt_without_a_state"));
    let stands = match before {
        Some(entry) => {
            effects.push(Effect::Apply(ApplyJob::Stand { goal: entry - 1 }));
            Stands::Coming
        }
        None => Stands::Nowhere,
    };
    let pipeline = &hosting.applying.pipeline;
    let is_first = before.is_some_and(|entry| shared.has_never_applied(entry, pipeline));
    if let Some(entry) = before.filter(|_| is_first) {
        shared.recovery.never_applied(entry);
        shared.persist_now(Vec::new(), effects);
    }
    hosting.applying.pipeline.halts(Halt { fault, stands, applied_by: None, is_first });
    if machine {
        hosting.applying.retry.failed(shared.now);
    } else {
        hosting.applying.retry.over();
    }
    hosting.tell_list(effects);
    hosting.settle_state(shared, effects);
    hosting.refuse_everything(shared, effects);
    hosting.members.election.transfer_to_best(&mut hosting.raw, shared);
}

/// The lane rebuilt the guest of a halted replica as it was after entry `at`, or failed to
/// (`None`).
pub(super) fn stands(
    hosting: &mut Hosting,
    shared: &mut Shared,
    at: Option<(u64, LogClock)>,
    effects: &mut Vec<Effect>,
) {
    if let Some((index, clock)) = at {
        shared.switched(index, clock.switches);
        shared.runs(&clock);
    }
    hosting.applying.pipeline.stands(at.map(|(index, _)| index));
    hosting.tell_list(effects);
    hosting.settle_state(shared, effects);
}

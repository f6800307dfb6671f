//! A flush: what gathered from events becomes entries, reads, messages and jobs.

use crate::entry::CheckpointReason;
use crate::fault::Refusal;
use crate::group::effect::{ApplyJob, Effect};
use crate::group::hosting::{Applying, Clients, Hosting};
use crate::group::proposals::Proposal;
use crate::group::reads::Read;
use crate::group::{Own, Shared, ready};
use crate::limits;
use crate::memory::MemoryUse;
use crate::mutant::plant;
use crate::retention;

pub(super) fn flush(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    let (retention, mut around) = hosting.retention();
    retention.reconcile(&mut around, shared, effects);
    tell_of_itself(hosting, shared);
    hosting.snapshots.installs.offer(&mut hosting.raw, effects);
    drive_upgrade(hosting, shared, effects);
    propose_waiting(hosting, shared, effects);
    ask_for_reads(hosting, shared);
    loop {
        while hosting.raw.has_ready() {
            ready::process(hosting, shared, effects);
        }
        if !ready::release(hosting, shared, effects) && !hosting.raw.has_ready() {
            break;
        }
    }
    for (from, to) in hosting.raw.store().take_wanted_fetches() {
        effects.push(Effect::Fetch { from, to, bytes: limits::APPEND_BYTES_MAX });
    }
    hosting.tell_list(effects);
    if shared.persist.reached(hosting.durable.bootstrapped_in) {
        hosting.applying.pipeline.dispatch(effects);
    }
    let dispatched = hosting.applying.pipeline.dispatched();
    for (index, Read { ticket, request, .. }) in hosting.clients.reads.ready(dispatched) {
        effects.push(Effect::Apply(ApplyJob::Query { ticket, request, index }));
    }
}

/// What frames say of this replica.
fn tell_of_itself(hosting: &Hosting, shared: &mut Shared) {
    let corrupt = hosting.snapshots.retention.corrupt();
    let newest = retention::newest_good(&shared.recovery.snapshots, corrupt);
    // A replica that needs a snapshot cannot start from those that it lists.
    let good = newest.filter(|_| hosting.applying.pipeline.missing().is_none());
    let snapshot = good.map_or(0, |desc| desc.index);
    let (applied, guest) = (hosting.applying.pipeline.applied(), hosting.guest(shared));
    shared.own = Own { applied, snapshot, guest, taken: shared.own.taken };
}

fn drive_upgrade(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    let Hosting { raw, clients, applying, snapshots, .. } = hosting;
    let (Clients { upgrades, orders, .. }, Applying { pipeline, .. }) = (clients, applying);
    if upgrades.drive(raw, orders, pipeline, shared, effects) {
        // From now on, who starts or joins need not move a state.
        snapshots.checkpoints.want(CheckpointReason::Operator);
    }
}

fn propose_waiting(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    let Hosting { raw, clients, applying, .. } = hosting;
    let Applying { pipeline, .. } = applying;
    if !raw.is_leader() || raw.raft.lead_transferee.is_some() || clients.upgrades.hold() {
        // A leadership transfer is under way, or leadership was lost, or the replicas move their
        // states into another module. The commands wait: they are proposed if this replica still
        // leads afterwards, and refused if it does not.
        return;
    }
    let Clients { proposals, .. } = clients;
    if proposals.has_waiting() {
        shared.refuse_for_memory(raw, proposals, effects);
    }
    let commands_max = shared.memory.map_or(usize::MAX, MemoryUse::commands_max);
    // Entries that are committed but not durable here still count as in flight.
    let log = &raw.raft.raft_log;
    let settled = log.committed.min(log.persisted);
    while proposals.has_waiting()
        && !pipeline.is_behind()
        && proposals.above(settled) < limits::ENTRIES_INFLIGHT_MAX
        && shared.has_memory_for_more(proposals.bytes().max(pipeline.backlog_bytes()))
    {
        let next = proposals.next(shared.stamp(), commands_max);
        let Some(Proposal { body, tickets, bytes }) = next else { break };
        match raw.propose_body(&body) {
            Some((index, term)) => proposals.proposed(index, term, tickets, bytes),
            None => {
                for ticket in tickets {
                    effects.push(Effect::Answer { ticket, answer: Err(Refusal::Overloaded) });
                }
            }
        }
    }
}

fn ask_for_reads(hosting: &mut Hosting, shared: &Shared) {
    let Hosting { raw, clients, .. } = hosting;
    let Clients { reads, .. } = clients;
    // raft silently drops read requests before the first commit of a leader's term.
    if raw.is_leader()
        && raw.raft.commit_to_current_term()
        && let Some(context) = reads.start_round(shared.me().0, shared.recovery.boot, shared.now)
    {
        plant!("read_without_quorum" does reads.confirm(&context, raw.raft.raft_log.committed));
        raw.read_index(context);
    }
}

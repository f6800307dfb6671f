//! Takes each event to the concern that it is for, and each tick to all of them.

use raft::eraftpb::{Entry, Message, MessageType};

use crate::apply::Applied;
use crate::fault::{Fault, Refusal, Stall};
use crate::group::build::{self, Built};
use crate::group::checkpoint::CaptureFailed;
use crate::group::effect::{ApplyJob, Effect, Halt, Stopped};
use crate::group::event::{Event, Found};
use crate::group::frame::{Body, Frame, GuestIs};
use crate::group::hosting::{Applying, Clients, Hosting, Members, Snapshots};
use crate::group::orders::{self, Order};
use crate::group::outgoing::TransferEnded;
use crate::group::reads::Read;
use crate::group::rebuild;
use crate::group::wants::Received;
use crate::group::{Shared, damage, halt, vet};
use crate::ids::{NodeId, ReplicaId, Ticket};
use crate::limits;
use crate::mutant::planted;
use crate::snapshot::chunk::{ObjectRef, Want};
use crate::snapshot::{SnapshotDesc, Verified};

/// Takes an event of a client, the log or the node.
pub(super) fn event(
    hosting: &mut Hosting,
    shared: &mut Shared,
    event: Event,
    effects: &mut Vec<Effect>,
) {
    match event {
        Event::Propose { ticket, call, relief } => {
            let taken = may_propose(hosting, shared)
                .and_then(|()| shared.has_memory(&hosting.raw, relief))
                .and_then(|()| hosting.clients.proposals.push_call(ticket, call, relief));
            answer_refusal(ticket, taken, effects);
        }
        Event::OpenSession { ticket, nonce } => {
            let taken = may_propose(hosting, shared)
                .and_then(|()| hosting.clients.proposals.push_open(ticket, nonce));
            answer_refusal(ticket, taken, effects);
        }
        Event::CloseSession { ticket, session } => {
            let taken = may_propose(hosting, shared)
                .and_then(|()| hosting.clients.proposals.push_close(ticket, session));
            answer_refusal(ticket, taken, effects);
        }
        Event::Query { ticket, request, linearizable: true } => {
            let read = Read { ticket, request, since: shared.now };
            let taken = hosting.may_lead(shared).and_then(|()| hosting.clients.reads.push(read));
            answer_refusal(ticket, taken, effects);
        }
        Event::Query { ticket, request, linearizable: false } => {
            let job = ApplyJob::Query { ticket, request, index: 0 };
            match shared.state.local_refusal() {
                Some(refusal) => answer_refusal(ticket, Err(refusal), effects),
                None => effects.push(Effect::Apply(job)),
            }
        }
        Event::Order { ticket, order } => ordered(hosting, shared, ticket, &order, effects),
        Event::Repair { ticket } => repair(hosting, shared, ticket, effects),
        Event::Gone { tickets } => hosting.clients.forget(&tickets, effects),
        Event::Checkpoint { ticket } => match hosting.may_lead(shared) {
            Ok(()) => {
                let checkpoints = &mut hosting.snapshots.checkpoints;
                let requests = &mut hosting.clients.checkpoint_requests;
                requests.asked(checkpoints, shared, ticket, effects);
            }
            Err(refusal) => answer_refusal(ticket, Err(refusal), effects),
        },
        Event::Unreachable(node) => unreachable(hosting, node),
        Event::Fetched { from, entries } => fetched(hosting, from, entries),
        Event::LogDamaged { below } => hosting.raw.mut_store().set_unreadable(below),
        Event::TransferEnded { to, purpose, report, prefers } => {
            let ended = TransferEnded { to, purpose, report, prefers };
            hosting.snapshots.outgoing.transfer_ended(&ended, &mut hosting.raw, shared.now);
            hosting.snapshots.retention.promises_changed();
        }
        Event::LogSpace(shortage) => {
            let began = shared.log_space(shortage, &mut hosting.concerns(effects));
            space_changed(hosting, shared, began, effects);
        }
        Event::DiskStalled(stall) => disk_stalled(hosting, shared, stall, effects),
        Event::Memory(memory) => {
            shared.memory = Some(memory);
            hosting.settle_state(shared, effects);
        }
        Event::SnapshotSpace(space) => hosting.snapshots.checkpoints.told_of_space(space),
        Event::HandOver => hand_over(hosting, shared, effects),
        other => lane_event(hosting, shared, other, effects),
    }
}

/// An operator gives an order.
fn ordered(
    hosting: &mut Hosting,
    shared: &mut Shared,
    ticket: Ticket,
    order: &Order,
    effects: &mut Vec<Effect>,
) {
    let taken = hosting.may_order(shared).and_then(|()| {
        let Hosting { raw, clients, applying, .. } = hosting;
        match order {
            Order::Upgrade { module, resume } => {
                orders::may_upgrade(order, &applying.pipeline, shared)?;
                clients.upgrades.begin(raw, shared, *module, resume.clone(), ticket)
            }
            Order::AbortUpgrade => clients.upgrades.abort(shared, ticket, effects),
            _other => clients.orders.given(raw, &applying.pipeline, shared, ticket, order),
        }
    });
    answer_refusal(ticket, taken, effects);
}

/// An operator has this replica go on from another's snapshot.
fn repair(hosting: &mut Hosting, shared: &mut Shared, ticket: Ticket, effects: &mut Vec<Effect>) {
    match hosting.applying.pipeline.repair() {
        Some(index) => effects.push(Effect::Entered { ticket, index }),
        None => {
            let why = "this replica has not diverged: nothing is to be repaired".to_owned();
            answer_refusal(ticket, Err(Refusal::NotNow { why }), effects);
        }
    }
    hosting.settle_state(shared, effects);
}

/// Takes an event of the apply lane or a bulk worker.
fn lane_event(hosting: &mut Hosting, shared: &mut Shared, event: Event, effects: &mut Vec<Effect>) {
    match event {
        Event::Started { build, applied, clock }
        | Event::Restored { build, index: applied, clock } => {
            build::has_guest(hosting, shared, Built { build, applied, clock }, effects);
        }
        Event::Built { index, footprint } => {
            hosting.snapshots.retention.restored(index);
            hosting.applying.rebuilds.built(index, footprint);
        }
        Event::Applied(applied) => lane_applied(hosting, shared, applied, effects),
        Event::NotRestored { build, index: tried, why }
        | Event::NeedsSnapshot { build, tried, why } => {
            build::cannot_restore(hosting, shared, build, tried, &why, effects);
        }
        Event::Stands { at } => build::stands(hosting, shared, at, effects),
        Event::Captured(snapshot) => captured(hosting, shared, snapshot, effects),
        Event::CaptureWritten { index } => {
            hosting.snapshots.checkpoints.written(&mut hosting.applying.pipeline, shared, index);
        }
        Event::NoPlace { index, why } => {
            hosting.snapshots.checkpoints.no_place(
                &mut hosting.applying.pipeline,
                shared,
                index,
                why,
            );
        }
        Event::CaptureFailed { index, why, postponed } => {
            let failed = CaptureFailed { index, why, postponed };
            hosting.snapshots.checkpoints.capture_failed(
                &mut hosting.applying.pipeline,
                failed,
                shared.now,
            );
        }
        Event::SpaceWanted { unlist, capture } => {
            hosting.snapshots.retention.space_wanted(unlist, capture, shared.now);
        }
        Event::Corrupt { snapshot, .. } => found_corrupt(hosting, shared, &snapshot),
        Event::Read { snapshot, found } => was_read(hosting, shared, &snapshot, found),
        Event::Overtaken { build } => build::overtaken(hosting, shared, build, effects),
        Event::GuestFailed { build, fault } => {
            build::guest_failed(hosting, shared, build, fault, effects);
        }
        Event::Received { snapshot } => received(hosting, shared, snapshot, effects),
        Event::Tried { trial, stage } => shared.reached(&hosting.raw, trial, stage, effects),
        Event::Tick { .. }
        | Event::Frame(_)
        | Event::Persisted { .. }
        | Event::Faulted(_)
        | Event::Propose { .. }
        | Event::OpenSession { .. }
        | Event::CloseSession { .. }
        | Event::Query { .. }
        | Event::Gone { .. }
        | Event::Checkpoint { .. }
        | Event::Order { .. }
        | Event::Repair { .. }
        | Event::Unreachable(_)
        | Event::Fetched { .. }
        | Event::LogDamaged { .. }
        | Event::TransferEnded { .. }
        | Event::Memory(_)
        | Event::LogSpace(_)
        | Event::DiskStalled(_)
        | Event::SnapshotSpace(_)
        | Event::HandOver => unreachable!("handled before the lanes' events"),
    }
}

pub(super) fn tick(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    if !shared.persist.is_booted() {
        return;
    }
    hosting.members.election.tick(&mut hosting.raw, shared);
    if hosting.raw.is_leader() {
        shared.tick_log_time();
    }
    hosting.clients.reads.tick(shared.now, effects);
    if hosting.members.membership.tick(&mut hosting.raw, shared, effects) {
        return hosting.end(shared, Stopped::Removed, effects);
    }
    tick_rebuild(hosting, shared, effects);
    tick_snapshots(hosting, shared, effects);
    build::tick(hosting, shared, effects);
    halt::tick(&mut hosting.applying.pipeline, shared);
    hosting.members.comparison.tick(&mut hosting.raw, shared);
    hosting.raw.mut_store().spare(shared.waiting_for_repair());
    hosting.clients.orders.tick(&mut hosting.raw, &hosting.applying.pipeline, shared);
    if may_wake(hosting, shared) {
        hosting.applying.timer.tick(&mut hosting.raw, shared);
    }
    let (wants, mut concerns) = hosting.wants(effects);
    wants.tick(&mut concerns, shared);
    hosting.members.election.note_leader(&hosting.raw, shared.now);
    hosting.settle_state(shared, effects);
    let due = |since: u64| shared.now >= since + limits::LAZY_STATE_TICKS;
    // While the disk hangs, such batches would only pile up.
    if hosting.durable.unwritten_since.is_some_and(due) && shared.persist.is_idle() {
        hosting.durable.unwritten_since = None;
        shared.persist_now(Vec::new(), effects);
    }
}

fn tick_rebuild(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    shared.own.guest = hosting.guest(shared);
    let Hosting { raw, clients, applying, snapshots, .. } = hosting;
    let Clients { proposals, .. } = clients;
    let Applying { pipeline, rebuilds, .. } = applying;
    let Snapshots { checkpoints, retention, .. } = snapshots;
    rebuilds.tick_turns(raw, shared);
    rebuilds.tick_checkpoints(raw, checkpoints, shared);
    if shared.own.guest == GuestIs::ToBeRebuilt
        && rebuild::has_turn(raw, proposals, pipeline, shared)
        && (planted("rebuild_unproven") || retention.is_proven(shared, effects))
    {
        rebuilds.begins(shared.memory);
        build::restart(hosting, shared, effects);
    }
}

fn tick_snapshots(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    let Hosting { raw, applying, snapshots, .. } = hosting;
    let Applying { pipeline, .. } = applying;
    let Snapshots { checkpoints, retention, outgoing, .. } = snapshots;
    checkpoints.tick_capture(shared.now);
    checkpoints.tick(raw, outgoing.is_busy(), shared);
    if let Some(failed) = retention.tick(shared) {
        checkpoints.capture_failed(pipeline, failed, shared.now);
    }
    checkpoints.tick_places(pipeline, raw.store(), shared, effects);
    let began = shared.tick_space(&mut hosting.concerns(effects));
    space_changed(hosting, shared, began, effects);
    let Hosting { raw, applying, snapshots, .. } = hosting;
    let Applying { pipeline, .. } = applying;
    let Snapshots { checkpoints, retention, outgoing, catch_ups, .. } = snapshots;
    if damage::needs_snapshot(raw.store(), &shared.recovery, retention.corrupt())
        && !pipeline.is_reading()
    {
        let _ = checkpoints.capture_here(pipeline, raw.store(), shared);
    }
    if outgoing.tick(raw, shared.now) {
        retention.promises_changed();
    }
    catch_ups.tick(raw, outgoing, shared);
}

pub(super) fn frame(
    hosting: &mut Hosting,
    shared: &mut Shared,
    frame: Frame,
    effects: &mut Vec<Effect>,
) {
    if !shared.persist.is_booted() {
        return;
    }
    let from = frame.from;
    if hosting.raw.leader() == Some(from) {
        shared.hear_of_trial(frame.trial.and_then(|status| status.trial), effects);
    }
    match frame.body {
        Body::Raft(message) => raft_message(hosting, shared, from, message, effects),
        Body::Probe
            if shared.persist.reached(hosting.durable.began) && hosting.raw.has_entries() =>
        {
            shared.send(from.node(), Some(from), Body::Have, effects);
            if !shared.recovery.configuration.contains(from) {
                hosting.members.membership.answer_non_member(shared, from, effects);
            }
        }
        // A replica without entries has only heard of the group and cannot vouch for it.
        Body::Probe if !hosting.raw.has_entries() => {
            shared.send(from.node(), Some(from), Body::Nothing, effects);
        }
        // Entries that are not durable yet prove neither that the group exists nor that it does
        // not.
        Body::Probe => {}
        Body::Want(want) if shared.recovery.configuration.contains(from) => {
            wanted(hosting, from, &want, shared.now, effects);
        }
        Body::Want(_) => {}
        Body::Join => hosting.members.membership.asked_to_join(shared, from),
        Body::NotMember { configuration_index } => {
            if hosting.members.non_member.told(shared, from.node(), configuration_index, effects) {
                hosting.end(shared, Stopped::Removed, effects);
            }
        }
        Body::Nothing | Body::Have | Body::Stranger | Body::Superseded { .. } => {}
    }
}

/// Passes a message to raft, if a correct replica can have sent it.
fn raft_message(
    hosting: &mut Hosting,
    shared: &mut Shared,
    from: ReplicaId,
    message: Message,
    effects: &mut Vec<Effect>,
) {
    let Hosting { raw, members, .. } = hosting;
    let Members { election, membership, .. } = members;
    let expected = message.from == from.0 && message.to == shared.me().0;
    if !expected || !vet::is_sound(raw, shared, &message) {
        shared.misdirected += 1;
        return;
    }
    let (last, term) = (raw.raft.raft_log.last_index(), raw.raft.term);
    let beats = message.get_msg_type() == MessageType::MsgHeartbeat;
    if beats && message.commit > last && message.term >= term {
        let fault = Fault::RolledBack { last, matched: message.commit };
        return hosting.end(shared, Stopped::Failed(fault), effects);
    }
    if !shared.recovery.configuration.contains(from) {
        membership.answer_non_member(shared, from, effects);
    }
    if election.drops(&message, shared) || shared.drops_for_space(raw, &message) {
        return;
    }
    election.hear(&message, shared.now);
    if shared.persist.is_full() {
        // The queue for the answer, which would have to wait, is full.
        return;
    }
    // An error means that the message does not fit the configuration or term. raft itself answers
    // where an answer is due.
    let _ = raw.step(message);
}

/// A peer asks for an object.
fn wanted(
    hosting: &mut Hosting,
    from: ReplicaId,
    want: &Want,
    now: u64,
    effects: &mut Vec<Effect>,
) {
    let Hosting { raw, snapshots, .. } = hosting;
    let Snapshots { checkpoints, retention, outgoing, wants, .. } = snapshots;
    let serves = |desc: &&SnapshotDesc| want.fits(desc) && !retention.is_corrupt(desc);
    match raw.store().listed().iter().find(serves).cloned() {
        Some(snapshot) => outgoing.serve(from, snapshot, effects),
        None => wants.checkpoint_for(raw, checkpoints, from, want, now),
    }
}

/// The lane applied entries.
fn lane_applied(
    hosting: &mut Hosting,
    shared: &mut Shared,
    applied: Applied,
    effects: &mut Vec<Effect>,
) {
    hosting.applying.pipeline.progressed(applied.last, applied.bytes);
    if let Some(clock) = applied.clock {
        shared.log_time.applied(clock.time_ms);
        hosting.applying.timer.applied(applied.last, clock);
        shared.runs(&clock);
    }
    for entry in applied.answers {
        hosting.clients.proposals.applied(entry, effects);
    }
    hosting.pass(applied.last, effects);
}

/// An object came from a peer.
fn received(
    hosting: &mut Hosting,
    shared: &mut Shared,
    snapshot: Verified,
    effects: &mut Vec<Effect>,
) {
    let undone = shared.recovery.amendments.undo(snapshot.desc.index);
    if undone || hosting.applying.pipeline.halt().is_some_and(Halt::waits_for_repair) {
        // Its sender does not know yet that it contains what is skipped, or that this replica is
        // not to go on by itself.
        let object = ObjectRef::of(&snapshot.desc);
        return effects.push(Effect::Judged { object, taken: false });
    }
    let (wants, mut concerns) = hosting.wants(effects);
    match wants.received(&mut concerns, shared, snapshot) {
        Received::Kept => {}
        Received::IsToBeListed(snapshot) => {
            shared.is_replaced(snapshot.desc.index);
            list_new(hosting, shared, snapshot, effects);
        }
        Received::Restarts => build::restart(hosting, shared, effects),
        Received::IsForRaft(snapshot) => hosting.snapshots.installs.received(snapshot, effects),
    }
}

fn list_new(
    hosting: &mut Hosting,
    shared: &mut Shared,
    snapshot: Verified,
    effects: &mut Vec<Effect>,
) {
    let (retention, mut around) = hosting.retention();
    retention.list_new(&mut around, shared, snapshot, effects);
}

/// A local snapshot is complete: it is to be listed, unless a newer one is already.
fn captured(
    hosting: &mut Hosting,
    shared: &mut Shared,
    snapshot: Verified,
    effects: &mut Vec<Effect>,
) {
    let desc = &snapshot.desc;
    hosting.snapshots.checkpoints.captured(desc.index, shared.now);
    hosting.applying.rebuilds.captured(desc, shared.memory);
    hosting.snapshots.retention.note_whole(desc, shared.now);
    let newer = shared.recovery.newest().is_none_or(|newest| newest.index < desc.index);
    if !shared.recovery.distrusts(desc.index) {
        shared.own.taken = Some(ObjectRef::of(desc));
    }
    if newer && !shared.recovery.distrusts(desc.index) {
        list_new(hosting, shared, snapshot, effects);
    }
}

/// An object turned out to be corrupt. One that is no longer listed cannot be repaired.
fn found_corrupt(hosting: &mut Hosting, shared: &Shared, snapshot: &SnapshotDesc) {
    if !hosting.snapshots.retention.found_corrupt(shared, snapshot) {
        hosting.snapshots.outgoing.promised_is_corrupt(snapshot, &mut hosting.raw);
        hosting.snapshots.retention.promises_changed();
    }
}

/// A recovery point was read in full, so that another may be given up.
fn was_read(hosting: &mut Hosting, shared: &Shared, snapshot: &SnapshotDesc, found: Found) {
    if matches!(found, Found::Bad(_)) {
        found_corrupt(hosting, shared, snapshot);
    }
    let (retention, mut around) = hosting.retention();
    retention.was_read(&mut around, shared, snapshot, found);
}

/// There may be too little space, or enough again.
fn space_changed(
    hosting: &mut Hosting,
    shared: &mut Shared,
    began: Option<Refusal>,
    effects: &mut Vec<Effect>,
) {
    hosting.settle_state(shared, effects);
    if let Some(refusal) = began {
        hosting.clients.proposals.refuse_waiting(&refusal, effects);
    }
}

/// The log's disk hangs, or answers again.
fn disk_stalled(
    hosting: &mut Hosting,
    shared: &mut Shared,
    stall: Option<Stall>,
    effects: &mut Vec<Effect>,
) {
    let refused = shared.disk_stalled(stall);
    hosting.settle_state(shared, effects);
    match refused {
        Some(refusal) => hosting.clients.proposals.refuse_waiting(&refusal, effects),
        // A leader that was elected meanwhile gets a full election timeout to be heard.
        None => hosting.raw.raft.election_elapsed = 0,
    }
}

/// Whether this replica accepts commands now.
fn may_propose(hosting: &Hosting, shared: &Shared) -> Result<(), Refusal> {
    hosting.may_lead(shared)?;
    if shared.switches().frozen {
        return Err(Refusal::Frozen);
    }
    shared.may_write()?;
    shared.has_space(&hosting.raw)
}

/// Whether this replica may wake the group's guest: whenever it would accept a command that is
/// meant to free memory.
fn may_wake(hosting: &Hosting, shared: &Shared) -> bool {
    let pipeline = &hosting.applying.pipeline;
    may_propose(hosting, shared).and_then(|()| shared.has_memory(&hosting.raw, true)).is_ok()
        && pipeline.is_applying()
        && !pipeline.is_behind()
        && !hosting.clients.upgrades.hold()
}

/// The process is about to stop: leadership goes to another replica first.
fn hand_over(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    let Hosting { raw, clients, members, .. } = hosting;
    let Clients { proposals, .. } = clients;
    let Members { election, .. } = members;
    proposals.refuse_waiting(&Refusal::ShuttingDown, effects);
    let under_way = raw.raft.lead_transferee.is_some();
    if raw.is_leader() && (under_way || election.transfer_to_best(raw, shared)) {
        return;
    }
    hosting.end(shared, Stopped::Requested, effects);
}

fn fetched(hosting: &mut Hosting, from: u64, entries: Option<Vec<Entry>>) {
    for context in hosting.raw.mut_store().fetched(from, entries) {
        hosting.raw.on_entries_fetched(context);
    }
    hosting.raw.mut_store().forget_fetched();
}

fn unreachable(hosting: &mut Hosting, node: NodeId) {
    let ids: Vec<u64> = hosting.raw.raft.prs().iter().map(|(id, _)| *id).collect();
    for id in ids.into_iter().filter(|id| ReplicaId(*id).node() == node) {
        hosting.raw.report_unreachable(id);
    }
}

fn answer_refusal(ticket: Ticket, taken: Result<(), Refusal>, effects: &mut Vec<Effect>) {
    if let Err(refusal) = taken {
        effects.push(Effect::Answer { ticket, answer: Err(refusal) });
    }
}

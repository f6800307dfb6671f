//! The order in which a raft `Ready` is carried out. No other file knows it.
//!
//! 1. A leader's messages leave at once, so that its appends travel while its own disk syncs
//!    (thesis 10.2.1). They wait only until its term is durable.
//! 2. Snapshot, entries and hard state become one batch, with the recovery state as of this ready.
//! 3. Messages that promise durability wait for that batch ([`release`]).
//! 4. Committed entries are handed over: configuration changes take effect, and the floor moves.
//!
//! raft is not called between `ready()` and `advance_append_async`. A ready that only moves the
//! commit index writes nothing: the next batch carries the index, or a tick writes it.

use protobuf::Message as _;
use raft::StateRole;
use raft::eraftpb::{
    ConfChange, ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType,
};

use crate::amendment::{Amendment, Change};
use crate::codec::DecodeError;
use crate::entry::{self, EntryBody, footprint};
use crate::fault::{Fault, Refusal};
use crate::group::effect::{Effect, Stopped};
use crate::group::frame::Body;
use crate::group::hosting::Hosting;
use crate::group::membership::{self, single};
use crate::group::persist::{Listing, Promise};
use crate::group::{Shared, build, checkpoint};
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::{plant, planted};
use crate::recovery_state::RecoveryState;
use crate::snapshot::{Configuration, SnapshotDesc};

/// Takes one ready from raft and carries it out.
pub(super) fn process(hosting: &mut Hosting, shared: &mut Shared, effects: &mut Vec<Effect>) {
    let mut ready = hosting.raw.ready();
    let messages = ready.take_messages();
    for read in ready.take_read_states() {
        hosting.clients.reads.confirm(&read.request_ctx, read.index);
    }
    let entries = ready.take_entries();
    if let Some(state) = ready.hs() {
        let vote = if planted("forget_vote") { 0 } else { state.vote };
        shared.recovery.promise(state.term, vote, state.commit);
    }
    let listing = if ready.snapshot().is_empty() {
        None
    } else {
        Some(install(hosting, shared, &ready, effects))
    };
    hosting.raw.mut_store().append(&entries);
    let committed = ready.take_committed_entries();
    // Whether the commit index or the floor moves. A ready may also consist of messages only.
    let moves = ready.hs().is_some() || !committed.is_empty() || planted("write_at_rest");
    let mut promised = ready.take_persisted_messages();
    let number = ready.number();
    let must_sync = ready.must_sync();
    let stepped_down = ready.ss().is_some_and(|state| state.raft_state != StateRole::Leader);
    let promoted = ready.ss().is_some_and(|state| state.raft_state == StateRole::Leader);
    hosting.raw.advance_append_async(ready);
    hosting.members.election.count_leader(&hosting.raw);

    if planted("acknowledge_before_sync") {
        send_all(hosting, shared, std::mem::take(&mut promised), effects);
    }
    if hosting.durable.durable_term >= shared.recovery.term {
        send_all(hosting, shared, messages, effects);
    } else {
        // A single voter becomes leader in the same step that campaigns, so its term is not durable
        // yet. A learner must not hold entries of a term that may begin a second time.
        promised.extend(messages);
    }
    if stepped_down {
        hosting.stepped_down(shared, effects);
    }
    if promoted {
        hosting.members.membership.promoted(shared.now);
    }
    let written = |it: &RecoveryState| (it.configuration_index, it.unapplied, it.diverged);
    let before = written(&shared.recovery);
    deliver(hosting, shared, committed, effects);
    // A restarted replica counts quorums with the configuration on its disk. If that were outdated,
    // it might wait for a replica that has been replaced since.
    let must_write = must_sync || written(&shared.recovery) != before;
    if must_write {
        hosting.durable.unwritten_since = None;
        shared.persist_now(entries, effects);
    } else if moves {
        hosting.durable.unwritten_since.get_or_insert(shared.now);
    }
    let seq = shared.persist.emitted();
    let term = shared.recovery.term;
    let promise = Promise { seq, term, ready: Some(number), messages: promised, listing };
    shared.persist.promise(promise);
}

/// Releases what waited for batches that are durable now; says whether anything was released.
pub(super) fn release(
    hosting: &mut Hosting,
    shared: &mut Shared,
    effects: &mut Vec<Effect>,
) -> bool {
    let mut any = false;
    while let Some(promise) = shared.persist.kept() {
        any = true;
        hosting.durable.durable_term = hosting.durable.durable_term.max(promise.term);
        if let Some(number) = promise.ready {
            hosting.raw.on_persist_ready(number);
            if planted("commit_alone") && hosting.raw.is_leader() {
                let log = &mut hosting.raw.raft.raft_log;
                log.commit_to(log.persisted);
            }
        }
        if let Some(listing) = promise.listing {
            list(hosting, shared, listing, effects);
        }
        send_all(hosting, shared, promise.messages, effects);
    }
    any
}

/// raft accepted a snapshot: this ready's batch resets the log to it.
fn install(
    hosting: &mut Hosting,
    shared: &mut Shared,
    ready: &raft::Ready,
    effects: &mut Vec<Effect>,
) -> Listing {
    let mut snapshot = hosting.snapshots.installs.accepted(ready.snapshot().get_data());
    snapshot.hold.disarm();
    let desc = snapshot.desc;
    hosting.raw.mut_store().reset(&desc);
    hosting.applying.pipeline.supersede();
    hosting.snapshots.checkpoints.installed(desc.index);
    shared.is_replaced(desc.index);
    shared.recovery.install(desc);
    let listing = Listing {
        snapshots: shared.recovery.snapshots.clone(),
        first_index: shared.recovery.first_index,
        hold: Some(snapshot.hold),
        installed: true,
    };
    // The guest will be built from this snapshot, so a peer's answer is no longer needed.
    hosting.snapshots.wants.met();
    hosting.settle_state(shared, effects);
    listing
}

/// The list is durable: its objects may be offered, others deleted, and an installed one restored.
fn list(hosting: &mut Hosting, shared: &mut Shared, listing: Listing, effects: &mut Vec<Effect>) {
    let Listing { snapshots, first_index, hold, installed } = listing;
    let log = hosting.raw.mut_store();
    log.set_listed(&snapshots);
    log.serve_nothing(shared.recovery.diverged > 0);
    if first_index <= log.last() + 1 {
        log.compact(first_index);
    }
    let newest = snapshots.first().expect("a listing lists something").clone();
    hosting.snapshots.retention.listed(&snapshots, hold);
    hosting.tell_list(effects);
    hosting.snapshots.checkpoints.retry_capture(&mut hosting.applying.pipeline, effects);
    let (pipeline, corrupt) = (&hosting.applying.pipeline, hosting.snapshots.retention.corrupt());
    if hosting.snapshots.wants.is_met_by(pipeline, hosting.raw.store(), corrupt) {
        build::restart(hosting, shared, effects);
    }
    if installed {
        // raft advances the applied index only over what it knows to be persisted, which this
        // snapshot is only now.
        hosting.raw.advance_apply_to(newest.index);
        hosting.applying.pipeline.restore(newest, effects);
    }
}

/// Gives committed entries to the pipeline, and lets configuration changes take effect.
fn deliver(
    hosting: &mut Hosting,
    shared: &mut Shared,
    committed: Vec<Entry>,
    effects: &mut Vec<Effect>,
) {
    let Some(last) = committed.last().map(|entry| entry.index) else { return };
    let before = shared.recovery.floor;
    let mut range = Vec::with_capacity(committed.len());
    for entry in committed {
        hosting.snapshots.checkpoints.passed(&entry);
        let is_normal = entry.get_entry_type() == EntryType::EntryNormal;
        let checkpoint = is_normal && entry::is_checkpoint(&entry.data);
        let changes = !is_normal || entry.index == 1;
        if changes
            && entry.index > shared.recovery.configuration_index
            && let Err(why) = change(hosting, shared, &entry)
        {
            let fault = Fault::Internal(format!("configuration change at {}: {why}", entry.index));
            return hosting.end(shared, Stopped::Failed(fault), effects);
        }
        let (term, index) = (entry.term, entry.index);
        hosting.clients.orders.committed(index, term, effects);
        if is_normal
            && entry::is_order(&entry.data)
            && let Err(why) = obey(hosting, shared, &entry, effects)
        {
            let fault = Fault::Internal(format!("entry {index}: {why}"));
            return hosting.end(shared, Stopped::Failed(fault), effects);
        }
        if is_normal
            && entry::is_verdict(&entry.data)
            && let Ok(EntryBody::Verdict { index: of, against, .. }) =
                EntryBody::decode(entry.data.clone())
        {
            shared.is_judged(index, of, &against);
        }
        range.push(entry);
        if checkpoint {
            hosting.clients.checkpoint_requests.committed(index, effects);
        }
        if checkpoint
            && hosting.applying.pipeline.captures()
            && hosting.snapshots.checkpoints.begin_capture(index, shared.now)
        {
            plant!("capture_early" skips push(hosting, std::mem::take(&mut range)));
            let capture = checkpoint::capture(hosting.raw.store(), shared, term, index);
            hosting.applying.pipeline.push_capture(capture);
        }
    }
    push(hosting, range);
    shared.recovery.deliver(last);
    hosting.raw.advance_apply_to(last);
    hosting.raw.mut_store().trim_window(last);
    build::amended(hosting, shared, before, effects);
    build::judged(hosting, shared, effects);
}

/// Obeys an operator's order that is handed over.
fn obey(
    hosting: &mut Hosting,
    shared: &mut Shared,
    entry: &Entry,
    effects: &mut Vec<Effect>,
) -> Result<(), DecodeError> {
    let change = match EntryBody::decode(entry.data.clone())? {
        EntryBody::Skip { index, .. } => Change::Skip { index },
        EntryBody::Limits { limits, .. } => Change::Limits(limits),
        EntryBody::Upgrade { module, resume_at: index @ 1.., .. } => {
            Change::Module { index, module }
        }
        EntryBody::Freeze { frozen, .. } => {
            shared.freeze(entry.index, frozen);
            if frozen {
                hosting.clients.proposals.refuse_waiting(&Refusal::Frozen, effects);
            }
            hosting.settle_state(shared, effects);
            return Ok(());
        }
        EntryBody::OnFault { on_fault, .. } => {
            shared.set_on_fault(entry.index, on_fault);
            return Ok(());
        }
        _other => return Ok(()),
    };
    plant!("amend_nothing" skips shared.recovery.amend(Amendment { at: entry.index, change }));
    Ok(())
}

/// Gives the pipeline entries, and says which of them tickets wait for.
fn push(hosting: &mut Hosting, entries: Vec<Entry>) {
    let awaited = hosting.clients.proposals.awaited(&entries);
    hosting.applying.pipeline.push(entries, awaited);
}

/// Lets the configuration change in `entry` take effect.
fn change(hosting: &mut Hosting, shared: &mut Shared, entry: &Entry) -> Result<(), String> {
    let changes = match entry.get_entry_type() {
        EntryType::EntryNormal => initial_voters(entry)?,
        EntryType::EntryConfChange => {
            let change = ConfChange::parse_from_bytes(&entry.data).map_err(|e| e.to_string())?;
            vec![membership::change(vec![single(
                change.get_change_type(),
                ReplicaId(change.node_id),
            )])]
        }
        EntryType::EntryConfChangeV2 => {
            vec![ConfChangeV2::parse_from_bytes(&entry.data).map_err(|e| e.to_string())?]
        }
    };
    for change in changes {
        let state = hosting.raw.apply_conf_change(&change).map_err(|e| e.to_string())?;
        shared.recovery.configure(Configuration::from_raft(&state), entry.index);
    }
    Ok(())
}

/// Entry 1 makes the first configuration: it adds the initial voters one after the other, as raft
/// requires.
fn initial_voters(entry: &Entry) -> Result<Vec<ConfChangeV2>, String> {
    match EntryBody::decode(entry.data.clone()) {
        Ok(EntryBody::Bootstrap(record)) => Ok(record
            .initial_voters
            .into_iter()
            .map(|voter| membership::change(vec![single(ConfChangeType::AddNode, voter)]))
            .collect()),
        Ok(_) => Err("entry 1 is not the bootstrap record".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// Bytes of the entries that a message carries.
fn bytes(message: &Message) -> usize {
    message.entries.iter().map(footprint).sum()
}

/// Sends raft's messages. A snapshot message becomes a transfer on the bulk channel.
fn send_all(
    hosting: &mut Hosting,
    shared: &Shared,
    messages: Vec<Message>,
    effects: &mut Vec<Effect>,
) {
    for message in messages {
        let to = ReplicaId(message.to);
        if message.get_msg_type() != MessageType::MsgSnapshot {
            debug_assert!(bytes(&message) <= limits::FRAME_BYTES_MAX, "appends are bounded");
            shared.send(to.node(), Some(to), Body::Raft(message), effects);
            continue;
        }
        let desc = SnapshotDesc::from_bytes(message.get_snapshot().data.clone())
            .expect("raft carries the descriptor that the log gave it");
        if !hosting.snapshots.outgoing.is_sending_to(to) {
            hosting.snapshots.catch_ups.sends(to, &desc);
        }
        // A follower gets one transfer at a time: when that ends and is reported, raft asks again
        // if it must.
        hosting.snapshots.outgoing.follow(to, desc, shared.now, effects);
        hosting.snapshots.outgoing.offer_promised(&mut hosting.raw);
    }
}

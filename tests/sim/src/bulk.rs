//! Moves transfers along: one frame, one tick, one report at a time.

use lockstep_core::group::Event;
use lockstep_core::ids::{GroupId, NodeId, ReplicaId};
use lockstep_core::snapshot::chunk::{
    BUSY_RETRY_MS, BulkReply, Expected, ObjectRef, Offer, Purpose,
};
use lockstep_core::snapshot::receive::{ReceiveEnd, ReceiveInput};
use lockstep_core::snapshot::send::{Next, Report, SendEnd, SendInput, SendOutcome};
use lockstep_core::snapshot::{SnapshotDesc, chunk};
use lockstep_host::bulk::{Receiving, Sending, Sent, Step};
use lockstep_host::store::{SnapshotRefusal, Use};

use crate::node::CLUSTER;
use crate::transfer::Transfer;
use crate::world::{Action, MS, World};

/// A transfer to begin.
pub struct Wish {
    /// The receiver.
    pub to: ReplicaId,
    pub snapshot: SnapshotDesc,
    pub purpose: Purpose,
    /// The sender does not have the snapshot that the receiver prefers.
    pub insist: bool,
}

const BLOCK_US: (u64, u64) = (MS, 20 * MS);
const GIVE_UP_US: u64 = 10_000 * MS;

impl World {
    pub(crate) fn begin_transfer(&mut self, node: NodeId, group: GroupId, wish: Wish) {
        let Wish { to, snapshot: desc, purpose, insist } = wish;
        self.ids += 1;
        let id = self.ids;
        self.checks.reports.begun(id, self.now);
        self.counters.add("transfers begun");
        let process = self.nodes[&node].process.as_ref().expect("it sends");
        let (epoch, budget) = (process.epoch, std::sync::Arc::clone(&process.budget));
        let replica = &process.replicas[&group];
        let status = replica.group.recovery_state();
        let (from, term) = (status.replica, status.term);
        let failed = || {
            let report = Report::Failure;
            Event::TransferEnded { to, purpose, report, prefers: None }
        };
        let report = |event: Event| Action::Report {
            transfer: id,
            node,
            epoch,
            group,
            event: Box::new(event),
        };
        let Some(slot) = budget.take_outbound(&Default::default()) else {
            return self.after(BUSY_RETRY_MS * MS, report(failed()));
        };
        let object = desc.clone();
        let opened = replica.with_store(move |store| store.open_object(&object, Use::Sending(to)));
        let reader = match opened {
            Ok(reader) => reader,
            Err(error) => {
                if !error.is_short() {
                    let event = Event::Corrupt { snapshot: desc, why: error.to_string() };
                    self.after(1, Action::Event { node, epoch, group, event: Box::new(event) });
                }
                return self.after(2, report(failed()));
            }
        };
        let there = to.node();
        if self.network.is_cut(node, there) || self.nodes[&there].process.is_none() {
            return self.after(chunk::BROKEN_RETRY_MS * MS, report(failed()));
        }
        let cluster = CLUSTER;
        let offer = Offer { cluster, group, from, to, term, desc: desc.clone(), purpose, insist };
        let (sending, sent) = Sending::begin(reader, offer);
        let to_epoch = self.nodes[&there].process.as_ref().map_or(0, |process| process.epoch);
        let transfer = Transfer {
            group,
            from: (node, epoch),
            to: (there, to_epoch),
            receiver: to,
            purpose,
            desc,
            sending: Some(sending),
            receiving: None,
            _slot: slot,
            requests: Default::default(),
            replies: Default::default(),
            receiver_broken: false,
            sender_broken: false,
            stalled_until: 0,
        };
        self.transfers.insert(id, transfer);
        self.after(100 * MS, Action::BulkTick { transfer: id });
        if std::mem::take(&mut self.ambush) {
            let delay = self.rng.between(5 * MS, 80 * MS);
            self.after(delay, Action::Trouble { transfer: id });
        }
        self.sent(id, sent);
    }

    /// Sends the frames of the sending side, and ends that side if it is done.
    fn sent(&mut self, id: u64, sent: Sent) {
        for frame in sent.frames {
            let Some(transfer) = self.transfers.get_mut(&id) else { return };
            transfer.requests.push_back(frame);
            let delay = self.rng.between(BLOCK_US.0, BLOCK_US.1);
            self.after(delay, Action::Bulk { transfer: id, to_receiver: true });
        }
        if let Some(outcome) = sent.outcome {
            self.sender_ended(id, outcome);
        }
    }

    fn sender_ended(&mut self, id: u64, outcome: SendOutcome) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        transfer.sending = None;
        let ((node, epoch), group) = (transfer.from, transfer.group);
        let (to, purpose, snapshot) = (transfer.receiver, transfer.purpose, transfer.desc.clone());
        if let SendEnd::SourceBad(why) = &outcome.end {
            let event = Box::new(Event::Corrupt { snapshot, why: why.clone() });
            self.after(1, Action::Event { node, epoch, group, event });
        }
        let (delay, prefers) = match outcome.next {
            Next::Done => (1, None),
            Next::Prefer(object) => {
                self.counters.add("another object preferred");
                (1, Some(object))
            }
            Next::Wait { ms } => (ms * MS, None),
            Next::GiveUp => (GIVE_UP_US, None),
        };
        let report = outcome.report;
        if report == Report::Finish {
            self.counters.add("transfers");
        }
        let event = Box::new(Event::TransferEnded { to, purpose, report, prefers });
        let coming = self.checks.reports.coming(id);
        self.check(coming);
        self.after(delay, Action::Report { transfer: id, node, epoch, group, event });
        // The channel closes, which a receiver that still waits must see.
        self.break_receiver(id);
    }

    pub(crate) fn bulk_step(&mut self, id: u64, to_receiver: bool) {
        let now = self.now;
        let Some(transfer) = self.transfers.get(&id) else { return };
        if transfer.stalled_until > now {
            // At most for a tenth of a second at a time: healing may end the stall early.
            let until = transfer.stalled_until.min(now + 100 * MS);
            return self.at(until, Action::Bulk { transfer: id, to_receiver });
        }
        let ends = (transfer.from.0, transfer.to.0);
        let (sender, node) = if to_receiver { ends } else { (ends.1, ends.0) };
        if self.network.is_cut(sender, node) {
            return self.at(now + 100 * MS, Action::Bulk { transfer: id, to_receiver });
        }
        if self.is_paused(node) {
            let until = self.nodes[&node].paused_until.min(now + 100 * MS) + 1;
            return self.at(until, Action::Bulk { transfer: id, to_receiver });
        }
        if self.nodes[&node].store_is_hanging() {
            return self.at(now + 100 * MS, Action::Bulk { transfer: id, to_receiver });
        }
        if to_receiver {
            self.receiver_hears(id);
        } else {
            self.sender_hears(id);
        }
    }

    fn receiver_hears(&mut self, id: u64) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        let Some(frame) = transfer.requests.pop_front() else { return };
        if transfer.receiver_broken {
            return;
        }
        let ((node, epoch), group) = (transfer.to, transfer.group);
        if self.process(node, epoch).is_none() {
            return self.break_sender(id);
        }
        match frame.clone().into_offer() {
            Ok(offer) => self.offered(id, offer),
            Err(_) => self.receiver_input(id, ReceiveInput::Frame(frame)),
        }
        self.fall_if_halted(node);
        let _ = group;
    }

    fn offered(&mut self, id: u64, offer: Offer) {
        let transfer = &self.transfers[&id];
        let ((node, epoch), group) = (transfer.to, transfer.group);
        let Some(process) = self.process(node, epoch) else { return };
        let Some(replica) = process.replicas.get(&group) else { return };
        let status = replica.group.status();
        let expected = Expected {
            cluster: CLUSTER,
            group,
            replica: status.replica,
            commit: status.commit,
            wanted: status.wanted,
        };
        let receiving = Receiving::begin(&offer, &expected);
        let transfer = self.transfers.get_mut(&id).expect("it is under way");
        transfer.receiving = Some(receiving);
        self.receiver_advance(id, None);
    }

    fn receiver_input(&mut self, id: u64, input: ReceiveInput) {
        self.receiver_advance(id, Some(input));
    }

    fn receiver_advance(&mut self, id: u64, input: Option<ReceiveInput>) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        let Some(mut receiving) = transfer.receiving.take() else { return };
        let ((node, epoch), group, desc) = (transfer.to, transfer.group, transfer.desc.clone());
        let Some(process) = self.process(node, epoch) else { return };
        let Some(replica) = process.replicas.get(&group) else { return };
        let store = std::sync::Arc::clone(&replica.store);
        let mut replies = Vec::new();
        let mut sink = |reply: BulkReply| {
            replies.push(reply);
            Ok(())
        };
        let step = match input {
            None => receiving.advance(&*store, &mut sink),
            Some(input) => receiving.step(input, &*store, &mut sink),
        };
        for reply in replies {
            let Some(transfer) = self.transfers.get_mut(&id) else { return };
            transfer.replies.push_back(reply);
            let delay = self.rng.between(BLOCK_US.0, BLOCK_US.1);
            self.after(delay, Action::Bulk { transfer: id, to_receiver: false });
        }
        match step {
            Step::More => self.keep(id, receiving),
            Step::Deliver(snapshot) => {
                self.keep(id, receiving);
                let Some(process) = self.process(node, epoch) else { return };
                let Some(replica) = process.replicas.get_mut(&group) else { return };
                replica.judged = Some((ObjectRef::of(&desc), id));
                self.event(node, group, vec![Event::Received { snapshot }]);
            }
            Step::Ended(received) => {
                let accepted = ReceiveEnd::Answered(BulkReply::Accepted);
                if received.resumed_bytes > 0 && received.end == accepted {
                    self.counters.add("resumed transfers");
                }
                if received.end.suspends() && received.bytes + received.resumed_bytes > 0 {
                    self.counters.add("suspended transfers");
                }
                if let Some(SnapshotRefusal::NeedsUnlist(unlist)) = received.refusal {
                    let event = Event::SpaceWanted { unlist: *unlist, capture: None };
                    self.event(node, group, vec![event]);
                }
                self.forget_if_over(id);
            }
        }
    }

    fn keep(&mut self, id: u64, receiving: Receiving) {
        if let Some(transfer) = self.transfers.get_mut(&id) {
            transfer.receiving = Some(receiving);
        }
    }

    /// The core has decided whether it takes a received object.
    pub(crate) fn judged(&mut self, id: u64, taken: bool) {
        let Some(transfer) = self.transfers.get(&id) else { return };
        if taken && transfer.purpose == Purpose::Wanted {
            self.counters.add("repairs");
        }
        let reply = if taken { BulkReply::Accepted } else { BulkReply::Stale };
        self.receiver_input(id, ReceiveInput::Answered(reply));
    }

    fn sender_hears(&mut self, id: u64) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        let Some(reply) = transfer.replies.pop_front() else { return };
        if transfer.sender_broken {
            return;
        }
        self.sender_input(id, SendInput::Reply(reply));
    }

    fn sender_input(&mut self, id: u64, input: SendInput) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        let (node, epoch) = transfer.from;
        if self.process(node, epoch).is_none() {
            return;
        }
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        let Some(sending) = &mut transfer.sending else { return };
        let sent = sending.step(input);
        self.sent(id, sent);
        self.fall_if_halted(node);
    }

    pub(crate) fn bulk_tick(&mut self, id: u64) {
        let Some(transfer) = self.transfers.get(&id) else { return };
        let (from, to) = (transfer.from, transfer.to);
        let stands = |id| self.is_paused(id) || self.nodes[&id].store_is_hanging();
        let (receives, sends) = (transfer.receiving.is_some() && !stands(to.0), !stands(from.0));
        if receives && self.process(to.0, to.1).is_some() {
            self.receiver_input(id, ReceiveInput::Tick);
        }
        if sends {
            self.sender_input(id, SendInput::Tick);
        } else {
            self.counters.add("transfers of paused nodes");
        }
        if self.process(from.0, from.1).is_none() {
            self.break_receiver(id);
        }
        if self.process(to.0, to.1).is_none() {
            self.break_sender(id);
        }
        self.forget_if_over(id);
        if self.transfers.contains_key(&id) {
            self.after(100 * MS, Action::BulkTick { transfer: id });
        }
    }

    fn break_sender(&mut self, id: u64) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        transfer.sender_broken = true;
        self.sender_input(id, SendInput::Broken("the peer is gone".to_owned()));
    }

    fn break_receiver(&mut self, id: u64) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        if transfer.receiver_broken {
            return;
        }
        transfer.receiver_broken = true;
        self.receiver_input(id, ReceiveInput::Broken("the peer is gone".to_owned()));
    }

    /// Breaks a transfer's channel at both ends.
    pub(crate) fn cut_transfer(&mut self, id: u64) {
        self.break_receiver(id);
        self.break_sender(id);
        self.forget_if_over(id);
    }

    /// A process has ended: its transfers break at their other end.
    pub(crate) fn forget_transfers_of(&mut self, node: NodeId, epoch: u64) {
        let ids: Vec<u64> = self.transfers.keys().copied().collect();
        for id in ids {
            let Some(transfer) = self.transfers.get_mut(&id) else { continue };
            if transfer.from == (node, epoch) {
                transfer.sending = None;
                self.checks.reports.forgotten(id);
                self.break_receiver(id);
            } else if transfer.to == (node, epoch) {
                transfer.receiving = None;
                transfer.receiver_broken = true;
                self.break_sender(id);
            }
            self.forget_if_over(id);
        }
    }

    fn forget_if_over(&mut self, id: u64) {
        let over = self
            .transfers
            .get(&id)
            .is_some_and(|transfer| transfer.sending.is_none() && transfer.receiving.is_none());
        if over {
            self.transfers.remove(&id);
        }
    }
}

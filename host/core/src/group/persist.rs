//! What waits for the log lane: the numbers of raft's readies, and messages that promise
//! durability.

use std::collections::VecDeque;

use raft::eraftpb::Message;

use crate::limits;
use crate::snapshot::{Hold, SnapshotDesc};

/// Batches that were emitted and are not durable yet, in order.
#[derive(Default)]
pub(super) struct PersistQueue {
    emitted: u64,
    durable: u64,
    waiting: VecDeque<Promise>,
}

/// What may be released once the batch `seq` is durable.
pub(super) struct Promise {
    pub seq: u64,
    /// The term that this batch or an earlier one makes durable.
    pub term: u64,
    /// raft's number of the ready that this batch came from.
    pub ready: Option<u64>,
    pub messages: Vec<Message>,
    pub listing: Option<Listing>,
}

/// A change of the durable list of recovery points.
pub(super) struct Listing {
    pub snapshots: Vec<SnapshotDesc>,
    pub first_index: u64,
    /// The hold on the object that is new in the list.
    pub hold: Option<Box<dyn Hold>>,
    /// The first of `snapshots` came from a peer and replaces the guest.
    pub installed: bool,
}

impl PersistQueue {
    pub(super) fn next(&mut self) -> u64 {
        self.emitted += 1;
        self.emitted
    }

    /// The sequence number of the last batch emitted.
    pub(super) fn emitted(&self) -> u64 {
        self.emitted
    }

    /// Whether this replica's boot count, the first batch of every start, is durable.
    pub(super) fn is_booted(&self) -> bool {
        self.durable > 0
    }

    /// Whether everything emitted is durable.
    pub(super) fn is_idle(&self) -> bool {
        self.durable == self.emitted
    }

    /// Whether so many promises wait for batches that no more may be added.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= limits::PROMISES_WAITING_MAX
    }

    pub(super) fn reached(&self, seq: u64) -> bool {
        self.durable >= seq
    }

    pub(super) fn durable(&mut self, seq: u64) {
        assert!(seq <= self.emitted, "only what was emitted becomes durable");
        self.durable = self.durable.max(seq);
    }

    pub(super) fn promise(&mut self, promise: Promise) {
        self.waiting.push_back(promise);
    }

    /// Takes the next promise whose batch is durable.
    pub(super) fn kept(&mut self) -> Option<Promise> {
        match self.waiting.front() {
            Some(promise) if promise.seq <= self.durable => self.waiting.pop_front(),
            Some(_) | None => None,
        }
    }
}

//! What waits for the log lane: numbers of raft's readies, and the messages that promise
//! durability.

use std::collections::VecDeque;

use raft::eraftpb::Message;

use crate::limits;
use crate::snapshot::{Hold, SnapshotDesc};

/// Batches emitted and not yet durable, in order.
#[derive(Default)]
pub(super) struct PersistQueue {
    emitted: u64,
    durable: u64,
    waiting: VecDeque<Promise>,
}

/// What becomes true when the batch `seq` is durable.
pub(super) struct Promise {
    pub seq: u64,
    /// The term that the batch, or one before it, carries.
    pub term: u64,
    /// raft's number of the ready it came from.
    pub ready: Option<u64>,
    pub messages: Vec<Message>,
    pub listing: Option<Listing>,
}

/// The durable list of recovery points changes with this batch.
pub(super) struct Listing {
    pub snapshots: Vec<SnapshotDesc>,
    pub first_index: u64,
    /// Of the object that is new in the list.
    pub hold: Option<Box<dyn Hold>>,
    /// The first of `snapshots` came from a peer and replaces the guest.
    pub installed: bool,
}

impl PersistQueue {
    pub(super) fn next(&mut self) -> u64 {
        self.emitted += 1;
        self.emitted
    }

    /// The last batch emitted.
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

    /// Whether so much waits for batches that no more may be promised.
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

    /// The next promise whose batch is durable.
    pub(super) fn kept(&mut self) -> Option<Promise> {
        match self.waiting.front() {
            Some(promise) if promise.seq <= self.durable => self.waiting.pop_front(),
            Some(_) | None => None,
        }
    }
}

//! A node's metrics, and how they are exported.
//!
//! Counters live beside what they count, and each group's report gathers them; [`NodeMetrics`]
//! turns the reports into the text that Prometheus reads, at each scrape. Nothing is pushed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::ids::ReplicaId;
use lockstep_core::snapshot::chunk::BulkReply;
use lockstep_core::snapshot::receive::ReceiveEnd;
use lockstep_core::snapshot::send::{SendEnd, SendOutcome};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::bulk::Received;

mod export;
mod port;
mod process;
pub mod serve;

pub use export::NodeMetrics;
pub(crate) use export::Sources;

/// A histogram of durations from 50 microseconds to 26 seconds.
pub(crate) fn seconds_histogram() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 2.0, 20))
}

/// Counts the snapshot transfers of one group, inbound and outbound.
#[derive(Default)]
pub struct Transfers(Mutex<TransferTally>);

/// Counts and sizes of a group's transfers since the process started.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TransferTally {
    /// Outbound transfers that ended, by how they ended.
    pub sent: BTreeMap<&'static str, u64>,
    /// Inbound transfers that ended, by how they ended.
    pub received: BTreeMap<&'static str, u64>,
    /// Payload bytes sent and received.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Inbound transfers that resumed a suspended one, and the bytes that were not sent again.
    pub resumed: u64,
    pub resumed_bytes: u64,
    /// Duration of the last accepted transfer, milliseconds.
    pub last_sent_ms: u64,
    pub last_received_ms: u64,
    /// Outbound transfers under way, by receiver: bytes sent so far, and the snapshot's length.
    pub under_way: BTreeMap<ReplicaId, (u64, u64)>,
}

impl Transfers {
    /// Records that `bytes` of a snapshot of `length` bytes have been sent to a replica.
    pub fn is_at(&self, to: ReplicaId, bytes: u64, length: u64) {
        self.tally().under_way.insert(to, (bytes, length));
    }

    pub fn sent(&self, to: ReplicaId, outcome: &SendOutcome, bytes: u64, took: Duration) {
        let mut tally = self.tally();
        tally.under_way.remove(&to);
        let end = send_end(&outcome.end);
        *tally.sent.entry(end).or_default() += 1;
        tally.sent_bytes += bytes;
        if end == "accepted" {
            tally.last_sent_ms = took.as_millis() as u64;
        }
    }

    pub fn received(&self, received: &Received, took_ms: u64) {
        let mut tally = self.tally();
        let end = receive_end(&received.end);
        *tally.received.entry(end).or_default() += 1;
        tally.received_bytes += received.bytes;
        if received.resumed_bytes > 0 {
            tally.resumed += 1;
            tally.resumed_bytes += received.resumed_bytes;
        }
        if end == "accepted" {
            tally.last_received_ms = took_ms;
        }
    }

    pub fn now(&self) -> TransferTally {
        self.tally().clone()
    }

    fn tally(&self) -> MutexGuard<'_, TransferTally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a transfer can end with a reply of the receiver. Without a reply, it ends on the sender's
/// side in one of [`SEND_ENDS`], on the receiver's in one of [`RECEIVE_ENDS`].
pub(crate) const REPLY_ENDS: [&str; 8] = [
    "accepted",
    "stale",
    "busy",
    "prefers_another",
    "no_space",
    "corrupt",
    "incompatible",
    "wrong_group",
];
pub(crate) const SEND_ENDS: [&str; 4] = ["stalled", "broken", "source_bad", "protocol"];
pub(crate) const RECEIVE_ENDS: [&str; 2] = ["stalled", "broken"];

fn send_end(end: &SendEnd) -> &'static str {
    match end {
        SendEnd::Replied(reply) => reply_word(reply),
        SendEnd::Stalled => "stalled",
        SendEnd::Broken(_) => "broken",
        SendEnd::SourceBad(_) => "source_bad",
        SendEnd::Protocol(_) => "protocol",
    }
}

fn receive_end(end: &ReceiveEnd) -> &'static str {
    match end {
        ReceiveEnd::Answered(reply) | ReceiveEnd::Refused(reply) => reply_word(reply),
        ReceiveEnd::Stalled => "stalled",
        ReceiveEnd::Broken(_) => "broken",
    }
}

fn reply_word(reply: &BulkReply) -> &'static str {
    match reply {
        BulkReply::Proceed { .. } | BulkReply::Credit { .. } => "under_way",
        BulkReply::Accepted => "accepted",
        BulkReply::Stale => "stale",
        BulkReply::Busy { .. } => "busy",
        BulkReply::Prefer(_) => "prefers_another",
        BulkReply::NoSpace { .. } => "no_space",
        BulkReply::Corrupt => "corrupt",
        BulkReply::Incompatible { .. } => "incompatible",
        BulkReply::WrongGroup => "wrong_group",
    }
}

//! Outgoing snapshots: one worker a transfer, and exactly one report to raft.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_core::group::{Event, Group};
use lockstep_core::ids::ReplicaId;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{BUSY_RETRY_MS, BulkReply, BulkRequest, Offer, Purpose};
use lockstep_core::snapshot::send::{Next, Report, SendEnd};

use crate::bulk::{self, BulkChannel, OutboundReport};
use crate::group::{GroupHandle, Lanes, open_object};
use crate::store::Use;

/// The wait before raft hears of an object that can never be taken, so that it does not offer at
/// once.
const GIVE_UP_WAIT: Duration = Duration::from_secs(10);

/// What is to be sent, and why.
pub(crate) struct Outbound {
    pub to: ReplicaId,
    pub snapshot: SnapshotDesc,
    pub purpose: Purpose,
    pub insist: bool,
}

/// Starts sending.
pub(crate) fn spawn(lanes: &Lanes, handle: &GroupHandle, group: &Group, outbound: Outbound) {
    let Outbound { to, snapshot, purpose, insist } = outbound;
    let (teller, moved) = (handle.clone(), Arc::new(AtomicBool::new(false)));
    let moves = Arc::clone(&moved);
    let report = OutboundReport::new(move |report, prefers| {
        let (ok, moved) = (report == Report::Finish, moved.load(Ordering::Relaxed));
        teller.raise(Event::TransferEnded { to, purpose, ok, moved, prefers });
    });
    let offer = Offer {
        cluster: lanes.cluster,
        group: handle.id(),
        from: group.recovery_state().replica,
        to,
        term: group.recovery_state().term,
        desc: snapshot,
        purpose,
        insist,
    };
    let (store, transport) = (Arc::clone(&lanes.store), Arc::clone(&lanes.transport));
    let (budget, transfers) = (Arc::clone(&lanes.budget), Arc::clone(&lanes.transfers));
    let (rate, handle) = (lanes.rate, handle.clone());
    tokio::task::spawn_blocking(move || {
        let (group, desc) = (offer.group, offer.desc.clone());
        let index = desc.index;
        let busy = Duration::from_millis(BUSY_RETRY_MS);
        let Some(slot) = budget.take_outbound() else { return std::thread::sleep(busy) };
        let reader = open_object(&*store, &desc, Use::Sending(to));
        let channel = transport.bulk(to.node());
        match (reader, channel) {
            (Ok(reader), Ok(channel)) => {
                let at: Progress = Box::new({
                    let (transfers, length) = (Arc::clone(&transfers), desc.length);
                    move |bytes| {
                        moves.store(true, Ordering::Relaxed);
                        transfers.is_at(to, bytes, length);
                    }
                });
                let mut channel = Paced::new(channel, rate, at);
                let began = Instant::now();
                let outcome = bulk::send(reader, offer, &mut channel);
                transfers.sent(to, &outcome, channel.bytes, began.elapsed());
                if let SendEnd::SourceBad(why) = &outcome.end {
                    handle.raise(Event::Rotten { snapshot: desc, why: why.clone() });
                }
                // Whoever waits holds no place.
                drop(slot);
                match outcome.next {
                    Next::Done => report.report(outcome.report, None),
                    Next::Prefer(object) => report.report(outcome.report, Some(object)),
                    Next::Wait { ms } => {
                        std::thread::sleep(Duration::from_millis(ms));
                        report.report(outcome.report, None);
                    }
                    Next::GiveUp => {
                        std::thread::sleep(GIVE_UP_WAIT);
                        report.report(outcome.report, None);
                    }
                }
            }
            (Err(error), _) => {
                tracing::warn!(%group, %to, index, error, "snapshot not sent: the object is bad");
                handle.raise(Event::Rotten { snapshot: desc, why: error });
                std::thread::sleep(busy);
            }
            (_, Err(error)) => {
                tracing::warn!(%group, %to, index, %error, "snapshot not sent: no channel");
            }
        }
    });
}

/// Told how many bytes of the payload are sent.
type Progress = Box<dyn Fn(u64) + Send>;

/// A channel that lets blocks pass no faster than they may.
struct Paced {
    inner: Box<dyn BulkChannel<BulkRequest, BulkReply> + Send>,
    /// Bytes a second; 0 = as fast as they go.
    rate: u64,
    began: Instant,
    /// Bytes of blocks so far.
    bytes: u64,
    at: Progress,
}

impl Paced {
    fn new(
        inner: Box<dyn BulkChannel<BulkRequest, BulkReply> + Send>,
        rate: u64,
        at: Progress,
    ) -> Self {
        Self { inner, rate, began: Instant::now(), bytes: 0, at }
    }
}

impl BulkChannel<BulkRequest, BulkReply> for Paced {
    fn send(&mut self, frame: BulkRequest) -> std::io::Result<()> {
        if let BulkRequest::Block(block) = &frame {
            if let Some(due) = self.bytes.saturating_mul(1000).checked_div(self.rate) {
                let due = Duration::from_millis(due);
                std::thread::sleep(due.saturating_sub(self.began.elapsed()));
            }
            self.bytes += block.data.len() as u64;
            (self.at)(block.offset + block.data.len() as u64);
        }
        self.inner.send(frame)
    }

    fn recv(&mut self, timeout: Duration) -> std::io::Result<Option<BulkReply>> {
        self.inner.recv(timeout)
    }
}

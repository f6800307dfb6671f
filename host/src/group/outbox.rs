//! Outgoing snapshots: one worker for each transfer, and exactly one report to raft.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_core::group::{Event, Group};
use lockstep_core::ids::ReplicaId;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{
    BROKEN_RETRY_MS, BUSY_RETRY_MS, BulkReply, BulkRequest, ObjectRef, Offer, Purpose,
};
use lockstep_core::snapshot::send::{Next, Report, SendEnd};
use tokio::sync::oneshot;

use crate::bulk::{self, BulkChannel, OutboundReport};
use crate::group::{GroupHandle, Lanes, open_object};
use crate::metrics::Transfers;
use crate::store::{StoreHandle, Use};
use crate::transport::Transport;

/// How long the report of [`Next::GiveUp`](lockstep_core::snapshot::send::Next) is held back, so
/// that raft does not offer the object again at once.
const GIVE_UP_WAIT: Duration = Duration::from_secs(10);

/// What is to be sent, and why.
pub(crate) struct Outbound {
    pub to: ReplicaId,
    pub snapshot: SnapshotDesc,
    pub purpose: Purpose,
    pub insist: bool,
}

/// Starts a transfer.
pub(crate) fn spawn(lanes: &Lanes, handle: &GroupHandle, group: &Group, outbound: Outbound) {
    let Outbound { to, snapshot, purpose, insist } = outbound;
    let teller = handle.clone();
    let report = OutboundReport::new(move |report, prefers| {
        teller.raise(Event::TransferEnded { to, purpose, report, prefers });
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
    let transfers = Arc::clone(&lanes.transfers);
    let work = Work { store, transport, transfers, rate: lanes.rate, handle: handle.clone() };
    let (budget, disk) = (Arc::clone(&lanes.budget), Arc::clone(&lanes.gauges.disk));
    // While a transfer waits it is a task and holds no slot; only the transfer itself takes a
    // thread.
    tokio::spawn(async move {
        let busy = Duration::from_millis(BUSY_RETRY_MS);
        let Some(slot) = budget.take_outbound(&disk) else {
            return tokio::time::sleep(busy).await;
        };
        let (ended_in, ended) = oneshot::channel();
        let started = std::thread::Builder::new().name("send".to_owned()).spawn(move || {
            let end = work.carry_out(offer);
            drop(slot);
            let _ = ended_in.send(end);
        });
        if let Err(error) = started {
            tracing::warn!(%error, "snapshot not sent: no thread for it");
            return tokio::time::sleep(busy).await;
        }
        // If the worker panicked, `report` is dropped here, which tells raft that the transfer
        // failed.
        let Ok(end) = ended.await else { return tokio::time::sleep(busy).await };
        tokio::time::sleep(end.wait).await;
        if let Some((told, prefers)) = end.report {
            report.report(told, prefers);
        }
    });
}

/// How a transfer ended.
struct End {
    /// The wait before raft hears of it.
    wait: Duration,
    /// What to report to raft; `None` if the transfer failed.
    report: Option<(Report, Option<ObjectRef>)>,
}

/// What a transfer needs.
struct Work {
    store: Arc<dyn StoreHandle>,
    transport: Arc<dyn Transport>,
    transfers: Arc<Transfers>,
    /// Bytes a second; 0 = no limit.
    rate: u64,
    handle: GroupHandle,
}

impl Work {
    /// Sends the snapshot that is offered. Blocks.
    fn carry_out(&self, offer: Offer) -> End {
        let (group, to, desc) = (offer.group, offer.to, offer.desc.clone());
        let index = desc.index;
        let reader = match open_object(&*self.store, &desc, Use::Sending(to)) {
            Ok(reader) => reader,
            Err(error) => {
                tracing::warn!(%group, %to, index, %error, "snapshot not sent");
                if self.handle.is_bad(&desc, &error) {
                    self.handle.raise(Event::Corrupt { snapshot: desc, why: error.to_string() });
                }
                return End { wait: Duration::from_millis(BUSY_RETRY_MS), report: None };
            }
        };
        let channel = match self.transport.bulk(to.node()) {
            Ok(channel) => channel,
            Err(error) => {
                tracing::warn!(%group, %to, index, %error, "snapshot not sent: no channel");
                return End { wait: Duration::from_millis(BROKEN_RETRY_MS), report: None };
            }
        };
        let at: Progress = Box::new({
            let (transfers, length) = (Arc::clone(&self.transfers), desc.length);
            move |bytes| transfers.is_at(to, bytes, length)
        });
        let mut channel = Paced::new(channel, self.rate, at);
        let began = Instant::now();
        let outcome = bulk::send(reader, offer, &mut channel);
        self.transfers.sent(to, &outcome, channel.bytes, began.elapsed());
        if let SendEnd::SourceBad(why) = &outcome.end {
            self.handle.raise(Event::Corrupt { snapshot: desc, why: why.clone() });
        }
        let (wait, prefers) = match outcome.next {
            Next::Done => (Duration::ZERO, None),
            Next::Prefer(object) => (Duration::ZERO, Some(object)),
            Next::Wait { ms } => (Duration::from_millis(ms), None),
            Next::GiveUp => (GIVE_UP_WAIT, None),
        };
        End { wait, report: Some((outcome.report, prefers)) }
    }
}

/// Called with the number of payload bytes sent so far.
type Progress = Box<dyn Fn(u64) + Send>;

/// A channel that sends blocks no faster than a given rate. Time in which nothing is sent earns no
/// credit: a receiver may spend minutes checking the part that it has before it takes the rest.
struct Paced {
    inner: Box<dyn BulkChannel<BulkRequest, BulkReply> + Send>,
    /// Bytes a second; 0 = no limit.
    rate: u64,
    /// When the next block may leave.
    due: Instant,
    /// Bytes of blocks sent so far.
    bytes: u64,
    at: Progress,
}

impl Paced {
    fn new(
        inner: Box<dyn BulkChannel<BulkRequest, BulkReply> + Send>,
        rate: u64,
        at: Progress,
    ) -> Self {
        Self { inner, rate, due: Instant::now(), bytes: 0, at }
    }
}

impl BulkChannel<BulkRequest, BulkReply> for Paced {
    fn send(&mut self, frame: BulkRequest) -> std::io::Result<()> {
        if let BulkRequest::Block(block) = &frame {
            let bytes = block.data.len() as u64;
            let now = Instant::now();
            std::thread::sleep(self.due.saturating_duration_since(now));
            if let Some(us) = bytes.saturating_mul(1_000_000).checked_div(self.rate) {
                self.due = self.due.max(now) + Duration::from_micros(us);
            }
            self.bytes += bytes;
            (self.at)(block.offset + bytes);
        }
        self.inner.send(frame)
    }

    fn recv(&mut self, timeout: Duration) -> std::io::Result<Option<BulkReply>> {
        self.inner.recv(timeout)
    }
}

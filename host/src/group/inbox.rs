//! Incoming snapshots: what a group knows when an offer arrives, and how a verified object reaches
//! it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::group::Event;
use lockstep_core::snapshot::Verified;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest, Expected, ObjectRef, Offer};

use crate::bulk::{self, BulkChannel, Judge};
use crate::clock::Clock;
use crate::group::GroupHandle;
use crate::metrics::Transfers;
use crate::store::{SnapshotRefusal, StoreHandle};

/// Receives snapshots for one group, on any number of threads.
pub(crate) struct GroupInbox {
    pub cluster: [u8; 16],
    pub handle: GroupHandle,
    pub store: Arc<dyn StoreHandle>,
    pub clock: Arc<dyn Clock>,
    pub judged: Judged,
    pub transfers: Arc<Transfers>,
}

/// Passes the core's judgement of a delivered object to the transfer that waits for it. A group has
/// one inbound transfer at a time.
#[derive(Clone, Default)]
pub(crate) struct Judged(Arc<Mutex<Option<Waiting>>>);

/// The object that is judged, and where the judgement goes.
type Waiting = (ObjectRef, SyncSender<bool>);

impl Judged {
    /// Tells the transfer that waits whether the core took `object`.
    pub(crate) fn tell(&self, object: ObjectRef, taken: bool) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, answer)) = waiting.take_if(|(waits_for, _)| *waits_for == object) {
            let _ = answer.try_send(taken);
        }
    }

    fn wait_for(&self, object: ObjectRef) -> Receiver<bool> {
        let (answer, waiting) = sync_channel(1);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((object, answer));
        waiting
    }
}

/// Hands an object to the group and waits for the core's judgement.
struct Delivery<'a> {
    inbox: &'a GroupInbox,
    waiting: Option<Receiver<bool>>,
}

impl Judge for Delivery<'_> {
    fn deliver(&mut self, snapshot: Verified) {
        self.waiting = Some(self.inbox.judged.wait_for(ObjectRef::of(&snapshot.desc)));
        self.inbox.handle.raise(Event::Received { snapshot });
    }

    fn answer(&mut self, wait: Duration) -> Option<BulkReply> {
        match self.waiting.as_ref()?.recv_timeout(wait) {
            Ok(true) => Some(BulkReply::Accepted),
            Ok(false) => Some(BulkReply::Stale),
            Err(_) => None,
        }
    }
}

impl GroupInbox {
    /// Runs one transfer to its end. Blocks.
    pub(crate) fn receive(
        &self,
        offer: &Offer,
        channel: &mut (dyn BulkChannel<BulkReply, BulkRequest> + Send),
    ) {
        let status = self.handle.report().status;
        let expected = Expected {
            cluster: self.cluster,
            group: self.handle.id(),
            replica: status.replica,
            commit: status.commit,
            wanted: status.wanted,
        };
        let mut delivery = Delivery { inbox: self, waiting: None };
        let began = self.clock.running();
        let received = bulk::receive(offer, &expected, &*self.store, channel, &mut delivery);
        let took = self.clock.running().saturating_sub(began);
        self.transfers.received(&received, took.as_millis() as u64);
        if let Some(SnapshotRefusal::NeedsUnlist(unlist)) = received.refusal {
            self.handle.raise(Event::SpaceWanted { unlist: *unlist, capture: None });
        }
    }
}

//! Incoming snapshots: what one group knows when an offer arrives, and where a verified object
//! goes.

use std::sync::Arc;

use lockstep_core::group::Event;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest, Expected, Offer};

use crate::bulk::{self, BulkChannel};
use crate::group::GroupHandle;
use crate::guest::Module;
use crate::store::StoreHandle;

/// Receives for one group; any number of threads may.
pub(crate) struct GroupInbox {
    pub cluster: [u8; 16],
    pub handle: GroupHandle,
    pub module: Module,
    pub store: Arc<dyn StoreHandle>,
}

impl GroupInbox {
    /// Runs one transfer to its end. Blocks.
    pub(crate) fn receive(
        &self,
        offer: &Offer,
        channel: &mut (dyn BulkChannel<BulkReply, BulkRequest> + Send),
    ) {
        let status = self.handle.report().status;
        let info = self.module.info();
        let expected = Expected {
            cluster: self.cluster,
            group: self.handle.id(),
            replica: status.replica,
            module: self.module.id(),
            formats: info.oldest_readable_format..=info.snapshot_format,
            commit: status.commit,
            requested: false,
        };
        let handle = self.handle.clone();
        let mut deliver = |snapshot| {
            handle.raise(Event::Received { snapshot });
            BulkReply::Accepted
        };
        bulk::receive(offer, &expected, &*self.store, channel, &mut deliver);
    }
}

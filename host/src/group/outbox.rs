//! Outgoing snapshots: one worker a transfer, and exactly one report to raft.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::group::{Event, Group};
use lockstep_core::ids::ReplicaId;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::Offer;
use lockstep_core::snapshot::send::{Next, Report};

use crate::bulk::{self, OutboundReport};
use crate::group::{GroupHandle, Lanes, open_object};

/// The wait before raft hears of an object that can never be taken, so that it does not offer at
/// once.
const GIVE_UP_WAIT: Duration = Duration::from_secs(10);

/// Starts sending `snapshot` to `to`.
pub(crate) fn spawn(
    lanes: &Lanes,
    handle: &GroupHandle,
    group: &Group,
    to: ReplicaId,
    snapshot: SnapshotDesc,
) {
    let teller = handle.clone();
    let report = OutboundReport::new(move |report| {
        teller.raise(Event::TransferEnded { to, ok: report == Report::Finish });
    });
    let offer = Offer {
        cluster: lanes.cluster,
        group: handle.id(),
        from: group.recovery_state().replica,
        to,
        term: group.recovery_state().term,
        desc: snapshot,
    };
    let (store, transport) = (Arc::clone(&lanes.store), Arc::clone(&lanes.transport));
    tokio::task::spawn_blocking(move || {
        let (group, index) = (offer.group, offer.desc.index);
        let reader = open_object(&*store, &offer.desc);
        let channel = transport.bulk(to.node());
        match (reader, channel) {
            (Ok(mut reader), Ok(mut channel)) => {
                let outcome = bulk::send(&mut reader, offer, &mut *channel);
                match outcome.next {
                    Next::Done => {}
                    Next::Wait { ms } => std::thread::sleep(Duration::from_millis(ms)),
                    Next::GiveUp => std::thread::sleep(GIVE_UP_WAIT),
                }
                report.report(outcome.report);
            }
            (Err(error), _) => {
                tracing::warn!(%group, %to, index, error, "snapshot not sent: the object is bad");
            }
            (_, Err(error)) => {
                tracing::warn!(%group, %to, index, %error, "snapshot not sent: no channel");
            }
        }
    });
}

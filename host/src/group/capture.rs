//! A local snapshot on its way from the guest to a sealed, read-back object.
//!
//! The apply lane has the guest write it, through a [`BackgroundWriter`]; finishing, sealing and
//! reading back are a bulk worker's ([`Capture::seal`]). Dropping it at any point leaves nothing,
//! and the lane waits for a disk for no longer than [`DISK_PATIENCE`].

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use lockstep_core::fault::GuestFault;
use lockstep_core::group::Event;
use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::snapshot::{SnapshotDesc, Verified};

use crate::group::background_writer::BackgroundWriter;
use crate::group::disk_watch::DiskWatch;
use crate::guest::Guest;
use crate::store::{
    LocalHeader, SnapshotRefusal, StagedWriter, StoreHandle, ask_lane, on_lane_within,
};

/// How long the apply lane waits for the disk of the snapshots: longer than one that is only busy
/// takes for a block, and less than clients wait.
const DISK_PATIENCE: Duration = Duration::from_secs(3);

/// Room, and a place to write.
pub(super) struct Begun {
    index: u64,
    writer: StagedWriter,
}

/// Written, and not durable yet.
pub struct Capture {
    index: u64,
    writer: StagedWriter,
}

/// What the disk said instead, and how many bytes there were by then.
pub(super) struct Unwritten {
    pub error: io::Error,
    pub bytes: u64,
}

/// Why a mark was not captured.
pub(super) enum NoCapture {
    /// There is room without this recovery point.
    Unlist(Box<SnapshotDesc>),
    /// There will be, once what holds it is done.
    Postponed(String),
    /// The host takes others now.
    NoPlace(String),
    Failed(String),
}

impl NoCapture {
    pub(super) fn because(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }

    /// What the core hears of it.
    pub(super) fn told(self, group: GroupId, index: u64) -> Event {
        let (why, postponed) = match self {
            Self::Unlist(unlist) => {
                return Event::RoomWanted { unlist: *unlist, capture: Some(index) };
            }
            Self::NoPlace(why) => return Event::NoPlace { index, why },
            Self::Postponed(why) => (why, true),
            Self::Failed(why) => (why, false),
        };
        tracing::warn!(%group, index, why, postponed, "snapshot not captured");
        Event::CaptureFailed { index, why, postponed }
    }
}

impl Begun {
    /// Room and a place to write, or why there is none.
    pub(super) fn begin(
        store: &dyn StoreHandle,
        watch: &DiskWatch,
        header: LocalHeader,
    ) -> Result<Self, NoCapture> {
        let index = header.index;
        let writer = on_lane_within(store, DISK_PATIENCE, move |store| {
            let reservation = store.reserve_local(header)?;
            store.create(reservation)
        });
        match writer {
            Ok(Ok(writer)) => Ok(Self { index, writer }),
            Ok(Err(SnapshotRefusal::NeedsUnlist(unlist))) => Err(NoCapture::Unlist(unlist)),
            Ok(Err(held @ SnapshotRefusal::Held { .. })) => {
                Err(NoCapture::Postponed(held.to_string()))
            }
            Ok(Err(full @ SnapshotRefusal::NoPlace { .. })) => {
                Err(NoCapture::NoPlace(full.to_string()))
            }
            Ok(Err(refusal)) => Err(NoCapture::because(refusal.to_string())),
            Err(RecvTimeoutError::Timeout) => Err(NoCapture::because(watch.not_answering())),
            Err(RecvTimeoutError::Disconnected) => {
                Err(NoCapture::because(SnapshotRefusal::Closed.to_string()))
            }
        }
    }

    /// Envelope, then the guest's stream. The inner error is the disk's, the outer one the guest's.
    pub(super) fn write(
        self,
        envelope: &[u8],
        guest: &mut dyn Guest,
        watch: &Arc<DiskWatch>,
    ) -> Result<Result<Capture, Unwritten>, GuestFault> {
        let Self { index, writer } = self;
        let mut out = match BackgroundWriter::take(writer, watch, DISK_PATIENCE) {
            Ok(out) => out,
            Err(error) => return Ok(Err(Unwritten { error, bytes: 0 })),
        };
        let mut written = match out.write_all(envelope) {
            Ok(()) => guest.snapshot(&mut out)?,
            Err(error) => Err(error),
        };
        if planted("clock_in_snapshot") {
            let now = std::time::Instant::now();
            written = written.and_then(|()| out.write_all(format!("{now:?}").as_bytes()));
        }
        let bytes = out.length();
        // The writer's own error says more than that it is gone.
        Ok(match (out.end(), written) {
            (Ok(writer), Ok(())) => Ok(Capture { index, writer }),
            (Err(error), _) | (Ok(_), Err(error)) => Err(Unwritten { error, bytes }),
        })
    }
}

impl Capture {
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Makes the object whole, durable and verified; what to tell the core.
    pub fn seal(self, store: &dyn StoreHandle) -> Event {
        let Self { index, writer } = self;
        match seal(writer, store) {
            Ok(verified) => Event::Captured(verified),
            Err(why) => {
                tracing::warn!(index, why, "snapshot not sealed");
                Event::CaptureFailed { index, why, postponed: false }
            }
        }
    }
}

/// A capture outgrew what was reserved for it, and there was no more.
pub(super) fn outgrew(store: &dyn StoreHandle, estimate: u64) {
    store.run(Box::new(move |store| store.outgrew(estimate)));
}

fn seal(writer: StagedWriter, store: &dyn StoreHandle) -> Result<Verified, String> {
    let finished = writer.finish().map_err(|refusal| refusal.to_string())?;
    let staged = ask_lane(store, move |store| store.seal(finished))
        .map_err(|refusal| refusal.to_string())?;
    staged.verify(&mut || {}).map_err(|error| error.to_string())
}

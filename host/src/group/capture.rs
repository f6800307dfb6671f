//! A local snapshot on its way from the guest to a sealed, read-back object.
//!
//! The apply lane has the guest write it, through a [`BackgroundWriter`]; a bulk worker finishes
//! the object, seals it and reads it back ([`Capture::seal`]). Dropping the snapshot at any stage
//! leaves no file, and the lane waits for a disk no longer than [`DISK_PATIENCE`].

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use lockstep_core::fault::GuestFault;
use lockstep_core::group::Event;
use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::snapshot::{SnapshotDesc, Verified};

use crate::disk_watch::DiskWatch;
use crate::group::background_writer::BackgroundWriter;
use crate::guest::Guest;
use crate::store::{
    LocalHeader, SnapshotRefusal, StagedWriter, StoreHandle, ask_lane, on_lane_within,
};

/// How long the apply lane waits for the disk of the snapshots: longer than a busy disk takes for a
/// block, and less than clients wait.
const DISK_PATIENCE: Duration = Duration::from_secs(3);

/// A snapshot for which space is reserved and the staging file exists.
pub(super) struct Begun {
    index: u64,
    writer: StagedWriter,
}

/// A snapshot that the guest has written; it is not durable yet.
pub struct Capture {
    index: u64,
    writer: StagedWriter,
}

/// A write that failed: the disk's error, and the number of bytes accepted before it.
pub(super) struct Unwritten {
    pub error: io::Error,
    pub bytes: u64,
}

/// Why a snapshot was not captured.
pub(super) enum NoCapture {
    /// There is space if this recovery point is unlisted.
    Unlist(Box<SnapshotDesc>),
    /// There will be space once the objects that take it are no longer in use.
    Postponed(String),
    /// The host is taking as many snapshots as it may, or the group's last one is not listed yet.
    NoPlace(String),
    Failed(String),
}

impl NoCapture {
    pub(super) fn because(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }

    /// Logs the reason, and returns the event that reports it to the core.
    pub(super) fn told(self, group: GroupId, index: u64) -> Event {
        let (why, postponed) = match self {
            Self::Unlist(unlist) => {
                return Event::SpaceWanted { unlist: *unlist, capture: Some(index) };
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
    /// Reserves space and creates the staging file, or says why it cannot.
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
            Ok(Err(full @ (SnapshotRefusal::NoPlace { .. } | SnapshotRefusal::Busy { .. }))) => {
                Err(NoCapture::NoPlace(full.to_string()))
            }
            Ok(Err(refusal)) => Err(NoCapture::because(refusal.to_string())),
            Err(RecvTimeoutError::Timeout) => Err(NoCapture::because(watch.not_answering())),
            Err(RecvTimeoutError::Disconnected) => {
                Err(NoCapture::because(SnapshotRefusal::Closed.to_string()))
            }
        }
    }

    /// Writes the envelope, then the guest's stream. The inner error is the disk's, the outer one
    /// the guest's.
    pub(super) fn write(
        self,
        envelope: &[u8],
        guest: &mut dyn Guest,
    ) -> Result<Result<Capture, Unwritten>, GuestFault> {
        let Self { index, writer } = self;
        let watch = Arc::clone(writer.watch());
        let mut out = match BackgroundWriter::take(writer, &watch, DISK_PATIENCE) {
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
        // The thread's error says more than that of a write, which may only mean that the thread
        // has ended.
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

    /// Finishes, seals and verifies the object; returns the event that tells the core.
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

/// Tells the store that a capture found no more space while it was written; returns the recovery
/// point that is to be unlisted for it, if one can be.
pub(super) fn outgrew(store: &dyn StoreHandle, estimate: u64) -> Option<SnapshotDesc> {
    on_lane_within(store, DISK_PATIENCE, move |store| store.outgrew(estimate)).ok().flatten()
}

fn seal(writer: StagedWriter, store: &dyn StoreHandle) -> Result<Verified, String> {
    let finished = writer.finish().map_err(|refusal| refusal.to_string())?;
    let staged = ask_lane(store, move |store| store.seal(finished))
        .map_err(|refusal| refusal.to_string())?;
    staged.verify(&mut || {}).map_err(|error| error.to_string())
}

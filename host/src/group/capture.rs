//! A local snapshot on its way from the guest to a sealed, read-back object.
//!
//! The apply lane writes it inline; finishing, sealing and reading back are a bulk worker's
//! ([`Capture::seal`]). Dropping it at any point leaves nothing.

use std::io::{self, Write};

use lockstep_core::fault::GuestFault;
use lockstep_core::group::Event;
use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::snapshot::{SnapshotDesc, Verified};

use crate::guest::Guest;
use crate::store::{LocalHeader, SnapshotRefusal, StagedWriter, StoreHandle, ask_lane, on_lane};

pub struct Capture {
    index: u64,
    writer: StagedWriter,
}

/// Why a mark was not captured.
pub(super) enum NoCapture {
    /// There is room without this recovery point.
    Unlist(Box<SnapshotDesc>),
    /// There will be, once what holds it is done.
    Postponed(String),
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
            Self::Postponed(why) => (why, true),
            Self::Failed(why) => (why, false),
        };
        tracing::warn!(%group, index, why, postponed, "snapshot not captured");
        Event::CaptureFailed { index, why, postponed }
    }
}

impl Capture {
    /// Room and a place to write, or why there is none.
    pub(super) fn begin(store: &dyn StoreHandle, header: LocalHeader) -> Result<Self, NoCapture> {
        let index = header.index;
        let writer = ask_lane(store, move |store| {
            let reservation = store.reserve_local(header)?;
            store.create(reservation)
        });
        match writer {
            Ok(writer) => Ok(Self { index, writer }),
            Err(SnapshotRefusal::NeedsUnlist(unlist)) => Err(NoCapture::Unlist(unlist)),
            Err(held @ SnapshotRefusal::Held { .. }) => Err(NoCapture::Postponed(held.to_string())),
            Err(refusal) => Err(NoCapture::because(refusal.to_string())),
        }
    }

    /// Envelope, then the guest's stream. The inner error is the disk's, the outer one the guest's.
    pub(crate) fn write(
        &mut self,
        envelope: &[u8],
        guest: &mut dyn Guest,
    ) -> Result<io::Result<()>, GuestFault> {
        if let Err(error) = self.writer.write_all(envelope) {
            return Ok(Err(error));
        }
        let written = guest.snapshot(&mut self.writer)?;
        if planted("clock_in_snapshot") {
            let now = std::time::Instant::now();
            return Ok(written.and_then(|()| self.writer.write_all(format!("{now:?}").as_bytes())));
        }
        Ok(written)
    }

    /// Bytes of payload written so far.
    pub(super) fn length(&self) -> u64 {
        self.writer.length()
    }

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
    let _ = on_lane(store, move |store| store.outgrew(estimate));
}

fn seal(writer: StagedWriter, store: &dyn StoreHandle) -> Result<Verified, String> {
    let finished = writer.finish().map_err(|refusal| refusal.to_string())?;
    let staged = ask_lane(store, move |store| store.seal(finished))
        .map_err(|refusal| refusal.to_string())?;
    staged.verify(&mut || {}).map_err(|error| error.to_string())
}

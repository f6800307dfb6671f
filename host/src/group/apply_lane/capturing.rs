//! Snapshots that the lane takes where it stands.
//!
//! One that fails is no fault: the group goes on without it. A guest whose snapshot traps again and
//! again is left alone for a while.

use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep_core::group::Event;
use lockstep_core::limits;
use lockstep_core::snapshot::Configuration;

use super::{ApplyLane, Output};
use crate::fs::is_full;
use crate::group::capture::{self, Capture, NoCapture};
use crate::store::next_length;

/// Inline snapshots that trap in a row before none is taken for [`SNAPSHOT_PAUSE`]: each stalls the
/// lane, and may cost a rebuild of the guest.
const SNAPSHOT_TRAPS_MAX: u32 = 3;
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(600);

impl ApplyLane {
    pub(super) fn capture(
        &mut self,
        term: u64,
        index: u64,
        configuration: Configuration,
    ) -> Output {
        match self.try_capture(term, index, configuration) {
            Ok(capture) => {
                self.aside.push(Event::CaptureWritten { index });
                Output::Seal(capture)
            }
            Err(why) => Output::Event(why.told(self.tools.group, index)),
        }
    }

    fn try_capture(
        &mut self,
        term: u64,
        index: u64,
        configuration: Configuration,
    ) -> Result<Capture, NoCapture> {
        let failed = |why: &str| Err(NoCapture::because(why));
        if self.ledger.applied() != index {
            return failed(&format!("the guest is at {}, not at the mark", self.ledger.applied()));
        }
        let now = self.tools.clock.running();
        if self.snapshot_traps >= SNAPSHOT_TRAPS_MAX
            && now.saturating_sub(self.trapped) < SNAPSHOT_PAUSE
        {
            return failed(
                "the guest's snapshot trapped three times in a row; tried again in 10 min",
            );
        }
        let last = self.listed().first().map(|desc| next_length(desc.length));
        let Some(guest) = self.guest.as_mut() else { return failed("there is no guest yet") };
        let began = now;
        let info = self.tools.module.info();
        let most = guest.memory_bytes() + limits::SNAPSHOT_BLOCK_BYTES as u64;
        let mut capture = Capture::begin(
            &*self.tools.store,
            crate::store::LocalHeader {
                term,
                index,
                module: self.tools.module.id(),
                format: info.snapshot_format,
                configuration,
                estimate: last.unwrap_or(most),
                growable: true,
            },
        )?;
        let written = capture.write(&self.ledger.encode_envelope(), &mut **guest);
        let stall = self.tools.clock.running().saturating_sub(began).as_millis() as u64;
        self.tools.gauges.snapshot_stall_ms.fetch_max(stall, Ordering::Relaxed);
        match written {
            Ok(Ok(())) => {
                self.snapshot_traps = 0;
                Ok(capture)
            }
            Ok(Err(error)) => {
                // It grew beyond what was reserved: an older recovery point may make room.
                let beyond = self.listed().get(1..).and_then(<[_]>::last).cloned();
                let full = is_full(&error);
                if let Some(unlist) = beyond.filter(|_| full) {
                    return Err(NoCapture::Unlist(Box::new(unlist)));
                }
                if full {
                    let written = capture.length();
                    capture::outgrew(&*self.tools.store, last.unwrap_or(0).max(written));
                }
                Err(NoCapture::because(error.to_string()))
            }
            Err(fault) => {
                (self.snapshot_traps, self.trapped) = (self.snapshot_traps + 1, now);
                self.tools.gauges.guest_faults.fetch_add(1, Ordering::Relaxed);
                self.rebuild_if_spoilt();
                Err(NoCapture::because(fault.to_string()))
            }
        }
    }
}

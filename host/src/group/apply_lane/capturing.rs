//! Local snapshots: the lane captures the guest at the index that it has applied.
//!
//! A capture that fails is no fault: the group goes on without the snapshot.

use std::sync::atomic::Ordering;

use lockstep_core::group::Event;
use lockstep_core::limits;
use lockstep_core::snapshot::Configuration;

use super::{ApplyLane, Live, Output};
use crate::fs::is_full;
use crate::group::capture::{self, Begun, Capture, NoCapture, Unwritten};
use crate::store::next_length;

impl ApplyLane {
    pub(super) fn capture(
        &mut self,
        term: u64,
        index: u64,
        configuration: Configuration,
        gain: u64,
    ) -> Output {
        self.stalled = self.stalled.or_else(|| Some(self.tools.clock.running()));
        let captured = self.try_capture(term, index, configuration, gain);
        if !matches!(captured, Err(NoCapture::Unlist(_) | NoCapture::NoPlace(_))) {
            self.goes_on();
        }
        match captured {
            Ok(capture) => {
                self.aside.push(Event::CaptureWritten { index });
                Output::Seal(capture)
            }
            Err(why) => Output::Event(why.told(self.tools.group, index)),
        }
    }

    /// Ends the stall of the last capture, whether it was written or given up while it waited, and
    /// records how long it lasted.
    pub(super) fn goes_on(&mut self) {
        if let Some(since) = self.stalled.take() {
            let stall = self.tools.clock.running().saturating_sub(since).as_millis() as u64;
            self.tools.gauges.snapshot_stall_ms.store(stall, Ordering::Relaxed);
        }
    }

    fn try_capture(
        &mut self,
        term: u64,
        index: u64,
        configuration: Configuration,
        gain: u64,
    ) -> Result<Capture, NoCapture> {
        let failed = |why: &str| Err(NoCapture::because(why));
        if self.ledger.applied() != index {
            return failed(&format!(
                "the guest is at {}, not at the checkpoint",
                self.ledger.applied()
            ));
        }
        let now = self.tools.clock.running();
        if let Some(why) = self.snapshot_traps.pause(now) {
            return failed(&why);
        }
        if let Some(hanging) = self.tools.gauges.snapshots_hang() {
            return failed(&hanging.to_string());
        }
        let last = self.listed().first().map(|desc| next_length(desc.length));
        let Some(Live { module, guest }) = &mut self.live else {
            return failed("there is no guest yet");
        };
        let most = guest.memory_bytes() + limits::SNAPSHOT_BLOCK_BYTES as u64;
        let header = crate::store::LocalHeader {
            term,
            index,
            module: module.id(),
            format: module.info().snapshot_format,
            configuration,
            estimate: last.unwrap_or(most),
            growable: true,
            gain,
        };
        let gauges = &self.tools.gauges;
        let begun = Begun::begin(&*self.tools.store, &gauges.store, header)?;
        let written = begun.write(&self.ledger.encode_envelope(), &mut **guest);
        match written {
            Ok(Ok(capture)) => {
                self.snapshot_traps.succeeded(self.tools.group);
                gauges.snapshot_traps.store(0, Ordering::Relaxed);
                Ok(capture)
            }
            Ok(Err(Unwritten { error, bytes })) => {
                // The snapshot outgrew its reservation, or something else filled the disk:
                // unlisting an older recovery point may free space.
                let estimate = last.unwrap_or(0).max(bytes);
                let full = is_full(&error);
                match full.then(|| capture::outgrew(&*self.tools.store, estimate)).flatten() {
                    Some(unlist) => Err(NoCapture::Unlist(Box::new(unlist))),
                    None => Err(NoCapture::because(error.to_string())),
                }
            }
            Err(fault) => {
                self.snapshot_traps.trapped(self.tools.group, now, &fault);
                gauges.snapshot_traps.store(self.snapshot_traps.in_a_row(), Ordering::Relaxed);
                gauges.guest_faults.fetch_add(1, Ordering::Relaxed);
                self.rebuild_if_lost();
                Err(NoCapture::because(fault.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use lockstep_core::group::ApplyJob;
    use lockstep_core::ids::{GroupId, NodeId};

    use super::super::Tools;
    use super::*;
    use crate::clock::Clock;
    use crate::fs::mem::MemFs;
    use crate::guest::OneModule;
    use crate::guest::native::NativeModule;
    use crate::store::tests::quota;
    use crate::store::{StoreHandle, StoreJob};
    use crate::wal::{Wal, WalOptions};

    /// A clock that the test sets.
    #[derive(Default)]
    struct Told(AtomicU64);

    impl Clock for Told {
        fn wall_ms(&self) -> u64 {
            0
        }

        fn running(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    struct NoStore;

    impl StoreHandle for NoStore {
        fn run(&self, _: StoreJob) {}
    }

    fn lane(clock: &Arc<Told>) -> ApplyLane {
        let fs = Arc::new(MemFs::with_dir(Path::new("/data")));
        let options = WalOptions::new([7; 16], NodeId(1), 1 << 20, 1);
        let (wal, _) = Wal::open(fs, Path::new("/data/wal"), options).expect("a log");
        ApplyLane::new(Tools {
            group: GroupId(1),
            modules: OneModule::of(Arc::new(NativeModule::register())),
            config: None,
            log: wal.reader(),
            store: Arc::new(NoStore),
            clock: Arc::clone(clock) as _,
            listed: Arc::default(),
            gauges: Arc::default(),
            board: Arc::default(),
            quota: quota(),
        })
    }

    fn nothing() -> ApplyJob {
        let (entries, awaited) = (Vec::new(), BTreeSet::new());
        ApplyJob::Range { first: 1, last: 0, bytes: 0, entries, awaited }
    }

    #[test]
    fn the_last_stall_is_told_with_the_wait_for_space() {
        let clock = Arc::<Told>::default();
        let mut lane = lane(&clock);
        let gauges = Arc::clone(&lane.tools.gauges);
        let told = || gauges.snapshot_stall_ms.load(Ordering::Relaxed);
        let capture = || ApplyJob::Capture {
            term: 1,
            index: 9,
            configuration: Configuration::default(),
            gain: 0,
        };
        let go = |ms| clock.0.store(ms, Ordering::Relaxed);

        // A capture has waited for space since second 4, and fails in the end for another reason.
        lane.stalled = Some(Duration::from_secs(4));
        go(10_000);
        lane.run(capture());
        assert_eq!(told(), 6_000);
        lane.run(capture());
        assert_eq!(told(), 0, "the last one did not take long");
        // A range after it shows that the capture was given up.
        lane.stalled = Some(Duration::from_secs(10));
        go(13_000);
        lane.run(nothing());
        assert_eq!(told(), 3_000);
        lane.run(nothing());
        assert_eq!(told(), 3_000, "it stays until the next capture");
    }
}

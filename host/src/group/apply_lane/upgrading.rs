//! The guest's state moves from one module into another: the old guest writes its snapshot while
//! the new one restores it, through a pipe.
//!
//! A trial does this with a copy of the state and keeps the new guest beside the live one. It takes
//! the live one's place at the entry that switches, unless the live one was called meanwhile.

use std::io;
use std::thread;

use lockstep_core::entry::Bootstrap;
use lockstep_core::fault::{Fault, FaultClass, GuestFault};
use lockstep_core::group::Event;
use lockstep_core::group::trial::{Stage, TrialId};
use lockstep_core::ids::ModuleId;
use lockstep_core::mutant::plant;

use super::{ApplyLane, Live, Output, no_guest};
use crate::guest::{Guest, GuestInfo, SnapshotHeader};

impl ApplyLane {
    /// Copies the state into a guest of this module, which is kept.
    pub(super) fn try_module(&mut self, trial: TrialId, module: ModuleId) -> Output {
        self.moved = None;
        let copied = if self.runs(module) {
            // The leader began the trial before it heard that this replica has gone over.
            Err(refused("it runs already".to_owned()))
        } else {
            self.copy_into(module)
        };
        if copied.is_err() {
            // The old guest may have failed in `snapshot`. It goes on, as after a capture.
            self.rebuild_if_lost();
        }
        let stage = match copied {
            Ok(moved) => {
                self.moved = Some(moved);
                Stage::Moved
            }
            Err(why) => {
                tracing::warn!(group = %self.tools.group, %module, %why, "the state does not move");
                Stage::failed(why.to_string())
            }
        };
        plant!("switch_before_the_entry" does drop(self.move_to(module, self.ledger.applied())));
        Output::Event(Event::Tried { trial, stage })
    }

    /// From the entry at `index` on, the guest is one of this module.
    pub(super) fn move_to(&mut self, module: ModuleId, index: u64) -> Result<(), Fault> {
        if self.runs(module) {
            return Ok(());
        }
        let moved = self.moved.take().filter(|moved| moved.module.id() == module);
        let moved = match moved {
            Some(moved) => moved,
            None => self.copy_into(module).map_err(|fault| at(index, fault))?,
        };
        let info = moved.module.info();
        tracing::info!(group = %self.tools.group, index, %module, name = info.name,
            version = info.version, "the group is upgraded");
        self.ledger.moved(module);
        self.live = Some(moved);
        Ok(())
    }

    fn runs(&self, module: ModuleId) -> bool {
        self.ledger.bootstrap().is_some_and(|record| record.module == module)
    }

    fn copy_into(&mut self, module: ModuleId) -> Result<Live, Fault> {
        let next = self.find(module)?;
        let Live { module: old, guest } = self.live.as_mut().ok_or_else(no_guest)?;
        readable(old.info(), next.info()).map_err(refused)?;
        // Replicas move their states at different entries: nothing may depend on which.
        let header = SnapshotHeader {
            index: 0,
            time_ms: 0,
            ..SnapshotHeader::of(old.info(), old.info().snapshot_format, &self.ledger)
        };
        let record = self.ledger.bootstrap().ok_or_else(no_guest)?;
        let lifted = self.amendments.lifted(record, self.ledger.applied());
        let record = Bootstrap { module, ..lifted };
        next.check_profile(&record.profile).map_err(refused)?;
        let mut fresh = next.instantiate(&record, &self.guest_log)?;
        copy(&mut **guest, &mut *fresh, &header, &record.config)?;
        Ok(Live { module: next, guest: fresh })
    }
}

/// Whether one module reads what the other one writes.
pub fn readable(old: &GuestInfo, new: &GuestInfo) -> Result<(), String> {
    let formats = new.oldest_readable_format..=new.snapshot_format;
    if formats.contains(&old.snapshot_format) {
        return Ok(());
    }
    Err(format!(
        "{} {} reads snapshots of the formats {} to {}, and {} {} writes format {}",
        new.name,
        new.version,
        formats.start(),
        formats.end(),
        old.name,
        old.version,
        old.snapshot_format
    ))
}

/// The entry at `index` is the one that cannot be applied.
fn at(index: u64, fault: Fault) -> Fault {
    match fault {
        Fault::Guest(GuestFault { class, call, message, .. }) => Fault::Guest(GuestFault {
            class,
            call: "upgrade",
            index: Some(index),
            message: format!("in {call}: {message}"),
        }),
        other => other,
    }
}

fn refused(message: String) -> Fault {
    Fault::Guest(GuestFault { class: FaultClass::Refused, call: "restore", index: None, message })
}

/// Has `from` write its snapshot and `to` restore it.
fn copy(
    from: &mut dyn Guest,
    to: &mut dyn Guest,
    header: &SnapshotHeader,
    config: &[u8],
) -> Result<(), Fault> {
    let (mut input, mut output) = io::pipe().map_err(|error| lacks(error.to_string()))?;
    let (written, restored) = thread::scope(|scope| {
        // The pipe's end ends with the call: a stream that broke off looks whole to its reader.
        let write = move || from.snapshot(&mut output);
        let writer = thread::Builder::new().name("move".to_owned()).spawn_scoped(scope, write);
        let writer = match writer {
            Ok(writer) => writer,
            Err(error) => return (Ok(Err(error)), Ok(())),
        };
        let restored = to.restore(header, config, &mut input).and_then(|()| {
            // What the new guest leaves unread has to be written all the same.
            let rest = io::copy(&mut input, &mut io::sink());
            rest.map(drop).map_err(|error| lacks(error.to_string()))
        });
        // A writer that goes on finds nobody to read.
        drop(input);
        (writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), restored)
    });
    match (written, restored) {
        // What the new guest makes of a stream that broke off is only a consequence.
        (Err(fault), _) => Err(fault.into()),
        (Ok(_), Err(fault)) => Err(fault.into()),
        (Ok(Err(error)), Ok(())) => Err(lacks(error.to_string()).into()),
        (Ok(Ok(())), Ok(())) => Ok(()),
    }
}

fn lacks(message: String) -> GuestFault {
    GuestFault { class: FaultClass::Host, call: "restore", index: None, message }
}

//! Building a guest: from a recovery point and the log, or from nothing.

use bytes::Bytes;
use lockstep_core::apply::Ledger;
use lockstep_core::fault::Fault;
use lockstep_core::group::Event;
use lockstep_core::ids::ModuleId;
use lockstep_core::memory::Footprint;
use lockstep_core::mutant::{plant, planted};
use lockstep_core::snapshot::SnapshotDesc;

use super::reading::{broke, not_read, read_ledger};
use super::{ApplyLane, Live};
use crate::group::open_object;
use crate::guest::{Lack, Module, SnapshotHeader};
use crate::store::Use;

impl ApplyLane {
    /// Takes over a new guest, built from the snapshot at `index`, or from nothing if that is 0.
    pub(super) fn built(&mut self, index: u64, snapshot: u64, live: Live) {
        self.compare_config();
        let footprint = Footprint { snapshot, memory: live.guest.memory_bytes() };
        self.aside.push(Event::Built { index, footprint });
        self.live = Some(live);
    }

    /// Says once if this node's `config` is not what the guest is given.
    fn compare_config(&mut self) {
        let own = self.tools.config.take();
        let differs = |own: &Bytes| self.ledger.bootstrap().is_some_and(|of| of.config != *own);
        if own.as_ref().is_some_and(differs) {
            tracing::warn!(group = %self.tools.group, "`config` differs from the group's, which \
                was fixed at its bootstrap; the group's is used");
        }
    }

    /// Instantiates a guest as the ledger's bootstrap record says, with the limits that later
    /// entries raise.
    pub(super) fn fresh(&self) -> Result<Live, Fault> {
        let record = self.ledger.bootstrap().expect("the bootstrap record is there");
        let bootstrap = &self.amendments.lifted(record, self.ledger.applied());
        let module = self.find(bootstrap.module)?;
        module.check_profile(&bootstrap.profile).map_err(Fault::Unusable)?;
        let guest = module.instantiate(bootstrap, &self.guest_log)?;
        Ok(Live { module, guest })
    }

    /// The module of this id, if this node has it.
    pub(super) fn find(&self, module: ModuleId) -> Result<Module, Fault> {
        let no_module = |lack: Lack| Fault::NoModule { module, why: lack.to_string() };
        self.tools.modules.find(module).map_err(no_module)
    }

    /// Rebuilds guest and ledger as they are after entry `goal`.
    pub(super) fn rebuilt(&mut self, goal: u64) -> Result<(), Fault> {
        loop {
            let listed = self.listed().clone();
            self.tried = listed.first().map_or(0, |desc| desc.index);
            let result = self.rebuilt_from(&listed, goal);
            if result.is_ok() || *self.listed() == listed {
                return result;
            }
            // The list has changed meanwhile, and with it the objects and the log: try again with
            // the new list.
            self.overtaken = false;
        }
    }

    fn rebuilt_from(&mut self, listed: &[SnapshotDesc], goal: u64) -> Result<(), Fault> {
        self.clear();
        let (mut causes, mut guests) = (Vec::new(), None);
        let undone = |desc: &&SnapshotDesc| self.amendments.undo(desc.index);
        let (undone, usable): (Vec<_>, Vec<_>) =
            listed.iter().filter(|desc| desc.index <= goal).partition(undone);
        let what = "it contains an entry that is skipped";
        causes.extend(undone.iter().map(|desc| format!("at {}: {what}", desc.index)));
        for desc in usable {
            match self.install(desc) {
                Ok(()) => break,
                Err(fault @ (Fault::NoModule { .. } | Fault::Unusable(_) | Fault::Internal(_))) => {
                    return Err(fault);
                }
                Err(fault) => {
                    tracing::warn!(group = %self.tools.group, index = desc.index, %fault,
                        "recovery point does not restore; trying an older one");
                    causes.push(format!("at {}: {fault}", desc.index));
                    plant!("no_fallback" does break);
                    match fault {
                        Fault::Restore(why) => {
                            self.aside.push(Event::Corrupt { snapshot: desc.clone(), why });
                        }
                        // A lack of resources is kept over any other fault, because it makes the
                        // core try again.
                        fault if guests.as_ref().is_some_and(Fault::lacks_resource) => drop(fault),
                        fault => guests = Some(fault),
                    }
                }
            }
        }
        let whole_log = self.tools.log.first_index(self.tools.group) == Some(1);
        if self.ledger.applied() == 0 && !whole_log {
            // If the guest or the machine failed, it would fail with a peer's copy as well.
            return Err(guests.unwrap_or_else(|| {
                let none = || "none is listed".to_owned();
                let why = if causes.is_empty() { none() } else { causes.join("; ") };
                Fault::NoRecoverableSnapshot(why)
            }));
        }
        while self.ledger.applied() < goal {
            let next = self.ledger.applied() + u64::from(!planted("apply_again"));
            for entry in self.read(next, goal + 1)? {
                self.apply(&entry)?;
            }
        }
        Ok(())
    }

    /// Drops guest and ledger.
    pub(super) fn clear(&mut self) {
        (self.live, self.moved, self.ledger) = (None, None, Ledger::default());
    }

    /// Restores a listed object into a fresh guest; if that fails there is no guest. The old guest
    /// is dropped first: it faulted or its log is gone, and memory may not suffice for two.
    pub(super) fn install(&mut self, desc: &SnapshotDesc) -> Result<(), Fault> {
        let _beside = self.live.take().filter(|_| planted("restore_beside"));
        self.clear();
        let began = self.tools.clock.running();
        let mut reader =
            open_object(&*self.tools.store, desc, Use::Restoring).map_err(|e| not_read(&e))?;
        self.ledger = read_ledger(&mut reader, desc).map_err(|e| broke(&reader, &e))?;
        let result = self.fresh().and_then(|mut live| {
            let header = SnapshotHeader::of(live.module.info(), desc.format, &self.ledger);
            let bootstrap = self.ledger.bootstrap().expect("fresh found the bootstrap record");
            let restored = live.guest.restore(&header, &bootstrap.config, &mut reader);
            // A read error takes precedence: what the guest makes of a broken stream is only a
            // consequence.
            if let Some(error) = reader.broken() {
                return Err(not_read(error));
            }
            restored?;
            // Reads what the guest left unread, because the digest covers the whole payload.
            std::io::copy(&mut reader, &mut std::io::sink()).map_err(|e| broke(&reader, &e))?;
            Ok(live)
        });
        match result {
            Ok(live) => {
                self.built(desc.index, desc.length, live);
                let took = self.tools.clock.running().saturating_sub(began).as_millis() as u64;
                self.tools.gauges.restored(took, self.ledger.log_time_ms());
                Ok(())
            }
            Err(fault) => {
                self.clear();
                Err(fault)
            }
        }
    }

    /// Rebuilds the guest if a query or a snapshot destroyed it, and returns whether it did. If the
    /// rebuild fails, the replica halts.
    pub(super) fn rebuild_if_lost(&mut self) -> bool {
        let lost = !self.live.as_ref().is_some_and(|live| live.guest.is_usable());
        if lost && let Err(fault) = self.rebuilt(self.ledger.applied()) {
            self.lost(fault);
        }
        lost
    }
}

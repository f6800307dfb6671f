//! Each outbound transfer is reported to the core exactly once. Planted: `never_report`.

use std::collections::BTreeMap;

use super::{Checked, violated};

#[derive(Default)]
pub struct Reports {
    transfers: BTreeMap<u64, Report>,
    /// When each transfer began.
    began: BTreeMap<u64, u64>,
}

/// In a healed cluster every transfer ends sooner than this.
const OVERDUE_US: u64 = 100 * crate::world::SECOND;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Report {
    Owed,
    /// The transfer has ended; the report follows after the wait that its end asks for.
    Coming,
    Told,
}

impl Reports {
    pub fn begun(&mut self, transfer: u64, now: u64) {
        self.transfers.insert(transfer, Report::Owed);
        self.began.insert(transfer, now);
    }

    /// Checked when a healed cluster does not come to rest: a missing report may be the cause.
    pub fn overdue(&self, now: u64) -> Checked {
        let mut owed = self.transfers.iter().filter(|(_, report)| **report == Report::Owed);
        match owed.find(|(id, _)| self.began[id] + OVERDUE_US < now) {
            None => Ok(()),
            Some((id, _)) => violated("reports", format!("transfer {id} was never reported")),
        }
    }

    pub fn coming(&mut self, transfer: u64) -> Checked {
        match self.transfers.insert(transfer, Report::Coming) {
            Some(Report::Owed) => Ok(()),
            Some(Report::Coming | Report::Told) | None => {
                violated("reports", format!("transfer {transfer} ends twice"))
            }
        }
    }

    pub fn reported(&mut self, transfer: u64) -> Checked {
        match self.transfers.insert(transfer, Report::Told) {
            Some(Report::Owed | Report::Coming) => Ok(()),
            Some(Report::Told) => {
                violated("reports", format!("transfer {transfer} is reported twice"))
            }
            None => violated("reports", format!("transfer {transfer} was never begun")),
        }
    }

    /// The sending process is gone, and needs no report.
    pub fn forgotten(&mut self, transfer: u64) {
        self.transfers.insert(transfer, Report::Told);
    }

    /// At the end every transfer was reported, except those under way.
    pub fn finish(&self, under_way: impl Fn(u64) -> bool) -> Checked {
        let owed =
            self.transfers.iter().find(|(id, report)| **report == Report::Owed && !under_way(**id));
        match owed {
            None => Ok(()),
            Some((id, _)) => violated("reports", format!("transfer {id} was never reported")),
        }
    }
}

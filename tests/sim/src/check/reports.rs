//! Each outbound transfer is reported to the core once. Planted: `never_report` (the
//! cluster then does not come to rest, which is told first).

use std::collections::BTreeMap;

use super::{Checked, violated};

#[derive(Default)]
pub struct Reports(BTreeMap<u64, Report>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Report {
    Owed,
    /// On its way, after the wait that the transfer's end asked for.
    Coming,
    Told,
}

impl Reports {
    pub fn begun(&mut self, transfer: u64) {
        self.0.insert(transfer, Report::Owed);
    }

    pub fn coming(&mut self, transfer: u64) -> Checked {
        match self.0.insert(transfer, Report::Coming) {
            Some(Report::Owed) => Ok(()),
            Some(Report::Coming | Report::Told) | None => {
                violated("reports", format!("transfer {transfer} ends twice"))
            }
        }
    }

    pub fn reported(&mut self, transfer: u64) -> Checked {
        match self.0.insert(transfer, Report::Told) {
            Some(Report::Owed | Report::Coming) => Ok(()),
            Some(Report::Told) => {
                violated("reports", format!("transfer {transfer} is reported twice"))
            }
            None => violated("reports", format!("transfer {transfer} was never begun")),
        }
    }

    /// Its process is gone: nobody is owed a report.
    pub fn forgotten(&mut self, transfer: u64) {
        self.0.insert(transfer, Report::Told);
    }

    /// At the end everything was reported, but for what is under way.
    pub fn finish(&self, under_way: impl Fn(u64) -> bool) -> Checked {
        let owed = self.0.iter().find(|(id, report)| **report == Report::Owed && !under_way(**id));
        match owed {
            None => Ok(()),
            Some((id, _)) => violated("reports", format!("transfer {id} was never reported")),
        }
    }
}

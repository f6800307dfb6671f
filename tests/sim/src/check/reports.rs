//! Each outbound transfer is reported to the core once. Planted: `report_twice`.

use std::collections::BTreeMap;

use super::{Checked, violated};

#[derive(Default)]
pub struct Reports(BTreeMap<u64, bool>);

impl Reports {
    pub fn begun(&mut self, transfer: u64) {
        self.0.insert(transfer, false);
    }

    pub fn reported(&mut self, transfer: u64) -> Checked {
        match self.0.insert(transfer, true) {
            Some(false) => Ok(()),
            Some(true) => violated("reports", format!("transfer {transfer} is reported twice")),
            None => violated("reports", format!("transfer {transfer} was never begun")),
        }
    }

    /// Its process is gone: nobody is owed a report.
    pub fn forgotten(&mut self, transfer: u64) {
        self.0.insert(transfer, true);
    }

    /// At the end everything was reported, but for what is under way.
    pub fn finish(&self, under_way: impl Fn(u64) -> bool) -> Checked {
        let owed = self.0.iter().find(|(id, reported)| !**reported && !under_way(**id));
        match owed {
            None => Ok(()),
            Some((id, _)) => violated("reports", format!("transfer {id} was never reported")),
        }
    }
}

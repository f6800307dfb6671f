//! An acknowledged operation was applied exactly once, any other at most once. Planted:
//! `apply_repeated_calls`.

use std::collections::BTreeMap;

use super::{Checked, violated};
use crate::client::Record;
use crate::guest::History;

pub fn exactly_once(records: &[&Record], applied: &History) -> Checked {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for operation in applied.operations.values().flatten() {
        *counts.entry(operation.id).or_default() += 1;
    }
    for record in records.iter().filter(|record| record.value.is_some()) {
        let count = counts.get(&record.id).copied().unwrap_or(0);
        if count > 1 || (record.end_us.is_some() && count != 1) {
            let what = format!("operation {} was applied {count} times", record.id);
            return violated("sessions", what);
        }
    }
    Ok(())
}

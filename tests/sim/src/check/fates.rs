//! What a client was told was not applied never is. Planted: `lost_if_unknown`.
//!
//! Asked of commands that are sent once, outside of any session: a repeated one may be applied by
//! another try.

use std::collections::BTreeSet;

use super::{Checked, violated};
use crate::client::Record;
use crate::guest::Applied;

pub fn kept(records: &[&Record], applied: &Applied) -> Checked {
    let done: BTreeSet<u64> = applied.operations.values().flatten().map(|one| one.id).collect();
    let told = |record: &&&Record| record.refused.is_some() && done.contains(&record.id);
    match records.iter().find(told) {
        None => Ok(()),
        Some(record) => {
            let (id, why) = (record.id, record.refused.as_deref().unwrap_or_default());
            violated("fates", format!("operation {id} was applied, and its client told: {why}"))
        }
    }
}

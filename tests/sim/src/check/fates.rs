//! A command of which a client was told that it was not applied is never applied. Planted:
//! `lost_if_unknown`.
//!
//! Checked for commands that are sent once, outside of any session: one that is sent again may be
//! applied by another attempt.

use std::collections::BTreeSet;

use super::{Checked, violated};
use crate::client::Record;
use crate::guest::History;

pub fn kept(records: &[&Record], applied: &History) -> Checked {
    let done: BTreeSet<u64> = applied.operations.values().flatten().map(|one| one.id).collect();
    let told = |record: &&&Record| record.refused.is_some() && done.contains(&record.id);
    match records.iter().find(told) {
        None => Ok(()),
        Some(record) => {
            let (id, why) = (record.id, record.refused.as_deref().unwrap_or_default());
            violated(
                "fates",
                format!("operation {id} was applied, though its client was told: {why}"),
            )
        }
    }
}

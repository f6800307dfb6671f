//! Clients' histories are linearizable, with the log's order as the witness: every answer is the
//! one that this order gives, and no operation comes before another that had ended when it began.
//! Local reads may return older values. Planted: `read_without_quorum`, `read_before_applied`.

use std::collections::BTreeMap;

use super::{Checked, violated};
use crate::client::Record;
use crate::guest::History;

/// An operation's place in the order: an index of the log, and whether it is a read, which comes
/// after the writes of that index.
type Place = (u64, bool);

pub fn linearizable(records: &[&Record], applied: &History) -> Checked {
    let mut places: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut values: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for (index, operations) in &applied.operations {
        for operation in operations {
            places.entry(operation.id).or_insert((*index, operation.old));
            values.entry(operation.key).or_default().push((*index, operation.value));
        }
    }
    let value_at = |key: u64, index: u64| {
        let history = values.get(&key).map(Vec::as_slice).unwrap_or_default();
        let after = history.partition_point(|(at, _)| *at <= index);
        after.checked_sub(1).map_or(0, |last| history[last].1)
    };
    let mut spans: Vec<(u64, u64, Place, u64)> = Vec::new();
    for record in records {
        let Some(end) = record.end_us else { continue };
        let (place, right) = match record.value {
            Some(_) => {
                let Some((index, old)) = places.get(&record.id) else {
                    let what = format!("write {} was acknowledged, but never applied", record.id);
                    return violated("histories", what);
                };
                ((*index, false), *old)
            }
            None => ((record.applied, true), value_at(record.key, record.applied)),
        };
        if record.answer != Some(right) {
            let what =
                format!("operation {} was answered {:?}, not {right}", record.id, record.answer);
            return violated("histories", what);
        }
        // A local read may return an old value, as long as the value was once right.
        if record.local {
            continue;
        }
        spans.push((record.start_us, end, place, record.id));
    }
    in_real_time(spans)
}

/// No operation comes before one that had ended when it began.
fn in_real_time(mut spans: Vec<(u64, u64, Place, u64)>) -> Checked {
    spans.sort_unstable();
    let mut ended: Vec<(u64, Place, u64)> =
        spans.iter().map(|(_, end, place, id)| (*end, *place, *id)).collect();
    ended.sort_unstable();
    let mut ended = ended.into_iter().peekable();
    let mut furthest: Option<(Place, u64)> = None;
    for (start, _, place, id) in spans {
        while let Some((_, before, who)) = ended.next_if(|(end, ..)| *end < start) {
            if furthest.is_none_or(|(place, _)| place < before) {
                furthest = Some((before, who));
            }
        }
        // A read may have the same place as an operation that ended before; a write must come after
        // it.
        let behind = |before: Place| {
            if place.1 {
                before.0 <= place.0
            } else {
                before.0 < place.0 || (before.0 == place.0 && !before.1)
            }
        };
        if let Some((before, who)) = furthest.filter(|(before, _)| !behind(*before)) {
            let what = format!(
                "operation {id} is at {place:?}, before {who} at {before:?}, which had ended when \
                 it began"
            );
            return violated("histories", what);
        }
    }
    Ok(())
}

//! Clients' histories are linearizable, with the log's order as the witness: every answer is what
//! that order gives, and no operation stands before one that had ended when it began; but for reads
//! that asked for what one node has. Planted: `read_without_quorum`, `read_before_applied`.

use std::collections::BTreeMap;

use super::{Checked, violated};
use crate::client::Record;
use crate::guest::Applied;

/// Where an operation stands: the log's index, and writes before reads that saw them.
type Place = (u64, bool);

pub fn linearizable(records: &[&Record], applied: &Applied) -> Checked {
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
                    let what = format!("write {} was acknowledged, never applied", record.id);
                    return violated("histories", what);
                };
                ((*index, false), *old)
            }
            None => ((record.applied, true), value_at(record.key, record.applied)),
        };
        if record.answer != Some(right) {
            let what = format!("operation {} got {:?}, not {right}", record.id, record.answer);
            return violated("histories", what);
        }
        // The past is good enough, as long as it was so.
        if record.local {
            continue;
        }
        spans.push((record.start_us, end, place, record.id));
    }
    in_real_time(spans)
}

/// No operation stands before one that had ended when it began.
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
        // A read at the index of another read is as good; a write stands behind what ended.
        let behind = |before: Place| match place.1 {
            true => before.0 <= place.0,
            false => before.0 < place.0 || (before.0 == place.0 && !before.1),
        };
        if let Some((before, who)) = furthest.filter(|(before, _)| !behind(*before)) {
            let what = format!(
                "operation {id} stands at {place:?}, before {who} at {before:?}, \
                which had ended"
            );
            return violated("histories", what);
        }
    }
    Ok(())
}

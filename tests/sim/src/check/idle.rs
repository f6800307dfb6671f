//! A log at rest writes nothing: once the cluster has come to rest, no disk sees an operation.
//! Planted: `clean_for_ever`, `write_at_rest`.

use std::collections::BTreeMap;

use lockstep_core::ids::NodeId;

use super::{Checked, violated};

/// How many operations each disk has done.
pub type Operations = BTreeMap<NodeId, u64>;

/// The cluster was at rest between these two counts.
pub fn rests(before: &Operations, now: &Operations) -> Checked {
    match before.iter().find(|(node, ops)| now.get(node) != Some(ops)) {
        None => Ok(()),
        Some((node, ops)) => {
            let more = now.get(node).map_or(0, |now| now - ops);
            violated("idle", format!("node {node} did {more} disk operations while at rest"))
        }
    }
}

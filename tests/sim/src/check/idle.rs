//! A log at rest writes nothing: once all is quiet, no disk has anything to do. Planted:
//! `clean_for_ever`, `write_at_rest`.

use std::collections::BTreeMap;

use lockstep_core::ids::NodeId;

use super::{Checked, violated};

/// Operations of each disk so far.
pub type Operations = BTreeMap<NodeId, u64>;

/// All was quiet between the two.
pub fn rests(before: &Operations, now: &Operations) -> Checked {
    match before.iter().find(|(node, ops)| now.get(node) != Some(ops)) {
        None => Ok(()),
        Some((node, ops)) => {
            let more = now.get(node).map_or(0, |now| now - ops);
            violated("idle", format!("node {node} does {more} operations, and all is quiet"))
        }
    }
}

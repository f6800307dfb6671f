//! Other groups with the same name as this one, and the nodes that speak for them.
//!
//! Every frame names the lineage of its sender's group. A replica with a log has a lineage, and so
//! has one that was configured with the group to join. A replica without one may only probe, and
//! answer probes with `Nothing`. A frame of another lineage is not processed: its sender is
//! remembered for `status` and told that it is a stranger here.
//!
//! A replica without entries has only heard of its group. It switches to another lineage if nothing
//! has proved the first one for a while: the node that bootstrapped the group may have lost
//! everything before any other node had a part of it, or a surviving replica was made the whole
//! group, with a new lineage.

use std::collections::BTreeMap;

use crate::fault::Fault;
use crate::group::Shared;
use crate::group::effect::{Effect, Stopped};
use crate::group::frame::{Body, Frame};
use crate::ids::{Lineage, NodeId};
use crate::limits;
use crate::mutant::plant;

/// Configured nodes that recently spoke for another group of this name.
#[derive(Default)]
pub(super) struct Strangers {
    nodes: BTreeMap<NodeId, Stranger>,
    /// The tick at which a frame last proved that a group of our lineage exists.
    proved: u64,
}

struct Stranger {
    lineage: Lineage,
    heard: u64,
    /// The tick at which the node was last told that it is a stranger.
    told: Option<u64>,
}

/// Ticks after which a silent stranger is forgotten: longer than any replica stays silent.
const FORGET_TICKS: u64 = 30 * limits::ELECTION_TICKS_MAX as u64;
/// Ticks between two answers to a stranger.
const TELL_TICKS: u64 = limits::ELECTION_TICKS_MIN as u64;

impl Strangers {
    /// The nodes that spoke recently, and the lineage each spoke for.
    pub(super) fn list(&self, now: u64) -> Vec<(NodeId, Lineage)> {
        let lately = self.nodes.iter().filter(|(_, stranger)| now <= stranger.heard + FORGET_TICKS);
        lately.map(|(node, stranger)| (*node, stranger.lineage)).collect()
    }
}

impl Shared {
    /// The lineage of this replica's group, or the only one that it may join.
    pub(super) fn lineage(&self) -> Option<Lineage> {
        self.recovery.lineage.or(self.config.lineage)
    }

    /// Makes a replica without entries join the group of this lineage.
    pub(super) fn belong_to(&mut self, lineage: Lineage) {
        self.recovery.begin(lineage);
        self.strangers.proved = self.now;
    }

    /// A replica without entries received a frame: it may have been told of a group that no longer
    /// exists.
    pub(super) fn hear_say(&mut self, frame: &Frame, effects: &mut Vec<Effect>) {
        // A group answers a request to join from another lineage with `Stranger` only.
        let names = matches!(frame.body, Body::Have | Body::Raft(_) | Body::Stranger);
        let ours = frame.group == self.id && frame.to == Some(self.me());
        let Some(lineage) = frame.lineage.filter(|_| names && ours) else { return };
        if Some(lineage) == self.recovery.lineage {
            self.strangers.proved = self.now;
        } else if self.config.lineage.is_none()
            && self.now >= self.strangers.proved + limits::REPLACE_TICKS
        {
            self.belong_to(lineage);
            self.persist_now(Vec::new(), effects);
        }
    }

    /// Why a replica must not run on what its log holds; `None` if it may.
    pub(super) fn must_not_run(&self) -> Option<Stopped> {
        if self.recovery.removed {
            return Some(Stopped::Removed);
        }
        let (count, most) = (self.config.nodes.len(), limits::REPLICAS_MAX);
        if count > most {
            let why = format!("the group is configured on {count} nodes, the limit is {most}");
            return Some(Stopped::Failed(Fault::Unusable(why)));
        }
        match (self.recovery.lineage, self.config.lineage) {
            (Some(have), Some(want)) if have != want => {
                Some(Stopped::Failed(Fault::WrongLineage { have, want }))
            }
            _other => None,
        }
    }

    /// Whether a frame comes from another group of this name. If so, the sender is remembered and
    /// answered.
    pub(super) fn is_strange(&mut self, frame: &Frame, effects: &mut Vec<Effect>) -> bool {
        let asks = matches!(frame.body, Body::Probe | Body::Nothing);
        let lineage = match (frame.lineage, self.lineage()) {
            (Some(theirs), Some(ours)) if theirs != ours => theirs,
            (None, _) => return !asks,
            (Some(_), _) => {
                self.strangers.nodes.remove(&frame.from.node());
                return false;
            }
        };
        plant!("any_lineage" does return false);
        let node = frame.from.node();
        // Only configured nodes are shown in `status` and have an address to answer to.
        if !self.config.nodes.contains(&node) {
            return true;
        }
        let now = self.now;
        let stranger = self.strangers.nodes.entry(node).or_insert(Stranger {
            lineage,
            heard: now,
            told: None,
        });
        (stranger.lineage, stranger.heard) = (lineage, now);
        let due = stranger.told.is_none_or(|told| now >= told + TELL_TICKS);
        if due && self.persist.is_booted() && frame.body != Body::Stranger {
            stranger.told = Some(now);
            self.send(node, Some(frame.from), Body::Stranger, effects);
        }
        true
    }
}

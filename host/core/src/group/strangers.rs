//! Groups of the same name that are not this one, and who speaks for them.
//!
//! Every frame names the lineage of its sender's group. A replica that has a log has one, and so
//! has one that was told which group to join; whoever has none yet may only ask, and be answered
//! that there is nothing. A frame of another lineage goes no further: it is remembered who sent it,
//! for `status`, and the sender hears that it is a stranger here.
//!
//! What a replica without entries was told is hearsay. It follows another word once nobody proved
//! the first one for a while: the founder may have lost everything before anybody had a part of it,
//! or whoever was left was made to go on alone, under a lineage of its own.

use std::collections::BTreeMap;

use crate::fault::Fault;
use crate::group::Shared;
use crate::group::effect::{Effect, Stopped};
use crate::group::frame::{Body, Frame};
use crate::ids::{Lineage, NodeId};
use crate::limits;
use crate::mutant::planted;

/// Configured nodes that spoke for another group of the name lately.
#[derive(Default)]
pub(super) struct Strangers {
    nodes: BTreeMap<NodeId, Stranger>,
    /// Tick at which somebody last proved that our lineage has a group.
    proved: u64,
}

struct Stranger {
    lineage: Lineage,
    heard: u64,
    /// Tick at which it was last told.
    told: Option<u64>,
}

/// Ticks after which a stranger that is silent is forgotten: longer than any replica keeps still.
const FORGET_TICKS: u64 = 30 * limits::ELECTION_TICKS_MAX as u64;
/// Ticks between two answers to a stranger.
const TELL_TICKS: u64 = limits::ELECTION_TICKS_MIN as u64;

impl Strangers {
    /// Who spoke lately, and for which group.
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

    /// A replica without entries joins the group of this lineage.
    pub(super) fn belong_to(&mut self, lineage: Lineage) {
        self.recovery.lineage = Some(lineage);
        self.strangers.proved = self.now;
    }

    /// A frame came to a replica without entries, which may have been told of a group that is no
    /// more.
    pub(super) fn hear_say(&mut self, frame: &Frame, effects: &mut Vec<Effect>) {
        // Whoever asks to be taken in hears no more than that it is a stranger.
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

    /// Why a replica is not to run on what its log holds.
    pub(super) fn must_not_run(&self) -> Option<Stopped> {
        if self.recovery.removed {
            return Some(Stopped::Removed);
        }
        let (count, most) = (self.config.nodes.len(), limits::REPLICAS_MAX);
        if count > most {
            let why = format!("{count} nodes are to host the group, {most} are the limit");
            return Some(Stopped::Failed(Fault::Unusable(why)));
        }
        match (self.recovery.lineage, self.config.lineage) {
            (Some(have), Some(want)) if have != want => {
                Some(Stopped::Failed(Fault::WrongLineage { have, want }))
            }
            _other => None,
        }
    }

    /// Whether a frame comes from another group of the name; if it does, that is remembered and
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
        if planted("any_lineage") {
            return false;
        }
        let node = frame.from.node();
        // Nobody else has a place in `status`, or an address.
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

//! An old copy of a disk leads nobody, nothing that it says is counted, and it stops soon after it
//! can be told that it is one. Planted: `believe_older_boots`.

use lockstep_core::group::{GroupStatus, Role};
use lockstep_core::ids::NodeId;

use super::{Checked, violated};
use crate::copies::Life;

/// Looks, one a second, at which it may go on while nothing is in the way: time for two elections
/// and a slow disk.
const LOOKS_MAX: u64 = 15;

/// What an old copy tells of itself.
pub fn leads_nobody(copy: &GroupStatus) -> Checked {
    match copy.role {
        Role::Leader => {
            let (replica, term) = (copy.replica, copy.term);
            violated("copies", format!("an old copy of {replica} leads in term {term}"))
        }
        Role::Follower | Role::Candidate | Role::Learner | Role::None => Ok(()),
    }
}

/// What a peer tells while there is an old copy: no acknowledgement is counted but those of the
/// newer life.
pub fn is_not_counted(newer: &Life, peer: &GroupStatus) -> Checked {
    let counted = peer.peers.iter().find(|one| one.replica == newer.replica);
    match counted.filter(|one| one.matched > newer.last_index) {
        None => Ok(()),
        Some(one) => {
            let (replica, matched, last) = (one.replica, one.matched, newer.last_index);
            let what = format!(
                "an old copy of {replica} is said to have {matched}, and what it is a copy of \
                 had {last}"
            );
            violated("copies", what)
        }
    }
}

/// So many looks an old copy went on.
pub fn stops(node: NodeId, looks: u64) -> Checked {
    match looks <= LOOKS_MAX {
        true => Ok(()),
        false => violated("copies", format!("node {node} goes on with an old copy of its disk")),
    }
}

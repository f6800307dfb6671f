//! A replica on an old copy of its disk does not lead, its acknowledgements are not counted, and it
//! stops soon after its peers can recognize it. Planted: `believe_older_boots`.

use lockstep_core::group::{GroupStatus, Role};
use lockstep_core::ids::NodeId;

use super::{Checked, violated};
use crate::copies::Life;

/// How many looks, one a second, an old copy may survive while its peers can reach it: time for two
/// elections and a slow disk.
const LOOKS_MAX: u64 = 15;

/// An old copy does not lead.
pub fn leads_nobody(copy: &GroupStatus) -> Checked {
    match copy.role {
        Role::Leader => {
            let (replica, term) = (copy.replica, copy.term);
            violated("copies", format!("an old copy of {replica} leads in term {term}"))
        }
        Role::Follower | Role::Candidate | Role::Learner | Role::None => Ok(()),
    }
}

/// While an old copy runs, its peers count only what the newer life acknowledged.
pub fn is_not_counted(newer: &Life, peer: &GroupStatus) -> Checked {
    let counted = peer.peers.iter().find(|one| one.replica == newer.replica);
    match counted.filter(|one| one.matched > newer.last_index) {
        None => Ok(()),
        Some(one) => {
            let (replica, matched, last) = (one.replica, one.matched, newer.last_index);
            let what = format!(
                "an old copy of {replica} is counted as having {matched}, while the newer life \
                 ended at {last}"
            );
            violated("copies", what)
        }
    }
}

/// Fails if an old copy has run for this many looks, which are too many.
pub fn stops(node: NodeId, looks: u64) -> Checked {
    if looks <= LOOKS_MAX {
        Ok(())
    } else {
        violated("copies", format!("node {node} still runs on an old copy of its disk"))
    }
}

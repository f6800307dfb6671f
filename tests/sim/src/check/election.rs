//! At most one leader a term. Planted: `lead_without_votes`.

use std::collections::BTreeMap;

use lockstep_core::ids::{GroupId, ReplicaId};

use super::{Checked, violated};

#[derive(Default)]
pub struct Elections(BTreeMap<(GroupId, u64), ReplicaId>);

impl Elections {
    /// An operator made one replica the whole group: leaders elected before then led the old group.
    pub fn replaced(&mut self, group: GroupId) {
        self.0.retain(|(of, _), _| *of != group);
    }

    pub fn leads(&mut self, group: GroupId, term: u64, replica: ReplicaId) -> Checked {
        let leader = *self.0.entry((group, term)).or_insert(replica);
        if leader == replica {
            Ok(())
        } else {
            violated("election", format!("{leader} and {replica} lead in term {term}"))
        }
    }
}

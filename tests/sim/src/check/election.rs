//! One leader a term. Planted: `lead_without_votes`.

use std::collections::BTreeMap;

use lockstep_core::ids::{GroupId, ReplicaId};

use super::{Checked, violated};

#[derive(Default)]
pub struct Elections(BTreeMap<(GroupId, u64), ReplicaId>);

impl Elections {
    /// By hand a replica was made the whole group: whoever was elected before, and told nobody yet,
    /// leads another one.
    pub fn replaced(&mut self, group: GroupId) {
        self.0.retain(|(of, _), _| *of != group);
    }

    pub fn leads(&mut self, group: GroupId, term: u64, replica: ReplicaId) -> Checked {
        let leader = *self.0.entry((group, term)).or_insert(replica);
        match leader == replica {
            true => Ok(()),
            false => violated("election", format!("{leader} and {replica} lead in term {term}")),
        }
    }
}

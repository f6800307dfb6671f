//! A process's commit index never falls, and never passes its log. Planted: `commit_falls`.

use lockstep_core::group::GroupStatus;

use super::{Checked, violated};

pub fn moves(seen: &mut u64, status: &GroupStatus) -> Checked {
    if status.commit < *seen {
        let (was, is) = (*seen, status.commit);
        return violated("commits", format!("the commit index falls from {was} to {is}"));
    }
    *seen = status.commit;
    match status.commit <= status.last_index.max(status.first_index - 1) {
        true => Ok(()),
        false => violated("commits", format!("commit {} is past the log", status.commit)),
    }
}

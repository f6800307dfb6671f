//! The commit index of a running replica never falls, and never passes the end of its log. Planted:
//! `commit_falls`.

use lockstep_core::group::GroupStatus;

use super::{Checked, violated};

pub fn moves(seen: &mut u64, status: &GroupStatus) -> Checked {
    if status.commit < *seen {
        let (was, is) = (*seen, status.commit);
        return violated("commits", format!("the commit index falls from {was} to {is}"));
    }
    *seen = status.commit;
    if status.commit <= status.last_index.max(status.first_index - 1) {
        Ok(())
    } else {
        violated("commits", format!("commit index {} is past the end of the log", status.commit))
    }
}

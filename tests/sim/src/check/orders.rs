//! What operators ordered holds: no command reaches the guest of a frozen group, and an entry is
//! skipped by one order. That a skipped entry was not acknowledged, and has no effect, is what
//! `sessions`, `fates` and `states` check, since it counts for nothing there. Planted:
//! `apply_while_frozen`, `skip_what_was_applied`.

use lockstep_core::ids::GroupId;

use super::{Checked, violated};
use crate::guest::{SharedObserved, lock};

/// A replica has applied entries up to `index`, and says whether the group is frozen then: no
/// command changes that.
pub fn frozen(observed: &SharedObserved, group: GroupId, index: u64, frozen: bool) -> Checked {
    if !frozen {
        return Ok(());
    }
    let observed = lock(observed);
    let applied = observed.group(group).and_then(|history| history.operations.get(&index));
    if applied.is_some_and(|operations| !operations.is_empty()) {
        let what = format!("group {group}: the commands of entry {index} reached a frozen guest");
        return violated("orders", what);
    }
    Ok(())
}

//! [`SnapshotTraps`]: what the lane does when the state machine's snapshots trap one after the
//! other.
//!
//! All replicas snapshot the same state, so a snapshot that traps here traps on the others as well,
//! and handing leadership over would not help. After a few traps in a row no snapshot is taken for
//! a while. Status, log and metrics say so until one succeeds.

use std::time::Duration;

use lockstep_core::fault::GuestFault;
use lockstep_core::ids::GroupId;

/// Snapshots that trap in a row before none is taken for [`PAUSE`]: each stalls the lane, and may
/// cost a rebuild of the guest.
const IN_A_ROW_MAX: u64 = 3;
const PAUSE: Duration = Duration::from_secs(600);

/// The traps since the last snapshot that succeeded.
#[derive(Default)]
pub(super) struct SnapshotTraps {
    in_a_row: u64,
    /// When the last snapshot trapped, and its fault.
    last: Option<(Duration, String)>,
}

impl SnapshotTraps {
    pub(super) fn in_a_row(&self) -> u64 {
        self.in_a_row
    }

    /// The reason why no snapshot may be taken now; `None` if one may.
    pub(super) fn pause(&self, now: Duration) -> Option<String> {
        let (at, fault) = self.last.as_ref().filter(|_| self.in_a_row >= IN_A_ROW_MAX)?;
        let left = (*at + PAUSE).checked_sub(now).filter(|left| !left.is_zero())?;
        Some(format!(
            "the state machine's snapshot trapped {} times in a row; no snapshot is taken for {} \
             s; the last fault: {fault}",
            self.in_a_row,
            left.as_secs().max(1)
        ))
    }

    pub(super) fn trapped(&mut self, group: GroupId, now: Duration, fault: &GuestFault) {
        (self.in_a_row, self.last) = (self.in_a_row + 1, Some((now, fault.to_string())));
        if self.in_a_row >= IN_A_ROW_MAX {
            tracing::error!(%group, in_a_row = self.in_a_row, %fault, pause_s = PAUSE.as_secs(),
                "the state machine's snapshots keep trapping: none is taken for a while; the log \
                 grows, and commands are refused once it is at its bound");
        }
    }

    pub(super) fn succeeded(&mut self, group: GroupId) {
        if self.in_a_row >= IN_A_ROW_MAX {
            tracing::info!(%group, "the state machine's snapshots succeed again");
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::fault::FaultClass;

    use super::*;

    #[test]
    fn three_traps_in_a_row_are_told_until_one_succeeds() {
        let fault = GuestFault {
            class: FaultClass::Trap,
            call: "snapshot",
            index: None,
            message: "no more pages".to_owned(),
        };
        let group = GroupId(1);
        let second = Duration::from_secs;
        let mut traps = SnapshotTraps::default();
        for now in [10, 20, 30] {
            assert_eq!(traps.pause(second(now)), None);
            traps.trapped(group, second(now), &fault);
        }
        let told = traps.pause(second(130)).expect("no snapshot is taken");
        for word in ["3 times in a row", "for 500 s", "trap in snapshot: no more pages"] {
            assert!(told.contains(word), "{told}");
        }
        assert_eq!((traps.pause(second(630)), traps.in_a_row()), (None, 3));
        traps.trapped(group, second(630), &fault);
        assert!(traps.pause(second(1229)).is_some(), "one try, and the next pause");
        traps.succeeded(group);
        assert_eq!((traps.pause(second(1229)), traps.in_a_row()), (None, 0));
    }
}

//! [`PeerVersions`]: which versions of the peers' protocol a node knows, and which one two nodes
//! speak.
//!
//! A version defines what its messages mean, and the formats of what travels in them: entries, and
//! descriptors and envelopes of snapshots. Decision 0040 says how a new version is introduced.

use std::fmt;

use tonic::Status;

/// The versions that a node knows: all from `oldest` to `newest`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerVersions {
    pub oldest: u32,
    pub newest: u32,
}

impl PeerVersions {
    /// The versions that this program knows.
    pub const OURS: Self = Self { oldest: 1, newest: 1 };

    pub(super) fn know(self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// The newest version that both know.
    pub(super) fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for PeerVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "version {}", self.newest)
        } else {
            write!(f, "versions {} to {}", self.oldest, self.newest)
        }
    }
}

/// The version that node `here`, which knows `ours`, and its peer `there` speak; without a common
/// one, a refusal that says what to do.
pub(super) fn agree(
    here: u32,
    ours: PeerVersions,
    there: u32,
    theirs: PeerVersions,
) -> Result<u32, Status> {
    ours.common(theirs).ok_or_else(|| {
        let older = if ours.newest < theirs.newest { here } else { there };
        let least = ours.oldest.max(theirs.oldest);
        Status::failed_precondition(format!(
            "node {here} speaks {ours} of the peers' protocol, node {there} speaks {theirs}: they \
             have none in common; run a release on node {older} that speaks version {least}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(oldest: u32, newest: u32) -> PeerVersions {
        PeerVersions { oldest, newest }
    }

    #[test]
    fn the_newest_version_that_both_know_is_spoken() {
        let rows = [
            (versions(1, 1), versions(1, 1), Some(1)),
            (versions(1, 2), versions(1, 1), Some(1)),
            (versions(1, 2), versions(1, 2), Some(2)),
            (versions(1, 3), versions(2, 5), Some(3)),
            (versions(2, 3), versions(1, 1), None),
            // Only a malicious peer says this.
            (versions(1, 1), versions(0, 0), None),
            (versions(1, 2), versions(2, 1), None),
            (versions(1, 2), versions(0, u32::MAX), Some(2)),
        ];
        for (one, other, common) in rows {
            assert_eq!(one.common(other), common, "{one:?} {other:?}");
            assert_eq!(other.common(one), common, "{other:?} {one:?}");
        }
    }

    #[test]
    fn who_is_older_is_told_what_to_run() {
        let (old, new) = (versions(1, 1), versions(2, 3));
        for (ours, theirs, older) in [(old, new, "node 7"), (new, old, "node 9")] {
            let refused = agree(7, ours, 9, theirs).expect_err("none");
            let text = refused.message();
            assert!(text.contains("version 1 of") || text.contains("speaks version 1:"), "{text}");
            assert!(text.contains("versions 2 to 3"), "{text}");
            let way = format!("a release on {older} that speaks version 2");
            assert!(text.contains(&way), "{text}");
        }
    }
}

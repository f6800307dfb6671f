//! A host restores a limited number of snapshots at once: a start or a restore waits for a place.

use lockstep_core::group::ApplyJob;

use super::ApplyLane;
use crate::store::Work;

impl ApplyLane {
    /// Whether the job may begin: it needs no place, or has one. A job without a place asks again
    /// later; the lane keeps a granted place until the job is done.
    pub fn may_begin(&mut self, job: &ApplyJob) -> bool {
        if !restores(job) || self.place.is_some() {
            return true;
        }
        self.place = self.tools.quota.take_place(Work::Restore, 0);
        let (group, now) = (self.tools.group, self.tools.clock.running());
        match (&self.place, self.no_place_since) {
            (Some(_), None) => {}
            (Some(_), Some(since)) => {
                let waited_ms = now.saturating_sub(since).as_millis() as u64;
                tracing::info!(%group, waited_ms, "the restore begins");
                self.no_place_since = None;
            }
            (None, None) => {
                let most = self.tools.quota.budget().limits().restores;
                tracing::info!(%group, most, "the restore waits for one of the node's places");
                self.no_place_since = Some(now);
            }
            (None, Some(_)) => {}
        }
        self.place.is_some()
    }
}

/// Whether the job builds a guest from a snapshot.
pub fn restores(job: &ApplyJob) -> bool {
    match job {
        ApplyJob::Start { .. } | ApplyJob::Restore { .. } | ApplyJob::Stand { .. } => true,
        ApplyJob::Range { .. }
        | ApplyJob::Capture { .. }
        | ApplyJob::Try { .. }
        | ApplyJob::DropTried
        | ApplyJob::Query { .. } => false,
    }
}

//! A halted replica: something, usually one entry, keeps it from applying any further.
//!
//! - It votes and keeps the log, says in its frames that it is halted, and does not lead while
//!   another replica can. Entries committed meanwhile are not queued: when the replica resumes, it
//!   reads them from the log.
//! - If an entry halted it, its guest is rebuilt as it was before that entry and answers local
//!   queries from there.
//! - If another replica applied that entry, the two have diverged. The halted one raises an alarm,
//!   asks for a snapshot taken at or after the entry, and goes on from there. The group goes on
//!   meanwhile.
//! - If all replicas halt at one entry, nobody asks for anything: one of them may lead, but
//!   commands and linearizable queries are refused until the entry is skipped or the limits are
//!   raised: [`super::orders`], [`crate::amendment`].
//! - Its log has a bound, as in [`super::space`]. At the bound, the leader sends it a snapshot
//!   through raft, which is another way on: see [`super::catch_up`].
//! - If its node lacked memory or descriptors, it tries again by itself: see [`super::retry`].

use crate::group::Shared;
use crate::group::pipeline::Pipeline;
use crate::ids::ReplicaId;
use crate::mutant::planted;

/// What is known of the processes of this replica before this one.
#[derive(Default)]
pub(super) struct Before {
    /// The last entry that was in the log when this process started: entries up to it may have been
    /// applied then.
    pub(super) last: u64,
    /// The one among them that was not; 0 if there is none.
    pub(super) unapplied: u64,
}

impl Shared {
    /// A member that said it had applied the entry at `index`. One that has applied more than what
    /// was handed over here may know that the entry is skipped.
    fn applied_by(&self, index: u64) -> Option<ReplicaId> {
        let members = &self.recovery.configuration;
        let known = index..=self.recovery.floor;
        let seen = self.seen.iter().filter(|(replica, _)| members.contains(**replica));
        seen.filter(|(_, seen)| known.contains(&seen.applied)).map(|(replica, _)| *replica).next()
    }

    /// Whether this replica has never applied this entry: this process has not, and the entry came
    /// after it was started, or was the one at which the replica was halted before.
    pub(super) fn has_never_applied(&self, entry: u64, pipeline: &Pipeline) -> bool {
        let Before { last, unapplied } = self.before;
        let before = entry > last || entry == unapplied || planted("trust_every_halt");
        before && pipeline.applied() < entry
    }

    /// Whether a replica's last frame said that it is halted.
    pub(super) fn is_halted(&self, replica: ReplicaId) -> bool {
        self.seen.get(&replica).is_some_and(|seen| seen.halted.is_some())
    }
}

/// The entry that halted this replica, if another replica applied it and no build is under way.
pub(super) fn applied_elsewhere(pipeline: &Pipeline) -> Option<u64> {
    let halt = pipeline.halt().filter(|halt| halt.applied_by.is_some());
    let halt = halt.filter(|_| !pipeline.is_restoring())?;
    halt.fault.entry().filter(|_| !planted("halted_alone_asks_nobody"))
}

/// Raises an alarm if another replica applied the entry that halted this one.
pub(super) fn tick(pipeline: &mut Pipeline, shared: &mut Shared) {
    let Some(halt) = pipeline.halt().filter(|halt| halt.applied_by.is_none()) else { return };
    if let Some(entry) = halt.fault.entry()
        && let Some(replica) = shared.applied_by(entry)
    {
        shared.divergence.alarm(format!(
            "entry {entry} could not be applied here ({}), but node {} applied it: the two \
             replicas had diverged",
            halt.fault,
            replica.node()
        ));
        pipeline.diverges_from(replica);
    }
}

//! Checkpoints that clients ask for.
//!
//! - A client is told the index of the checkpoint once it is committed. A checkpoint that is due or
//!   under way serves every client that asks before then: whatever was acknowledged to the client
//!   earlier has a lower index.
//! - If nothing changed since the last checkpoint and every replica that is heard has its snapshot,
//!   that checkpoint is the answer. If a replica skipped it or failed to capture, another
//!   checkpoint is useful.
//! - A few may be requested at once, then one in [`limits::CHECKPOINT_REQUEST_TICKS`], or in
//!   [`limits::CHECKPOINT_REQUEST_PARTS`] times as long as the last capture took here: clients
//!   cannot make a group write snapshots all the time.

use std::collections::BTreeSet;

use crate::entry::CheckpointReason;
use crate::fault::Refusal;
use crate::group::Shared;
use crate::group::checkpoint::Checkpoints;
use crate::group::effect::Effect;
use crate::ids::{ReplicaId, Ticket};
use crate::limits;
use crate::mutant::{plant, planted};

/// Requests that wait for a checkpoint, and how many more may be made.
#[derive(Default)]
pub(super) struct CheckpointRequests {
    waiting: Vec<Ticket>,
    /// A token bucket: how many tokens are taken, and the tick from which the return of the next
    /// one is counted.
    spent: u32,
    since: u64,
}

impl CheckpointRequests {
    /// Takes a token, or says in how many ticks the next one is available.
    fn spend(&mut self, now: u64, interval: u64) -> Result<(), u64> {
        let intervals = u32::try_from((now - self.since) / interval).unwrap_or(u32::MAX);
        let returned = intervals.min(self.spent);
        self.spent -= returned;
        self.since = match self.spent {
            0 => now,
            _some => self.since + u64::from(returned) * interval,
        };
        if self.spent >= limits::CHECKPOINT_REQUESTS_AT_ONCE {
            return Err(self.since + interval - now);
        }
        self.spent += 1;
        Ok(())
    }

    /// Drops the requests whose clients are gone.
    pub(super) fn forget(&mut self, gone: &BTreeSet<Ticket>, effects: &mut Vec<Effect>) {
        for ticket in self.waiting.extract_if(.., |ticket| gone.contains(ticket)) {
            effects.push(Effect::Answer { ticket, answer: Err(Refusal::Overloaded) });
        }
    }

    /// Refuses all waiting requests: this replica no longer leads or serves.
    pub(super) fn abandon(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        for ticket in self.waiting.drain(..) {
            effects.push(Effect::Answer { ticket, answer: Err(refusal.clone()) });
        }
    }

    /// Answers all waiting requests: a checkpoint was committed at `index`.
    pub(super) fn committed(&mut self, index: u64, effects: &mut Vec<Effect>) {
        effects.extend(self.waiting.drain(..).map(|ticket| Effect::Entered { ticket, index }));
    }

    /// A client asks this leader for a checkpoint.
    pub(super) fn asked(
        &mut self,
        checkpoints: &mut Checkpoints,
        shared: &Shared,
        ticket: Ticket,
        effects: &mut Vec<Effect>,
    ) {
        match self.may_checkpoint(checkpoints, shared) {
            Ok(None) => self.waiting.push(ticket),
            Ok(Some(index)) => effects.push(Effect::Entered { ticket, index }),
            Err(refusal) => effects.push(Effect::Answer { ticket, answer: Err(refusal) }),
        }
    }

    /// The last checkpoint's index, if it answers the request; `None` if the request waits for the
    /// next one.
    fn may_checkpoint(
        &mut self,
        checkpoints: &mut Checkpoints,
        shared: &Shared,
    ) -> Result<Option<u64>, Refusal> {
        if self.waiting.len() >= limits::CHECKPOINT_REQUESTS_MAX {
            return Err(Refusal::Overloaded);
        }
        if checkpoints.is_proposed() {
            return Ok(None);
        }
        if let Some(index) = last_checkpoint_does(checkpoints, shared) {
            return Ok(Some(index));
        }
        let too_soon = |ticks: u64| Refusal::CheckpointTooSoon { wait_ms: ticks * limits::TICK_MS };
        if let Some(ticks) = checkpoints.rests_for(shared.now) {
            return Err(too_soon(ticks));
        }
        if checkpoints.is_wanted() {
            return Ok(None);
        }
        let took = checkpoints.took().saturating_mul(limits::CHECKPOINT_REQUEST_PARTS);
        let interval = limits::CHECKPOINT_REQUEST_TICKS.max(took);
        let spent = self.spend(shared.now, interval);
        plant!("checkpoints_without_pause" skips spent.map_err(too_soon)?);
        checkpoints.want(CheckpointReason::Operator);
        Ok(None)
    }
}

/// The last checkpoint's index, if nothing changed since and every replica has its snapshot. Silent
/// replicas do not count, because another checkpoint would not reach them either.
fn last_checkpoint_does(checkpoints: &Checkpoints, shared: &Shared) -> Option<u64> {
    let last = checkpoints.settled()?;
    let has = |replica: ReplicaId| {
        if replica == shared.me() {
            shared.own.snapshot >= last
        } else {
            let counts = !shared.is_silent(replica) || planted("wait_for_the_silent");
            !counts || shared.seen.get(&replica).is_some_and(|seen| seen.snapshot >= last)
        }
    };
    shared.recovery.configuration.replicas().all(has).then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_at_once_and_then_one_an_interval() {
        let (mut requests, interval) = (CheckpointRequests::default(), 20);
        for _ in 0..limits::CHECKPOINT_REQUESTS_AT_ONCE {
            assert_eq!(requests.spend(100, interval), Ok(()));
        }
        assert_eq!(requests.spend(100, interval), Err(20));
        assert_eq!(requests.spend(115, interval), Err(5));
        assert_eq!(requests.spend(120, interval), Ok(()), "one is made up for");
        assert_eq!(requests.spend(130, interval), Err(10), "and that was all");
        for _ in 0..limits::CHECKPOINT_REQUESTS_AT_ONCE {
            assert_eq!(requests.spend(10_000, interval), Ok(()), "no more than a few are saved");
        }
        assert_eq!(requests.spend(10_000, interval), Err(20));
    }
}

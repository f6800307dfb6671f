//! Marks that clients ask for.
//!
//! - Whoever asks is told the mark's index once it is committed: a mark that is wanted or on its
//!   way does for all who ask before that, for what they were told of before stands below it.
//! - With nothing new since the last mark, that one is the answer, if every replica has its
//!   snapshot: where one skipped it or failed, another mark is of use.
//! - A few may be asked for at once, then one in [`limits::MARK_REQUEST_TICKS`], or in as long as
//!   the last snapshot took here: no caller can have a group write snapshots without a pause.

use std::collections::BTreeSet;

use crate::entry::MarkReason;
use crate::fault::Refusal;
use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::hosting::Hosting;
use crate::ids::{ReplicaId, Ticket};
use crate::limits;
use crate::mutant::planted;

/// Requests that wait for a mark, and how many more may be made.
#[derive(Default)]
pub(super) struct MarkRequests {
    waiting: Vec<Ticket>,
    /// A token bucket: tokens taken and not yet back, and the tick from which the next one's return
    /// is counted.
    spent: u32,
    since: u64,
}

impl MarkRequests {
    /// Takes one of the marks that may be asked for, or says after how many ticks there is one.
    fn spend(&mut self, now: u64, interval: u64) -> Result<(), u64> {
        let over = u32::try_from((now - self.since) / interval).unwrap_or(u32::MAX);
        let over = over.min(self.spent);
        self.spent -= over;
        self.since = match self.spent {
            0 => now,
            _some => self.since + u64::from(over) * interval,
        };
        if self.spent >= limits::MARK_REQUESTS_AT_ONCE {
            return Err(self.since + interval - now);
        }
        self.spent += 1;
        Ok(())
    }

    /// Nobody waits for these any more.
    pub(super) fn forget(&mut self, gone: &BTreeSet<Ticket>, effects: &mut Vec<Effect>) {
        for ticket in self.waiting.extract_if(.., |ticket| gone.contains(ticket)) {
            effects.push(Effect::Answer { ticket, answer: Err(Refusal::Overloaded) });
        }
    }

    /// Nobody is told any more.
    pub(super) fn abandon(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        for ticket in self.waiting.drain(..) {
            effects.push(Effect::Answer { ticket, answer: Err(refusal.clone()) });
        }
    }

    /// A mark was committed.
    pub(super) fn committed(&mut self, index: u64, effects: &mut Vec<Effect>) {
        effects.extend(self.waiting.drain(..).map(|ticket| Effect::Marked { ticket, index }));
    }
}

impl Hosting {
    /// A client asks for a mark.
    pub(super) fn mark_asked_for(
        &mut self,
        shared: &Shared,
        ticket: Ticket,
        effects: &mut Vec<Effect>,
    ) {
        match self.may_mark(shared) {
            Ok(None) => self.mark_requests.waiting.push(ticket),
            Ok(Some(index)) => effects.push(Effect::Marked { ticket, index }),
            Err(refusal) => effects.push(Effect::Answer { ticket, answer: Err(refusal) }),
        }
    }

    /// The last mark, if there is no use in another one; `None` if one is on its way.
    fn may_mark(&mut self, shared: &Shared) -> Result<Option<u64>, Refusal> {
        self.may_lead(shared)?;
        if self.mark_requests.waiting.len() >= limits::MARK_REQUESTS_MAX {
            return Err(Refusal::Overloaded);
        }
        if self.marks.is_proposed() {
            return Ok(None);
        }
        if let Some(index) = self.last_mark_does(shared) {
            return Ok(Some(index));
        }
        let too_soon = |ticks: u64| Refusal::MarkTooSoon { wait_ms: ticks * limits::TICK_MS };
        if let Some(ticks) = self.marks.rests_for(shared.now) {
            return Err(too_soon(ticks));
        }
        if self.marks.is_wanted() {
            return Ok(None);
        }
        let interval = limits::MARK_REQUEST_TICKS.max(self.marks.took());
        let spent = self.mark_requests.spend(shared.now, interval);
        if !planted("marks_without_pause") {
            spent.map_err(too_soon)?;
        }
        self.marks.want(MarkReason::Operator);
        Ok(None)
    }

    /// The last mark's index, if nothing came after it and every replica has its snapshot.
    fn last_mark_does(&self, shared: &Shared) -> Option<u64> {
        let last = self.marks.settled()?;
        let has = |replica: ReplicaId| match replica == shared.me() {
            true => shared.snapshot >= last,
            false => shared.seen.get(&replica).is_some_and(|seen| seen.snapshot >= last),
        };
        shared.recovery.configuration.replicas().all(has).then_some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_at_once_and_then_one_an_interval() {
        let (mut requests, interval) = (MarkRequests::default(), 20);
        for _ in 0..limits::MARK_REQUESTS_AT_ONCE {
            assert_eq!(requests.spend(100, interval), Ok(()));
        }
        assert_eq!(requests.spend(100, interval), Err(20));
        assert_eq!(requests.spend(115, interval), Err(5));
        assert_eq!(requests.spend(120, interval), Ok(()), "one is made up for");
        assert_eq!(requests.spend(130, interval), Err(10), "and that was all");
        for _ in 0..limits::MARK_REQUESTS_AT_ONCE {
            assert_eq!(requests.spend(10_000, interval), Ok(()), "no more than a few are saved");
        }
        assert_eq!(requests.spend(10_000, interval), Err(20));
    }
}

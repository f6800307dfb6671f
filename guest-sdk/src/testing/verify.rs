//! Holds a machine to its contract: replays the harness's log, restores on the way, and puts
//! each command into an entry of its own.

use super::replica::{Done, Replica};
use super::{Entry, Harness, Work, beginning, context};
use crate::Exports;

/// Most points of the log at which [`Harness::verify`] restores: each costs a replay.
const CUTS_MAX: usize = 16;

impl<M: Exports> Harness<M> {
    /// Holds the machine to its contract, see the module, for everything that was applied so far.
    #[track_caller]
    pub fn verify(&self) {
        let last = self.snapshot();
        let step = self.log.len().div_ceil(CUTS_MAX).max(1);
        // Two full replays with a restore of the initial state, then a restore at each cut, of
        // which the end is always one.
        let cuts = (0..self.log.len()).step_by(step).chain([self.log.len()]);
        for cut in [0, 0].into_iter().chain(cuts) {
            let mut replica = self.again();
            replay(&mut replica, &self.log[..cut], "replayed");

            let bytes = replica.snapshot();
            let at = cut.checked_sub(1).map_or_else(beginning, |last| self.log[last].ctx);
            let mut restored = Replica::<M>::restore(&at, replica.timer, &self.config, &bytes)
                .expect("a machine reads what it wrote");
            let place = format!("restored after {cut} entries");
            assert!(bytes == restored.snapshot(), "{place}: snapshots differ");
            assert_eq!(replica.digest(), restored.digest(), "{place}: digests differ");

            replay(&mut replica, &self.log[cut..], "replayed");
            assert!(last == replica.snapshot(), "replayed: snapshots differ");
            replay(&mut restored, &self.log[cut..], &place);
            assert!(last == restored.snapshot(), "{place}: final states differ");
        }
        if M::SELF_TEST.is_some_and(|tests| tests.independent_of_packing) {
            self.verify_packing(&last);
        }
    }

    /// Applies each command in an entry of its own.
    #[track_caller]
    fn verify_packing(&self, last: &[u8]) {
        let mut replica = self.again();
        let mut index = 0;
        for entry in &self.log {
            let mut all = Done { outcomes: Vec::new(), events: Vec::new(), ..entry.done.clone() };
            let works: Vec<Work> = match &entry.work {
                Work::Commands(commands) => {
                    commands.iter().map(|one| Work::Commands(vec![one.clone()])).collect()
                }
                Work::Wake => vec![Work::Wake],
            };
            for work in works {
                index += 1;
                let done = replica.execute(&context(index, entry.ctx.time_ms), &work);
                all.outcomes.extend(done.outcomes);
                all.events.extend(done.events);
                (all.timer, all.digest) = (done.timer, done.digest);
            }
            compare(entry, &all, "in entries of one command each");
        }
        assert!(
            last == replica.snapshot(),
            "in entries of one command each: final states differ, but the machine claims to be \
             independent of packing"
        );
    }

    /// The machine as it began.
    #[track_caller]
    fn again(&self) -> Replica<M> {
        let (replica, done) =
            Replica::init(&beginning(), &self.config).expect("init succeeded the first time");
        assert_eq!(done, self.started, "initialised again: it differs");
        replica
    }
}

#[track_caller]
fn replay<M: Exports>(replica: &mut Replica<M>, entries: &[Entry], place: &str) {
    for entry in entries {
        compare(entry, &replica.execute(&entry.ctx, &entry.work), place);
    }
}

#[track_caller]
fn compare(entry: &Entry, again: &Done, place: &str) {
    let (first, index) = (&entry.done, entry.ctx.index);
    for (position, (first, again)) in first.outcomes.iter().zip(&again.outcomes).enumerate() {
        assert!(
            first == again,
            "{place}: outcomes of command {position} of entry {index} differ: first `{first}`, \
             then `{again}`"
        );
    }
    assert_eq!(first.events, again.events, "{place}: events of entry {index} differ");
    assert_eq!(first.timer, again.timer, "{place}: the timer differs after entry {index}");
    assert_eq!(first.digest, again.digest, "{place}: digests differ after entry {index}");
}

//! Passes the log messages of a group's guests on to the node's log, within limits.
//!
//! - Lines and bytes per second are limited. Lines beyond that are dropped and counted; the node's
//!   log says once when dropping begins, and once when it is over.
//! - Messages about an entry are not logged again while the entry is replayed.
//! - Neither affects a guest: what its calls return and their fuel stay the same.
//!
//! All instances of a group's guest, including copies and later instances, share one [`GuestLog`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::ids::GroupId;
use tracing::Level;

use crate::clock::{Clock, SystemClock};

/// The most lines of a group's guests that are logged in one second.
pub(crate) const LOG_LINES_PER_SECOND_MAX: u32 = 200;
/// The most bytes of such lines, targets included, in one second.
pub(crate) const LOG_BYTES_PER_SECOND_MAX: usize = 64 << 10;

const SECOND: Duration = Duration::from_secs(1);

/// Takes the log messages of a group's guests.
pub struct GuestLog {
    group: Option<GroupId>,
    clock: Arc<dyn Clock>,
    silent: AtomicBool,
    dropped: AtomicU64,
    rate: Mutex<Rate>,
}

/// What was logged in the present second, and what was dropped.
#[derive(Default)]
struct Rate {
    began: Duration,
    lines: u32,
    bytes: usize,
    /// Lines dropped in this second.
    dropped: u64,
    /// Lines dropped since the last full second without a drop.
    dropped_in_a_row: u64,
}

#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    Pass,
    /// This line passes, and dropping is over: this many lines before it were dropped.
    PassAfter(u64),
    /// The line is dropped, and is the first in a row.
    DropFirst,
    Drop,
}

impl GuestLog {
    pub fn new(group: GroupId, clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::of(Some(group), clock)
    }

    /// For guests that are checked outside of any group.
    pub fn of_no_group() -> Arc<Self> {
        Self::of(None, Arc::new(SystemClock { offset_ms: 0 }))
    }

    fn of(group: Option<GroupId>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (silent, dropped) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { group, clock, silent, dropped, rate: Mutex::default() })
    }

    /// Lines that were dropped because there were too many.
    pub fn lines_dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Runs `work`, which enters guests; if `silent`, their messages are ignored.
    pub(crate) fn silent_if<R>(&self, silent: bool, work: impl FnOnce() -> R) -> R {
        self.silent.store(silent, Ordering::Relaxed);
        let done = work();
        self.silent.store(false, Ordering::Relaxed);
        done
    }

    pub(super) fn say(&self, module: &str, level: Level, origin: &str, text: &str) {
        if self.silent.load(Ordering::Relaxed) {
            return;
        }
        // tracing fixes the level of an event at compile time, so each level has an event of its
        // own.
        macro_rules! pass_on {
            ($level:ident) => {
                if tracing::enabled!(Level::$level) && self.passes(origin.len() + text.len()) {
                    let group = self.group.map(tracing::field::display);
                    tracing::event!(Level::$level, group, module, origin, text, "guest log");
                }
            };
        }
        match level {
            Level::TRACE => pass_on!(TRACE),
            Level::DEBUG => pass_on!(DEBUG),
            Level::INFO => pass_on!(INFO),
            Level::WARN => pass_on!(WARN),
            Level::ERROR => pass_on!(ERROR),
        }
    }

    fn passes(&self, bytes: usize) -> bool {
        let now = self.clock.running();
        let verdict = self.rate.lock().unwrap_or_else(PoisonError::into_inner).judge(now, bytes);
        let group = self.group.map(tracing::field::display);
        match verdict {
            Verdict::Pass => true,
            Verdict::PassAfter(dropped) => {
                tracing::warn!(group, dropped, "log lines of the guest were dropped");
                true
            }
            Verdict::DropFirst | Verdict::Drop => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                if verdict == Verdict::DropFirst {
                    tracing::warn!(
                        group,
                        lines_per_second = LOG_LINES_PER_SECOND_MAX,
                        bytes_per_second = LOG_BYTES_PER_SECOND_MAX,
                        "the guest logs too much: lines are dropped and counted"
                    );
                }
                false
            }
        }
    }
}

impl Rate {
    fn judge(&mut self, now: Duration, bytes: usize) -> Verdict {
        let mut over = 0;
        let passed = now.saturating_sub(self.began);
        if passed >= SECOND {
            let still = self.dropped > 0 && passed < 2 * SECOND;
            if !still {
                over = std::mem::take(&mut self.dropped_in_a_row);
            }
            (self.began, self.lines, self.bytes, self.dropped) = (now, 0, 0, 0);
        }
        let bytes = self.bytes.saturating_add(bytes);
        if self.lines < LOG_LINES_PER_SECOND_MAX && bytes <= LOG_BYTES_PER_SECOND_MAX {
            (self.lines, self.bytes) = (self.lines + 1, bytes);
            return if over == 0 { Verdict::Pass } else { Verdict::PassAfter(over) };
        }
        self.dropped += 1;
        self.dropped_in_a_row += 1;
        if self.dropped_in_a_row == 1 { Verdict::DropFirst } else { Verdict::Drop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges lines, each with its time in milliseconds and its bytes; a letter for each verdict.
    fn check(lines: impl IntoIterator<Item = (u64, usize)>, expect: &str) {
        let mut rate = Rate::default();
        let verdicts = lines.into_iter().map(|(ms, bytes)| {
            match rate.judge(Duration::from_millis(ms), bytes) {
                Verdict::Pass => "p".to_owned(),
                Verdict::PassAfter(dropped) => format!("({dropped} dropped)p"),
                Verdict::DropFirst => "D".to_owned(),
                Verdict::Drop => "d".to_owned(),
            }
        });
        assert_eq!(verdicts.collect::<String>(), expect);
    }

    #[test]
    fn so_many_lines_pass_in_a_second() {
        let most = LOG_LINES_PER_SECOND_MAX as usize;
        let burst = (0..most + 3).map(|_| (5, 1));
        check(burst, &format!("{}Ddd", "p".repeat(most)));
    }

    #[test]
    fn so_many_bytes_pass_in_a_second() {
        let half = LOG_BYTES_PER_SECOND_MAX / 2;
        check([(0, half), (1, half), (2, 1), (999, 1), (1000, half)], "ppDdp");
        check([(0, half), (1, half + 1), (2, half)], "pDp");
    }

    /// Drops in successive seconds are announced once and summed up once.
    #[test]
    fn drops_in_a_row_are_told_once() {
        let all = LOG_BYTES_PER_SECOND_MAX;
        let seconds = (0..3).flat_map(|second| [(second * 1000, all), (second * 1000 + 1, 1)]);
        check(seconds.chain([(3_000, 1), (4_000, 1)]), "pDpdpdp(3 dropped)p");
        check([(0, all), (1, 1), (9_000, all), (9_001, 1)], "pD(1 dropped)pD");
    }
}

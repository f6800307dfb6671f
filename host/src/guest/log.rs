//! What the guests of a group say: passed on to the node's log, within limits.
//!
//! - So many lines and bytes a second; what is beyond is dropped and counted, and that is said once
//!   for as long as it lasts.
//! - What was said of an entry is not said again while the entry is replayed.
//! - A guest sees nothing of either, in answers or in fuel.
//!
//! All instances of a group's guest, copies and later ones too, speak through one [`GuestLog`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::ids::GroupId;
use tracing::Level;

use crate::clock::{Clock, SystemClock};

/// Lines of a group's guests that are passed on in a second.
pub(crate) const LOG_LINES_PER_SECOND_MAX: u32 = 200;
/// Bytes of them.
pub(crate) const LOG_BYTES_PER_SECOND_MAX: usize = 64 << 10;

const SECOND: Duration = Duration::from_secs(1);

/// Where the guests of a group speak.
pub struct GuestLog {
    group: Option<GroupId>,
    clock: Arc<dyn Clock>,
    silent: AtomicBool,
    dropped: AtomicU64,
    rate: Mutex<Rate>,
}

/// What was passed on in the second under way, and what was not.
#[derive(Default)]
struct Rate {
    began: Duration,
    lines: u32,
    bytes: usize,
    /// Lines dropped in this second.
    dropped: u64,
    /// Lines dropped since none was dropped for a second.
    dropped_in_a_row: u64,
}

#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    Pass,
    /// So many lines before this one were dropped, and that is over.
    PassAfter(u64),
    /// Nothing was dropped just before.
    DropFirst,
    Drop,
}

impl GuestLog {
    pub fn new(group: GroupId, clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::of(Some(group), clock)
    }

    /// For guests that are looked at outside of any group.
    pub fn of_no_group() -> Arc<Self> {
        Self::of(None, Arc::new(SystemClock { offset_ms: 0 }))
    }

    fn of(group: Option<GroupId>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (silent, dropped) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { group, clock, silent, dropped, rate: Mutex::default() })
    }

    /// Lines that were dropped for being too many.
    pub fn lines_dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Calls guests that are not heard if `silent`.
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
        // A level is part of an event's place in the code.
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
                tracing::warn!(group, dropped, "lines of the guest were dropped");
                true
            }
            Verdict::DropFirst | Verdict::Drop => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                if verdict == Verdict::DropFirst {
                    tracing::warn!(
                        group,
                        lines_per_second = LOG_LINES_PER_SECOND_MAX,
                        bytes_per_second = LOG_BYTES_PER_SECOND_MAX,
                        "the guest says too much: lines are dropped, and counted"
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

    /// Lines of so many bytes at so many milliseconds; a letter for each verdict.
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

    /// What is dropped second after second is told once, and summed up once.
    #[test]
    fn drops_in_a_row_are_told_once() {
        let all = LOG_BYTES_PER_SECOND_MAX;
        let seconds = (0..3).flat_map(|second| [(second * 1000, all), (second * 1000 + 1, 1)]);
        check(seconds.chain([(3_000, 1), (4_000, 1)]), "pDpdpdp(3 dropped)p");
        check([(0, all), (1, 1), (9_000, all), (9_001, 1)], "pD(1 dropped)pD");
    }
}

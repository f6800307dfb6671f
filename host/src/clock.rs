//! The door `Clock`: wall time for stamps, and running time for durations. Ticks come from the
//! actor's own timer.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tells time.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970, for stamps. It may jump, forward and back.
    fn wall_ms(&self) -> u64;
    /// Time since some moment of this process, for all that is measured or waited for. It only goes
    /// forward, whatever wall time does.
    fn running(&self) -> Duration;
}

/// The machine's clock, shifted by a constant (0 except in tests of clock skew).
pub struct SystemClock {
    pub offset_ms: i64,
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        #[expect(clippy::disallowed_methods, reason = "this is the door for wall time")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (now.as_millis() as u64).saturating_add_signed(self.offset_ms)
    }

    fn running(&self) -> Duration {
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        BEGAN.elapsed()
    }
}

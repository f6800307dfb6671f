//! The door `Clock`: wall time for stamps, nothing else. Ticks come from the actor's own timer.

use std::time::{SystemTime, UNIX_EPOCH};

/// Tells wall time.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn wall_ms(&self) -> u64;
}

/// The machine's clock, shifted by a constant (0 but in tests of clock skew).
pub struct SystemClock {
    pub offset_ms: i64,
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        #[expect(clippy::disallowed_methods, reason = "this is the door for wall time")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (now.as_millis() as u64).saturating_add_signed(self.offset_ms)
    }
}

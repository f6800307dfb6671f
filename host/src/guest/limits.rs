//! How much memory a guest may have, and who said no.
//!
//! - The limit is of all linear memories together, for a component may hold several.
//! - A refusal by the limit is deterministic: `memory.grow` answers -1, and a flag stays so that
//!   the abort which usually follows is told from any other trap.
//! - A refusal by the machine is not: the guest is stopped at once and never sees it.

use wasmtime::ResourceLimiter;

use super::engine::{INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX};

/// Counts one guest's memories and tables.
#[derive(Debug)]
pub(crate) struct Limiter {
    /// Linear memory in use, bytes.
    memory_bytes: u64,
    /// Most of it there may be, from the group's profile.
    memory_bytes_max: u64,
    table_elements: usize,
    /// The last growth the limit refused since [`Limiter::begin`].
    refused: Option<String>,
    /// What the machine said when it could not do what the limit allows.
    machine_refused: Option<String>,
}

impl Limiter {
    pub(crate) fn new(memory_bytes_max: u64) -> Self {
        Self {
            memory_bytes: 0,
            memory_bytes_max,
            table_elements: 0,
            refused: None,
            machine_refused: None,
        }
    }

    /// So many bytes are in use, whatever was counted, and so many may be.
    pub(crate) fn stands_at(&mut self, memory_bytes: u64, memory_bytes_max: u64) {
        (self.memory_bytes, self.memory_bytes_max) = (memory_bytes, memory_bytes_max);
    }

    /// Forgets the refusals of earlier calls.
    pub(crate) fn begin(&mut self) {
        self.refused = None;
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// What the limit refused in this call, if it did.
    pub(crate) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// What the machine refused, ever.
    pub(crate) fn machine_refused(&self) -> Option<&str> {
        self.machine_refused.as_deref()
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let growth = desired.saturating_sub(current) as u64;
        let total = self.memory_bytes.saturating_add(growth);
        // A memory's own maximum is checked here as well, so that whatever fails after this is the
        // machine's doing.
        let over_own = maximum.is_some_and(|maximum| desired > maximum);
        if over_own || total > self.memory_bytes_max {
            let limit =
                if over_own { maximum.map_or(0, |m| m as u64) } else { self.memory_bytes_max };
            self.refused = Some(format!(
                "it asked for {growth} more bytes of memory, has {} and may have {limit}",
                self.memory_bytes
            ));
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.machine_refused =
            Some(format!("the machine refused memory that the guest may have: {error:#}"));
        Err(error)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // A table's own maximum is left to the engine: a refusal by it allocates nothing, so that
        // counting it costs the guest only room under a limit it broke.
        let total = self.table_elements.saturating_add(desired.saturating_sub(current));
        if total > TABLE_ELEMENTS_MAX {
            self.refused = Some(format!(
                "it asked for tables of {total} elements and may have {TABLE_ELEMENTS_MAX}"
            ));
            return Ok(false);
        }
        self.table_elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 64 << 10;

    /// Two memories share one limit; what was refused does not count as used.
    #[test]
    fn memories_are_summed() {
        let mut limiter = Limiter::new(4 * PAGE as u64);
        let mut grow = |current, desired, maximum| {
            limiter.begin();
            let allowed = limiter.memory_growing(current * PAGE, desired * PAGE, maximum);
            (allowed.expect("the limiter never traps"), limiter.refused().is_some())
        };
        assert_eq!(grow(0, 2, None), (true, false), "the first memory");
        assert_eq!(grow(0, 1, None), (true, false), "the second one");
        assert_eq!(grow(2, 4, None), (false, true), "five pages, where four are the limit");
        assert_eq!(grow(1, 2, Some(PAGE)), (false, true), "over the memory's own maximum");
        assert_eq!(grow(2, 3, None), (true, false), "the last page");
        assert_eq!(limiter.memory_bytes(), 4 * PAGE as u64);
    }

    #[test]
    fn what_the_machine_refuses_stops_the_guest() {
        let mut limiter = Limiter::new(PAGE as u64);
        limiter.memory_grow_failed(wasmtime::Error::msg("no space")).expect_err("it must trap");
        limiter.begin();
        assert!(limiter.machine_refused().is_some_and(|why| why.contains("no space")));
    }
}

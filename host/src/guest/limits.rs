//! How much memory a guest may have, and who said no.
//!
//! - The limit is of all linear memories together, for a component may hold several.
//! - No guest sees a refusal. What is in use when a limit is met is not the same on every replica:
//!   one that restored a snapshot has another heap than one that replayed, and so would another
//!   `memory.grow` of the two have answered -1. Such an answer in an outcome would part the
//!   replicas in silence. So growth beyond a limit ends the call, be it the group's limit, that of
//!   all tables, or the maximum that a memory or a table declares itself.
//! - A refusal by the machine ends it as well, and is told from those.

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

    /// Ends the call.
    fn refuse<R>(&mut self, why: String) -> wasmtime::Result<R> {
        let error = wasmtime::Error::msg(why.clone());
        self.refused = Some(why);
        Err(error)
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
        let has = self.memory_bytes;
        if let Some(maximum) = maximum.filter(|maximum| desired > *maximum) {
            return self.refuse(format!(
                "it asked for {growth} more bytes of a memory that has {current} and declares \
                 itself that it may have {maximum}"
            ));
        }
        if total > self.memory_bytes_max {
            let most = self.memory_bytes_max;
            return self.refuse(format!(
                "it asked for {growth} more bytes of memory, has {has} and may have {most}"
            ));
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
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.table_elements.saturating_add(desired.saturating_sub(current));
        if let Some(maximum) = maximum.filter(|maximum| desired > *maximum) {
            return self.refuse(format!(
                "it asked for a table of {desired} elements, which declares itself that it may \
                 have {maximum}"
            ));
        }
        if total > TABLE_ELEMENTS_MAX {
            return self.refuse(format!(
                "it asked for tables of {total} elements and may have {TABLE_ELEMENTS_MAX}"
            ));
        }
        self.table_elements = total;
        Ok(true)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // Its size would not be a number; where the machine has no room the engine traps by itself.
        self.refuse(format!("it asked for a table that cannot be: {error:#}"))
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

    /// Two memories share one limit; what was refused does not count as used, and ends the call.
    #[test]
    fn memories_are_summed() {
        let mut limiter = Limiter::new(4 * PAGE as u64);
        let mut grow = |current, desired, maximum| {
            limiter.begin();
            let allowed = limiter.memory_growing(current * PAGE, desired * PAGE, maximum);
            assert_eq!(allowed.is_err(), limiter.refused().is_some(), "no guest sees a refusal");
            allowed.unwrap_or(false)
        };
        assert!(grow(0, 2, None), "the first memory");
        assert!(grow(0, 1, None), "the second one");
        assert!(!grow(2, 4, None), "five pages, where four are the limit");
        assert!(!grow(1, 2, Some(PAGE)), "over the memory's own maximum");
        assert!(grow(2, 3, None), "the last page");
        assert_eq!(limiter.memory_bytes(), 4 * PAGE as u64);
    }

    #[test]
    fn tables_are_summed() {
        let mut limiter = Limiter::new(0);
        let mut grow = |current, desired, maximum| {
            limiter.begin();
            let allowed = limiter.table_growing(current, desired, maximum);
            assert_eq!(allowed.is_err(), limiter.refused().is_some(), "no guest sees a refusal");
            allowed.unwrap_or(false)
        };
        assert!(grow(0, TABLE_ELEMENTS_MAX - 1, None), "the first table");
        assert!(!grow(0, 2, None), "more than both may have");
        assert!(!grow(0, 1, Some(0)), "over the table's own maximum");
        assert!(grow(0, 1, Some(1)), "the last element");
    }

    #[test]
    fn what_the_machine_refuses_stops_the_guest() {
        let mut limiter = Limiter::new(PAGE as u64);
        limiter.memory_grow_failed(wasmtime::Error::msg("no space")).expect_err("it must trap");
        limiter.begin();
        assert!(limiter.machine_refused().is_some_and(|why| why.contains("no space")));
    }
}

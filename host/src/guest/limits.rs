//! How much memory a guest may have, and whether the limit or the machine refused more.
//!
//! - The limit is on all linear memories of a component together.
//! - No guest sees a refusal. Replicas do not use the same memory at the same point of the log: a
//!   replica that restored a snapshot has another heap than one that replayed. So `memory.grow`
//!   would answer -1 at different points, and a guest that put that into an outcome would make
//!   replicas diverge in silence. Growth beyond a limit therefore ends the call, whether the limit
//!   is the group's, that of all tables, or the maximum that a memory or a table declares.
//! - If the machine itself lacks the memory, that also ends the call, but it is reported as a
//!   failure of the host.

use wasmtime::ResourceLimiter;

use super::engine::{INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX};

/// Counts one guest's memories and tables.
#[derive(Debug)]
pub(crate) struct Limiter {
    /// Linear memory in use, bytes.
    memory_bytes: u64,
    /// The most linear memory that may be in use, from the group's profile.
    memory_bytes_max: u64,
    table_elements: usize,
    /// The last growth that a limit refused since [`Limiter::begin`].
    refused: Option<String>,
    /// Why the machine could not provide memory that the limit allows.
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

    /// Sets how many bytes count as in use, and how many may be in use.
    pub(crate) fn stands_at(&mut self, memory_bytes: u64, memory_bytes_max: u64) {
        (self.memory_bytes, self.memory_bytes_max) = (memory_bytes, memory_bytes_max);
    }

    /// Sets how many bytes may be in use.
    pub(crate) fn limit(&mut self, memory_bytes_max: u64) {
        self.memory_bytes_max = memory_bytes_max;
    }

    /// Forgets the refusals of earlier calls.
    pub(crate) fn begin(&mut self) {
        self.refused = None;
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Refuses a growth, which ends the call.
    fn refuse<R>(&mut self, why: String) -> wasmtime::Result<R> {
        let error = wasmtime::Error::msg(why.clone());
        self.refused = Some(why);
        Err(error)
    }

    /// What a limit refused in this call, if anything.
    pub(crate) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// What the machine has refused, in this call or before.
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
                "the guest asked for {growth} more bytes of a memory that has {current} and \
                 declares a maximum of {maximum}"
            ));
        }
        if total > self.memory_bytes_max {
            let most = self.memory_bytes_max;
            return self.refuse(format!(
                "the guest asked for {growth} more bytes of memory, has {has} and may have {most}"
            ));
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.machine_refused =
            Some(format!("this machine lacks memory that the guest may have: {error:#}"));
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
                "the guest asked for {desired} elements of a table that declares a maximum of \
                 {maximum}"
            ));
        }
        if total > TABLE_ELEMENTS_MAX {
            return self.refuse(format!(
                "the guest asked for tables of {total} elements and may have {TABLE_ELEMENTS_MAX}"
            ));
        }
        self.table_elements = total;
        Ok(true)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // The size overflowed: if the machine lacks memory for a table, the engine itself traps.
        self.refuse(format!("the guest asked for an impossible table: {error:#}"))
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

    /// Two memories share one limit. A refused growth ends the call and does not count as used.
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

//! What was seen of a state machine while it was tried: how much was done, and what it cost.

use super::player::Trace;
use super::recording::{Kind, Recording};
use lockstep_core::apply::Setting;

/// Totals and maxima over cases.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    pub entries: u64,
    pub commands: u64,
    pub rejected: u64,
    pub queries: u64,
    /// Comparisons of an instance that restored a snapshot.
    pub restores: u64,
    pub fuel: u64,
    /// The most fuel that a command took; entries of several commands count with their mean.
    pub fuel_command_max: u64,
    pub memory_bytes_max: u64,
    pub snapshot_bytes_max: u64,
    pub events: u64,
    pub timers_set: u64,
    pub timers_fired: u64,
    /// The most that the fuel of an entry differed after a restore.
    pub fuel_drift_max: u64,
}

impl Seen {
    /// What the first instance of a case showed.
    pub fn of(recording: &Recording) -> Self {
        let mut seen = Self::default();
        for item in &recording.items {
            match &item.kind {
                Kind::Entry { trace, .. } => seen.entry(trace),
                Kind::Query(_) => seen.queries += 1,
                Kind::Snapshot | Kind::Kill => {}
            }
        }
        seen.memory_bytes_max = recording.memory_bytes;
        seen.snapshot_bytes_max = recording.snapshot.len() as u64;
        seen
    }

    fn entry(&mut self, trace: &Trace) {
        use crate::guest::Outcome;
        let commands = trace.outcomes.len() as u64;
        self.entries += 1;
        self.commands += commands;
        let rejected = |outcome: &&Outcome| matches!(outcome, Outcome::Rejected(_));
        self.rejected += trace.outcomes.iter().filter(rejected).count() as u64;
        self.events += trace.events.len() as u64;
        self.timers_set += u64::from(matches!(trace.set, Some(Setting::At(_))));
        self.timers_fired += u64::from(trace.woken);
        if let Some(mean) = trace.fuel.checked_div(commands) {
            self.fuel += trace.fuel;
            self.fuel_command_max = self.fuel_command_max.max(mean);
        }
    }

    pub fn fuel_command_mean(&self) -> u64 {
        self.fuel.checked_div(self.commands).unwrap_or(0)
    }

    pub fn add(&mut self, other: &Self) {
        self.entries += other.entries;
        self.commands += other.commands;
        self.rejected += other.rejected;
        self.queries += other.queries;
        self.restores += other.restores;
        self.fuel += other.fuel;
        self.events += other.events;
        self.timers_set += other.timers_set;
        self.timers_fired += other.timers_fired;
        self.fuel_command_max = self.fuel_command_max.max(other.fuel_command_max);
        self.memory_bytes_max = self.memory_bytes_max.max(other.memory_bytes_max);
        self.snapshot_bytes_max = self.snapshot_bytes_max.max(other.snapshot_bytes_max);
        self.fuel_drift_max = self.fuel_drift_max.max(other.fuel_drift_max);
    }
}

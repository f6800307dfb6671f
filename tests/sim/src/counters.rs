//! What took place in a run: a fault that never happened has tested nothing.

use std::collections::BTreeMap;
use std::fmt;

/// How often each kind of thing took place.
#[derive(Clone, Default, Debug)]
pub struct Counters(BTreeMap<&'static str, u64>);

/// What must take place at least once in a run of many seeds.
pub const WANTED: &[&str] = &[
    "acknowledged",
    "bit rot in a log",
    "bit rot in a snapshot",
    "bit rot before a torn write",
    "bit rot in the last segment",
    "captures given up for a disk that hangs",
    "captures that found no place",
    "clock drifts",
    "clock jumps",
    "clock jumps by a year",
    "commands that free memory",
    "commands refused for good",
    "crashes",
    "crashes at an operation",
    "deletions that wait",
    "disk stalled state",
    "disk full state",
    "disks of logs fill up",
    "disks of snapshots fill up",
    "disks with many groups",
    "disks that hang to the end",
    "duplicated frames",
    "failed operations",
    "failed reads",
    "failed syncs",
    "fallback starts",
    "frames cut off",
    "frames dropped",
    "groups of one",
    "groups of two",
    "groups with a cap",
    "guest traps",
    "halted replicas",
    "hanging disks",
    "hanging disks of snapshots",
    "installs",
    "io errors",
    "kills",
    "links cut",
    "local snapshots",
    "local reads",
    "logs at their bound",
    "logs near the next snapshot's space",
    "majorities lost",
    "members added",
    "memory high state",
    "old copies found out",
    "old copies put back",
    "one-way cuts",
    "operations without descriptors",
    "operations without space",
    "operations without space, reported late",
    "suspended transfers",
    "pauses",
    "processes without descriptors",
    "queries that took the guest with them",
    "queries that took too much",
    "reads told to fail",
    "rebuilding state",
    "rejoins",
    "rejoins with a bad log",
    "reordered frames",
    "repairs",
    "replicas halted alone",
    "replicas that diverged",
    "replicas to be repaired",
    "replicas halted for want of descriptors",
    "resumed transfers",
    "restores that waited for a place",
    "retried commands acknowledged",
    "damaged segments",
    "rot found by scrubbing",
    "scrubs",
    "sectors of a log that cannot be read",
    "sectors of a snapshot that cannot be read",
    "segments rolled",
    "sessions closed",
    "slow guests",
    "snapshots between checkpoints",
    "stalled disks",
    "stalled stores",
    "stalled transfers",
    "torn writes",
    "transfers",
    "transfers cut",
    "transfers of paused nodes",
    "wipes",
    "events gone before they were watched",
    "events watched",
    "guests woken",
];

impl Counters {
    pub fn add(&mut self, what: &'static str) {
        self.add_many(what, 1);
    }

    pub fn add_many(&mut self, what: &'static str, count: u64) {
        if count > 0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    pub fn merge(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            self.add_many(what, *count);
        }
    }

    /// What should have taken place and did not.
    pub fn missing(&self) -> Vec<&'static str> {
        WANTED.iter().copied().filter(|what| self.get(what) == 0).collect()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.0 {
            writeln!(f, "  {count:>12}  {what}")?;
        }
        Ok(())
    }
}

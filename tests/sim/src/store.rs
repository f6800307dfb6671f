//! A store lane with a queue of its own: jobs that nobody waits for are done later, in their order.
//!
//! - A list and what it deletes wait in line while everything else goes on, a crash included.
//! - Whoever waits for an answer has all that is before it done first.
//! - A checker looks at the store as it is, and moves nothing.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockstep_core::snapshot::SnapshotDesc;
use lockstep_host::store::{SnapshotStore, StoreHandle, StoreJob};

pub struct StoreQueue {
    store: Mutex<SnapshotStore>,
    waiting: Mutex<VecDeque<List>>,
}

/// What a store is to hold from now on, and the job that sees to that.
struct List {
    snapshots: Vec<SnapshotDesc>,
    /// Where the log began by then.
    first_index: u64,
    job: StoreJob,
}

impl StoreQueue {
    pub fn new(store: SnapshotStore) -> Self {
        Self { store: Mutex::new(store), waiting: Mutex::default() }
    }

    /// Puts a list in line.
    pub fn list_later(&self, snapshots: Vec<SnapshotDesc>, first_index: u64, job: StoreJob) {
        lock(&self.waiting).push_back(List { snapshots, first_index, job });
    }

    /// What the next list in line has, and where the log began by then.
    pub fn next_list(&self) -> Option<(Vec<SnapshotDesc>, u64)> {
        lock(&self.waiting).front().map(|list| (list.snapshots.clone(), list.first_index))
    }

    /// Whether nothing is in line.
    pub fn is_idle(&self) -> bool {
        lock(&self.waiting).is_empty()
    }

    /// Does the next job; whether there was one.
    pub fn step(&self) -> bool {
        let next = lock(&self.waiting).pop_front();
        next.map(|list| (list.job)(&mut lock(&self.store))).is_some()
    }

    /// Looks at the store, whatever is in line.
    pub fn peek<R>(&self, look: impl FnOnce(&mut SnapshotStore) -> R) -> R {
        look(&mut lock(&self.store))
    }
}

impl StoreHandle for StoreQueue {
    fn run(&self, job: StoreJob) {
        while self.step() {}
        job(&mut lock(&self.store));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

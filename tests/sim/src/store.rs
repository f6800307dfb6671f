//! A store lane with a queue: lists of snapshots, whose results nobody waits for, are carried out
//! later, in their order.
//!
//! - While a list and its deletions wait, everything else goes on, and the process may even crash.
//! - A job whose caller waits for the result runs after all lists before it.
//! - A checker sees the store as it is, and changes nothing.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockstep_core::snapshot::SnapshotDesc;
use lockstep_host::store::{SnapshotStore, StoreHandle, StoreJob};

pub struct StoreQueue {
    store: Mutex<SnapshotStore>,
    waiting: Mutex<VecDeque<List>>,
}

/// The snapshots that a store is to hold from now on, and the job that deletes the others.
struct List {
    snapshots: Vec<SnapshotDesc>,
    /// The log's first index when the list became durable.
    first_index: u64,
    job: StoreJob,
}

impl StoreQueue {
    pub fn new(store: SnapshotStore) -> Self {
        Self { store: Mutex::new(store), waiting: Mutex::default() }
    }

    /// Queues a list.
    pub fn list_later(&self, snapshots: Vec<SnapshotDesc>, first_index: u64, job: StoreJob) {
        lock(&self.waiting).push_back(List { snapshots, first_index, job });
    }

    /// The snapshots of the next list, and the log's first index when it became durable.
    pub fn next_list(&self) -> Option<(Vec<SnapshotDesc>, u64)> {
        lock(&self.waiting).front().map(|list| (list.snapshots.clone(), list.first_index))
    }

    /// Whether no list waits.
    pub fn is_idle(&self) -> bool {
        lock(&self.waiting).is_empty()
    }

    /// Carries out the next list. False if none waits.
    pub fn step(&self) -> bool {
        let next = lock(&self.waiting).pop_front();
        next.map(|list| (list.job)(&mut lock(&self.store))).is_some()
    }

    /// Looks at the store as it is, without the lists that wait.
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

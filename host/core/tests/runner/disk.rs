//! A node's disk in memory: one log, whose batches wait for a sync, and snapshot objects.
//!
//! The log keeps to the rules of `lockstep_core::wal`: a `Tail` judges every job.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lockstep_core::group::Recovered;
use lockstep_core::ids::Digest;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::{Hold, SnapshotDesc};
use lockstep_core::wal::LogJob;
use lockstep_core::wal::record::Span;
use lockstep_core::wal::replay::Tail;
use raft::eraftpb::Entry;

/// What is durable of the group.
#[derive(Clone)]
pub(crate) struct Image {
    tail: Tail,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) durable: Option<Image>,
    pending: VecDeque<(u64, LogJob)>,
    pub(crate) stuck: bool,
    /// Reads that wait while reads are held: from, to, bytes.
    pub(crate) reads: Option<Vec<(u64, u64, u64)>>,
}

impl Image {
    fn apply(&mut self, job: LogJob) {
        let reset = self.tail.judge_state(&job.state).expect("a legal next state");
        self.entries = self.entries.split_off(&job.state.first_index);
        if reset {
            self.entries.clear();
        }
        self.tail.apply_state(job.state, reset);
        self.tail.judge_entries(&job.entries).expect("legal next entries");
        if let Some(head) = job.entries.first() {
            let mut terms: Vec<(u64, u64)> = Vec::new();
            for entry in &job.entries {
                if terms.last().is_none_or(|run| run.1 != entry.term) {
                    terms.push((entry.index, entry.term));
                }
            }
            let count = job.entries.len() as u32;
            self.tail.apply_entries(&Span { first: head.index, count, terms });
            self.entries.split_off(&head.index);
            self.entries.extend(job.entries.into_iter().map(|entry| (entry.index, entry)));
        }
        self.tail.judge_commit().expect("the log reaches the commit index");
    }

    pub(crate) fn state(&self) -> &RecoveryState {
        &self.tail.state
    }

    /// Makes an old image look like the disk of the current process, by its boot count.
    pub(crate) fn set_boot(&mut self, boot: u64) {
        self.tail.state.boot = boot;
    }

    pub(crate) fn last(&self) -> u64 {
        self.tail.last_index
    }

    /// The term at `index`, if the log, or the state before its first entry, has it.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        self.tail.term(index)
    }

    /// Entries of `[from, to)`, at most `bytes` of them; `None` if entry `from` was cut off.
    pub(crate) fn read(&self, from: u64, to: u64, bytes: u64) -> Option<Vec<Entry>> {
        let mut left = bytes;
        let mut out = Vec::new();
        self.entries.get(&from)?;
        for (_, entry) in self.entries.range(from..to) {
            let size = entry.data.len() as u64;
            if size > left && !out.is_empty() {
                break;
            }
            left = left.saturating_sub(size);
            out.push(entry.clone());
        }
        Some(out)
    }

    /// What a start finds. The state is encoded and decoded on the way.
    pub(crate) fn recovered(&self) -> Recovered {
        let mut bytes = Vec::new();
        self.tail.state.encode(&mut bytes);
        let state = RecoveryState::decode(bytes.into()).expect("a durable state can be read");
        let window = self.entries.range(state.floor..).map(|(_, entry)| entry.clone()).collect();
        Recovered { state, terms: self.tail.terms(), window, sizes: Vec::new() }
    }
}

impl Disk {
    pub(crate) fn queue(&mut self, seq: u64, job: LogJob) {
        job.state.validate().expect("only a valid state is written");
        self.pending.push_back((seq, job));
    }

    /// Makes up to `batches` durable; gives the sequence number of the last one.
    pub(crate) fn sync(&mut self, batches: usize) -> Option<u64> {
        let count = batches.min(self.pending.len());
        let mut last = None;
        for (seq, job) in self.pending.drain(..count) {
            last = Some(seq);
            self.durable
                .get_or_insert_with(|| Image {
                    tail: Tail::new(job.state.clone()),
                    entries: BTreeMap::new(),
                })
                .apply(job);
        }
        last
    }

    /// Drops the waiting jobs that carry entries; jobs that only change the state stay.
    pub(crate) fn refuse(&mut self) {
        let before = self.pending.len();
        self.pending.retain(|(_, job)| job.entries.is_empty());
        assert!(self.pending.len() < before, "no job with entries waits");
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.stuck || self.pending.is_empty()
    }

    pub(crate) fn crash(&mut self) {
        self.pending.clear();
        self.stuck = false;
        self.reads = None;
    }
}

/// A node's snapshot objects.
#[derive(Default, Debug)]
pub(crate) struct Store {
    objects: BTreeMap<Digest, Object>,
    /// No object can be read for now.
    pub(crate) short: bool,
    /// Nothing that is to be read in full is, for now.
    pub(crate) slow: bool,
}

#[derive(Debug)]
struct Object {
    index: u64,
    bytes: Bytes,
    holds: usize,
    listed: bool,
}

pub(crate) type SharedStore = Arc<Mutex<Store>>;

/// A hold of the core on an object; dropping the last one while armed deletes the object.
#[derive(Debug)]
struct StoreHold {
    store: SharedStore,
    digest: Digest,
    armed: bool,
}

impl Hold for StoreHold {
    fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for StoreHold {
    fn drop(&mut self) {
        let mut store = self.store.lock().expect("no panic holds the lock");
        let Some(object) = store.objects.get_mut(&self.digest) else { return };
        object.holds -= 1;
        if self.armed && object.holds == 0 && !object.listed {
            store.objects.remove(&self.digest);
        }
    }
}

/// Puts an object into the store, owned by the hold that is returned.
pub(crate) fn put(store: &SharedStore, desc: &SnapshotDesc, bytes: Bytes) -> Box<dyn Hold> {
    let mut inner = store.lock().expect("no panic holds the lock");
    let object = inner.objects.entry(desc.digest).or_insert(Object {
        index: desc.index,
        bytes: bytes.clone(),
        holds: 0,
        listed: false,
    });
    object.holds += 1;
    if blake3::hash(&object.bytes).as_bytes() != &desc.digest.0 {
        object.bytes = bytes;
    }
    Box::new(StoreHold { store: Arc::clone(store), digest: desc.digest, armed: true })
}

impl Store {
    pub(crate) fn get(&self, desc: &SnapshotDesc) -> Option<Bytes> {
        self.objects.get(&desc.digest).map(|object| object.bytes.clone())
    }

    /// The log lists these snapshots: the others are deleted, unless they are promised or held.
    pub(crate) fn list(&mut self, snapshots: &[SnapshotDesc], promised: &[SnapshotDesc]) {
        let among = |list: &[SnapshotDesc], digest| list.iter().any(|desc| desc.digest == digest);
        self.objects.retain(|digest, object| {
            object.listed = among(snapshots, *digest);
            object.listed || object.holds > 0 || among(promised, *digest)
        });
    }

    /// Damages the object of this index: its bytes no longer match its digest.
    pub(crate) fn corrupt(&mut self, index: u64) {
        let object = self.objects.values_mut().find(|object| object.index == index);
        object.expect("there is such an object").bytes = Bytes::from_static(b"corrupt");
    }

    pub(crate) fn is_good(&self, desc: &SnapshotDesc) -> bool {
        self.get(desc).is_some_and(|bytes| *blake3::hash(&bytes).as_bytes() == desc.digest.0)
    }

    pub(crate) fn indexes(&self) -> Vec<u64> {
        let mut indexes: Vec<u64> = self.objects.values().map(|object| object.index).collect();
        indexes.sort_unstable();
        indexes
    }
}

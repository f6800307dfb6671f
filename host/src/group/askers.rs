//! [`Asker`], the caller of a query, and [`Places`], which bound what each caller may have waiting:
//! queries of a group, or calls that a node forwards to another.
//!
//! - A caller may hold as many places, and as many bytes, as are free, so that none takes them all:
//!   the first caller gets at most half of them, the second half of the rest, and so on.
//! - A place is given back when its call is answered or refused, or its caller is found to have
//!   left.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_core::fault::Refusal;
use lockstep_core::mutant::planted;
use tokio::sync::oneshot;

use crate::group::mailbox::QueryAnswer;

/// Queries of one group that may wait for their read index or the guest, and their bytes.
pub(crate) const QUERIES_MAX: usize = 8_192;
pub(crate) const BYTES_MAX: usize = 64 << 20;

/// The caller of a query: a connection, here or at the node that forwards its call. The default
/// stands for no caller in particular.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Asker(pub u64);

impl Asker {
    /// The caller at the other end of a connection.
    pub fn at(address: SocketAddr) -> Self {
        let mut hasher = DefaultHasher::new();
        address.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// The caller for whom the node at the other end of this connection forwards a call.
    pub(crate) fn on_behalf_of(self, caller: Self) -> Self {
        let mut hasher = DefaultHasher::new();
        (self.0, caller.0).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A waiting query: its caller, its place, and where its answer goes.
pub(crate) struct Asked {
    pub asker: Asker,
    pub answer: oneshot::Sender<Result<QueryAnswer, Refusal>>,
    /// Given back when this value is dropped.
    pub _place: Place,
}

impl Asked {
    /// Whether the caller still waits for the answer.
    pub(crate) fn waits(&self) -> bool {
        !self.answer.is_closed()
    }

    pub(crate) fn answer(self, answer: Result<QueryAnswer, Refusal>) {
        // If the receiver is gone, the caller gave up waiting.
        drop(self.answer.send(answer));
    }
}

/// The places for the queries of one group, or for the calls that are forwarded to one node.
#[derive(Clone)]
pub(crate) struct Places {
    most: Held,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    all: Held,
    by: BTreeMap<Asker, Held>,
}

/// The number of calls, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Held {
    calls: usize,
    bytes: usize,
}

/// A taken place.
pub(crate) struct Place {
    places: Places,
    asker: Asker,
    bytes: usize,
}

impl Default for Places {
    /// The places of a group's queries.
    fn default() -> Self {
        Self::new(QUERIES_MAX, BYTES_MAX)
    }
}

impl Places {
    pub(crate) fn new(calls: usize, bytes: usize) -> Self {
        Self { most: Held { calls, bytes }, taken: Arc::default() }
    }

    /// Takes a place for a call of `bytes` bytes, if this caller may have one more.
    pub(crate) fn take(&self, asker: Asker, bytes: usize) -> Option<Place> {
        let mut taken = self.lock();
        let free = Held {
            calls: self.most.calls - taken.all.calls,
            bytes: self.most.bytes - taken.all.bytes,
        };
        let own = taken.by.get(&asker).copied().unwrap_or_default();
        let greedy = own.calls >= free.calls || own.bytes + bytes > free.bytes;
        let greedy = greedy && !planted("places_for_the_first");
        if greedy || free.calls == 0 || bytes > free.bytes {
            return None;
        }
        taken.all.add(bytes);
        taken.by.entry(asker).or_default().add(bytes);
        Some(Place { places: self.clone(), asker, bytes })
    }

    /// Calls that wait, and their bytes.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> (usize, usize) {
        let Held { calls, bytes } = self.lock().all;
        (calls, bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn add(&mut self, bytes: usize) {
        self.calls += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.calls -= 1;
        self.bytes -= bytes;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all.remove(self.bytes);
        if let Some(own) = taken.by.get_mut(&self.asker) {
            own.remove(self.bytes);
            if own.calls == 0 {
                taken.by.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each caller can take half of what is free, which leaves something to the next.
    #[test]
    fn nobody_takes_all_places() {
        let places = Places::default();
        let mut held: Vec<Vec<Place>> = Vec::new();
        for asker in 0..6 {
            let all = std::iter::from_fn(|| places.take(Asker(asker), 1));
            held.push(all.collect());
        }
        let counts: Vec<usize> = held.iter().map(Vec::len).collect();
        assert_eq!(counts, [4096, 2048, 1024, 512, 256, 128]);
        held.remove(0);
        assert_eq!(places.taken(), (2048 + 1024 + 512 + 256 + 128, 2048 + 1024 + 512 + 256 + 128));
        assert!(places.take(Asker(5), 1).is_some(), "there is space again");
        assert!(places.take(Asker(7), BYTES_MAX).is_none(), "bytes have a bound as well");
    }

    /// Large calls are few, but take the bytes of others in the same way.
    #[test]
    fn nobody_takes_all_bytes() {
        let places = Places::new(100, 64);
        let hold =
            |asker| -> Vec<Place> { std::iter::from_fn(|| places.take(Asker(asker), 8)).collect() };
        let held = [hold(1), hold(2), hold(3)];
        assert_eq!(held.each_ref().map(Vec::len), [4, 2, 1]);
        assert!(places.take(Asker(1), 8).is_none(), "it holds more than is free");
        assert!(places.take(Asker(4), 8).is_some(), "who holds nothing gets what is left");
    }
}

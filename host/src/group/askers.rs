//! [`Asker`], the caller of a query, and [`Places`], which bound the queries that wait in a group.
//!
//! - A caller may hold as many places as are free, so that none takes them all: the first caller
//!   gets at most half of them, the second half of the rest, and so on.
//! - A place is given back when its query is answered or refused, or its caller is found to have
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

/// The caller of a query: a connection, or by default no caller in particular.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Asker(pub u64);

impl Asker {
    /// The caller at the other end of a connection.
    pub fn at(address: SocketAddr) -> Self {
        let mut hasher = DefaultHasher::new();
        address.hash(&mut hasher);
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

/// The places of one group.
#[derive(Clone, Default)]
pub(crate) struct Places(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    queries: usize,
    bytes: usize,
    by: BTreeMap<Asker, usize>,
}

/// A taken place.
pub(crate) struct Place {
    places: Places,
    asker: Asker,
    bytes: usize,
}

impl Places {
    /// Takes a place for a query of `bytes` bytes, if this caller may have one more.
    pub(crate) fn take(&self, asker: Asker, bytes: usize) -> Option<Place> {
        let mut taken = self.lock();
        let free = QUERIES_MAX - taken.queries;
        let own = taken.by.get(&asker).copied().unwrap_or(0);
        let greedy = own >= free && !planted("places_for_the_first");
        if greedy || free == 0 || taken.bytes + bytes > BYTES_MAX {
            return None;
        }
        taken.queries += 1;
        taken.bytes += bytes;
        *taken.by.entry(asker).or_default() += 1;
        Some(Place { places: self.clone(), asker, bytes })
    }

    /// Queries that wait, and their bytes.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> (usize, usize) {
        let taken = self.lock();
        (taken.queries, taken.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.queries -= 1;
        taken.bytes -= self.bytes;
        if let Some(own) = taken.by.get_mut(&self.asker) {
            *own -= 1;
            if *own == 0 {
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
        assert!(places.take(Asker(5), 1).is_some(), "there is room again");
        assert!(places.take(Asker(7), BYTES_MAX).is_none(), "bytes have a bound as well");
    }
}

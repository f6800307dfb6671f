//! How much of this process's memory the calls of clients and peers may hold, and the only place
//! that refuses more.
//!
//! - A [`Budget`] bounds all connections of one kind together, those of clients or those of peers.
//!   A [`Share`] is one connection's part, with a bound of its own.
//! - A full budget refuses bytes only to connections that hold much; a connection that holds little
//!   gets more, whatever the others hold.
//! - Bytes that are held for a call have a [`Charge`]; dropping it gives them back.
//! - [`Share::take`] may refuse: it is for bytes that have not arrived yet, such as those of a
//!   message. Bytes that are in memory already are charged unconditionally ([`Share::owe`]), and
//!   then the next `take` may be refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// While the shared budget is exceeded, each connection may still hold its own bound divided by
/// this number.
const OWN_PART: usize = 256;

/// What all connections of one kind may hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
    /// How often a connection was refused bytes.
    refused: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), refused: AtomicU64::new(0) })
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// The budgets of a port.
#[derive(Clone, Debug)]
pub(crate) struct Budgets {
    pub clients: Arc<Budget>,
    pub peers: Arc<Budget>,
}

/// One connection's part.
#[derive(Debug)]
pub(crate) struct Share {
    budgets: Budgets,
    limit: AtomicUsize,
    used: AtomicUsize,
    /// Set once a peer has identified itself on the connection.
    peer: AtomicBool,
}

impl Share {
    pub(crate) fn new(budgets: Budgets, limit: usize) -> Arc<Self> {
        let (limit, used, peer) = (limit.into(), AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { budgets, limit, used, peer })
    }

    /// Raises the connection's bound to `bytes`, because it carries the calls of many clients.
    /// Never lowers the bound.
    pub(crate) fn widen(&self, bytes: usize) {
        self.limit.fetch_max(bytes, Ordering::Relaxed);
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Charges the connection's further bytes to the peers' budget.
    pub(crate) fn belongs_to_a_peer(&self) {
        self.peer.store(true, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn budget(&self) -> &Arc<Budget> {
        if self.peer.load(Ordering::Relaxed) { &self.budgets.peers } else { &self.budgets.clients }
    }

    /// Charges `bytes`, unless this connection, or all connections of its kind together, would then
    /// hold too much.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let charge = self.owe(bytes);
        let fits = !self.is_over();
        if !fits {
            charge.budget.refused.fetch_add(1, Ordering::Relaxed);
        }
        fits.then_some(charge)
    }

    /// Whether this connection holds more than it may: more than its bound or, while the shared
    /// budget is exceeded, more than its guaranteed part of that bound.
    pub(crate) fn is_over(&self) -> bool {
        let (used, limit, budget) = (self.used(), self.limit(), self.budget());
        used > limit || (used > limit / OWN_PART && budget.used() > budget.limit)
    }

    /// Whether this connection holds more than half of its bound, and should wait where it can.
    pub(crate) fn is_near(&self) -> bool {
        2 * self.used() > self.limit()
    }

    /// Charges bytes that are few compared with what their call holds already: only this
    /// connection's own bound may refuse them.
    pub(crate) fn take_little(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let charge = self.owe(bytes);
        (self.used() <= self.limit()).then_some(charge)
    }

    /// Charges bytes that are in memory already; never refuses them.
    pub(crate) fn owe(self: &Arc<Self>, bytes: usize) -> Charge {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.charge(bytes, true)
    }

    /// Charges a flow-control window that is lent to the connection: to the budget only, for the
    /// connection does not hold these bytes yet.
    pub(crate) fn lend(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let charge = self.charge(bytes, false);
        (charge.budget.used() <= charge.budget.limit).then_some(charge)
    }

    fn charge(self: &Arc<Self>, bytes: usize, own: bool) -> Charge {
        let budget = Arc::clone(self.budget());
        budget.used.fetch_add(bytes, Ordering::Relaxed);
        Charge { share: Arc::clone(self), budget, bytes, own }
    }
}

/// Bytes that are charged until this value is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    share: Arc<Share>,
    budget: Arc<Budget>,
    bytes: usize,
    /// The bytes count against the connection as well, not only against the budget.
    own: bool,
}

impl Charge {
    /// Gives back a part of the bytes.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if self.own {
            self.share.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets(clients: usize, peers: usize) -> Budgets {
        Budgets { clients: Budget::new(clients), peers: Budget::new(peers) }
    }

    #[test]
    fn a_share_and_the_whole_say_no_and_what_is_given_back_is_there_again() {
        let budgets = budgets(100, 50);
        let (one, other) = (Share::new(budgets.clone(), 70), Share::new(budgets.clone(), 70));
        let first = one.take(60).expect("there is space");
        assert!(one.take(11).is_none(), "its own bound");
        assert!(other.take(41).is_none(), "everybody's bound");
        let second = other.take(40).expect("exactly the rest");
        assert_eq!((budgets.clients.used(), budgets.clients.refused()), (100, 2));
        drop(first);
        assert_eq!((one.used(), budgets.clients.used()), (0, 40));
        drop(second);
        assert_eq!(budgets.clients.used(), 0);
    }

    #[test]
    fn what_is_owed_is_paid_by_the_next_to_ask() {
        let budgets = budgets(100, 50);
        let share = Share::new(budgets.clone(), 100);
        let mut owed = share.owe(150);
        assert!(share.is_over() && share.take(1).is_none());
        owed.give_back(100);
        assert!(!share.is_over() && share.take(50).is_some());
    }

    #[test]
    fn who_holds_little_does_not_feel_who_holds_much() {
        let budgets = budgets(1_000, 50);
        let (hog, calm) = (Share::new(budgets.clone(), 2_560), Share::new(budgets.clone(), 2_560));
        let held = hog.take(1_000).expect("all there is");
        assert!(hog.take(1).is_none());
        let own = calm.take(10).expect("its own part");
        assert!(!calm.is_over() && calm.take(1).is_none());
        assert!(hog.is_over(), "it pays for both");
        assert!(calm.lend(1).is_none(), "windows are for when there is plenty");
        let little = calm.take_little(100).expect("it is no more than its call");
        drop((held, own, little));
        let lent = calm.lend(500).expect("now there is");
        assert_eq!((calm.used(), budgets.clients.used()), (0, 500));
        drop(lent);
        assert_eq!(budgets.clients.used(), 0);
    }

    #[test]
    fn a_peer_has_a_budget_of_its_own() {
        let budgets = budgets(10, 50);
        let share = Share::new(budgets.clone(), 100);
        let hello = share.take(10).expect("it begins like a client");
        share.belongs_to_a_peer();
        let batch = share.take(50).expect("the peers' space");
        assert_eq!((budgets.clients.used(), budgets.peers.used()), (10, 50));
        drop((hello, batch));
        assert_eq!((budgets.clients.used(), budgets.peers.used()), (0, 0));
    }
}

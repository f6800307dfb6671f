//! [`Links`]: the connections of a port, and which one is closed when another one needs its place.
//!
//! - Peers take no place: the configuration bounds their number. A connection is a peer's once it
//!   sent an acceptable Hello or offer; until then it counts as a client's.
//! - One address has at most three quarters of the places.
//! - If no place is free, a connection on which no caller waits for an answer is told to leave:
//!   among those of the address with the most connections, the one that was silent longest. If
//!   there is none, the newcomer is let in *on probation*: it may say Hello, but every client call
//!   on it is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::budget::Share;

/// Most connections on probation; one more makes the oldest leave.
const PROBATION_MAX: usize = 16;
/// A connection with open streams counts as silent once nothing was sent or received on it for this
/// long.
const SILENT: Duration = Duration::from_secs(30);
/// A connection that has sent nothing of a call for longer than this is the first to lose its
/// place.
const NEW: Duration = Duration::from_secs(5);

/// One connection, as its calls and the port see it.
pub(super) struct Link {
    pub id: u64,
    pub remote: IpAddr,
    pub share: Arc<Share>,
    began: Instant,
    on_probation: AtomicBool,
    peer: AtomicBool,
    /// A node forwards its clients' calls on this connection.
    forwards: AtomicBool,
    /// Unary calls that have no answer yet.
    waiting: AtomicUsize,
    /// Streams that are open.
    streams: AtomicUsize,
    /// Watches among them.
    pub watches: Arc<AtomicUsize>,
    /// Milliseconds from `began` to when something was last sent or received.
    active: AtomicU64,
    leaving: AtomicBool,
    /// Bytes of requests received, and the DATA frames that held them.
    received: AtomicU64,
    frames: AtomicU64,
    /// The value of `received` at which the connection's own task is woken.
    look_at: AtomicU64,
    /// Wakes the connection's own task.
    pub wake: Notify,
}

/// What was received on a connection.
#[derive(Clone, Copy, Default)]
pub(super) struct Traffic {
    /// Bytes of requests.
    pub bytes: u64,
    /// The DATA frames that held them.
    pub frames: u64,
}

/// What kind of call is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CallKind {
    /// A request and its answer.
    Unary,
    /// Messages for as long as the call lives.
    Stream,
}

impl Link {
    fn new(id: u64, remote: IpAddr, share: Arc<Share>, on_probation: bool, now: Instant) -> Self {
        Self {
            id,
            remote,
            share,
            began: now,
            on_probation: AtomicBool::new(on_probation),
            peer: AtomicBool::new(false),
            forwards: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            watches: Arc::default(),
            active: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            received: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            look_at: AtomicU64::new(u64::MAX),
            wake: Notify::new(),
        }
    }

    /// Notes that the connection is a peer's: its Hello or its offer was acceptable.
    pub(super) fn is_a_peers(&self) {
        self.share.belongs_to_a_peer();
        self.on_probation.store(false, Ordering::Relaxed);
        if !self.peer.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// Notes that a node forwards its clients' calls on this connection: together they may hold
    /// this many bytes.
    pub(super) fn forwards(&self, bytes: usize) {
        self.share.widen(bytes);
        self.on_probation.store(false, Ordering::Relaxed);
        self.forwards.store(true, Ordering::Relaxed);
    }

    /// Whether a node forwards calls on this connection.
    pub(super) fn is_forwarding(&self) -> bool {
        self.forwards.load(Ordering::Relaxed)
    }

    pub(super) fn is_peer(&self) -> bool {
        self.peer.load(Ordering::Relaxed)
    }

    pub(super) fn is_on_probation(&self) -> bool {
        self.on_probation.load(Ordering::Relaxed)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Tells the connection to close, because another one needs its place.
    fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Notes that something was sent or received just now.
    pub(super) fn touch(&self) {
        let at = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active.store(at, Ordering::Relaxed);
    }

    /// Counts a DATA frame with this many bytes of a request.
    pub(super) fn received(&self, bytes: usize) {
        let received = self.received.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.touch();
        if received >= self.look_at.load(Ordering::Relaxed) {
            self.look_at.store(u64::MAX, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    /// Wakes the connection's own task once `bytes` bytes of requests have arrived in total.
    pub(super) fn look_after(&self, bytes: u64) {
        self.look_at.store(bytes, Ordering::Relaxed);
    }

    /// What was received so far.
    pub(super) fn traffic(&self) -> Traffic {
        let bytes = self.received.load(Ordering::Relaxed);
        Traffic { bytes, frames: self.frames.load(Ordering::Relaxed) }
    }

    pub(super) fn begin(self: &Arc<Self>, kind: CallKind) -> OpenCall {
        self.count(kind).fetch_add(1, Ordering::Relaxed);
        self.touch();
        if kind == CallKind::Stream {
            self.wake.notify_one();
        }
        OpenCall { link: Arc::clone(self), kind }
    }

    fn count(&self, kind: CallKind) -> &AtomicUsize {
        match kind {
            CallKind::Unary => &self.waiting,
            CallKind::Stream => &self.streams,
        }
    }

    /// Streams that are open.
    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Whether any call is open.
    pub(super) fn has_calls(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) + self.streams.load(Ordering::Relaxed) > 0
    }

    /// For how long nothing was sent or received.
    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        let active = Duration::from_millis(self.active.load(Ordering::Relaxed));
        now.saturating_duration_since(self.began + active)
    }

    /// Orders connections for eviction, among addresses with equally many; the greatest is evicted
    /// first. A connection that has had time to call but has never sent anything of a call comes
    /// before all others; otherwise the longer silence decides. So a client that pauses between two
    /// calls keeps its connection ahead of a crowd that never calls.
    fn idleness(&self, now: Instant) -> (bool, Duration) {
        let silent = self.silent_for(now);
        (self.traffic().bytes == 0 && silent > NEW, silent)
    }

    /// Whether the connection may be closed in favour of another one.
    fn may_go(&self, now: Instant) -> bool {
        let silent = !self.has_calls() || self.silent_for(now) > SILENT;
        self.waiting.load(Ordering::Relaxed) == 0 && silent && !self.is_peer()
    }
}

/// A call under way; it counts as open until this is dropped.
pub(super) struct OpenCall {
    link: Arc<Link>,
    kind: CallKind,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.link.count(self.kind).fetch_sub(1, Ordering::Relaxed);
        self.link.touch();
        if self.kind == CallKind::Stream {
            self.link.wake.notify_one();
        }
    }
}

/// All connections of a port.
pub(super) struct Links {
    /// Places for clients.
    limit: usize,
    state: Mutex<State>,
    /// Connections closed to make way for others, and newcomers that found no place.
    pub evicted: AtomicU64,
    pub turned_away: AtomicU64,
}

#[derive(Default)]
struct State {
    next_id: u64,
    links: BTreeMap<u64, Arc<Link>>,
}

impl Links {
    pub(super) fn new(limit: usize) -> Self {
        let (evicted, turned_away) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { limit, state: Mutex::default(), evicted, turned_away }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Lets a connection in: in a free place, in place of another one that has to leave, or on
    /// probation.
    pub(super) fn admit(&self, remote: IpAddr, share: Arc<Share>, now: Instant) -> Arc<Link> {
        let mut state = self.lock();
        let here = || state.links.values().filter(|link| !link.is_peer() && !link.is_leaving());
        let mut held: BTreeMap<IpAddr, usize> = BTreeMap::new();
        here().for_each(|link| *held.entry(link.remote).or_default() += 1);
        let own = held.get(&remote).copied().unwrap_or(0);
        let own_full = own >= (self.limit - self.limit / 4).max(1);
        let full = here().filter(|link| !link.is_on_probation()).count() >= self.limit;
        let mut on_probation = false;
        if full || own_full {
            let candidates = here().filter(|link| link.may_go(now) && !link.is_on_probation());
            let candidates = candidates.filter(|link| !own_full || link.remote == remote);
            let most = |link: &Arc<Link>| (held[&link.remote], link.idleness(now));
            match candidates.max_by_key(|link| most(link)).cloned() {
                Some(victim) => {
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                    victim.leave();
                }
                None => {
                    self.turned_away.fetch_add(1, Ordering::Relaxed);
                    on_probation = true;
                    let waiting: Vec<_> = here().filter(|link| link.is_on_probation()).collect();
                    if waiting.len() >= PROBATION_MAX {
                        // The map is in the order of arrival: this one is the oldest.
                        waiting[0].leave();
                    }
                }
            }
        }
        state.next_id += 1;
        let link = Arc::new(Link::new(state.next_id, remote, share, on_probation, now));
        state.links.insert(link.id, Arc::clone(&link));
        link
    }

    /// Forgets a connection that is closed.
    pub(super) fn gone(&self, link: &Link) {
        self.lock().links.remove(&link.id);
    }

    /// Makes the longest silent connection leave, if one may: the process has no descriptor left.
    pub(super) fn make_way(&self, now: Instant) {
        let state = self.lock();
        let idle = state.links.values().filter(|link| link.may_go(now) && !link.is_leaving());
        if let Some(victim) = idle.max_by_key(|link| link.idleness(now)) {
            self.evicted.fetch_add(1, Ordering::Relaxed);
            victim.leave();
        }
    }

    /// Whether a peer has a connection from this address.
    pub(super) fn has_peer_at(&self, remote: IpAddr) -> bool {
        self.lock().links.values().any(|link| link.remote == remote && link.is_peer())
    }

    /// The number of connections of clients, and of peers.
    pub(super) fn count(&self) -> (usize, usize) {
        let state = self.lock();
        let peers = state.links.values().filter(|link| link.is_peer()).count();
        (state.links.len() - peers, peers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Budgets};

    struct Port {
        links: Links,
        budgets: Budgets,
        now: Instant,
        all: Vec<Arc<Link>>,
    }

    impl Port {
        fn new(limit: usize) -> Self {
            let budgets = Budgets { clients: Budget::new(1), peers: Budget::new(1) };
            Self { links: Links::new(limit), budgets, now: Instant::now(), all: Vec::new() }
        }

        /// Connects from 10.0.0.`host`, a second after the connection before.
        fn connect(&mut self, host: u8) -> Arc<Link> {
            self.now += Duration::from_secs(1);
            let share = Share::new(self.budgets.clone(), 1);
            let link = self.links.admit([10, 0, 0, host].into(), share, self.now);
            self.all.push(Arc::clone(&link));
            link
        }

        /// The ids, in order, of the connections that were told to leave.
        fn leaving(&self) -> Vec<u64> {
            self.all.iter().filter(|link| link.is_leaving()).map(|link| link.id).collect()
        }
    }

    #[test]
    fn the_longest_silent_of_the_greediest_address_goes_first() {
        let mut port = Port::new(4);
        for host in [1, 2, 2, 3] {
            port.connect(host);
        }
        assert_eq!(port.leaving(), [0; 0]);
        assert!(!port.connect(4).is_on_probation());
        assert_eq!(port.leaving(), [2], "the older one of the address that has two");
        port.connect(5);
        assert_eq!(port.leaving(), [1, 2], "each address has one: the oldest");
    }

    /// A client between two calls keeps its place before a crowd that never calls, and newcomers do
    /// not take each other's.
    #[test]
    fn who_never_called_goes_before_who_pauses() {
        let mut port = Port::new(3);
        for _ in 0..2 {
            port.connect(1).received(1);
        }
        port.connect(1);
        port.now += NEW + Duration::from_millis(1);
        port.connect(1);
        assert_eq!(port.leaving(), [3], "it has never called");
        port.now += Duration::from_millis(1);
        port.connect(1);
        assert_eq!(port.leaving(), [1, 3], "the newcomer before it has not had the time to call");
    }

    #[test]
    fn who_waits_for_an_answer_stays_and_the_newcomer_is_on_probation() {
        let mut port = Port::new(2);
        let calls: Vec<_> = [1, 2].map(|host| port.connect(host).begin(CallKind::Unary)).into();
        let newcomer = port.connect(3);
        assert!(newcomer.is_on_probation() && port.leaving().is_empty());
        newcomer.is_a_peers();
        assert!(!newcomer.is_on_probation());
        for _ in 0..PROBATION_MAX + 1 {
            assert!(port.connect(4).is_on_probation());
        }
        assert_eq!(port.leaving(), [4], "the oldest on probation that is no peer");
        drop(calls);
        assert!(!port.connect(5).is_on_probation(), "a connection may be closed again");
    }

    #[test]
    fn a_silent_stream_holds_no_place() {
        let mut port = Port::new(1);
        let stream = port.connect(1).begin(CallKind::Stream);
        assert!(port.connect(2).is_on_probation(), "the stream was active a moment ago");
        port.now += SILENT;
        assert!(!port.connect(3).is_on_probation());
        assert_eq!(port.leaving(), [1]);
        drop(stream);
    }

    #[test]
    fn one_address_does_not_take_all_places() {
        let mut port = Port::new(8);
        let calls: Vec<_> = (0..6).map(|_| port.connect(1).begin(CallKind::Unary)).collect();
        assert!(port.connect(1).is_on_probation(), "one address gets six places of eight");
        assert!(!port.connect(2).is_on_probation());
        drop(calls);
        assert!(!port.connect(1).is_on_probation());
        assert_eq!(port.leaving(), [1], "one of the same address made way");
    }

    #[test]
    fn peers_take_no_place() {
        let mut port = Port::new(1);
        port.connect(1).is_a_peers();
        assert!(!port.connect(2).is_on_probation());
        assert_eq!((port.leaving().len(), port.links.count()), (0, (1, 1)));
        port.links.make_way(port.now);
        assert_eq!(port.leaving(), [2], "a lack of descriptors closes no peer's connection");
    }
}

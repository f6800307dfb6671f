//! [`Routes`]: the nodes that a client knows, a connection to each, and which of them it takes for
//! the leader.
//!
//! - Connections are made at the first use and again after they broke.
//! - While no leader is known, the endpoints are tried in turn.
//! - A leader's address that could not be reached *rests*, which means that it is not tried for a
//!   while: nodes may name addresses that only they can reach. They forward the calls instead.
//! - Clients start with a random endpoint, so that they do not all fill the first one's places.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};

use crate::connector::Connector;
use crate::error::{Error, Result};
use crate::v1::lockstep_client::LockstepClient;

/// Addresses remembered beside the endpoints: those that nodes named as leaders.
const LEARNT_MAX: usize = 64;
/// How long a named address that could not be reached rests: at first, and at most. The time
/// doubles with each failure.
pub(crate) const REST_MIN: Duration = Duration::from_secs(2);
pub(crate) const REST_MAX: Duration = Duration::from_secs(60);
/// Largest message either way, bytes; the nodes have the same limit.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8 << 20;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Cancelled calls that a connection remembers, so that it ignores their late answers.
const RESET_CALLS_KEPT: usize = 4_096;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// The nodes to which calls may go.
pub(crate) struct Routes {
    /// The addresses that the user gave, tried in turn.
    endpoints: Vec<String>,
    connect_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clients: BTreeMap<String, LockstepClient<Channel>>,
    leader: Option<String>,
    /// The endpoint to try while no leader is known.
    turn: usize,
    /// Addresses that rest: for how long, and since when.
    resting: BTreeMap<String, (Duration, Instant)>,
}

/// One node to call.
#[derive(Clone)]
pub(crate) struct Target {
    pub address: String,
    pub client: LockstepClient<Channel>,
    /// Whether this node is taken for the leader, because a node named it or because it answered.
    pub is_leader: bool,
}

impl Routes {
    pub(crate) fn new(endpoints: Vec<String>, connect_timeout: Duration) -> Result<Self> {
        if endpoints.is_empty() {
            let why = "give at least one endpoint".to_owned();
            return Err(Error::BadEndpoint { endpoint: String::new(), why });
        }
        let mut state = State { turn: random_turn(), ..State::default() };
        for endpoint in &endpoints {
            state.clients.insert(endpoint.clone(), dial(endpoint, connect_timeout)?);
        }
        Ok(Self { endpoints, connect_timeout, state: Mutex::new(state) })
    }

    pub(crate) fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// The leader if one is known, otherwise the endpoint whose turn it is.
    pub(crate) fn target(&self) -> Target {
        let state = self.lock();
        let is_leader = state.leader.is_some();
        let turn = state.turn % self.endpoints.len();
        let address = state.leader.as_ref().unwrap_or(&self.endpoints[turn]).clone();
        let client = state.clients.get(&address).expect("every known address has a client").clone();
        Target { address, client, is_leader }
    }

    /// The node at `address`, which need not be known so far.
    pub(crate) fn at(&self, address: &str) -> Result<Target> {
        let mut state = self.lock();
        let client = self.client(&mut state, address)?;
        Ok(Target { address: address.to_owned(), client, is_leader: false })
    }

    /// Notes that `address` was named as the leader's; returns whether to ask it.
    pub(crate) fn lead(&self, address: &str) -> bool {
        self.lead_after(address, REST_MAX)
    }

    /// Like [`Routes::lead`], for callers for whom the address rests no longer than `rest_max`.
    pub(crate) fn lead_after(&self, address: &str, rest_max: Duration) -> bool {
        let mut state = self.lock();
        if state.leader.as_deref() == Some(address) {
            return true;
        }
        let rests = state.resting.get(address);
        if rests.is_some_and(|(pause, since)| since.elapsed() < rest_max.min(*pause)) {
            return false;
        }
        // An invalid address cannot be the leader's.
        let known = self.client(&mut state, address).is_ok();
        if known {
            state.leader = Some(address.to_owned());
        }
        known
    }

    /// Notes that `address` answered as the leader.
    pub(crate) fn answered(&self, address: &str) {
        self.lock().resting.remove(address);
        self.lead(address);
    }

    /// Notes that `address` could not be reached. Unless it is an endpoint, it rests for a while.
    pub(crate) fn rest(&self, address: &str) {
        if self.endpoints.iter().any(|endpoint| endpoint == address) {
            return;
        }
        let mut state = self.lock();
        let before = state.resting.get(address).map(|(pause, _)| *pause * 2);
        let pause = before.unwrap_or(REST_MIN).min(REST_MAX);
        state.resting.insert(address.to_owned(), (pause, Instant::now()));
    }

    /// Notes that the attempt at `address` failed: the next one goes to another node.
    pub(crate) fn avoid(&self, address: &str) {
        let mut state = self.lock();
        match &state.leader {
            Some(leader) if leader != address => return,
            Some(_) | None => state.leader = None,
        }
        let turn = state.turn % self.endpoints.len();
        // Concurrent calls all report the same endpoint; the turn passes on only once.
        if self.endpoints[turn] == address || !self.endpoints.iter().any(|e| e == address) {
            state.turn = turn + 1;
        }
    }

    pub(crate) fn leader(&self) -> Option<String> {
        self.lock().leader.clone()
    }

    fn client(&self, state: &mut State, address: &str) -> Result<LockstepClient<Channel>> {
        if let Some(client) = state.clients.get(address) {
            return Ok(client.clone());
        }
        if state.clients.len() >= self.endpoints.len() + LEARNT_MAX {
            let endpoints = &self.endpoints;
            state.clients.retain(|known, _| endpoints.contains(known));
            state.resting.clear();
            state.leader = None;
        }
        let client = dial(address, self.connect_timeout)?;
        state.clients.insert(address.to_owned(), client.clone());
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

/// A random position in the list of endpoints, at which the turns begin.
fn random_turn() -> usize {
    let mut random = [0; 2];
    // Without randomness the first endpoint will do.
    let _ = getrandom::fill(&mut random);
    usize::from(u16::from_le_bytes(random))
}

fn dial(address: &str, connect_timeout: Duration) -> Result<LockstepClient<Channel>> {
    let bad = |why: String| Error::BadEndpoint { endpoint: address.to_owned(), why };
    let uri = match address.split_once("://") {
        None => format!("http://{address}"),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => address.to_owned(),
        Some((scheme, _)) => {
            return Err(bad(format!(
                "nodes speak plain http/2, not {scheme}: leave the scheme out, and encrypt the way \
                 to the node by other means"
            )));
        }
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|e| bad(e.to_string()))?;
    if endpoint.uri().port().is_none() {
        return Err(bad("it has no port".to_owned()));
    }
    let channel = endpoint
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        // Calls are cancelled at their deadlines, and answers to them may still arrive. That must
        // never end the connection, which other calls use.
        .http2_max_concurrent_reset_streams(RESET_CALLS_KEPT)
        .http2_max_local_error_reset_streams(None)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(Connector::new(connect_timeout));
    Ok(LockstepClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        let endpoints = ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec();
        Routes::new(endpoints, Duration::from_secs(1)).expect("good endpoints")
    }

    #[tokio::test]
    async fn without_a_leader_the_endpoints_take_turns() {
        let routes = routes();
        routes.lock().turn = 0;
        let mut seen = Vec::new();
        for _ in 0..4 {
            let target = routes.target();
            assert!(!target.is_leader);
            // Two concurrent calls report it: one step, not two.
            routes.avoid(&target.address);
            routes.avoid(&target.address);
            seen.push(target.address);
        }
        assert_eq!(seen, ["a:1", "b:1", "c:1", "a:1"]);
    }

    #[tokio::test]
    async fn a_named_leader_is_asked_until_it_fails() {
        let routes = routes();
        routes.lead("d:1");
        assert_eq!(routes.target().address, "d:1");
        routes.avoid("a:1");
        assert_eq!(routes.target().address, "d:1", "a late failure of a:1 says nothing about d:1");
        routes.avoid("d:1");
        assert!(!routes.target().is_leader);
        routes.lead("not an address");
        assert!(!routes.target().is_leader);
    }

    /// A leader's address that only nodes can reach is not tried at each call.
    #[tokio::test]
    async fn a_named_leader_that_cannot_be_reached_rests() {
        let routes = routes();
        assert!(routes.lead("inner:1"));
        routes.rest("inner:1");
        routes.avoid("inner:1");
        assert!(!routes.lead("inner:1"), "it was tried just now");
        assert!(!routes.target().is_leader);
        routes.answered("inner:1");
        assert_eq!(routes.target().address, "inner:1", "it answers after all");
        routes.rest("b:1");
        assert!(routes.lead("b:1"), "the user gave it, so it can be reached");
    }

    /// A stream is not forwarded: nothing replaces a leader that this client cannot reach.
    #[tokio::test]
    async fn streams_soon_try_a_leader_again_that_could_not_be_reached() {
        let routes = routes();
        let since = Instant::now() - REST_MIN;
        routes.lock().resting.insert("inner:1".to_owned(), (REST_MAX, since));
        assert!(!routes.lead("inner:1"));
        assert!(routes.lead_after("inner:1", REST_MIN));
    }

    #[tokio::test]
    async fn bad_endpoints_are_refused() {
        for bad in ["", "host", "a b:1", "http://", "https://host:1", "unix://host:1"] {
            let endpoints = vec![bad.to_owned()];
            let made = Routes::new(endpoints, Duration::from_secs(1));
            assert!(matches!(made, Err(Error::BadEndpoint { .. })), "{bad}");
        }
        for good in ["host:1", "http://host:1", "[::1]:1"] {
            assert!(Routes::new(vec![good.to_owned()], Duration::from_secs(1)).is_ok(), "{good}");
        }
        assert!(Routes::new(Vec::new(), Duration::from_secs(1)).is_err());
    }
}

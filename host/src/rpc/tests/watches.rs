//! `Watch` over a port, and the client's watch over it.

use lockstep_client::{Batch, Consistency, Error, Position, Watch};
use tokio_stream::StreamExt;
use tonic::{Code, Status, Streaming};

use super::raw::{RESET, Raw};
use super::*;
use crate::group::event_board::tests::{Author, LARGE, WINDOW};
use crate::rpc::proto::client::lockstep_client::LockstepClient;
use crate::rpc::proto::client::{WatchRequest, WatchResponse};
use crate::rpc::{CONNECTION_WATCHES_MAX, WATCHES_MAX};

/// What the replicas of these nodes apply.
struct Feed<'n> {
    author: Author,
    nodes: Vec<&'n GroupHandle>,
}

impl<'n> Feed<'n> {
    fn of(nodes: impl IntoIterator<Item = &'n Node>) -> Self {
        let nodes = nodes.into_iter().map(|node| &node.handle).collect();
        let feed = Self { author: Author::new(WINDOW), nodes };
        feed.tell();
        feed
    }

    fn tell(&self) {
        self.nodes.iter().for_each(|node| self.author.tell(node.events()));
    }

    /// Applies an entry with this event on every node.
    fn entry(&mut self, topic: &str, bytes: usize) {
        self.author.entry(&[(topic, bytes)]);
        self.tell();
    }
}

type Connection = LockstepClient<tonic::transport::Channel>;

async fn connect(node: &Node) -> Connection {
    LockstepClient::connect(format!("http://{}", node.address)).await.expect("it listens")
}

fn request(prefix: &str) -> WatchRequest {
    WatchRequest { group: GROUP.to_owned(), topic_prefix: prefix.to_owned(), start: None }
}

/// A watch that has begun.
async fn begun(connection: &mut Connection) -> Streaming<WatchResponse> {
    let mut stream = connection.watch(request("")).await.expect("there is a place").into_inner();
    patiently("a first message", stream.next()).await.expect("it begins").expect("it is answered");
    stream
}

/// The watch is refused like this.
fn check_refused(status: &Status, code: Code, word: &str, says: &str) {
    let told = status.metadata().get("lockstep-refusal").and_then(|it| it.to_str().ok());
    assert_eq!((status.code(), told), (code, Some(word)), "{status:?}");
    assert!(status.message().contains(says), "{status:?}");
}

/// The positions of the next events that the watch brings.
async fn positions(watch: &mut Watch, count: usize) -> Vec<String> {
    let mut positions = Vec::new();
    while positions.len() < count {
        let Batch { events, .. } = patiently("events", watch.next()).await.expect("it goes on");
        positions.extend(events.iter().map(|event| event.position.to_string()));
    }
    positions
}

/// Waits until as many watches are open on the node.
async fn open_watches(node: &Node, count: u64) {
    patiently("watches to come and go", async {
        while node.handle.events().watches().open != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn bad_watches_are_refused() {
    let (nodes, _shared) = cluster(1).await;
    let mut connection = connect(&nodes[0]).await;
    let elsewhere = WatchRequest { group: "nobody's".to_owned(), ..request("") };
    let status = connection.watch(elsewhere).await.expect_err("there is no such group");
    check_refused(&status, Code::NotFound, "unknown-group", "bank");
    let status = connection.watch(request(&"x".repeat(257))).await.expect_err("it is too long");
    check_refused(&status, Code::InvalidArgument, "malformed", "257 bytes");
    open_watches(&nodes[0], 0).await;
}

#[tokio::test]
async fn a_connection_and_a_node_have_so_many_watches() {
    let limits = PortLimits { connections: 2 * WATCHES_MAX, ..PortLimits::default() };
    let (nodes, _shared) = cluster_with(1, limits).await;
    assert_eq!(nodes[0].port.watches_max, WATCHES_MAX);
    let mut connection = connect(&nodes[0]).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTION_WATCHES_MAX {
        open.push(begun(&mut connection).await);
    }
    let status = connection.watch(request("")).await.expect_err("one too many");
    check_refused(&status, Code::ResourceExhausted, "overloaded", "this connection has 64");
    let mut other = connect(&nodes[0]).await;
    open.push(begun(&mut other).await);
    open_watches(&nodes[0], 65).await;
    open.clear();
    open_watches(&nodes[0], 0).await;
    drop(begun(&mut connection).await);

    let limits = PortLimits { connections: 4, ..PortLimits::default() };
    let (nodes, _shared) = cluster_with(1, limits).await;
    let mut connection = connect(&nodes[0]).await;
    let open = [begun(&mut connection).await, begun(&mut connection).await];
    let status = connection.watch(request("")).await.expect_err("one too many");
    check_refused(&status, Code::ResourceExhausted, "overloaded", "this node has 2");
    drop(open);
}

/// Nothing is kept for a client that does not read: it is cut off, and others do not notice.
#[tokio::test]
async fn a_slow_reader_is_cut_off_alone() {
    let limits = PortLimits { patience: Duration::from_secs(1), ..PortLimits::default() };
    let (nodes, _shared) = cluster_with(1, limits).await;
    let mut feed = Feed::of(&nodes);
    let mut raw = Raw::connect(&nodes[0].address).await;
    let slow = raw.open("/lockstep.v1.Lockstep/Watch", &[]);
    raw.message(slow, &request(""), true);
    raw.flush().await;
    open_watches(&nodes[0], 1).await;
    let mut watch = client_of(&[&nodes[0]]).watch("", None);
    patiently("a first message", watch.next()).await.expect("it begins");
    let mut first = None;
    for index in 2..42 {
        feed.entry("a", LARGE);
        assert_eq!(positions(&mut watch, 1).await, [format!("{index}.0")]);
        first.get_or_insert(Position { index, number: 0 });
    }
    let reset = async {
        loop {
            let frame = raw.next().await.expect("the connection stays");
            if frame.stream == slow && frame.kind == RESET {
                break;
            }
        }
    };
    patiently("the slow one to be cut off", reset).await;
    open_watches(&nodes[0], 1).await;
    assert_eq!(nodes[0].port.now().cut_off, 1);
    // It was away for longer than the window lasts.
    let mut late = client_of(&[&nodes[0]]).watch("", first);
    let told = patiently("an answer", late.next()).await;
    let Err(Error::Compacted { begin, message }) = told else { panic!("{told:?}") };
    assert!(message.contains(&format!("begin at {begin}")), "{message}");
    let mut rest = client_of(&[&nodes[0]]).watch("", Some(begin));
    assert_eq!(positions(&mut rest, 15).await.len(), 15);
}

#[tokio::test]
async fn a_watch_goes_on_at_another_node() {
    let (mut nodes, _shared) = cluster(3).await;
    let client = client_of(&[&nodes[0], &nodes[1], &nodes[2]]);
    let mut watch = client.watch("a", Some(Position::default()));
    let handles: Vec<GroupHandle> = nodes.iter().map(|node| node.handle.clone()).collect();
    let mut feed = Feed { author: Author::new(WINDOW), nodes: handles.iter().collect() };
    let mut want = Vec::new();
    let mut seen = Vec::new();
    while !nodes.is_empty() {
        for topic in ["a", "b", "a"] {
            feed.entry(topic, 1);
        }
        let last = want.last().map_or(1, |position: &u64| *position);
        want.extend([last + 1, last + 3]);
        seen.extend(positions(&mut watch, 2).await);
        let serves = nodes.iter().position(|node| node.handle.events().watches().open == 1);
        nodes.remove(serves.expect("one of them")).stop().await;
    }
    let want: Vec<String> = want.iter().map(|index| format!("{index}.0")).collect();
    assert_eq!(seen, want, "nothing twice, nothing left out");
}

#[tokio::test]
async fn a_watch_that_finds_no_node_can_be_tried_again() {
    let (mut nodes, _shared) = cluster(2).await;
    let options = Options {
        group: GROUP.to_owned(),
        deadline: Duration::from_millis(100),
        ..Options::default()
    };
    let addresses = nodes.iter().map(|node| node.address.clone());
    let client = Client::connect(addresses, options).expect("good endpoints");
    let mut watch = client.watch("", None);
    patiently("a first message", watch.next()).await.expect("it begins");
    let position = watch.position();
    for node in nodes.drain(..) {
        node.stop().await;
    }
    for _ in 0..2 {
        let told = patiently("an answer", watch.next()).await;
        assert!(matches!(told, Err(Error::Refused { .. })), "{told:?}");
        assert_eq!(watch.position(), position, "it goes on where it was");
    }
}

#[tokio::test]
async fn the_stream_of_a_node_that_stops_ends_with_the_reason() {
    let (mut nodes, _shared) = cluster(1).await;
    let mut stream = begun(&mut connect(&nodes[0]).await).await;
    nodes.remove(0).stop().await;
    let told = patiently("the end", async {
        loop {
            match stream.next().await.expect("an end with a reason") {
                Ok(pulse) => assert!(pulse.events.is_empty()),
                Err(status) => break status,
            }
        }
    });
    check_refused(&told.await, Code::Unavailable, "shutting-down", "another node");
}

#[tokio::test]
async fn a_query_is_the_way_in() {
    let (nodes, _shared) = cluster(1).await;
    let mut feed = Feed::of(&nodes);
    let client = client_of(&[&nodes[0]]);
    // The scripted group counts commands: the query answers as of entry 2.
    for command in ["one", "two"] {
        client.apply(command).await.expect("it is applied");
    }
    for _ in 0..3 {
        feed.entry("a", 1);
    }
    let asked = client.query_then_watch("all", Consistency::Linearizable, "").await;
    let (reply, mut watch) = asked.expect("it answers");
    assert_eq!((reply.applied_index, watch.position()), (2, Some(Position::after_entry(2))));
    assert_eq!(positions(&mut watch, 2).await, ["3.0", "4.0"], "not what the answer shows");
}

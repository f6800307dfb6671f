//! Malicious and broken clients: they harm no other client, what they hold is bounded, and they are
//! told what is wrong.

use bytes::BufMut as _;
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::net::TcpStream;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstDecoder;

use super::raw::{GOAWAY, RESET, Raw};
use super::*;
use crate::rpc::proto::client::lockstep_client::LockstepClient;
use crate::rpc::proto::client::{ApplyRequest, ApplyStreamRequest, StreamCommand};
use crate::transport::Transport;

const APPLY: &str = "/lockstep.v1.Lockstep/Apply";
const APPLY_STREAM: &str = "/lockstep.v1.Lockstep/ApplyStream";
const FRAMES: &str = "/lockstep.peer.v1.Peer/Frames";
const BULK: &str = "/lockstep.peer.v1.Peer/Bulk";

/// Tight limits, which a test reaches soon.
fn narrow() -> PortLimits {
    let patience = Duration::from_millis(200);
    PortLimits { connections: 8, client_bytes: 4 << 20, patience }
}

async fn connect(node: &Node) -> LockstepClient<Channel> {
    LockstepClient::connect(format!("http://{}", node.address)).await.expect("it listens")
}

fn apply(command: &'static str) -> ApplyRequest {
    let command = Bytes::from_static(command.as_bytes());
    ApplyRequest { group: GROUP.to_owned(), command, ..ApplyRequest::default() }
}

/// Idle connections keep no other client out.
#[tokio::test]
async fn idle_connections_make_space_for_others() {
    let (nodes, _shared) = cluster_with(1, narrow()).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(&nodes[0].address).await.expect("it listens"));
    }
    let mut quiet = Vec::new();
    for _ in 0..20 {
        quiet.push(connect(&nodes[0]).await);
    }
    let mut caller = connect(&nodes[0]).await;
    caller.apply(apply("a")).await.expect("there is space");
    for client in &mut quiet[18..] {
        client.apply(apply("b")).await.expect("the youngest connections were kept");
    }
    let few = async {
        while nodes[0].port.now().clients > 16 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    patiently("the others to go", few).await;
    assert!(nodes[0].port.now().evicted >= 100, "{:?}", nodes[0].port.now());
}

/// If all connections are busy, a further client is refused, and a peer gets in.
#[tokio::test]
async fn busy_connections_keep_clients_out_but_no_peer() {
    let (mut nodes, shared) = cluster_with(2, narrow()).await;
    shared.lock().held = Some(Vec::new());
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let mut client = connect(&nodes[0]).await;
        calls.spawn(async move { client.apply(apply("held")).await });
    }
    let all_held = async {
        while shared.lock().held.as_ref().map_or(0, Vec::len) < 6 {
            tokio::task::yield_now().await;
        }
    };
    patiently("six calls", all_held).await;
    let status = connect(&nodes[0]).await.apply(apply("more")).await.expect_err("no place");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("try another node"), "{status:?}");

    let (transport, _lost) = super::peers::sender_to(2, 1, &nodes[0].address);
    let arrival = async {
        loop {
            transport.send(NodeId(1), super::peers::frame(2, 7));
            let pause = Duration::from_millis(5);
            if tokio::time::timeout(pause, nodes[0].frames.recv()).await.is_ok() {
                return;
            }
        }
    };
    patiently("a frame of a peer", arrival).await;
    assert_eq!(nodes[0].port.now().peers, 1);
    shared.release();
    for call in calls.join_all().await {
        call.expect("no waiting caller was disconnected");
    }
}

/// Requests that are not sent to their end are ended in time, and their memory is freed.
#[tokio::test]
async fn half_sent_requests_end() {
    let (nodes, shared) = cluster_with(1, narrow()).await;
    let mut raw = Raw::connect(&nodes[0].address).await;
    let silent = raw.open(APPLY, &[]);
    let begun = raw.open(APPLY, &[]);
    raw.part(begun, 900_000, b"the first few", false);
    let in_a_stream = raw.open(APPLY_STREAM, &[]);
    raw.part(in_a_stream, 900_000, b"the first few", false);
    let peer = raw.open(FRAMES, &[]);
    let bulk = raw.open(BULK, &[]);
    raw.part(bulk, 100, b"an", false);
    raw.flush().await;
    let mut open = vec![silent, begun, in_a_stream, peer, bulk];
    while !open.is_empty() {
        let frame = patiently("an end", raw.next()).await.expect("the connection stays");
        assert_ne!(frame.kind, GOAWAY);
        if frame.ends_stream() {
            open.retain(|stream| *stream != frame.stream);
        }
    }
    let calm = raw.open(APPLY, &[]);
    raw.message(calm, &apply("calm"), true);
    raw.flush().await;
    assert!(patiently("an answer", raw.is_answered(calm)).await);
    assert_eq!(shared.lock().applied.len(), 1, "no half-sent request was applied");
    drop(raw);
    given_back(&nodes[0]).await;
}

async fn given_back(node: &Node) {
    let empty = async {
        while node.port.now().client_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    patiently("the budget is whole again", empty).await;
}

/// A message is charged by its announced length before it comes, and refused if memory is short.
#[tokio::test]
async fn requests_without_memory_are_refused() {
    let (nodes, _shared) = cluster_with(1, narrow()).await;
    let mut hog = Raw::connect(&nodes[0].address).await;
    for _ in 0..4 {
        let begun = hog.open(APPLY, &[]);
        hog.part(begun, 1_000_000, b"", false);
    }
    hog.flush().await;
    let full = async {
        while nodes[0].port.now().client_bytes < 4_000_000 {
            tokio::task::yield_now().await;
        }
    };
    patiently("a full budget", full).await;
    let large = ApplyRequest { command: vec![0; 500_000].into(), ..apply("") };
    let status = connect(&nodes[0]).await.apply(large).await.expect_err("there is no space");
    let word = status.metadata().get("lockstep-refusal").and_then(|word| word.to_str().ok());
    assert_eq!((status.code(), word), (Code::ResourceExhausted, Some("overloaded")));
    assert!(nodes[0].port.now().no_memory > 0);
    drop(hog);
    given_back(&nodes[0]).await;
    let large = ApplyRequest { command: vec![0; 500_000].into(), ..apply("") };
    connect(&nodes[0]).await.apply(large).await.expect("there is space again");
}

/// A first message of a peer that is longer than a Hello is refused by its length, and so is a
/// client's that is longer than a command.
#[tokio::test]
async fn lengths_are_judged_before_anything_is_kept() {
    let (nodes, _shared) = cluster_with(1, PortLimits::default()).await;
    let mut raw = Raw::connect(&nodes[0].address).await;
    for (path, length) in [(APPLY, 2 << 20), (FRAMES, 1 << 20), (BULK, 1 << 20)] {
        let stream = raw.open(path, &[]);
        raw.part(stream, length, b"", false);
        raw.flush().await;
        assert!(!patiently(path, raw.is_answered(stream)).await);
    }
    let mut client = connect(&nodes[0]).await;
    let large = ApplyRequest { command: vec![0; 2 << 20].into(), ..apply("") };
    let status = client.apply(large).await.expect_err("it is too large");
    let word = status.metadata().get("lockstep-refusal").and_then(|word| word.to_str().ok());
    assert_eq!((status.code(), word), (Code::InvalidArgument, Some("too-large")));
}

/// A codec that sends bytes unencoded, to send what no library would.
struct AsTheyAre;

impl Encoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(bytes);
        Ok(())
    }
}

impl Codec for AsTheyAre {
    type Encode = Bytes;
    // Only the arrival of an answer matters, not its content.
    type Decode = ();
    type Encoder = Self;
    type Decoder = ProstDecoder<()>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> ProstDecoder<()> {
        ProstDecoder::default()
    }
}

/// Calls a method with these messages; the number of answers, and the status at their end.
async fn send_bytes(
    node: &Node,
    path: &'static str,
    messages: Vec<Bytes>,
) -> (usize, Option<Status>) {
    let endpoint = Channel::from_shared(format!("http://{}", node.address)).expect("an address");
    let mut caller = tonic::client::Grpc::new(endpoint.connect().await.expect("it listens"));
    caller.ready().await.expect("it is connected");
    let request = tonic::Request::new(tokio_stream::iter(messages));
    let sent = caller.streaming(request, PathAndQuery::from_static(path), AsTheyAre);
    let mut stream = match patiently(path, sent).await {
        Ok(response) => response.into_inner(),
        Err(status) => return (0, Some(status)),
    };
    let mut answers = 0;
    loop {
        match patiently(path, stream.message()).await {
            Ok(Some(())) => answers += 1,
            Ok(None) => return (answers, None),
            Err(status) => return (answers, Some(status)),
        }
    }
}

/// Checks that a message was refused as `malformed`, and that the text names this reason.
fn assert_malformed(status: Option<Status>, why: &str) {
    let status = status.expect("it is refused");
    let word = |key: &str| status.metadata().get(key).and_then(|word| word.to_str().ok());
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(word("lockstep-refusal"), Some("malformed"), "{status:?}");
    assert_eq!(word("lockstep-outcome"), Some("nothing"), "{status:?}");
    assert!(status.message().contains(why), "{status:?}");
}

/// Field 1 of a request, its group, holding a byte that is no UTF-8.
const BAD_GROUP: &[u8] = &[0x0a, 1, 0xff];
const BAD_TEXT: &str = ".group: invalid string value: data is not UTF-8";

/// Every method refuses bytes that are no message of the protocol, with a refusal of the protocol.
#[tokio::test]
async fn a_request_that_is_no_message_is_malformed() {
    let (nodes, shared) = cluster(1).await;
    let check = async |path: &'static str, bytes: &'static [u8], why: &'static str| {
        let (answers, status) = send_bytes(&nodes[0], path, vec![Bytes::from_static(bytes)]).await;
        assert_eq!(answers, 0, "{path}");
        assert_malformed(status, why);
    };
    check(APPLY, BAD_GROUP, BAD_TEXT).await;
    check("/lockstep.v1.Lockstep/OpenSession", BAD_GROUP, BAD_TEXT).await;
    check("/lockstep.v1.Lockstep/CloseSession", BAD_GROUP, BAD_TEXT).await;
    check("/lockstep.v1.Lockstep/Query", BAD_GROUP, BAD_TEXT).await;
    check("/lockstep.v1.Lockstep/Status", BAD_GROUP, BAD_TEXT).await;
    check("/lockstep.v1.Lockstep/Checkpoint", BAD_GROUP, BAD_TEXT).await;
    check(APPLY_STREAM, BAD_GROUP, BAD_TEXT).await;
    // A command of nine bytes of which one came, a session that is bytes, and no key of a field.
    check(APPLY, &[0x2a, 9, b'a'], "ApplyRequest.command: ").await;
    check(APPLY, &[0x12, 1, b'a'], "ApplyRequest.session: invalid wire type").await;
    check(APPLY, &[7], "invalid wire type value: 7").await;
    check(APPLY_STREAM, &[0x22, 9, b'a'], "truncated").await;
    let machine = shared.lock();
    assert_eq!((machine.applied.len(), machine.opened), (0, 0), "nothing was done");
}

/// The commands before it are answered, and those after it are not taken.
#[tokio::test]
async fn a_message_of_a_stream_that_is_none_ends_it_as_malformed() {
    let (nodes, shared) = cluster(1).await;
    let whole = |command: &'static str| {
        let command = Bytes::from_static(command.as_bytes());
        let commands = vec![StreamCommand { tag: 1, sequence: 0, command }];
        let request =
            ApplyStreamRequest { group: GROUP.to_owned(), commands, ..Default::default() };
        Bytes::from(request.encode_to_vec())
    };
    let messages = vec![whole("a"), Bytes::from_static(BAD_GROUP), whole("b")];
    let (answers, status) = send_bytes(&nodes[0], APPLY_STREAM, messages).await;
    assert_eq!(answers, 1);
    assert_malformed(status, BAD_TEXT);
    let applied: Vec<Bytes> = shared.counts().into_keys().collect();
    assert_eq!(applied, [Bytes::from_static(b"a")]);
}

/// A client that does not read its answers is cut off, and the memory of the answers is freed.
#[tokio::test]
async fn a_reader_that_does_not_read_is_cut_off() {
    let (nodes, shared) = cluster_with(1, narrow()).await;
    let mut raw = Raw::connect(&nodes[0].address).await;
    let stream = raw.open(APPLY_STREAM, &[]);
    let commands = (0..100).map(|tag| {
        let command = Bytes::from_static(b"big");
        StreamCommand { tag, sequence: 0, command }
    });
    let message = ApplyStreamRequest {
        group: GROUP.to_owned(),
        commands: commands.collect(),
        ..Default::default()
    };
    raw.message(stream, &message, false);
    raw.flush().await;
    loop {
        let frame = patiently("the end", raw.next()).await.expect("the connection stays");
        if frame.kind == RESET {
            assert_eq!((frame.stream, &frame.payload[..]), (stream, &[0, 0, 0, 11][..]));
            break;
        }
    }
    assert_eq!(nodes[0].port.now().cut_off, 1);
    assert!(shared.lock().applied.len() <= 100);
    drop(raw);
    given_back(&nodes[0]).await;
    connect(&nodes[0]).await.apply(apply("other")).await.expect("other clients are not affected");
}

/// Streams whose answers are not read hold no more than the budget, plus one message each that is
/// being sent.
#[tokio::test]
async fn answers_that_nobody_reads_do_not_pile_up() {
    const STREAMS: usize = 8;
    const COMMANDS: u64 = 512;
    let (nodes, shared) = cluster_with(1, narrow()).await;
    let mut raw = Raw::connect(&nodes[0].address).await;
    for _ in 0..STREAMS {
        let stream = raw.open(APPLY_STREAM, &[]);
        let command = |tag| StreamCommand { tag, sequence: 0, command: Bytes::from_static(b"big") };
        let message = ApplyStreamRequest {
            group: GROUP.to_owned(),
            commands: (0..COMMANDS).map(command).collect(),
            ..Default::default()
        };
        raw.message(stream, &message, false);
    }
    raw.flush().await;
    let mut most = 0;
    let all_are_cut_off = async {
        while nodes[0].port.now().cut_off < STREAMS as u64 {
            most = most.max(nodes[0].port.now().client_bytes);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    patiently("all to be cut off", all_are_cut_off).await;
    let on_its_way = (STREAMS * (1 << 20) + STREAMS * limits::OUTCOME_BYTES_MAX) as u64;
    assert!(most > 0 && most <= narrow().client_bytes as u64 + 2 * on_its_way, "{most}");
    let applied = shared.lock().applied.len();
    assert!(applied < STREAMS * COMMANDS as usize / 2, "{applied}: commands were read without end");
    drop(raw);
    given_back(&nodes[0]).await;
    connect(&nodes[0]).await.apply(apply("other")).await.expect("other clients are not affected");
}

/// A bulk channel on which nothing is offered takes no thread.
#[test]
fn silent_transfers_take_no_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (nodes, _shared) = cluster(1).await;
        let mut raw = Raw::connect(&nodes[0].address).await;
        for _ in 0..64 {
            raw.open(BULK, &[]);
        }
        let last = raw.open(APPLY, &[]);
        raw.message(last, &apply("a"), true);
        raw.flush().await;
        assert!(patiently("an answer", raw.is_answered(last)).await, "all were read");
        let work = tokio::task::spawn_blocking(|| 7);
        let done = tokio::time::timeout(Duration::from_secs(3), work).await;
        assert_eq!(done.expect("there is a thread").expect("it does not panic"), 7);
    });
}

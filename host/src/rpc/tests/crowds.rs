//! One connection under load: many calls, many abandoned calls, many small frames.

use super::raw::Raw;
use super::*;
use crate::rpc::proto::client::lockstep_client::LockstepClient;
use crate::rpc::proto::client::{ApplyRequest, ApplyStreamRequest, StreamCommand};

/// Commands that a stream takes before it has seen how long answers are.
const FIRST_COMMANDS: usize = 128;
const APPLY: &str = "/lockstep.v1.Lockstep/Apply";

fn apply(command: &'static str) -> ApplyRequest {
    let command = Bytes::from_static(command.as_bytes());
    ApplyRequest { group: GROUP.to_owned(), command, ..ApplyRequest::default() }
}

/// Deadlines of a few milliseconds pass while the server is busy, so that it reads calls together
/// with their resets.
#[tokio::test]
async fn calls_that_ran_out_of_time_do_not_end_their_connection() {
    let (nodes, _shared) = cluster(1).await;
    let mut raw = Raw::connect(&nodes[0].address).await;
    for _ in 0..10 {
        for _ in 0..200 {
            let hasty = raw.open(APPLY, &[("grpc-timeout", "2m")]);
            raw.message(hasty, &apply("hasty"), true);
            raw.reset(hasty);
        }
        let calm = raw.open(APPLY, &[]);
        raw.message(calm, &apply("calm"), true);
        raw.flush().await;
        assert!(patiently("an answer", raw.is_answered(calm)).await);
    }
}

/// Abandoned calls of a real client do not end their connection, not even as many as would reach a
/// limit on the connection's whole life.
#[tokio::test]
async fn a_calm_caller_does_not_feel_hasty_ones() {
    let (nodes, shared) = cluster(1).await;
    let calm = client_of(&[&nodes[0]]);
    let channel = crate::rpc::peer_link::connect(&nodes[0].address).await.expect("it listens");
    let hasty = LockstepClient::new(channel);
    for round in 0..20 {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let mut hasty = hasty.clone();
            let mut request = tonic::Request::new(apply("hasty"));
            request.set_timeout(Duration::from_millis(2));
            calls.spawn(async move {
                tokio::time::timeout(Duration::from_millis(2), hasty.apply(request)).await
            });
        }
        let calm = hasty.clone().apply(apply("calm")).await;
        assert!(calm.is_ok(), "round {round}: {calm:?}");
        calls.join_all().await;
    }
    calm.apply("last").await.expect("other connections are not affected");
    assert!(shared.lock().applied.iter().any(|(_, _, command)| command == "last"));
}

/// Eight streams on one connection send a message for each command of 16 bytes, far more than are
/// taken at a time while none is answered.
#[tokio::test]
async fn small_messages_in_great_number_do_not_end_their_connection() {
    const COMMANDS: u64 = 10_000;
    let (nodes, shared) = cluster(1).await;
    shared.lock().held = Some(Vec::new());
    let channel = crate::rpc::peer_link::connect(&nodes[0].address).await.expect("it listens");
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = LockstepClient::new(channel.clone());
        let messages = (0..COMMANDS).map(|tag| {
            let command = StreamCommand { tag, sequence: 0, command: vec![b'x'; 16].into() };
            let (group, commands) = (GROUP.to_owned(), vec![command]);
            ApplyStreamRequest { group, commands, ..Default::default() }
        });
        streams.spawn(async move {
            let sent = client.apply_stream(tokio_stream::iter(messages)).await;
            let mut answers = sent.expect("it opens").into_inner();
            let mut count = 0;
            while let Some(message) = answers.message().await.expect("the connection stays") {
                count += message.answers.len() as u64;
            }
            count
        });
    }
    let full = async {
        let taken = || shared.lock().held.as_ref().map_or(0, Vec::len);
        while taken() < 8 * FIRST_COMMANDS {
            tokio::task::yield_now().await;
        }
    };
    patiently("streams that are full", full).await;
    shared.release();
    let answered = patiently("answers", streams.join_all()).await;
    assert_eq!(answered, [COMMANDS; 8]);
}

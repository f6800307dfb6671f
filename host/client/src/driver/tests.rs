//! A driver without a connection: what it does with failures, answers and deadlines.

use tonic::codec::Codec as _;
use tonic_prost::ProstCodec;

use super::*;
use crate::client::Options;

/// A driver with two commands, of which the first was sent.
fn driver() -> (Driver, [oneshot::Receiver<Result<Reply>>; 2]) {
    let client = Client::connect(["127.0.0.1:1"], Options::default()).expect("good");
    let (_jobs, queue) = mpsc::channel(1);
    let mut driver = Driver::new(client, 0, queue);
    let answers = [0, 1].map(|_| {
        let (answer, receiver) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(60);
        let (command, permit) = (Bytes::from_static(b"a"), Permit::default());
        driver.admit(Job { command, call: None, deadline, answer, permit });
        receiver
    });
    driver.commands.get_mut(&1).expect("the first").under_way = true;
    (driver.under_way, driver.next_to_send) = (1, 2);
    (driver, answers)
}

/// A proxy on the way ends the stream with a status that is no node's refusal.
#[tokio::test]
async fn what_was_sent_may_have_been_applied_however_the_stream_ends() {
    let (mut driver, [sent, kept]) = driver();
    let status = tonic::Status::permission_denied("the gateway denies it");
    driver.leave(Failed::of_status(&status), Side::Node);
    let (sent, kept) = (sent.await, kept.await);
    assert!(matches!(sent, Ok(Err(Error::Unknown { .. }))), "{sent:?}");
    assert!(matches!(kept, Ok(Err(Error::Refused { .. }))), "{kept:?}");
}

/// A node that ends a stream with a refusal took no command that it did not answer.
#[tokio::test]
async fn what_a_node_did_not_answer_goes_again_in_its_order() {
    let (mut driver, _answers) = driver();
    let mut status = tonic::Status::resource_exhausted("busy");
    status.metadata_mut().insert("lockstep-refusal", "overloaded".parse().expect("a value"));
    driver.leave(Failed::of_status(&status), Side::Node);
    assert_eq!(driver.next_to_send, 0);
    assert_eq!(driver.commands.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert!(driver.commands.values().all(|command| !command.unknown && !command.under_way));
    // If this client ended the stream instead, that is not known.
    driver.commands.get_mut(&1).expect("the first").under_way = true;
    driver.leave(Failed::of_status(&status), Side::Client);
    assert_eq!(driver.commands.keys().copied().collect::<Vec<_>>(), [2]);
}

fn stream(driver: &Driver) -> Stream {
    let mut codec = ProstCodec::<v1::ApplyStreamRequest, v1::ApplyStreamResponse>::default();
    let answers = Streaming::new_empty(codec.decoder(), tonic::body::Body::empty());
    Stream::new(driver.client.routes().target(), answers)
}

fn late() -> Instant {
    Instant::now() - Duration::from_secs(60)
}

#[tokio::test]
async fn a_node_that_is_left_may_answer_until_it_is_silent() {
    let (mut driver, _answers) = driver();
    let mut stream = stream(&driver);
    stream.leave(Failed::of_status(&tonic::Status::unavailable("it stops")));
    assert_eq!(driver.is_over(&stream), None);
    stream.heard = late();
    assert_eq!(driver.is_over(&stream), stream.leaving, "it is silent");
    driver.answered(&mut stream, v1::ApplyStreamResponse::default());
    assert_eq!(driver.is_over(&stream), None, "it answers");
    driver.under_way = 0;
    assert_eq!(driver.is_over(&stream), stream.leaving, "it has answered");
}

/// The driver leaves a silent node even if the commands' deadlines are shorter than an attempt.
#[tokio::test]
async fn a_node_is_left_that_lets_commands_expire() {
    let (mut driver, [sent, _kept]) = driver();
    let mut stream = stream(&driver);
    stream.heard = late();
    driver.commands.get_mut(&1).expect("the first").deadline = late();
    stream.overdue |= driver.expire();
    let sent = sent.await;
    assert!(matches!(sent, Ok(Err(Error::Unknown { .. }))), "{sent:?}");
    assert_eq!(driver.under_way, 0);
    stream.before_sending(driver.under_way);
    assert_eq!(driver.is_over(&stream), Some(Failed::timed_out()));
    driver.answered(&mut stream, v1::ApplyStreamResponse::default());
    assert_eq!(driver.is_over(&stream), None, "a late answer is one, too");
}

#[tokio::test]
async fn a_later_command_may_expire_first() {
    let (mut driver, [_sent, kept]) = driver();
    driver.commands.get_mut(&2).expect("the second").deadline = late();
    assert!(!driver.expire(), "it was not under way");
    assert_eq!(driver.commands.keys().copied().collect::<Vec<_>>(), [1]);
    let kept = kept.await;
    assert!(matches!(kept, Ok(Err(Error::Refused { .. }))), "{kept:?}");
}

/// Commands end at their deadlines also while a stream is opened and while the driver pauses.
#[tokio::test]
async fn commands_expire_whatever_the_driver_waits_for() {
    let (mut driver, answers) = driver();
    driver.commands.values_mut().for_each(|command| command.deadline = late());
    let waited = driver.meanwhile(std::future::pending::<()>(), Duration::from_secs(60)).await;
    assert_eq!(waited, None);
    for answer in answers {
        let ended = answer.await;
        assert!(matches!(ended, Ok(Err(_))), "{ended:?}");
    }
}

#[tokio::test]
async fn an_old_failure_is_told_no_more_once_a_node_answers() {
    let (mut driver, [sent, _kept]) = driver();
    let mut stream = stream(&driver);
    driver.last_failure = Some(Failed::timed_out());
    let answer = Some(Answer::Ok(Bytes::from_static(b"#1")));
    let answers = vec![v1::StreamAnswer { tag: 1, answer }];
    driver.answered(&mut stream, v1::ApplyStreamResponse { answers });
    assert!(matches!(sent.await, Ok(Ok(_))));
    assert_eq!(driver.last_failure, None);
}

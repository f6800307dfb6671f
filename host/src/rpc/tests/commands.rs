//! The command line's deadlines, against nodes that are slow or silent, and the sessions that it
//! closes.
//!
//! A test compares two timers of one runtime; they fire in order however slow the machine is.

use clap::Parser;

use super::*;
use crate::cli::{Failure, apply, status};

#[derive(Parser)]
struct Apply {
    #[command(flatten)]
    args: apply::Args,
}

#[derive(Parser)]
struct Status {
    #[command(flatten)]
    args: status::Args,
}

/// The result of `command`, which must end within `most`.
async fn within<T>(most: Duration, command: impl Future<Output = T>) -> T {
    let late = tokio::time::sleep(most);
    tokio::select! {
        biased;
        done = command => done,
        () = late => panic!("it takes longer than {most:?}"),
    }
}

/// `apply` opens a session and applies the command within one common timeout. Then it closes the
/// session, although it knows no outcome.
#[tokio::test]
async fn apply_takes_no_longer_than_it_was_told() {
    // On a loaded machine the tenth of two seconds that is left for the command may be too short.
    for seconds in [2, 4, 8, 16] {
        let (nodes, shared) = cluster(1).await;
        let timeout = Duration::from_secs(seconds);
        shared.lock().opens_from = Some(Instant::now() + timeout * 9 / 10);
        shared.lock().script.push_back(Turn::Silence);
        let told = ["--endpoint", &nodes[0].address, "--timeout", &seconds.to_string()];
        let line = [&["apply", "--group", GROUP], &told[..], &["a"]].concat();
        let args = Apply::parse_from(line).args;
        let ended = within(timeout * 3 / 2 + apply::CLOSE_MAX, apply::run(args)).await;
        let Err(Failure::Failed(message)) = ended else { panic!("{ended:?}") };
        let machine = shared.lock();
        if machine.applied.len() == 1 && machine.sessions.is_empty() {
            return assert!(message.contains("may have been applied"), "{message}");
        }
    }
    panic!("no session was opened late, but in time, and closed");
}

/// A group has a bounded number of sessions: a command that fails leaves none open.
#[tokio::test]
async fn apply_closes_its_session_if_the_command_is_refused() {
    let (nodes, shared) = cluster(1).await;
    let full = || Refusal::DiskFull { need: 64, have: 3 };
    shared.lock().script.extend([Turn::Refused(full), Turn::Refused(full)]);
    let line = ["apply", "--group", GROUP, "--endpoint", &nodes[0].address, "a"];
    let ended = patiently("an end", apply::run(Apply::parse_from(line).args)).await;
    let Err(Failure::Failed(message)) = ended else { panic!("{ended:?}") };
    assert!(message.contains("the disk is full"), "{message}");
    let machine = shared.lock();
    assert_eq!((machine.opened, machine.sessions.len()), (1, 0));
}

/// Silent nodes cost one deadline together, not one each.
#[tokio::test]
async fn status_takes_no_longer_than_it_was_told() {
    let (nodes, _shared) = cluster(1).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
    }
    let addresses = silent.iter().map(|one| one.local_addr().expect("it is bound").to_string());
    let endpoints = addresses.chain([nodes[0].address.clone()]).collect::<Vec<_>>().join(",");
    let line = ["status", "--endpoint", &endpoints, "--timeout", "1"];
    let args = Status::parse_from(line).args;
    let ended = within(Duration::from_millis(2_500), status::run(args)).await;
    assert!(matches!(ended, Err(Failure::Unwell(_))), "the node that answered is shown: {ended:?}");
}

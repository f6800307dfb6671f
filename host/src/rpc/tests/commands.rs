//! The command line's deadlines, against nodes that are slow or say nothing.
//!
//! A test compares two timers of one runtime, which end in their order however slow the machine is.

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

/// What comes of `command`, which ends within `most`.
async fn within<T>(most: Duration, command: impl Future<Output = T>) -> T {
    let late = tokio::time::sleep(most);
    tokio::select! {
        biased;
        done = command => done,
        () = late => panic!("it takes longer than {most:?}"),
    }
}

/// Opening a session and applying the command have one time together.
#[tokio::test]
async fn apply_takes_no_longer_than_it_was_told() {
    // On a loaded machine what is left of two seconds may be too little.
    for seconds in [2, 4, 8, 16] {
        let (nodes, shared) = cluster(1).await;
        let timeout = Duration::from_secs(seconds);
        shared.lock().opens_from = Some(Instant::now() + timeout * 9 / 10);
        shared.lock().script.push_back(Turn::Silence);
        let told = ["--endpoint", &nodes[0].address, "--timeout", &seconds.to_string()];
        let line = [&["apply", "--group", GROUP], &told[..], &["a"]].concat();
        let args = Apply::parse_from(line).args;
        let ended = within(timeout * 3 / 2, apply::run(args)).await;
        let Err(Failure::Failed(message)) = ended else { panic!("{ended:?}") };
        if shared.lock().applied.len() == 1 {
            return assert!(message.contains("may have been applied"), "{message}");
        }
    }
    panic!("no session was opened late, but in time");
}

/// Nodes that say nothing cost one deadline, not one each.
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
    assert!(matches!(ended, Err(Failure::Unwell(_))), "who answered is shown: {ended:?}");
}

//! Makes up commands and queries for `lockstep test`: few queues, and numbers that are likely to be
//! those of messages.

use lockstep_guest::{Rng, SelfTest};

use crate::Queues;

const QUEUES: [&str; 2] = ["jobs", "jobs/slow"];
const CONSUMERS: [&str; 2] = ["ann", "bob"];
const BODIES: [&str; 4] = ["", "hello world", "two\nlines\n", "1 1 1 5\n"];
const TIMES_MS: [u64; 4] = [1_000, 1_500, 30_000, 43_200_000];

impl SelfTest for Queues {
    /// Nothing depends on an index, a position or a random number; IDs and receipts are counters.
    const INDEPENDENT_OF_PACKING: bool = true;

    fn command(number: u64) -> Vec<u8> {
        let mut rng = Rng::from_number(number);
        let rng = &mut rng;
        let queue = rng.pick(&QUEUES);
        match rng.below(20) {
            0..5 => format!("send {queue} {}", rng.pick(&BODIES)),
            5..9 => format!("receive {queue} {} {}", rng.pick(&CONSUMERS), rng.pick(&TIMES_MS)),
            9 => format!("receive {queue} ann {} {}", rng.pick(&TIMES_MS), 1 + rng.below(5)),
            10..13 => format!("ack {queue} {}", small(rng)),
            13..15 => format!("nack {queue} {}", small(rng)),
            15 => format!("extend {queue} {} {}", small(rng), rng.pick(&TIMES_MS)),
            16 => format!("redrive {queue} {}", small(rng)),
            17 => format!("discard {queue} {}", small(rng)),
            18 => format!("delete {queue}"),
            _ => rng
                .pick(&["send jobs", "ack jobs 0", "receive jobs ann 10", "fetch jobs"])
                .to_string(),
        }
        .into()
    }

    fn query(number: u64) -> Vec<u8> {
        let mut rng = Rng::from_number(number);
        let queue = rng.pick(&QUEUES);
        match rng.below(6) {
            0 => format!("stats {queue}"),
            1 => format!("queues {} {}", rng.pick(&["", "jobs/"]), rng.below(3)),
            2 => format!("peek {queue} {}", rng.below(5)),
            3 => format!("dead {queue} {}", rng.below(5)),
            4 => format!("in-flight {queue} 10"),
            _ => "peek".to_owned(),
        }
        .into()
    }
}

/// An ID or a receipt: small ones are given away first, and come more often.
fn small(rng: &mut Rng) -> u64 {
    let bound = 1 + rng.below(16);
    1 + rng.below(bound)
}

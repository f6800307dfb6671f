//! Makes up commands and queries for `lockstep test`: few locks and owners, so that they meet.

use lockstep_guest::{Rng, SelfTest};

use crate::Locks;

const NAMES: [&str; 2] = ["db", "db/replica"];
const OWNERS: [&str; 4] = ["ann", "bob", "cyd", "dan"];
const TTLS_MS: [u64; 4] = [1_000, 1_500, 20_000, 3_600_000];

impl SelfTest for Locks {
    /// Nothing depends on an index, a position or a random number; the token is a counter.
    const INDEPENDENT_OF_PACKING: bool = true;

    fn command(number: u64) -> Vec<u8> {
        let mut rng = Rng::from_number(number);
        let rng = &mut rng;
        let name = rng.pick(&NAMES);
        match rng.below(16) {
            0..3 => format!("acquire {name} {} {}", rng.pick(&OWNERS), rng.pick(&TTLS_MS)),
            3..7 => format!("wait {name} {} {}", rng.pick(&OWNERS), rng.pick(&TTLS_MS)),
            7..10 => format!("renew {name} {} {}", token(rng), rng.pick(&TTLS_MS)),
            10..14 => format!("release {name} {}", token(rng)),
            14 => format!("cancel {name} {}", rng.pick(&OWNERS)),
            _ => format!("acquire {name} {}", rng.pick(&["ann", "ann 0", " 1000", "ann 1000 "])),
        }
        .into()
    }

    fn query(number: u64) -> Vec<u8> {
        let mut rng = Rng::from_number(number);
        match rng.below(4) {
            0 => format!("who {}", rng.pick(&NAMES)),
            1 => format!("list {} {}", rng.pick(&["", "db", "db/"]), rng.below(4)),
            2 => format!("waiters {}", rng.pick(&NAMES)),
            _ => rng.pick(&["who", "list  0", "what db"]).to_string(),
        }
        .into()
    }
}

/// A token that may be the one of a lease: small ones come first, and more often.
fn token(rng: &mut Rng) -> u64 {
    let bound = 1 + rng.below(16);
    1 + rng.below(bound)
}

//! Makes up commands and queries for `lockstep test`: few keys and numbers, so that they meet.

use lockstep_guest::{Rng, SelfTest};

use crate::Planted;

const KEYS: [&str; 6] = ["ant", "bee", "cat", "dog", "eel", "fox"];

impl SelfTest for Planted {
    const INDEPENDENT_OF_PACKING: bool = true;

    fn command(number: u64) -> Vec<u8> {
        let mut rng = Rng::from_number(number);
        match rng.below(8) {
            0..3 => format!("set {} {}", rng.pick(&KEYS), rng.below(10)),
            3 => "list".to_owned(),
            4 => "count".to_owned(),
            5 => "sum".to_owned(),
            6 => "price".to_owned(),
            _ => format!("alarm {} {}", rng.pick(&KEYS), rng.below(30_000)),
        }
        .into()
    }

    fn query(number: u64) -> Vec<u8> {
        Rng::from_number(number).pick(&KEYS).as_bytes().to_vec()
    }
}

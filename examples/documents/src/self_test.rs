//! Makes up commands and queries for `lockstep test`: few documents, and patches that mostly fit.

use lockstep_guest::{Rng, SelfTest};

use crate::Documents;

const COLLECTIONS: [&str; 2] = ["people", "towns"];
const IDS: [&str; 3] = ["ann", "bob", "zoë"];
const VALUES: [&str; 6] =
    ["0", "1.50", "\"x\"", "[1,2,2]", "{\"b\":{\"c\":1},\"a\":null}", "-0.1e-7"];
const FILTERS: [&str; 12] = [
    ".",
    ".n?",
    "$id, $rev",
    "[$now, ($now | todate)]",
    "keys?",
    "to_entries? | sort_by(.value) | map(.key)",
    "[.. | numbers] | add",
    "now",
    "limit(3; repeat(1))",
    ". as {n: $n} | $n",
    "with_entries(.value |= tojson)",
    "nosuch(",
];

impl SelfTest for Documents {
    /// Nothing depends on an index, a position or a random number.
    const INDEPENDENT_OF_PACKING: bool = true;

    fn command(number: u64) -> Vec<u8> {
        let mut rng = Rng::from_number(number);
        let rng = &mut rng;
        let (collection, id, n) = (rng.pick(&COLLECTIONS), rng.pick(&IDS), rng.below(9));
        let value = rng.pick(&VALUES);
        match rng.below(16) {
            0..4 => format!("put {collection} {id} {{\"n\":{n},\"v\":{value}}}"),
            4 => format!("put {collection} {id} {value}"),
            5..7 => format!("insert {collection} {id} {{\"n\":{n}}}"),
            7 => patch(
                collection,
                id,
                &format!("{{\"op\":\"add\",\"path\":\"/v\",\"value\":{value}}}"),
            ),
            8 => patch(collection, id, "{\"op\":\"copy\",\"from\":\"\",\"path\":\"/deep\"}"),
            9 => patch(collection, id, "{\"op\":\"move\",\"from\":\"/v\",\"path\":\"/w\"}"),
            10 => {
                let test = format!("{{\"op\":\"test\",\"path\":\"/n\",\"value\":{}}}", n % 2);
                let replace = format!("{{\"op\":\"replace\",\"path\":\"/n\",\"value\":{n}}}");
                patch(collection, id, &format!("{replace},{test},{replace}"))
            }
            11..13 => format!("merge {collection} {id} {{\"v\":{value},\"w\":null}}"),
            13..15 => format!("delete {collection} {id}"),
            _ => rng
                .pick(&["put people ann {", "patch people ann {}", "drop people", "put  ann 1"])
                .to_string(),
        }
        .into()
    }

    fn query(number: u64) -> Vec<u8> {
        let mut rng = Rng::from_number(number);
        let (collection, filter) = (rng.pick(&COLLECTIONS), rng.pick(&FILTERS));
        match rng.below(6) {
            0 => format!("get {collection} {}", rng.pick(&IDS)),
            1 => format!("count {collection}"),
            2 => "collections".to_owned(),
            3 => format!("each {collection} {filter}"),
            4 => format!("all {collection} {filter}"),
            _ => format!("whole {filter}"),
        }
        .into()
    }
}

fn patch(collection: &str, id: &str, operations: &str) -> String {
    format!("patch {collection} {id} [{operations}]")
}

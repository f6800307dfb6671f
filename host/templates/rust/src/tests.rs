//! What the machine promises, tested natively.

use lockstep_guest::testing::{Explore, Harness};

use crate::{Query, Tally};

#[test]
fn counts() {
    let mut tally = Harness::<Tally>::new();
    tally.check(r#"{"add": {"key": "apples", "by": 98}}"#, "ok 98");
    tally.check(r#"{"add": {"key": "pears", "by": 1}}"#, "ok 1");
    tally.check_events(&[]);
    tally.check(r#"{"add": {"key": "apples", "by": 3}}"#, "ok 101");
    tally.check_events(&["hundreds/apples 101"]);
    assert_eq!(tally.ask(Query::Count("apples".to_owned())), Ok(101));
    assert_eq!(tally.ask(Query::Total), Ok(102));
    tally.check(r#"{"reset": {"key": "apples"}}"#, "ok 101");
    tally.check_query(r#"{"count": "apples"}"#, "ok 0");
    // Replays all of it, restores snapshots on the way, and compares everything that can be seen.
    tally.verify();
}

#[test]
fn refuses() {
    let mut tally = Harness::<Tally>::new();
    tally.check(
        r#"{"reset": {"key": "plums"}}"#,
        "rejected nothing was counted for plums",
    );
    tally.apply(r#"{"add": {"key": "plums", "by": 18446744073709551615}}"#);
    let more = r#"{"add": {"key": "plums", "by": 1}}"#;
    tally.check(more, "rejected the count would exceed 64 bits");
    let long = format!(r#"{{"add": {{"key": "{}", "by": 1}}}}"#, "x".repeat(129));
    tally.check(&long, "rejected a key has at most 128 bytes");
    tally.verify();
}

/// Equal counts write equal snapshots, whatever came before.
#[test]
fn the_snapshot_is_canonical() {
    let mut tally = Harness::<Tally>::new();
    let empty = tally.snapshot();
    tally.apply(r#"{"add": {"key": "apples", "by": 1}}"#);
    tally.apply(r#"{"reset": {"key": "apples"}}"#);
    assert_eq!(tally.snapshot(), empty);
}

/// Makes up commands, verifies each sequence, and prints the shortest that fails.
#[test]
fn explored() {
    Explore::<Tally>::new().run();
}

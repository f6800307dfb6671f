//! Queries and snapshots run on a copy: whatever they do, the live guest stays as it was.

use std::io::ErrorKind;

use lockstep_core::fault::FaultClass;
use lockstep_host::guest::{Guest as _, Outcome};

use super::{Disk, at, commands, hostile, load, snapshot, started};

/// Only the query that faults fails: the guest and the next query are not affected.
#[test]
fn a_query_cannot_spoil_the_guest() {
    let mut guest = started(hostile());
    guest.apply(at(2), &commands(&["fill 1000"])).expect("no fault");
    let before = snapshot(&mut guest);
    let deeds = [
        ("panic", FaultClass::Trap),
        ("loop", FaultClass::OutOfFuel),
        ("grow", FaultClass::OutOfMemory),
        ("recurse 1", FaultClass::StackOverflow),
        ("write", FaultClass::Trap),
        ("panic", FaultClass::Trap),
    ];
    for (deed, class) in deeds {
        let fault = guest.query(at(2), deed.as_bytes()).expect_err(deed);
        assert_eq!(fault.class, class, "{deed}: {fault}");
        assert!(guest.is_usable(), "{deed}");
        let answer = guest.query(at(2), b"answer 3").expect("the next one is answered");
        assert_eq!(answer, Ok("aaa".into()), "after {deed}");
    }
    assert_eq!(snapshot(&mut guest), before);
    guest.apply(at(3), &commands(&["nothing"])).expect("it applies");
}

/// What a query writes stays in its copy: no command and no snapshot sees it.
#[test]
fn a_query_cannot_change_the_guest() {
    let mut guest = started(hostile());
    guest.apply(at(2), &commands(&["fill 1000"])).expect("no fault");
    let before = snapshot(&mut guest);
    let bytes = guest.memory_bytes();
    for fill in ["fill 5", "fill 3000000"] {
        guest.query(at(2), fill.as_bytes()).expect("no fault").expect("it has an answer");
        assert_eq!(snapshot(&mut guest), before, "after {fill}");
        assert_eq!(guest.memory_bytes(), bytes, "after {fill}");
    }
}

/// A copy sees every command applied so far, also after the memory has grown.
#[test]
fn a_query_sees_the_last_command() {
    let module = load("kv");
    let mut guest = started(&module);
    let value = "v".repeat(100_000);
    for index in 2..60 {
        let set = format!("set k {value}{index}");
        let more = format!("set k{index} {value}");
        guest.apply(at(index), &commands(&[&set, &more])).expect("no fault");
        let answer = guest.query(at(index), b"get k").expect("no fault").expect("it is there");
        assert!(answer.ends_with(index.to_string().as_bytes()), "at {index}");
        let answer = guest.query(at(index), b"len").expect("no fault").expect("it is there");
        assert_eq!(answer, (index).to_string(), "at {index}");
    }
}

/// Only the snapshot that faults fails: the guest is not affected.
#[test]
fn a_snapshot_cannot_spoil_the_guest() {
    let mut guest = started(hostile());
    for (index, deed) in [(2, "panic"), (3, "grow"), (4, "loop")] {
        let told = format!("snapshot {deed}");
        guest.apply(at(index), &commands(&[&told])).expect("it only takes the order");
        guest.snapshot(&mut std::io::sink()).expect_err(deed);
        assert!(guest.is_usable(), "{deed}");
    }
    let outcomes = guest.apply(at(5), &commands(&["answer 2"])).expect("it applies").outcomes;
    assert_eq!(outcomes, [Outcome::Ok("aa".into())]);
}

/// A snapshot ends at the first write that fails, even if the guest would go on.
#[test]
fn a_snapshot_ends_with_the_first_write_that_fails() {
    let mut guest = started(hostile());
    guest.apply(at(2), &commands(&["snapshot trickle"])).expect("it only takes the order");
    for _ in 0..3 {
        let before = guest.fuel_used();
        let error = guest.snapshot(&mut Disk(0)).expect("no fault").expect_err("it is full");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        let used = guest.fuel_used() - before;
        assert!(used < 1_000_000, "it went on for {used} of fuel");
        assert!(guest.is_usable());
    }
    let outcomes = guest.apply(at(3), &commands(&["answer 2"])).expect("it applies").outcomes;
    assert_eq!(outcomes, [Outcome::Ok("aa".into())]);
}

/// The guests of this repository keep all their state in linear memory, so each can be copied.
#[test]
fn who_remembers_elsewhere_has_no_copy() {
    for name in ["kv", "bank", "counter", "hostile"] {
        assert_eq!(load(name).report().copied, Ok(()), "{name}");
    }
}

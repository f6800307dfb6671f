//! A guest that misbehaves causes a fault of the right class in the right call, never an outcome.

use std::io;

use lockstep_core::fault::{FaultClass, GuestFault};
use lockstep_host::guest::{Guest as _, Outcome};

use super::{
    Disk, at, bootstrap, commands, fresh, header, hostile, made, refusals, snapshot, started,
};

/// What the guest is told to do, the class of its fault, and what the message must contain.
type Deed = (&'static str, FaultClass, &'static str);

/// Misbehaviour that is possible in every call.
const DEEDS: [Deed; 7] = [
    ("panic", FaultClass::Trap, "on purpose"),
    ("loop", FaultClass::OutOfFuel, "used up the fuel"),
    ("grow", FaultClass::OutOfMemory, "bytes of memory, has"),
    ("reserve", FaultClass::OutOfMemory, "more bytes of memory, has"),
    ("pages 2048", FaultClass::OutOfMemory, "134217728 more bytes of memory, has"),
    ("pages 65535", FaultClass::OutOfMemory, "declares a maximum of 4294967296"),
    ("recurse 1", FaultClass::StackOverflow, "call stack exhausted"),
];
const WRITE: Deed = ("write", FaultClass::Trap, "write was called outside of `snapshot`");
const READ: Deed = ("read", FaultClass::Trap, "read was called outside of `restore`");

/// Outcomes of two commands that are not as the world says.
const MALFORMED: [Deed; 15] = [
    ("too-few", FaultClass::Trap, "the guest returned 1 outcomes for 2 commands"),
    ("too-many", FaultClass::Trap, "the guest returned 3 outcomes for 2 commands"),
    ("many-ends 5000", FaultClass::Trap, "5000 outcomes, and an entry has at most 1024 commands"),
    ("descending", FaultClass::Trap, "answer 1 goes from 1 to 0"),
    ("beyond", FaultClass::Trap, "answer 0 goes from 0 to 4294967295, in data of 0 bytes"),
    ("left-over", FaultClass::Trap, "the answers end at 0, in data of 8 bytes"),
    ("rejects-beyond", FaultClass::Trap, "there is no command 2"),
    ("rejects-twice", FaultClass::Trap, "there is no command 0"),
    ("rejects-descending", FaultClass::Trap, "there is no command 0"),
    ("many-rejected 1000000", FaultClass::Trap, "more commands are rejected or omitted than"),
    ("omits-beyond", FaultClass::Trap, "there is no command 2"),
    ("omits-twice", FaultClass::Trap, "there is no command 0"),
    ("omits-descending", FaultClass::Trap, "there is no command 0"),
    ("many-omitted 5000", FaultClass::Trap, "more commands are rejected or omitted than"),
    ("emit-topic 257", FaultClass::Trap, "a topic of 257 bytes, the limit is 256"),
];
/// Events that are too large.
const EVENTS: [Deed; 2] = [
    ("emit 65537", FaultClass::Trap, "a payload of 65537 bytes, the limit is 65536"),
    ("emit-topic 1000000", FaultClass::Trap, "a topic of 1000000 bytes"),
];
const EMIT: Deed = ("emit 1", FaultClass::Trap, "emit was called outside of `apply` and `wake`");
const TIMER: [Deed; 2] = [
    ("wake-at 1", FaultClass::Trap, "the timer was set outside of `init`, `apply` and `wake`"),
    ("cancel", FaultClass::Trap, "the timer was set outside of `init`, `apply` and `wake`"),
];

fn expect(call: &str, deed: Deed, result: Result<(), GuestFault>) {
    let (what, class, says) = deed;
    let fault = match result {
        Ok(()) => panic!("{what} in {call} was no fault"),
        Err(fault) => fault,
    };
    assert_eq!((fault.call, fault.class), (call, class), "{what}: {fault}");
    assert!(fault.message.contains(says), "{what} in {call}: {fault}\nlacks {says:?}");
    assert!(fault.message.len() <= 2048, "{what} in {call}: the message has no bound");
}

#[test]
fn in_init() {
    for deed in DEEDS.into_iter().chain([WRITE, READ, EMIT]) {
        let config = format!("init {}", deed.0);
        expect("init", deed, fresh(hostile()).init(at(1), config.as_bytes()).map(drop));
    }
    let refused = ("fail", FaultClass::Refused, "invalid configuration: I was told to fail");
    expect("init", refused, fresh(hostile()).init(at(1), b"init fail").map(drop));
}

#[test]
fn in_apply() {
    let too_much = ("answer 999999999", FaultClass::OutOfMemory, "may have 67108864");
    for deed in DEEDS.into_iter().chain([WRITE, READ, too_much]).chain(MALFORMED).chain(EVENTS) {
        let mut guest = started(hostile());
        let result = guest.apply(at(7), &commands(&["nothing", deed.0]));
        let fault = result.clone().expect_err(deed.0);
        assert_eq!(fault.index, Some(7));
        expect("apply", deed, result.map(drop));

        let again = guest.apply(at(8), &commands(&["nothing"])).expect_err("it is unusable");
        assert_eq!(again.class, FaultClass::Host, "{again}");
    }
}

#[test]
fn in_wake() {
    for deed in DEEDS.into_iter().chain([WRITE, READ]).chain(EVENTS) {
        let mut guest = started(hostile());
        let order = format!("wake {}", deed.0);
        guest.apply(at(2), &commands(&[&order])).expect("it only takes the order");
        let result = guest.wake(at(7));
        assert_eq!(result.clone().expect_err(deed.0).index, Some(7));
        expect("wake", deed, result.map(drop));
    }
}

#[test]
fn in_digest() {
    let too_long = ("answer 65", FaultClass::Trap, "has 65 bytes, the limit is 64");
    for deed in DEEDS.into_iter().chain([WRITE, READ, EMIT, too_long]).chain(TIMER) {
        let mut guest = started(hostile());
        let order = format!("digest {}", deed.0);
        guest.apply(at(2), &commands(&[&order])).expect("it only takes the order");
        expect("digest", deed, guest.digest().map(drop));
        // Its copy was lost, not the guest.
        guest.apply(at(3), &commands(&["nothing"])).expect("the guest goes on");
    }
}

#[test]
fn in_query() {
    for deed in DEEDS.into_iter().chain([WRITE, READ, EMIT]).chain(TIMER) {
        let mut guest = started(hostile());
        expect("query", deed, guest.query(at(7), deed.0.as_bytes()).map(drop));
    }
}

#[test]
fn in_snapshot() {
    for deed in DEEDS.into_iter().chain([READ, EMIT]).chain(TIMER) {
        let mut guest = started(hostile());
        let order = format!("snapshot {}", deed.0);
        guest.apply(at(2), &commands(&[&order])).expect("it only takes the order");
        expect("snapshot", deed, guest.snapshot(&mut io::sink()).map(drop));
    }
    let mut guest = started(hostile());
    let chunk = ("one-chunk", FaultClass::Trap, "the limit is 4194304");
    guest
        .apply(at(2), &commands(&["fill 5000000", "snapshot chunks 5000000"]))
        .expect("it only takes the order");
    expect("snapshot", chunk, guest.snapshot(&mut io::sink()).map(drop));
}

#[test]
fn in_restore() {
    let bytes = snapshot(&mut started(hostile()));
    for deed in DEEDS.into_iter().chain([WRITE, EMIT]).chain(TIMER) {
        let config = format!("restore {}", deed.0);
        let header = header(hostile(), 9);
        let mut guest = fresh(hostile());
        expect("restore", deed, guest.restore(&header, config.as_bytes(), &mut &bytes[..]));
    }
    let refused = ("short", FaultClass::Refused, "corrupt snapshot: too short");
    let mut guest = fresh(hostile());
    expect("restore", refused, guest.restore(&header(hostile(), 9), b"", &mut &bytes[..3]));
}

/// An input that cannot be read is a failure of the host, not of the guest.
#[test]
fn an_unreadable_snapshot_is_a_host_failure() {
    struct Broken;
    impl io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let broken = ("a broken input", FaultClass::Host, "the disk is gone");
    let mut guest = fresh(hostile());
    expect("restore", broken, guest.restore(&header(hostile(), 9), b"", &mut Broken));
}

/// If the output fails, or the guest reports a failure, the snapshot fails and the guest goes on.
#[test]
fn a_failed_snapshot_leaves_the_guest_alone() {
    let mut guest = started(hostile());
    guest.apply(at(2), &commands(&["fill 1000000"])).expect("no fault");
    for space in [0, 8, 100_000, 999_999] {
        let error = guest.snapshot(&mut Disk(space)).expect("no fault").expect_err("it is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "with {space} bytes free");
    }
    assert_eq!(snapshot(&mut guest).len(), 1_000_008);

    guest.apply(at(3), &commands(&["snapshot fail"])).expect("no fault");
    let error = guest.snapshot(&mut io::sink()).expect("no fault").expect_err("it was told to");
    assert_eq!(error.to_string(), "the guest wrote no snapshot: not today");
    let outcomes =
        guest.apply(at(4), &commands(&["answer 2"])).expect("the guest goes on").outcomes;
    assert_eq!(outcomes, [Outcome::Ok("aa".into())]);
}

/// Memory counts from the first page on: under a limit below its initial memory a guest cannot even
/// be created.
#[test]
fn memory_is_counted_and_limited_from_the_first_page() {
    let mut guest = started(hostile());
    let before = guest.memory_bytes();
    assert!(before > 0);
    guest.apply(at(2), &commands(&["fill 4000000"])).expect("the limit allows it");
    assert!(guest.memory_bytes() >= before + 3_900_000, "{} bytes", guest.memory_bytes());

    let mut narrow = bootstrap(hostile(), "");
    narrow.profile.memory_bytes = 64 << 10;
    let fault = made(hostile(), &narrow).err().expect("a page is not enough");
    assert_eq!((fault.call, fault.class), ("instantiate", FaultClass::OutOfMemory), "{fault}");
}

/// The holes of a heap are not in the snapshot, so where one replica runs out of memory, a restored
/// one may have some left. A replica that runs out stops; no outcome depends on what was refused.
#[test]
fn no_outcome_tells_of_a_refusal() {
    let mut live = started(hostile());
    live.apply(at(2), &commands(&["fragment 500"])).expect("the limit allows it");
    let mut restored = fresh(hostile());
    restored
        .restore(&header(hostile(), 2), b"", &mut &snapshot(&mut live)[..])
        .expect("it is whole");
    assert!(restored.memory_bytes() < live.memory_bytes() / 2, "the restored one has no holes");

    for guest in [&mut live, &mut restored] {
        let fault = guest.apply(at(3), &commands(&["reserve"])).expect_err("memory ends");
        assert_eq!(fault.class, FaultClass::OutOfMemory, "{fault}");
    }
}

/// Growing a memory or a table beyond the maximum that it declares itself is a fault, too, whatever
/// the group's limit, because its size before the call differs between replicas.
#[test]
fn a_maximum_of_its_own_is_no_answer_either() {
    let check = |memory: &str, describe: &str, says: &str| {
        let refused = refusals::shell_refused(memory, describe);
        assert!(refused.contains("out of memory in describe"), "{refused}");
        assert!(refused.contains(says), "{refused}");
    };
    let growth = "(memory.grow (i32.const 2))";
    check("1 2", growth, "131072 more bytes of a memory that has 65536 and declares a maximum");
    check("1", "(memory.grow (i32.const 65536))", "declares a maximum of 4294967296");
    let table = "(table.grow $small (ref.null func) (i32.const 9))";
    check("1", table, "10 elements of a table that declares a maximum of 8");
    let table = "(table.grow $large (ref.null func) (i32.const 2000000))";
    check("1", table, "tables of 2000002 elements and may have 1048576");
}

/// A profile of another version of the engine is refused: the guest might not behave as on other
/// replicas.
#[test]
fn another_engine_is_refused() {
    let mut other = bootstrap(hostile(), "");
    other.profile.engine_major += 1;
    let fault = made(hostile(), &other).err().expect("it is another engine");
    assert_eq!(fault.class, FaultClass::Host, "{fault}");
}

/// A guest may log without end: the host takes a bounded part of it, and it is no fault.
#[test]
fn what_a_guest_says_is_bounded() {
    let mut guest = started(hostile());
    guest.apply(at(2), &commands(&["say 1000000"])).expect("words are no fault");
}

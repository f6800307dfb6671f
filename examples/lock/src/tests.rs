//! Tests of what the crate's documentation says.

mod oracle;

use lockstep_guest::Failure;
use lockstep_guest::testing::{Explore, Harness, START_MS};

use crate::{LOCKS_MAX, Locks, WAITERS_OF_LOCK_MAX, WORD_BYTES_MAX};

/// What is left of a time after the digits that all times of the tests begin with.
fn at(after_start_ms: u64) -> u64 {
    START_MS + after_start_ms
}

#[test]
fn a_lock_has_one_owner() {
    let mut lock = Harness::<Locks>::new();
    lock.check_query("who db", "ok free");
    lock.check("acquire db ann 10000", "ok 1");
    lock.check("acquire other bob 10000", "ok 2");
    lock.check_events(&[
        &format!("lock/db granted ann 1 {}", at(10_000)),
        &format!("lock/other granted bob 2 {}", at(10_000)),
    ]);
    let until = at(10_000);
    let held = format!("rejected lock db is held by ann until {until}");
    lock.check("acquire db bob 10000", &format!("{held}; `wait` queues for it"));
    let itself = format!("lock db is held by ann itself until {until}, with token 1");
    lock.check("acquire db ann 10000", &format!("rejected {itself}"));
    lock.check("wait db ann 10000", &format!("rejected {itself}"));
    lock.check("release db 1", "ok released");
    lock.check("acquire db bob 5000", "ok 3");
    lock.check_events(&["lock/db released ann 1", &format!("lock/db granted bob 3 {}", at(5_000))]);
    lock.check_query("who db", &format!("ok bob 3 {}", at(5_000)));
    lock.verify();
}

/// Whoever waits is granted the lock in turn, for the time that was asked for, from then on.
#[test]
fn waiters_are_granted_in_turn() {
    let mut lock = Harness::<Locks>::new();
    lock.check("wait db ann 10000", "ok granted 1");
    lock.check("wait db bob 2000", "ok waiting 1");
    lock.check("wait db cyd 3000", "ok waiting 2");
    lock.check("wait db dan 4000", "ok waiting 3");
    lock.check("wait db cyd 5000", "ok waiting 2");
    lock.check_query("waiters db", "ok bob 2000\ncyd 5000\ndan 4000\n");
    let held = format!("lock db is held by ann until {}", at(10_000));
    lock.check("acquire db dan 1000", &format!("rejected {held}; dan is waiting at position 3"));
    lock.check("cancel db bob", "ok cancelled");
    lock.check("cancel db bob", "rejected bob does not wait for lock db");
    lock.check("cancel free bob", "rejected bob does not wait for lock free");
    lock.check_query("waiters db", "ok cyd 5000\ndan 4000\n");
    lock.check_events(&[&format!("lock/db granted ann 1 {}", at(10_000))]);

    lock.advance(1_000);
    lock.check("release db 1", "ok released");
    let granted = format!("lock/db granted cyd 2 {}", at(6_000));
    lock.check_events(&["lock/db released ann 1", &granted]);
    let itself = format!("lock db is held by cyd itself until {}, with token 2", at(6_000));
    lock.check("cancel db cyd", &format!("rejected cyd no longer waits: {itself}"));

    lock.advance(5_000);
    lock.check_events(&["lock/db expired cyd 2", &format!("lock/db granted dan 3 {}", at(10_000))]);
    lock.advance(4_000);
    lock.check_events(&["lock/db expired dan 3"]);
    assert_eq!(lock.timer(), None);
    lock.verify();
}

#[test]
fn leases_are_renewed_with_their_token() {
    let mut lock = Harness::<Locks>::new();
    lock.check("acquire db ann 10000", "ok 1");
    lock.advance(9_999);
    lock.check("renew db 1 3000", &format!("ok {}", at(12_999)));
    assert_eq!(lock.timer(), Some(at(12_999)));
    lock.advance(3_000);
    let free = "lock db, which is free";
    lock.check("renew db 1 3000", &format!("rejected token 1 does not hold {free}"));
    lock.check("release db 1", &format!("rejected token 1 does not hold {free}"));
    lock.check("acquire db bob 1000", "ok 2");
    let held = "rejected token 1 does not hold lock db, which is held by bob with token 2";
    lock.check("renew db 1 3000", held);
    lock.check("release db 1", held);
    lock.check_events(&[
        &format!("lock/db granted ann 1 {}", at(10_000)),
        "lock/db expired ann 1",
        &format!("lock/db granted bob 2 {}", at(13_999)),
    ]);
    lock.verify();
}

/// The entry that wakes the machine may be late. No command takes a lease for valid that is over.
#[test]
fn a_late_wake_prolongs_no_lease() {
    let mut lock = Harness::<Locks>::new();
    for name in ["a", "b", "c"] {
        lock.apply(format!("acquire {name} ann 1000"));
    }
    lock.check("wait b bob 1000", "ok waiting 1");
    lock.check_events(&[
        &format!("lock/a granted ann 1 {}", at(1_000)),
        &format!("lock/b granted ann 2 {}", at(1_000)),
        &format!("lock/c granted ann 3 {}", at(1_000)),
    ]);
    lock.at(at(1_500));
    lock.check("renew a 1 1000", "rejected token 1 does not hold lock a, which is free");
    lock.check("acquire a cyd 1000", "ok 4");
    let held = format!("lock b is held by bob until {}", at(2_500));
    lock.check("acquire b cyd 1000", &format!("rejected {held}; `wait` queues for it"));
    lock.check_query("who c", &format!("ok ann 3 {}", at(1_000)));
    lock.check_events(&[
        "lock/a expired ann 1",
        &format!("lock/a granted cyd 4 {}", at(2_500)),
        "lock/b expired ann 2",
        &format!("lock/b granted bob 5 {}", at(2_500)),
    ]);
    lock.advance(0);
    lock.check_events(&["lock/c expired ann 3"]);
    lock.verify();
}

#[test]
fn locks_are_listed() {
    let mut lock = Harness::<Locks>::new();
    for command in ["acquire b/2 x 1000", "acquire a y 1000", "acquire b/1 z 1000", "wait a u 1000"]
    {
        lock.apply(command);
    }
    let until = at(1_000);
    let (a, b1, b2) = (
        format!("a y 2 {until} 1\n"),
        format!("b/1 z 3 {until} 0\n"),
        format!("b/2 x 1 {until} 0\n"),
    );
    lock.check_query("list b/ 10", &format!("ok {b1}{b2}"));
    lock.check_query("list  2", &format!("ok {a}{b1}"));
    lock.check_query("list c 1", "ok ");
    lock.check_query("waiters b/1", "ok ");
    lock.check_query("waiters none", "ok ");
    lock.verify();
}

#[test]
fn malformed_text_is_refused_with_a_sentence() {
    let mut lock = Harness::<Locks>::new();
    lock.check("acquire db ann", "rejected expected `acquire NAME OWNER TTL_MS`");
    lock.check("acquire db ann 1000 ", "rejected expected `acquire NAME OWNER TTL_MS`");
    lock.check("release db", "rejected expected `release NAME TOKEN`");
    let all = "`acquire NAME OWNER TTL_MS`, `wait NAME OWNER TTL_MS`, `renew NAME TOKEN TTL_MS`, \
               `release NAME TOKEN` or `cancel NAME OWNER`";
    lock.check("", &format!("rejected expected {all}"));
    lock.check("steal db ann 1000", &format!("rejected expected {all}"));
    let ttl = "rejected TTL_MS must be a whole number from 1000 to 3600000";
    for bad in ["999", "3600001", "-1", "1s", ""] {
        lock.check(&format!("acquire db ann {bad}"), ttl);
    }
    let token = "rejected TOKEN must be a whole number from 1 to 18446744073709551615";
    lock.check("release db 0", token);
    lock.check("renew db x 1000", token);
    let word = "has at least one character, and no spaces or control characters";
    lock.check("acquire  ann 1000", &format!("rejected a name {word}"));
    lock.check("acquire a\nb ann 1000", &format!("rejected a name {word}"));
    lock.check("wait db  1000", &format!("rejected an owner {word}"));
    let long = "x".repeat(WORD_BYTES_MAX + 1);
    lock.check(&format!("cancel db {long}"), "rejected an owner has 129 bytes; the limit is 128");
    assert_eq!(lock.apply(b"release \xff 1").to_string(), "rejected expected text in UTF-8");

    lock.check_query("who", "rejected expected `who NAME`");
    let limit = "rejected LIMIT must be a whole number from 1 to 1000";
    lock.check_query("list a 0", limit);
    lock.check_query("list a 1001", limit);
    let all = "`who NAME`, `list PREFIX LIMIT` or `waiters NAME`";
    lock.check_query("release db 1", &format!("rejected expected {all}"));
    let refused = Harness::<Locks>::with_config(b"x").err().expect("there is a configuration");
    let why = "invalid configuration: lock has nothing to configure; leave it empty";
    assert_eq!(refused.to_string(), why);
    lock.verify();
}

/// The longest names fit into events.
#[test]
fn names_may_be_long() {
    let mut lock = Harness::<Locks>::new();
    let name = "é".repeat(WORD_BYTES_MAX / 2);
    lock.check(&format!("acquire {name} {name} 1000"), "ok 1");
    lock.check_query(&format!("who {name}"), &format!("ok {name} 1 {}", at(1_000)));
    lock.verify();
}

/// Beyond each limit a command is refused, and nothing changes.
#[test]
fn there_are_limits() {
    let mut lock = Harness::<Locks>::new();
    lock.apply("acquire db ann 3600000");
    for number in 1..=WAITERS_OF_LOCK_MAX {
        lock.check(&format!("wait db w{number} 1000"), &format!("ok waiting {number}"));
    }
    let full = "rejected 100 owners wait for lock db, which is the limit; try later";
    lock.check("wait db bob 1000", full);
    lock.check("wait db w100 2000", "ok waiting 100");
    lock.check("cancel db w1", "ok cancelled");
    lock.check("wait db bob 1000", "ok waiting 100");
    lock.verify();

    // Without the harness's replays, which would take long.
    let mut many = Harness::<Locks>::new();
    let commands: Vec<String> =
        (0..LOCKS_MAX).map(|number| format!("acquire {number} ann 1000")).collect();
    many.apply_entry(&commands);
    let full = "rejected 50000 locks are held, which is the limit; try later";
    many.check("acquire db ann 1000", full);
    many.check("wait db ann 1000", full);
    // A wake ends a thousand leases; the last one comes after 49 more.
    many.advance(1_000);
    assert_eq!(many.machine().held.len(), LOCKS_MAX - 1_000);
    many.check("acquire db ann 1000", "ok 50001");
    many.advance(4_900);
    assert_eq!((many.machine().held.len(), many.timer()), (1, Some(at(2_000))));
}

/// Whatever comes, no lock is held twice, tokens rise, and the timer is at the end of a lease.
#[test]
fn the_oracle_agrees() {
    Explore::<Locks>::new().sequences(100).check(oracle::check).run();
}

/// The bytes of a snapshot depend on the locks, the waiters and the last token alone.
#[test]
fn the_snapshot_is_canonical() {
    let mut there = Harness::<Locks>::new();
    for command in ["acquire b ann 1000", "acquire a bob 2000", "wait b cyd 3000"] {
        there.apply(command);
    }
    let mut back = Harness::<Locks>::new();
    let commands = ["acquire b ann 1000", "acquire a bob 9000", "wait b dan 1", "wait b cyd 9000"];
    for command in commands.into_iter().chain(["renew a 2 2000", "wait b cyd 3000"]) {
        back.apply(command);
    }
    let mut golden = b"\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
    golden.extend(b"\x01\0\0\0a\x03\0\0\0bob\x02\0\0\0\0\0\0\0");
    golden.extend(at(2_000).to_le_bytes());
    golden.extend([0; 8]);
    golden.extend(b"\x01\0\0\0b\x03\0\0\0ann\x01\0\0\0\0\0\0\0");
    golden.extend(at(1_000).to_le_bytes());
    golden.extend(b"\x01\0\0\0\0\0\0\0\x03\0\0\0cyd\xb8\x0b\0\0\0\0\0\0");
    assert_eq!(there.snapshot(), golden);
    assert_eq!(back.snapshot(), golden);
}

/// A snapshot that is cut, lengthened, or is no state that commands lead to, is corrupt.
#[test]
fn a_damaged_snapshot_is_refused() {
    let mut lock = Harness::<Locks>::new();
    for command in ["acquire aa ann 1000", "acquire bb bob 1000", "wait bb cyd 1000"] {
        lock.apply(command);
    }
    let whole = lock.snapshot();
    let check = |bytes: &[u8], expect: &str| {
        let error = lock.restore(bytes).err().expect("it is damaged");
        assert_eq!(error, Failure::Corrupt(expect.to_owned()), "{bytes:?}");
    };
    for length in 0..whole.len() {
        check(&whole[..length], "it ends too early");
    }
    check(&[&whole[..], &[0]].concat(), "bytes are left over at its end");
    let replaced = |from: &[u8], to: &[u8]| {
        let place = whole.windows(from.len()).position(|window| window == from);
        let place = place.expect("it is there");
        [&whole[..place], to, &whole[place + from.len()..]].concat()
    };
    check(&replaced(b"bb", b"aa"), "its locks are out of order");
    check(&replaced(b"bob", b"b b"), "it has a name that is no word");
    check(&replaced(b"bob", b"b\xff\xff"), "it has a name that is no word");
    check(&replaced(b"ann\x01", b"ann\x02"), "it has a token that was not given away, or twice");
    check(&replaced(b"bob\x02", b"bob\x03"), "it has a token that was not given away, or twice");
    check(&replaced(b"cyd", b"bob"), "it has an owner that waits twice for a lock");
    check(&replaced(b"cyd\xe8", b"cyd\xe7"), "it has a lease that is too short or too long");
    check(&[0xff; 64], "a block of 4294967295 bytes exceeds the limit of 128");
}

//! Tests of what the crate's documentation says, line by line.

use lockstep_guest::testing::{Explore, Harness};
use lockstep_guest::{Failure, Outcome};

use crate::{KEY_BYTES_MAX, Kv};

#[test]
fn commands() {
    let mut kv = Harness::<Kv>::new();
    kv.check("set a 1", "ok ");
    kv.check("set a two words", "ok 1");
    kv.check("set a ", "ok two words");
    kv.check("set b  leading space", "ok ");
    kv.check("del a", "ok ");
    kv.check("del b", "ok  leading space");
    kv.check("del b", "ok ");
    kv.check("incr n", "ok 1");
    kv.check("incr n", "ok 2");
    kv.check("cas n 2 forty two", "ok 2");
    kv.check("cas n 2 3", "rejected the key holds another value");
    kv.check("cas m 2 3", "rejected there is no such key");
    kv.check("cas m  first", "ok ");
    kv.check("incr n", "rejected the key does not hold a 64-bit whole number");
    kv.check("set n 9223372036854775807", "ok forty two");
    kv.check("incr n", "rejected the number would exceed 64 bits");
    kv.check_query("len", "ok 2");
    kv.verify();
}

#[test]
fn queries() {
    let mut kv = Harness::<Kv>::new();
    for command in ["set b/1 x", "set b/2 y\\z\n", "set a 1", "set b 0", "set c 1"] {
        kv.apply(command);
    }
    kv.check_query("get b/2", "ok y\\z\n");
    kv.check_query("get nothing", "rejected no key `nothing`");
    kv.check_query("scan b/ 10", "ok b/1 x\nb/2 y\\\\z\\n\n");
    kv.check_query("scan  2", "ok a 1\nb 0\n");
    kv.check_query("scan d 10", "ok ");
    kv.check_query("scan b 0", "ok ");
    kv.check_query("len", "ok 5");
    kv.verify();
}

#[test]
fn malformed_text_is_refused_with_a_sentence() {
    let mut kv = Harness::<Kv>::new();
    kv.check("set", "rejected expected `set K V`");
    kv.check("set k", "rejected expected `set K V`");
    kv.check("set  v", "rejected a key has at least one byte");
    kv.check("set a\tb v", "rejected a key has no spaces and no control characters");
    kv.check("del", "rejected expected `del K`");
    kv.check("del a b", "rejected a key has no spaces and no control characters");
    kv.check("cas k", "rejected expected `cas K OLD NEW`");
    kv.check("cas k old", "rejected expected `cas K OLD NEW`");
    kv.check("incr", "rejected expected `incr K`");
    let verbs = "`set K V`, `del K`, `cas K OLD NEW` or `incr K`";
    kv.check("", &format!("rejected unknown ``; expected {verbs}"));
    kv.check("get a", &format!("rejected unknown `get`; expected {verbs}"));
    kv.check("set\n", &format!("rejected unknown `set\\n`; expected {verbs}"));
    let long = "x".repeat(KEY_BYTES_MAX + 1);
    kv.check(&format!("del {long}"), "rejected a key has 1025 bytes, the limit is 1024");

    kv.check_query("get", "rejected expected `get K`");
    kv.check_query("scan a", "rejected expected `scan PREFIX LIMIT`, LIMIT a number");
    kv.check_query("scan a -1", "rejected expected `scan PREFIX LIMIT`, LIMIT a number");
    kv.check_query("len 1", "rejected expected `len` and nothing after it");
    let verbs = "`get K`, `scan PREFIX LIMIT` or `len`";
    kv.check_query("set a b", &format!("rejected unknown `set`; expected {verbs}"));
    kv.check_query("len", "ok 0");
    assert!(Harness::<Kv>::with_config(b"x").is_err());
    kv.verify();
}

/// Values may be any bytes, and large ones are kept intact.
#[test]
fn values_are_bytes() {
    let mut kv = Harness::<Kv>::new();
    for size in [4 << 10, 300 << 10] {
        let value: Vec<u8> = (0..=255).cycle().take(size).collect();
        let before = kv.query("get k").unwrap_or_default();
        let command = [b"set k ".as_slice(), &value].concat();
        assert_eq!(kv.apply(command), Outcome::Ok(before));
        assert_eq!(kv.query("get k"), Ok(value));
    }
    kv.verify();
}

/// The bytes of a snapshot depend on the pairs alone.
#[test]
fn the_snapshot_is_canonical() {
    let mut there = Harness::<Kv>::new();
    let mut back = Harness::<Kv>::new();
    for command in ["set k1 v", "set k2 w2"] {
        there.apply(command);
    }
    for command in ["set gone 1", "set k2 x", "del gone", "set k1 v", "set k2 w2"] {
        back.apply(command);
    }
    let golden = b"\x02\0\0\0\0\0\0\0\x02\0\0\0k1\x01\0\0\0v\x02\0\0\0k2\x02\0\0\0w2";
    assert_eq!(there.snapshot(), golden);
    assert_eq!(back.snapshot(), golden);
}

/// A snapshot that is truncated, lengthened, or has its keys out of order is corrupt.
#[test]
fn a_damaged_snapshot_is_refused() {
    let mut kv = Harness::<Kv>::new();
    kv.apply("set a 1");
    kv.apply("set b 2");
    let whole = kv.snapshot();
    let mut damaged: Vec<Vec<u8>> =
        (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    damaged.push([whole.as_slice(), &[0]].concat());
    damaged.push(whole.iter().map(|&byte| if byte == b'b' { b'a' } else { byte }).collect());
    damaged.push(vec![0xff; 64]);
    for bytes in damaged {
        let error = kv.restore(&bytes).err().expect("it is damaged");
        assert!(matches!(error, Failure::Corrupt(_)), "{bytes:?}: {error}");
    }
}

/// Whatever is sent, a replica that replays or restores does the same.
#[test]
fn whatever_is_sent_replicas_agree() {
    Explore::<Kv>::new()
        .commands(|rng| {
            let (key, value) = (rng.below(4), rng.below(3));
            match rng.below(5) {
                0 => format!("set {key} {value}"),
                1 => format!("del {key}"),
                2 => format!("cas {key} {} {value}", rng.below(3)),
                3 => format!("cas {key}  {value}"),
                _ => format!("incr {key}"),
            }
            .into()
        })
        .queries(|rng| format!("scan  {}", rng.below(5)).into())
        .run();
}

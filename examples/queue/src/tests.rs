//! Tests of what the crate's documentation says.

mod model;

use lockstep_guest::testing::{Explore, Harness, START_MS};
use lockstep_guest::{Failure, OUTCOME_BYTES_MAX, Outcome};

use crate::{BODY_BYTES_MAX, MESSAGES_OF_QUEUE_MAX, QUEUES_MAX, Queues, WORD_BYTES_MAX};

fn at(after_start_ms: u64) -> u64 {
    START_MS + after_start_ms
}

/// Queues in which a message is dead after two deliveries.
fn impatient() -> Harness<Queues> {
    Harness::with_config(b"max-attempts 2").expect("it is a configuration")
}

#[test]
fn messages_come_as_sent_and_are_gone_when_acked() {
    let mut queue = Harness::<Queues>::new();
    queue.check("send jobs one", "ok 1");
    queue.check("send jobs two words", "ok 2");
    queue.check("send jobs ", "ok 3");
    queue.check("send other x", "ok 4");
    queue.check_events(&["queue/jobs ready 1", "queue/other ready 1"]);
    queue.check("receive jobs ann 5000", "ok 1 1 1 3\none\n");
    queue.check("receive jobs bob 5000 10", "ok 2 2 1 9\ntwo words\n3 3 1 0\n\n");
    queue.check("receive jobs bob 5000 10", "ok ");
    queue.check("receive none bob 5000", "ok ");
    let (ann, bob) = (format!("1 1 1 ann {}", at(5_000)), format!("bob {}", at(5_000)));
    queue.check_query("in-flight jobs 2", &format!("ok {ann}\n2 2 1 {bob}\n"));
    queue.check("ack jobs 2", "ok 2");
    queue.check("ack jobs 1", "ok 1");
    queue.check("ack jobs 3", "ok 3");
    assert_eq!(queue.timer(), None);
    queue.check("send jobs again", "ok 5");
    queue.check_events(&["queue/jobs ready 1"]);
    let stats =
        "ready 1\nin-flight 0\ndead 0\nbytes 5\nsent 4\nacked 3\ndiscarded 0\nredelivered 0\n";
    queue.check_query("stats jobs", &format!("ok {stats}"));
    queue.verify();
}

/// A message whose visibility passes is ready again, at its old place; its receipt is void.
#[test]
fn the_timer_redelivers() {
    let mut queue = Harness::<Queues>::new();
    for body in ["a", "b", "c"] {
        queue.apply(format!("send jobs {body}"));
    }
    queue.check("receive jobs ann 1000 2", "ok 1 1 1 1\na\n2 2 1 1\nb\n");
    queue.check("receive jobs ann 9000", "ok 3 3 1 1\nc\n");
    queue.check("extend jobs 2 4000", &format!("ok {}", at(4_000)));
    queue.check_events(&["queue/jobs ready 1"]);
    queue.advance(999);
    queue.check_events(&[]);
    queue.advance(1);
    queue.check_events(&["queue/jobs ready 1"]);
    let void = "it was settled, or its visibility has passed; receive it again";
    for command in ["ack jobs 1", "nack jobs 1", "extend jobs 1 1000"] {
        let why = "nothing of queue jobs is in flight with receipt 1";
        queue.check(command, &format!("rejected {why}: {void}"));
    }
    queue.apply("send jobs d");
    queue.check("receive jobs bob 60000 2", "ok 1 4 2 1\na\n4 5 1 1\nd\n");
    queue.advance(8_000);
    queue.check_events(&["queue/jobs ready 1"]);
    queue.check_query("peek jobs 10", "ok 2 1 1\nb\n3 1 1\nc\n");
    let stats =
        "ready 2\nin-flight 2\ndead 0\nbytes 4\nsent 4\nacked 0\ndiscarded 0\nredelivered 1\n";
    queue.check_query("stats jobs", &format!("ok {stats}"));
    queue.verify();
}

/// The entry that takes messages back may be late. Until then their receipts are good.
#[test]
fn a_late_ack_counts_if_nobody_was_woken_yet() {
    let mut queue = Harness::<Queues>::new();
    for body in ["a", "b", "c"] {
        queue.apply(format!("send jobs {body}"));
    }
    queue.check("receive jobs ann 1000 3", "ok 1 1 1 1\na\n2 2 1 1\nb\n3 3 1 1\nc\n");
    queue.at(at(1_100));
    queue.check("ack jobs 1", "ok 1");
    queue.check("extend jobs 2 1000", &format!("ok {}", at(2_100)));
    queue.check("receive jobs bob 1000", "ok ");
    queue.check_events(&["queue/jobs ready 1"]);
    queue.advance(0);
    queue.check_events(&["queue/jobs ready 1"]);
    queue.check_query("peek jobs 9", "ok 3 1 1\nc\n");
    queue.verify();
}

#[test]
fn what_is_delivered_in_vain_dies() {
    let mut queue = impatient();
    queue.check("send jobs a", "ok 1");
    queue.check("send jobs b", "ok 2");
    queue.check("receive jobs ann 1000", "ok 1 1 1 1\na\n");
    queue.check("nack jobs 1", "ok ready");
    queue.check("receive jobs ann 1000", "ok 1 2 2 1\na\n");
    queue.check("nack jobs 2", "ok dead");
    queue.check_events(&["queue/jobs ready 1", "queue/jobs dead 1"]);
    queue.check("receive jobs ann 1000", "ok 2 3 1 1\nb\n");
    queue.advance(1_000);
    queue.check("receive jobs ann 1000", "ok 2 4 2 1\nb\n");
    queue.advance(1_000);
    queue.check_events(&["queue/jobs ready 1", "queue/jobs dead 2"]);
    queue.check_query("dead jobs 9", "ok 1 2 1\na\n2 2 1\nb\n");
    queue.check_query("queues  9", "ok jobs 0 0 2\n");

    queue.check("redrive jobs 2", "ok ready");
    queue.check_events(&["queue/jobs ready 1"]);
    queue.check("receive jobs ann 1000", "ok 2 5 1 1\nb\n");
    let dead = "is not among the dead ones of queue jobs";
    queue.check("redrive jobs 2", &format!("rejected message 2 {dead}"));
    queue.check("discard jobs 2", &format!("rejected message 2 {dead}"));
    let empty = "rejected queue jobs is not empty, it has";
    let way_out = "ack what can be received, and discard what is dead";
    queue.check("delete jobs", &format!("{empty} 2 messages; {way_out}"));
    queue.check("discard jobs 1", "ok discarded");
    queue.check("delete jobs", &format!("{empty} 1 messages; {way_out}"));
    queue.check("ack jobs 5", "ok 2");
    let stats =
        "ready 0\nin-flight 0\ndead 0\nbytes 0\nsent 2\nacked 1\ndiscarded 1\nredelivered 2\n";
    queue.check_query("stats jobs", &format!("ok {stats}"));
    queue.check("delete jobs", "ok deleted");
    let none = "rejected there is no queue jobs; the first `send` makes it";
    for command in ["delete jobs", "redrive jobs 1", "discard jobs 1"] {
        queue.check(command, none);
    }
    queue.check_query("stats jobs", none);
    queue.verify();
}

/// A receipt is that of one queue.
#[test]
fn queues_are_apart() {
    let mut queue = Harness::<Queues>::new();
    for command in ["send a/1 x", "send b y", "send a/2 z", "receive a/1 ann 1000"] {
        queue.apply(command);
    }
    let void = "it was settled, or its visibility has passed; receive it again";
    let why = "nothing of queue b is in flight with receipt 1";
    queue.check("ack b 1", &format!("rejected {why}: {void}"));
    queue.check_query("queues a/ 9", "ok a/1 0 1 0\na/2 1 0 0\n");
    queue.check_query("queues  2", "ok a/1 0 1 0\na/2 1 0 0\n");
    queue.check_query("in-flight b 9", "ok ");
    queue.check_query("peek none 9", "ok ");
    queue.verify();
}

/// Bodies are any bytes, and an answer holds as many messages as fit, at least one.
#[test]
fn bodies_are_bytes() {
    let mut queue = Harness::<Queues>::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(BODY_BYTES_MAX).collect();
    for _ in 0..2 {
        queue.apply([b"send jobs ", &bytes[..]].concat());
    }
    queue.apply([b"send jobs ", &bytes[..OUTCOME_BYTES_MAX / 2]].concat());
    queue.apply([b"send jobs ", &bytes[..99]].concat());
    let long = [b"send jobs x", &bytes[..]].concat();
    let why = format!("rejected a body has {} bytes; the limit is 65451", BODY_BYTES_MAX + 1);
    assert_eq!(queue.apply(long).to_string(), why);
    for receipt in 1..=2 {
        let header = format!("{receipt} {receipt} 1 {BODY_BYTES_MAX}\n");
        let expect = [header.as_bytes(), &bytes, b"\n"].concat();
        assert_eq!(queue.apply("receive jobs ann 1000 5"), Outcome::Ok(expect));
    }
    let expect = [b"3 3 1 32768\n", &bytes[..32_768], b"\n4 4 1 99\n", &bytes[..99], b"\n"];
    assert_eq!(queue.apply("receive jobs ann 1000 5"), Outcome::Ok(expect.concat()));
    queue.advance(1_000);
    let peeked = queue.query("peek jobs 1000").expect("it is a query");
    assert_eq!(peeked.len(), 2 * (BODY_BYTES_MAX + 11) + 32_768 + 11 + 99 + 8);
    queue.verify();
}

#[test]
fn malformed_text_is_refused_with_a_sentence() {
    let mut queue = Harness::<Queues>::new();
    queue.check("send", "rejected expected `send QUEUE BODY`");
    queue.check("send jobs", "rejected expected `send QUEUE BODY`");
    let receive = "rejected expected `receive QUEUE CONSUMER VISIBILITY_MS [MAX]`";
    queue.check("receive jobs ann", receive);
    queue.check("receive jobs ann 1000 1 ", receive);
    queue.check("ack jobs", "rejected expected `ack QUEUE RECEIPT`");
    let all = "`send QUEUE BODY`, `receive QUEUE CONSUMER VISIBILITY_MS [MAX]`, \
               `ack QUEUE RECEIPT`, `nack QUEUE RECEIPT`, `extend QUEUE RECEIPT MS`, \
               `redrive QUEUE ID`, `discard QUEUE ID` or `delete QUEUE`";
    queue.check("", &format!("rejected expected {all}"));
    queue.check("purge jobs", &format!("rejected expected {all}"));
    let name = "has a name of at least one character, without spaces or control characters";
    queue.check("send  x", &format!("rejected a queue {name}"));
    queue.check("send a\tb x", &format!("rejected a queue {name}"));
    queue.check("receive jobs  1000", &format!("rejected a consumer {name}"));
    let long = "x".repeat(WORD_BYTES_MAX + 1);
    let why = "rejected a queue has a name of 129 bytes; the limit is 128";
    queue.check(&format!("send {long} x"), why);
    let visibility = "must be a whole number from 1000 to 43200000";
    queue.check("receive jobs ann 999", &format!("rejected VISIBILITY_MS {visibility}"));
    queue.check("extend jobs 1 43200001", &format!("rejected MS {visibility}"));
    queue.check("receive jobs ann 1000 0", "rejected MAX must be a whole number from 1 to 100");
    let number = "must be a whole number from 1 to 18446744073709551615";
    queue.check("nack jobs x", &format!("rejected RECEIPT {number}"));
    queue.check("redrive jobs 0", &format!("rejected ID {number}"));
    assert_eq!(queue.apply(b"send \xff x").to_string(), "rejected a queue has a name in UTF-8");
    assert_eq!(queue.apply(b"ack \xff 1").to_string(), "rejected expected text in UTF-8");

    queue.check_query("peek jobs", "rejected expected `peek QUEUE LIMIT`");
    queue.check_query("dead jobs 0", "rejected LIMIT must be a whole number from 1 to 1000");
    let all = "`stats QUEUE`, `queues PREFIX LIMIT`, `peek QUEUE LIMIT`, `dead QUEUE LIMIT` or \
               `in-flight QUEUE LIMIT`";
    queue.check_query("receive jobs", &format!("rejected expected {all}"));
    queue.verify();
}

#[test]
fn the_configuration_is_a_number_of_attempts() {
    for config in ["", "max-attempts 1", "max-attempts 1000"] {
        Harness::<Queues>::with_config(config.as_bytes()).expect("it is a configuration").verify();
    }
    let check = |config: &str, expect: &str| {
        let failure = Harness::<Queues>::with_config(config.as_bytes()).err().expect("it is none");
        assert_eq!(failure.to_string(), format!("invalid configuration: {expect}"));
    };
    check("attempts 3", "expected nothing or `max-attempts N`");
    check("max-attempts 3\n", "max-attempts must be a whole number from 1 to 1000");
    check("max-attempts 0", "max-attempts must be a whole number from 1 to 1000");
}

/// Beyond each limit a command is refused, and nothing changes. Without the harness's replays, which
/// would take long.
#[test]
fn there_are_limits() {
    let mut queue = Harness::<Queues>::new();
    queue.apply_entry(&["send jobs x"; MESSAGES_OF_QUEUE_MAX]);
    let way_out = "receive and ack, discard dead ones, or try later";
    let limit = "which is the limit";
    let full = format!("rejected queue jobs has 20000 messages, {limit}; {way_out}");
    queue.check("send jobs x", &full);
    queue.apply("receive jobs ann 1000");
    queue.check("send jobs x", &full);
    queue.check("ack jobs 1", "ok 1");
    queue.check("send jobs x", "ok 20001");

    for other in 1..5 {
        let send = format!("send jobs{other} x");
        queue.apply_entry(&[send.as_str(); MESSAGES_OF_QUEUE_MAX]);
    }
    let full = format!("rejected all queues have 100000 messages, {limit}; {way_out}");
    queue.check("send more x", &full);

    // A wake takes back a thousand of the messages; the last ones come after nine more.
    queue.apply_entry(&["receive jobs ann 1000 100"; 100]);
    queue.advance(1_000);
    queue.check_query("queues jobs 1", "ok jobs 11000 9000 0\n");
    queue.advance(900);
    queue.check_query("queues jobs 1", "ok jobs 20000 0 0\n");

    let mut many = Harness::<Queues>::new();
    let sends: Vec<String> = (0..QUEUES_MAX).map(|number| format!("send {number} x")).collect();
    many.apply_entry(&sends);
    let full = "rejected there are 1000 queues, which is the limit; delete one that is empty";
    many.check("send more x", full);
    many.check("send 0 x", "ok 1001");
}

/// Whatever comes, messages are where a model of what clients see has them.
#[test]
fn the_model_agrees() {
    Explore::<Queues>::new().sequences(100).check(|queue| model::check(queue, 5)).run();
    let impatient = Explore::<Queues>::new().config(b"max-attempts 1").sequences(20);
    impatient.check(|queue| model::check(queue, 1)).run();
}

/// The bytes of a snapshot depend on what is in the queues, and on what was given away and counted.
#[test]
fn the_snapshot_is_canonical() {
    let commands = [
        "send b x",
        "send a y",
        "send a zz",
        "send a w",
        "receive a ann 1000",
        "nack a 1",
        "receive a ann 1000",
        "nack a 2",
        "receive a ann 3000",
    ];
    let (mut there, mut back) = (impatient(), impatient());
    for command in commands {
        there.apply(command);
        back.apply(command);
        back.apply("extend a 3 9000");
    }
    back.apply("extend a 3 3000");

    let number = |number: u64| number.to_le_bytes();
    let block = |bytes: &[u8]| [&[bytes.len() as u8, 0, 0, 0], bytes].concat();
    let message =
        |id, attempts, body: &[u8]| [&number(id)[..], &number(attempts), &block(body)].concat();
    let mut golden = [number(4), number(3), number(2)].concat();
    golden.extend([block(b"a"), [number(3), number(0), number(0), number(1)].concat()].concat());
    golden.extend([&number(1)[..], &message(4, 0, b"w")].concat());
    golden.extend([&number(1)[..], &message(2, 2, b"y")].concat());
    golden.extend([block(b"b"), [number(1), number(0), number(0), number(0)].concat()].concat());
    golden.extend([&number(1)[..], &message(1, 0, b"x"), &number(0)].concat());
    golden.extend([number(1), number(3), number(at(3_000))].concat());
    golden.extend([block(b"a"), block(b"ann"), message(3, 1, b"zz")].concat());
    assert_eq!(there.snapshot(), golden);
    assert_eq!(back.snapshot(), golden);
}

/// A snapshot that is cut, lengthened, or is no state that commands lead to, is corrupt.
#[test]
fn a_damaged_snapshot_is_refused() {
    let mut queue = Harness::<Queues>::new();
    let commands = [
        "send aa r",
        "send aa s",
        "send bb t",
        "send bb u",
        "receive bb cc 1000",
        "receive bb cc 1000",
    ];
    for command in commands {
        queue.apply(command);
    }
    let whole = queue.snapshot();
    let check = |bytes: &[u8], expect: &str| {
        let error = queue.restore(bytes).err().expect("it is damaged");
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
    let id = |id: u64, body: &[u8]| [&id.to_le_bytes()[..], &[0; 8], &[1, 0, 0, 0], body].concat();
    check(&replaced(b"\x02\0\0\0aa", b"\x02\0\0\0bb"), "its queues are out of order");
    check(&replaced(b"\x02\0\0\0aa", b"\x02\0\0\0a "), "it has a name that is no word");
    check(&replaced(&id(2, b"s"), &id(1, b"s")), "it has an ID that was not given away, or twice");
    check(&replaced(&id(2, b"s"), &id(5, b"s")), "it has an ID that was not given away, or twice");
    let swapped = [id(2, b"r"), id(1, b"s")].concat();
    let both = [id(1, b"r"), id(2, b"s")].concat();
    check(&replaced(&both, &swapped), "its messages are out of order");
    let counts = "its counts and its messages do not add up";
    check(&replaced(b"aa\x02", b"aa\x03"), counts);
    check(&replaced(b"bb\x02\0\0\0cc", b"aa\x02\0\0\0cc"), counts);
    check(
        &replaced(b"bb\x02\0\0\0cc", b"ba\x02\0\0\0cc"),
        "it has a message of a queue that it does not have",
    );
    let receipt = |receipt: u64| [receipt.to_le_bytes(), at(1_000).to_le_bytes()].concat();
    for (from, to) in [(1, 0), (1, 2), (2, 1), (2, 3)] {
        let why = "its receipts are out of order, or were not given away";
        check(&replaced(&receipt(from), &receipt(to)), why);
    }
    check(&[0xff; 64], "a block of 4294967295 bytes exceeds the limit of 128");
}

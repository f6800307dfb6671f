//! Tests of what the crate's documentation says.

use lockstep_guest::testing::{Explore, Harness};
use lockstep_guest::{Failure, Outcome};

use crate::{
    ANSWER_BYTES_MAX, DEPTH_MAX, DOCUMENT_BYTES_MAX, Documents, FILTER_BYTES_MAX, NAME_BYTES_MAX,
    OPERATIONS_MAX, filter::REASON_CHARS_MAX,
};

/// Two people and a town.
fn some() -> Harness<Documents> {
    let mut documents = Harness::new();
    documents.check(r#"put people bob {"name":"Bob","age":40,"town":"ulm"}"#, "ok 1");
    documents.check(r#"put people ann {"name":"Ann","age":31.50,"town":"ulm"}"#, "ok 1");
    documents.check(r#"insert towns ulm {"name":"Ulm","tags":[]}"#, "ok 1");
    documents
}

#[test]
fn documents_are_written_and_read() {
    let mut documents = some();
    documents.check_query("get people ann", r#"ok {"age":31.5,"name":"Ann","town":"ulm"}"#);
    documents.check("put people ann [1, 2]", "ok 2");
    documents.check_query("get people ann", "ok [1,2]");
    documents.check("insert people ann 1", "rejected there is a document ann in people already");
    documents.check_query("count people", "ok 2\n");
    documents.check_query("collections", "ok people 2 41\ntowns 1 24\n");
    documents.check("delete people ann", "ok deleted");
    documents.check("delete people ann", "rejected there is no document ann in people");
    documents.check_query("get people ann", "rejected there is no document ann in people");
    documents.check("delete towns ulm", "ok deleted");
    documents.check_query("collections", "ok people 1 36\n");
    documents.check("insert people ann 1", "ok 1");
    documents.check_events(&[
        "documents/people/bob put 1",
        "documents/people/ann put 1",
        "documents/towns/ulm put 1",
        "documents/people/ann put 2",
        "documents/people/ann delete",
        "documents/towns/ulm delete",
        "documents/people/ann put 1",
    ]);
    documents.verify();
}

/// All operations of a patch are done, or none.
#[test]
fn patches_are_atomic() {
    let mut documents = some();
    let add = r#"{"op":"add","path":"/tags/-","value":"old"}"#;
    documents.check(&format!("patch towns ulm [{add},{add}]"), "ok 2");
    documents.check_query("get towns ulm", r#"ok {"name":"Ulm","tags":["old","old"]}"#);
    let test = r#"{"op":"test","path":"/name","value":"Bonn"}"#;
    let before = documents.snapshot();
    documents.check(
        &format!("patch towns ulm [{add},{test}]"),
        "rejected operation 2: value did not match",
    );
    documents.check(
        r#"patch towns ulm [{"op":"remove","path":"/a/b"}]"#,
        "rejected operation 1: path is invalid",
    );
    assert!(documents.snapshot() == before, "a rejected command changed something");
    documents.check(r#"merge towns ulm {"tags":null,"river":{"name":"Donau"}}"#, "ok 3");
    documents.check_query("get towns ulm", r#"ok {"name":"Ulm","river":{"name":"Donau"}}"#);
    documents.check("merge towns bonn {}", "rejected there is no document bonn in towns");
    documents.verify();
}

#[test]
fn filters_answer() {
    let documents = some();
    documents.check_query("each people select(.age > 35) | .name", "ok \"Bob\"\n");
    documents.check_query("each people [$id, $rev]", "ok [\"ann\",1]\n[\"bob\",1]\n");
    documents.check_query("all people keys", "ok [\"ann\",\"bob\"]\n");
    documents.check_query("all people map(.age) | add", "ok 71.5\n");
    let join = ".towns as $t | .people[] | {name, town: $t[.town].name}";
    let joined = "{\"name\":\"Ann\",\"town\":\"Ulm\"}\n{\"name\":\"Bob\",\"town\":\"Ulm\"}\n";
    documents.check_query(&format!("whole {join}"), &format!("ok {joined}"));
    documents.check_query("each none .", "ok ");
    documents.check_query("all none .", "ok {}\n");
    documents.check_query("all people $now | todate", "ok \"2023-11-14T22:13:20Z\"\n");
    documents.check_query("all none \"b\\(1)\" | test(\"^b[0-9]$\")", "ok true\n");
    documents.verify();
}

/// What a filter must not do, and what is wrong with it, is said in a sentence.
#[test]
fn filters_are_refused() {
    let documents = some();
    let check = |filter: &str, why: &str| {
        documents.check_query(&format!("all people {filter}"), &format!("rejected {why}"));
    };
    let clock = "the filter failed: `now` differs between replicas; the log's time is `$now`";
    check("now", clock);
    check("{a: (now | todate)}", clock);
    let zone = "replicas have no common time zone; use `gmtime` or `strftime`";
    check("0 | localtime", &format!("the filter failed: {zone}"));
    check("env", "the filter failed: `env` differs between replicas, and is not there");
    check("$ENV", "the filter uses an undefined variable $ENV");
    check("halt", "the filter failed: `halt` would end the query; use `error`");
    let debug = "a query writes nothing but its answer; leave `debug` out";
    check("debug", &format!("the filter failed: {debug}"));
    check("input", "the filter uses an undefined filter input");
    check("nosuch", "the filter uses an undefined filter nosuch");
    check(".a.", "the filter cannot be read: it ends where key is expected");
    check("(1", "the filter cannot be read: it ends where closing parenthesis is expected");
    check("import \"a\" as a; 1", "the filter cannot be read: there is no module a");
    check(".ann.name + 1", "the filter failed: cannot calculate \"Ann\" + 1");
    check("error(\"no\")", "the filter failed: no");
    check("error([1])", "the filter failed: [1]");
    check("error(\"x\" * 999)", &format!("the filter failed: {}", "x".repeat(REASON_CHARS_MAX)));
    check("break $x", "the filter uses an undefined label $x");
    check("", &format!("a filter has 1 to {FILTER_BYTES_MAX} bytes"));
    check(&"[".repeat(65), "brackets in a filter may be nested 64 deep");
    let long = format!("the answer would have more than {ANSWER_BYTES_MAX} bytes");
    check("repeat(1)", &format!("{long}; select less, or use `limit` or `first`"));
    documents.verify();
}

#[test]
fn commands_are_refused() {
    let mut documents = some();
    let before = documents.snapshot();
    let mut check = |command: &str, why: &str| {
        documents.check(command, &format!("rejected {why}"));
    };
    let known = "there are put, insert, patch, merge and delete";
    check("drop people", &format!("no command \"drop\"; {known}"));
    check("put people", "no JSON: EOF while parsing a value at line 1 column 0");
    check("put  a 1", "the collection is missing; words have exactly one space between them");
    check("put people a {", "no JSON: EOF while parsing an object at line 1 column 1");
    check("put people a 1e999", "no JSON: number out of range at line 1 column 5");
    check("delete people ann now", "`delete COLLECTION ID` has nothing behind the ID");
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    let rule = format!("has to have at most {NAME_BYTES_MAX} bytes and no control character");
    check(&format!("put {long} a 1"), &format!("the collection {rule}"));
    check("put people a\tb 1", &format!("the ID {rule}"));
    let deep = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let too_deep = format!("the document would be nested more than {DEPTH_MAX} deep");
    check(&format!("put people a {}", deep(DEPTH_MAX + 1)), &too_deep);
    let text = "x".repeat(DOCUMENT_BYTES_MAX - 1);
    let bytes = format!("the document would have {} bytes", DOCUMENT_BYTES_MAX + 1);
    check(&format!("put people a \"{text}\""), &format!("{bytes}; {DOCUMENT_BYTES_MAX} may be"));
    let operations = OPERATIONS_MAX + 1;
    let remove = vec![r#"{"op":"remove","path":"/a"}"#; operations].join(",");
    let too_many = format!("{operations} operations; at most {OPERATIONS_MAX} are allowed");
    check(&format!("patch people ann [{remove}]"), &too_many);
    let copy = r#"{"op":"copy","from":"","path":"/a"}"#;
    let once = "a patch may `copy` once, for each could double the document";
    check(&format!("patch people ann [{copy},{copy}]"), once);
    assert!(documents.snapshot() == before, "a rejected command changed something");
    documents.check(&format!("put people a {}", deep(DEPTH_MAX)), "ok 1");
    documents.verify();
}

/// Golden bytes: sorted keys, names in order.
#[test]
fn snapshots_are_canonical() {
    let mut documents = Harness::<Documents>::new();
    documents.check(r#"put b z {"z":1,"a":{"y":2,"x":[ ]}}"#, "ok 1");
    documents.check("put a k 0", "ok 1");
    let mut golden = Vec::new();
    for (collection, id, json) in [("a", "k", "0"), ("b", "z", r#"{"a":{"x":[],"y":2},"z":1}"#)] {
        golden.extend([1, 0, 0, 0, collection.as_bytes()[0], 1, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([1, 0, 0, 0, id.as_bytes()[0], 1, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([json.len() as u8, 0, 0, 0]);
        golden.extend(json.as_bytes());
    }
    golden.splice(0..0, [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(documents.snapshot(), golden);
    golden[12] = b'c';
    let why = documents.restore(&golden).expect_err("c comes after b");
    assert_eq!(why, Failure::Corrupt("b is out of order".to_owned()));
    documents.verify();
}

#[test]
fn there_is_nothing_to_configure() {
    let refused = Harness::<Documents>::with_config(b"x").err().expect("there is something");
    let why = "invalid configuration: documents has nothing to configure; leave it empty";
    assert_eq!(refused.to_string(), why);
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let documents = some();
    let whole = documents.snapshot();
    let mut damaged: Vec<Vec<u8>> =
        (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    damaged.push([whole.as_slice(), &[0]].concat());
    let document = |id: &str, rev: u64| {
        let id = [&(id.len() as u32).to_le_bytes(), id.as_bytes()].concat();
        [id, rev.to_le_bytes().to_vec(), vec![1, 0, 0, 0, b'0']].concat()
    };
    let collection = |name: &str, documents: &[&[u8]]| {
        let name = [&(name.len() as u32).to_le_bytes(), name.as_bytes()].concat();
        [name, (documents.len() as u64).to_le_bytes().to_vec(), documents.concat()].concat()
    };
    let all = |collections: &[Vec<u8>]| {
        [(collections.len() as u64).to_le_bytes().to_vec(), collections.concat()].concat()
    };
    let (k, l) = (&document("k", 1)[..], &document("l", 1)[..]);
    documents.restore(&all(&[collection("a", &[k, l])])).expect("it is whole");
    damaged.push(all(&[collection("a", &[k]), collection("a", &[l])]));
    damaged.push(all(&[collection("a", &[l, k])]));
    damaged.push(all(&[collection("a", &[k, k])]));
    damaged.push(all(&[collection("a", &[])]));
    damaged.push(all(&[collection("a", &[&document("k", 0)])]));
    for name in ["", "a b", "a\n", &"x".repeat(NAME_BYTES_MAX + 1)] {
        damaged.push(all(&[collection(name, &[k])]));
        damaged.push(all(&[collection("a", &[&document(name, 1)])]));
    }
    for bytes in damaged {
        let error = documents.restore(&bytes).expect_err("it is damaged");
        assert!(matches!(error, Failure::Corrupt(_)), "{bytes:?}: {error}");
    }
}

#[test]
fn made_up_commands_keep_the_contract() {
    Explore::<Documents>::new().sequences(30).run();
}

/// A document of the greatest length is still an answer.
#[test]
fn the_longest_document_is_read() {
    let mut documents = Harness::<Documents>::new();
    let json = format!("\"{}\"", "x".repeat(DOCUMENT_BYTES_MAX - 2));
    assert_eq!(documents.apply(format!("put a b {json}")), Outcome::ok("1"));
    documents.check_query("get a b", &format!("ok {json}"));
    documents.verify();
}

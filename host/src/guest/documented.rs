//! Tests that the table of limits in docs/plugins.md says what the code does.

use std::ops::RangeInclusive;

use lockstep_core::entry::Profile;
use lockstep_core::limits as core;

use super::{check, copy, engine, imports, log, world};
use crate::config::{clients, guest};
use crate::group::askers;
use crate::rpc;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Shows bytes in the largest unit that leaves a whole number.
fn size(bytes: impl TryInto<u64>) -> String {
    let bytes = bytes.try_into().unwrap_or(u64::MAX);
    match bytes {
        _ if bytes.is_multiple_of(KIB * MIB) => format!("{} GiB", bytes / (KIB * MIB)),
        _ if bytes.is_multiple_of(MIB) => format!("{} MiB", bytes / MIB),
        _ if bytes.is_multiple_of(KIB) => format!("{} KiB", bytes / KIB),
        _ => format!("{bytes} bytes"),
    }
}

/// Shows a number with a comma between each three digits.
fn count(number: impl TryInto<u64>) -> String {
    let digits = number.try_into().unwrap_or(u64::MAX).to_string();
    let threes: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|three| str::from_utf8(three).expect("digits"))
        .collect();
    threes.join(",")
}

/// Shows fuel as a digit times a power of ten.
fn fuel(fuel: u64) -> String {
    let power = fuel.ilog10();
    let digits = "⁰¹²³⁴⁵⁶⁷⁸⁹";
    let digit = |digit: u32| digits.chars().nth(digit as usize).expect("ten of them");
    let raised: String =
        [power / 10, power % 10].into_iter().skip_while(|it| *it == 0).map(digit).collect();
    let of = fuel / 10_u64.pow(power);
    assert_eq!(of * 10_u64.pow(power), fuel, "one digit");
    format!("{of} × 10{raised}")
}

fn many(most: usize, bytes: usize) -> String {
    format!("{}, together {}", count(most), size(bytes))
}

fn between<T: Clone>(bounds: &RangeInclusive<T>, shown: impl Fn(T) -> String) -> String {
    format!("{} to {}", shown(bounds.start().clone()), shown(bounds.end().clone()))
}

/// Every limit and its bound, from the constants of the code.
fn limits() -> Vec<(&'static str, String)> {
    let profile = Profile::default();
    let command = size(MIB - core::COMMAND_BYTES_MAX as u64);
    let (entries, snapshots) = (engine::INIT_ENTRIES, engine::SNAPSHOT_ENTRIES);
    let (waiting, waiting_bytes) = (core::PROPOSALS_WAITING_MAX, core::PROPOSALS_WAITING_BYTES_MAX);
    let memory = format!("`memory`, {}", between(&guest::MEMORY_BYTES, size));
    let tenth = |power: u64| fuel(power).trim_start_matches("1 × ").to_owned();
    let (least, most) = (guest::ENTRY_FUEL.start(), guest::ENTRY_FUEL.end());
    let entry = format!("`entry-fuel`, {} to {}", tenth(*least), tenth(*most));
    let each = format!("`command-fuel`, to {}", fuel(*guest::COMMAND_FUEL.end()));
    let clients = (size(clients::MEMORY_BYTES), size(clients::MEMORY_BYTES_MIN));
    let own = size(core::SESSION_OWN_ANSWER_BYTES);
    let lent = size(core::SESSION_ANSWER_BYTES_MAX);
    vec![
        ("component", size(core::MODULE_BYTES_MAX)),
        ("name and version of a component", format!("{} each", size(check::INFO_TEXT_BYTES_MAX))),
        ("configuration of `init`", size(core::GUEST_CONFIG_BYTES_MAX)),
        ("command", format!("1 MiB − {command}")),
        ("commands of an entry", many(core::ENTRY_COMMANDS_MAX, core::COMMANDS_ENTRY_BYTES_MAX)),
        ("commands that wait in a group", many(waiting, waiting_bytes)),
        ("queries that wait in a group", many(askers::QUERIES_MAX, askers::BYTES_MAX)),
        (
            "memory of clients' calls",
            format!("{}; `client-memory`, at least {}", clients.0, clients.1),
        ),
        ("gRPC message", size(core::GRPC_MESSAGE_BYTES_MAX)),
        ("outcome", size(core::OUTCOME_BYTES_MAX)),
        (
            "outcomes waiting for delivery",
            format!("{} beside an entry's own", size(core::APPLY_ANSWERS_BYTES_MAX)),
        ),
        ("answer of a query", size(core::QUERY_ANSWER_BYTES_MAX)),
        (
            "watches of a node, of a connection",
            format!("{}, {}", count(rpc::WATCHES_MAX), count(rpc::CONNECTION_WATCHES_MAX)),
        ),
        ("events in a message of a watch", size(rpc::WATCH_MESSAGE_BYTES_MAX)),
        ("open calls of a session", count(core::SESSION_OPEN_CALLS_MAX)),
        ("sessions of a group", count(core::SESSIONS_MAX)),
        ("answers kept for sessions", format!("{own} for each, and {lent} that are lent")),
        ("linear memory", format!("{}; {memory}", size(profile.memory_bytes))),
        ("memory of a query or snapshot, in addition", size(copy::GROWTH_BYTES_MAX)),
        (
            "memories, core instances, tables",
            format!("{}, {1}, {1}", engine::MEMORIES_MAX, engine::INSTANCES_MAX),
        ),
        ("elements of tables", count(engine::TABLE_ELEMENTS_MAX)),
        ("native stack", size(engine::STACK_BYTES_MAX)),
        ("fuel of an entry", format!("{}; {entry}", fuel(profile.fuel_entry))),
        ("fuel of each command, in addition", format!("{}; {each}", fuel(profile.fuel_command))),
        ("fuel of `init`", format!("{entries} × an entry's")),
        ("fuel of `snapshot`, and of `restore`", format!("{snapshots} × an entry's")),
        ("fuel of a query", fuel(engine::QUERY_FUEL)),
        ("fuel of `describe`", fuel(engine::DESCRIBE_FUEL)),
    ]
    .into_iter()
    .chain(of_optional_interfaces())
    .chain(of_texts())
    .collect()
}

/// The limits of interfaces that a component need not have.
fn of_optional_interfaces() -> Vec<(&'static str, String)> {
    let window = format!("`event-window`, {}", between(&guest::EVENT_WINDOW_BYTES, size));
    let (topic, payload) = (core::EVENT_TOPIC_BYTES_MAX, core::EVENT_PAYLOAD_BYTES_MAX);
    vec![
        ("fuel of `wake`", "an entry's".to_owned()),
        ("fuel of `digest`", fuel(engine::QUERY_FUEL)),
        (
            "topic and payload of an event",
            format!(
                "{}, {}",
                size(core::EVENT_TOPIC_BYTES_MAX),
                size(core::EVENT_PAYLOAD_BYTES_MAX)
            ),
        ),
        ("events that a group keeps", format!("{}; {window}", size(core::EVENT_WINDOW_BYTES))),
        ("calls of `wake`", format!("{} in a second", 1000 / core::TICK_MS)),
        ("digest", size(world::DIGEST_BYTES_MAX)),
    ]
}

/// The limits of what a guest tells the node.
fn of_texts() -> Vec<(&'static str, String)> {
    let outcomes = core::ENTRY_COMMANDS_MAX * core::OUTCOME_BYTES_MAX;
    let (texts, targets) = (imports::LOG_TEXT_BYTES_MAX, imports::LOG_TARGET_BYTES_MAX);
    let (lines, bytes) = (log::LOG_LINES_PER_SECOND_MAX, log::LOG_BYTES_PER_SECOND_MAX);
    vec![
        ("chunk of `snapshot-io`", size(imports::SNAPSHOT_CHUNK_BYTES_MAX)),
        ("text of a failure", size(world::FAILURE_BYTES_MAX)),
        ("log message", format!("{}, its target {}", size(texts), size(targets))),
        ("log messages of a group in a second", many(lines as usize, bytes)),
        (
            "bytes that a call hands to the node",
            format!("{} + {}", size(outcomes), size(core::HOSTCALL_BYTES_MAX - outcomes)),
        ),
    ]
}

#[test]
fn the_table_of_limits_is_the_codes() {
    let text = include_str!("../../../docs/plugins.md");
    let (_, section) = text.split_once("\n## Limits\n").expect("there is the section");
    let (section, _) = section.split_once("\n## ").expect("another one follows");
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let cells = rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 7, "five columns: {row}");
        assert!(cells[1..6].iter().all(|cell| !cell.is_empty()), "no empty cell: {row}");
        (cells[1], cells[2].to_owned())
    });
    let documented: Vec<_> = cells.collect();
    assert_eq!(documented, limits());
}

/// The two prices below the table of limits are those of the code.
#[test]
fn the_price_of_a_call_is_the_codes() {
    let text = include_str!("../../../docs/plugins.md");
    let says = format!("costs {}, and {}", count(engine::HOST_CALL_FUEL), engine::HOST_BYTE_FUEL);
    assert!(text.contains(&says), "{says}");
}

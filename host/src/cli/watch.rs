//! `lockstep watch`: prints events as they come.

use lockstep_client::{Error, Event, Position};
use lockstep_core::ids::hex;

use crate::cli::format::one_line;
use crate::cli::remote::{Target, call_failed};
use crate::cli::{Failure, Outcome};
use crate::logging::print_while_read;

/// Print the events whose topics begin with PREFIX, one a line: position, log time in milliseconds
/// since 1970, topic, payload, with tabs between them. Control characters, backslashes and bytes
/// that are not UTF-8 are escaped.
///
/// When a node is lost, the watch goes on at another one, without gaps or repetitions; it fails if
/// none answers for --timeout.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Begin at this position, and fail if its events are no longer kept; 0 is the group's first.
    /// The way in is `query --json`, and then the entry after its applied_index. Without this,
    /// begin with what comes from now on.
    #[arg(long, value_name = "INDEX[.NUMBER]", value_parser = position)]
    from: Option<Position>,
    /// Print each event as a JSON object: index, number, time_ms, topic, and payload, or
    /// payload_hex if the payload is not UTF-8.
    #[arg(long)]
    json: bool,
    /// End after this many events; without it, watch until interrupted.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// What the topics begin with; empty for all events.
    prefix: String,
}

const EXAMPLES: &str = "\
Examples:
  lockstep watch --endpoint 127.0.0.1:7101 orders/
  lockstep watch --endpoint 127.0.0.1:7101,127.0.0.1:7102 --from 4711 --json ''";

fn position(text: &str) -> Result<Position, String> {
    text.parse().map_err(|_| "write the index of an entry, or INDEX.NUMBER".to_owned())
}

pub(crate) async fn run(args: Args) -> Outcome {
    let client = args.target.client()?;
    let mut watch = client.watch(args.prefix, args.from);
    let mut left = args.count;
    loop {
        let batch = watch.next().await.map_err(ended)?;
        for event in &batch.events {
            let line = if args.json { in_json(event) } else { in_text(event) };
            if !print_while_read(format_args!("{line}")) {
                return Ok(());
            }
            left = left.map(|left| left - 1);
            if left == Some(0) {
                return Ok(());
            }
        }
    }
}

fn in_text(event: &Event) -> String {
    let Event { position, time_ms, topic, payload } = event;
    let [topic, payload] = [topic.as_bytes(), payload].map(one_line);
    format!("{position}\t{time_ms}\t{topic}\t{payload}")
}

fn in_json(event: &Event) -> String {
    let Event { position: Position { index, number }, time_ms, topic, payload } = event;
    let mut line = serde_json::json!({
        "index": index, "number": number, "time_ms": time_ms, "topic": topic
    });
    match std::str::from_utf8(payload) {
        Ok(text) => line["payload"] = text.into(),
        Err(_) => line["payload_hex"] = hex(payload).into(),
    }
    line.to_string()
}

/// The failure of a watch that ended.
fn ended(error: Error) -> Failure {
    match error {
        Error::Compacted { begin, message } => {
            Failure::Failed(format!("{message}: --from {begin}"))
        }
        other => call_failed(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How an event with this payload is printed: as text, and as JSON.
    fn check(payload: &'static [u8], text: &str, json: &str) {
        let event = Event {
            position: Position { index: 7, number: 1 },
            time_ms: 1_000,
            topic: "a\tb".to_owned(),
            payload: payload.into(),
        };
        assert_eq!(in_text(&event), format!("7.1\t1000\ta\\tb\t{text}"));
        let object =
            format!("{{\"index\":7,\"number\":1,{json},\"time_ms\":1000,\"topic\":\"a\\tb\"}}");
        assert_eq!(in_json(&event), object);
    }

    #[test]
    fn an_event_is_one_line() {
        check(b"new\nline", "new\\nline", "\"payload\":\"new\\nline\"");
        check(b"\xff\x00", "\\xff\\u{0}", "\"payload_hex\":\"ff00\"");
        check(b"", "", "\"payload\":\"\"");
    }

    #[test]
    fn positions_are_an_entry_with_or_without_a_number() {
        let of = |index, number| Ok(Position { index, number });
        assert_eq!((position("7"), position("7.2")), (of(7, 0), of(7, 2)));
        assert!(position("7,2").is_err_and(|why| why.contains("INDEX.NUMBER")));
    }
}

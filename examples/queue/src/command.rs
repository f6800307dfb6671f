//! Parses the text of the configuration, of commands and of queries.
//!
//! The result borrows from the text. Any text yields a command, a query, or a message that says
//! what was expected; whatever is in a command is within its bounds.

use std::ops::RangeInclusive;

use lockstep_guest::OUTCOME_BYTES_MAX;

use crate::listing::HEADER_BYTES_MAX;

/// The longest name of a queue or a consumer, in bytes: enough for a path, or for a UUID with a
/// host name. With what is around it, a name must fit into the topic of an event.
pub const WORD_BYTES_MAX: usize = 128;

/// The longest body, in bytes: with its header it must fit into the answer to `receive`.
pub const BODY_BYTES_MAX: usize = OUTCOME_BYTES_MAX - HEADER_BYTES_MAX;

/// The shortest visibility, in ms: several times the delay of the timer.
pub const VISIBILITY_MS_MIN: u64 = 1_000;

/// The longest visibility, in ms, which is how long a message waits for a consumer that died: twelve
/// hours.
pub const VISIBILITY_MS_MAX: u64 = 12 * 3_600_000;

/// Most messages that are received at once.
pub const RECEIVE_MAX: usize = 100;

/// Most messages or lines that a query lists: a page. All lines of queues stay far below the longest
/// answer of a query.
const LIST_MAX: usize = 1_000;

/// Most deliveries that may be allowed before a message is dead.
const ATTEMPTS_MAX: u64 = 1_000;

/// How many are allowed if the configuration does not say.
const ATTEMPTS: u64 = 5;

/// No command has more words.
const WORDS_MAX: usize = 5;

const COMMANDS: [&str; 8] = [
    "send QUEUE BODY",
    "receive QUEUE CONSUMER VISIBILITY_MS [MAX]",
    "ack QUEUE RECEIPT",
    "nack QUEUE RECEIPT",
    "extend QUEUE RECEIPT MS",
    "redrive QUEUE ID",
    "discard QUEUE ID",
    "delete QUEUE",
];

const QUERIES: [&str; 5] = [
    "stats QUEUE",
    "queues PREFIX LIMIT",
    "peek QUEUE LIMIT",
    "dead QUEUE LIMIT",
    "in-flight QUEUE LIMIT",
];

/// A command changes one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command<'a> {
    pub(crate) queue: &'a str,
    pub(crate) action: Action<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action<'a> {
    Send { body: &'a [u8] },
    Receive { consumer: &'a str, visibility_ms: u64, max: usize },
    Ack { receipt: u64 },
    Nack { receipt: u64 },
    Extend { receipt: u64, visibility_ms: u64 },
    Redrive { id: u64 },
    Discard { id: u64 },
    Delete,
}

/// A query reads the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Query<'a> {
    Stats { queue: &'a str },
    Queues { prefix: &'a str, limit: usize },
    Peek { queue: &'a str, limit: usize },
    Dead { queue: &'a str, limit: usize },
    InFlight { queue: &'a str, limit: usize },
}

/// How many deliveries the configuration allows.
pub(crate) fn max_attempts(config: &[u8]) -> Result<u64, String> {
    match words(config)?[..] {
        [""] => Ok(ATTEMPTS),
        ["max-attempts", attempts] => number("max-attempts", attempts, 1..=ATTEMPTS_MAX),
        _ => Err("expected nothing or `max-attempts N`".to_owned()),
    }
}

impl<'a> Command<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix(b"send ") {
            return Self::parse_send(rest);
        }
        let words = words(text)?;
        let (queue, action) = match words[..] {
            ["receive", queue, consumer, visibility] => {
                (queue, receive(consumer, visibility, "1")?)
            }
            ["receive", queue, consumer, visibility, max] => {
                (queue, receive(consumer, visibility, max)?)
            }
            ["ack", queue, receipt] => (queue, Action::Ack { receipt: self::receipt(receipt)? }),
            ["nack", queue, receipt] => (queue, Action::Nack { receipt: self::receipt(receipt)? }),
            ["extend", queue, receipt, ms] => {
                let visibility_ms = number("MS", ms, VISIBILITY_MS_MIN..=VISIBILITY_MS_MAX)?;
                (queue, Action::Extend { receipt: self::receipt(receipt)?, visibility_ms })
            }
            ["redrive", queue, id] => (queue, Action::Redrive { id: self::id(id)? }),
            ["discard", queue, id] => (queue, Action::Discard { id: self::id(id)? }),
            ["delete", queue] => (queue, Action::Delete),
            _ => return Err(expected(words[0], &COMMANDS)),
        };
        Ok(Self { queue: checked("a queue", queue)?, action })
    }

    /// The only command that is not text to its end.
    fn parse_send(rest: &'a [u8]) -> Result<Self, String> {
        let Some(space) = rest.iter().position(|&byte| byte == b' ') else {
            return Err(expected("send", &COMMANDS));
        };
        let (queue, body) = (&rest[..space], &rest[space + 1..]);
        let queue = str::from_utf8(queue).map_err(|_| "a queue has a name in UTF-8".to_owned())?;
        let bytes = body.len();
        if bytes > BODY_BYTES_MAX {
            return Err(format!("a body has {bytes} bytes; the limit is {BODY_BYTES_MAX}"));
        }
        Ok(Self { queue: checked("a queue", queue)?, action: Action::Send { body } })
    }
}

impl<'a> Query<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, String> {
        let words = words(text)?;
        match words[..] {
            ["stats", queue] => Ok(Self::Stats { queue: checked("a queue", queue)? }),
            ["queues", prefix, limit] => Ok(Self::Queues { prefix, limit: self::limit(limit)? }),
            ["peek", queue, limit] => {
                Ok(Self::Peek { queue: checked("a queue", queue)?, limit: self::limit(limit)? })
            }
            ["dead", queue, limit] => {
                Ok(Self::Dead { queue: checked("a queue", queue)?, limit: self::limit(limit)? })
            }
            ["in-flight", queue, limit] => {
                Ok(Self::InFlight { queue: checked("a queue", queue)?, limit: self::limit(limit)? })
            }
            _ => Err(expected(words[0], &QUERIES)),
        }
    }
}

/// Whether these bytes may be the name of a queue or a consumer.
pub(crate) fn is_word(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= WORD_BYTES_MAX
        && !word.chars().any(|char| char == ' ' || char.is_control())
}

/// The words, of which there is at least one, an empty one perhaps. If there are too many, the last
/// one is all the rest.
fn words(text: &[u8]) -> Result<Vec<&str>, String> {
    let text = str::from_utf8(text).map_err(|_| "expected text in UTF-8".to_owned())?;
    Ok(text.splitn(WORDS_MAX + 1, ' ').collect())
}

/// The word, if it is a valid name.
fn checked<'a>(what: &str, word: &'a str) -> Result<&'a str, String> {
    if is_word(word) {
        return Ok(word);
    }
    let bytes = word.len();
    if bytes > WORD_BYTES_MAX {
        return Err(format!("{what} has a name of {bytes} bytes; the limit is {WORD_BYTES_MAX}"));
    }
    Err(format!(
        "{what} has a name of at least one character, without spaces or control characters"
    ))
}

fn receive<'a>(consumer: &'a str, visibility: &str, max: &str) -> Result<Action<'a>, String> {
    Ok(Action::Receive {
        consumer: checked("a consumer", consumer)?,
        visibility_ms: number("VISIBILITY_MS", visibility, VISIBILITY_MS_MIN..=VISIBILITY_MS_MAX)?,
        max: count("MAX", max, RECEIVE_MAX)?,
    })
}

fn receipt(word: &str) -> Result<u64, String> {
    number("RECEIPT", word, 1..=u64::MAX)
}

fn id(word: &str) -> Result<u64, String> {
    number("ID", word, 1..=u64::MAX)
}

fn limit(word: &str) -> Result<usize, String> {
    count("LIMIT", word, LIST_MAX)
}

fn count(what: &str, word: &str, most: usize) -> Result<usize, String> {
    let count = number(what, word, 1..=most as u64)?;
    Ok(usize::try_from(count).expect("it is at most `most`"))
}

/// The message does not quote the word, which may be a megabyte of anything.
fn number(what: &str, word: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number = word.parse().ok().filter(|number| range.contains(number));
    let (least, most) = (range.start(), range.end());
    number.ok_or_else(|| format!("{what} must be a whole number from {least} to {most}"))
}

/// What was expected: the form of this verb if there is such a verb, otherwise all forms.
fn expected(verb: &str, forms: &[&str]) -> String {
    let same = forms.iter().find(|form| form.split(' ').next() == Some(verb));
    let forms = same.map_or(forms, std::slice::from_ref);
    let forms: Vec<String> = forms.iter().map(|form| format!("`{form}`")).collect();
    match forms.split_last() {
        Some((last, others)) if !others.is_empty() => {
            format!("expected {} or {last}", others.join(", "))
        }
        _ => format!("expected {}", forms.concat()),
    }
}

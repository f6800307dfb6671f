//! Parses the text of commands and queries.
//!
//! The result borrows from the text. Any text yields a command, a query, or a message that says
//! what was expected; whatever is in a command is within its bounds.

use std::ops::RangeInclusive;

/// The longest name of a lock or an owner, in bytes: enough for a path, or for a UUID with a host
/// name. With what is around it, a name must fit into the topic of an event.
pub const WORD_BYTES_MAX: usize = 128;

/// The shortest lease, in ms: several times what it may take to renew one while a leader is elected.
pub const TTL_MS_MIN: u64 = 1_000;

/// The longest lease, in ms, which is how long everybody waits for a holder that died.
pub const TTL_MS_MAX: u64 = 3_600_000;

/// Most lines of `list`: a page. All lines together stay far below the longest answer of a query.
pub const LIST_LINES_MAX: usize = 1_000;

/// No command has more words.
const WORDS_MAX: usize = 4;

const COMMANDS: [&str; 5] = [
    "acquire NAME OWNER TTL_MS",
    "wait NAME OWNER TTL_MS",
    "renew NAME TOKEN TTL_MS",
    "release NAME TOKEN",
    "cancel NAME OWNER",
];

const QUERIES: [&str; 3] = ["who NAME", "list PREFIX LIMIT", "waiters NAME"];

/// A command changes one lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command<'a> {
    /// The lock.
    pub(crate) name: &'a str,
    pub(crate) action: Action<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action<'a> {
    Acquire { owner: &'a str, ttl_ms: u64 },
    Wait { owner: &'a str, ttl_ms: u64 },
    Renew { token: u64, ttl_ms: u64 },
    Release { token: u64 },
    Cancel { owner: &'a str },
}

/// A query reads the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Query<'a> {
    Who { name: &'a str },
    List { prefix: &'a str, limit: usize },
    Waiters { name: &'a str },
}

impl<'a> Command<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, String> {
        let words = words(text)?;
        let (name, action) = match words[..] {
            ["acquire", name, owner, ttl] => {
                (name, Action::Acquire { owner: checked("an owner", owner)?, ttl_ms: ttl_ms(ttl)? })
            }
            ["wait", name, owner, ttl] => {
                (name, Action::Wait { owner: checked("an owner", owner)?, ttl_ms: ttl_ms(ttl)? })
            }
            ["renew", name, token, ttl] => {
                (name, Action::Renew { token: self::token(token)?, ttl_ms: ttl_ms(ttl)? })
            }
            ["release", name, token] => (name, Action::Release { token: self::token(token)? }),
            ["cancel", name, owner] => {
                (name, Action::Cancel { owner: checked("an owner", owner)? })
            }
            _ => return Err(expected(words[0], &COMMANDS)),
        };
        Ok(Self { name: checked("a name", name)?, action })
    }
}

impl<'a> Query<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, String> {
        let words = words(text)?;
        match words[..] {
            ["who", name] => Ok(Self::Who { name: checked("a name", name)? }),
            ["list", prefix, limit] => {
                let limit = number("LIMIT", limit, 1..=LIST_LINES_MAX as u64)?;
                let limit = usize::try_from(limit).expect("it is at most LIST_LINES_MAX");
                Ok(Self::List { prefix, limit })
            }
            ["waiters", name] => Ok(Self::Waiters { name: checked("a name", name)? }),
            _ => Err(expected(words[0], &QUERIES)),
        }
    }
}

/// Whether these bytes may be the name of a lock or an owner.
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
        return Err(format!("{what} has {bytes} bytes; the limit is {WORD_BYTES_MAX}"));
    }
    Err(format!("{what} has at least one character, and no spaces or control characters"))
}

fn ttl_ms(word: &str) -> Result<u64, String> {
    number("TTL_MS", word, TTL_MS_MIN..=TTL_MS_MAX)
}

fn token(word: &str) -> Result<u64, String> {
    number("TOKEN", word, 1..=u64::MAX)
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

//! Parses the text of commands and queries.
//!
//! The result borrows from the text and copies nothing. Any text yields a command, a query, or a
//! message that says what was expected.

/// The longest key, in bytes: enough for any path, yet small compared to the largest value.
pub const KEY_BYTES_MAX: usize = 1024;

/// A command changes the store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    Set { key: &'a [u8], value: &'a [u8] },
    Del { key: &'a [u8] },
    Cas { key: &'a [u8], old: &'a [u8], new: &'a [u8] },
    Incr { key: &'a [u8] },
}

/// A query reads the store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Query<'a> {
    Get { key: &'a [u8] },
    Scan { prefix: &'a [u8], limit: u32 },
    Len,
}

impl<'a> Command<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, String> {
        let (verb, rest) = word(text);
        match (verb, rest) {
            (b"set", Some(rest)) => match word(rest) {
                (key, Some(value)) => Ok(Self::Set { key: checked(key)?, value }),
                (_, None) => Err("expected `set K V`".to_owned()),
            },
            (b"del", Some(key)) => Ok(Self::Del { key: checked(key)? }),
            (b"cas", Some(rest)) => {
                let (key, rest) = word(rest);
                match rest.map(word) {
                    Some((old, Some(new))) => Ok(Self::Cas { key: checked(key)?, old, new }),
                    Some((_, None)) | None => Err("expected `cas K OLD NEW`".to_owned()),
                }
            }
            (b"incr", Some(key)) => Ok(Self::Incr { key: checked(key)? }),
            (b"set", None) => Err("expected `set K V`".to_owned()),
            (b"del", None) => Err("expected `del K`".to_owned()),
            (b"cas", None) => Err("expected `cas K OLD NEW`".to_owned()),
            (b"incr", None) => Err("expected `incr K`".to_owned()),
            _ => Err(unknown(verb, "`set K V`, `del K`, `cas K OLD NEW` or `incr K`")),
        }
    }
}

impl<'a> Query<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, String> {
        let (verb, rest) = word(text);
        match (verb, rest) {
            (b"get", Some(key)) => Ok(Self::Get { key: checked(key)? }),
            (b"scan", Some(rest)) => {
                let (prefix, limit) = word(rest);
                let limit = limit.and_then(|limit| str::from_utf8(limit).ok()?.parse().ok());
                match limit {
                    Some(limit) => Ok(Self::Scan { prefix, limit }),
                    None => Err("expected `scan PREFIX LIMIT`, LIMIT a number".to_owned()),
                }
            }
            (b"len", None) => Ok(Self::Len),
            (b"get", None) => Err("expected `get K`".to_owned()),
            (b"scan", None) => Err("expected `scan PREFIX LIMIT`, LIMIT a number".to_owned()),
            (b"len", Some(_)) => Err("expected `len` and nothing after it".to_owned()),
            _ => Err(unknown(verb, "`get K`, `scan PREFIX LIMIT` or `len`")),
        }
    }
}

/// The first word, and the rest after the space that follows it; `None` if no space does.
fn word(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|&byte| byte == b' ') {
        Some(space) => (&text[..space], Some(&text[space + 1..])),
        None => (text, None),
    }
}

/// The key, if it is valid.
fn checked(key: &[u8]) -> Result<&[u8], String> {
    if key.is_empty() {
        return Err("a key has at least one byte".to_owned());
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(format!("a key has {} bytes, the limit is {KEY_BYTES_MAX}", key.len()));
    }
    if key.iter().any(|byte| byte.is_ascii_control() || *byte == b' ') {
        return Err("a key has no spaces and no control characters".to_owned());
    }
    Ok(key)
}

/// The message for an unknown verb. It quotes only the beginning, for the verb may be megabytes of
/// anything.
fn unknown(verb: &[u8], expected: &str) -> String {
    let shown = verb.len().min(32);
    let dots = if shown < verb.len() { "…" } else { "" };
    format!("unknown `{}{dots}`; expected {expected}", verb[..shown].escape_ascii())
}

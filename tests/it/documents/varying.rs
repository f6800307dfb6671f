//! Compares what a document says with what is printed.

use std::collections::BTreeMap;

/// Stands for any lines.
const ANY: &str = "…";
/// Lines whose numbers are measured or follow from when things happen begin like this, or have this
/// within them.
const MEASURED: [&str; 13] = [
    "  size ",
    "  fuel ",
    "  memory ",
    "  note ",
    "  serving  ",
    " ms from now",
    "\"applied_index\"",
    " from entry ",
    ", as entry ",
    " halted at entry ",
    " is aborted: node ",
    " --resume-at ",
    " --index ",
];

/// What differs from one run to the next: times of the log, positions of events, hexadecimal ids
/// and digests. The same in the document has to be the same in what is printed. Who leads differs,
/// too, and so does how long something took.
#[derive(Clone, Default)]
pub(super) struct Varying {
    /// What is printed, by what is written.
    printed: BTreeMap<String, String>,
}

impl Varying {
    /// Says what differs first.
    pub(super) fn same(&mut self, written: &[&str], printed: &[&str]) -> Result<(), String> {
        match (written, printed) {
            ([], []) | ([ANY], _) => Ok(()),
            ([], [more, ..]) => Err(format!("`{more}` is printed, too")),
            ([ANY, after, ..], _) => {
                let is_after = |line: &&str| self.clone().same_line(after, line);
                match printed.iter().position(is_after) {
                    Some(at) => self.same(&written[1..], &printed[at..]),
                    None => Err(format!("`{after}` is not printed")),
                }
            }
            ([line, ..], []) => Err(format!("`{line}` is not printed")),
            ([line, written @ ..], [other, printed @ ..]) => {
                if !self.same_line(line, other) {
                    return Err(format!("`{line}` is written, and `{other}` printed"));
                }
                self.same(written, printed)
            }
        }
    }

    /// Whitespace counts as one space: columns are as wide as addresses.
    fn same_line(&mut self, written: &str, printed: &str) -> bool {
        let is_measured = MEASURED.iter().any(|it| written.contains(it));
        let (written, printed) = (tokens(written), tokens(printed));
        written.len() == printed.len()
            && written.iter().zip(&printed).all(|(one, two)| self.same_token(one, two, is_measured))
    }

    fn same_token(&mut self, written: &str, printed: &str, is_measured: bool) -> bool {
        let starts = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        let kind = Kind::of(written);
        if kind != Kind::of(printed) {
            return is_measured && starts(written) && starts(printed);
        }
        match kind {
            Kind::Word => written == printed || is_measured && starts(written) && starts(printed),
            Kind::Role | Kind::Duration => true,
            _ if is_measured && kind == Kind::Position => true,
            // Two positions are never one, but two times may be.
            Kind::Position
                if self.printed.iter().any(|(one, two)| two == printed && one != written) =>
            {
                false
            }
            Kind::Time | Kind::Position | Kind::Hex(_) => {
                let known = self.printed.entry(written.to_owned());
                known.or_insert_with(|| printed.to_owned()) == printed
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Milliseconds since 1970.
    Time,
    /// An entry and a number, with a point between them.
    Position,
    /// So many hexadecimal digits.
    Hex(usize),
    /// What a node is.
    Role,
    /// Seconds.
    Duration,
    /// Anything else.
    Word,
}

impl Kind {
    fn of(token: &str) -> Self {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        let parts = token.split_once('.');
        match token {
            "leader" | "follower" => Self::Role,
            _ if token.len() == 13 && digits(token) => Self::Time,
            _ if token.len() >= 12 && token.bytes().all(|it| it.is_ascii_hexdigit()) => {
                Self::Hex(token.len())
            }
            _ if parts.is_some_and(|(one, two)| digits(one) && digits(two)) => Self::Position,
            _ if parts.is_some_and(|(one, two)| {
                digits(one) && two.strip_suffix('s').is_some_and(digits)
            }) =>
            {
                Self::Duration
            }
            _ => Self::Word,
        }
    }
}

/// Words and numbers, each with the points in it, and all other signs one by one.
fn tokens(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let within = |c: char| c.is_alphanumeric() || c == '.';
        let end = if within(first) {
            rest.find(|c: char| !within(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        found.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    found
}

#[test]
fn only_what_varies_may_differ() {
    let check = |written: &[&str], printed: &[&str], expect: bool| {
        let is_same = Varying::default().same(written, printed);
        assert_eq!(is_same.is_ok(), expect, "{written:?} {printed:?}: {is_same:?}");
    };
    let at = |position: &str, text: &str| format!("{position} 1796092477629 {text}");
    check(&[&at("4.0", "a")], &[&at("5.0", "a")], true);
    check(&[&at("4.0", "a")], &["5.0 1796092477630 a"], true);
    check(&[&at("4.0", "a")], &[&at("5.0", "b")], false);
    check(&["4.0", "4.0"], &["5.0", "5.0"], true);
    check(&["4.0", "4.0"], &["5.0", "6.0"], false);
    check(&["4.0", "5.0"], &["5.0", "5.0"], false);
    check(&["ticket 2"], &["ticket 1"], false);
    check(&["a  leader"], &["a follower"], true);
    check(&["ended in 0.01s"], &["ended in 1.20s"], true);
    check(&["  fuel  12 or 3"], &["  fuel  7 or 30"], true);
    check(&["  fuel  12 or 3"], &["  fuel  7 of 30"], false);
    check(&["5a1c0000ffff"], &["5a1c0000fffe"], true);
    check(&["5a1c0000ffff"], &["5a1c0000fffe0"], false);
}

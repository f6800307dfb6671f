//! What can be said at the prompt of `lockstep run`.

/// What `.help` says.
pub(super) const HELP: &str = "\
TEXT              a command
?TEXT             a query
.watch PREFIX     show events whose topic begins so; without PREFIX, all
.unwatch          show none
.time +5s         move time on (ms, s, m, h, d), and wake what is due; without a time, tell it
.snapshot         take a snapshot and keep it
.restore          go back to it
.quit             end; so does the end of the input
A command that begins with . or ? is written with \\ before it.
";

/// The words that complete.
pub(super) const WORDS: [&str; 7] =
    [".help", ".quit", ".restore", ".snapshot", ".time", ".unwatch", ".watch"];

/// A line, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Word<'a> {
    Nothing,
    Command(&'a str),
    Query(&'a str),
    Watch(&'a str),
    Unwatch,
    /// Time moves on by so many ms.
    Time(u64),
    Snapshot,
    Restore,
    Help,
    Quit,
}

pub(super) fn parse(line: &str) -> Result<Word<'_>, String> {
    if line.trim().is_empty() {
        return Ok(Word::Nothing);
    }
    if let Some(query) = line.strip_prefix('?') {
        return Ok(Word::Query(query));
    }
    if !line.starts_with('.') {
        return Ok(Word::Command(line.strip_prefix('\\').unwrap_or(line)));
    }
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match (word, rest.trim()) {
        (".watch", prefix) => Ok(Word::Watch(prefix)),
        (".unwatch", "") => Ok(Word::Unwatch),
        (".time", "") => Ok(Word::Time(0)),
        (".time", skip) => duration_ms(skip).map(Word::Time).ok_or_else(|| {
            format!("`{skip}` is no time: write .time +5s, or +500ms, +2m, +1h, +1d")
        }),
        (".snapshot", "") => Ok(Word::Snapshot),
        (".restore", "") => Ok(Word::Restore),
        (".help", "") => Ok(Word::Help),
        (".quit" | ".exit", "") => Ok(Word::Quit),
        _ => Err(format!(
            "`{line}` is not known: .help lists what is; a command that begins with . is written \
             \\{line}"
        )),
    }
}

/// The milliseconds of `+5s`.
fn duration_ms(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+')?;
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let check = |line, expect: Word<'_>| assert_eq!(parse(line), Ok(expect));
        check("", Word::Nothing);
        check("set a b", Word::Command("set a b"));
        check("\\.a", Word::Command(".a"));
        check("\\?a", Word::Command("?a"));
        check("?get a", Word::Query("get a"));
        check(".watch", Word::Watch(""));
        check(".watch orders.", Word::Watch("orders."));
        check(".time", Word::Time(0));
        check(".time +5s", Word::Time(5000));
        check(".time +500ms", Word::Time(500));
        check(".time +1d", Word::Time(86_400_000));
        check(".quit", Word::Quit);
        let refused = |line: &str, expect: &str| {
            let why = parse(line).expect_err("it is not known");
            assert!(why.contains(expect), "{why}");
        };
        refused(".time 5s", "write .time +5s");
        refused(".time +5", "write .time +5s");
        refused(".time +99999999999999999999d", "write .time +5s");
        refused(".foo", "`.foo` is not known");
        refused(".snapshot x", "is not known");
    }
}

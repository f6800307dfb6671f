//! Templates: a small language in which an author says what commands and queries look like.
//!
//! ```text
//! # A comment. The header below claims what the self-test's `claim` would.
//! #! independent-of-packing
//! set {word} {0..99}
//! put {a|b|c} {bytes 0..64}
//! ?get {word}
//! {{"op": "add", "by": {-5..5}}}
//! ```
//! A line is a template: of a command, or, if it begins with `?`, of a query. `{0..9}` is a number
//! of that range, both ends included, `{a|b|c}` one of these texts, `{word}` one of a few words
//! (few, so that they meet again), `{bytes 0..64}` as many bytes of any value; `{{` and `}}` are
//! braces. What is wrong with a file is told with line and column.

use bytes::Bytes;
use lockstep_core::limits;

use crate::rng::Rng;

/// Most bytes that one `{bytes …}` makes.
const BYTES_MAX: usize = 65_536;
/// Most templates in a file.
const TEMPLATES_MAX: usize = 10_000;
/// What `{word}` makes: few words, so that commands meet what earlier ones left.
const WORDS: [&str; 8] = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"];
const HEADER: &str = "#!";
const PACKING: &str = "independent-of-packing";
/// The placeholders there are, for refusals.
const PLACEHOLDERS: &str =
    "there are {0..9} (both included), {a|b|c}, {word} and {bytes 0..64}, and {{ and }} for braces";

/// The templates of a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Templates {
    commands: Vec<Template>,
    queries: Vec<Template>,
    /// The file's header claims it.
    pub independent_of_packing: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Template(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(String),
    Number(i64, i64),
    Choice(Vec<String>),
    Word,
    Bytes(usize, usize),
}

/// What is wrong with a file of templates.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("line {line}, column {column}: {why}")]
    At { line: usize, column: usize, why: String },
    #[error(
        "no line is the template of a command: add one, such as `set {{word}} {{0..9}}`; lines \
         that begin with ? are queries, lines that begin with # are comments"
    )]
    NoCommand,
    #[error("there are more than {TEMPLATES_MAX} templates: keep those that differ in kind")]
    TooMany,
}

impl Templates {
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut templates = Self::default();
        for (number, line) in text.lines().enumerate() {
            let at = |column: usize, why: String| TemplateError::At {
                line: number + 1,
                column: line[..column].chars().count() + 1,
                why,
            };
            if let Some(header) = line.strip_prefix(HEADER) {
                if header.trim() != PACKING {
                    let why =
                        format!("unknown header `{}`: there is `#! {PACKING}`", header.trim());
                    return Err(at(HEADER.len(), why));
                }
                templates.independent_of_packing = true;
            } else if line.starts_with('#') || line.trim().is_empty() {
                continue;
            } else if let Some(query) = line.strip_prefix('?') {
                let template = Template::parse(query).map_err(|(place, why)| at(place + 1, why))?;
                templates.queries.push(template);
            } else {
                let template = Template::parse(line).map_err(|(place, why)| at(place, why))?;
                templates.commands.push(template);
            }
        }
        match templates.commands.len() + templates.queries.len() {
            more if more > TEMPLATES_MAX => Err(TemplateError::TooMany),
            _few if templates.commands.is_empty() => Err(TemplateError::NoCommand),
            _few => Ok(templates),
        }
    }

    pub fn command(&self, rng: &mut Rng) -> Bytes {
        rng.pick(&self.commands).map_or_else(Bytes::new, |it| it.make(rng))
    }

    /// `None` if the file has no query.
    pub fn query(&self, rng: &mut Rng) -> Option<Bytes> {
        rng.pick(&self.queries).map(|it| it.make(rng))
    }
}

impl Template {
    /// The error is a place in the line, bytes, and what is wrong there.
    fn parse(line: &str) -> Result<Self, (usize, String)> {
        let (mut parts, mut text, mut place) = (Vec::new(), String::new(), 0);
        while let Some(next) = line[place..].chars().next() {
            let rest = &line[place..];
            if rest.starts_with("{{") || rest.starts_with("}}") {
                text.push(next);
                place += 2;
            } else if next == '}' {
                return Err((place, format!("`}}` closes nothing; {PLACEHOLDERS}")));
            } else if next == '{' {
                let Some(end) = rest.find('}') else {
                    return Err((place, format!("`{{` is not closed; {PLACEHOLDERS}")));
                };
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::parse(&rest[1..end]).map_err(|why| (place, why))?);
                place += end + 1;
            } else {
                text.push(next);
                place += next.len_utf8();
            }
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        let most: usize = parts.iter().map(Part::bytes_max).sum();
        if most > limits::COMMAND_BYTES_MAX {
            let limit = limits::COMMAND_BYTES_MAX;
            let why = format!("it makes up to {most} bytes, and a command has at most {limit}");
            return Err((0, why));
        }
        Ok(Self(parts))
    }

    fn make(&self, rng: &mut Rng) -> Bytes {
        let mut out = Vec::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Number(least, most) => {
                    out.extend_from_slice(rng.within(*least, *most).to_string().as_bytes());
                }
                Part::Choice(texts) => {
                    out.extend_from_slice(rng.pick(texts).map_or("", String::as_str).as_bytes());
                }
                Part::Word => out.extend_from_slice(rng.pick(&WORDS).unwrap_or(&"").as_bytes()),
                Part::Bytes(least, most) => {
                    let length = rng.length(*least, *most);
                    out.extend((0..length).map(|_| rng.number() as u8));
                }
            }
        }
        out.into()
    }
}

impl Part {
    fn parse(inner: &str) -> Result<Self, String> {
        let unknown = || format!("unknown placeholder `{{{inner}}}`: {PLACEHOLDERS}");
        if inner.contains('|') {
            return Ok(Self::Choice(inner.split('|').map(str::to_owned).collect()));
        }
        if inner == "word" {
            return Ok(Self::Word);
        }
        let (range, bytes) = match inner.strip_prefix("bytes ") {
            Some(range) => (range, true),
            None => (inner, false),
        };
        let (least, most) = range.split_once("..").ok_or_else(unknown)?;
        let end = |text: &str| text.trim().parse::<i64>().map_err(|_| unknown());
        let (least, most) = (end(least)?, end(most)?);
        if least > most {
            return Err(format!("`{{{inner}}}`: the range is empty; write {{{most}..{least}}}"));
        }
        if !bytes {
            return Ok(Self::Number(least, most));
        }
        match (usize::try_from(least), usize::try_from(most)) {
            (Ok(least), Ok(most)) if most <= BYTES_MAX => Ok(Self::Bytes(least, most)),
            _ => Err(format!("`{{{inner}}}`: give lengths from 0 to {BYTES_MAX}")),
        }
    }

    fn bytes_max(&self) -> usize {
        /// The digits of an `i64` and its sign.
        const NUMBER_BYTES: usize = 20;
        match self {
            Self::Text(text) => text.len(),
            Self::Number(..) => NUMBER_BYTES,
            Self::Choice(texts) => texts.iter().map(String::len).max().unwrap_or(0),
            Self::Word => WORDS[0].len(),
            Self::Bytes(_, most) => *most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some of what a file generates, sorted; or what is wrong with it.
    fn check(file: &str, expect: Result<&[&str], &str>) {
        let templates = match (Templates::parse(file), expect) {
            (Ok(templates), Ok(_)) => templates,
            (Err(error), Err(said)) => {
                assert!(error.to_string().contains(said), "{file:?}: {error}");
                return;
            }
            (other, _) => panic!("{file:?} gives {other:?}"),
        };
        let mut rng = Rng::new(7);
        let mut made: Vec<String> = (0..200)
            .map(|_| String::from_utf8_lossy(&templates.command(&mut rng)).into_owned())
            .collect();
        made.sort();
        made.dedup();
        assert_eq!(made, expect.unwrap_or_default(), "{file:?}");
    }

    #[test]
    fn templates_generate_what_they_say() {
        check("set {0..2}", Ok(&["set 0", "set 1", "set 2"]));
        check("{-1..0}", Ok(&["-1", "0"]));
        check("# c\n\nput {a|b c|}!\n?get", Ok(&["put !", "put a!", "put b c!"]));
        check("{{\"by\": {1..1}}}", Ok(&["{\"by\": 1}"]));
        check("{bytes 0..0}x", Ok(&["x"]));
        check("{word}", Ok(&WORDS));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        check("ok\nset {key} 1", Err("line 2, column 5: unknown placeholder `{key}`"));
        check("?ä {9..1}", Err("line 1, column 4: `{9..1}`: the range is empty; write {1..9}"));
        check("a {b", Err("line 1, column 3: `{` is not closed"));
        check("a }", Err("line 1, column 3: `}` closes nothing"));
        check("{bytes 0..99999}", Err("give lengths from 0 to 65536"));
        check("{bytes -1..9}", Err("give lengths from 0"));
        check("#! fast\nx", Err("line 1, column 3: unknown header `fast`"));
        check("# nothing\n?get", Err("no line is the template of a command"));
        check("", Err("no line is the template of a command"));
        let big = "{bytes 0..65536}".repeat(16);
        check(&big, Err("a command has at most"));
    }

    #[test]
    fn a_header_claims() {
        let claims =
            |file| Templates::parse(file).expect("it is well formed").independent_of_packing;
        assert!(claims("#! independent-of-packing\nx"));
        assert!(!claims("# independent-of-packing\nx"));
    }
}

//! What a project may be called: what is the name of a crate, a module and a file in any of the
//! languages.

use std::fmt;

/// Longest name, bytes: that of `info.name`, which it becomes.
const BYTES_MAX: usize = crate::guest::check::INFO_TEXT_BYTES_MAX;

/// Names that mean something else: keywords of Rust and Python, crates and modules that the
/// languages or the SDKs bring, and that a module of this name would hide.
const TAKEN: &[&str] = &[
    "abc",
    "abstract",
    "alloc",
    "and",
    "array",
    "as",
    "ast",
    "assert",
    "async",
    "await",
    "base64",
    "become",
    "bisect",
    "box",
    "break",
    "class",
    "codecs",
    "collections",
    "components",
    "const",
    "continue",
    "copy",
    "core",
    "crate",
    "csv",
    "dataclasses",
    "def",
    "del",
    "do",
    "dyn",
    "elif",
    "else",
    "enum",
    "except",
    "extern",
    "false",
    "final",
    "finally",
    "fn",
    "for",
    "from",
    "functools",
    "gen",
    "global",
    "hashlib",
    "heapq",
    "if",
    "impl",
    "import",
    "in",
    "io",
    "is",
    "itertools",
    "json",
    "lambda",
    "let",
    "lockstep",
    "lockstep-guest",
    "lockstep_guest",
    "loop",
    "macro",
    "match",
    "math",
    "mod",
    "move",
    "mut",
    "none",
    "nonlocal",
    "not",
    "operator",
    "or",
    "os",
    "override",
    "pass",
    "priv",
    "proc-macro",
    "proc_macro",
    "pub",
    "queue",
    "raise",
    "random",
    "re",
    "ref",
    "return",
    "self",
    "serde",
    "site",
    "static",
    "std",
    "string",
    "struct",
    "super",
    "sys",
    "test",
    "time",
    "token",
    "trait",
    "true",
    "try",
    "type",
    "types",
    "typing",
    "union",
    "unsafe",
    "use",
    "while",
    "with",
    "yield",
];

/// A name that is valid in every language.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Name(String);

/// Why a name is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum NameError {
    #[error(
        "`{name}` is no name for a state machine: it begins with a letter from a to z and has \
         letters from a to z, digits, - and _, at most {BYTES_MAX} of them; `{instead}` would do"
    )]
    Form { name: String, instead: String },
    #[error(
        "`{name}` has a meaning of its own in Rust, in Python or in an SDK, so that a state \
         machine cannot be called like that; `{instead}` would do"
    )]
    Taken { name: String, instead: String },
}

impl Name {
    pub(super) fn new(name: &str) -> Result<Self, NameError> {
        let (name, instead) = (name.to_owned(), instead_of(name));
        if !is_well_formed(&name) {
            return Err(NameError::Form { name, instead });
        }
        if TAKEN.contains(&&*name) {
            return Err(NameError::Taken { name, instead });
        }
        Ok(Self(name))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its module, in languages where a name has no dash.
    pub(super) fn module(&self) -> String {
        self.0.replace('-', "_")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_well_formed(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(inner)
        && name.len() <= BYTES_MAX
}

/// A name that would do, as near to this one as possible.
fn instead_of(name: &str) -> String {
    const SUFFIX: &str = "-machine";
    let mut near = String::new();
    for c in name.trim().chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '_') => near.push(c),
            _other if near.is_empty() || near.ends_with('-') => {}
            _other => near.push('-'),
        }
    }
    let near = near.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let near = &near[..near.len().min(BYTES_MAX - SUFFIX.len())];
    let near = near.trim_end_matches(['-', '_']);
    match near {
        "" => "my-machine".to_owned(),
        taken if TAKEN.contains(&taken) => format!("{taken}{SUFFIX}"),
        free => free.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The refusal's suggestion, which is a name; or `None` if this is one.
    fn check(name: &str, instead: Option<&str>) {
        match (Name::new(name), instead) {
            (Ok(_), None) => {}
            (Err(refused), Some(instead)) => {
                let says = format!("`{instead}` would do");
                assert!(refused.to_string().contains(&says), "{refused}");
                Name::new(instead).expect("what is suggested is a name");
            }
            (found, _) => panic!("{name:?} gives {found:?}"),
        }
    }

    #[test]
    fn names_are_those_of_crates() {
        check("tally", None);
        check("order-book_2", None);
        check(&"x".repeat(BYTES_MAX), None);
        check("", Some("my-machine"));
        check("2fast", Some("fast"));
        check("My Machine", Some("my-machine"));
        check("../up", Some("up"));
        check("crème", Some("cr-me"));
        check("a-", Some("a"));
        check("_a", Some("a"));
        check(&"x".repeat(BYTES_MAX + 1), Some(&"x".repeat(BYTES_MAX - 8)));
        for taken in TAKEN {
            assert!(is_well_formed(taken), "{taken} is refused anyway");
        }
        check("test", Some("test-machine"));
        check("queue", Some("queue-machine"));
        check("Lockstep", Some("lockstep-machine"));
    }
}

//! A Rust file, split just far enough to tell code, comments and strings apart.
//!
//! * Every line has three views with the same number of characters: as it is, only its code, only
//!   its comments. Characters that do not belong to a view are blank in it; in the code, the
//!   characters of a string are `"`, those of a raw string or a character literal `~`.
//! * The lexer is the compiler's. Macros are not expanded.

use std::ops::Range;

use ra_ap_rustc_lexer::{FrontmatterAllowed, LiteralKind, TokenKind, tokenize};

/// A Rust file.
pub(super) struct Source<'a> {
    pub(super) path: &'a str,
    /// The lines as they are.
    pub(super) raw: Vec<&'a str>,
    /// The lines' code.
    pub(super) code: Vec<String>,
    /// The lines' comments.
    pub(super) comments: Vec<String>,
    /// Which lines are part of a `#[cfg(test)]` item; all of them in a file of tests.
    tests: Vec<bool>,
}

/// A function's name, and its lines from its `fn` to its last brace, counted from 0.
pub(super) struct Function {
    pub(super) name: String,
    pub(super) lines: Range<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(path: &'a str, text: &'a str) -> Self {
        let raw: Vec<&str> = text.lines().collect();
        let (code, comments) = split(text);
        let mut source = Self { path, raw, code, comments, tests: Vec::new() };
        source.tests = source.test_lines();
        source
    }

    /// Whether a line, counted from 0, is part of a test.
    pub(super) fn is_test(&self, line: usize) -> bool {
        self.tests[line]
    }

    /// How many of these lines hold code.
    pub(super) fn code_lines(&self, lines: Range<usize>) -> usize {
        self.code[lines].iter().filter(|line| !line.trim().is_empty()).count()
    }

    /// All functions with a body.
    pub(super) fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for (line, code) in self.code.iter().enumerate() {
            for (column, _) in code.match_indices("fn ") {
                let begins = code[..column].chars().next_back().is_none_or(|c| !is_name(c));
                let name: String = code[column + 3..].chars().take_while(|c| is_name(*c)).collect();
                let end = self.end_of_block(line, column);
                if let (true, false, Some(end)) = (begins, name.is_empty(), end) {
                    functions.push(Function { name, lines: line..end + 1 });
                }
            }
        }
        functions
    }

    /// Every path with a `::` in the code, `use` trees expanded: (line counted from 0, path).
    pub(super) fn paths(&self) -> Vec<(usize, String)> {
        let mut paths = Vec::new();
        let mut line = 0;
        while line < self.code.len() {
            let code = self.code[line].as_str();
            let Some(begin) = use_begin(code) else {
                paths.extend(names_in(code).into_iter().map(|path| (line, path)));
                line += 1;
                continue;
            };
            let mut tree = vec![(line, code[begin..].to_owned())];
            while !tree.last().is_some_and(|(_, text)| text.contains(';'))
                && line + 1 < self.code.len()
            {
                line += 1;
                tree.push((line, self.code[line].clone()));
            }
            paths.extend(written_out(&tree));
            line += 1;
        }
        paths
    }

    /// The line of the brace that closes the first block after this place; `None` if a `;` comes
    /// before a block.
    fn end_of_block(&self, line: usize, column: usize) -> Option<usize> {
        // Parentheses and brackets hide the `;` of an array's type.
        let (mut braces, mut others) = (0_usize, 0_usize);
        for (number, code) in self.code.iter().enumerate().skip(line) {
            let from = if number == line { column } else { 0 };
            for c in code[from..].chars() {
                match c {
                    '(' | '[' => others += 1,
                    ')' | ']' => others = others.saturating_sub(1),
                    ';' if braces == 0 && others == 0 => return None,
                    '{' => braces += 1,
                    '}' if braces == 1 => return Some(number),
                    '}' => braces = braces.saturating_sub(1),
                    _ => {}
                }
            }
        }
        None
    }

    fn test_lines(&self) -> Vec<bool> {
        let all = self.path.split('/').any(|part| matches!(part, "tests" | "tests.rs"));
        let mut tests = vec![all; self.code.len()];
        for (line, _) in self.code.iter().enumerate().filter(|(_, c)| c.contains("#[cfg(test)]")) {
            if let Some(end) = self.end_of_block(line, 0) {
                tests[line..=end].fill(true);
            }
        }
        tests
    }
}

pub(super) fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `text` on its own.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        before.is_none_or(|c| !is_name(c)) && after.is_none_or(|c| !is_name(c))
    })
}

/// The lines' code and the lines' comments.
fn split(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut code, mut comments) = (vec![String::new()], vec![String::new()]);
    let mut rest = text;
    for token in tokenize(text, FrontmatterAllowed::No) {
        let (shown, after) = rest.split_at(token.len as usize);
        rest = after;
        for c in shown.chars() {
            if c == '\n' {
                code.push(String::new());
                comments.push(String::new());
                continue;
            }
            let (in_code, in_comment) = match token.kind {
                TokenKind::LineComment { .. } | TokenKind::BlockComment { .. } => (' ', c),
                TokenKind::Literal { kind, .. } => (shown_of(kind, c), ' '),
                _ => (c, ' '),
            };
            code.last_mut().expect("there is one").push(in_code);
            comments.last_mut().expect("there is one").push(in_comment);
        }
    }
    if text.ends_with('\n') || text.is_empty() {
        code.pop();
        comments.pop();
    }
    (code, comments)
}

/// What stands in the view of the code for a character of a literal.
fn shown_of(kind: LiteralKind, c: char) -> char {
    match kind {
        LiteralKind::Int { .. } | LiteralKind::Float { .. } => c,
        LiteralKind::Str { .. } | LiteralKind::ByteStr { .. } | LiteralKind::CStr { .. } => '"',
        LiteralKind::Char { .. }
        | LiteralKind::Byte { .. }
        | LiteralKind::RawStr { .. }
        | LiteralKind::RawByteStr { .. }
        | LiteralKind::RawCStr { .. } => '~',
    }
}

/// Where the tree of a `use` begins in a line, if one does.
fn use_begin(code: &str) -> Option<usize> {
    let trimmed = code.trim_start();
    let rest = match trimmed.strip_prefix("pub") {
        None => trimmed,
        Some(rest) => match rest.trim_start().strip_prefix('(') {
            Some(scope) => scope.split_once(')')?.1.trim_start(),
            None => rest.trim_start(),
        },
    };
    rest.strip_prefix("use ").map(|tree| code.len() - tree.len())
}

/// Paths with a `::` in one line of code that is no `use`.
fn names_in(code: &str) -> Vec<String> {
    code.split(|c: char| !is_name(c) && c != ':')
        .filter(|name| name.contains("::"))
        .map(|name| name.trim_matches(':').to_owned())
        .collect()
}

/// The full paths of a `use` tree, each with the line of its last name.
fn written_out(tree: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    let mut prefixes = vec![String::new()];
    let mut path = String::new();
    for (line, text) in tree {
        for c in text.chars() {
            match c {
                '{' => prefixes.push(path.clone()),
                ',' | '}' | ';' => {
                    let prefix = prefixes.last().cloned().unwrap_or_default();
                    if path != prefix {
                        paths.push((*line, path.trim_end_matches("::").to_owned()));
                    }
                    if c == '}' {
                        prefixes.pop();
                    }
                    // After a closing brace this equals the prefix, so that what stood in the
                    // braces is not taken for a path of its own.
                    path = prefixes.last().cloned().unwrap_or_default();
                }
                c if c.is_whitespace() => {
                    // What follows ` as ` is another name and does not lengthen the path.
                    if !path.is_empty() && !path.ends_with("::") {
                        path.push(' ');
                    }
                }
                c => path.push(c),
            }
        }
    }
    let without_alias = |path: String| path.split(' ').next().unwrap_or_default().to_owned();
    paths.into_iter().map(|(line, path)| (line, without_alias(path))).collect()
}

//! Checks the whole checkout for those rules of STYLE.md and ARCHITECTURE.md that a program can
//! check.
//!
//! * A violation is printed as `file:line: rule: why`; [`check`] returns all of them, sorted.
//! * The checker works on text: it tells comments and strings from code ([`source`]), and names by
//!   their paths, `use` trees included. It expands no macros and resolves nothing.
//! * Exceptions are listed in [`rules`] with their reason, nowhere else.
//!
//! What clippy and rustc check already (`unwrap`, `allow` without a reason, missing docs) is left
//! to them.

mod circles;
mod docs;
mod requirements;
mod rules;
mod source;
#[cfg(test)]
mod tests;
mod words;
mod wrap;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

pub(crate) use requirements::Tried;
use source::Source;

/// Folders that are not checked: what was built or generated, and what git keeps.
const SKIPPED: [&str; 3] = ["target", "generated", ".git"];

/// A violation of the project's rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// The file, relative to the checkout's root.
    file: String,
    /// The line, counted from 1.
    line: usize,
    /// The rule's short name.
    rule: &'static str,
    /// What is wrong and what to do instead.
    why: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.rule, self.why)
    }
}

/// The files to check: their paths, relative to the root and sorted, and their texts.
struct Tree {
    files: Vec<(String, String)>,
}

/// Checks the checkout at `root`; returns the violations, sorted by file and line.
pub(crate) fn check(root: &Path) -> Result<Vec<Violation>> {
    Ok(Tree::read(root)?.check())
}

/// Wraps comments and strings in lines that are too long; returns how many files changed.
pub(crate) fn wrap(root: &Path) -> Result<usize> {
    let mut changed = 0;
    for (path, text) in Tree::read(root)?.files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        if let Some(wrapped) = wrap::wrap(path, text, rules::COLUMNS_MAX) {
            let file = root.join(path);
            fs::write(&file, wrapped).with_context(|| format!("writing {}", file.display()))?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// Fills in what documents say about the tests; returns whether anything changed.
pub(crate) fn fill_in(root: &Path) -> Result<bool> {
    bugs_were_tried(root, &Tried::new())
}

/// Fills in which of the tried bugs made tests fail; returns whether anything changed.
pub(crate) fn bugs_were_tried(root: &Path, tried: &Tried) -> Result<bool> {
    let Some((path, text)) = requirements::update(&Tree::read(root)?, tried) else {
        return Ok(false);
    };
    let file = root.join(path);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(true)
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        read_folder(root, "", &mut files)?;
        files.sort();
        Ok(Self { files })
    }

    fn check(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        let rust = self.files.iter().filter(|(path, _)| path.ends_with(".rs"));
        let sources: Vec<Source<'_>> = rust.map(|(path, text)| Source::new(path, text)).collect();
        sources.iter().for_each(|source| rules::check(source, &mut violations));
        circles::check(&sources, &mut violations);
        rules::check_manifests(self, &mut violations);
        words::check(self, &mut violations);
        docs::check(self, &mut violations);
        requirements::check(self, &mut violations);
        violations.sort();
        violations.dedup();
        violations
    }

    fn text(&self, path: &str) -> Option<&str> {
        let at = self.files.binary_search_by(|(have, _)| have.as_str().cmp(path)).ok()?;
        Some(&self.files[at].1)
    }

    /// Whether there is such a file, or a folder with a file in it.
    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside = |have: &str| have.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        self.files.iter().any(|(have, _)| have == path || inside(have))
    }
}

/// Gathers all files below `folder`. A file that is not text counts as empty: it only has to exist.
fn read_folder(root: &Path, folder: &str, files: &mut Vec<(String, String)>) -> Result<()> {
    let reading = || format!("reading {}", root.join(folder).display());
    for entry in fs::read_dir(root.join(folder)).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let kind = entry.file_type().with_context(reading)?;
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            read_folder(root, &path, files)?;
        } else if kind.is_file() {
            let bytes = fs::read(entry.path())
                .with_context(|| format!("reading {}", root.join(&path).display()))?;
            files.push((path, String::from_utf8(bytes).unwrap_or_default()));
        }
    }
    Ok(())
}

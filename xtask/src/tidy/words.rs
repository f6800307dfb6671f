//! The words that are not used: the third column of the table *Words* in ARCHITECTURE.md, and those
//! that the sentence below it names.
//!
//! A word is looked for in code, comments and documents alike, as a whole word: `kept` does not
//! occur in `keptOn` but does in `kept_on` and `KeptOn`. A phrase is looked for in a single line.

use super::{Tree, Violation};

/// The document with the table.
const TABLE: &str = "ARCHITECTURE.md";
/// The table's first line.
const HEAD: &str = "| word | in the field | not used | meaning here |";
/// The beginning of the sentence that names more such words, each between asterisks.
const PROSE: &str = "In prose, name the subject; do not write ";
/// The endings of the names of files that hold text.
const TEXTS: [&str; 7] = [".rs", ".md", ".proto", ".wit", ".txt", ".toml", ".js"];
/// Files that a fuzzer generated, which nobody wrote.
const DRAWN: &str = "tests/fuzz/corpus/";

/// Folders whose subject needs a row's words for something else, and the first word of that row.
const HOMONYMS: [(&str, &str); 1] = [("examples/lock/", "allocation")];

/// A word or phrase that is not used, and the word to write instead.
struct Unused<'a> {
    words: Vec<&'a str>,
    instead: &'a str,
}

/// Appends where such words occur.
pub(super) fn check(tree: &Tree, violations: &mut Vec<Violation>) {
    let Some(table) = tree.text(TABLE) else { return };
    let of_rows = rows(table).flat_map(|(_, row)| of_row(row));
    let of_prose = prose(table).flat_map(|(_, sentence)| of_sentence(sentence));
    let unused: Vec<Unused<'_>> = of_rows.chain(of_prose).collect();
    let of_table: Vec<usize> = rows(table).chain(prose(table)).map(|(line, _)| line).collect();
    for (file, text) in &tree.files {
        if file.starts_with(DRAWN) || !TEXTS.iter().any(|end| file.ends_with(end)) {
            continue;
        }
        for (line, text) in text.lines().enumerate() {
            if file == TABLE && of_table.contains(&line) {
                continue;
            }
            let said = words(text);
            let unused = unused.iter().filter(|unused| !unused.is_homonym_in(file));
            for Unused { words, instead } in unused.filter(|unused| unused.is_in(&said)) {
                let why = format!("\"{}\" is not used here: say {instead}", words.join(" "));
                let file = file.clone();
                violations.push(Violation { file, line: line + 1, rule: "unused-word", why });
            }
        }
    }
}

impl Unused<'_> {
    fn is_homonym_in(&self, file: &str) -> bool {
        HOMONYMS.iter().any(|(folder, row)| file.starts_with(folder) && self.instead == *row)
    }

    fn is_in(&self, said: &[&str]) -> bool {
        let is_it = |said: &[&str]| {
            said.iter().zip(&self.words).all(|(said, word)| said.eq_ignore_ascii_case(word))
        };
        said.windows(self.words.len()).any(is_it)
    }
}

/// The rows of the table, with their lines, from 0 on.
fn rows(table: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = table.lines().enumerate().skip_while(|(_, line)| *line != HEAD);
    lines.skip(2).take_while(|(_, line)| line.starts_with('|'))
}

/// The sentence below the table, with its line, from 0 on.
fn prose(table: &str) -> impl Iterator<Item = (usize, &str)> {
    table.lines().enumerate().filter(|(_, line)| line.starts_with(PROSE))
}

fn of_row(row: &str) -> impl Iterator<Item = Unused<'_>> {
    let mut cells = row.split('|').skip(1).map(str::trim);
    let instead = cells.next().unwrap_or_default();
    let unused = cells.nth(1).unwrap_or_default();
    unused
        .split(", ")
        .filter(|phrase| !phrase.is_empty())
        .map(move |phrase| Unused { words: phrase.split(' ').collect(), instead })
}

fn of_sentence(sentence: &str) -> impl Iterator<Item = Unused<'_>> {
    let named = sentence.split('*').skip(1).step_by(2);
    named.map(|word| Unused { words: vec![word], instead: "the subject by its name" })
}

/// The words of a line; names are cut at `_` and before a capital that follows a small letter.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for run in line.split(|c: char| !c.is_alphabetic() && c != '\'') {
        let mut begin = 0;
        let pairs = run.char_indices().zip(run.chars().skip(1));
        for ((at, before), after) in pairs {
            if before.is_lowercase() && after.is_uppercase() {
                let end = at + before.len_utf8();
                words.push(&run[begin..end]);
                begin = end;
            }
        }
        words.push(&run[begin..]);
    }
    words.retain(|word| !word.is_empty());
    words
}

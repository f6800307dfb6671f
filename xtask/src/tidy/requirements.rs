//! `docs/snapshot-requirements.md`: which test covers which requirement on snapshots.
//!
//! * Ids, sentences and kinds in the table are written by hand; tests and counts are filled in from
//!   the tree by `cargo xtask tidy --fix`, planted bugs by `cargo xtask mutants`.
//! * A test names the ids that it covers in a line of its documentation, `/// Covers X1 X2.`, a
//!   script in a line `# Covers X1 X2.` below its title. A test names at most three ids, because a
//!   test that covers everything shows nothing.
//! * A bug counts for an id if a test of that id failed with it ([`update`]).

use std::collections::{BTreeMap, BTreeSet};

use super::{Tree, Violation};

const TABLE: &str = "docs/snapshot-requirements.md";
const SCRIPTS: &str = "host/core/tests/scripts/";
/// All ids: the letter of each section, and how many ids it has.
const SECTIONS: [(char, usize); 12] = [
    ('L', 11),
    ('P', 17),
    ('G', 9),
    ('X', 16),
    ('K', 20),
    ('O', 10),
    ('M', 7),
    ('I', 9),
    ('F', 10),
    ('V', 4),
    ('U', 6),
    ('C', 5),
];
const IDS_MAX: usize = 3;
const KINDS: [&str; 3] = ["as written", "by intent", "superseded"];
/// The ids that another rule replaces; only these may be superseded.
const SUPERSEDED: [&str; 14] =
    ["L8", "P10", "G6", "K11", "K13", "K16", "K19", "O4", "O10", "I1", "F4", "F6", "F7", "U5"];
/// The beginnings of the lines that are filled in: the counts, and the ids without a bug.
const COUNTS: &str = "**Counts.**";
const UNPROVEN: &str = "**No planted bug makes these fail.**";

/// A test or a script, and the ids it names.
struct Test {
    file: String,
    line: usize,
    name: String,
    ids: Vec<String>,
}

/// Appends the violations in the table, and in what the tests name.
pub(super) fn check(tree: &Tree, violations: &mut Vec<Violation>) {
    let Some(text) = tree.text(TABLE) else { return };
    let mut report = |file: &str, line: usize, why: String| {
        let rule = "requirements";
        violations.push(Violation { file: file.to_owned(), line, rule, why });
    };
    let known: BTreeSet<String> = all_ids().collect();
    let tests = tests(tree);
    for test in &tests {
        for id in test.ids.iter().filter(|id| !known.contains(*id)) {
            report(&test.file, test.line, format!("{} names {id}, which is not an id", test.name));
        }
        if test.ids.len() > IDS_MAX {
            let why = format!("{} names more than {IDS_MAX} ids: split it", test.name);
            report(&test.file, test.line, why);
        }
    }
    let rows: Vec<&str> = text.lines().filter_map(row_id).collect();
    for id in &known {
        match rows.iter().filter(|row| *row == id).count() {
            1 => {}
            count => report(TABLE, 1, format!("{id} has {count} rows, not one")),
        }
        if !tests.iter().any(|test| test.ids.contains(id)) {
            report(TABLE, 1, format!("no test names {id}"));
        }
    }
    for (at, line) in text.lines().enumerate().filter(|(_, line)| row_id(line).is_some()) {
        let kind = line.split('|').nth(2).map_or("", str::trim);
        if !KINDS.contains(&kind) {
            report(TABLE, at + 1, format!("{kind:?} is not one of {}", KINDS.join(", ")));
        }
        let id = row_id(line).unwrap_or_default();
        if SUPERSEDED.contains(&id) != (kind == "superseded") {
            report(TABLE, at + 1, format!("{id} is {kind}, but superseded ids are {SUPERSEDED:?}"));
        }
    }
    let filled = fill(tree, text, &Tried::new());
    let differs = text.lines().zip(filled.lines()).position(|(is, want)| is != want);
    if let Some(at) = differs {
        report(TABLE, at + 1, "out of date: run `cargo xtask tidy --fix`".to_owned());
    }
}

/// The tests that failed with each bug that was tried, by the names of the bugs. The name of a test
/// may include its modules.
pub(crate) type Tried = BTreeMap<String, BTreeSet<String>>;

/// The table after these bugs were tried; `None` if there is no table or it does not change.
pub(super) fn update(tree: &Tree, tried: &Tried) -> Option<(&'static str, String)> {
    let text = tree.text(TABLE)?;
    let bare = |test: &String| test.rsplit("::").next().unwrap_or(test).to_owned();
    let tried = tried.iter().map(|(bug, tests)| (bug.clone(), tests.iter().map(bare).collect()));
    let filled = fill(tree, text, &tried.collect());
    (filled != text).then_some((TABLE, filled))
}

fn all_ids() -> impl Iterator<Item = String> {
    let of = |(letter, count): (char, usize)| (1..=count).map(move |n| format!("{letter}{n}"));
    SECTIONS.into_iter().flat_map(of)
}

/// The id of a row of the table.
fn row_id(line: &str) -> Option<&str> {
    let id = line.strip_prefix("| ")?.split_once(" |")?.0;
    let (letter, number) = id.split_at_checked(1)?;
    let is_id = letter.chars().all(|c| c.is_ascii_uppercase()) && number.parse::<u32>().is_ok();
    is_id.then_some(id)
}

fn fill(tree: &Tree, text: &str, tried: &Tried) -> String {
    let tests = tests(tree);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unproven = Vec::new();
    for line in text.lines() {
        let Some(id) = row_id(line) else { continue };
        *counts.entry(line.split('|').nth(2).map_or("", str::trim)).or_default() += 1;
        if bugs(&tests, tried, id, line).is_empty() {
            unproven.push(id);
        }
    }
    let counts: Vec<String> =
        KINDS.iter().map(|kind| format!("{} {kind}", counts.get(kind).unwrap_or(&0))).collect();
    let line = |line: &str| match row_id(line) {
        Some(id) => {
            let hand: Vec<&str> = line.split('|').take(4).collect();
            let mut names: Vec<&str> = naming(&tests, id).map(|test| &*test.name).collect();
            names.sort_unstable();
            let bugs = bugs(&tests, tried, id, line);
            format!("{}| {} | {} |", hand.join("|"), quoted(names), quoted(bugs))
        }
        None if line.starts_with(COUNTS) => format!("{COUNTS} {}.", counts.join(", ")),
        None if line.starts_with(UNPROVEN) => format!("{UNPROVEN} {}.", unproven.join(", ")),
        None => line.to_owned(),
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

/// The tests that name an id.
fn naming<'a>(tests: &'a [Test], id: &str) -> impl Iterator<Item = &'a Test> {
    tests.iter().filter(move |test| test.ids.iter().any(|have| have == id))
}

/// The bugs with which a test of an id fails: those in the id's row that were not tried now, and
/// those tried now that a test of the id caught.
fn bugs(tests: &[Test], tried: &Tried, id: &str, row: &str) -> BTreeSet<String> {
    let had = row.split('|').nth(5).unwrap_or_default();
    let had = had.split('`').skip(1).step_by(2).filter(|bug| !tried.contains_key(*bug));
    let caught = tried
        .iter()
        .filter(|(_, failed)| naming(tests, id).any(|test| failed.contains(&test.name)));
    had.map(str::to_owned).chain(caught.map(|(bug, _)| bug.clone())).collect()
}

/// Names for a cell of the table.
fn quoted(names: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    quoted.join("<br>")
}

fn tests(tree: &Tree) -> Vec<Test> {
    let mut tests = Vec::new();
    for (file, text) in &tree.files {
        if let Some(name) = file.strip_prefix(SCRIPTS) {
            let head = text.lines().take_while(|line| line.starts_with('#')).enumerate();
            for (at, line) in head {
                let Some(ids) = covered(line, "# ") else { continue };
                let (file, name) = (file.clone(), name.to_owned());
                tests.push(Test { file, line: at + 1, name, ids });
            }
        } else if file.ends_with(".rs") {
            tests.extend(test_functions(file, text));
        }
    }
    tests.retain(|test| !test.ids.is_empty());
    tests
}

fn test_functions<'a>(file: &'a str, text: &'a str) -> impl Iterator<Item = Test> + 'a {
    let (mut ids, mut is_test) = (Vec::new(), false);
    text.lines().enumerate().filter_map(move |(at, line)| {
        let line = line.trim_start();
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        ids.extend(covered(line, "/// ").into_iter().flatten());
        let rest = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))?;
        let ids = std::mem::take(&mut ids);
        let name = std::mem::take(&mut is_test).then(|| rest.split('(').next())??.to_owned();
        Some(Test { file: file.to_owned(), line: at + 1, name, ids })
    })
}

/// The ids that a line of a comment names, if it is one that names any.
fn covered(line: &str, comment: &str) -> Option<Vec<String>> {
    let ids = line.strip_prefix(comment)?.strip_prefix("Covers ")?;
    Some(ids.trim_end_matches('.').split(' ').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let own = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        let mut files: Vec<_> = files.iter().map(own).collect();
        files.sort();
        Tree { files }
    }

    fn whole_table() -> String {
        let kind = |id: &str| if SUPERSEDED.contains(&id) { "superseded" } else { "as written" };
        let rows = all_ids().map(|id| format!("| {id} | {} | it holds | | |\n", kind(&id)));
        format!("{COUNTS}\n\n{UNPROVEN}\n\n{}", rows.collect::<String>())
    }

    fn whole_tests() -> String {
        let test = |id: String| {
            format!("/// Covers {id}.\n#[test]\nfn {}_holds() {{}}\n", id.to_lowercase())
        };
        all_ids().map(test).collect()
    }

    fn said(tree: &Tree) -> Vec<String> {
        let mut violations = Vec::new();
        check(tree, &mut violations);
        violations.into_iter().map(|violation| violation.why).collect()
    }

    #[test]
    fn a_filled_table_is_in_order_and_shows_tests_and_bugs() {
        let (table, tests) = (whole_table(), whole_tests());
        let mut files = vec![(TABLE, &*table), ("host/a.rs", &*tests)];
        let failed = ["a::b::f1_holds", "k1_holds"].map(str::to_owned).into();
        let bugs = Tried::from([("skip_fsync".to_owned(), failed)]);
        let (_, filled) = update(&tree(&files), &bugs).expect("it is not filled yet");
        files[0].1 = &filled;
        assert_eq!(said(&tree(&files)), [""; 0]);
        assert!(filled.contains("| F1 | as written | it holds | `f1_holds` | `skip_fsync` |\n"));
        assert!(filled.contains("110 as written, 0 by intent, 14 superseded"), "{filled}");
        assert!(!filled.contains("K1, "), "a bug makes K1's test fail");
        let again = Tried::from([("skip_fsync".to_owned(), BTreeSet::new())]);
        let (_, uncaught) = update(&tree(&files), &again).expect("it changes");
        assert!(uncaught.contains("K1, ") && !uncaught.contains("skip_fsync"), "{uncaught}");
        // A test that was deleted is reported, and the table has to be filled in again.
        let without = tests.replace("Covers K9.", "Holds.");
        files[1].1 = &without;
        let said = said(&tree(&files));
        assert!(said[0].contains("no test names K9"), "{said:?}");
        assert!(said[1].contains("--fix"), "{said:?}");
    }

    #[test]
    fn ids_that_do_not_exist_and_too_many_of_them_are_refused() {
        let table = whole_table();
        let more = "/// Of all.\n/// Covers K1 K2 K3 K4.\n#[test]\nfn all() {}\n\
                    /// Covers K99.\n#[tokio::test]\nasync fn none() {}\n\
                    /// Covers K1 K2 K3 K5.\nfn no_test() {}\n#[test]\nfn of_nothing() {}\n";
        let tests = whole_tests() + more;
        let script =
            (&*format!("{SCRIPTS}story.txt"), "# A story.\n# Covers X14 U7.\nbootstrapped 3\n");
        let said = said(&tree(&[(TABLE, &*table), ("host/a.rs", &*tests), script]));
        for part in ["all names more than 3", "none names K99", "story.txt names U7"] {
            assert!(said.iter().any(|why| why.contains(part)), "{part} is not in {said:?}");
        }
        for part in ["no_test", "of_nothing"] {
            assert!(!said.iter().any(|why| why.contains(part)), "{said:?}");
        }
    }
}

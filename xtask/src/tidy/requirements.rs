//! `docs/snapshot-requirements.md`: which test stands for which requirement on snapshots.
//!
//! * Ids, sentences and kinds in the table are written by hand; tests, planted bugs and counts are
//!   filled in from the tree, by `cargo xtask tidy --fix`.
//! * A test names the ids it stands for at the head of its own name
//!   (`x1_x2_dropped_leaves_nothing`), a script in a line `# Covers X1 X2.` below its title. Three
//!   at the most: a test that stands for everything shows nothing. Names of invariants (`n7`) and
//!   weaknesses (`w24`) may stand among them and do not count.
//! * A bug counts for an id if a test of that id failed with it, as `docs/planted-bugs.md` has it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Tree, Violation};

const TABLE: &str = "docs/snapshot-requirements.md";
const BUGS: &str = "docs/planted-bugs.md";
const SCRIPTS: &str = "host/core/tests/scripts/";
/// The ids there are: a letter, and how many.
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
/// The ids that another rule replaces; no others may be.
const SUPERSEDED: [&str; 14] =
    ["L8", "P10", "G6", "K11", "K13", "K16", "K19", "O4", "O10", "I1", "F4", "F6", "F7", "U5"];
/// How the lines begin that hold the counts.
const COUNTS: &str = "**Counts.**";
const UNPROVEN: &str = "**No planted bug makes these fail.**";

/// A test or a script, and the ids it names.
struct Test {
    file: String,
    line: usize,
    name: String,
    ids: Vec<String>,
}

/// Appends what is wrong with the table and with what the tests name.
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
            report(&test.file, test.line, format!("{} names {id}, which is no id", test.name));
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
            report(TABLE, at + 1, format!("{kind:?} is none of {}", KINDS.join(", ")));
        }
        let id = row_id(line).unwrap_or_default();
        if SUPERSEDED.contains(&id) != (kind == "superseded") {
            report(TABLE, at + 1, format!("{id} is {kind}: superseded are {SUPERSEDED:?}"));
        }
    }
    let filled = fill(tree, text);
    let differs = text.lines().zip(filled.lines()).position(|(is, want)| is != want);
    if let Some(at) = differs {
        report(TABLE, at + 1, "not what the tests say: run `cargo xtask tidy --fix`".to_owned());
    }
}

/// The table as it should be, if it is there and not so.
pub(super) fn update(tree: &Tree) -> Option<(&'static str, String)> {
    let text = tree.text(TABLE)?;
    let filled = fill(tree, text);
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

fn fill(tree: &Tree, text: &str) -> String {
    let tests = tests(tree);
    let bugs = bugs(tree.text(BUGS).unwrap_or_default());
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unproven = Vec::new();
    for line in text.lines() {
        let Some(id) = row_id(line) else { continue };
        *counts.entry(line.split('|').nth(2).map_or("", str::trim)).or_default() += 1;
        if found(&tests, &bugs, id).1.is_empty() {
            unproven.push(id);
        }
    }
    let counts: Vec<String> =
        KINDS.iter().map(|kind| format!("{} {kind}", counts.get(kind).unwrap_or(&0))).collect();
    let line = |line: &str| match row_id(line) {
        Some(id) => {
            let hand: Vec<&str> = line.split('|').take(4).collect();
            let (names, caught) = found(&tests, &bugs, id);
            format!("{}| {} | {} |", hand.join("|"), names.join("<br>"), caught.join("<br>"))
        }
        None if line.starts_with(COUNTS) => format!("{COUNTS} {}.", counts.join(", ")),
        None if line.starts_with(UNPROVEN) => format!("{UNPROVEN} {}.", unproven.join(", ")),
        None => line.to_owned(),
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

/// The tests that name an id, and the bugs with which one of them failed, ready for the table.
fn found(
    tests: &[Test],
    bugs: &BTreeMap<String, BTreeSet<String>>,
    id: &str,
) -> (Vec<String>, Vec<String>) {
    let naming: Vec<&Test> =
        tests.iter().filter(|test| test.ids.iter().any(|have| have == id)).collect();
    let mut names: Vec<String> = naming.iter().map(|test| format!("`{}`", test.name)).collect();
    names.sort();
    let caught: BTreeSet<&String> =
        naming.iter().filter_map(|test| bugs.get(&test.name)).flatten().collect();
    (names, caught.into_iter().map(|bug| format!("`{bug}`")).collect())
}

/// Which bugs made each test fail.
fn bugs(table: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let mut quoted = line.split('`').skip(1).step_by(2);
        let Some(bug) = quoted.next() else { continue };
        for test in quoted {
            let name = test.rsplit("::").next().unwrap_or(test);
            found.entry(name.to_owned()).or_default().insert(bug.to_owned());
        }
    }
    found
}

fn tests(tree: &Tree) -> Vec<Test> {
    let mut tests = Vec::new();
    for (file, text) in &tree.files {
        if let Some(name) = file.strip_prefix(SCRIPTS) {
            let head = text.lines().take_while(|line| line.starts_with('#')).enumerate();
            for (at, line) in head {
                let Some(ids) = line.strip_prefix("# Covers ") else { continue };
                let ids = ids.trim_end_matches('.').split(' ').map(str::to_owned).collect();
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
    let mut is_test = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let line = line.trim_start();
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        }
        let rest = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))?;
        if !std::mem::take(&mut is_test) {
            return None;
        }
        let name = rest.split('(').next()?.to_owned();
        Some(Test { file: file.to_owned(), line: at + 1, ids: ids_of(&name), name })
    })
}

/// The ids at the head of a test's name.
fn ids_of(name: &str) -> Vec<String> {
    let is_mark = |part: &&str| {
        let (letter, number) = part.split_at_checked(1).unwrap_or(("", ""));
        letter.chars().all(|c| c.is_ascii_lowercase()) && number.parse::<u32>().is_ok()
    };
    let counts =
        |part: &&str| SECTIONS.iter().any(|(c, _)| part.starts_with(c.to_ascii_lowercase()));
    name.split('_').take_while(is_mark).filter(counts).map(str::to_uppercase).collect()
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
        all_ids().map(|id| format!("#[test]\nfn {}_holds() {{}}\n", id.to_lowercase())).collect()
    }

    fn said(tree: &Tree) -> Vec<String> {
        let mut violations = Vec::new();
        check(tree, &mut violations);
        violations.into_iter().map(|violation| violation.why).collect()
    }

    #[test]
    fn a_filled_table_is_in_order_and_shows_tests_and_bugs() {
        let bugs = "| `skip_fsync` | it skips | - | `a::b::f1_holds`<br>`k1_holds` |\n";
        let (table, tests) = (whole_table(), whole_tests());
        let mut files = vec![(TABLE, &*table), ("host/a.rs", &*tests), (BUGS, bugs)];
        let (_, filled) = update(&tree(&files)).expect("it is not filled yet");
        files[0].1 = &filled;
        assert_eq!(said(&tree(&files)), [""; 0]);
        assert!(filled.contains("| F1 | as written | it holds | `f1_holds` | `skip_fsync` |\n"));
        assert!(filled.contains("110 as written, 0 by intent, 14 superseded"), "{filled}");
        assert!(!filled.contains("K1, "), "a bug makes K1's test fail");
        // A test that is gone is missed, and still shown.
        let without = tests.replace("fn k9_holds", "fn holds");
        files[1].1 = &without;
        let said = said(&tree(&files));
        assert!(said[0].contains("no test names K9"), "{said:?}");
        assert!(said[1].contains("--fix"), "{said:?}");
    }

    #[test]
    fn names_that_are_no_ids_and_names_of_too_many_are_refused() {
        assert_eq!(ids_of("n7_k1_w24_p3_what_follows_k2"), ["K1", "P3"]);
        assert_eq!(ids_of("a_name"), [""; 0]);
        let table = whole_table();
        let more = "#[test]\nfn k1_k2_k3_k4_all() {}\n#[tokio::test]\nasync fn k99_none() {}\n\
                    fn k1_k2_k3_k5_no_test() {}\n";
        let tests = whole_tests() + more;
        let script = (&*format!("{SCRIPTS}story.txt"), "# A story.\n# Covers X14 U7.\nfounded 3\n");
        let said = said(&tree(&[(TABLE, &*table), ("host/a.rs", &*tests), script]));
        for part in ["k1_k2_k3_k4_all names more than 3", "names K99", "story.txt names U7"] {
            assert!(said.iter().any(|why| why.contains(part)), "{part} is not in {said:?}");
        }
        assert!(!said.iter().any(|why| why.contains("no_test")), "{said:?}");
    }
}

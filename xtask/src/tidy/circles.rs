//! Files of one folder that import each other in a circle: each of them can only be read, and
//! changed, together with all the others.
//!
//! What counts is a path from `crate` or `super` on, in code that is no test. A parent module and
//! its children are one: it names them to have them.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Source;
use super::{Tree, Violation};

/// The folders without circles, and the root of the crate that each is in.
const FOLDERS: [(&str, &str); 2] =
    [("host/client/src/", "host/client/src/"), ("host/src/guest/", "host/src/")];

type Imports = BTreeMap<String, BTreeSet<String>>;

/// Appends each file that is part of a circle.
pub(super) fn check(tree: &Tree, violations: &mut Vec<Violation>) {
    for (folder, root) in FOLDERS {
        let imports = imports(tree, folder, root);
        for (module, file) in modules(tree, folder) {
            if let Some(way) = back_to(&imports, &module) {
                let why = format!("it imports itself: {}; move what they share", way.join(" > "));
                violations.push(Violation { file, line: 1, rule: "import-circle", why });
            }
        }
    }
}

/// The modules of a folder, by their names in it, and their files.
fn modules<'a>(tree: &'a Tree, folder: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
    tree.files.iter().filter_map(move |(file, _)| {
        let name = file.strip_prefix(folder)?.strip_suffix(".rs")?;
        let test = name == "tests" || name.contains("tests/") || name.ends_with("/tests");
        let own = !test && name != "lib" && !name.contains("generated/");
        own.then(|| (head(name).to_owned(), file.clone()))
    })
}

/// The part of a path before the first `/`.
fn head(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

fn imports(tree: &Tree, folder: &str, root: &str) -> Imports {
    let all: BTreeSet<String> = modules(tree, folder).map(|(module, _)| module).collect();
    let prefix: Vec<&str> =
        folder[root.len()..].split('/').filter(|part| !part.is_empty()).collect();
    let mut imports = Imports::new();
    for (module, file) in modules(tree, folder) {
        let text = tree.text(&file).unwrap_or_default();
        let source = Source::new(&file, text);
        let depth = file[folder.len()..].matches('/').count();
        for (line, path) in source.paths() {
            if source.is_test(line) {
                continue;
            }
            let parts: Vec<&str> = path.split("::").collect();
            let supers = parts.iter().take_while(|part| **part == "super").count();
            let inside = match parts.as_slice() {
                ["crate", rest @ ..] => rest.strip_prefix(prefix.as_slice()),
                _ if supers > 0 => (supers == depth + 1).then(|| &parts[supers..]),
                _other => None,
            };
            let named = inside.and_then(|inside| inside.first()).map(|name| (*name).to_owned());
            if let Some(named) = named.filter(|named| all.contains(named) && *named != module) {
                imports.entry(module.clone()).or_default().insert(named);
            }
        }
    }
    imports
}

/// The shortest way from a module back to itself.
fn back_to(imports: &Imports, module: &str) -> Option<Vec<String>> {
    let mut ways = vec![vec![module.to_owned()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in way.last().and_then(|last| imports.get(last)).into_iter().flatten() {
                let mut way = way.clone();
                way.push(next.clone());
                if next == module {
                    return Some(way);
                }
                if seen.insert(next.clone()) {
                    longer.push(way);
                }
            }
        }
        ways = longer;
    }
    None
}

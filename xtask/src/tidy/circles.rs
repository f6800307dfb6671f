//! Files of one folder that import each other in a circle: each of them can only be read, and
//! changed, together with all the others.
//!
//! Only paths that begin with `crate` or `super` count, and only outside tests. A parent module and
//! its children count as one module, because the parent has to name its children.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::source::Source;

/// The folders without circles.
const FOLDERS: [&str; 3] = ["host/client/src/", "host/core/src/group/", "host/src/guest/"];

type Imports<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Appends each file that is part of a circle.
pub(super) fn check(sources: &[Source<'_>], violations: &mut Vec<Violation>) {
    for folder in FOLDERS {
        let files: Vec<_> = sources.iter().filter_map(|source| of(folder, source)).collect();
        let imports = imports(folder, &files);
        for (module, source) in &files {
            if let Some(way) = back_to(&imports, module) {
                let why = format!("it imports itself: {}; move what they share", way.join(" > "));
                let file = source.path.to_owned();
                violations.push(Violation { file, line: 1, rule: "import-circle", why });
            }
        }
    }
}

/// The module of a folder that a file is of, unless it is a test, generated, or the crate's root.
fn of<'a>(folder: &str, source: &'a Source<'a>) -> Option<(&'a str, &'a Source<'a>)> {
    let name = source.path.strip_prefix(folder)?.strip_suffix(".rs")?;
    let mut parts = name.split('/');
    let other = name == "lib" || parts.clone().any(|part| part == "tests" || part == "generated");
    parts.next().filter(|_| !other).map(|module| (module, source))
}

fn imports<'a>(folder: &'a str, files: &[(&'a str, &'a Source<'a>)]) -> Imports<'a> {
    let all: BTreeSet<&str> = files.iter().map(|(module, _)| *module).collect();
    let (_, below_root) = folder.split_once("src/").unwrap_or_default();
    let prefix: Vec<&str> = below_root.split_terminator('/').collect();
    let mut imports = Imports::new();
    for (module, source) in files {
        let depth = source.path[folder.len()..].matches('/').count();
        for (line, path) in source.paths() {
            let parts: Vec<&str> = path.split("::").collect();
            let supers = parts.iter().take_while(|part| **part == "super").count();
            let inside = match parts.as_slice() {
                ["crate", rest @ ..] => rest.strip_prefix(prefix.as_slice()),
                _ if supers > 0 => (supers == depth + 1).then(|| &parts[supers..]),
                _other => None,
            };
            let named = inside.and_then(|inside| inside.first()).and_then(|name| all.get(*name));
            if let Some(named) = named.filter(|name| *name != module && !source.is_test(line)) {
                imports.entry(module).or_default().insert(named);
            }
        }
    }
    imports
}

/// The shortest way from a module back to itself.
fn back_to<'a>(imports: &Imports<'a>, module: &'a str) -> Option<Vec<&'a str>> {
    let mut ways = vec![vec![module]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in way.last().and_then(|last| imports.get(last)).into_iter().flatten() {
                let mut way = way.clone();
                way.push(next);
                if *next == module {
                    return Some(way);
                }
                if seen.insert(next) {
                    longer.push(way);
                }
            }
        }
        ways = longer;
    }
    None
}

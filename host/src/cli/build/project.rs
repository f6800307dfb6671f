//! What a project is: its language, its name and its sources.
//!
//! `lockstep.toml` says it, as far as it says anything. Otherwise `Cargo.toml` stands for Rust,
//! `package.json` for JavaScript, and sources of one language for that.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cli::Failure;
use crate::cli::sdk::Language;
use crate::guest::check::OFFERS;

const FILE: &str = "lockstep.toml";

/// The languages that need no manifest, if their files are the only ones.
const DETECTED: [Language; 3] = [Language::C, Language::Js, Language::Python];

/// A project to be built.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Project {
    pub(super) language: Language,
    /// The name of the component's file, without its ending.
    pub(super) name: String,
    /// The project's folder, absolute.
    pub(super) dir: PathBuf,
    /// The folder of the sources, absolute.
    pub(super) sources: PathBuf,
    /// The name of the file that exports the state machine, in languages that have one.
    pub(super) main: String,
    /// What it exports beyond that, as far as it has to be told.
    pub(super) exports: Vec<&'static str>,
}

/// `lockstep.toml`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Manifest {
    language: Option<Language>,
    name: Option<String>,
    source: Option<PathBuf>,
    #[serde(default)]
    world: Vec<String>,
}

impl Project {
    /// What is in a folder.
    pub(super) fn find(dir: &Path) -> Result<Self, Failure> {
        let shown = dir.display();
        let dir = fs::canonicalize(dir).map_err(|error| {
            Failure::Usage(format!("{shown}: {error}; give a project's folder"))
        })?;
        let manifest = Manifest::read(&dir)?;
        let language = match manifest.language {
            Some(language) => language,
            None if dir.join("Cargo.toml").is_file() => Language::Rust,
            None if dir.join("package.json").is_file() => Language::Js,
            None => detected(&dir)?,
        };
        let exports = manifest.exports(&dir)?;
        let folder_name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
        let (sources, main) = match language {
            Language::Rust => (dir.clone(), String::new()),
            Language::C => (manifest.folder(&dir), String::new()),
            Language::Js | Language::Python => manifest.main(&dir, language)?,
        };
        let name = match (language, manifest.name) {
            (_, Some(name)) => name,
            (Language::Rust, None) => rust_name(&dir)?,
            (Language::C | Language::Js | Language::Python, None) => {
                folder_name.unwrap_or_else(|| "machine".to_owned())
            }
        };
        if name.contains(['/', '\0']) || name.is_empty() {
            return Err(refused(&dir, "`name` is that of a file, without its ending"));
        }
        Ok(Self { language, name, dir, sources, main, exports })
    }
}

impl Manifest {
    fn read(dir: &Path) -> Result<Self, Failure> {
        match fs::read_to_string(dir.join(FILE)) {
            Ok(text) => toml::from_str(&text).map_err(|error| refused(dir, &error.to_string())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(refused(dir, &error.to_string())),
        }
    }

    fn exports(&self, dir: &Path) -> Result<Vec<&'static str>, Failure> {
        if let Some(unknown) = self.world.iter().find(|name| !OFFERS.contains(&&***name)) {
            let known = OFFERS.join(", ");
            return Err(refused(dir, &format!("`world` has `{unknown}`; there are {known}")));
        }
        Ok(OFFERS.into_iter().filter(|offer| self.world.iter().any(|it| it == offer)).collect())
    }

    /// The folder of the sources: what is said, or `src` if there is one.
    fn folder(&self, dir: &Path) -> PathBuf {
        match &self.source {
            Some(source) => dir.join(source),
            None if dir.join("src").is_dir() => dir.join("src"),
            None => dir.to_owned(),
        }
    }

    /// The folder and the name of the file that exports the machine: what is said, or the only one.
    fn main(&self, dir: &Path, language: Language) -> Result<(PathBuf, String), Failure> {
        let extension = language.extension();
        let from = self.folder(dir);
        let mut found = BTreeSet::new();
        if from.is_file() {
            found.insert(from);
        } else {
            found.extend(sources(&from, language));
        }
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(file), None) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let folder = file.parent().unwrap_or(dir).to_owned();
                Ok((folder, name))
            }
            (None, _) | (Some(_), Some(_)) => Err(refused(
                dir,
                &format!(
                    "say which file exports the state machine: \
                     `source = \"src/my_machine.{extension}\"`"
                ),
            )),
        }
    }
}

/// The language of the sources, if there is one only.
fn detected(dir: &Path) -> Result<Language, Failure> {
    let folders = [dir.to_owned(), dir.join("src")];
    let is_there =
        |language: &Language| folders.iter().any(|folder| !sources(folder, *language).is_empty());
    let found: Vec<Language> = DETECTED.into_iter().filter(is_there).collect();
    match found[..] {
        [language] => Ok(language),
        [] => Err(Failure::Usage(format!(
            "{}: no project is here: neither Cargo.toml nor {FILE}, nor a file in C, JavaScript or \
             Python; `lockstep new NAME` writes one",
            dir.display()
        ))),
        [_, _, ..] => Err(refused(
            dir,
            "there are sources in several languages; say which one counts: `language = \"c\"`, \
             \"js\" or \"python\"",
        )),
    }
}

/// The sources in a folder, sorted, without the SDK.
pub(super) fn sources(folder: &Path, language: Language) -> Vec<PathBuf> {
    let is_sdk = |path: &Path| {
        path.file_name().is_some_and(|name| language.sdk().iter().any(|(file, _)| name == *file))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|it| it == language.extension()))
        .filter(|path| path.is_file() && !is_sdk(path))
        .collect();
    found.sort();
    found
}

/// The name of the package in a manifest of cargo.
fn rust_name(dir: &Path) -> Result<String, Failure> {
    let refused =
        |why: String| Failure::Usage(format!("{}: {why}", dir.join("Cargo.toml").display()));
    let text =
        fs::read_to_string(dir.join("Cargo.toml")).map_err(|error| refused(error.to_string()))?;
    let manifest: toml::Table =
        text.parse().map_err(|error: toml::de::Error| refused(error.to_string()))?;
    let name = manifest.get("package").and_then(|package| package.get("name"));
    name.and_then(|name| name.as_str()).map(str::to_owned).ok_or_else(|| {
        refused("it has no [package]; give the folder of the state machine's package".to_owned())
    })
}

fn refused(dir: &Path, why: &str) -> Failure {
    Failure::Usage(format!("{}: {why}", dir.join(FILE).display()))
}

#[cfg(test)]
mod tests {
    use super::super::tools::tests::why;
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("there is space");
        for (path, text) in files {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().expect("it is in the folder")).expect("it is ours");
            fs::write(file, text).expect("there is space");
        }
        dir
    }

    /// `LANGUAGE NAME FOLDER MAIN EXPORTS`, without the end; or what the refusal contains.
    fn check(files: &[(&str, &str)], expect: Result<&str, &str>) {
        let dir = folder(files);
        match (Project::find(dir.path()), expect) {
            (Ok(project), Ok(expect)) => {
                let root = fs::canonicalize(dir.path()).expect("it is there");
                let sources = project.sources.strip_prefix(&root).expect("it is inside");
                let name = if root.ends_with(&project.name) { "FOLDER" } else { &project.name };
                let (main, exports) = (&project.main, project.exports.join(" "));
                let told =
                    format!("{:?} {name} {} {main} {exports}", project.language, sources.display());
                assert_eq!(told.trim(), expect);
            }
            (Err(refused), Err(expect)) => {
                let why = why::<()>(Err(refused));
                assert!(why.contains(expect), "{why}");
            }
            (found, _) => panic!("{files:?} gives {found:?}"),
        }
    }

    #[test]
    fn projects_are_recognised() {
        let cargo = ("Cargo.toml", "[package]\nname = \"tally\"");
        check(&[cargo, ("bindings.c", "")], Ok("Rust tally"));
        check(&[("Cargo.toml", "[workspace]")], Err("it has no [package]"));
        check(&[("a.c", ""), ("b.c", ""), ("lockstep.h", "")], Ok("C FOLDER"));
        check(&[("src/a.c", ""), ("src/lockstep.c", "")], Ok("C FOLDER src"));
        check(&[("src/a.py", ""), ("src/lockstep.py", "")], Ok("Python FOLDER src a.py"));
        check(&[("package.json", "{}"), ("a.js", "")], Ok("Js FOLDER  a.js"));
        check(&[("package.json", "{}")], Err("`source = \"src/my_machine.js\"`"));
        check(&[("a.py", ""), ("b.py", "")], Err("say which file exports the state machine"));
        check(&[("a.c", ""), ("a.py", "")], Err("sources in several languages"));
        check(&[("notes.txt", "")], Err("`lockstep new NAME` writes one"));
    }

    #[test]
    fn a_manifest_says_it() {
        let file = |text| (FILE, text);
        let toml = "language = \"js\"\nname = \"t\"\nsource = \"x/m.js\"\nworld = [\"digest\"]";
        check(&[file(toml), ("x/m.js", ""), ("x/n.js", "")], Ok("Js t x m.js digest"));
        check(&[file("language = \"c\"\nsource = \"it\"")], Ok("C FOLDER it"));
        check(&[file("language = \"java\"")], Err("unknown variant `java`"));
        check(&[file("sources = \"x\"")], Err("unknown field `sources`"));
        check(&[file("world = [\"wakes\"]"), ("a.c", "")], Err("`world` has `wakes`"));
        check(&[file("name = \"a/b\""), ("a.c", "")], Err("`name` is that of a file"));
    }
}

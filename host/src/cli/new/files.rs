//! The files of a new project: a template for each language, and the SDK.
//!
//! The templates are the real files of `host/templates`, of a machine that is called `my-machine`.
//! Only `ci.yml` has a line to be filled in.
//! A test compares their lists with the folders.

use super::name::Name;
use crate::cli::sdk::{self, Language, files_of};

/// What the machine of the templates is called, and its module.
const NAME: &str = "my-machine";
const MODULE: &str = "my_machine";
/// Stands in `ci.yml` for what brings the language's tools.
const TOOLS: &str = "./tools.sh";

/// A file to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct File {
    /// Its path in the project.
    pub(super) path: String,
    pub(super) text: String,
}

impl File {
    /// Whether it is there to be started.
    pub(super) fn is_program(&self) -> bool {
        self.path.ends_with(".sh")
    }
}

const RUST: &[sdk::File] = files_of!("host/templates/rust":
    "Cargo.toml"
    "README.md"
    "ci.sh"
    "clippy.toml"
    "gitignore"
    "lockstep-guest/Cargo.toml"
    "src/lib.rs"
    "src/tests.rs"
);

const C: &[sdk::File] = files_of!("host/templates/c":
    "README.md"
    "commands.txt"
    "gitignore"
    "lockstep.toml"
    "src/my_machine.c"
);

const JS: &[sdk::File] = files_of!("host/templates/js":
    "README.md"
    "gitignore"
    "lockstep.toml"
    "package.json"
    "src/my_machine.js"
);

const PYTHON: &[sdk::File] = files_of!("host/templates/python":
    "README.md"
    "gitignore"
    "lockstep.toml"
    "requirements.txt"
    "src/my_machine.py"
);

/// What languages share.
const CI: &[sdk::File] = files_of!("host/templates/common": "ci.yml");
const CI_SH: &[sdk::File] = files_of!("host/templates/common": "ci.sh");
const COMMANDS: &[sdk::File] = files_of!("host/templates/common": "commands.txt");

/// All files of a project.
pub(super) fn files(language: Language, name: &Name) -> Vec<File> {
    let own: Vec<_> = match language {
        Language::Rust => [RUST, CI].concat(),
        Language::C => [C, CI, CI_SH].concat(),
        Language::Js => [JS, CI, CI_SH, COMMANDS].concat(),
        Language::Python => [PYTHON, CI, CI_SH, COMMANDS].concat(),
    };
    let own = own.into_iter().map(|(path, text)| File {
        path: place(path).replace(MODULE, &name.module()),
        text: named(text, name).replace(TOOLS, tools(language)),
    });
    let brought = |folder: &'static str, files: &'static [sdk::File]| {
        files.iter().map(move |(path, text)| File {
            path: format!("{folder}/{path}"),
            text: (*text).to_owned(),
        })
    };
    let sdk: Vec<_> = match language {
        Language::Rust => brought("lockstep-guest/src", sdk::RUST)
            .chain(brought(
                "lockstep-guest",
                &[
                    ("wit/fsm.wit", sdk::WIT),
                    ("LICENSE", sdk::LICENSE),
                    ("rustfmt.toml", sdk::RUSTFMT),
                ],
            ))
            .collect(),
        Language::C | Language::Js | Language::Python => brought("src", language.sdk()).collect(),
    };
    own.chain(sdk).collect()
}

/// Puts in a name, and that of the module, neither of which may be looked at again: a name may
/// contain the other's placeholder.
fn named(text: &str, name: &Name) -> String {
    let parts = text.split(NAME).map(|part| part.replace(MODULE, &name.module()));
    parts.collect::<Vec<_>>().join(name.as_str())
}

/// What brings the language's tools to a machine that runs `ci.sh`.
fn tools(language: Language) -> &'static str {
    match language {
        Language::Rust => "rustup target add wasm32-unknown-unknown",
        Language::C => "sudo apt-get update && sudo apt-get install --yes clang lld",
        Language::Js => "npm install",
        Language::Python => {
            "python3 -m venv .venv && .venv/bin/pip install --requirement requirements.txt"
        }
    }
}

/// Where a template goes. In the checkout, those with a meaning of their own lie under other names.
fn place(path: &str) -> String {
    match path {
        "gitignore" => ".gitignore".to_owned(),
        "ci.yml" => ".github/workflows/ci.yml".to_owned(),
        _other => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cli::sdk::tests::{checkout, files_below};
    use crate::kit::templates::Templates;

    fn project(language: Language, name: &str) -> BTreeMap<String, String> {
        let name = Name::new(name).expect("it is a name");
        files(language, &name).into_iter().map(|file| (file.path, file.text)).collect()
    }

    fn check(language: Language, expect: &[&str]) {
        let project = project(language, "order-book");
        for path in expect {
            assert!(project.contains_key(*path), "{path} is not in {:?}", project.keys());
        }
        for (path, text) in project.iter().filter(|(path, _)| !path.contains("lockstep-guest/")) {
            let left = [NAME, MODULE, TOOLS].into_iter().find(|it| text.contains(it));
            assert_eq!(left, None, "{path}");
        }
        assert!(project.values().any(|text| text.contains("order-book.wasm")));
        for path in [".gitignore", ".github/workflows/ci.yml", "ci.sh", "README.md"] {
            assert!(project.contains_key(path), "{path}");
        }
        if let Some(commands) = project.get("commands.txt") {
            Templates::parse(commands).expect("they are templates");
        }
    }

    #[test]
    fn projects_stand_alone() {
        let sdk = ["lockstep-guest/src/lib.rs", "lockstep-guest/wit/fsm.wit", "Cargo.toml"];
        check(Language::Rust, &sdk);
        check(Language::Rust, &["lockstep-guest/Cargo.toml", "src/lib.rs", "clippy.toml"]);
        let toml = "lockstep.toml";
        check(Language::C, &["src/order_book.c", "src/lockstep.c", "src/lockstep.h", toml]);
        check(Language::Js, &["src/order_book.js", "src/lockstep.js", "package.json", toml]);
        let python = ["src/order_book.py", "src/lockstep.py", "requirements.txt", toml];
        check(Language::Python, &python);
    }

    #[test]
    fn a_name_may_contain_that_of_the_template() {
        let name = Name::new("my_machine-2").expect("it is a name");
        let check = |text, expect: &str| assert_eq!(named(text, &name), expect);
        check("my-machine, my_machine", "my_machine-2, my_machine_2");
        let project = project(Language::C, "my_machine-2");
        assert!(project.contains_key("src/my_machine_2.c"), "{:?}", project.keys());
        assert!(project["lockstep.toml"].contains("\"my_machine-2\""));
    }

    #[test]
    fn the_templates_are_complete() {
        let check = |folder: &str, lists: &[&[sdk::File]]| {
            let mut listed: Vec<_> = lists.concat().iter().map(|(path, _)| *path).collect();
            listed.sort_unstable();
            assert_eq!(listed, files_below(&checkout("host/templates").join(folder)), "{folder}");
        };
        check("rust", &[RUST]);
        check("c", &[C]);
        check("js", &[JS]);
        check("python", &[PYTHON]);
        check("common", &[CI, CI_SH, COMMANDS]);
    }

    /// The manifest that travels says the same as that of the checkout, where versions and features
    /// of dependencies are those of the workspace.
    #[test]
    fn the_manifest_of_the_sdk_is_that_of_the_checkout() {
        let read = |path| {
            let text = std::fs::read_to_string(checkout(path)).expect("it can be read");
            text.parse::<toml::Table>().expect("it is TOML")
        };
        let workspace = read("Cargo.toml");
        let (here, brought) =
            (read("guest-sdk/Cargo.toml"), read("host/templates/rust/lockstep-guest/Cargo.toml"));
        assert_eq!(here["features"], brought["features"]);
        for field in ["version", "edition", "rust-version", "license"] {
            assert_eq!(workspace["workspace"]["package"][field], brought["package"][field]);
        }
        let names = |of: &toml::Table| -> Vec<String> {
            of["dependencies"].as_table().expect("a table").keys().cloned().collect()
        };
        assert_eq!(names(&here), names(&brought));
        for name in names(&here) {
            let spelt = |value: &toml::Value| match value {
                toml::Value::Table(table) => table.clone(),
                version => toml::Table::from_iter([("version".to_owned(), version.clone())]),
            };
            let mut of_workspace = spelt(&workspace["workspace"]["dependencies"][&name]);
            if let Some(optional) = here["dependencies"][&name].get("optional") {
                of_workspace.insert("optional".to_owned(), optional.clone());
            }
            assert_eq!(spelt(&brought["dependencies"][&name]), of_workspace, "{name}");
        }
        assert_eq!(
            std::fs::read_to_string(checkout("examples/clippy.toml")).ok().as_deref(),
            RUST.iter().find(|(path, _)| *path == "clippy.toml").map(|(_, text)| *text),
        );
    }
}

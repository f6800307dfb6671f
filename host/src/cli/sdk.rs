//! What a state machine is written in, and the SDK for each language, which travels in this
//! program: an author needs no checkout.
//!
//! - [`RUST`] is the whole crate but for its manifest, which is a template of `new`.
//! - A test compares the lists with the folders.

use serde::Deserialize;

/// A language that `new` has a template for and `build` a recipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Language {
    Rust,
    C,
    Js,
    Python,
}

impl Language {
    /// The name of the language for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::C => "C",
            Self::Js => "JavaScript",
            Self::Python => "Python",
        }
    }

    /// The SDK that lies among the sources of a project; Rust's is a crate beside them.
    pub(super) fn sdk(self) -> &'static [File] {
        match self {
            Self::Rust => &[],
            Self::C => C,
            Self::Js => JS,
            Self::Python => PYTHON,
        }
    }

    /// How the names of its sources end; Rust's are cargo's business.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Rust => "rs",
            Self::C => "c",
            Self::Js => "js",
            Self::Python => "py",
        }
    }
}

/// A file that travels in this program: its path in the SDK or in a project, and its text.
pub(super) type File = (&'static str, &'static str);

/// Files of a folder of the checkout.
macro_rules! files_of {
    ($folder:literal: $($path:literal)*) => {
        &[$((
            $path,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../", $folder, "/", $path)),
        )),*]
    };
}
pub(super) use files_of;

/// The world of a state machine.
pub(super) const WIT: &str = include_str!("../../../wit/fsm.wit");

/// Apache-2.0, which asks to be handed on with the sources.
pub(super) const LICENSE: &str = include_str!("../../../LICENSE");

/// The style of the SDK's sources, so that a project's `cargo fmt` leaves them as they are.
pub(super) const RUSTFMT: &str = include_str!("../../../rustfmt.toml");

/// The crate `lockstep-guest`, without its manifest, its world and its integration tests.
pub(super) const RUST: &[File] = files_of!("guest-sdk/src":
    "codec.rs"
    "component.rs"
    "deadlines.rs"
    "entry.rs"
    "entry/tests.rs"
    "events.rs"
    "key.rs"
    "lib.rs"
    "log.rs"
    "machine.rs"
    "memory.rs"
    "native.rs"
    "offers.rs"
    "rng.rs"
    "snapshot.rs"
    "testing.rs"
    "testing/explore.rs"
    "testing/replica.rs"
    "testing/shrink.rs"
    "testing/tests.rs"
    "testing/verify.rs"
    "timer.rs"
    "typed.rs"
);

pub(super) const C: &[File] = files_of!("guest-sdk/c": "lockstep.c" "lockstep.h");
pub(super) const JS: &[File] = files_of!("guest-sdk/js": "lockstep.js");
pub(super) const PYTHON: &[File] = files_of!("guest-sdk/python": "lockstep.py");

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// A folder of the checkout.
    pub(crate) fn checkout(folder: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)
    }

    /// The files below a folder, sorted, as paths relative to it.
    pub(crate) fn files_below(folder: &Path) -> Vec<String> {
        fn gather(folder: &Path, before: &str, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).expect("it is a folder") {
                let entry = entry.expect("it can be read");
                let name = format!("{before}{}", entry.file_name().display());
                if name == "__pycache__" {
                    continue;
                } else if entry.path().is_dir() {
                    gather(&entry.path(), &format!("{name}/"), found);
                } else {
                    found.push(name);
                }
            }
        }
        let mut found = Vec::new();
        gather(folder, "", &mut found);
        found.sort();
        found
    }

    #[test]
    fn the_sdk_is_complete() {
        let check = |folder: &str, files: &[File]| {
            let mut listed: Vec<_> = files.iter().map(|(path, _)| *path).collect();
            listed.sort_unstable();
            assert_eq!(listed, files_below(&checkout(folder)), "{folder}");
        };
        check("guest-sdk/src", RUST);
        check("guest-sdk/c", C);
        check("guest-sdk/js", JS);
        check("guest-sdk/python", PYTHON);
        assert_eq!(files_below(&checkout("wit")), ["fsm.wit"]);
    }
}

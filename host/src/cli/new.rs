//! `lockstep new`: writes a project for a state machine, which needs no checkout of Lockstep.
//!
//! - Nothing that exists is written over: the folder is made, or empty.
//! - What the project's files are is in [`mod@files`], what it may be called in [`name`].

mod files;
mod name;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::cli::kit::quoted;
use crate::cli::sdk::Language;
use crate::cli::{Failure, Outcome};
use crate::logging::out;
use files::{File, files};
use name::Name;

const EXAMPLES: &str = "\
Examples:
  lockstep new tally                       in Rust, in the folder tally
  lockstep new tally --lang python
  lockstep new tally --dir machines/tally";

/// Write a project for a state machine: source, tests, the SDK, a script for CI.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Name of the state machine, as of a crate: `tally`, `order-book`.
    #[arg(value_name = "NAME")]
    name: String,
    /// Language it is written in.
    #[arg(long, value_enum, value_name = "LANGUAGE", default_value_t = Language::Rust)]
    lang: Language,
    /// Folder of the project; by default NAME.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let name = Name::new(&args.name).map_err(|refused| Failure::Usage(refused.to_string()))?;
    let dir = args.dir.clone().unwrap_or_else(|| name.as_str().into());
    create(&dir)?;
    for file in files(args.lang, &name) {
        write(&dir, &file).map_err(|error| {
            Failure::Failed(format!("{}: {error}", dir.join(&file.path).display()))
        })?;
    }
    let shown = quoted(&dir.display().to_string());
    out!("{shown}: a state machine in {}", args.lang.name());
    for step in next(args.lang, &name) {
        out!("  {}", step.replace("DIR", &shown));
    }
    Ok(())
}

/// Makes the folder, unless it is there and empty.
fn create(dir: &Path) -> Outcome {
    let shown = dir.display();
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Failure::Usage(format!(
            "{shown}: the folder is not empty; choose another one with --dir DIR"
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(dir)
            .map_err(|error| Failure::Failed(format!("{shown}: {error}; see --dir"))),
        Err(error) => {
            Err(Failure::Usage(format!("{shown}: {error}; choose a folder with --dir DIR")))
        }
    }
}

fn write(dir: &Path, file: &File) -> io::Result<()> {
    const PROGRAM: u32 = 0o755;
    let path = dir.join(&file.path);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, &file.text)?;
    if file.is_program() {
        fs::set_permissions(&path, fs::Permissions::from_mode(PROGRAM))?;
    }
    Ok(())
}

/// What to type next.
fn next(language: Language, name: &Name) -> Vec<String> {
    let test = match language {
        Language::Rust => format!("lockstep test {name}.wasm"),
        Language::C | Language::Js | Language::Python => {
            format!("lockstep test {name}.wasm --commands commands.txt")
        }
    };
    let first = match language {
        Language::Rust => Some("cargo test"),
        Language::C => None,
        Language::Js => Some("npm install"),
        Language::Python => {
            Some("python3 -m venv .venv && .venv/bin/pip install -r requirements.txt")
        }
    };
    let (build, run) = (Some("lockstep build"), Some("lockstep run"));
    let steps = [Some("cd DIR"), first, build, Some(&*test), run];
    steps.into_iter().flatten().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, name: &str, lang: Language) -> Args {
        Args { name: name.to_owned(), lang, dir: Some(dir.to_owned()) }
    }

    fn check_refused(args: &Args, expect: &str) {
        match run(args) {
            Err(Failure::Usage(why)) => assert!(why.contains(expect), "{why}"),
            other => panic!("it gives {other:?}"),
        }
    }

    #[test]
    fn nothing_is_written_over() {
        let home = tempfile::tempdir().expect("there is space");
        let dir = home.path().join("deep/in/it");
        run(&args(&dir, "tally", Language::C)).expect("the folder is made");
        let program = fs::metadata(dir.join("ci.sh")).expect("it is there").permissions().mode();
        assert_eq!(program & 0o111, 0o111);
        check_refused(&args(&dir, "tally", Language::C), "the folder is not empty");
        check_refused(&args(&dir.join("ci.sh"), "tally", Language::C), "--dir");
        let empty = home.path().join("empty");
        fs::create_dir(&empty).expect("there is space");
        run(&args(&empty, "tally", Language::Rust)).expect("the folder is empty");
    }

    #[test]
    fn a_bad_name_makes_no_folder() {
        let home = tempfile::tempdir().expect("there is space");
        let dir = home.path().join("it");
        check_refused(&args(&dir, "My Machine", Language::Rust), "`my-machine` would do");
        assert!(!dir.exists());
    }
}

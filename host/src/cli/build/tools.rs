//! The programs on this machine: finding them and running them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::Failure;

/// The newest version of LLVM that is looked for under its number, and the oldest.
const LLVM: std::ops::RangeInclusive<u32> = 14..=30;

/// Where programs are, and what the environment says about them.
pub(super) struct Tools {
    path: Vec<PathBuf>,
    variables: BTreeMap<OsString, OsString>,
}

/// A program, with the arguments that come before all others: `python3 -m ziglang cc`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Program(Vec<OsString>);

impl Tools {
    /// Those of this process.
    pub(super) fn of_process() -> Self {
        let variables: BTreeMap<_, _> = std::env::vars_os().collect();
        let path = variables.get(OsStr::new("PATH")).cloned().unwrap_or_default();
        Self { path: std::env::split_paths(&path).collect(), variables }
    }

    pub(super) fn variable(&self, name: &str) -> Option<&OsStr> {
        let value = self.variables.get(OsStr::new(name))?;
        (!value.is_empty()).then_some(value)
    }

    /// The program of this name on the path.
    pub(super) fn find(&self, name: &str) -> Option<Program> {
        let file = self.path.iter().map(|folder| folder.join(name)).find(|file| is_program(file));
        file.map(Program::at)
    }

    /// The program of this name in a folder of the project, or else on the path.
    pub(super) fn find_near(&self, folder: &Path, name: &str) -> Option<Program> {
        let near = folder.join(name);
        if is_program(&near) { Some(Program::at(near)) } else { self.find(name) }
    }

    /// The program that a variable names, or else the one on the path.
    pub(super) fn find_named(&self, variable: &str, name: &str) -> Option<Program> {
        match self.variable(variable) {
            Some(program) => Some(Program::at(program)),
            None => self.find(name),
        }
    }

    /// A program of LLVM, which Debian may have under the number of its version only.
    pub(super) fn find_of_llvm(&self, name: &str) -> Option<Program> {
        let newest_first = LLVM.rev().map(|version| format!("{name}-{version}"));
        std::iter::once(name.to_owned()).chain(newest_first).find_map(|name| self.find(&name))
    }

    /// A zig: the program, or the Python package.
    pub(super) fn find_zig(&self) -> Option<Program> {
        self.find("zig").or_else(|| {
            let zig = self.find("python3")?.with(["-m", "ziglang"]);
            asked(zig.command().arg("version")).map(|_| zig)
        })
    }
}

impl Program {
    pub(super) fn at(file: impl Into<OsString>) -> Self {
        Self(vec![file.into()])
    }

    pub(super) fn with<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.0.extend(arguments.map(OsString::from));
        self
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(self.0.first().cloned().unwrap_or_default());
        command.args(self.0.iter().skip(1));
        command
    }

    /// Its words, for people.
    pub(super) fn shown(&self) -> String {
        self.0.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// What a program prints when asked about itself; `None` if it fails.
pub(super) fn asked(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Runs a program that must succeed; what it says to people goes to standard error, and what it
/// prints is returned.
pub(super) fn run(command: &mut Command) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let printed = if printed.trim_start().starts_with('{') { "" } else { printed.trim() };
    let gap = if printed.is_empty() { "" } else { "\n" };
    Err(Failure::Failed(format!("{printed}{gap}{name} failed, {}; see above", output.status)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;

    /// A path of stub programs: the name of each, and what it prints.
    pub(in super::super) fn stubs(folder: &Path, programs: &[(&str, &str)]) -> Tools {
        for (name, prints) in programs {
            let file = folder.join(name);
            fs::write(&file, format!("#!/bin/sh\nprintf '%s\\n' '{prints}'\n"))
                .expect("there is space");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        Tools { path: vec![folder.to_owned()], variables: BTreeMap::new() }
    }

    impl Tools {
        pub(in super::super) fn set(mut self, name: &str, value: &str) -> Self {
            self.variables.insert(name.into(), value.into());
            self
        }
    }

    /// The message of a failure.
    pub(in super::super) fn why<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        match result {
            Err(Failure::Failed(why) | Failure::Usage(why)) => why,
            other => panic!("it gives {other:?}"),
        }
    }

    #[test]
    fn programs_are_found_in_order() {
        let dir = tempfile::tempdir().expect("there is space");
        let tools = stubs(dir.path(), &[("clang-15", ""), ("clang-16", ""), ("python3", "0.17.1")]);
        fs::write(dir.path().join("clang"), "no program").expect("there is space");
        let at = |name: &str| Some(Program::at(dir.path().join(name)));
        assert_eq!(tools.find("clang"), None);
        assert_eq!(tools.find_of_llvm("clang"), at("clang-16"));
        assert_eq!(tools.find_of_llvm("wasm-ld"), None);
        assert_eq!(tools.find_zig(), at("python3").map(|it| it.with(["-m", "ziglang"])));
        assert_eq!(tools.find_near(dir.path(), "clang-15"), at("clang-15"));
        assert_eq!(tools.find_named("RUSTC", "rustc"), None);
        let named = tools.set("RUSTC", "/opt/rustc").find_named("RUSTC", "rustc");
        assert_eq!(named, Some(Program::at("/opt/rustc")));
    }
}

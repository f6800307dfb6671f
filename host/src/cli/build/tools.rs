//! The programs on this machine: finding them and running them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fmt, fs};

use crate::cli::Failure;

/// The newest version of LLVM that is looked for under its number, and the oldest.
const LLVM: std::ops::RangeInclusive<u32> = 14..=30;

/// Most of each output of a program that is kept for its failure, bytes: a compiler may complain
/// without end.
const SAID_BYTES_MAX: usize = 16 << 10;

/// Where programs are, and what the environment says about them.
pub(super) struct Tools {
    path: Vec<PathBuf>,
    variables: BTreeMap<OsString, OsString>,
    progress: Progress,
}

/// What becomes of what compilers say to people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) enum Progress {
    /// It goes to standard error, as it is said.
    Shown,
    /// It is part of the failure, if there is one.
    Kept,
}

/// A program, with the arguments that come before all others: `python3 -m ziglang cc`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Program(Vec<OsString>);

impl Tools {
    /// Those of this process.
    pub(super) fn of_process(progress: Progress) -> Self {
        let variables: BTreeMap<_, _> = std::env::vars_os().collect();
        let path = variables.get(OsStr::new("PATH")).cloned().unwrap_or_default();
        Self { path: std::env::split_paths(&path).collect(), variables, progress }
    }

    /// A variable that says something.
    pub(super) fn variable(&self, name: &str) -> Option<&OsStr> {
        self.set(name).filter(|value| !value.is_empty())
    }

    /// A variable that is set, even if it is empty.
    pub(super) fn set(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// Says how far the build is.
    pub(super) fn say(&self, what: fmt::Arguments<'_>) {
        match self.progress {
            // A reader who has left does not end the build.
            Progress::Shown => drop(writeln!(io::stderr(), "{what}")),
            Progress::Kept => {}
        }
    }

    /// Runs a program that must succeed, and returns what it printed.
    pub(super) fn run(&self, command: &mut Command) -> Result<String, Failure> {
        let name = command.get_program().to_string_lossy().into_owned();
        let stderr = match self.progress {
            Progress::Shown => Stdio::inherit(),
            Progress::Kept => Stdio::piped(),
        };
        let output = command
            .stdin(Stdio::null())
            .stderr(stderr)
            .output()
            .map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        let (printed, said) = (text(&output.stdout), text(&output.stderr));
        if output.status.success() {
            return Ok(printed);
        }
        let printed = if printed.starts_with('{') { "" } else { printed.as_str() };
        let see = match self.progress {
            Progress::Shown => "; see above",
            Progress::Kept => "",
        };
        let last = format!("{name} failed, {}{see}", output.status);
        let lines = [end_of(&said), end_of(printed), &last];
        let lines = lines.into_iter().filter(|text| !text.is_empty());
        Err(Failure::Failed(lines.collect::<Vec<_>>().join("\n")))
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

    /// The linker of the Rust in use, which finds out by its name or is told what to link for.
    pub(super) fn find_rust_lld(&self, dir: &Path) -> Option<Program> {
        let sysroot = sysroot(&self.find_named("RUSTC", "rustc")?, dir)?;
        let hosts = fs::read_dir(sysroot.join("lib/rustlib")).ok()?;
        let files = hosts.flatten().map(|host| host.path().join("bin/rust-lld"));
        files.filter(|file| file.is_file()).min().map(Program::at)
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

/// The end of what a program said, which tells most: the last lines that are not too long
/// together.
fn end_of(said: &str) -> &str {
    let Some(over) = said.len().checked_sub(SAID_BYTES_MAX).filter(|over| *over > 0) else {
        return said;
    };
    let end = &said[said.ceil_char_boundary(over)..];
    // The first line is cut.
    end.split_once('\n').map_or(end, |(_, lines)| lines)
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// The folder of the Rust to which a compiler belongs; which one that is may depend on the folder
/// in which it is asked.
pub(super) fn sysroot(rustc: &Program, dir: &Path) -> Option<PathBuf> {
    asked(rustc.command().current_dir(dir).args(["--print", "sysroot"])).map(PathBuf::from)
}

/// What a program prints when asked about itself; `None` if it fails.
pub(super) fn asked(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A path of stub programs: the name of each, and what it prints.
    pub(in super::super) fn stubs(folder: &Path, programs: &[(&str, &str)]) -> Tools {
        for (name, prints) in programs {
            let file = folder.join(name);
            fs::write(&file, format!("#!/bin/sh\nprintf '%s\\n' '{prints}'\n"))
                .expect("there is space");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        let progress = Progress::Kept;
        Tools { path: vec![folder.to_owned()], variables: BTreeMap::new(), progress }
    }

    impl Tools {
        pub(in super::super) fn with(mut self, name: &str, value: &str) -> Self {
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
    fn what_a_failing_program_says_is_kept() {
        let dir = tempfile::tempdir().expect("there is space");
        let tools = stubs(dir.path(), &[("well", "fine")]);
        let well = tools.find("well").expect("it is there");
        assert_eq!(tools.run(&mut well.command()).ok().as_deref(), Some("fine"));
        let mut fails = Command::new("/bin/sh");
        let why = why(tools.run(fails.args(["-c", "echo out; echo err >&2; exit 3"])));
        assert_eq!(why, "err\nout\n/bin/sh failed, exit status: 3");
    }

    /// What was shown is not said again.
    #[test]
    fn a_failure_points_to_what_was_shown() {
        let dir = tempfile::tempdir().expect("there is space");
        let tools = Tools { progress: Progress::Shown, ..stubs(dir.path(), &[]) };
        let why = why(tools.run(Command::new("/bin/sh").args(["-c", "echo err >&2; exit 3"])));
        assert_eq!(why, "/bin/sh failed, exit status: 3; see above");
    }

    #[test]
    fn the_end_of_what_is_said_is_kept() {
        let check = |said: &str, expect: &str| {
            let end = end_of(said);
            assert!(end == expect, "{} bytes, not {}", end.len(), expect.len());
        };
        let most = "é".repeat(SAID_BYTES_MAX / 2);
        check("", "");
        check(&most, &most);
        check(&format!("x{most}"), &most);
        check(&format!("{most}x"), &format!("{}x", &most[2..]));
        check(&format!("{most}\nlast\nlines"), "last\nlines");
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
        let named = tools.with("RUSTC", "/opt/rustc").find_named("RUSTC", "rustc");
        assert_eq!(named, Some(Program::at("/opt/rustc")));
    }
}

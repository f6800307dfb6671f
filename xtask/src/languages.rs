//! `cargo xtask languages`: puts the tools of four languages in place, builds the host and the
//! program, then becomes the program.
//!
//! - What is missing comes from public registries, each with one command, into `languages` in the
//!   target folder: componentize-qjs from npm, componentize-py from PyPI, and ziglang from there,
//!   too, if there is no clang. What is there is used again.
//! - The versions are those that `lockstep build` names.
//! - `--release` is for figures: host and program are built like those of `cargo xtask bench`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::steps::cargo;
use crate::{checkout, demo};

const FOR_JS: &str = "componentize-qjs@0.4.5";
const FOR_PYTHON: &str = "componentize-py==0.25.1";
const FOR_C: &str = "ziglang==0.17.1";
const FLAGS: [&str; 4] = ["--rust", "--c", "--js", "--python"];

/// Returns only with an error.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let asks_for_help = arguments.iter().any(|it| ["--help", "-h"].contains(it));
    let folders = if asks_for_help { Vec::new() } else { tools(arguments)? };
    println!("languages: building the host, and the program");
    let release = arguments.contains(&"--release");
    let status = cargo(&checkout::root())
        .args(["build", "--locked"])
        .args(release.then_some("--release"))
        .args(["--package", "lockstep-host", "--bin", "lockstep"])
        .args(["--package", "lockstep-languages", "--bin", "languages"])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "cargo could not build the host and `languages` ({status})");
    println!();
    let profile = if release { "release" } else { "debug" };
    let mut program = Command::new(target()?.join(profile).join("languages"));
    let arguments = arguments.iter().filter(|argument| **argument != "--release");
    let error = program.args(arguments).env("PATH", path_with(folders)?).exec();
    Err(error).context("starting languages")
}

/// Sees to the tools of the languages that are asked for; returns the folders that they are in.
fn tools(arguments: &[&str]) -> Result<Vec<PathBuf>> {
    let any = arguments.iter().any(|it| FLAGS.contains(it));
    let asked = |flag: &str| !any || arguments.contains(&flag);
    let home = target()?.join("languages");
    fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
    // Each version has a folder of its own: one that is named anew is fetched.
    let npm = home.join(FOR_JS);
    let [python, zig] = [FOR_PYTHON, FOR_C].map(|package| home.join(package));
    if asked("--js") && !npm.join("node_modules/.bin/componentize-qjs").exists() {
        let npm_install = ["install", "--no-audit", "--no-fund", "--prefix"];
        get(Command::new("npm").args(npm_install).arg(&npm).arg(FOR_JS))?;
    }
    if asked("--python") && !python.join("bin/componentize-py").exists() {
        install(&python, FOR_PYTHON)?;
    }
    if asked("--c") && !runs("clang") && !zig.join("bin/python-zig").exists() {
        install(&zig, FOR_C)?;
    }
    // The first `python3` is asked for zig.
    Ok(vec![npm.join("node_modules/.bin"), zig.join("bin"), python.join("bin")])
}

/// The target folder.
fn target() -> Result<PathBuf> {
    let debug = demo::target_dir()?;
    Ok(debug.parent().context("this program is not in a target folder")?.to_owned())
}

/// Installs a package of PyPI into an environment of its own.
fn install(venv: &Path, package: &str) -> Result<()> {
    if !venv.join("bin/pip").exists() {
        get(Command::new("python3").args(["-m", "venv"]).arg(venv))?;
    }
    get(Command::new(venv.join("bin/pip")).args(["install", "--quiet", package]))
}

/// Says which command it runs, and runs it.
fn get(command: &mut Command) -> Result<()> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    println!("languages: {}", words.join(" "));
    let needs = "JavaScript needs Node 18 with npm, Python and zig need python3 with venv; or name \
                 the languages to compare, such as --rust --c";
    let status = command.status().with_context(|| format!("starting {}: {needs}", words[0]))?;
    ensure!(status.success(), "`{}` failed ({status}): {needs}", words.join(" "));
    Ok(())
}

fn runs(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The path of programs, with these folders before it.
fn path_with(mut folders: Vec<PathBuf>) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&path));
    std::env::join_paths(folders).context("a folder whose name has a colon")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_that_lockstep_build_names() {
        for (file, version) in [("js", FOR_JS), ("python", FOR_PYTHON), ("c", FOR_C)] {
            let source = checkout::root().join(format!("host/src/cli/build/{file}.rs"));
            let source = fs::read_to_string(source).expect("it is there");
            assert!(source.contains(version), "{file}: {version}");
        }
    }
}

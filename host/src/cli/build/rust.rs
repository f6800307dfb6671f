//! Rust: cargo makes a core module that knows its types, for the SDK put them there.
//!
//! - No path of this machine reaches the component: panics would show them, and equal sources would
//!   give different bytes. This holds for the project, for packages beside it, and for what cargo
//!   and Rust have fetched.
//! - The Rust in use needs the target; rustup is asked to add it. Debian's Rust has the sources of
//!   the standard library instead, and builds that too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::component;
use super::project::Project;
use super::tools::{Program, Tools, asked, sysroot};
use crate::cli::Failure;

/// WebAssembly without any system underneath, hence without WASI.
const TARGET: &str = "wasm32-unknown-unknown";
/// With this variable cargo is told a linker for it.
const LINKER: &str = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER";
/// Debian's Rust, which is not rustup's.
const DEBIAN: &str = "/usr/bin";

/// A Rust that builds for [`TARGET`].
#[derive(PartialEq, Eq, Debug)]
enum Toolchain {
    /// The target is installed.
    Installed { cargo: Program, sysroot: PathBuf },
    /// Debian's, with a linker.
    Debian { linker: Program, sysroot: PathBuf },
}

pub(super) fn build(project: &Project, tools: &Tools) -> Result<Vec<u8>, Failure> {
    let toolchain = Toolchain::find(tools, &project.dir, Path::new(DEBIAN))?;
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(&project.dir)
        .args(["build", "--release", "--lib", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"]);
    add_flags(&mut cargo, &remaps(&toolchain, project, tools), tools);
    let manifest = project.dir.join("Cargo.toml");
    let module = module_in(&tools.run(&mut cargo)?, &manifest).ok_or_else(|| {
        Failure::Failed(format!(
            "{}: the package makes no library for WebAssembly: add `[lib]` with \
             `crate-type = [\"cdylib\", \"rlib\"]`",
            manifest.display()
        ))
    })?;
    component::encode(&fs::read(module)?)
}

impl Toolchain {
    fn find(tools: &Tools, dir: &Path, debian: &Path) -> Result<Self, Failure> {
        if let Some(installed) = Self::installed(tools, dir) {
            return Ok(installed);
        }
        let mut rustup = "rustup is not there".to_owned();
        if let Some(program) = tools.find("rustup") {
            // It prints what it does.
            let added =
                tools.run(program.command().current_dir(dir).args(["target", "add", TARGET]));
            match (added, Self::installed(tools, dir)) {
                (Ok(_), Some(installed)) => return Ok(installed),
                (Ok(_), None) => rustup = "rustup added it to another Rust".to_owned(),
                (Err(_), _) => rustup = "rustup could not add it".to_owned(),
            }
        }
        Self::debian(tools, dir, debian).ok_or_else(|| {
            Failure::Failed(format!(
                "no Rust here builds for {TARGET} ({rustup}). Either of these will do:\n  \
                 rustup target add {TARGET}      (rustup: https://rustup.rs)\n  \
                 apt-get install rustc-web cargo-web rust-web-src lld"
            ))
        })
    }

    /// The Rust in use, if it has the target.
    fn installed(tools: &Tools, dir: &Path) -> Option<Self> {
        let cargo = tools.find_named("CARGO", "cargo")?;
        let rustc = tools.find_named("RUSTC", "rustc")?;
        let mut ask = rustc.command();
        ask.current_dir(dir).args(["--print", "target-libdir", "--target", TARGET]);
        if !Path::new(&asked(&mut ask)?).is_dir() {
            return None;
        }
        let sysroot = sysroot(&rustc, dir)?;
        Some(Self::Installed { cargo, sysroot })
    }

    /// Debian's Rust, if all its parts are installed.
    fn debian(tools: &Tools, dir: &Path, bin: &Path) -> Option<Self> {
        let sysroot = sysroot(&Program::at(bin.join("rustc")), dir)?;
        if !sysroot.join("lib/rustlib/src/rust/library/std").is_dir() {
            return None;
        }
        let linker = tools
            .variable(LINKER)
            .map(Program::at)
            .or_else(|| tools.find("rust-lld"))
            .or_else(|| tools.find_of_llvm("wasm-ld"))
            .or_else(|| tools.find_rust_lld(dir))?;
        Some(Self::Debian { linker, sysroot })
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Installed { cargo, .. } => cargo.command(),
            Self::Debian { linker, .. } => {
                let mut cargo = Command::new(Path::new(DEBIAN).join("cargo"));
                cargo
                    .arg("-Zbuild-std=std,panic_abort")
                    // Building the standard library is an unstable feature of a stable compiler.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("RUSTC", Path::new(DEBIAN).join("rustc"))
                    .env(LINKER, linker.shown());
                cargo
            }
        }
    }

    fn sysroot(&self) -> &Path {
        match self {
            Self::Installed { sysroot, .. } | Self::Debian { sysroot, .. } => sysroot,
        }
    }
}

/// Has cargo give the compiler more flags. It reads flags in one place only: those of an
/// environment hide those of all settings.
fn add_flags(cargo: &mut Command, flags: &[String], tools: &Tools) {
    const ENCODED: &str = "CARGO_ENCODED_RUSTFLAGS";
    const BETWEEN: &str = "\x1f";
    let given = match (tools.set(ENCODED), tools.set("RUSTFLAGS")) {
        (Some(encoded), _) => Some(encoded.to_string_lossy().into_owned()),
        (None, Some(given)) => {
            Some(given.to_string_lossy().split_whitespace().collect::<Vec<_>>().join(BETWEEN))
        }
        (None, None) => None,
    };
    if let Some(given) = given {
        let given = Some(given).filter(|it| !it.is_empty());
        let all: Vec<String> = given.into_iter().chain(flags.iter().cloned()).collect();
        cargo.env(ENCODED, all.join(BETWEEN));
    } else {
        // Settings add up: the project's own stay. A text of JSON is one of TOML.
        let flags = Value::from(flags);
        cargo.args(["--config", &format!("target.{TARGET}.rustflags={flags}")]);
    }
}

/// Flags that give every path in the component the same beginning on every machine. The last one
/// that matches counts, so what may contain another folder comes before that.
fn remaps(toolchain: &Toolchain, project: &Project, tools: &Tools) -> Vec<String> {
    let cargo_home = match tools.variable("CARGO_HOME") {
        Some(home) => Some(PathBuf::from(home)),
        None => std::env::home_dir().map(|home| home.join(".cargo")),
    };
    let mut metadata = toolchain.cargo();
    metadata.current_dir(&project.dir).args(["metadata", "--format-version", "1"]);
    let mut folders = packages_beside(&asked(&mut metadata).unwrap_or_default(), &project.dir);
    folders.push((project.dir.clone(), "/project".to_owned()));
    folders.extend(cargo_home.map(|folder| (folder, "/cargo".to_owned())));
    folders.push((toolchain.sysroot().to_owned(), "/rust".to_owned()));
    let flag = |(folder, name): &(PathBuf, String)| {
        Some(format!("--remap-path-prefix={}={name}", folder.to_str()?))
    };
    folders.iter().filter_map(flag).collect()
}

/// The folders of local packages outside of the project, each with a name, from what cargo printed.
fn packages_beside(metadata: &str, project: &Path) -> Vec<(PathBuf, String)> {
    let metadata: Value = serde_json::from_str(metadata).unwrap_or_default();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let local = packages.filter(|package| package["source"].is_null());
    let named = local.filter_map(|package| {
        let folder = Path::new(package["manifest_path"].as_str()?).parent()?;
        Some((folder.to_owned(), format!("/beside/{}", package["name"].as_str()?)))
    });
    let mut beside: Vec<_> = named.filter(|(folder, _)| !folder.starts_with(project)).collect();
    beside.sort();
    beside
}

/// The core module of a package, from what cargo printed.
fn module_in(printed: &str, manifest: &Path) -> Option<PathBuf> {
    let messages = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_package = messages.filter(|message| {
        message["reason"] == "compiler-artifact"
            && message["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest)
    });
    let files = of_package.flat_map(|message| message["filenames"].as_array().cloned());
    files
        .flatten()
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .find(|file| file.extension().is_some_and(|it| it == "wasm"))
}

#[cfg(test)]
mod tests {
    use super::super::tools::tests::{stubs, why};
    use super::*;

    /// The Rust that is found in a machine of stubs.
    fn check(programs: &[(&str, &str)], debian: bool, expect: Result<&str, &str>) {
        check_with("", programs, debian, expect);
    }

    /// The same, where cargo was told a linker.
    fn check_with(
        linker: &str,
        programs: &[(&str, &str)],
        debian: bool,
        expect: Result<&str, &str>,
    ) {
        let dir = tempfile::tempdir().expect("there is space");
        let bin = dir.path().display().to_string();
        let programs: Vec<(&str, &str)> = programs
            .iter()
            .map(|(name, prints)| (*name, if *prints == "BIN" { &bin } else { *prints }))
            .collect();
        let usr = dir.path().join("usr");
        let sources = usr.join("lib/rustlib/src/rust/library/std");
        if debian {
            fs::create_dir_all(sources).expect("there is space");
            stubs(&usr, &[("rustc", &usr.display().to_string())]);
        }
        let tools = stubs(dir.path(), &programs).with(LINKER, linker);
        let found = Toolchain::find(&tools, dir.path(), &usr);
        match (found, expect) {
            (Ok(Toolchain::Installed { cargo, .. }), Ok(expect)) => {
                assert_eq!(cargo.shown().replace(&bin, "BIN"), expect);
            }
            (Ok(Toolchain::Debian { linker, .. }), Ok(expect)) => {
                assert_eq!(format!("Debian {}", linker.shown().replace(&bin, "BIN")), expect);
            }
            (Err(failure), Err(expect)) => {
                let why = why::<()>(Err(failure));
                assert!(why.contains(expect), "{why}");
            }
            (found, _) => panic!("{programs:?} gives {found:?}"),
        }
    }

    #[test]
    fn a_rust_with_the_target_is_looked_for() {
        const CARGO: (&str, &str) = ("cargo", "");
        let without = ("rustc", "/nowhere/at/all");
        check(&[CARGO, ("rustc", "BIN")], false, Ok("BIN/cargo"));
        check(&[CARGO, without, ("wasm-ld", "")], true, Ok("Debian BIN/wasm-ld"));
        check_with("/opt/ld", &[CARGO, without, ("wasm-ld", "")], true, Ok("Debian /opt/ld"));
        check(&[CARGO, without, ("wasm-ld", "")], false, Err("rustup is not there"));
        check(&[CARGO, without], true, Err("apt-get install rustc-web cargo-web rust-web-src lld"));
        let says = "rustup added it to another Rust";
        check(&[CARGO, without, ("rustup", "")], false, Err(says));
        check(&[], false, Err("rustup target add wasm32-unknown-unknown"));
    }

    #[test]
    fn flags_are_added_to_those_of_the_environment() {
        let check = |variables: &[(&str, &str)], expect: &str| {
            let dir = tempfile::tempdir().expect("there is space");
            let set = |tools: Tools, (name, value): &(&str, &str)| tools.with(name, value);
            let tools = variables.iter().fold(stubs(dir.path(), &[]), set);
            let mut cargo = Command::new("cargo");
            add_flags(&mut cargo, &["-x".to_owned(), "-y".to_owned()], &tools);
            let told = cargo.get_envs().filter_map(|(name, value)| Some([name, value?]));
            let told = told.flatten().chain(cargo.get_args()).map(|it| it.to_string_lossy());
            assert_eq!(told.collect::<Vec<_>>().join(" "), expect, "{variables:?}");
        };
        check(&[], "--config target.wasm32-unknown-unknown.rustflags=[\"-x\",\"-y\"]");
        let plain = ("RUSTFLAGS", " -C  lto ");
        check(&[plain], "CARGO_ENCODED_RUSTFLAGS -C\x1flto\x1f-x\x1f-y");
        let encoded = ("CARGO_ENCODED_RUSTFLAGS", "--cfg\x1fa b");
        check(&[plain, encoded], "CARGO_ENCODED_RUSTFLAGS --cfg\x1fa b\x1f-x\x1f-y");
        check(&[("RUSTFLAGS", "")], "CARGO_ENCODED_RUSTFLAGS -x\x1f-y");
    }

    #[test]
    fn packages_beside_the_project_are_found() {
        let package = |name, folder: &str, source: Value| {
            let manifest = format!("{folder}/Cargo.toml");
            serde_json::json!({ "name": name, "manifest_path": manifest, "source": source })
        };
        let packages = [
            package("tally", "/x/tally", Value::Null),
            package("guest", "/x/tally/guest", Value::Null),
            package("inner", "/x/lib/inner", Value::Null),
            package("lib", "/x/lib", Value::Null),
            package("libm", "/home/registry/libm", "registry+https://crates.io".into()),
        ];
        let metadata = serde_json::json!({ "packages": packages }).to_string();
        let found = packages_beside(&metadata, Path::new("/x/tally"));
        let expect = [("/x/lib", "/beside/lib"), ("/x/lib/inner", "/beside/inner")];
        assert_eq!(found, expect.map(|(folder, name)| (folder.into(), name.to_owned())));
        assert_eq!(packages_beside("", Path::new("/x")), []);
    }

    #[test]
    fn cargo_says_where_the_module_is() {
        let artifact = |package: &str, files: &str| {
            let manifest = format!("\"manifest_path\":\"{package}/Cargo.toml\"");
            format!("{{\"reason\":\"compiler-artifact\",{manifest},\"filenames\":[{files}]}}\n")
        };
        let printed = [
            artifact("/x/sdk", "\"/t/sdk.wasm\""),
            "not json\n".to_owned(),
            artifact("/x", "\"/t/libm.rlib\",\"/t/m.wasm\""),
            "{\"reason\":\"build-finished\",\"success\":true}".to_owned(),
        ]
        .concat();
        let module = module_in(&printed, Path::new("/x/Cargo.toml"));
        assert_eq!(module, Some("/t/m.wasm".into()));
        assert_eq!(module_in(&printed, Path::new("/y/Cargo.toml")), None);
    }
}

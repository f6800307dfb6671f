//! Which Rust builds the guests.
//!
//! In this order: the Rust in use, if the target is installed or rustup can add it; Debian's
//! packages, which have the sources of the standard library instead of the target; an error that
//! names both ways.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::output_of;

/// What guests are built for: WebAssembly without any system underneath, hence without WASI.
pub(super) const TARGET: &str = "wasm32-unknown-unknown";

/// Debian's compiler, which is not rustup's.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Debian's cargo.
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// A Rust that can build for [`TARGET`].
pub(super) enum Toolchain {
    /// The Rust in use, with the target installed.
    Installed { version: String },
    /// Debian's Rust, which builds the standard library along with the guests.
    Debian { version: String, linker: PathBuf },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed { version } => write!(f, "{version}, target {TARGET} installed"),
            Self::Debian { version, linker } => write!(
                f,
                "Debian's {version}, building the standard library too, linker {}",
                linker.display()
            ),
        }
    }
}

impl Toolchain {
    /// A cargo that builds with this toolchain once its arguments are complete.
    pub(super) fn cargo(&self) -> Command {
        match self {
            Self::Installed { .. } => Command::new(program("CARGO", "cargo")),
            Self::Debian { linker, .. } => {
                let mut cargo = Command::new(DEBIAN_CARGO);
                cargo
                    .arg("-Zbuild-std=std,panic_abort")
                    // Building the standard library is an unstable feature of a stable compiler.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
                cargo
            }
        }
    }

    /// Where the compiler and its libraries are.
    pub(super) fn sysroot(&self) -> Result<PathBuf> {
        let mut rustc = match self {
            Self::Installed { .. } => Command::new(program("RUSTC", "rustc")),
            Self::Debian { .. } => Command::new(DEBIAN_RUSTC),
        };
        Ok(output_of(rustc.args(["--print", "sysroot"]))?.into())
    }
}

/// Finds a toolchain; adds the target if rustup can.
pub(super) fn find() -> Result<Toolchain> {
    if let Some(installed) = installed() {
        return Ok(installed);
    }
    println!("guests: the Rust in use has no target {TARGET}; asking rustup to add it");
    let rustup = match output_of(Command::new("rustup").args(["target", "add", TARGET])) {
        Ok(_) => match installed() {
            Some(installed) => return Ok(installed),
            None => "rustup added the target to another Rust than the one in use".to_owned(),
        },
        Err(error) => format!("{error:#}"),
    };
    println!("guests: rustup could not: {rustup}");
    println!("guests: looking for Debian's Rust");
    match debian() {
        Ok(debian) => Ok(debian),
        Err(error) => bail!(
            "no Rust here builds for {TARGET}. Either of these will do:\n  \
             rustup target add {TARGET}\n      (now: {rustup})\n  \
             apt install rustc-web cargo-web rust-web-src, and any rust-lld or wasm-ld\n      \
             (now: {error:#})"
        ),
    }
}

/// The Rust in use, if it has the target.
fn installed() -> Option<Toolchain> {
    let rustc = program("RUSTC", "rustc");
    let libraries =
        output_of(Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET]))
            .ok()?;
    if !Path::new(&libraries).is_dir() {
        return None;
    }
    let version = output_of(Command::new(&rustc).arg("--version")).ok()?;
    Some(Toolchain::Installed { version })
}

/// Debian's Rust, if all its parts are installed.
fn debian() -> Result<Toolchain> {
    let version = output_of(Command::new(DEBIAN_RUSTC).arg("--version"))?;
    output_of(Command::new(DEBIAN_CARGO).arg("--version"))?;
    let sysroot = output_of(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?;
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust/library/std");
    if !sources.is_dir() {
        bail!("no sources of the standard library at {}", sources.display());
    }
    let linker = linker(Path::new(&sysroot)).context("neither rust-lld nor wasm-ld was found")?;
    Ok(Toolchain::Debian { version, linker })
}

/// A linker for WebAssembly: the one asked for, one on the path, or one of any Rust here.
fn linker(sysroot: &Path) -> Option<PathBuf> {
    if let Some(asked) = std::env::var_os("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER") {
        return Some(asked.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = (14..=30).rev().map(|version| format!("wasm-ld-{version}"));
    let names: Vec<String> =
        ["rust-lld", "wasm-ld"].map(str::to_owned).into_iter().chain(versions).collect();
    let on_path = std::env::split_paths(&path)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    let rustup = std::env::home_dir().unwrap_or_default().join(".rustup/toolchains");
    let in_rusts = folders_in(&rustup)
        .into_iter()
        .chain([sysroot.to_owned()])
        .flat_map(|rust| folders_in(&rust.join("lib/rustlib")))
        .map(|host| host.join("bin/rust-lld"));
    on_path.chain(in_rusts).find(|file| file.is_file())
}

/// The entries of a folder, sorted; none if there is no such folder.
fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The program that cargo names in the environment, or else the one on the path.
fn program(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from)
}

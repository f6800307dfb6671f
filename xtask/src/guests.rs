//! `cargo xtask guests`: builds every crate of `examples/` and of `tests/guests/` to a component in
//! `target/guests`.
//!
//! * A component imports nothing but this project's interfaces; otherwise the build fails and names
//!   the imports.
//! * The same sources and toolchain give the same bytes, wherever the checkout lies: no path, and
//!   nothing derived from one, reaches the output. [`Build::remaps`] and [`rustc`] see to that.
//! * A file whose bytes would stay the same is not written.
//!
//! Cargo decides what is stale. Encoding is cheap and always done.

mod rustc;
mod toolchain;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use wit_component::{ComponentEncoder, DecodedWasm};

use crate::checkout;
use toolchain::{TARGET, Toolchain};

pub(crate) use rustc::{is_rustc, run_rustc};

/// What a component may import; the host provides nothing else. `types` is among them if
/// interfaces share types.
const IMPORTS: [&str; 5] = [
    "lockstep:fsm/host@0.2.0",
    "lockstep:fsm/events@0.2.0",
    TIMER,
    "lockstep:fsm/snapshot-io@0.2.0",
    "lockstep:fsm/types@0.2.0",
];

/// A component that imports the timer exports what it calls.
const TIMER: &str = "lockstep:fsm/timer@0.2.0";
const WAKE: &str = "lockstep:fsm/wake@0.2.0";

/// What a component must export.
const EXPORT: &str = "lockstep:fsm/state-machine@0.2.0";

/// Builds all guests and prints each step; returns the components' files, sorted.
pub(crate) fn build() -> Result<Vec<PathBuf>> {
    let root = checkout::root();
    let mut names = guests(&root.join("examples"))?;
    names.extend(guests(&root.join("tests/guests"))?);
    let toolchain = toolchain::find()?;
    println!("guests: toolchain: {toolchain}");

    println!("guests: building {}", names.join(", "));
    let build = Build { toolchain, target_dir: root.join("target/guests-build"), root };
    build.run(&names)?;

    let folder = build.root.join("target/guests");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut files = Vec::new();
    for name in &names {
        let component = encode(&build.core_module(name)).with_context(|| name.clone())?;
        let imports = checked_imports(&component).with_context(|| name.clone())?;
        let file = folder.join(name).with_extension("wasm");
        let state = write(&file, &component)?;
        println!(
            "guests: target/guests/{name}.wasm: {} bytes, {state}\n\
             guests:   sha256 {}\n\
             guests:   imports {}",
            component.len(),
            sha256(&component),
            if imports.is_empty() { "nothing".to_owned() } else { imports.join(", ") },
        );
        files.push(file);
    }
    Ok(files)
}

/// Builds the examples in a copy of the checkout; returns whether their bytes are the same as here.
pub(crate) fn same_elsewhere() -> Result<bool> {
    let here = checkout::root();
    let root = here.join("target/elsewhere/checkout");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    }
    copy(&here, &root)?;
    let names = guests(&here.join("examples"))?;
    let target_dir = here.join("target/elsewhere/build");
    let build = Build { toolchain: toolchain::find()?, root, target_dir };
    build.run(&names)?;
    let mut same = true;
    for name in names {
        let there = sha256(&encode(&build.core_module(&name))?);
        let file = here.join("target/guests").join(&name).with_extension("wasm");
        let ours = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        println!("guests: {name} built in {}: sha256 {there}", build.root.display());
        same &= there == sha256(&ours);
    }
    Ok(same)
}

/// Copies the checkout, except what is built or hidden.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let copying = || format!("copying {}", from.display());
    fs::create_dir_all(to).with_context(copying)?;
    for entry in fs::read_dir(from).with_context(copying)? {
        let path = entry.with_context(copying)?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        let hidden = name.to_string_lossy().starts_with('.') && name != ".cargo";
        let target = to.join(&name);
        if path.is_dir() && name != "target" && !hidden {
            copy(&path, &target)?;
        } else if path.is_file() {
            fs::copy(&path, &target).with_context(copying)?;
        }
    }
    Ok(())
}

/// The names of the guests in a folder, sorted: its subfolders that hold a crate.
fn guests(parent: &Path) -> Result<Vec<String>> {
    let reading = || format!("reading {}", parent.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(parent).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        if entry.path().join("Cargo.toml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    ensure!(!names.is_empty(), "no guests in {}", parent.display());
    names.sort();
    Ok(names)
}

/// One run of cargo over the guests' workspace.
struct Build {
    toolchain: Toolchain,
    /// The root of the checkout.
    root: PathBuf,
    /// A target folder of its own, so that this build and that of the host do not wait for each
    /// other.
    target_dir: PathBuf,
}

impl Build {
    fn run(&self, names: &[String]) -> Result<()> {
        let mut cargo = self.toolchain.cargo();
        cargo
            .current_dir(self.root.join("examples"))
            .args(["build", "--locked", "--release", "--lib"])
            .args(names.iter().flat_map(|name| ["--package", name.as_str()]))
            .args(["--target", TARGET, "--target-dir"])
            .arg(&self.target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", self.remaps()?.join("\x1f"));
        rustc::wrap(&mut cargo, &self.root)?;
        let status = cargo.status().context("starting cargo")?;
        ensure!(status.success(), "cargo could not build the guests ({status})");
        Ok(())
    }

    /// Flags that give every path in a panic message or a debug name the same beginning on every
    /// machine. The last flag that matches counts, so the checkout, which may contain the other
    /// folders, comes first.
    fn remaps(&self) -> Result<Vec<String>> {
        let folders = [
            (self.root.clone(), "/lockstep"),
            (cargo_home()?, "/cargo"),
            (self.toolchain.sysroot()?, "/rust"),
        ];
        folders
            .into_iter()
            .map(|(folder, name)| {
                let folder = folder.to_str().context("a folder whose name is not UTF-8")?;
                Ok(format!("--remap-path-prefix={folder}={name}"))
            })
            .collect()
    }

    /// Where cargo puts the core module of a guest.
    fn core_module(&self, name: &str) -> PathBuf {
        let file = format!("{}.wasm", name.replace('-', "_"));
        self.target_dir.join(TARGET).join("release").join(file)
    }
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::home_dir().context("neither CARGO_HOME nor a home directory is known")?;
    Ok(home.join(".cargo"))
}

/// Makes a component of a core module. The SDK has put the world that it was built for into the
/// module.
fn encode(module: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(module).with_context(|| format!("reading {}", module.display()))?;
    ComponentEncoder::default()
        .module(&bytes)
        .and_then(|encoder| encoder.validate(true).encode())
        .with_context(|| format!("encoding {} as a component", module.display()))
}

/// The component's imports, if they are all ours and it exports a state machine.
fn checked_imports(component: &[u8]) -> Result<Vec<String>> {
    let DecodedWasm::Component(resolve, world) =
        wit_component::decode(component).context("decoding the component")?
    else {
        bail!("the encoder made an interface instead of a component");
    };
    let world = &resolve.worlds[world];
    let imports: Vec<String> =
        world.imports.keys().map(|key| resolve.name_world_key(key)).collect();
    let foreign: Vec<&str> =
        imports.iter().map(String::as_str).filter(|name| !IMPORTS.contains(name)).collect();
    ensure!(
        foreign.is_empty(),
        "it imports {}, which no host provides; a dependency that asks for files, clocks or \
         randomness usually brings that in",
        foreign.join(", "),
    );
    let exports = |name| world.exports.keys().any(|key| resolve.name_world_key(key) == name);
    ensure!(exports(EXPORT), "it does not export {EXPORT}; is `lockstep_guest::export!` missing?");
    ensure!(
        exports(WAKE) || !imports.iter().any(|name| name == TIMER),
        "it sets the timer and does not export {WAKE}: implement `Wake`, and write `wake` in \
         `lockstep_guest::export!`",
    );
    Ok(imports)
}

/// Writes the file unless it holds these bytes already; returns what happened, in a word.
fn write(file: &Path, bytes: &[u8]) -> Result<&'static str> {
    if fs::read(file).is_ok_and(|there| there == bytes) {
        return Ok("unchanged");
    }
    fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))?;
    Ok("written")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes everything");
        hex
    })
}

/// What a program printed, without the end of the line; an error if the program failed.
fn output_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout).context("its output is not text")?.trim().to_owned())
}

//! `cargo xtask lint`: everything that can be checked without running the product. Writes nothing
//! but what cargo keeps in `target`. `cargo xtask fix` repairs what it can.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::steps::{Steps, cargo};
use crate::{checkout, tidy};

/// Where the examples are built natively, apart from the components.
pub(crate) const EXAMPLES_TARGET: &str = "target/examples-native";

/// Most rounds of rustfmt and wrapping; usually two are enough.
const FORMAT_ROUNDS_MAX: usize = 4;

/// The documentation is for developers of this project, so public pages may link to private items.
const RUSTDOC_FLAGS: &str = "-D warnings -A rustdoc::private_intra_doc_links";

const WASM: &str = "wasm32-unknown-unknown";

/// Runs all checks; prints everything that is wrong before it fails.
pub(crate) fn lint() -> Result<()> {
    let root = checkout::root();
    let mut steps = Steps::new("lint");
    steps.quiet("fmt", cargo(&root).args(["fmt", "--all", "--", "--check"]))?;
    steps.quiet("fmt of the examples", fmt_examples(&root).args(["--", "--check"]))?;
    steps.own("tidy", || Ok(print_violations(&root)? == 0))?;
    steps.quiet(
        "clippy",
        cargo(&root)
            .args(["clippy", "--quiet", "--locked", "--workspace", "--all-targets"])
            .args(DENY),
    )?;
    steps.quiet(
        "clippy of the examples",
        clippy_examples(&root).args(["--locked", "--all-targets"]).args(DENY),
    )?;
    if has_wasm() {
        steps.quiet(
            "clippy of the SDK for WebAssembly",
            clippy_sdk(&root).arg("--locked").args(DENY),
        )?;
    } else {
        println!("lint: no target {WASM}, and rustup cannot add it: not checking the SDK for it");
    }
    steps.quiet(
        "docs",
        cargo(&root)
            .args(["doc", "--quiet", "--locked", "--workspace", "--no-deps"])
            .arg("--document-private-items")
            .env("RUSTDOCFLAGS", RUSTDOC_FLAGS),
    )?;
    steps.finish()
}

/// Checks only the project's own rules.
pub(crate) fn tidy() -> Result<()> {
    match print_violations(&checkout::root())? {
        0 => Ok(()),
        left => bail!("{left} violations of STYLE.md and ARCHITECTURE.md"),
    }
}

/// Formats, applies what clippy can repair, and prints what is left.
pub(crate) fn fix() -> Result<()> {
    const DIRTY: [&str; 3] = ["--fix", "--allow-dirty", "--allow-staged"];
    let root = checkout::root();
    let mut steps = Steps::new("fix");
    steps.quiet(
        "clippy",
        cargo(&root).args(["clippy", "--quiet", "--workspace", "--all-targets"]).args(DIRTY),
    )?;
    steps
        .quiet("clippy of the examples", clippy_examples(&root).arg("--all-targets").args(DIRTY))?;
    if has_wasm() {
        steps.quiet("clippy of the SDK for WebAssembly", clippy_sdk(&root).args(DIRTY))?;
    }
    format(&root, &mut steps)?;
    let left = print_violations(&root)?;
    if left > 0 {
        println!("fix: {left} of these must be repaired by hand");
    }
    steps.finish()
}

/// Repairs what can be repaired without a compiler.
pub(crate) fn tidy_up() -> Result<()> {
    let mut steps = Steps::new("tidy");
    format(&checkout::root(), &mut steps)?;
    steps.finish()?;
    tidy()
}

/// Fills in what documents say of the tests, formats code, and wraps comments and strings, which
/// rustfmt leaves as they are.
fn format(root: &Path, steps: &mut Steps) -> Result<()> {
    if tidy::fill_in(root)? {
        println!("filled in the table of requirements");
    }
    steps.quiet("fmt of the examples", &mut fmt_examples(root))?;
    // rustfmt skips a statement that holds an overlong string, and may indent a string once it is
    // wrapped.
    for _round in 0..FORMAT_ROUNDS_MAX {
        steps.quiet("fmt", cargo(root).args(["fmt", "--all"]))?;
        match tidy::wrap(root)? {
            0 => return Ok(()),
            changed => println!("wrapped comments and strings of {changed} files"),
        }
    }
    bail!("rustfmt and wrapping still undo each other after {FORMAT_ROUNDS_MAX} rounds")
}

const DENY: [&str; 3] = ["--", "-D", "warnings"];

fn clippy_examples(root: &Path) -> Command {
    let mut clippy = cargo(&root.join("examples"));
    clippy.args(["clippy", "--quiet", "--workspace", "--target-dir"]);
    clippy.arg(root.join(EXAMPLES_TARGET));
    clippy
}

fn clippy_sdk(root: &Path) -> Command {
    let mut clippy = cargo(root);
    clippy.args(["clippy", "--quiet", "--package", "lockstep-guest", "--target", WASM]);
    clippy
}

/// Without `--all`, which would follow the examples' path dependencies out of their workspace.
fn fmt_examples(root: &Path) -> Command {
    let mut fmt = cargo(&root.join("examples"));
    fmt.arg("fmt");
    fmt
}

/// Prints all violations; returns how many there are.
fn print_violations(root: &Path) -> Result<usize> {
    let violations = tidy::check(root)?;
    for violation in &violations {
        println!("{violation}");
    }
    Ok(violations.len())
}

/// Whether the Rust in use builds for WebAssembly; adds the target where rustup can.
fn has_wasm() -> bool {
    let installed = || {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc)
            .args(["--print", "target-libdir", "--target", WASM])
            .output()
            .ok()?;
        Some(Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
    };
    let add = || Command::new("rustup").args(["target", "add", WASM]).output();
    installed() == Some(true) || add().is_ok_and(|done| done.status.success())
}

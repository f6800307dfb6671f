//! Runs between cargo and rustc, so that a guest does not show where the checkout lies.
//!
//! Cargo gives rustc a hash that tells crates of the same name apart; rustc mixes it into every
//! symbol and into the order of functions. For a crate outside its workspace, as the SDK is outside
//! that of the examples, the hash covers the absolute path, and no flag of cargo changes that. So
//! cargo is told to start this program instead of rustc. It starts rustc with the same arguments,
//! except that for crates of the checkout the hash is replaced by the package's name and version,
//! which tell these crates apart as well as a hash does.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

/// The variable that is set for processes that have to act as rustc; it holds the checkout's root.
const MARKER: &str = "LOCKSTEP_XTASK_RUSTC";

/// Makes this cargo start rustc through this program.
pub(super) fn wrap(cargo: &mut Command, root: &Path) -> Result<()> {
    let program = std::env::current_exe().context("finding out which program this is")?;
    cargo.env("RUSTC_WRAPPER", program).env(MARKER, root);
    Ok(())
}

/// Whether cargo started this process instead of rustc.
pub(crate) fn is_rustc() -> bool {
    std::env::var_os(MARKER).is_some()
}

/// Runs the rustc that cargo meant; returns its exit code.
pub(crate) fn run_rustc() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(name) = package_of_the_checkout() {
        replace_metadata(&mut arguments, &name);
    }
    let Some((rustc, arguments)) = arguments.split_first() else {
        eprintln!("error: {MARKER} is set, but no compiler was named");
        return ExitCode::from(2);
    };
    match Command::new(rustc).args(arguments).env_remove(MARKER).status() {
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            code.map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(error) => {
            eprintln!("error: starting {}: {error}", rustc.display());
            ExitCode::FAILURE
        }
    }
}

/// The name and version of the package being compiled, if it lies in the checkout.
fn package_of_the_checkout() -> Option<String> {
    let root = std::env::var_os(MARKER)?;
    let package = std::env::var_os("CARGO_MANIFEST_DIR")?;
    let inside = Path::new(&package).strip_prefix(root).ok()?;
    // A package that was fetched into a target folder of the checkout is not part of the checkout.
    if inside.starts_with("target") {
        return None;
    }
    let name = std::env::var("CARGO_PKG_NAME").ok()?;
    let version = std::env::var("CARGO_PKG_VERSION").ok()?;
    Some(format!("{name}-{version}"))
}

/// Replaces the hash, which cargo passes as one argument after a `-C`.
fn replace_metadata(arguments: &mut [OsString], name: &str) {
    for argument in arguments {
        if argument.to_str().is_some_and(|text| text.starts_with("metadata=")) {
            *argument = format!("metadata={name}").into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_metadata_is_replaced() {
        let text = "rustc -C metadata=12ab -C extra-filename=-12ab --crate-name kv";
        let mut arguments: Vec<OsString> = text.split(' ').map(Into::into).collect();
        replace_metadata(&mut arguments, "kv-0.1.0");
        assert_eq!(
            arguments.join(" ".as_ref()),
            "rustc -C metadata=kv-0.1.0 -C extra-filename=-12ab --crate-name kv"
        );
    }
}

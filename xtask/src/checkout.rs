//! Where the checkout is.

use std::path::PathBuf;

/// The root of the checkout this command was started in.
pub(crate) fn root() -> PathBuf {
    // Cargo sets this variable when it runs the command; without it, the checkout is the one in
    // which the command was built.
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().expect("the crate lies in a folder of the checkout").to_owned()
}

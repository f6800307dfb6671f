//! Where the checkout is.

use std::path::PathBuf;

/// The root of the checkout this command was started in.
pub(crate) fn root() -> PathBuf {
    // What cargo says when it runs the command; the place it was built at otherwise.
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().expect("the crate lies in a folder of the checkout").to_owned()
}

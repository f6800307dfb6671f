//! What all steps of a node's start share: the error, and how to wait until a step can continue.

use std::path::PathBuf;
use std::time::Duration;

use crate::data_dir::DataDirError;
use crate::guest::check::ModuleRefusal;
use crate::rpc::server::ServeError;
use crate::wal::WalError;

/// How long a start that lacks disk space, descriptors or memory waits before it tries again.
const START_RETRY: Duration = Duration::from_secs(1);
/// Tries between two log lines about a start that waits.
const START_RETRIES_A_LINE: u32 = 60;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("group {group:?}: module {}: {why}", path.display())]
    Module { group: String, path: PathBuf, why: ModuleRefusal },
    #[error("group {group:?}: module {}: {source}; put the component there or correct \
        `module`", path.display())]
    ModuleFile { group: String, path: PathBuf, source: std::io::Error },
    #[error(
        "group {group:?}: there is no native module {name:?}; use hash-chain, register or \
         ballast:BYTES"
    )]
    NativeModule { group: String, name: String },
    #[error("listen on {address}: {source}; {} `{key}`", listen_way_out(source))]
    Listen { address: String, key: &'static str, source: std::io::Error },
    #[error("{}{}", .0, log_way_out(.0))]
    Log(#[from] WalError),
    #[error("cannot tell how much space {} has: {source}; make sure that it is mounted and \
        readable", dir.display())]
    Space { dir: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the start panicked; see the panic in the log")]
    Broke,
    #[error("{lane}: cannot start its thread: {source}; raise this user's limit of threads")]
    Thread { lane: String, source: std::io::Error },
}

/// What to do about an error of the log that does not say so itself.
fn log_way_out(error: &WalError) -> &'static str {
    match error {
        WalError::Io { .. } => {
            "; nothing acknowledged is lost by this: start again once this user can read and write \
            the file and the disk is healthy, or with --rejoin to join as a new replica"
        }
        _other => "",
    }
}

fn listen_way_out(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
    match error.kind() {
        AddrInUse => "another process uses the port: stop it or change",
        AddrNotAvailable => "this machine has no such address: change",
        PermissionDenied => "this user may not use that port: choose one from 1024 up in",
        _other => "check the name and the port in",
    }
}

/// The error of a lane whose thread did not start.
pub(crate) fn thread(lane: impl Into<String>, source: std::io::Error) -> StartError {
    StartError::Thread { lane: lane.into(), source }
}

/// Repeats a step of a start while it lacks disk space, descriptors or memory: a full disk does not
/// end the node; its start continues once there is enough space.
pub(crate) fn once_there_is_space<T, E: std::fmt::Display>(
    is_short: impl Fn(&E) -> bool,
    mut step: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut tries = 0_u32;
    loop {
        match step() {
            Err(error) if is_short(&error) => {
                if tries.is_multiple_of(START_RETRIES_A_LINE) {
                    tracing::warn!(%error, "the node cannot start for lack of space: it continues \
                        by itself once there is enough");
                }
                tries += 1;
                std::thread::sleep(START_RETRY);
            }
            done => return done,
        }
    }
}

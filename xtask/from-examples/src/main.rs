//! Passes its arguments to the checkout's `xtask`, and its exit code back.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let checkout = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let run = Command::new(env!("CARGO"))
        .current_dir(checkout)
        .args(["run", "--quiet", "--package", "xtask", "--"])
        .args(std::env::args_os().skip(1))
        .status();
    match run {
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            code.map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(error) => {
            eprintln!("error: starting cargo in {checkout}: {error}");
            ExitCode::FAILURE
        }
    }
}

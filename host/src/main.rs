//! The binary `lockstep`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockstep_host::cli::main()
}

//! `cargo xtask fuzz [TARGET...] [--seconds N]`: feeds the decoders bytes that no program of ours
//! would write.
//!
//! Needs a nightly toolchain and cargo-fuzz. Inputs that a run finds are kept in `target/fuzz`; the
//! small corpus that is kept with the sources is `tests/fuzz/corpus`, which `cargo xtask test`
//! runs, too.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::checkout;

const TARGETS: [&str; 6] = ["log", "object", "export", "peer", "client", "configuration"];
const SECONDS: u64 = 180;
/// No input may make a decoder allocate this much at once.
const ALLOCATION_MIB: u64 = 64;
const INPUT_BYTES_MAX: u64 = 65_536;

pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let (mut targets, mut seconds, mut rest) = (Vec::new(), SECONDS, arguments);
    while let [word, more @ ..] = rest {
        rest = more;
        match (*word, more) {
            ("--seconds", [number, more @ ..]) => {
                seconds = number.parse().with_context(|| format!("{number:?} is not a number"))?;
                rest = more;
            }
            (name, _) if TARGETS.contains(&name) => targets.push(name),
            (other, _) => bail!("unknown target {other:?}; there are {}", TARGETS.join(", ")),
        }
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    let root = checkout::root();
    for target in targets {
        let found = root.join("target/fuzz/corpus").join(target);
        std::fs::create_dir_all(&found).with_context(|| format!("{}", found.display()))?;
        println!("fuzz: {target}, {seconds} s");
        // `CARGO` names the cargo of another toolchain, while rustup's `cargo` chooses the
        // toolchain by a variable.
        let status = Command::new("cargo")
            .current_dir(&root)
            .env("RUSTUP_TOOLCHAIN", "nightly")
            .env_remove("RUSTC")
            .args(["fuzz", "run", "--fuzz-dir", "tests/fuzz"])
            .args(["--target-dir", "target/fuzz", target])
            .arg(&found)
            .arg(root.join("tests/fuzz/corpus").join(target))
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-malloc_limit_mb={ALLOCATION_MIB}"))
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .args(["-print_final_stats=1", "-verbosity=0"])
            .status()
            .context("starting cargo fuzz")?;
        ensure!(
            status.success(),
            "{target} ended with {status}; if cargo has no `fuzz`: `cargo install cargo-fuzz`, and \
             `rustup toolchain install nightly`"
        );
    }
    Ok(())
}

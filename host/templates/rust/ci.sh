#!/bin/sh
# All that has to hold before a change is merged.
set -eu
cd "$(dirname "$0")"
cargo fmt --check
cargo clippy --no-deps --all-targets -- --deny warnings
cargo test
lockstep build
lockstep test my-machine.wasm

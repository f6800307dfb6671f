#!/bin/sh
# All that has to hold before a change is merged.
set -eu
cd "$(dirname "$0")"
lockstep build
lockstep test my-machine.wasm --commands commands.txt

#!/usr/bin/env bash
# Runs the CPU backend's tests, with every instruction set that this machine has, under AddressSanitizer. Linux only: its
# runtime comes with the toolchain, whose switch for it is RUSTC_BOOTSTRAP. Arguments go to cargo test.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc --version --verbose | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/asan
# Sizes that no machine has are errors, and a test asks for one.
export ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1}
# Fewer cases: each takes a few times as long.
export SWIGLU_CASES=${SWIGLU_CASES:-100}
exec cargo test --locked -p swiglu-cpu --lib --tests --target "$host" "$@"

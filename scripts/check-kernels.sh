#!/usr/bin/env bash
# Compiles the CUDA kernels, without a GPU, by the NVRTC of two packages from PyPI: 13 for the architectures that it has,
# and 12.9 for sm_70, which 13 dropped. Errors, spilled registers and serialised products fail.
#
#   check-kernels.sh [install]   install: only put NVRTC into target/nvrtc, the one step that needs the network
#
# SWIGLU_KERNELS=all compiles every kernel for every architecture, some 11700 in all; the default is a tenth of that, without 8.6 and 8.9.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(nvidia-cuda-nvrtc==13.* nvidia-cuda-nvrtc-cu12==12.9.*)
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/nvrtc
new=$folder/nvidia/cu13/lib/libnvrtc.so.13
old=$folder/nvidia/cuda_nvrtc/lib/libnvrtc.so.12

if [ ! -e "$new" ] || [ ! -e "$old" ]; then
  rm -rf "$folder"
  python3 -m pip install --quiet --no-deps --target "$folder" "${packages[@]}"
fi
[ "${1:-}" != install ] || exit 0

# Usage: check NVRTC ARCHITECTURES
check() {
  SWIGLU_NVRTC=$1 SWIGLU_ARCHITECTURES=$2 SWIGLU_REQUIRE_NVRTC=1 \
    cargo test --locked -p swiglu-cuda --lib -- kernel::tests --nocapture
}
cargo test --locked -p swiglu-cuda --lib --no-run
# Two processes: two threads in one NVRTC get 1.4 times as much done as one. Hopper's kernels take half of the time.
check "$new" 90 >"$folder/hopper.log" 2>&1 &
hopper=$!
status=0
others=75,80,120
[ "${SWIGLU_KERNELS:-}" != all ] || others=75,80,86,89,120
check "$new" "$others" || status=1
check "$old" 70 || status=1
wait "$hopper" || status=1
cat "$folder/hopper.log"
exit $status

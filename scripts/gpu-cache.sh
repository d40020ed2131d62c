#!/usr/bin/env bash
# Compiles kernels for a GPU machine with CUDA 13.0 beforehand, into a folder to name in SWIGLU_CUDA_CACHE there (an absolute
# path, mode 700). Usage: scripts/gpu-cache.sh FOLDER [PART_OF_A_KERNELS_NAME], such as sm90-bf16, for 9.0 or what
# SWIGLU_ARCHITECTURES says.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  /*) folder=$1 ;;
  *) echo "usage: $0 FOLDER [NAME], an absolute path" >&2; exit 2 ;;
esac
# The entries hold for one version of NVRTC, that of the CUDA 13.0 that the machine has.
nvrtc=target/nvrtc-13.0
[ -d "$nvrtc" ] || python3 -m pip install --quiet --no-deps --target "$nvrtc" nvidia-cuda-nvrtc==13.0.88
library=$(find "$PWD/$nvrtc" -name 'libnvrtc.so.13')
SWIGLU_FILL=$folder SWIGLU_FILL_ONLY=${2:-} SWIGLU_NVRTC=$library LD_LIBRARY_PATH=$(dirname "$library") \
  SWIGLU_ARCHITECTURES=${SWIGLU_ARCHITECTURES:-90} \
  cargo test --locked -p swiglu-cuda --lib -- --ignored --nocapture a_cache_is_filled_for_another_machine
chmod 700 "$folder"

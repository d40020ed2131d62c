#!/usr/bin/env bash
# Runs the GPU tests of a bundle. A missing GPU is a failure here, not a reason to skip.
#
#   run.sh [FILTER]      the suite on every family of kernels, a process for each test
#   run.sh sanitize      small shapes under compute-sanitizer's four tools
set -euo pipefail
cd "$(dirname "$0")"
export SWIGLU_REQUIRE_GPU=1

# A process for each test: NVRTC compiles one program at a time, and the suite uses hundreds of kernels.
suite() {
  ./gpu --list --format terse ${1:+"$1"} | sed -n 's/: test$//p' |
    xargs -P "${JOBS:-$(nproc)}" -I{} sh -c './gpu --exact "{}" --nocapture >"logs/$(echo "{}" | tr : _).txt" 2>&1 ||
      { echo "FAILED {}"; exit 1; }'
}

sanitize() {
  local sanitizer=${SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
  # Cases that fail would not be compared with anything here: the tools look at accesses.
  for tool in memcheck racecheck initcheck synccheck; do
    echo "== $tool"
    SWIGLU_CASES=${SANITIZE_CASES:-40} "$sanitizer" --tool "$tool" --error-exitcode 9 ./gpu sanitize:: --test-threads 1 \
      2>&1 | tee "logs/$tool.txt" | tail -n 3
    # The tool's own last line is the proof that it ran.
    grep -q 'ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards' "logs/$tool.txt"
  done
}

mkdir -p logs
case "${1:-}" in
  sanitize) sanitize ;;
  *) suite "$@" && grep -h ' cases' logs/*.txt || true ;;
esac

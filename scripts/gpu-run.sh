#!/usr/bin/env bash
# Runs the GPU tests of a bundle. A missing GPU is a failure here, not a reason to skip.
#
#   run.sh [FILTER]           the tests whose names hold FILTER, a process for each
#   run.sh sanitize [TOOL..]  small shapes of every kernel under compute-sanitizer, all four tools if none is named
set -euo pipefail
cd "$(dirname "$0")"
export SWIGLU_REQUIRE_GPU=1

# These take most of a GPU's memory, or all of it.
large='^large::\|^faults::full_memory$'

# Runs the tests that are named on standard input, $1 at a time, a process for each: NVRTC compiles little more than one
# program at a time, and the suite uses hundreds of kernels.
each() {
  xargs -r -P "$1" -I{} sh -c './gpu --exact "{}" --nocapture >"logs/$(echo "{}" | tr : _).txt" 2>&1 ||
    { echo "FAILED {}"; exit 1; }'
}

suite() {
  local names status=0
  names=$(./gpu --list --format terse ${1:+"$1"} | sed -n 's/: test$//p')
  [ -n "$names" ] || { echo "no test is named like ${1:-that}"; return 1; }
  { grep -v "$large" <<<"$names" || true; } | each "${JOBS:-$(nproc)}" || status=1
  { grep "$large" <<<"$names" || true; } | each 1 || status=1
  return $status
}

# Runs one test under one tool, for xargs.
under() {
  local tool=$1 test=$2 log="logs/$1-${2//:/_}.txt"
  export SWIGLU_SANITIZE_TOOL=$tool
  # Racecheck had done 4 of 24 tests when memcheck, beside it, had done all.
  [ "$tool" != racecheck ] || export SWIGLU_SANITIZE_EVERY=${SWIGLU_SANITIZE_EVERY:-5}
  "$SANITIZER" --tool "$tool" --error-exitcode 9 ./gpu --exact "$test" --nocapture >"$log" 2>&1 ||
    echo "FAILED $test under $tool: $log"
}
export -f under

sanitize() {
  export SANITIZER=${SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
  local tools=("$@") tool names status=0
  [ $# -gt 0 ] || tools=(memcheck racecheck initcheck synccheck)
  # Compiled once, without a tool; results are checked here too.
  mkdir -p cache
  chmod 700 cache
  export SWIGLU_CUDA_CACHE=${SWIGLU_CUDA_CACHE:-$PWD/cache}
  suite sanitize::
  names=$(./gpu --list --format terse sanitize:: | sed -n 's/: test$//p')
  for tool in "${tools[@]}"; do
    xargs -r -P "${JOBS:-$(nproc)}" -I{} bash -c "under $tool {}" <<<"$names" | tee "logs/failed-$tool.txt"
    # The tool's own last line is the proof that it ran: one for each test.
    local clean
    clean=$(cat logs/"$tool"-*.txt | grep -c 'ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards' || true)
    echo "$tool: $clean of $(wc -l <<<"$names") tests without a finding"
    [ "$clean" = "$(wc -l <<<"$names")" ] && [ ! -s "logs/failed-$tool.txt" ] || status=1
  done
  return $status
}

mkdir -p logs
case "${1:-}" in
  sanitize) sanitize "${@:2}" ;;
  *)
    status=0
    suite "$@" || status=1
    grep -h ' cases' logs/*.txt || true
    exit $status
    ;;
esac

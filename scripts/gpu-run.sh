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

# The tool's own last line, which is the proof that it ran. Racecheck has one of its own.
summary() {
  grep -h 'ERROR SUMMARY:\|RACECHECK SUMMARY:' "logs/$1.txt" | tail -n 1
}

sanitize() {
  local sanitizer=${SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
  local tools=("$@") tool status=0
  [ $# -gt 0 ] || tools=(memcheck racecheck initcheck synccheck)
  # Compiled once, without a tool; results are checked here too.
  mkdir -p cache
  chmod 700 cache
  export SWIGLU_CUDA_CACHE=$PWD/cache
  suite sanitize::
  local -A process
  for tool in "${tools[@]}"; do
    "$sanitizer" --tool "$tool" --error-exitcode 9 ./gpu sanitize:: --test-threads 1 --nocapture >"logs/$tool.txt" 2>&1 &
    process[$tool]=$!
  done
  for tool in "${tools[@]}"; do
    local found=0
    wait "${process[$tool]}" || found=$?
    echo "$tool: $(grep '^test result' "logs/$tool.txt" || echo 'the tests did not end')"
    echo "  $(summary "$tool" || echo 'the tool did not run')"
    # A test that fails without a finding of the tool counts too.
    if [ "$found" != 0 ] || ! summary "$tool" | grep -q 'ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards'; then
      echo "  FAILED with status $found: logs/$tool.txt"
      status=1
    fi
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

#!/usr/bin/env bash
# Builds what a GPU machine without Rust needs into one folder: GPU tests, benchmarks and the MNIST program as stripped
# binaries, and run.sh to run them. Usage: scripts/gpu-bundle.sh [FOLDER], dist/gpu by default.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-dist/gpu}
mkdir -p "$out"

# Prints the executables that a cargo command makes, one `name path` a line.
executables() {
  cargo "$@" --locked --message-format=json |
    python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        print(message["target"]["name"], message["executable"])'
}

add() {
  while read -r name path; do
    strip -o "$out/$name" "$path"
  done
}

executables test --no-run -p swiglu-cuda --test gpu | add
executables build --release -p mnist --features cuda | add
executables build --release -p swiglu-cuda --example throughput --example tune | add
executables build --release -p swiglu-bench-gpu | add
executables build --release -p swiglu --features cuda,cli --bin swiglu --example llama_mlp | add
cp scripts/gpu-run.sh "$out/run.sh"

kib=$(du -sk "$out" | cut -f1)
echo "$out: $kib KiB"
# A GPU machine takes 64 MiB in all, the repository included.
if [ "$kib" -gt $((60 * 1024)) ]; then
  echo "larger than 60 MiB" >&2
  exit 1
fi

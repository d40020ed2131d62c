#!/usr/bin/env python3
"""Times PyTorch's SwiGLU on the CPU at the shapes of swiglu-bench-cpu: silu(linear) * linear, and its backward.

Usage: scripts/bench-torch.py [--threads N] [--rounds N]. Needs torch; says so and ends with 0 where it is missing.
GFLOP/s count 4 B I D for forward and three times that with backward, as swiglu-bench-cpu does.
"""

import argparse
import statistics
import sys
import time

try:
    import torch
except ImportError:
    sys.exit(print("torch is not installed: nothing to compare with"))

SHAPES = [(128, 784, 512), (512, 1024, 4096), (1024, 4096, 11008), (16, 4096, 11008), (1, 4096, 11008)]


def uniform(rows, cols, scale, dtype):
    return ((torch.rand(rows, cols) * 2 - 1) * scale).to(dtype)


def seconds(call, rounds):
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(dtype, shape, rounds):
    batch, in_features, hidden = shape
    x = uniform(batch, in_features, 1, dtype)
    gate, up = (uniform(hidden, in_features, in_features**-0.5, dtype) for _ in range(2))
    dz = uniform(batch, hidden, 1, dtype)
    operands = (x, gate, up)

    def forward():
        linear = torch.nn.functional.linear
        return torch.nn.functional.silu(linear(x, gate)) * linear(x, up)

    def step():
        for operand in operands:
            operand.grad = None
        forward().backward(dz)

    with torch.no_grad():
        alone = seconds(forward, rounds)
    for operand in operands:
        operand.requires_grad_()
    both = seconds(step, rounds)
    flop = 4 * batch * in_features * hidden
    print(
        f"{str(dtype).removeprefix('torch.'):9} {batch},{in_features},{hidden}: "
        f"forward {alone * 1e3:9.3f} ms {flop / alone / 1e9:7.1f} GFLOP/s, "
        f"forward and backward {both * 1e3:9.3f} ms {3 * flop / both / 1e9:7.1f} GFLOP/s",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    print(f"torch {torch.__version__}, {args.threads} threads, W [2D, I]")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            measure(dtype, shape, max(args.rounds, 1))


if __name__ == "__main__":
    main()

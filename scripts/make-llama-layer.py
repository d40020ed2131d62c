#!/usr/bin/env python3
"""Makes the files that PyTorch's results are compared by. Needs torch and safetensors, and no GPU.

    make-llama-layer.py

examples/data/llama-layer.safetensors: the MLP of a small LLaMA layer in f32, an input x and a gradient dy, and what PyTorch
computes from them in f32 on a CPU: y, dx and the gradient of each weight. Beside each result, how far another f32
implementation may be from it: `y.bound` and so on, relative to the largest element.

swiglu-checkpoint/tests/data/pytorch.safetensors: three tensors of bf16 that count up, as PyTorch programs save them.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
MLP = "model.layers.0.mlp"
BATCH, IN_FEATURES, HIDDEN = 5, 64, 176
# Half the distance from 1 to the next f32.
U = 2.0**-24


class Approx:
    """Values in f64, and a bound of what f32 arithmetic has added to them: Higham, Accuracy and Stability, chapter 3."""

    def __init__(self, value, error=None):
        self.value = value.double()
        self.error = torch.zeros_like(self.value) if error is None else error

    def largest(self):
        return self.value.abs() + self.error

    def __mul__(self, other):
        error = self.error * other.largest() + self.value.abs() * other.error
        return Approx(self.value * other.value, error + U * self.largest() * other.largest())

    def __matmul__(self, other):
        # In any order of summation, n products are off by n * U / (1 - n * U) of the sum of their magnitudes.
        n = self.value.shape[1]
        gamma = n * U / (1 - n * U)
        error = self.error @ other.largest() + self.value.abs() @ other.error
        return Approx(self.value @ other.value, error + gamma * (self.largest() @ other.largest()))

    def t(self):
        return Approx(self.value.t(), self.error.t())

    def beside(self, other):
        return Approx(torch.cat([self.value, other.value], 1), torch.cat([self.error, other.error], 1))


def silu(g):
    """|silu'| <= 1.1; 8 U is 4 units in the last place, which a good f32 silu stays within."""
    value = torch.nn.functional.silu(g.value)
    return Approx(value, 1.1 * g.error + 8 * U * value.abs())


def silu_derivative(g):
    """|silu''| <= 0.5, |silu'| <= 1.1."""
    sigmoid = torch.sigmoid(g.value)
    return Approx(sigmoid * (1 + g.value * (1 - sigmoid)), 0.5 * g.error + 8 * U * 1.1)


def bounds(x, dy, gate, up, down):
    """What forward and backward come to, by the formulas that every implementation rounds in its own way."""
    x, dy, gate, up, down = map(Approx, (x, dy, gate, up, down))
    g, u = x @ gate.t(), x @ up.t()
    z = silu(g) * u
    dz = dy @ down
    du, dg = dz * silu(g), dz * u * silu_derivative(g)
    both = Approx(torch.cat([gate.value, up.value]))
    return {
        "y": z @ down.t(),
        "dx": dg.beside(du) @ both,
        f"{MLP}.gate_proj.weight.grad": dg.t() @ x,
        f"{MLP}.up_proj.weight.grad": du.t() @ x,
        f"{MLP}.down_proj.weight.grad": dy.t() @ z,
    }


def llama_layer():
    def weight(rows, cols):
        return ((2 * torch.rand(rows, cols) - 1) / cols**0.5).requires_grad_()

    gate, up, down = weight(HIDDEN, IN_FEATURES), weight(HIDDEN, IN_FEATURES), weight(IN_FEATURES, HIDDEN)
    x = torch.randn(BATCH, IN_FEATURES, requires_grad=True)
    dy = torch.randn(BATCH, IN_FEATURES)
    y = (torch.nn.functional.silu(x @ gate.t()) * (x @ up.t())) @ down.t()
    y.backward(dy)

    weights = {f"{MLP}.{name}_proj.weight": w for name, w in (("gate", gate), ("up", up), ("down", down))}
    results = {"y": y, "dx": x.grad} | {f"{name}.grad": w.grad for name, w in weights.items()}
    tensors = {"x": x, "dy": dy} | weights | results
    with torch.no_grad():
        for name, exact in bounds(x, dy, gate, up, down).items():
            # Two implementations, each of them off by the bound.
            off, largest = 2 * exact.error.max(), results[name].abs().max()
            tensors[f"{name}.bound"] = (off / largest).float().reshape(1)
            assert (results[name] - exact.value).abs().max() <= off / 2, name
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def counting():
    def count(rows, cols, start):
        return (start + torch.arange(rows * cols)).reshape(rows, cols).to(torch.bfloat16)

    return {
        f"{MLP}.gate_proj.weight": count(3, 4, 0),
        f"{MLP}.up_proj.weight": count(3, 4, 12),
        f"{MLP}.down_proj.weight": count(2, 3, 24),
    }


torch.manual_seed(1)
save_file(llama_layer(), ROOT / "examples/data/llama-layer.safetensors", metadata={"format": "pt"})
save_file(counting(), ROOT / "swiglu-checkpoint/tests/data/pytorch.safetensors", metadata={"format": "pt"})

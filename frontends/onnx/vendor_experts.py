"""MoE of the domain com.microsoft: a mixture of experts, each a feed-forward network; a router picks k for a token.

Every expert is computed for every token, and those that were not picked count nothing: that way all products have
constant weights and known shapes. (Shazeer et al. 2017; SwiGLU of Shazeer 2020, with a limit and an offset.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dlc.frontends.onnx.activation import gelu
from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.linear import product
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor
from dlc.frontends.onnx.vendor_fused import DOMAIN


def _tanh_gelu(c: Context, x: Tensor) -> Tensor:
    return gelu(replace(c, node=replace(c.node, attrs={"approximate": "tanh"})), x)


_ACTIVATIONS: dict[str, Callable[[Context, Tensor], Tensor]] = {
    "relu": lambda c, x: c.emit("nn.relu", x),
    "gelu": _tanh_gelu,
    "silu": lambda c, x: c.emit("multiply", x, c.emit("sigmoid", x)),
    "identity": lambda c, x: x,
}


@dataclass(frozen=True)
class _Linear:
    """The same layer of all experts: weights (E, out, in) and a bias (E, out) or None."""

    weight: Tensor
    bias: Tensor | None

    def of(self, c: Context, x: Tensor, expert: int) -> Tensor:
        """What one expert's layer gives for x (T, in)."""
        result = product(c, x, c.transpose(_one(c, self.weight, expert), [1, 0]))
        return result if self.bias is None else c.emit("add", result, _one(c, self.bias, expert))


def _one(c: Context, x: Tensor, expert: int) -> Tensor:
    return c.reshape(c.slice(x, 0, expert, expert + 1), x.shape[1:])


def _shares(c: Context, logits: Tensor, experts: int) -> Tensor:
    """What each expert counts for each token (T, E): the softmax where it is among the k largest, else 0."""
    k = int(c.attr("k", 1))
    if not 1 <= k <= experts:
        raise ConversionError(f"{k} of {experts} experts")
    probability = c.emit("nn.softmax", logits, axis=1)
    # Of equal ones onnxruntime prefers the last; top_indices the first.
    places = c.emit("dlc.top_indices", c.flip(probability, 1), axis=1, k=k, largest=1)
    numbers = c.constant(np.arange(experts)[::-1].copy())
    hits = c.cast(c.emit("equal", c.reshape(places, (places.shape[0], k, 1)), numbers), logits.dtype)
    chosen = c.emit("multiply", probability, c.reduce("max", hits, [1], keepdims=False))
    if c.attr("normalize_routing_weights", 0):
        chosen = c.emit("divide", chosen, c.reduce("sum", chosen, [1]))
    return chosen


def _swiglu(c: Context, gate: Tensor, line: Tensor) -> Tensor:
    """G * sigmoid(alpha G) * (L + beta), G and L clamped from above, L from below too."""
    limit = c.attr("swiglu_limit")
    if limit is not None:
        gate, line = c.emit("minimum", gate, limit), c.emit("minimum", line, limit)
        line = c.emit("maximum", line, -limit)
    steep = c.emit("multiply", gate, c.attr("activation_alpha", 1.0))
    swish = c.emit("multiply", gate, c.emit("sigmoid", steep))
    return c.emit("multiply", swish, c.emit("add", line, c.attr("activation_beta", 0.0)))


def _hidden(c: Context, x: Tensor, expert: int, first: _Linear, third: _Linear | None, inner: int) -> Tensor:
    """What an expert's last layer takes, (T, inner)."""
    name, fusion = c.attr("activation_type", "relu"), c.attr("swiglu_fusion", 0)
    wide = first.of(c, x, expert)
    if name != "swiglu":
        if name not in _ACTIVATIONS:
            raise ConversionError(f"activation_type '{name}' is not known")
        active = _ACTIVATIONS[name](c, wide)
        return active if third is None else c.emit("multiply", active, third.of(c, x, expert))
    if fusion == 0:
        if third is None:
            raise ConversionError("activation_type 'swiglu' with swiglu_fusion 0 needs fc3_experts_weights")
        return _swiglu(c, wide, third.of(c, x, expert))
    if fusion == 1:
        pairs = c.reshape(wide, (wide.shape[0], inner, 2))
        gate, line = (c.reshape(c.slice(pairs, 2, i, i + 1), (wide.shape[0], inner)) for i in range(2))
        return _swiglu(c, gate, line)
    return _swiglu(c, c.slice(wide, 1, 0, inner), c.slice(wide, 1, inner, 2 * inner))


def mixture(c: Context, x: Tensor, shares: Tensor, first: _Linear, second: _Linear, third: _Linear | None) -> Tensor:
    """The sum of the experts' results for x (T, hidden), each times its share (T, E)."""
    inner = int(second.weight.shape[2])
    parts = []
    for expert in range(int(shares.shape[1])):
        result = second.of(c, _hidden(c, x, expert, first, third, inner), expert)
        parts.append(c.emit("multiply", result, c.slice(shares, 1, expert, expert + 1)))
    return functools.reduce(lambda a, b: c.emit("add", a, b), parts)


@converter("MoE", domain=DOMAIN)
def moe(
    c: Context, x: Tensor, router: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None = None,
    w3: Tensor | None = None, b3: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x (tokens, hidden) or (batch, tokens, hidden), router scores (all tokens, E)."""
    if c.attr("use_sparse_mixer", 0):
        raise ConversionError("attribute 'use_sparse_mixer' is not supported")
    hidden, experts = x.shape[-1], router.shape[1]
    if not isinstance(hidden, int) or not isinstance(experts, int) or not all(w.static for w in (w1, w2)):
        raise ConversionError(f"the hidden size and the experts must be known when compiling, got {x} and {router}")
    inner = int(np.prod(w2.shape[1:])) // hidden
    fused = 2 if c.attr("activation_type", "relu") == "swiglu" and c.attr("swiglu_fusion", 0) else 1
    # Old models declare the last two dimensions the other way round; the numbers lie as they do today.
    first = _Linear(c.reshape(w1, (experts, fused * inner, hidden)), b1)
    second = _Linear(c.reshape(w2, (experts, hidden, inner)), b2)
    third = None if w3 is None else _Linear(c.reshape(w3, (experts, inner, hidden)), b3)
    rows = c.reshape(x, (c.symbols.product(x.shape[:-1]), hidden))
    return c.reshape(mixture(c, rows, _shares(c, router, experts), first, second, third), x.shape)

"""MoE and QMoE of the domain com.microsoft: experts are feed-forward networks, a router picks k of them for a token.

Every expert is computed for every token, and those that were not picked count nothing: that way all products have
constant weights and known shapes. (Shazeer et al. 2017; SwiGLU of Shazeer 2020, with a limit and an offset.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dlc.frontends.onnx.activation import gelu
from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.linear import product
from dlc.frontends.onnx.recurrent import at
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor
from dlc.frontends.onnx.vendor_fused import DOMAIN
from dlc.frontends.onnx.vendor_quantised import block_weight, in_shape, unpacked


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
    """The same layer of all experts: a weight (out, in) each, and biases (E, out) or None."""

    weights: Sequence[Tensor]
    biases: Tensor | None

    def of(self, c: Context, x: Tensor, expert: int) -> Tensor:
        """What one expert's layer gives for x (T, in)."""
        result = product(c, x, c.cast(c.transpose(self.weights[expert], [1, 0]), x.dtype))
        return result if self.biases is None else c.emit("add", result, at(c, self.biases, expert))


def _shares(c: Context, logits: Tensor, counted: Tensor | None = None) -> Tensor:
    """What each expert counts for each token (T, E): 0 but for the k largest, else the softmax, or `counted`."""
    experts, k = int(logits.shape[1]), int(c.attr("k", 1))
    if not 1 <= k <= experts:
        raise ConversionError(f"{k} of {experts} experts")
    probability = c.emit("nn.softmax", logits, axis=1)
    # Of equal ones onnxruntime prefers the last; top_indices the first.
    places = c.emit("dlc.top_indices", c.flip(probability, 1), axis=1, k=k, largest=1)
    numbers = c.constant(np.arange(experts)[::-1].copy())
    hits = c.cast(c.emit("equal", c.reshape(places, (places.shape[0], k, 1)), numbers), logits.dtype)
    chosen = c.emit("multiply", probability if counted is None else counted, c.reduce("max", hits, [1], keepdims=False))
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
    inner = int(second.weights[0].shape[1])
    parts = []
    for expert in range(int(shares.shape[1])):
        result = second.of(c, _hidden(c, x, expert, first, third, inner), expert)
        parts.append(c.emit("multiply", result, c.slice(shares, 1, expert, expert + 1)))
    return functools.reduce(lambda a, b: c.emit("add", a, b), parts)


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a node: tokens' features, experts, features inside, and whether fc1 holds two layers."""

    hidden: int
    experts: int
    inner: int
    fused: int

    @classmethod
    def of(cls, c: Context, x: Tensor, router: Tensor, last: Tensor, numbers: int) -> _Sizes:
        """From the operands, of which `last` are the weights of fc2 with so many numbers an element."""
        hidden, experts = x.shape[-1], router.shape[1]
        if not isinstance(hidden, int) or not isinstance(experts, int) or not last.static:
            raise ConversionError(f"the hidden size and the experts must be known when compiling, got {x} and {router}")
        fused = 2 if c.attr("activation_type", "relu") == "swiglu" and c.attr("swiglu_fusion", 0) else 1
        return cls(hidden, experts, int(np.prod(last.shape[1:])) * numbers // hidden, fused)

    def layers(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(out, in) of fc1, fc2 and fc3."""
        return (self.fused * self.inner, self.hidden), (self.hidden, self.inner), (self.inner, self.hidden)


def _mixed(
    c: Context, x: Tensor, shares: Tensor, weights: Sequence[Sequence[Tensor] | None], biases: Sequence[Tensor | None]
) -> Tensor:
    if c.attr("use_sparse_mixer", 0):
        raise ConversionError("attribute 'use_sparse_mixer' is not supported")
    layers = [None if w is None else _Linear(w, b) for w, b in zip(weights, biases, strict=True)]
    assert layers[0] is not None and layers[1] is not None
    rows = c.reshape(x, (c.symbols.product(x.shape[:-1]), x.shape[-1]))
    return c.reshape(mixture(c, rows, shares, layers[0], layers[1], layers[2]), x.shape)


@converter("MoE", domain=DOMAIN)
def moe(
    c: Context, x: Tensor, router: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None = None,
    w3: Tensor | None = None, b3: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x (tokens, hidden) or (batch, tokens, hidden), router scores (all tokens, E)."""
    sizes = _Sizes.of(c, x, router, w2, 1)

    def each(w: Tensor, shape: tuple[int, int]) -> list[Tensor]:
        # Old models declare the last two dimensions the other way round; the numbers lie as they do today.
        return [at(c, c.reshape(w, (sizes.experts, *shape)), expert) for expert in range(sizes.experts)]

    weights = [None if w is None else each(w, shape) for w, shape in zip((w1, w2, w3), sizes.layers(), strict=True)]
    return _mixed(c, x, _shares(c, router), weights, (b1, b2, b3))


@converter("QMoE", domain=DOMAIN)
def qmoe(
    c: Context, x: Tensor, router: Tensor,
    w1: Tensor, s1: Tensor, b1: Tensor | None, w2: Tensor, s2: Tensor, b2: Tensor | None = None,
    w3: Tensor | None = None, s3: Tensor | None = None, b3: Tensor | None = None,
    z1: Tensor | None = None, z2: Tensor | None = None, z3: Tensor | None = None, counted: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The same with weights of 2, 4 or 8 bits, of one scale a row or a block of a row; `counted` are other shares."""
    kind, bits, block = c.attr("quant_type", "int"), c.attr("expert_weight_bits", 4), c.attr("block_size", 0)
    own = [c.attr(f"fc{n}_expert_weight_bits", bits) for n in (1, 2, 3)]
    if kind != "int" or bits not in (2, 4, 8) or own != [bits] * 3 or c.attr("weights_prepacked", 0) > 0:
        raise ConversionError(f"weights of quant_type '{kind}' in {own} bits, or arranged for another machine")
    sizes = _Sizes.of(c, x, router, w2, 8 // bits)

    def each(w: Tensor, scales: Tensor, zeros: Tensor | None, shape: tuple[int, int]) -> list[Tensor]:
        rows, depth = shape
        size = block if block > 0 else depth
        codes = unpacked(in_shape(c.known(w, "a weight"), (sizes.experts, rows, -1), "a weight"), bits, depth)
        steps = in_shape(c.known(scales, "the scales"), (sizes.experts, rows, -1), "scales")
        shift = np.full(steps.shape, 1 << (bits - 1))
        if zeros is not None:
            packed = c.known(zeros, "the zero points")
            own = unpacked(packed, bits, steps.shape[2]) if block > 0 else unpacked(packed, bits, rows)
            shift = in_shape(own.astype(np.int64), steps.shape, "zero points")
        blocks = in_shape(codes, (sizes.experts, rows, depth // size, size), "a weight")
        return [block_weight(c, blocks[e], steps[e], shift[e]) for e in range(sizes.experts)]

    given = zip((w1, w2, w3), (s1, s2, s3), (z1, z2, z3), sizes.layers(), strict=True)
    weights = [None if w is None or s is None else each(w, s, z, shape) for w, s, z, shape in given]
    return _mixed(c, x, _shares(c, router, counted), weights, (b1, b2, b3))

"""Float operators of the domain com.microsoft: what ONNX Runtime's optimiser writes for fused standard ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dlc.frontends.onnx.activation import clipped_line, gelu, leaky, widened
from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.convolution import conv
from dlc.frontends.onnx.linear import gemm, product
from dlc.frontends.onnx.normalisation import layer_normalisation, standardise
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor

DOMAIN = "com.microsoft"


@converter("FusedMatMul", domain=DOMAIN)
def fused_matmul(c: Context, a: Tensor, b: Tensor) -> Tensor:
    """alpha * A B, each transposed first where the attributes say so."""
    if c.attr("transBatchA", 0) or c.attr("transBatchB", 0):
        raise ConversionError("transposed batches are not supported")
    a, b = (
        c.transpose(t, [*range(t.rank - 2), t.rank - 1, t.rank - 2]) if c.attr(name, 0) and t.rank > 1 else t
        for t, name in ((a, "transA"), (b, "transB"))
    )
    alpha = c.attr("alpha", 1.0)
    result = product(c, a, b)
    return result if alpha == 1.0 else c.emit("multiply", result, alpha)


def _activated(c: Context, x: Tensor, name: str, parameters: list[float]) -> Tensor:
    if name == "LeakyRelu":
        return leaky(c, x, parameters[0] if parameters else 0.01)
    if name in ("Clip", "HardSigmoid") and len(parameters) < 2:
        raise ConversionError(f"activation '{name}' needs two 'activation_params', got {parameters}")
    if name == "Clip":
        return c.emit("minimum", c.emit("maximum", x, parameters[0]), parameters[1])
    if name == "HardSigmoid":
        return clipped_line(c, x, parameters[0], parameters[1])
    plain = {"Relu": "nn.relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}
    if name not in plain:
        raise ConversionError(f"activation '{name}' is not supported")
    return c.emit(plain[name], x)


@converter("FusedGemm", domain=DOMAIN)
def fused_gemm(c: Context, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gemm, then an activation."""
    known = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [c.attr(name) for name in known if c.attr(name) is not None]
    return _activated(c, gemm(c, a, b, bias), c.require("activation"), parameters)


@converter("FusedConv", domain=DOMAIN)
def fused_conv(c: Context, x: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """A convolution, plus another tensor, then an activation."""
    result = conv(c, x, w, bias)
    if residual is not None:
        result = c.emit("add", result, residual)
    name = c.attr("activation", "")
    return _activated(c, result, name, c.attr("activation_params") or []) if name else result


# --- activations -----------------------------------------------------------------------------------------------------

converter("Gelu", domain=DOMAIN)(gelu)


@converter("BiasGelu", domain=DOMAIN)
@widened
def bias_gelu(c: Context, x: Tensor, bias: Tensor) -> Tensor:
    """Gelu of x plus a vector."""
    return gelu(c, c.emit("add", x, bias))


@converter("FastGelu", domain=DOMAIN)
def fast_gelu(c: Context, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu by tanh, of x plus a vector."""
    approximate = replace(c, node=replace(c.node, attrs={"approximate": "tanh"}))
    return gelu(approximate, x if bias is None else c.emit("add", x, bias))


@converter("QuickGelu", domain=DOMAIN)
@widened
def quick_gelu(c: Context, x: Tensor) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return c.emit("multiply", x, c.emit("sigmoid", c.emit("multiply", x, c.attr("alpha", 1.702))))


# --- normalisations --------------------------------------------------------------------------------------------------


def _simplified(c: Context, x: Tensor, scale: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """x by the root of its mean square, times a scale; and the reciprocal of the root."""
    wide = c.cast(x, "float32") if x.dtype in ("float16", "bfloat16") else x
    energy = c.reduce("mean", c.emit("multiply", wide, wide), range(axis, x.rank))
    inverse = c.emit("rsqrt", c.emit("add", energy, epsilon))
    return c.emit("multiply", c.cast(c.emit("multiply", wide, inverse), x.dtype), c.cast(scale, x.dtype)), inverse


@converter("SimplifiedLayerNormalization")  # ONNX Runtime writes it without a domain
@converter("SimplifiedLayerNormalization", domain=DOMAIN)
def simplified_layer_normalisation(c: Context, x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """RMS normalisation over the dimensions from `axis` on."""
    return _simplified(c, x, scale, c.axis(c.attr("axis", -1), x.rank), c.attr("epsilon", 1e-5))


def _skipped(c: Context, x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    total = c.emit("add", x, skip)
    return total if bias is None else c.emit("add", total, bias)


@converter("SkipLayerNormalization", domain=DOMAIN)
def skip_layer_normalisation(
    c: Context, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Layer normalisation of a sum, and the sum."""
    total = _skipped(c, x, skip, bias)
    if c.wants(1) or c.wants(2):
        raise ConversionError("the outputs 'mean' and 'inv_std_var' are not supported")
    plain = replace(c, node=replace(c.node, attrs={"epsilon": c.attr("epsilon", 1e-12)}, outputs=("y",)))
    result, *_ = layer_normalisation(plain, total, gamma, beta)
    return result, None, None, total


@converter("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_simplified(
    c: Context, x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """RMS normalisation of a sum, and the sum."""
    total = _skipped(c, x, skip, bias)
    result, _ = _simplified(c, total, gamma, x.rank - 1, c.attr("epsilon", 1e-12))
    return result, None, None, total


@converter("EmbedLayerNormalization", domain=DOMAIN)
def embed_layer_normalisation(
    c: Context,
    words: Tensor,
    segments: Tensor | None,
    word_table: Tensor,
    position_table: Tensor,
    segment_table: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """The layer normalisation of the sum of a word's, its position's and its segment's embeddings."""
    total = c.emit("take", word_table, words, axis=0)
    if positions is not None:
        places = c.emit("take", position_table, positions, axis=0)
    else:
        places = c.slice(position_table, 0, 0, words.shape[1])
    total = c.emit("add", total, places)
    if segments is not None and segment_table is not None:
        total = c.emit("add", total, c.emit("take", segment_table, segments, axis=0))
    normal, *_ = standardise(c, total, (2,), c.attr("epsilon", 1e-12))
    result = c.emit("add", c.emit("multiply", normal, gamma), beta)
    if not c.wants(1):
        return result, None, total
    if mask is None:
        return result, c.broadcast(c.constant(np.zeros((), np.int32)), (words.shape[0],)), total
    return result, c.reduce("sum", c.cast(mask, "int32"), (1,), keepdims=False), total


@converter("RotaryEmbedding", domain=DOMAIN)
def rotary_embedding(c: Context, x: Tensor, positions: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Pairs of features turned by angles that grow with the position; x (B, S, heads * size) or (B, heads, S, size)."""
    if c.attr("scale", 1.0) != 1.0 or c.attr("is_packed_batching", 0):
        raise ConversionError("attributes 'scale' and 'is_packed_batching' are not supported")
    if x.rank not in (3, 4):
        raise ConversionError(f"needs 3 or 4 dimensions, got {x}")
    turned = c.attr("rotary_embedding_dim", 0) or 2 * cosines.shape[-1]
    heads = c.attr("num_heads", 0)
    if x.rank == 3:
        size = c.symbols.quotient((x.shape[2],), (heads,)) if heads else turned
        count = c.symbols.quotient((x.shape[2],), (size,)) if size is not None else None
        if count is None:
            raise ConversionError(f"{x} does not divide into {heads} heads")
        apart = c.transpose(c.reshape(x, (*x.shape[:2], count, size)), (0, 2, 1, 3))
    else:
        apart = x
    batch, _, steps, size = apart.shape
    if positions.shape == (1,):  # the first position of every sequence
        counting = (
            c.constant(np.arange(steps))
            if isinstance(steps, int)
            else c.emit("dlc.positions", shape=(steps,), dtype="int64")
        )
        positions = c.broadcast(c.emit("add", c.reshape(counting, (1, steps)), positions), (batch, steps))
    half = turned // 2
    cosine, sine = (
        c.reshape(c.emit("take", table, positions, axis=0), (batch, 1, steps, half)) for table in (cosines, sines)
    )
    last = 3
    part, rest = c.slice(apart, last, 0, turned), c.slice(apart, last, turned, size)
    if c.attr("interleaved", 0):
        pairs = c.reshape(part, (*part.shape[:3], half, 2))
        first, second = (c.reshape(c.slice(pairs, 4, i, i + 1), (*part.shape[:3], half)) for i in range(2))
    else:
        first, second = c.slice(part, last, 0, half), c.slice(part, last, half, turned)
    real = c.emit("subtract", c.emit("multiply", first, cosine), c.emit("multiply", second, sine))
    imaginary = c.emit("add", c.emit("multiply", first, sine), c.emit("multiply", second, cosine))
    if c.attr("interleaved", 0):
        joined = c.emit("concat", *(c.reshape(t, (*t.shape, 1)) for t in (real, imaginary)), axis=4)
        result = c.reshape(joined, part.shape)
    else:
        result = c.emit("concat", real, imaginary, axis=last)
    if size != turned:
        result = c.emit("concat", result, rest, axis=last)
    return result if x.rank == 4 else c.reshape(c.transpose(result, (0, 2, 1, 3)), x.shape)


# --- attention -------------------------------------------------------------------------------------------------------


def _heads(c: Context, x: Tensor, count: int) -> Tensor:
    """(B, S, heads * size) as (B, heads, S, size)."""
    size = c.symbols.quotient((x.shape[2],), (count,))
    if size is None:
        raise ConversionError(f"{x} does not divide into {count} heads")
    return c.transpose(c.reshape(x, (*x.shape[:2], count, size)), (0, 2, 1, 3))


def _attend(c: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, added: Tensor | None) -> Tensor:
    """softmax(q k^T * scale + what is added, masked) v; q, k and v are (B, heads, S, size)."""
    scale = c.attr("scale", 0.0) or 1 / math.sqrt(q.shape[3])
    scores = product(c, c.emit("multiply", q, scale), c.transpose(k, (0, 1, 3, 2)))
    if added is not None:
        scores = c.emit("add", scores, added)
    hidden = c.attr("mask_filter_value", -10000.0)
    if mask is not None:
        if mask.rank != 2:
            raise ConversionError(f"a mask {mask}: only one number a position of each sequence is supported")
        kept = c.reshape(c.cast(mask, "bool"), (mask.shape[0], 1, 1, mask.shape[1]))
        scores = c.emit("add", scores, c.emit("where", kept, c.like(0, scores), c.like(hidden, scores)))
    if c.attr("unidirectional", 0):
        steps, total = q.shape[2], k.shape[2]
        if not isinstance(steps, int) or not isinstance(total, int):
            raise ConversionError("attribute 'unidirectional' needs known extents")
        later = np.triu(np.ones((steps, total), bool), total - steps + 1)
        lowest = c.like(float(np.finfo(np.float32).min), scores)
        scores = c.emit("where", c.constant(later), lowest, scores)
    result = product(c, c.emit("nn.softmax", scores, axis=3), v)
    back = c.transpose(result, (0, 2, 1, 3))
    return c.reshape(back, (*back.shape[:2], c.symbols.product(back.shape[2:])))


@converter("MultiHeadAttention", domain=DOMAIN)
def multi_head_attention(
    c: Context,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Attention of projected queries, keys and values (B, S, heads * size), after those of the past."""
    count = c.require("num_heads")
    if query.rank != 3 or key is None or value is None or key.rank not in (3, 4):
        raise ConversionError("packed queries, keys and values are not supported")
    if bias is not None:
        sizes, begin, biased = [query.shape[2], key.shape[2], value.shape[2]], 0, []
        for t, size in zip((query, key, value), sizes, strict=True):
            biased.append(c.emit("add", t, c.slice(bias, 0, begin, begin + size)))
            begin += size
        query, key, value = biased
    q = _heads(c, query, count)
    k, v = (t if t.rank == 4 else _heads(c, t, count) for t in (key, value))
    if past_key is not None and past_value is not None:
        k, v = c.emit("concat", past_key, k, axis=2), c.emit("concat", past_value, v, axis=2)
    return _attend(c, q, k, v, mask, added), k, v


@converter("Attention", domain=DOMAIN)
def attention(
    c: Context,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Attention with the projection of queries, keys and values inside."""
    if past is not None or c.attr("do_rotary", 0) or c.wants(1):
        raise ConversionError("the past, and rotary embeddings, are not supported")
    whole = weights.shape[1]
    sizes = c.attr("qkv_hidden_sizes") or [whole // 3] * 3
    if len(sizes) != 3:
        raise ConversionError(f"attribute 'qkv_hidden_sizes' is {sizes}, it must have 3 values")
    projected = product(c, x, weights)
    if bias is not None:
        projected = c.emit("add", projected, bias)
    parts: list[Tensor] = []
    begin = 0
    for size in sizes:
        parts.append(_heads(c, c.slice(projected, 2, begin, begin + size), c.require("num_heads")))
        begin += size
    q, k, v = parts
    return (_attend(c, q, k, v, mask, added),)

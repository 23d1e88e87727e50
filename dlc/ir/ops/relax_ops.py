"""Relax's own operators that the IR may hold, with the meaning we give them in numpy.

Attributes are named as in the graph view (`dlc.ir.spelling` reads and writes them): reshape and broadcast_to take
``shape``; permute_dims ``axes``; concat, take, gather_elements, softmax and log_softmax ``axis``; strided_slice ``axes,
begin, end, strides`` (begin and end already clamped, strides not zero); astype ``dtype``; nn.pad ``pad_width, mode,
value``; layer_norm ``axes, epsilon``; reductions ``axes, keepdims``; argmax and argmin ``axis, keepdims``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and the small floats with numpy)
import numpy as np

from dlc.ir.ops.registry import Kind, Meaning, OpSpec, register

_erf = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, evaluated in float64, in x's dtype."""
    return _erf(x.astype(np.float64)).astype(x.dtype) if x.size else x.copy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function without overflow, evaluated in float64, in x's dtype."""
    wide = x.astype(np.float64)
    return np.where(wide >= 0, 1 / (1 + np.exp(-np.abs(wide))), 1 - 1 / (1 + np.exp(-np.abs(wide)))).astype(x.dtype)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind in "iu":  # C's division, as ONNX: towards zero
        with np.errstate(divide="ignore"):
            quotient = np.abs(a.astype(np.int64)) // np.maximum(np.abs(b.astype(np.int64)), 1)
        return (quotient * np.sign(a.astype(np.int64)) * np.sign(b.astype(np.int64))).astype(a.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arrays: np.ndarray) -> Any:
        with np.errstate(all="ignore"):
            return function(*arrays)

    return wrapped


UNARY: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "negative": np.negative, "exp": np.exp, "log": np.log, "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype), "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin,
    "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh,
    "acosh": np.arccosh, "atanh": np.arctanh, "floor": np.floor, "ceil": np.ceil, "round": np.rint, "sign": np.sign,
    "sigmoid": sigmoid, "erf": erf, "isnan": np.isnan, "isinf": np.isinf, "logical_not": np.logical_not,
    "bitwise_not": np.bitwise_not, "nn.relu": lambda x: np.maximum(x, x.dtype.type(0)),
}  # fmt: skip

BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": _divide, "power": np.power,
    "floor_divide": np.floor_divide, "floor_mod": np.mod, "mod": np.fmod, "maximum": np.maximum, "minimum": np.minimum,
    "equal": np.equal, "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal, "greater": np.greater,
    "greater_equal": np.greater_equal, "logical_and": np.logical_and, "logical_or": np.logical_or,
    "logical_xor": np.logical_xor, "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor, "left_shift": np.left_shift, "right_shift": np.right_shift,
}  # fmt: skip

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": lambda x, **k: np.sum(x, dtype=x.dtype, **k),
    "mean": lambda x, **k: np.mean(x, **k).astype(x.dtype),
    "max": np.max,
    "min": np.min,
    "prod": lambda x, **k: np.prod(x, dtype=x.dtype, **k),
}


def _elementwise(function: Callable[..., Any]) -> Meaning:
    quiet = _quiet(function)
    return lambda inputs, attrs: np.asarray(quiet(*inputs))


def _reduction(function: Callable[..., Any]) -> Meaning:
    return lambda inputs, attrs: np.asarray(
        function(inputs[0], axis=tuple(attrs["axes"]), keepdims=bool(attrs["keepdims"]))
    )


def _arg(function: Callable[..., Any]) -> Meaning:
    return lambda inputs, attrs: np.asarray(
        function(inputs[0], axis=attrs["axis"], keepdims=bool(attrs["keepdims"]))
    ).astype(np.int64)


def _astype(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    with np.errstate(all="ignore"):
        return inputs[0].astype(attrs["dtype"])


def _strided_slice(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    picks = [slice(None)] * inputs[0].ndim
    for axis, begin, end, stride in zip(attrs["axes"], attrs["begin"], attrs["end"], attrs["strides"], strict=True):
        picks[axis] = slice(begin, None if end < 0 else end, stride)
    return np.ascontiguousarray(inputs[0][tuple(picks)])


def _pad(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    widths = attrs["pad_width"]
    pairs = [(widths[2 * i], widths[2 * i + 1]) for i in range(inputs[0].ndim)]
    if attrs["mode"] == "constant":
        return np.pad(inputs[0], pairs, constant_values=np.asarray(attrs["value"]).astype(inputs[0].dtype))
    return np.pad(inputs[0], pairs, mode=attrs["mode"])


def _take(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    x, index = inputs
    extent = x.shape[attrs["axis"]]
    return np.take(x, np.where(index < 0, index + extent, index), axis=attrs["axis"])


def _softmax(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    (x,) = inputs
    shifted = np.exp(x - x.max(axis=attrs["axis"], keepdims=True))
    return (shifted / shifted.sum(axis=attrs["axis"], keepdims=True)).astype(x.dtype)


def _log_softmax(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    (x,) = inputs
    shifted = x - x.max(axis=attrs["axis"], keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=attrs["axis"], keepdims=True))).astype(x.dtype)


def _layer_norm(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    x, gamma, beta = inputs
    axes = tuple(attrs["axes"])
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.mean(centred * centred, axis=axes, keepdims=True)
    return (centred / np.sqrt(variance + x.dtype.type(attrs["epsilon"])) * gamma + beta).astype(x.dtype)


def _gather_elements(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    (x, index), axis = inputs, attrs["axis"]
    # Along the other dimensions the indices may be fewer than the elements.
    part = tuple(slice(None) if i == axis else slice(0, extent) for i, extent in enumerate(index.shape))
    return np.take_along_axis(x[part], np.where(index < 0, index + x.shape[axis], index), axis)


STRUCTURAL: dict[str, tuple[Kind, Meaning]] = {
    "where": ("elementwise", lambda inputs, attrs: np.where(*inputs)),
    "astype": ("elementwise", _astype),
    "reshape": ("injective", lambda inputs, attrs: inputs[0].reshape(attrs["shape"])),
    "permute_dims": ("injective", lambda inputs, attrs: np.ascontiguousarray(inputs[0].transpose(attrs["axes"]))),
    "concat": ("injective", lambda inputs, attrs: np.concatenate(inputs, axis=attrs["axis"])),
    "broadcast_to": ("injective", lambda inputs, attrs: np.broadcast_to(inputs[0], attrs["shape"]).copy()),
    "strided_slice": ("injective", _strided_slice),
    "nn.pad": ("injective", _pad),
    "take": ("injective", _take),
    "gather_elements": ("injective", _gather_elements),
    "nn.softmax": ("reduction", _softmax),
    "nn.log_softmax": ("reduction", _log_softmax),
    "nn.layer_norm": ("reduction", _layer_norm),
    "argmax": ("reduction", _arg(np.argmax)),
    "argmin": ("reduction", _arg(np.argmin)),
}

for _name, _function in {**UNARY, **BINARY}.items():
    register(OpSpec(f"relax.{_name}", "elementwise", _elementwise(_function)))
for _name, _function in REDUCTIONS.items():
    register(OpSpec(f"relax.{_name}", "reduction", _reduction(_function)))
for _name, (_kind, _meaning) in STRUCTURAL.items():
    register(OpSpec(f"relax.{_name}", _kind, _meaning))

"""DFT, STFT and MelWeightMatrix: Fourier transforms as matrix products with constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.indexing import count_up
from dlc.frontends.onnx.nodes import element_type
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, HostError, Tensor

_DIRECT = 1024  # up to here one product; a longer transform is split into two, whose lengths multiply to its own
_LONGEST_PRIME = 4096


@dataclass
class _Complex:
    """Real and imaginary parts, the transformed dimension last; `imaginary` is None for a real signal."""

    real: Tensor
    imaginary: Tensor | None


def _reversed(c: Context, x: Tensor, first: int, count: int) -> Tensor:
    """`count` elements of the last dimension from `first` on backwards."""
    axis = x.rank - 1
    return c.emit("strided_slice", x, axes=(axis,), begin=(first,), end=(first - count,), strides=(-1,))


def _halves(c: Context, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The even and the odd part of the last dimension around 0: x[n] + x[-n] and x[n] - x[-n], each pair once."""
    last, length = x.rank - 1, x.shape[-1]
    pairs = (length - 1) // 2
    if not pairs:
        return x, None
    front, back = c.slice(x, last, 1, pairs + 1), _reversed(c, x, length - 1, pairs)
    even = [c.slice(x, last, 0, 1), c.emit("add", front, back)]
    if length % 2 == 0:
        even.append(c.slice(x, last, length // 2, length // 2 + 1))
    return c.emit("concat", *even, axis=last), c.emit("subtract", front, back)


def _sum(c: Context, even: Tensor, cosine: np.ndarray, odd: Tensor | None, sine: np.ndarray) -> Tensor:
    """even times cosine + odd times sine, as one product."""
    rows, signal = cosine, even
    if odd is not None:
        rows, signal = np.concatenate([cosine, sine]), c.emit("concat", even, odd, axis=even.rank - 1)
    return c.emit("dlc.matmul", signal, c.constant(rows.astype(even.dtype)), out_dtype=even.dtype)


def _product(c: Context, x: _Complex, length: int, bins: int, sign: int) -> _Complex:
    """The first `bins` outputs of a transform by products with exp(sign i 2 pi n k / length).

    Cosines meet the even part alone and sines the odd one, so what symmetry says is zero is zero exactly.
    """
    evens, pairs = np.arange(length // 2 + 1), np.arange(1, (length - 1) // 2 + 1)
    cosine, sine = (
        function(2 * np.pi * (np.outer(places, np.arange(bins)) % length) / length)
        for function, places in ((np.cos, evens), (np.sin, pairs))
    )
    even, odd = _halves(c, x.real)
    if x.imaginary is None:
        real = _sum(c, even, cosine, None, sine)
        zero = c.broadcast(c.like(0, real), real.shape)
        if odd is None:
            return _Complex(real, zero)
        turned = c.constant((sign * sine).astype(odd.dtype))
        return _Complex(real, c.emit("dlc.matmul", odd, turned, out_dtype=odd.dtype))
    even_i, odd_i = _halves(c, x.imaginary)
    return _Complex(_sum(c, even, cosine, odd_i, -sign * sine), _sum(c, even_i, cosine, odd, sign * sine))


def _rotated(c: Context, x: _Complex, angle: np.ndarray) -> _Complex:
    """x times exp(i angle)."""
    assert x.imaginary is not None
    cosine, sine = (c.constant(f(angle).astype(x.real.dtype)) for f in (np.cos, np.sin))
    real = c.emit("subtract", c.emit("multiply", x.real, cosine), c.emit("multiply", x.imaginary, sine))
    return _Complex(real, c.emit("add", c.emit("multiply", x.real, sine), c.emit("multiply", x.imaginary, cosine)))


def _map(x: _Complex, function: object) -> _Complex:
    assert callable(function)
    return _Complex(function(x.real), None if x.imaginary is None else function(x.imaginary))


def _transform(c: Context, x: _Complex, length: int, bins: int, sign: int) -> _Complex:
    """The transform of the last dimension (of extent `length`), its first `bins` outputs, not scaled."""
    if length <= _DIRECT:
        return _product(c, x, length, bins, sign)
    rows = next(d for d in range(math.isqrt(length), 0, -1) if length % d == 0)
    if rows == 1:
        if length > _LONGEST_PRIME:
            raise HostError(f"a transform of the prime length {length}, longer than {_LONGEST_PRIME}")
        return _product(c, x, length, bins, sign)
    # Cooley and Tukey: n = columns * n1 + n2, k = k1 + rows * k2.
    columns, lead = length // rows, x.real.shape[:-1]
    rank = len(lead)
    swap = (*range(rank), rank + 1, rank)
    apart = _map(x, lambda t: c.transpose(c.reshape(t, (*lead, rows, columns)), swap))
    inner = _transform(c, apart, rows, rows, sign)
    turns = np.outer(np.arange(columns), np.arange(rows)) % length
    turned = _rotated(c, inner, sign * 2 * np.pi * turns / length)
    outer = _transform(c, _map(turned, lambda t: c.transpose(t, swap)), columns, columns, sign)
    whole = _map(outer, lambda t: c.reshape(c.transpose(t, swap), (*lead, length)))
    return _map(whole, lambda t: c.slice(t, rank, 0, bins))


def _fitted(c: Context, x: Tensor, length: int) -> Tensor:
    """The last dimension cut or filled with zeros to `length`."""
    extent, last = x.shape[-1], x.rank - 1
    if not isinstance(extent, int):
        raise HostError(f"a transform along the extent {extent}, which must be known when compiling")
    if extent >= length:
        return c.slice(x, last, 0, length)
    widths = (0, 0) * last + (0, length - extent)
    return c.emit("nn.pad", x, pad_width=widths, mode="constant", value=0.0)


def _mirrored(c: Context, x: _Complex, length: int) -> _Complex:
    """The whole spectrum of a real signal from its first half: the other half is its conjugate."""
    assert x.imaginary is not None
    last, rest = x.real.rank - 1, length - x.real.shape[-1]
    if rest == 0:
        return x
    real = c.emit("concat", x.real, _reversed(c, x.real, rest, rest), axis=last)
    mirrored = c.emit("negative", _reversed(c, x.imaginary, rest, rest))
    return _Complex(real, c.emit("concat", x.imaginary, mirrored, axis=last))


def _dft(c: Context, x: Tensor, length: int | None, axis: int, inverse: bool, onesided: bool) -> Tensor:
    """The transform along `axis` of a tensor whose last dimension is (real) or (real, imaginary)."""
    last = x.rank - 1
    if last < 1 or axis == last or x.shape[-1] not in (1, 2):
        raise ConversionError(f"a transform along axis {axis} of {x}, whose last dimension must be 1 or 2")
    wide = x if x.dtype in ("float32", "float64") else c.cast(x, "float32")
    order = [i for i in range(last) if i != axis] + [axis, last]
    moved = c.transpose(wide, order)
    parts = [c.reshape(c.slice(moved, last, i, i + 1), moved.shape[:-1]) for i in range(x.shape[-1])]
    if length is None:
        extent = x.shape[axis]
        if not isinstance(extent, int):
            raise HostError(f"a transform along the extent {extent}, which must be known when compiling")
        length = 2 * (extent - 1) if inverse and onesided else extent
    if length < 1:
        raise ConversionError(f"a transform of length {length}")
    half = length // 2 + 1
    taken = half if inverse and onesided else length
    signal = _Complex(_fitted(c, parts[0], taken), _fitted(c, parts[1], taken) if len(parts) == 2 else None)
    if inverse and onesided:
        if signal.imaginary is None:
            signal.imaginary = c.broadcast(c.like(0, wide), signal.real.shape)
        signal = _mirrored(c, signal, length)
    result = _transform(c, signal, length, half if onesided and not inverse else length, 1 if inverse else -1)
    assert result.imaginary is not None
    made = [result.real] if inverse and onesided else [result.real, result.imaginary]
    joined = [c.reshape(t, (*t.shape, 1)) for t in made]
    whole = joined[0] if len(joined) == 1 else c.emit("concat", *joined, axis=last)
    if inverse:
        whole = c.emit("divide", whole, length)
    return c.cast(c.transpose(whole, [order.index(i) for i in range(x.rank)]), x.dtype)


def _length(c: Context, length: Tensor | None, what: str) -> int | None:
    return None if length is None else int(c.number(length, what))


@converter("DFT", since=17)
def dft_17(c: Context, x: Tensor, length: Tensor | None = None) -> Tensor:
    """Opset 17 to 19: the axis is an attribute."""
    axis = c.axis(c.attr("axis", 1), x.rank)
    size = _length(c, length, "the input 'dft_length'")
    return _dft(c, x, size, axis, bool(c.attr("inverse", 0)), bool(c.attr("onesided", 0)))


@converter("DFT", since=20)
def dft(c: Context, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """The discrete Fourier transform along one axis; its inverse is divided by the length."""
    place = c.axis(-2 if axis is None else int(c.number(axis, "the input 'axis'")), x.rank)
    size = _length(c, length, "the input 'dft_length'")
    return _dft(c, x, size, place, bool(c.attr("inverse", 0)), bool(c.attr("onesided", 0)))


@converter("STFT", since=17)
def stft(
    c: Context, signal: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None
) -> Tensor:
    """Transforms of overlapping frames, each times the window."""
    hop = int(c.number(step, "the input 'frame_step'"))
    size = _length(c, length, "the input 'frame_length'")
    if window is not None:
        size = window.shape[0] if size is None else size
        if window.rank != 1 or window.shape[0] != size:
            raise ConversionError(f"a window {window} for frames of {size}")
    if size is None or hop < 1 or signal.rank != 3 or not isinstance(size, int):
        raise ConversionError(f"frames of {size} every {hop} of {signal}")
    if c.attr("onesided", 1) and signal.shape[-1] == 2:
        raise ConversionError("half of the transform of a complex signal: 'onesided' needs a real one")
    frames = c.symbols.simplify((signal.shape[1] - size) // hop + 1)
    if isinstance(frames, int) and frames < 1:
        raise ConversionError(f"a frame of {size} is longer than {signal}")
    begins = c.reshape(c.emit("multiply", count_up(c, frames), hop), (frames, 1))
    places = c.emit("add", begins, c.constant(np.arange(size, dtype=np.int64)))
    cut = c.emit("take", signal, places, axis=1)
    if window is not None:
        cut = c.emit("multiply", cut, c.reshape(window, (size, 1)))
    return _dft(c, cut, None, 2, inverse=False, onesided=bool(c.attr("onesided", 1)))


@converter("MelWeightMatrix", since=17)
def mel_weight_matrix(c: Context, *inputs: Tensor) -> Tensor:
    """A constant (spectrum bins, mel bins): triangles that are equally wide on the mel scale."""
    names = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    bins, length, rate, low, high = (c.number(t, f"the input '{n}'") for t, n in zip(inputs, names, strict=True))
    low_mel, high_mel = (2595 * np.log10(1 + edge / 700) for edge in (low, high))
    mels = low_mel + np.arange(bins + 2) * ((high_mel - low_mel) / (bins + 2))
    edges = ((length + 1) * (700 * (10 ** (mels / 2595) - 1)) // rate).astype(int)
    weights = np.zeros((length // 2 + 1, bins))
    if edges.min() < 0 or edges.max() >= len(weights):
        raise ConversionError(f"edges of {low} and {high} hertz for a sample rate of {rate}")
    for i, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        if left == centre:
            weights[centre, i] = 1
        else:
            weights[left : centre + 1, i] = np.arange(centre - left + 1) / (centre - left)
        if right > centre:
            weights[centre:right, i] = np.arange(right - centre, 0, -1) / (right - centre)
    return c.constant(weights, element_type(c.attr("output_datatype", 1)))

"""The one integer arithmetic of the compiler, in plain numpy (and the small floats of ``ml_dtypes``).

Every target, pass and test takes its numbers from here: a kernel is right when it equals these functions element for
element. The derivations, the bounds and their proofs are in ``docs/arithmetic.md``; the names below follow it.

A real value is ``scale * (q - zero_point)``. An operator turns integer terms (int32, their zero points already
subtracted) into one 8- or 16-bit output with a *requantisation*, which has two modes: ``float``
(:func:`requantize_float`, equal to ONNX Runtime's ``QLinearConv`` and ``QLinearMatMul``) and ``fixed``
(:func:`requantize_fixed`, integers only). The ``shift`` form is ``fixed`` with powers of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "MAXIMUM_SHIFT",
    "RAW_TERMS",
    "RAW_TERMS_FOREIGN",
    "FixedMultiplier",
    "accumulator_bound",
    "activation_parameters",
    "as_bfloat16",
    "dequantize",
    "fixed_multiplier",
    "float_multiplier",
    "lookup",
    "maximum_raw_terms",
    "power_of_two",
    "quantize",
    "quantize_bias",
    "quantize_weight",
    "real_multiplier",
    "requantize_fixed",
    "requantize_float",
    "shift_multiplier",
    "to_unsigned",
    "unary_table",
]

MAXIMUM_SHIFT = 62
"""The largest shift: 2**62 (any sum of products) plus the rounding term 2**61 stays below 2**63."""

RAW_TERMS = 66_311
"""How many u8 x s8 products with weights in [-127, 127] always fit an int32 (:func:`maximum_raw_terms`)."""

RAW_TERMS_FOREIGN = 65_793
"""The same for weights that may be -128."""

_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_MULTIPLIER_LIMIT = 2.0**31
_SMALLEST_SCALE = np.finfo(np.float32).tiny
_QUANTIZED = tuple(np.dtype(name) for name in ("int8", "uint8", "int16", "uint16"))


def _quantized_dtype(dtype: DTypeLike) -> tuple[np.dtype[Any], int, int]:
    """Return the dtype with its least and greatest value, or raise ValueError if it is not an 8- or 16-bit integer."""
    kind = np.dtype(dtype)
    if kind not in _QUANTIZED:
        raise ValueError(f"dtype {kind} is not a quantised type: use int8, uint8, int16 or uint16")
    info = np.iinfo(kind)
    return kind, int(info.min), int(info.max)


def _scale(scale: ArrayLike, name: str) -> NDArray[np.float32]:
    """Return a scale as float32, or raise ValueError unless every element is positive and finite."""
    # A Python float beyond float32 becomes inf here and is refused just below, without a numpy warning.
    with np.errstate(over="ignore"):
        value = np.asarray(scale, dtype=np.float32)
    if not np.all(np.isfinite(value) & (value > 0)):
        raise ValueError(f"{name} must be positive and finite as float32")
    return value


def _zero_point(zero_point: ArrayLike, low: int, high: int) -> NDArray[np.int64]:
    """Return zero points as int64, or raise ValueError unless they are integers in [low, high]."""
    value = np.asarray(zero_point)
    if value.dtype.kind not in "iu":
        raise ValueError(f"zero point must be an integer, not {value.dtype}")
    if not np.all((value >= low) & (value <= high)):
        raise ValueError(f"zero point out of range: it must lie in [{low}, {high}]")
    return value.astype(np.int64)


def _terms(terms: Sequence[ArrayLike], count: int) -> list[NDArray[np.int32]]:
    """Return the terms as int32 arrays, or raise ValueError for a wrong count or a dtype that int32 cannot hold."""
    if len(terms) != count or count == 0:
        raise ValueError(f"{len(terms)} terms for {count} multipliers: need one of each, and at least one")
    arrays = [np.asarray(term) for term in terms]
    for index, array in enumerate(arrays):
        if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int32):
            raise ValueError(f"term {index} has dtype {array.dtype}: terms are int32 (or a narrower integer)")
    return [array.astype(np.int32, copy=False) for array in arrays]


def _output_shape(terms: Sequence[NDArray[np.int32]], *parameters: NDArray[Any]) -> None:
    """Raise ValueError where a multiplier or shift would enlarge the shape that the terms alone give."""
    try:
        shape = np.broadcast_shapes(*(term.shape for term in terms))
        whole = np.broadcast_shapes(shape, *(parameter.shape for parameter in parameters))
    except ValueError as error:
        raise ValueError(f"terms and multipliers do not broadcast: {error}") from None
    if whole != shape:
        raise ValueError(f"multipliers of shape {whole} do not broadcast into the terms' shape {shape}")


def _clamp(zero_point: int, lo: int, hi: int, dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype, or raise ValueError unless zero point and bounds are inside it and lo <= hi."""
    kind, low, high = _quantized_dtype(dtype)
    if not low <= zero_point <= high:
        raise ValueError(f"zero point {zero_point} is outside {kind} [{low}, {high}]")
    if not low <= lo <= hi <= high:
        raise ValueError(f"clamp bounds [{lo}, {hi}] must be ordered and inside {kind} [{low}, {high}]")
    return kind


# --- Real values and their integers -----------------------------------------------------------------------------------


def quantize(x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, dtype: DTypeLike) -> NDArray[Any]:
    """Quantise: ``saturate(rint(x / scale) + zero_point)``, ONNX ``QuantizeLinear``.

    The division is one float32 division, the rounding is half to even. NaN becomes the least value of ``dtype``,
    which is what ONNX Runtime gives on x86-64 (``maxps`` returns its second operand) and on AArch64 (``fmaxnm``).

    Args:
        x: real values, any shape; converted to float32 first.
        scale: float32, positive and finite, broadcast against ``x`` (per axis: give it the shape for that).
        zero_point: integers inside ``dtype``, broadcast against ``x``.
        dtype: int8, uint8, int16 or uint16.

    Returns:
        An array of ``dtype`` in the broadcast shape.

    Raises:
        ValueError: for another dtype, a scale that is not positive and finite, or a zero point outside ``dtype``.

    Source: the ONNX operator specification, QuantizeLinear; onnxruntime ``mlas/lib/quantize.cpp``.
    """
    kind, low, high = _quantized_dtype(dtype)
    divisor = _scale(scale, "scale")
    offset = _zero_point(zero_point, low, high)
    with np.errstate(over="ignore", under="ignore"):
        ratio = np.asarray(x, dtype=np.float32) / divisor
    # fmax, not maximum: it drops a NaN in favour of the bound. Both bounds are below 2**17, so exact in float32.
    clamped = np.fmin(np.fmax(ratio, (low - offset).astype(np.float32)), (high - offset).astype(np.float32))
    return np.asarray(np.rint(clamped).astype(np.int64) + offset).astype(kind)


def dequantize(q: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = 0) -> NDArray[np.float32]:
    """Dequantise: ``float32(q - zero_point) * scale``, ONNX ``DequantizeLinear``.

    Args:
        q: int8, uint8, int16, uint16 or int32, any shape.
        scale: float32, positive and finite, broadcast against ``q``.
        zero_point: integers inside the dtype of ``q``, broadcast against ``q``.

    Returns:
        float32 in the broadcast shape.

    Raises:
        ValueError: for another dtype, a bad scale, or a zero point outside the dtype.

    Source: the ONNX operator specification, DequantizeLinear.
    """
    codes = np.asarray(q)
    if codes.dtype not in (*_QUANTIZED, np.dtype(np.int32)):
        raise ValueError(f"dtype {codes.dtype} cannot be dequantised: use int8, uint8, int16, uint16 or int32")
    info = np.iinfo(codes.dtype)
    factor = _scale(scale, "scale")
    difference = codes.astype(np.int64) - _zero_point(zero_point, int(info.min), int(info.max))
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(difference.astype(np.float32) * factor)


def to_unsigned(q: ArrayLike, zero_point: int) -> tuple[NDArray[np.uint8], int]:
    """Turn an int8 activation into the compiler's canonical uint8 one: the same real values, the bits xor 0x80.

    Args:
        q: int8 or uint8, any shape; uint8 comes back unchanged.
        zero_point: its zero point, inside its dtype.

    Returns:
        The uint8 array and its zero point.

    Raises:
        ValueError: for another dtype or a zero point outside it.
    """
    codes = np.asarray(q)
    if codes.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        raise ValueError(f"dtype {codes.dtype} is not an 8-bit activation: use int8 or uint8")
    info = np.iinfo(codes.dtype)
    _zero_point(zero_point, int(info.min), int(info.max))
    if codes.dtype == np.uint8:
        return codes, zero_point
    return codes.view(np.uint8) ^ np.uint8(0x80), zero_point + 128


# --- Multipliers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FixedMultiplier:
    """The integers that stand for the real multipliers: ``real_i = multipliers[i] / 2**shift``.

    ``multipliers`` holds one int32 array a term and ``shift`` one int32 array for all of them, every one of the same
    shape (``()`` for a scalar, or any shape that broadcasts into the terms'). In every channel ``0 <= m_i < 2**31``,
    ``sum_i m_i <= 2**31`` and ``0 <= shift <= 62``; the sum bound is what keeps the 64-bit sum from overflowing for
    any int32 terms (docs/arithmetic.md, "The 64-bit sum"). The arrays are copied and made read-only.

    Raises:
        ValueError: where one of these does not hold.
    """

    multipliers: tuple[NDArray[np.int32], ...]
    shift: NDArray[np.int32]

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ValueError("a fixed multiplier needs at least one term")
        shape = np.shape(self.shift)
        for array in (*self.multipliers, self.shift):
            if not isinstance(array, np.ndarray) or array.dtype != np.int32 or array.shape != shape:
                raise ValueError(f"multipliers and shift must be int32 arrays of one shape, here {shape}")
        if any(np.any(array < 0) for array in self.multipliers):
            raise ValueError("a fixed multiplier must not be negative: negate the term instead")
        total = sum(array.astype(np.int64) for array in self.multipliers)
        if np.any(total > 2**31):
            raise ValueError("the multipliers of a channel must sum to 2**31 at most, or the 64-bit sum could overflow")
        if np.any((self.shift < 0) | (self.shift > MAXIMUM_SHIFT)):
            raise ValueError(f"shift must lie in [0, {MAXIMUM_SHIFT}]")
        object.__setattr__(self, "multipliers", tuple(_frozen(array) for array in self.multipliers))
        object.__setattr__(self, "shift", _frozen(self.shift))


def _frozen(array: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return a read-only copy."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def float_multiplier(x_scale: ArrayLike, w_scale: ArrayLike, y_scale: ArrayLike) -> NDArray[np.float32]:
    """Return the ``float`` mode's multiplier ``fl32(fl32(x_scale * w_scale) / y_scale)``.

    Both roundings are float32 and in this order, as in ONNX Runtime: another order differs in the last bit and, near
    a tie, in the output. A residual's multiplier is ``float_multiplier(x_scale, 1, y_scale)``; an average over n
    elements is ``float_multiplier(x_scale, 1, np.float32(n) * y_scale)``.

    Args:
        x_scale: float32, positive and finite, scalar or broadcastable.
        w_scale: likewise, one a channel for a per-channel weight.
        y_scale: likewise.

    Returns:
        float32 in the broadcast shape; zero where the product underflows.

    Raises:
        ValueError: for a scale that is not positive and finite, or a multiplier of 2**31 or more.

    Source: onnxruntime ``core/providers/cpu/quantization/qlinearconv.cc``, ``ComputeOutputScale``.
    """
    x, w, y = _scale(x_scale, "x_scale"), _scale(w_scale, "w_scale"), _scale(y_scale, "y_scale")
    with np.errstate(over="ignore", under="ignore"):
        result = np.asarray((x * w) / y)
    if not np.all(result < _MULTIPLIER_LIMIT):
        raise ValueError("multiplier x_scale * w_scale / y_scale must be below 2**31")
    return result


def real_multiplier(x_scale: ArrayLike, w_scale: ArrayLike, y_scale: ArrayLike) -> NDArray[np.float64]:
    """Return ``x_scale * w_scale / y_scale`` in float64, the input of :func:`fixed_multiplier`.

    The scales are taken as float32 (that is what a model stores), so the product is exact and the quotient is rounded
    once; scales that are powers of two give an exact power of two.

    Args:
        x_scale: float32, positive and finite, scalar or broadcastable.
        w_scale: likewise, one a channel for a per-channel weight.
        y_scale: likewise.

    Returns:
        float64 in the broadcast shape.

    Raises:
        ValueError: for a scale that is not positive and finite.
    """
    x, w, y = _scale(x_scale, "x_scale"), _scale(w_scale, "w_scale"), _scale(y_scale, "y_scale")
    return np.asarray(x.astype(np.float64) * w.astype(np.float64) / y.astype(np.float64))


def _reals(reals: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    """Return the real multipliers as float64 of one shape, or raise ValueError unless positive and finite."""
    if len(reals) == 0:
        raise ValueError("need at least one real multiplier")
    try:
        arrays = np.broadcast_arrays(*(np.asarray(real, dtype=np.float64) for real in reals))
    except ValueError as error:
        raise ValueError(f"the real multipliers do not broadcast: {error}") from None
    for index, array in enumerate(arrays):
        if not np.all(np.isfinite(array) & (array > 0)):
            raise ValueError(
                f"real multiplier {index} must be positive and finite: for a negative one negate the term instead"
            )
    return list(arrays)


def _largest_bits(count: int) -> int:
    """Return b such that multipliers below 2**b, ``count`` of them, sum to 2**31 at most: 31 - ceil(log2(count))."""
    return 31 - (count - 1).bit_length()


def _fixed(arrays: list[NDArray[np.float64]], shift: NDArray[np.int64]) -> FixedMultiplier:
    """Round every real multiplier at the given shift."""
    rounded = [np.rint(np.ldexp(array, shift)).astype(np.int64) for array in arrays]
    if len(rounded) == 1:
        # A single multiplier that rounds to zero may as well be one: at shift 62 no int32 term can tell.
        rounded[0] = np.maximum(rounded[0], 1)
    return FixedMultiplier(tuple(np.asarray(m).astype(np.int32) for m in rounded), np.asarray(shift).astype(np.int32))


def fixed_multiplier(reals: Sequence[ArrayLike]) -> FixedMultiplier:
    """Derive the ``fixed`` mode's integers from real multipliers, one a term.

    For n terms and ``b = 31 - ceil(log2(n))`` the shift of a channel is the one that brings its largest multiplier
    into ``[2**(b-1), 2**b)``, at most 62; each ``m_i`` is the real one times ``2**shift``, rounded half to even. So one
    term has ``m`` in [2**30, 2**31), two have their larger one in [2**29, 2**30). A channel whose largest multiplier
    is below 2**-32 (n = 1) has shift 62 and a smaller ``m``.

    Args:
        reals: for each term its multiplier, float64, positive and finite, broadcast together.

    Returns:
        The multipliers and shift, in the broadcast shape.

    Raises:
        ValueError: for no term, a multiplier that is not positive and finite, or one that does not fit at shift 0
            (2**b or more).

    Source: docs/arithmetic.md; a single term is gemmlowp's quantised multiplier (Jacob et al., 2018, section 2.2)
    with one rounding in place of two.
    """
    arrays = _reals(reals)
    bits = _largest_bits(len(arrays))
    largest = np.maximum.reduce(arrays)
    # largest = f * 2**e with f in [1/2, 1), so largest * 2**(bits - e) is in [2**(bits-1), 2**bits).
    exponent = np.frexp(largest)[1].astype(np.int64)
    shift = bits - exponent
    rounded_up = np.rint(np.ldexp(largest, np.minimum(shift, MAXIMUM_SHIFT))) >= 2.0**bits
    shift = np.minimum(shift - rounded_up, MAXIMUM_SHIFT)
    if np.any(shift < 0):
        raise ValueError(f"real multiplier {float(np.max(largest))} is too large: it must round below 2**{bits}")
    return _fixed(arrays, shift)


def power_of_two(x: ArrayLike) -> NDArray[np.float64]:
    """Round to the nearest power of two by ratio: the exponent is the nearest integer to log2(x).

    Use it on *scales*, before anything is quantised with them. To round a multiplier of existing scales instead would
    multiply every output by up to sqrt(2).

    Args:
        x: positive and finite, at most 2**1023, any shape.

    Returns:
        float64 powers of two, the shape of ``x``. No tie exists: sqrt(2) is irrational.

    Raises:
        ValueError: for a value that is not positive and finite.
    """
    value = np.asarray(x, dtype=np.float64)
    if not np.all((value > 0) & (value <= 2.0**1023)):
        raise ValueError("power_of_two needs positive and finite values, 2**1023 at most")
    fraction, exponent = np.frexp(value)
    # The float64 nearest sqrt(1/2) lies above it, so >= compares exactly as the irrational would.
    return np.ldexp(1.0, np.where(fraction >= np.sqrt(0.5), exponent, exponent - 1))


def shift_multiplier(reals: Sequence[ArrayLike]) -> FixedMultiplier:
    """Derive the ``shift`` form: every multiplier a power of two, for scales that are powers of two.

    One term has ``m = 1`` and ``real = 2**-shift`` (a multiplier above one is ``m = 2**k`` at shift 0; one below
    2**-62 has shift 62, which gives the same output for every int32 term). Several terms share the shift of their
    smallest multiplier, so all are exact powers of two; where they are more than ``2**(b-1)`` apart
    (``b = 31 - ceil(log2(n))``), the shift is what the largest allows and one that is smaller still becomes 0.

    Args:
        reals: for each term its multiplier, float64, an exact power of two, broadcast together.

    Returns:
        The multipliers and shift, in the broadcast shape.

    Raises:
        ValueError: for no term, a multiplier that is not positive and finite or not a power of two (round the scales
            with :func:`power_of_two`), or one of ``2**b`` or more.
    """
    arrays = _reals(reals)
    pairs = [np.frexp(array) for array in arrays]
    if any(np.any(fraction != 0.5) for fraction, _ in pairs):
        raise ValueError("a shift needs multipliers that are powers of two: round the scales with power_of_two first")
    right = [1 - exponent.astype(np.int64) for _, exponent in pairs]
    bits = _largest_bits(len(arrays))
    room = bits - 1 + np.minimum.reduce(right)
    if np.any(room < 0):
        largest = float(np.max(np.maximum.reduce(arrays)))
        raise ValueError(f"real multiplier {largest} is too large: it must be below 2**{bits}")
    wanted = np.maximum(np.maximum.reduce(right), 0)
    return _fixed(arrays, np.minimum(np.minimum(wanted, room), MAXIMUM_SHIFT))


# --- Requantisation ---------------------------------------------------------------------------------------------------


def requantize_float(
    terms: Sequence[ArrayLike],
    multipliers: Sequence[ArrayLike],
    zero_point: int,
    lo: int,
    hi: int,
    dtype: DTypeLike,
) -> NDArray[Any]:
    """Requantise in mode ``float``: ``rint(clamp(sum_i fl32(t_i) * M_i, lo - z, hi - z)) + z``.

    Each term is converted to float32 (half to even) and multiplied once in float32; the products are added in float32
    from left to right without fused multiply-add; the clamp is in float32 before the conversion back, so nothing can
    overflow an int32; the rounding is half to even.

    Args:
        terms: int32 arrays (or narrower integers), zero points subtracted, broadcast together.
        multipliers: float32, one a term, at least 0 and below 2**31, each broadcast into the terms' shape.
        zero_point: the output's, inside ``dtype``.
        lo: the least output, inside ``dtype``; a fused ReLU gives ``zero_point``.
        hi: the greatest output, ``lo <= hi``, inside ``dtype``.
        dtype: int8, uint8, int16 or uint16.

    Returns:
        An array of ``dtype`` in the terms' broadcast shape.

    Raises:
        ValueError: for unlike numbers of terms and multipliers, a term that int32 cannot hold, a multiplier outside
            [0, 2**31), shapes that do not fit, another dtype, or a zero point or bounds outside it.

    Source: onnxruntime ``mlas/lib/quantize.cpp``, ``MlasRequantizeOutput``, extended from one term to several.
    """
    kind = _clamp(zero_point, lo, hi, dtype)
    integers = _terms(terms, len(multipliers))
    with np.errstate(over="ignore"):
        factors = [np.asarray(multiplier, dtype=np.float32) for multiplier in multipliers]
    for index, factor in enumerate(factors):
        if not np.all((factor >= 0) & (factor < _MULTIPLIER_LIMIT)):
            raise ValueError(f"multiplier {index} must lie in [0, 2**31): for a negative one negate the term instead")
    _output_shape(integers, *factors)
    with np.errstate(under="ignore"):
        total = integers[0].astype(np.float32) * factors[0]
        for term, factor in zip(integers[1:], factors[1:], strict=True):
            total = total + term.astype(np.float32) * factor
    clamped = np.clip(total, np.float32(lo - zero_point), np.float32(hi - zero_point))
    return np.asarray(np.rint(clamped).astype(np.int32) + np.int32(zero_point)).astype(kind)


def requantize_fixed(
    terms: Sequence[ArrayLike],
    fixed: FixedMultiplier,
    zero_point: int,
    lo: int,
    hi: int,
    dtype: DTypeLike,
) -> NDArray[Any]:
    """Requantise in mode ``fixed``: ``clamp(((sum_i t_i * m_i + 2**(s-1)) >> s) + z, lo, hi)``.

    64-bit two's complement with an arithmetic shift, so the exact sum is rounded once, half up (towards plus
    infinity). At shift 0 there is no rounding term. Nothing can overflow: see :class:`FixedMultiplier`.

    Args:
        terms: int32 arrays (or narrower integers), zero points subtracted, broadcast together.
        fixed: the multipliers, one a term, and the shift, each broadcast into the terms' shape.
        zero_point: the output's, inside ``dtype``.
        lo: the least output, inside ``dtype``; a fused ReLU gives ``zero_point``.
        hi: the greatest output, ``lo <= hi``, inside ``dtype``.
        dtype: int8, uint8, int16 or uint16.

    Returns:
        An array of ``dtype`` in the terms' broadcast shape.

    Raises:
        ValueError: for unlike numbers of terms and multipliers, a term that int32 cannot hold, shapes that do not
            fit, another dtype, or a zero point or bounds outside it.

    Source: docs/arithmetic.md, "Mode fixed".
    """
    kind = _clamp(zero_point, lo, hi, dtype)
    integers = _terms(terms, len(fixed.multipliers))
    _output_shape(integers, fixed.shift)
    total = integers[0].astype(np.int64) * fixed.multipliers[0].astype(np.int64)
    for term, multiplier in zip(integers[1:], fixed.multipliers[1:], strict=True):
        total = total + term.astype(np.int64) * multiplier.astype(np.int64)
    shift = fixed.shift.astype(np.int64)
    # (1 << s) >> 1 is 2**(s-1), and 0 at s = 0.
    rounded = (total + (np.left_shift(np.int64(1), shift) >> 1)) >> shift
    return np.asarray(np.clip(rounded + zero_point, lo, hi)).astype(kind)


# --- Tables -----------------------------------------------------------------------------------------------------------


def unary_table(
    function: Callable[[NDArray[np.float64]], ArrayLike],
    x_scale: ArrayLike,
    x_zero_point: int,
    x_dtype: DTypeLike,
    y_scale: ArrayLike,
    y_zero_point: int,
    y_dtype: DTypeLike,
) -> NDArray[Any]:
    """Tabulate a unary function of an 8-bit value: ``table[q] = quantize(f(dequantize(q)))``.

    The function is evaluated in float64 and its result rounded to float32, so a table does not depend on a float32
    mathematics library. A NaN of the function becomes the least value of ``y_dtype``, as in :func:`quantize`.

    Args:
        function: an elementwise function, float64 (256,) to values of the same shape.
        x_scale: the input's scale, a scalar.
        x_zero_point: the input's zero point, inside ``x_dtype``.
        x_dtype: int8 or uint8.
        y_scale: the output's scale, a scalar.
        y_zero_point: the output's zero point, inside ``y_dtype``.
        y_dtype: int8, uint8, int16 or uint16.

    Returns:
        (256,) of ``y_dtype``, indexed by the *bits* of ``q`` (``q & 0xFF``): see :func:`lookup`.

    Raises:
        ValueError: for an input that is not 8 bits wide, a scale that is not one positive and finite number, a zero
            point outside its dtype, or a function that returns another shape.
    """
    kind = np.dtype(x_dtype)
    if kind not in (np.dtype(np.int8), np.dtype(np.uint8)):
        raise ValueError(f"a table needs an int8 or uint8 input, not {kind}")
    if np.ndim(x_scale) or np.ndim(y_scale):
        raise ValueError("a table needs scalar scales")
    codes = np.arange(256, dtype=np.uint8).view(kind)
    with np.errstate(all="ignore"):
        values = np.asarray(function(dequantize(codes, x_scale, x_zero_point).astype(np.float64)))
        if values.shape != (256,):
            raise ValueError(f"the function must be elementwise: it returned shape {values.shape} for (256,)")
        rounded = values.astype(np.float32)
    return quantize(rounded, y_scale, y_zero_point, y_dtype)


def lookup(table: NDArray[Any], q: ArrayLike) -> NDArray[Any]:
    """Apply a table of :func:`unary_table` to 8-bit values.

    Args:
        table: (256,), any dtype.
        q: int8 or uint8, any shape.

    Returns:
        The table's dtype in the shape of ``q``.

    Raises:
        ValueError: for a table that has not 256 entries, or a ``q`` of another dtype.
    """
    codes = np.asarray(q)
    if table.shape != (256,) or codes.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        raise ValueError(f"need a (256,) table and int8 or uint8 values, not {table.shape} and {codes.dtype}")
    return np.asarray(table[codes.view(np.uint8)])


# --- Accumulators -----------------------------------------------------------------------------------------------------


def accumulator_bound(
    weight: ArrayLike,
    axis: int,
    activation_lo: int,
    activation_hi: int,
    zero_point: int,
    bias: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Return for each output channel the largest ``|bias + sum w * (q - zero_point)|`` over all q in the given range.

    Exact, from the actual weights: some input in the range reaches it. It also covers a padded position (q equal to
    the zero point) and a sum over a part of the weights. A sum whose bound is at most 2**31 - 1 is right in int32 in
    any order of addition, even where an intermediate value wraps.

    Args:
        weight: integers of at most 16 bits (int8 in this compiler), any shape.
        axis: the axis of the output channels.
        activation_lo: the least q.
        activation_hi: the greatest q.
        zero_point: the activation's zero point, inside [activation_lo, activation_hi].
        bias: integers of at most 32 bits, (channels,), or None.

    Returns:
        int64, (channels,).

    Raises:
        ValueError: for weights or a bias of another type or shape, an axis out of range, or a zero point outside the
            activation range.
    """
    w = np.asarray(weight)
    if w.dtype.kind not in "iu" or w.dtype.itemsize > 2:
        raise ValueError(f"weight must be an integer of at most 16 bits, not {w.dtype}")
    if not -w.ndim <= axis < w.ndim:
        raise ValueError(f"axis {axis} is out of range for a weight of {w.ndim} dimensions")
    if not activation_lo <= zero_point <= activation_hi:
        raise ValueError(f"zero point {zero_point} must lie in the activation range [{activation_lo}, {activation_hi}]")
    rows = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1).astype(np.int64)
    at_lo, at_hi = rows * (activation_lo - zero_point), rows * (activation_hi - zero_point)
    greatest = np.maximum(at_lo, at_hi).sum(axis=1)
    least = np.minimum(at_lo, at_hi).sum(axis=1)
    if bias is not None:
        b = np.asarray(bias)
        if b.dtype.kind not in "iu" or not np.can_cast(b.dtype, np.int32) or b.shape != greatest.shape:
            raise ValueError(f"bias must be int32 of shape {greatest.shape}, not {b.dtype} {b.shape}")
        greatest, least = greatest + b, least + b
    return np.maximum(np.abs(greatest), np.abs(least))


def maximum_raw_terms(weight_lo: int = -127, weight_hi: int = 127) -> int:
    """Return how many products u8 * s8, with the u8 taken as it is (no zero point), always fit an int32.

    Args:
        weight_lo: the least weight, at most 0.
        weight_hi: the greatest weight, at least 0; not both zero.

    Returns:
        66,311 for weights in [-127, 127], 65,793 for [-128, 127].

    Raises:
        ValueError: for bounds that are not of int8 with ``weight_lo <= 0 <= weight_hi``, or are both zero.
    """
    if not -128 <= weight_lo <= 0 <= weight_hi <= 127 or weight_lo == weight_hi:
        raise ValueError(f"weight bounds [{weight_lo}, {weight_hi}] must be int8 and include 0 and another value")
    limits = []
    if weight_hi:
        limits.append(_INT32_MAX // (255 * weight_hi))
    if weight_lo:
        limits.append(_INT32_MIN // (255 * weight_lo))
    return min(limits)


# --- Choosing parameters ----------------------------------------------------------------------------------------------


def quantize_weight(
    w: ArrayLike, axis: int | None, bits: int = 8, minimum_scale: ArrayLike = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise a weight symmetrically, one scale an output channel: ``scale = max|w| / (2**(bits-1) - 1)``.

    The values are within ``[-(2**(bits-1) - 1), 2**(bits-1) - 1]``, so int8 never holds -128. A channel of zeros has
    scale 1.

    Args:
        w: finite real values, any shape; converted to float32.
        axis: the axis of the output channels; None gives one scale for the whole weight.
        bits: 2 to 8.
        minimum_scale: a lower bound of the scales, scalar or (channels,), finite and not negative. A channel of small
            weights and a large bias needs one, or :func:`quantize_bias` must refuse: it wants
            ``scale >= |bias| / (x_scale * 2**30)`` or so.

    Returns:
        q int8 in the shape of ``w``, and the scales float32, (channels,) or () for axis None.

    Raises:
        ValueError: for NaN or infinity, bits out of range, an axis out of range, or a bad minimum scale.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, not {bits}")
    with np.errstate(over="ignore"):
        values = np.asarray(w, dtype=np.float32)
    if not np.all(np.isfinite(values)):
        raise ValueError("weight must be finite as float32")
    if axis is not None and not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis {axis} is out of range for a weight of {values.ndim} dimensions")
    least = np.asarray(minimum_scale, dtype=np.float32)
    if not np.all(np.isfinite(least) & (least >= 0)):
        raise ValueError("minimum_scale must be finite and not negative")
    top = 2 ** (bits - 1) - 1
    rows = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    if least.ndim > 1 or (least.ndim == 1 and least.shape != rows.shape[:1]):
        raise ValueError(f"minimum_scale must be a scalar or of shape {rows.shape[:1]}, not {least.shape}")
    peak = np.max(np.abs(rows), axis=1, initial=np.float32(0))
    with np.errstate(under="ignore"):
        # A subnormal scale would lose precision or be zero, so the smallest normal number is the least.
        scale = np.maximum(peak / np.float32(top), _SMALLEST_SCALE)
    scale = np.maximum(np.where(peak == 0, np.float32(1), scale), least).astype(np.float32)
    with np.errstate(under="ignore"):
        codes = np.clip(np.rint(rows / scale[:, np.newaxis]), -top, top).astype(np.int8)
    if axis is None:
        return codes.reshape(values.shape), scale.reshape(())
    moved = np.moveaxis(values, axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(codes.reshape(moved), 0, axis)), scale


def quantize_blocks(w: ArrayLike, block: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise a weight to 4 bits, symmetrically, with one scale for each `block` of K and each output channel.

    Of a few scales from max|w| / 8 to max|w| / 7 and below, the one with the least squared error is taken: what a
    smaller step gains for all weights is often more than what the largest loses by being cut off. Scales are numbers
    that bfloat16 holds. A block of zeros has scale 1.

    Args:
        w: finite real values (..., K, N), K a multiple of `block`; converted to float32.
        block: how many consecutive K share a scale.

    Returns:
        codes int8 in [-8, 7], in the shape of `w`, and the scales float32 (..., K / block, N).

    Raises:
        ValueError: for NaN or infinity, or a K that is no multiple of `block`.
    """
    with np.errstate(over="ignore"):
        values = np.asarray(w, dtype=np.float32)
    if not np.all(np.isfinite(values)):
        raise ValueError("weight must be finite as float32")
    depth, width = values.shape[-2:]
    if depth % block:
        raise ValueError(f"K = {depth} is no multiple of the block of {block}")
    blocks = values.reshape(*values.shape[:-2], depth // block, block, width)
    peak = np.max(np.abs(blocks), axis=-2, keepdims=True)
    unit = np.where(peak == 0, np.float32(1), peak)  # errors relative to it: squares neither overflow nor vanish
    best = scale = None
    for steps in (7.0, 7.5, 8.0, 8.5, 9.0):
        tried = np.maximum(as_bfloat16(peak / np.float32(steps)), _SMALLEST_SCALE)
        tried = np.where(peak == 0, np.float32(1), tried)
        missed = (np.clip(np.rint(blocks / tried), -8, 7) * tried - blocks) / unit
        error = np.square(missed).sum(axis=-2, keepdims=True)
        if best is None or scale is None:
            best, scale = error, tried
        else:
            best, scale = np.minimum(best, error), np.where(error < best, tried, scale)
    assert scale is not None
    codes = np.clip(np.rint(blocks / scale), -8, 7).astype(np.int8)
    return codes.reshape(values.shape), np.squeeze(scale, -2).astype(np.float32)


def codebook(values: ArrayLike, rounds: int = 12) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """At most 256 numbers that stand for a table's values, and which of them stands for each.

    Lloyd's algorithm in one dimension ("Least Squares Quantization in PCM", 1982): the squared error of what it
    gives is locally least. A table of no more than 256 different values is exact.

    Args:
        values: finite real values, of any shape; converted to float32.

    Returns:
        codes uint8 in the shape of `values`, and the numbers float32, ascending: values are about ``numbers[codes]``.

    Raises:
        ValueError: for NaN or infinity, or no values.
    """
    table = np.asarray(values, dtype=np.float32)
    if not table.size or not np.all(np.isfinite(table)):
        raise ValueError("a table must have values, all finite")
    different, counts = np.unique(table, return_counts=True)
    numbers = different.astype(np.float64)
    if numbers.size > 256:
        # Where there are many of them, numbers lie as the cube root of the density (Panter and Dite, 1951).
        many, edges = np.histogram(table.astype(np.float64), 4096)
        share = np.concatenate([[0.0], np.cumsum(np.cbrt(many))])
        begun = np.interp((np.arange(254) + 0.5) / 254 * share[-1], share, edges)
        centres = np.unique(np.concatenate([different[[0, -1]], begun]))
        for _ in range(rounds):
            group = np.searchsorted((centres[1:] + centres[:-1]) / 2, numbers)
            total = np.bincount(group, counts * numbers, centres.size)
            many = np.bincount(group, counts, centres.size)
            centres = np.unique(total[many > 0] / many[many > 0])
        numbers = centres
    kept = np.unique(numbers.astype(np.float32))
    borders = (kept[1:].astype(np.float64) + kept[:-1]) / 2
    return np.searchsorted(borders, table.astype(np.float64)).astype(np.uint8), kept


def as_bfloat16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to the nearest number that bfloat16 holds, half to even; infinite from ``(2 - 2**-8) * 2**127`` on."""
    with np.errstate(over="ignore"):
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def quantize_bias(bias: ArrayLike, x_scale: ArrayLike, w_scale: ArrayLike) -> NDArray[np.int32]:
    """Quantise a bias in the accumulator's scale: ``rint(bias / (x_scale * w_scale))``, half to even, in float64.

    Args:
        bias: finite real values, (channels,).
        x_scale: the activation's scale, float32, a scalar.
        w_scale: the weight's scale, float32, scalar or (channels,).

    Returns:
        int32, (channels,), with zero point 0.

    Raises:
        ValueError: for NaN or infinity, a bad scale, shapes that do not fit, or a result outside int32.
    """
    values = np.asarray(bias, dtype=np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError("bias must be finite")
    # The product of two float32 is exact in float64.
    unit = _scale(x_scale, "x_scale").astype(np.float64) * _scale(w_scale, "w_scale").astype(np.float64)
    try:
        fits = np.broadcast_shapes(values.shape, unit.shape) == values.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"scales of shape {unit.shape} do not broadcast into the bias of shape {values.shape}")
    codes = np.rint(values / unit)
    outside = (codes < _INT32_MIN) | (codes > _INT32_MAX)
    if np.any(outside):
        first = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"bias leaves int32 at flat index {first} ({np.ravel(codes)[first]:.4g}): "
            "x_scale * w_scale is too small for it, so raise the weight's scale"
        )
    return np.asarray(codes).astype(np.int32)


def activation_parameters(lo: float, hi: float, dtype: DTypeLike = np.uint8) -> tuple[np.float32, int]:
    """Choose scale and zero point of an asymmetric activation for real values in [lo, hi].

    The range is first extended to include 0, so zero is always represented exactly. An empty range (lo = hi = 0) has
    scale 1 and the zero point at the least value. Every real in the range is within half a scale of its code, also at
    an end that the rounded zero point cuts off, up to the float32 rounding of the scale.

    Args:
        lo: the least real value, finite.
        hi: the greatest real value, finite, ``lo <= hi``.
        dtype: uint8 (canonical), int8, int16 or uint16.

    Returns:
        The scale, float32, and the zero point, inside ``dtype``.

    Raises:
        ValueError: for NaN, infinity (also as float32), ``lo > hi`` or another dtype.
    """
    _, low, high = _quantized_dtype(dtype)
    with np.errstate(over="ignore"):
        finite = bool(np.isfinite(np.float32(lo)) and np.isfinite(np.float32(hi)))
    if not finite or lo > hi:
        raise ValueError(f"activation range [{lo}, {hi}] must be finite as float32 and ordered")
    least, greatest = min(float(lo), 0.0), max(float(hi), 0.0)
    if least == greatest:
        return np.float32(1), low
    with np.errstate(under="ignore"):
        scale = max(np.float32((greatest - least) / (high - low)), _SMALLEST_SCALE)
    zero_point = int(np.clip(np.rint(low - least / float(scale)), low, high))
    return np.float32(scale), zero_point

"""Elementary functions of float32 vectors without libm, with tested error bounds.

Bounds are in units in the last place of the exact result (the spacing of float32 there, 2**-149 below the normal
range), over every finite float32, on every instruction set; NaN propagates, infinities have the right limits.

| function | ulp | method |
|---|---|---|
| exp | 1.0 | 2**n * e**r, \\|r\\| <= ln(2)/2, degree 6; the scale in two factors, so that denormals round once |
| log | 0.8 | x = 2**n * m, m in [sqrt(1/2), sqrt(2)); f - f**2/2 + f**3 P(f), degree 11 |
| tanh | 2.5 | m / (m + 2) with m = e**2x - 1, kept exact near zero by 2**n (e**r - 1) + (2**n - 1) |
| sigmoid | 2.0 | e / (1 + e) or 1 / (1 + e) with e = e**-\\|x\\| |
| erf | 1.1 | x + x P(x**2) below 0.92, else 1 - e**-(x + x P(x)) |
| sin, cos | 1.5 | reduced by pi/2 in three parts in float64; above 2**30 libm lane by lane |
| tan | 3.2 | the quotient of the two |
| atan | 1.2 | x + x**3 P(x**2) on [0, 1], pi/2 - atan(1/x) above |
| asin, acos | 2.2 | x + x**3 P(x**2) up to 1/2, above through sqrt((1 - x) / 2) |
| sinh, cosh | 1.5 | e**x / 2 without early overflow; sinh below 1 a polynomial |
| asinh, acosh, atanh | 1.8 | log1p forms |
| power | 0.6 | 2**(y log2 x) in float64 vectors, degree 9 and 13 |

Polynomials are minimax fits of our own (weighted least squares iterated by Lawson's rule in float64, coefficients
rounded to float32 one after the other); the reductions are the classical ones (Cody and Waite; W. J. Cody 1969 for
erf's split).
"""

from __future__ import annotations

import math

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import Expr, hold
from dlc.targets.cpu.kernels.vector import (
    absolute,
    bits,
    both,
    constant,
    convert,
    either,
    element,
    equal,
    fence,
    fma,
    intrinsic,
    invert,
    is_nan,
    lanes_of,
    larger,
    libm,
    like,
    nearest_small,
    negated,
    polynomial,
    rint,
    select,
    smaller,
    truncate,
    unbits,
    unequal,
    with_sign,
)

_LOG2E = 1.4426950408889634
_LN2_HI = 0.693359375  # nine bits: n * _LN2_HI is exact for every exponent
_LN2_LO = -2.12194440054690581e-4
_EXP = (0.4999999403953552, 0.1666652113199234, 0.04166827350854874, 0.008368685841560364, 0.001382013550028205)
_LOG = (
    0.3333331346511841, -0.25000008940696716, 0.20002076029777527, -0.16667991876602173, 0.14220206439495087,
    -0.12406040728092194, 0.11884818971157074, -0.11672208458185196, 0.06748715788125992,
)  # fmt: skip
_ERF_SMALL = (
    0.12837915122509003, -0.37612488865852356, 0.11281730979681015, -0.026762966066598892, 0.0049873520620167255,
    -0.000595957855693996,
)  # fmt: skip
_ERF_LARGE = (
    0.12864848971366882, 0.6351513266563416, 0.10623684525489807, -0.023762019351124763, 0.0036424293648451567,
    -0.0003227936977054924, 1.1229909432586282e-05,
)  # fmt: skip
_SIN = (-0.1666666716337204, 0.008333379402756691, -0.00019853065896313637, 2.832539621522301e-06)
_COS = (0.04166664555668831, -0.0013887308305129409, 2.443210360070225e-05)
_ATAN = (
    -0.33333152532577515, 0.19993767142295837, -0.14211003482341766, 0.10665786266326904, -0.07551728934049606,
    0.043205972760915756, -0.016364237293601036, 0.002919756341725588,
)  # fmt: skip
_ASIN = (
    0.16666659712791443, 0.07500521838665009, 0.04451337829232216, 0.03183896094560623, 0.014316019602119923,
    0.03769377991557121,
)  # fmt: skip
_SINH = (0.1666666716337204, 0.00833331048488617, 0.00019842895562760532, 2.7822131869469468e-06)
_EXP2_64 = (
    0.6931471805599513, 0.2402265069571725, 0.055504108664328033, 0.009618129182547308, 0.001333355825062998,
    0.00015403439917625387, 1.5252645359620115e-05, 1.325853838023168e-06, 1.021092003264621e-07,
)  # fmt: skip
_LOG2_64 = (
    0.33333333333293214, 0.20000000026347323, 0.14285708528299224, 0.11111688596900016, 0.0906172785897139,
    0.08411081032560248,
)  # fmt: skip
# pi/2 = P1 + P2 + P3: n * P1 and n * P2 are exact in float64 for |n| < 2**31.
_PI_2 = (1.570796012878418, 3.139164164167596e-07, 6.223372171896613e-14)


def _clamp(x: Expr, low: float, high: float) -> Expr:
    """Clamp; a NaN goes through (each comparison keeps its second operand)."""
    return smaller(like(high, x), larger(like(low, x), x))


def exp(x: Expr, isa: Isa, doublings: int = 0) -> Expr:
    """e**x * 2**doublings; `doublings` in [-4, 4] moves the limits of overflow and underflow."""
    x = hold(_clamp(x, -108.0, 92.0))
    n, count = nearest_small(x * like(_LOG2E, x))
    r = hold(fma(n, like(-_LN2_LO, x), fma(n, like(-_LN2_HI, x), x, isa), isa))
    p = hold(fma(r * r, polynomial(r, _EXP, isa), r, isa) + like(1, x))
    # What becomes zero is made zero before it is scaled: an underflow takes a hundred cycles, and masks are full of it.
    p = hold(select(x < like(-104.0 - max(doublings, 0), x), like(0, x), p))
    if isa.vector_bits == 512 and lanes_of(x) == 16 and not doublings:
        mask, mode = constant(-1, "int16"), constant(4, "int32")
        return hold(intrinsic("llvm.x86.avx512.mask.scalef.ps.512", p, n, p, mask, mode))
    biased = hold(count + like(254 + doublings, count))
    half = hold(biased >> like(1, biased))
    shift = like(23, half)
    return hold(p * unbits(half << shift) * unbits((biased - half) << shift))


def _log_parts(x: Expr) -> tuple[Expr, Expr]:
    """(n, m) of a positive x = 2**n * m with m in [sqrt(1/2), sqrt(2)); n as float32. Garbage for other x."""
    small = hold(x < like(2.0**-126, x))
    raw = bits(select(small, x * like(2.0**23, x), x))
    raw = hold(raw - like(0x3F3504F3, raw))
    exponent = convert(raw >> like(23, raw), "float32") - select(small, like(23, x), like(0, x))
    return hold(exponent), hold(unbits((raw & like(0x7FFFFF, raw)) + like(0x3F3504F3, raw)))


def _log_special(x: Expr, result: Expr, at_zero: float = -math.inf) -> Expr:
    """log's values outside (0, inf)."""
    positive = select(x < like(math.inf, x), result, x)
    return hold(select(x > like(0, x), positive, select(equal(x, like(0, x)), like(at_zero, x), like(math.nan, x))))


def _log_finite(x: Expr, isa: Isa, correction: Expr | None = None) -> Expr:
    n, m = _log_parts(x)
    f = hold(m - like(1, x))
    z = hold(f * f)
    tail = hold(fma(n, like(_LN2_LO, x), f * z * polynomial(f, _LOG, isa), isa))
    if correction is not None:
        tail = hold(tail + correction)
    return hold(fma(n, like(_LN2_HI, x), f + fma(z, like(-0.5, x), tail, isa), isa))


def log(x: Expr, isa: Isa) -> Expr:
    """Natural logarithm: -inf at zero, NaN below."""
    x = hold(x)
    return _log_special(x, _log_finite(x, isa))


def log1p(x: Expr, isa: Isa) -> Expr:
    """log(1 + x) for x > -1, accurate near zero (what 1 + x rounds away comes back as a correction)."""
    x = hold(x)
    w = hold(fence(x + like(1, x)))  # TVM's simplifier would find x - (w - 1) to be zero
    # Above 2**24 the 1 no longer matters; there w - 1 could even be infinite.
    lost = select(x < like(2.0**24, x), (x - (w - like(1, x))) / w, like(0, x))
    return select(absolute(x) < like(2.0**-24, x), x, _log_special(w, _log_finite(w, isa, hold(lost))))


def tanh(x: Expr, isa: Isa) -> Expr:
    """Hyperbolic tangent."""
    x = hold(x)
    double = hold(smaller(like(18.4, x), absolute(x) * like(2, x)))  # from here on the quotient is 1
    n, count = nearest_small(double * like(_LOG2E, x))
    r = hold(fma(n, like(-_LN2_LO, x), fma(n, like(-_LN2_HI, x), double, isa), isa))
    p = hold(fma(r * r, polynomial(r, _EXP, isa), r, isa))  # e**r - 1
    scale = hold(unbits((count + like(127, count)) << like(23, count)))
    m = hold(fma(scale, p, scale - like(1, x), isa))
    return hold(with_sign(absolute(m / (m + like(2, x))), x))


def sigmoid(x: Expr, isa: Isa) -> Expr:
    """1 / (1 + e**-x)."""
    x = hold(x)
    e = exp(negated(absolute(x)), isa)
    return hold(select(x >= like(0, x), like(1, x), e) / (like(1, x) + e))


def erf(x: Expr, isa: Isa) -> Expr:
    """The error function."""
    x = hold(x)
    a = hold(absolute(x))
    small = fma(a, polynomial(hold(a * a), _ERF_SMALL, isa), a, isa)
    t = hold(smaller(like(4, x), a))
    large = like(1, x) - exp(negated(fma(t, polynomial(t, _ERF_LARGE, isa), t, isa)), isa)
    return hold(with_sign(absolute(select(a < like(0.92, x), small, large)), x))


def _quadrant(x: Expr) -> tuple[Expr, Expr]:
    """(r, q) with x = q * pi/2 + r, |r| <= pi/4, for |x| < 2**30; q int32, r float32."""
    wide = hold(convert(x, "float64"))
    n, count = nearest_small(wide * like(2 / math.pi, wide))
    for part in _PI_2:
        wide = hold(wide - n * like(part, wide))
    return hold(convert(wide, "float32")), hold(convert(count, "int32"))


def _sin_cos(r: Expr, isa: Isa) -> tuple[Expr, Expr]:
    z = hold(r * r)
    sine = hold(fma(r * z, polynomial(z, _SIN, isa), r, isa))
    cosine = hold(fma(z * z, polynomial(z, _COS, isa), fma(z, like(-0.5, z), like(1, z), isa), isa))
    return sine, cosine


def _sine(x: Expr, isa: Isa, quarter: int, name: str) -> Expr:
    x = hold(x)
    huge = hold(absolute(x) >= like(2.0**30, x))
    r, q = _quadrant(select(huge, like(0, x), x))
    q = hold(q + like(quarter, q))
    sine, cosine = _sin_cos(r, isa)
    value = select(equal(q & like(1, q), like(0, q)), sine, cosine)
    sign = (q & like(2, q)) << like(30, q)
    result = unbits(bits(value) ^ sign)
    if not quarter:
        result = select(equal(x, like(0, x)), x, result)  # the sum above loses the sign of -0
    return libm(name, x, keep=(huge, hold(result)))


def sin(x: Expr, isa: Isa) -> Expr:
    """Sine; libm lane by lane from 2**30 on."""
    return _sine(x, isa, 0, "sinf")


def cos(x: Expr, isa: Isa) -> Expr:
    """Cosine; libm lane by lane from 2**30 on."""
    return _sine(x, isa, 1, "cosf")


def tan(x: Expr, isa: Isa) -> Expr:
    """Tangent; libm lane by lane from 2**30 on."""
    x = hold(x)
    huge = hold(absolute(x) >= like(2.0**30, x))
    r, q = _quadrant(select(huge, like(0, x), x))
    sine, cosine = _sin_cos(r, isa)
    even = hold(equal(q & like(1, q), like(0, q)))
    quotient = select(even, sine, negated(cosine)) / select(even, cosine, sine)
    return libm("tanf", x, keep=(huge, hold(select(equal(x, like(0, x)), x, quotient))))


def atan(x: Expr, isa: Isa) -> Expr:
    """Arc tangent."""
    x = hold(x)
    a = hold(absolute(x))
    above = hold(a > like(1, x))
    t = hold(select(above, like(1, x) / a, a))
    z = hold(t * t)
    p = hold(t * z * polynomial(z, _ATAN, isa))
    # pi/2 in two parts, so that the subtraction does not lose the second half.
    high, low = like(1.57079637050628662109375, x), like(-4.37113900018624283e-8, x)
    return hold(with_sign(absolute(select(above, high - (t - (low - p)), t + p)), x))


def _asin_tail(a: Expr, isa: Isa) -> tuple[Expr, Expr, Expr]:
    """(a > 1/2, t, asin(t) - t) with t = a or sqrt((1 - a) / 2); NaN above 1."""
    above = hold(a > like(0.5, a))
    z = hold(select(above, (like(1, a) - a) * like(0.5, a), a * a))
    t = hold(select(above, intrinsic("llvm.sqrt", z), a))
    return above, t, hold(t * z * polynomial(z, _ASIN, isa))


def asin(x: Expr, isa: Isa) -> Expr:
    """Arc sine; NaN outside [-1, 1]."""
    x = hold(x)
    above, t, tail = _asin_tail(hold(absolute(x)), isa)
    high, low = like(1.57079637050628662109375, x), like(-4.37113900018624283e-8, x)
    large = high - (like(2, x) * (t + tail) - low)
    return hold(with_sign(absolute(select(above, large, t + tail)), x))


def acos(x: Expr, isa: Isa) -> Expr:
    """Arc cosine; NaN outside [-1, 1]."""
    x = hold(x)
    above, t, tail = _asin_tail(hold(absolute(x)), isa)
    negative = hold(x < like(0, x))
    double = hold(like(2, x) * (t + tail))
    high, low = like(1.57079637050628662109375, x), like(-4.37113900018624283e-8, x)
    middle = high - (with_sign(t, x) - (low - with_sign(tail, x)))
    outer = select(negative, like(2, x) * high - (double - like(2, x) * low), double)
    return hold(select(above, outer, middle))


def sinh(x: Expr, isa: Isa) -> Expr:
    """Hyperbolic sine."""
    x = hold(x)
    a = hold(absolute(x))
    z = hold(a * a)
    small = fma(a * z, polynomial(z, _SINH, isa), a, isa)
    half = exp(a, isa, doublings=-1)
    large = half - like(0.25, x) / half
    return hold(with_sign(absolute(select(a < like(1, x), small, large)), x))


def cosh(x: Expr, isa: Isa) -> Expr:
    """Hyperbolic cosine."""
    half = exp(absolute(x), isa, doublings=-1)
    return hold(half + like(0.25, half) / half)


def asinh(x: Expr, isa: Isa) -> Expr:
    """Inverse hyperbolic sine."""
    x = hold(x)
    a = hold(absolute(x))
    one = like(1, x)
    large = hold(a > like(2.0**12, x))  # there asinh is log(2 a), and a*a may overflow later on
    square = hold(a * a)
    inner = hold(select(large, a - one, a + square / (one + intrinsic("llvm.sqrt", square + one))))
    result = log1p(inner, isa)
    return hold(with_sign(absolute(result + select(large, like(math.log(2), x), like(0, x))), x))


def acosh(x: Expr, isa: Isa) -> Expr:
    """Inverse hyperbolic cosine; NaN below 1."""
    x = hold(x)
    t = hold(x - like(1, x))
    large = hold(x > like(2.0**12, x))
    inner = hold(select(large, t, t + intrinsic("llvm.sqrt", t * t + t + t)))
    result = log1p(inner, isa) + select(large, like(math.log(2), x), like(0, x))
    return hold(select(x < like(1, x), like(math.nan, x), result))


def atanh(x: Expr, isa: Isa) -> Expr:
    """Inverse hyperbolic tangent; infinite at 1, NaN outside [-1, 1]."""
    x = hold(x)
    a = hold(absolute(x))
    result = like(0.5, x) * log1p((a + a) / (like(1, x) - a), isa)
    result = select(a > like(1, x), like(math.nan, x), result)
    return hold(with_sign(absolute(result), x))


def _log2_wide(x: Expr, isa: Isa) -> Expr:
    """log2 of positive finite float32 values as float64, relative error about 1e-13."""
    n, m = _log_parts(x)
    m = hold(convert(m, "float64"))
    s = hold((m - like(1, m)) / (m + like(1, m)))
    z = hold(s * s)
    atanh_s = fma(s * z, polynomial(z, _LOG2_64, isa), s, isa)
    return hold(fma(atanh_s, like(2 * _LOG2E, m), convert(n, "float64"), isa))


def _exp2_wide(x: Expr, isa: Isa) -> Expr:
    """2**x of float64 values, as float32: overflows to infinity, underflows through denormals."""
    x = hold(_clamp(x, -300.0, 300.0))
    n, count = nearest_small(x)
    r = hold(x - n)
    p = fma(r, polynomial(r, _EXP2_64, isa), like(1, x), isa)
    scale = unbits((count + like(1023, count)) << like(52, count))
    return hold(convert(p * scale, "float32"))


def power(x: Expr, y: Expr, isa: Isa) -> Expr:
    """x**y with C's special cases (pow): negative bases with integer exponents, zeros, infinities, 1 and NaN."""
    x, y = hold(x), hold(y)
    zero, one, inf = like(0, x), like(1, x), like(math.inf, x)
    a, size = hold(absolute(x)), hold(absolute(y))
    result = hold(_exp2_wide(convert(y, "float64") * _log2_wide(a, isa), isa))
    # |x| of 0 or infinity, and an infinite y: the direction decides between 0, 1 and infinity.
    shrinks = hold(either(both(a < one, y > zero), both(a >= one, y < zero)))
    edge = hold(select(equal(a, one), one, select(shrinks, zero, inf)))
    result = hold(select(either(either(equal(a, zero), equal(a, inf)), equal(size, inf)), edge, result))
    whole = hold(equal(hold(truncate(y, isa)), y))
    # Odd: an integer below 2**24 whose half is none.
    half = hold(y * like(0.5, y))
    odd = hold(both(both(whole, size < like(2.0**24, x)), unequal(hold(rint(half, isa)), half)))
    result = hold(select(odd, with_sign(absolute(result), x), result))
    # A finite negative base has no real power unless the exponent is an integer.
    unreal = hold(both(both(x < zero, x > like(-math.inf, x)), invert(whole)))
    result = hold(select(unreal, like(math.nan, x), result))
    result = hold(select(either(is_nan(x), is_nan(y)), hold(x + y), result))
    return hold(select(either(equal(x, one), equal(y, zero)), one, result))


FLOAT32 = {
    "exp": exp, "log": log, "tanh": tanh, "sigmoid": sigmoid, "erf": erf, "sin": sin, "cos": cos, "tan": tan,
    "atan": atan, "asin": asin, "acos": acos, "sinh": sinh, "cosh": cosh, "asinh": asinh, "acosh": acosh,
    "atanh": atanh,
}  # fmt: skip
"""The unary functions of float32 vectors by the operator's name."""

LANE_BY_LANE = {
    "exp": "exp", "log": "log", "tanh": "tanh", "erf": "erf", "sin": "sin", "cos": "cos", "tan": "tan", "atan": "atan",
    "asin": "asin", "acos": "acos", "sinh": "sinh", "cosh": "cosh", "asinh": "asinh", "acosh": "acosh",
    "atanh": "atanh",
}  # fmt: skip
"""The functions of float64 that call libm lane by lane: correct, slow, and rare in models. (sigmoid is made of exp.)"""


def unary(name: str, x: Expr, isa: Isa) -> Expr:
    """Function `name` of a float32 or float64 vector."""
    if element(x) == "float32":
        return FLOAT32[name](x, isa)
    if name == "sigmoid":
        x = hold(x)
        e = libm("exp", negated(absolute(x)))
        return hold(select(x >= like(0, x), like(1, x), e) / (like(1, x) + e))
    return libm(LANE_BY_LANE[name], x)

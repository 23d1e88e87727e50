"""Error bounds of the vector functions against float64 numpy, over all of float32, on every instruction set."""

import math

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from dlc.hardware import this_machine
from dlc.targets.cpu.isa import Isa, levels_of
from dlc.targets.cpu.kernels import vecmath, vector
from dlc.targets.cpu.kernels.builder import kernel, let
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

# The two best levels differ from avx512 in their integer products only.
LEVELS = [isa for isa in levels_of(this_machine()) if isa.dot in ("pmaddwd", "plain")]
SPECIAL = np.array(
    [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, -0.5, 2, 2**-149, -(2**-149), 2**-126, 3.4028235e38, -3.4028235e38],
    "float32",
)


def _sample(per_exponent: int = 256) -> np.ndarray:
    """Every exponent (denormals included) of both signs with random mantissas, multiples of pi/2, and the corners."""
    rng = np.random.default_rng(1)
    exponents = np.repeat(np.arange(255, dtype="uint32"), per_exponent)
    bits = (exponents << 23) | rng.integers(0, 2**23, exponents.size, dtype="uint32")
    values = bits.view("float32")
    near = np.concatenate([np.linspace(-20, 20, 20001), np.linspace(-1.1, 1.1, 20001), np.linspace(-110, 95, 20001)])
    turns = np.arange(1, 20001) * (math.pi / 2)
    return np.concatenate([SPECIAL, values, -values, near.astype("float32"), turns.astype("float32")])


def _run(name: str, arrays: list[np.ndarray], isa: Isa, build) -> np.ndarray:
    lanes = isa.lanes()
    count = -(-arrays[0].size // lanes) * lanes
    padded = [np.concatenate([a, np.ones(count - a.size, a.dtype)]) for a in arrays]
    layout = Layout.dense((count,))
    names = [f"x{i}" for i in range(len(arrays))]
    dtype = str(arrays[0].dtype)
    with kernel(f"k_{name}", [(n, dtype, layout) for n in (*names, "y")]) as k:
        *inputs, out = k.operands
        with T.serial(T.int64(0), T.int64(count // lanes)) as i:
            out.store([i * lanes], build(*(let(x.load([i * lanes], lanes)) for x in inputs)), lanes)
    return Compiled(k.func, isa, len(names) + 1).run([*padded, np.zeros(count, dtype)])[-1][: arrays[0].size]


def ulps(result: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in float32 units in the last place of the exact float64 value; infinite where the kinds differ."""
    with np.errstate(all="ignore"):
        rounded = exact.astype("float32")
        special = ~np.isfinite(rounded) | ~np.isfinite(result)
        agree = (np.isnan(exact) & np.isnan(result)) | (rounded == result)
        # An exact value that just overflows may come out as the greatest float32, and the reverse.
        edge = np.abs(exact) >= 3.4028234e38
        unit = np.maximum(2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-300))) - 23), 2.0**-149)
        close = np.where(special & edge & ~np.isnan(result), 0.5, np.inf)
        return np.where(special, np.where(agree, 0.0, close), np.abs(result.astype("float64") - exact) / unit)


def _exact(name: str, x: np.ndarray) -> np.ndarray:
    wide = x.astype("float64")
    with np.errstate(all="ignore"):
        if name == "erf":
            return np.vectorize(math.erf)(wide)
        if name == "sigmoid":
            e = np.exp(-np.abs(wide))
            return np.where(wide >= 0, 1 / (1 + e), e / (1 + e))
        names = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
        names |= {"asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh"}
        return np.asarray(getattr(np, names.get(name, name))(wide))


BOUNDS = {
    "exp": 1.0, "log": 0.8, "tanh": 2.5, "sigmoid": 2.0, "erf": 1.1, "sin": 1.5, "cos": 1.5, "tan": 3.2, "atan": 1.2,
    "asin": 2.2, "acos": 2.2, "sinh": 1.5, "cosh": 1.5, "asinh": 1.8, "acosh": 1.8, "atanh": 1.8,
}  # fmt: skip


@pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("name", sorted(vecmath.FLOAT32))
def test_bound(name: str, isa: Isa) -> None:
    x = _sample()
    result = _run(name, [x], isa, lambda v: vecmath.unary(name, v, isa))
    error = ulps(result, _exact(name, x))
    worst = int(np.argmax(error))
    assert error[worst] <= BOUNDS[name], f"{name}({x[worst]!r}) = {result[worst]!r}: {error[worst]} ulp"
    if name not in ("acos", "cosh", "cos", "sigmoid", "exp", "log", "acosh"):
        zero = np.flatnonzero(x == 0)
        np.testing.assert_array_equal(np.signbit(result[zero]), np.signbit(x[zero]))


@pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
def test_power(isa: Isa) -> None:
    rng = np.random.default_rng(2)
    some = np.concatenate([SPECIAL, [3, -3, 2.5, -2.5, 0.1, -0.1, 1e10, -7, 5, 16777217, 16777215]]).astype("float32")
    x, y = (a.ravel() for a in np.meshgrid(some, some))
    more = rng.integers(0, 2**31, 20000, dtype="uint32").view("float32")
    small = rng.uniform(-40, 40, 20000).astype("float32")
    near = rng.uniform(0.5, 2, 20000).astype("float32")
    x = np.concatenate([x, more, more, near, -near]).astype("float32")
    y = np.concatenate([y, small, np.rint(small), small * 10, np.rint(small)]).astype("float32")
    result = _run("power", [x, y], isa, lambda a, b: vecmath.power(a, b, isa))
    with np.errstate(all="ignore"):
        exact = np.power(x.astype("float64"), y.astype("float64"))
    error = ulps(result, exact)
    worst = int(np.argmax(error))
    assert error[worst] <= 0.6, f"{x[worst]!r} ** {y[worst]!r} = {result[worst]!r}, not {exact[worst]!r}"


@pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("name", ["rint", "floor", "ceil", "truncate"])
def test_rounding(name: str, isa: Isa) -> None:
    exact = getattr(np, name.replace("truncate", "trunc"))
    x = np.concatenate([_sample(), np.arange(-40, 40) / 4, 2.0**22 + np.arange(16) / 2]).astype("float32")
    result = _run(name, [x], isa, lambda v: getattr(vector, name)(v, isa))
    np.testing.assert_array_equal(result, exact(x))
    np.testing.assert_array_equal(np.signbit(result), np.signbit(exact(x)))


def test_lane_by_lane_float64() -> None:
    isa, x = LEVELS[0], np.linspace(-3, 3, 64)
    for name in (*vecmath.LANE_BY_LANE, "sigmoid"):
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(
                _run(name, [x], isa, lambda v, name=name: vecmath.unary(name, v, isa)), _exact(name, x), rtol=1e-14
            )


def test_shuffled_bits() -> None:
    isa, x = LEVELS[0], SPECIAL
    np.testing.assert_array_equal(_run("neg", [x], isa, vector.negated), -x)
    np.testing.assert_array_equal(_run("abs", [x], isa, vector.absolute), np.abs(x))

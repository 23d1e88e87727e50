"""The contraction generator against plain numpy: random problems, every instruction set, guard zones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.errors import DlcError
from dlc.hardware import this_machine
from dlc.targets.cpu.isa import GENERIC, Isa, isa_by_name, levels_of
from dlc.targets.cpu.kernels.builder import kernel, symbolic
from dlc.targets.cpu.kernels.contract import (
    Contraction,
    Schedule,
    candidates,
    choose,
    conv_contraction,
    conv_weight,
    emit,
    matmul_contraction,
    pack,
    predicted_seconds,
)
from dlc.targets.cpu.kernels.dot import BFLOAT16, PLAIN, PMADDWD, VNNI, Dot, dot_for
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

FLOAT, SHORT, INTEGER = ("float32", "float32"), ("float32", "bfloat16"), ("uint8", "int8")
SHORTS = ("bfloat16", "bfloat16")
# GENERIC, with portable vectors only, runs on every machine.
LEVELS = [*(isa for isa in levels_of(this_machine()) if isa.dot != "amx"), GENERIC]
SHORT_LEVEL = isa_by_name("avx512_bf16")
MACHINE = this_machine()
EPSILON = float(np.finfo("float32").eps)
on_short_level = pytest.mark.skipif(SHORT_LEVEL not in LEVELS, reason="the processor has no AVX512_BF16")


def quickly(examples: int) -> Any:
    """Hypothesis settings for tests that compile a kernel per example."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


def operands(rng: np.random.Generator, dtypes: tuple[str, str], a: Sequence[int], w: Sequence[int], n: int) -> Any:
    """Random A, W and start values; the extreme integers are frequent."""
    if dtypes != INTEGER:
        return tuple(rng.standard_normal(s).astype(d) for s, d in ((a, dtypes[0]), (w, dtypes[1]), (n, "float32")))
    extremes = rng.random()
    x = rng.integers(0, 256, a) if extremes < 0.7 else rng.choice([0, 255], a)
    y = rng.integers(-128, 128, w) if extremes < 0.7 else rng.choice([-128, 127], w)
    return x.astype("uint8"), y.astype("int8"), rng.integers(-(10**6), 10**6, n).astype("int32")


def check(got: np.ndarray, a: np.ndarray, w: np.ndarray, init: np.ndarray, contract: Any, length: int) -> None:
    """Exact for integers; for floats the a-priori bound (length + 1) * eps * (sum of |a||w| + |init|) of any order."""
    if got.dtype == np.int32:
        np.testing.assert_array_equal(got, contract(a.astype("int64"), w.astype("int64")) + init)
        return
    wanted = contract(a.astype("float64"), w.astype("float64")) + init
    magnitude = contract(abs(a).astype("float64"), abs(w).astype("float64")) + abs(init)
    assert np.all(abs(got - wanted) <= (length + 1) * EPSILON * magnitude)


def schedule_of(problem: Contraction, isa: Isa, seed: int) -> Schedule:
    """The chosen schedule, or any candidate: all of them must be right."""
    if seed == 0:
        return choose(problem, isa, MACHINE)
    every = candidates(problem, isa, MACHINE)
    picked = every[seed * 7919 % len(every)]  # all units are among them
    return replace(picked, unroll=1 + seed % 3, prefetch=seed % 5)


def conv_reference(x: np.ndarray, w: np.ndarray, strides: Any, dilations: Any, groups: int, out: Any) -> np.ndarray:
    """x (N, padded spatial..., C), w (O, I/g, k...) -> (N, out..., O): a sum over taps."""
    result = np.zeros((x.shape[0], *out, w.shape[0]), x.dtype)
    inner, outer = w.shape[1], w.shape[0] // groups
    for tap in product(*[range(k) for k in w.shape[2:]]):
        window = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, s, o in zip(tap, dilations, strides, out, strict=True)
        )
        view = x[(slice(None), *window)]
        for g in range(groups):
            weight = w[(slice(g * outer, (g + 1) * outer), slice(None), *tap)]
            result[..., g * outer : (g + 1) * outer] += view[..., g * inner : (g + 1) * inner] @ weight.T
    return result


def run_matmul(rng: np.random.Generator, isa: Isa, dtypes: Any, a_shape: Any, n: int, seed: int, dynamic: bool) -> None:
    length = a_shape[-1]
    a, w, init = operands(rng, dtypes, a_shape, (length, n), n)
    dims = [symbolic(f"d{i}") for i in range(len(a_shape) - 1)] if dynamic else []
    shape = (*(dims or a_shape[:-1]), length)
    problem = matmul_contraction(Layout.dense(shape), n, dtypes=dtypes)
    schedule = schedule_of(problem, isa, seed)
    packed = pack(problem, schedule, isa, w[None])
    rows = prod(shape[:-1])
    operand_list = [
        ("a", dtypes[0], Layout.dense(shape)),
        ("w", str(packed.dtype), Layout.dense(packed.shape)),
        ("b", problem.acc_dtype, Layout.dense((n,))),
        ("o", problem.acc_dtype, Layout.dense((rows, n))),
    ]
    with kernel("matmul", operand_list, dims) as built:
        x, y, b, o = built.operands
        emit(
            problem, schedule, isa, x, y, b, lambda _, row, c, value, lanes, mask: o.store((row, c), value, lanes, mask)
        )
    compiled = Compiled(built.func, isa, 4, len(dims))
    out = np.full((prod(a_shape[:-1]), n), -77, problem.acc_dtype)
    got = compiled.run([a, packed, init, out], a_shape[:-1] if dims else ())[3]
    check(got.reshape(*a_shape[:-1], n), a, w, init, np.matmul, length)


@quickly(60)
@given(
    level=st.sampled_from(range(len(LEVELS))),
    dtypes=st.sampled_from([FLOAT, SHORT, INTEGER]),
    batch=st.sampled_from([(), (2,), (3, 2)]),
    m=st.integers(1, 40),
    k=st.integers(1, 70),
    n=st.integers(1, 150),
    seed=st.integers(0, 1000),
    dynamic=st.booleans(),
)
def test_matmul_with_constant_weights(
    level: int, dtypes: Any, batch: Any, m: int, k: int, n: int, seed: int, dynamic: bool
) -> None:
    run_matmul(np.random.default_rng(seed), LEVELS[level], dtypes, (*batch, m, k), n, seed % 50, dynamic)


@on_short_level
@quickly(50)
@given(
    batch=st.sampled_from([(), (2,)]),
    m=st.integers(1, 40),
    k=st.integers(1, 70),
    n=st.integers(1, 150),
    seed=st.integers(0, 1000),
    dynamic=st.booleans(),
)
def test_matmul_of_pairs_of_bfloat16(batch: Any, m: int, k: int, n: int, seed: int, dynamic: bool) -> None:
    run_matmul(np.random.default_rng(seed), SHORT_LEVEL, SHORTS, (*batch, m, k), n, seed % 50, dynamic)


def run_conv(rng: np.random.Generator, isa: Isa, case: dict[str, Any]) -> None:
    """One convolution; A's halo may be larger than the padding, and is what the kernel reads as padding."""
    rank, groups, dtypes = len(case["kernel"]), case["groups"], case["dtypes"]
    channels, outputs = groups * case["inner"], groups * case["outer"]
    spatial, kernel_shape = case["spatial"][:rank], case["kernel"]
    strides, dilations = case["strides"][:rank], case["dilations"][:rank]
    pads, extra = case["pads"][:rank], case["extra"]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    spatial = [max(s, r - 2 * p) for s, r, p in zip(spatial, reach, pads, strict=True)]
    out = [(s + 2 * p - r) // t + 1 for s, p, r, t in zip(spatial, pads, reach, strides, strict=True)]
    halo = [(0, 0), *((p + extra, p + extra) for p in pads), (0, 0)]
    shape = (case["batch"], *spatial, channels)
    layout = Layout.padded(shape, halo)
    padded = tuple(s + 2 * h[0] for s, h in zip(shape, halo, strict=True))
    a, w, init = operands(rng, dtypes, padded, (outputs, case["inner"], *kernel_shape), outputs)
    flat = case["flat"]
    dims = [symbolic("batch")] if case["dynamic"] else []
    if dims:
        layout = Layout.padded((dims[0], *shape[1:]), halo)
    problem = conv_contraction(
        layout,
        w.shape,
        out,
        strides=strides,
        pads_begin=pads,
        dilations=dilations,
        groups=groups,
        dtypes=dtypes,
        flat_rows=flat,
    )
    schedule = schedule_of(problem, isa, case["seed"] % 40)
    packed = pack(problem, schedule, isa, conv_weight(w, groups))
    out_shape = ((dims or shape)[0], *out, outputs)
    # The output addresses (outer..., row) through its own dense layout, folded as the problem folded its loops.
    extents = [axis.extent for axis in problem.outer] + [problem.rows.extent, outputs]
    operand_list = [
        ("a", dtypes[0], layout),
        ("w", str(packed.dtype), Layout.dense(packed.shape)),
        ("b", problem.acc_dtype, Layout.dense((outputs,))),
        ("o", problem.acc_dtype, Layout.dense(extents)),
    ]
    with kernel("conv", operand_list, dims) as built:
        x, y, b, o = built.operands
        emit(
            problem, schedule, isa, x, y, b,
            lambda outer, row, c, value, lanes, mask: o.store((*outer, row, c), value, lanes, mask),
        )  # fmt: skip
    compiled = Compiled(built.func, isa, 4, len(dims))
    got = compiled.run(
        [a, packed, init, np.full((shape[0], *out_shape[1:]), -77, problem.acc_dtype)], [shape[0]] * len(dims)
    )[3]
    core = a[(slice(None), *(slice(extra, extra + s + 2 * p) for s, p in zip(spatial, pads, strict=True)))]
    check(
        got, core, w, init, lambda v, u: conv_reference(v, u, strides, dilations, groups, out),
        prod(kernel_shape) * case["inner"],
    )  # fmt: skip


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "kernel": st.sampled_from(
            [(1,), (3,), (5,), (1, 1), (3, 3), (2, 3), (5, 1), (1, 3), (2, 2, 2), (1, 3, 3), (7, 7)]
        ),
        "spatial": st.lists(st.integers(1, 11), min_size=3, max_size=3),
        "strides": st.lists(st.integers(1, 3), min_size=3, max_size=3),
        "dilations": st.lists(st.sampled_from([1, 1, 2]), min_size=3, max_size=3),
        "pads": st.lists(st.integers(0, 2), min_size=3, max_size=3),
        "extra": st.integers(0, 1),
        "batch": st.integers(1, 2),
        "groups": st.sampled_from([1, 1, 2, 3]),
        "inner": st.integers(1, 9),
        "outer": st.integers(1, 40),
        "dtypes": st.sampled_from([FLOAT, SHORT, INTEGER]),
        "flat": st.booleans(),
        "dynamic": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@quickly(80)
@given(level=st.sampled_from(range(len(LEVELS))), case=CONVOLUTIONS)
def test_convolution(level: int, case: dict[str, Any]) -> None:
    run_conv(np.random.default_rng(case["seed"]), LEVELS[level], case)


@on_short_level
@quickly(60)
@given(case=CONVOLUTIONS)
def test_convolution_of_pairs_of_bfloat16(case: dict[str, Any]) -> None:
    run_conv(np.random.default_rng(case["seed"]), SHORT_LEVEL, {**case, "dtypes": SHORTS})


@pytest.mark.parametrize("dot", [VNNI, PMADDWD, PLAIN], ids=lambda dot: dot.name)
def test_integer_steps_mean_exact_sums(dot: Dot) -> None:
    rng = np.random.default_rng(1)
    a, w = rng.integers(0, 256, dot.group).astype("uint8"), rng.integers(-128, 128, (dot.group, 8)).astype("int8")
    np.testing.assert_array_equal(dot.meaning(a, w), a.astype(int) @ w.astype(int))
    assert sorted(dot.arrange(w).tolist()) == sorted(w.reshape(-1).tolist())


def test_pairs_of_short_vectors_lie_lane_by_lane_and_the_last_one_alone() -> None:
    isa = isa_by_name("avx2")
    weight = np.arange(2 * 24).reshape(1, 2, 24).astype("bfloat16")
    problem = matmul_contraction(Layout.dense((1, 2)), 24, dtypes=SHORT)
    packed = pack(problem, Schedule(1, 3), isa, weight).reshape(2, 24).astype(int)
    for row, first in zip(packed, (0, 24), strict=True):
        assert row.tolist() == [
            *(first + i + half for i in range(8) for half in (0, 8)),
            *range(first + 16, first + 24),
        ]


def test_pairs_of_bfloat16_lie_channel_by_channel_and_what_is_left_is_padded_behind() -> None:
    weight = np.arange(3 * 16).reshape(1, 3, 16).astype("bfloat16")
    problem = matmul_contraction(Layout.dense((1, 3)), 16, dtypes=SHORTS)
    first, last = pack(problem, Schedule(1, 1), SHORT_LEVEL, weight).reshape(2, 16, 2).astype(int)
    assert first.tolist() == [[lane, 16 + lane] for lane in range(16)]
    assert last.tolist() == [[32 + lane, 0] for lane in range(16)]


def test_a_step_of_bfloat16_means_float32_sums_of_widened_products() -> None:
    rng = np.random.default_rng(1)
    a, w = (rng.standard_normal(shape).astype("bfloat16") for shape in (2, (2, 8)))
    wanted = a.astype("float32") @ w.astype("float32")
    result = BFLOAT16.meaning(a, w)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, wanted)


@on_short_level
def test_infinite_activations_at_the_end_of_an_odd_sum_stay_infinite() -> None:
    a, w = np.ones((1, 5), "bfloat16"), np.ones((5, 20), "bfloat16")
    a[0, 4] = np.inf
    got = _short_product(a, w)
    np.testing.assert_array_equal(got, np.full((1, 20), np.inf))


@on_short_level
def test_what_the_instruction_flushes_to_zero_is_bounded() -> None:
    least = 2.0**-126
    a = np.array([[least / 2, 1, least, -least]], "bfloat16")
    w = np.full((4, 16), 2.0, "bfloat16")
    w[2:] = [[1.0], [0.75]]  # the sum of the last two is subnormal
    wanted = a.astype("float64") @ w.astype("float64")
    assert np.all(abs(_short_product(a, w) - wanted) <= EPSILON * 2 + 4 * least * 2)
    a[0, 1] = 0
    assert np.all(abs(_short_product(a, w) - (a.astype("float64") @ w.astype("float64"))) <= 4 * least * 2)


def _short_product(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    problem = matmul_contraction(Layout.dense(a.shape), w.shape[1], dtypes=SHORTS)
    schedule = choose(problem, SHORT_LEVEL, MACHINE)
    packed, shape = pack(problem, schedule, SHORT_LEVEL, w[None]), (len(a), w.shape[1])
    operand_list = [
        ("a", "bfloat16", Layout.dense(a.shape)),
        ("w", "bfloat16", Layout.dense(packed.shape)),
        ("o", "float32", Layout.dense(shape)),
    ]
    with kernel("matmul", operand_list) as built:
        x, y, o = built.operands
        emit(
            problem, schedule, SHORT_LEVEL, x, y, None,
            lambda _, row, c, value, lanes, mask: o.store((row, c), value, lanes, mask),
        )  # fmt: skip
    return Compiled(built.func, SHORT_LEVEL, 3).run([a, packed, np.zeros(shape, "float32")])[2]


def test_schedules_are_json_and_priced() -> None:
    problem = matmul_contraction(Layout.dense((64, 256)), 200)
    for isa in (isa_by_name("avx512_vnni"), isa_by_name("avx2"), isa_by_name("sse2")):
        chosen = choose(problem, isa, MACHINE)
        assert Schedule.from_json(chosen.to_json()) == chosen
        cheapest = min(predicted_seconds(problem, s, isa, MACHINE) for s in candidates(problem, isa, MACHINE))
        assert predicted_seconds(problem, chosen, isa, MACHINE) == cheapest > 0


def test_rows_that_begin_anywhere_get_wide_tiles_where_k_is_small() -> None:
    # Every row of a tile shares a line of the result with the next tile: the narrower the tile, the more there are.
    x86, machine = isa_by_name("avx512"), replace(MACHINE, l1=32 << 10, l2=1 << 20, l3=32 << 20)
    problems = [matmul_contraction(Layout.dense((548, 4)), n, dtypes=FLOAT) for n in (300, 304)]
    ragged, whole = (choose(problem, x86, machine) for problem in problems)
    assert ragged.nr >= 4 and ragged.nr > whole.nr


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(DlcError, match="halo"):
        conv_contraction(
            Layout.dense((1, 8, 8, 4)), (8, 4, 3, 3), (8, 8), strides=(1, 1), pads_begin=(1, 1), dilations=(1, 1)
        )
    with pytest.raises(DlcError, match="no multiply-add"):
        dot_for(isa_by_name("avx2"), "int8", "int8")
    with pytest.raises(DlcError, match="no multiply-add for bfloat16 activations and bfloat16 weights on avx512_vnni"):
        dot_for(isa_by_name("avx512_vnni"), *SHORTS)
    problem = matmul_contraction(Layout.dense((4, 8)), 16)
    with pytest.raises(DlcError, match="weight is"):
        pack(problem, Schedule(1, 1), isa_by_name("avx2"), np.zeros((1, 9, 16), "float32"))


@quickly(40)
@given(
    level=st.sampled_from(range(len(LEVELS))),
    dtypes=st.sampled_from([FLOAT, FLOAT, SHORT]),
    batch=st.sampled_from([((), ()), ((2,), (2,)), ((3, 2), (2,)), ((3, 2), (1, 1)), ((2, 3), (2, 1))]),
    m=st.integers(1, 20),
    k=st.integers(1, 40),
    n=st.integers(1, 100),
    seed=st.integers(0, 1000),
    dynamic=st.sets(st.sampled_from("mkn")),
)
def test_matmul_of_two_activations(
    level: int, dtypes: Any, batch: Any, m: int, k: int, n: int, seed: int, dynamic: set[str]
) -> None:
    rng, isa = np.random.default_rng(seed), LEVELS[level]
    a, w, _ = operands(rng, dtypes, (*batch[0], m, k), (*batch[1], k, n), n)
    sizes = {"m": m, "k": k, "n": n}
    dims = {name: symbolic(name) for name in sorted(dynamic)}
    rows, depth, columns = (dims.get(name, sizes[name]) for name in "mkn")
    x_layout, y_layout = Layout.dense((*batch[0], rows, depth)), Layout.dense((*batch[1], depth, columns))
    problem = matmul_contraction(x_layout, columns, w=y_layout, dtypes=dtypes)
    schedule = schedule_of(problem, isa, seed % 30)
    out = Layout.dense((*[axis.extent for axis in problem.outer], problem.rows.extent, columns))
    operand_list = [("a", "float32", x_layout), ("w", dtypes[1], y_layout), ("o", "float32", out)]
    with kernel("matmul", operand_list, list(dims.values())) as built:
        x, y, o = built.operands
        emit(
            problem, schedule, isa, x, y, None,
            lambda outer, row, c, value, lanes, mask: o.store((*outer, row, c), value, lanes, mask),
        )  # fmt: skip
    compiled = Compiled(built.func, isa, 3, len(dims))
    got = compiled.run([a, w, np.full((*batch[0], m, n), np.nan, "float32")], [sizes[name] for name in dims])[2]
    check(got, a, w, np.zeros(n), np.matmul, k)


@pytest.mark.parametrize("size", [0, 1, 31, 1000])
@pytest.mark.parametrize("dtypes", [FLOAT, SHORT, INTEGER, pytest.param(SHORTS, marks=on_short_level)],
                         ids=["fp32", "bf16 weights", "int8", "bf16"])  # fmt: skip
def test_symbolic_rows_run_at_any_size(size: int, dtypes: Any) -> None:
    isa, (k, n) = LEVELS[0], (37, 40)
    rng, rows = np.random.default_rng(size), symbolic("rows")
    a, w, init = operands(rng, dtypes, (size, k), (k, n), n)
    problem = matmul_contraction(Layout.dense((rows, k)), n, dtypes=dtypes)
    schedule = choose(problem, isa, MACHINE)
    packed = pack(problem, schedule, isa, w[None])
    operand_list = [
        ("a", dtypes[0], Layout.dense((rows, k))),
        ("w", str(packed.dtype), Layout.dense(packed.shape)),
        ("b", problem.acc_dtype, Layout.dense((n,))),
        ("o", problem.acc_dtype, Layout.dense((rows, n))),
    ]
    with kernel("matmul", operand_list, [rows]) as built:
        x, y, b, o = built.operands
        emit(
            problem, schedule, isa, x, y, b, lambda _, row, c, value, lanes, mask: o.store((row, c), value, lanes, mask)
        )
    got = Compiled(built.func, isa, 4, 1).run([a, packed, init, np.zeros((size, n), problem.acc_dtype)], [size])[3]
    check(got, a, w, init, np.matmul, k)

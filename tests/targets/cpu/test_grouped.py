"""Rows times the matrices of their groups, and the order that puts the rows of one group together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anchored_cases import LEVELS, Body, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.hardware import this_machine
from dlc.ir.interpret import interpret
from dlc.targets.cpu.grouped_region import GroupedRegion, declines
from dlc.targets.cpu.isa import isa_by_name, levels_of
from dlc.targets.cpu.kernels import group_order
from dlc.targets.cpu.kernels.builder import symbolic
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

SHORT_LEVEL = isa_by_name("avx512_bf16")
CASES = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 9), "k": st.sampled_from([1, 3, 8, 37]), "n": st.sampled_from([1, 7, 16, 40]),
        "count": st.integers(1, 5), "weight": st.sampled_from(["float32", "bfloat16", "int8"]),
        "sorted": st.booleans(), "fixed": st.booleans(),
        "level": st.sampled_from(LEVELS), "seed": st.integers(0, 2**16),
    }
)  # fmt: skip


def grouped(case: dict[str, Any]) -> tuple[Body, list[np.ndarray]]:
    """A product with a bias and a scale of its own for each group, and a factor a row; arrays for its inputs."""
    rng = np.random.default_rng(case["seed"])
    rows, k, n, count = (case[name] for name in ("rows", "k", "n", "count"))
    groups = rng.integers(-count, count, rows)
    groups = np.sort(groups % count) if case["sorted"] else groups
    integer = case["weight"] == "int8"
    if integer:
        x, w = rng.integers(0, 256, (rows, k)).astype("uint8"), rng.integers(-127, 128, (count, k, n)).astype("int8")
    else:
        x = rng.integers(-9, 9, (rows, k)).astype(case.get("activation", "float32"))
        w = rng.integers(-9, 9, (count, k, n)).astype(case["weight"])
    bias, factor = (rng.integers(-9, 9, shape).astype("float32") for shape in ((count, n), (rows, 1)))
    body, extent = Body(), rows if case["fixed"] else symbolic("rows")
    names = [body.input((extent, k), str(x.dtype)), body.input(w.shape, str(w.dtype)), body.input((extent,), "int64")]
    kind = {"out_dtype": "int32", "a_zero_point": 131} if integer else {"out_dtype": "float32"}
    value = body.node("dlc.grouped_matmul", names, (extent, n), kind["out_dtype"], **kind)
    value = body.node("relax.astype", [value], (extent, n), "float32")
    taken = body.node("relax.take", [body.input(bias.shape, "float32"), names[2]], (extent, n), "float32", axis=0)
    value = body.node("relax.add", [value, taken], (extent, n), "float32")
    body.node("relax.multiply", [value, body.input(factor.shape, "float32")], (extent, n), "float32")
    return body, [x, w, groups, bias, factor]


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_grouped_products_are_exact(case: dict[str, Any]) -> None:
    check_grouped(case)


@pytest.mark.skipif(SHORT_LEVEL not in levels_of(this_machine()), reason="the processor has no AVX512_BF16")
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_grouped_products_of_pairs_of_bfloat16_are_exact(case: dict[str, Any]) -> None:
    check_grouped({**case, "weight": "bfloat16", "activation": "bfloat16", "level": SHORT_LEVEL})


def check_grouped(case: dict[str, Any]) -> None:
    body, arrays = grouped(case)
    graph = body.graph()
    values = graph.values()
    layouts = {name: Layout.dense(v.shape) for name, v in values.items()}
    constants = {"i1": arrays[1], "i3": arrays[3]}
    assert declines(graph, constants) is None
    region = GroupedRegion(graph, layouts, constants, case["level"])
    schedule = region.choose(this_machine())
    operands = region.operands(schedule)
    dims = [] if case["fixed"] else [d for d in values["i0"].shape if not isinstance(d, int)]
    func = region.emit("k", schedule, operands, dims, None)
    given_arrays = dict(zip((v.name for v in graph.inputs), arrays, strict=True))
    wanted = interpret(graph, given_arrays, sizes={"rows": case["rows"]})[0]
    buffers = [given_arrays[name] if array is None else array for name, array in operands]
    compiled = Compiled(func, case["level"], len(buffers) + 1, len(dims))
    got = compiled.run([*buffers, np.empty_like(wanted)], [case["rows"]] * len(dims))[-1]
    np.testing.assert_array_equal(got, wanted)


def test_groups_outside_are_pulled_in_and_nothing_is_read_outside() -> None:
    case = {"rows": 4, "k": 8, "n": 16, "count": 3, "weight": "float32", "sorted": True, "fixed": True, "seed": 1}
    body, arrays = grouped(case)
    graph = body.graph()
    layouts = {name: Layout.dense(v.shape) for name, v in graph.values().items()}
    constants = {"i1": arrays[1], "i3": arrays[3]}
    region = GroupedRegion(graph, layouts, constants, LEVELS[0])
    schedule = region.choose(this_machine())
    operands = region.operands(schedule)
    func = region.emit("k", schedule, operands, [], None)

    def run(groups: Any) -> np.ndarray:
        arrays[2] = np.asarray(groups, np.int64)
        buffers = [arrays[int(name[1:])] if array is None else array for name, array in operands]
        return Compiled(func, LEVELS[0], 6).run([*buffers, np.empty((4, 16), "float32")])[-1]

    np.testing.assert_array_equal(run([2**62, 1, -5, -(2**62)]), run([2, 1, 0, 0]))


@pytest.mark.parametrize(
    ("dtypes", "reason"),
    [(("float64", "float64"), "no packed kernel multiplies float64 by float64"),
     (("float32", "float32"), "the matrices of the groups are no constant")],
)  # fmt: skip
def test_what_has_no_kernel_says_why(dtypes: tuple[str, str], reason: str) -> None:
    body = Body()
    names = [body.input((2, 3), dtypes[0]), body.input((2, 3, 4), dtypes[1]), body.input((2,), "int64")]
    body.node("dlc.grouped_matmul", names, (2, 4), dtypes[0], out_dtype=dtypes[0])
    assert declines(body.graph(), {}) == reason


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 40), st.integers(1, 9), st.booleans(), st.sampled_from(["int64", "int32", "uint8"]))
def test_order(rows: int, count: int, inverse: bool, dtype: str) -> None:
    groups = np.random.default_rng(rows).integers(0, count + 2, rows).astype(dtype)
    body = Body()
    body.node("dlc.group_order", [body.input((rows,), dtype)], (rows,), "int64", count=count, inverse=inverse)
    got, wanted = run_region(group_order, body.graph(), [groups], LEVELS[0])
    np.testing.assert_array_equal(got, wanted)

"""Rows of int8 times 4-bit weights with a scale a block: the same bits as the interpreter's, on every level."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from anchored_cases import Body
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.hardware import this_machine
from dlc.ir.interpret import interpret
from dlc.ir.ops import block_matmul
from dlc.targets.cpu.block_region import BlockRegion, declines
from dlc.targets.cpu.isa import GENERIC, levels_of
from dlc.targets.cpu.kernels import contract_blocks
from dlc.targets.cpu.kernels.builder import symbolic
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

LEVELS = [*levels_of(this_machine()), GENERIC]
CASES = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 7), "blocks": st.sampled_from([1, 2, 5]), "n": st.sampled_from([1, 7, 16, 40, 150]),
        "count": st.sampled_from([0, 1, 3]), "sorted": st.booleans(), "fixed": st.booleans(),
        "extreme": st.booleans(), "level": st.sampled_from(LEVELS), "seed": st.integers(0, 2**16),
    }
)  # fmt: skip


def _case(case: dict[str, Any]) -> tuple[Body, list[np.ndarray]]:
    """A product with a factor a row and a bias a channel; arrays for its inputs."""
    rng = np.random.default_rng(case["seed"])
    rows, n, leading = case["rows"], case["n"], [case["count"]] if case["count"] else []
    k = case["blocks"] * contract_blocks.BLOCK
    x = rng.integers(-127, 128, (rows, k)).astype(np.int8)
    codes = rng.integers(-8, 8, (*leading, k, n)).astype(np.int8)
    if case["extreme"]:  # where 16-bit sums would overflow, if they could
        x[:], codes[:] = rng.choice([-128, 127], (rows, 1)), rng.choice([-8, 7], n)
    scales = rng.uniform(1e-3, 1, (*leading, case["blocks"], n)).astype(ml_dtypes.bfloat16)
    arrays = [x, block_matmul.pack(codes), scales]
    body, extent = Body(), rows if case["fixed"] else symbolic("rows")
    names = [
        body.input((extent, k), "int8"),
        body.input(arrays[1].shape, "uint8"),
        body.input(scales.shape, "bfloat16"),
    ]
    if leading:
        groups = rng.integers(-case["count"], case["count"], rows)
        arrays.append(np.sort(groups % case["count"]) if case["sorted"] else groups)
        names.append(body.input((extent,), "int64"))
    value = body.node("dlc.block_matmul", names, (extent, n), "float32")
    for shape, op in (((rows, 1), "relax.multiply"), ((n,), "relax.add")):
        arrays.append(rng.standard_normal(shape).astype(np.float32))
        given_shape = (extent, 1) if shape == (rows, 1) else shape
        value = body.node(op, [value, body.input(given_shape, "float32")], (extent, n), "float32")
    return body, arrays


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_products_have_the_interpreters_bits(case: dict[str, Any]) -> None:
    body, arrays = _case(case)
    graph = body.graph()
    values = graph.values()
    names = [v.name for v in graph.inputs]
    constants = {name: arrays[i] for i, name in enumerate(names) if i in (1, 2)}
    assert declines(graph, constants) is None
    layouts = {name: Layout.dense(v.shape) for name, v in values.items()}
    region = BlockRegion(graph, layouts, constants, case["level"])
    schedule = region.choose(this_machine())
    operands = region.operands(schedule)
    dims = [] if case["fixed"] else [values["i0"].shape[0]]
    func = region.emit("k", {**schedule, "predicted_us": 0.0}, operands, dims, None)
    given_arrays = dict(zip(names, arrays, strict=True))
    wanted = interpret(graph, given_arrays, sizes={"rows": case["rows"]})[0]
    buffers = [given_arrays[name] if array is None else array for name, array in operands]
    compiled = Compiled(func, case["level"], len(buffers) + 1, len(dims))
    got = compiled.run([*buffers, np.empty_like(wanted)], [case["rows"]] * len(dims))[-1]
    np.testing.assert_array_equal(got, wanted)


def test_packing_is_undone_by_unpacking() -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (3, 64, 5)).astype(np.int8)
    np.testing.assert_array_equal(block_matmul.unpack(block_matmul.pack(codes)), codes)


def test_what_has_no_kernel_says_why() -> None:
    body = Body()
    names = [body.input((2, 48), "int8"), body.input((24, 4), "uint8"), body.input((3, 4), "bfloat16")]
    body.node("dlc.block_matmul", names, (2, 4), "float32")
    assert declines(body.graph(), {}) == "the 4-bit weights are no constant"
    constants = {"i1": np.zeros((24, 4), np.uint8), "i2": np.zeros((3, 4), ml_dtypes.bfloat16)}
    assert declines(body.graph(), constants) == "3 blocks of 48 elements: kernels take up to 65536 in blocks of 32"


@pytest.mark.parametrize("level", LEVELS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_tiles_fit_the_registers(level: Any, rows: int) -> None:
    schedule = contract_blocks.choose(contract_blocks.Blocks(rows, 512, 2048), level, this_machine())
    assert 2 * schedule["mr"] * schedule["nr"] + 5 <= level.registers
    assert schedule["mr"] <= rows

"""Contractions over widened activations: exact for any block, edge and number of rows, known or symbolic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_contract import INTEGER, MACHINE, check, operands, quickly

from dlc.hardware import Machine
from dlc.targets.cpu.isa import isa_by_name, levels_of
from dlc.targets.cpu.kernels import contract, contract_wide
from dlc.targets.cpu.kernels.builder import kernel, symbolic
from dlc.targets.cpu.kernels.contract import conv_contraction, matmul_contraction
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

LEVELS = [isa for isa in levels_of(MACHINE) if isa.dot == "pmaddwd"]


@quickly(25)
@given(
    level=st.sampled_from(range(len(LEVELS))),
    rows=st.sampled_from([1, 2, 3, 7, 31, 64, 65, 150]),
    more=st.integers(0, 54),
    n=st.integers(1, 60),
    dynamic=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_rows_in_blocks(level: int, rows: int, more: int, n: int, dynamic: bool, seed: int) -> None:
    rng, isa = np.random.default_rng(seed), LEVELS[level]
    k = isa.lanes(16) + more
    a, w, init = operands(rng, INTEGER, (rows, k), (k, n), n)
    dims = [symbolic("rows")] if dynamic else []
    layout = Layout.dense(((dims or [rows])[0], k))
    problem = matmul_contraction(layout, n, dtypes=INTEGER)
    assert contract_wide.declines(problem, isa) is None
    every = contract_wide.candidates(problem, isa, MACHINE)
    schedule = every[seed * 7919 % len(every)]
    packed = contract.pack(problem, schedule, isa, w[None])
    assert packed.size == contract.packed_size(problem, schedule, isa) and packed.dtype == np.int8
    operand_list = [
        ("a", "uint8", layout),
        ("w", "int8", Layout.dense(packed.shape)),
        ("b", "int32", Layout.dense((n,))),
        ("o", "int32", Layout.dense((layout.shape[0], n))),
    ]
    with kernel("matmul", operand_list, dims) as built:
        x, y, b, o = built.operands
        contract.emit(
            problem, schedule, isa, x, y, b,
            lambda _, row, c, value, lanes, mask: o.store((row, c), value, lanes, mask),
        )  # fmt: skip
    arrays = [a, packed, init, np.full((rows, n), -77, "int32")]
    check(Compiled(built.func, isa, 4, len(dims)).run(arrays, [rows] * len(dims))[3], a, w, init, np.matmul, k)


def test_blocks_fit_the_scratch() -> None:
    machine = Machine("x86_64", "", frozenset(), 32 << 10, 512 << 10, 16 << 20, 1)
    assert contract_wide.block_sizes(28, 1 << 10, machine) == [28, 14, 7, 4, 2, 1]
    assert contract_wide.block_sizes(28, 32 << 10, machine) == [8, 4, 2, 1]
    assert contract_wide.block_sizes(28, 300 << 10, machine) == [1]
    assert contract_wide.block_sizes(28, 600 << 10, machine) == []
    assert contract_wide.block_sizes(symbolic("rows"), 1 << 10, machine)[0] == 64


@pytest.mark.parametrize(
    "isa, shape, groups, text",
    [
        ("avx512_vnni", (1, 8, 8, 16), 1, "for s16 products, not for uint8 on avx512_vnni"),
        ("avx2", (1, 8, 8, 16), 16, "too few neighbouring activations"),
        ("avx2", (1, 8, "width", 16), 1, "strides are known"),
    ],
)
def test_declines(isa: str, shape: Any, groups: int, text: str) -> None:
    extents = tuple(symbolic(d) if isinstance(d, str) else d for d in shape)
    problem = conv_contraction(
        Layout.padded(extents, [(0, 0), (1, 1), (1, 1), (0, 0)]), (32, 16 // groups, 3, 3), extents[1:3],
        strides=(1, 1), pads_begin=(1, 1), dilations=(1, 1), groups=groups, dtypes=INTEGER,
    )  # fmt: skip
    assert text in (contract_wide.declines(problem, isa_by_name(isa)) or "")

"""Winograd's algorithm in integers: equal to plain sums for the extreme values, any edge, any block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_contract import INTEGER, MACHINE, conv_reference, operands, quickly

from dlc.targets.cpu.isa import isa_by_name, levels_of
from dlc.targets.cpu.kernels import contract, contract_winograd
from dlc.targets.cpu.kernels.builder import kernel, symbolic
from dlc.targets.cpu.kernels.contract import Contraction, conv_contraction, conv_weight
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

LEVELS = [isa for isa in levels_of(MACHINE) if isa.dot == "pmaddwd"]


def problem_of(
    shape: tuple[Any, ...], outputs: int, pad: int, strides: tuple[int, int] = (1, 1), kernel_size: int = 3
) -> tuple[Contraction, Layout]:
    """A convolution of an image (N, H, W, C) whose halo holds the padding."""
    layout = Layout.padded(shape, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    out = [(d + 2 * pad - kernel_size) // s + 1 for d, s in zip(shape[1:3], strides, strict=True)]
    weight = (outputs, shape[3], kernel_size, kernel_size)
    problem = conv_contraction(
        layout, weight, out, strides=strides, pads_begin=(pad, pad), dilations=(1, 1), dtypes=INTEGER
    )
    return problem, layout


@quickly(25)
@given(
    level=st.sampled_from(range(len(LEVELS))),
    batch=st.integers(1, 2),
    height=st.integers(3, 11),
    width=st.integers(3, 11),
    channels=st.sampled_from([8, 16, 24, 32, 64]),
    outputs=st.integers(1, 40),
    pad=st.integers(0, 1),
    dynamic=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_plain_sums(
    level: int, batch: int, height: int, width: int, channels: int, outputs: int, pad: int, dynamic: bool, bias: bool,
    seed: int,
) -> None:  # fmt: skip
    rng, isa = np.random.default_rng(seed), LEVELS[level]
    dims = [symbolic("batch")] if dynamic else []
    shape = (batch, height, width, channels)
    problem, layout = problem_of(((dims or shape)[0], *shape[1:]), outputs, pad)
    assert contract_winograd.declines(problem, isa) is None
    every = contract_winograd.candidates(problem, isa, MACHINE)
    schedule = replace(every[seed % len(every)], unroll=1 + seed % 3)
    padded = (batch, height + 2 * pad, width + 2 * pad, channels)
    a, w, init = operands(rng, INTEGER, padded, (outputs, channels, 3, 3), outputs)
    packed = contract.pack(problem, schedule, isa, conv_weight(w))
    assert packed.size == contract.packed_size(problem, schedule, isa)
    out = Layout.dense((layout.shape[0], problem.outer[-1].extent, problem.rows.extent, outputs))
    operand_list = [
        ("a", "uint8", layout),
        ("w", "int8", Layout.dense(packed.shape)),
        ("b", "int32", Layout.dense((outputs,))),
        ("o", "int32", out),
    ]
    with kernel("conv", operand_list, dims) as built:
        x, y, b, o = built.operands
        contract.emit(
            problem, schedule, isa, x, y, b if bias else None,
            lambda outer, row, c, value, lanes, mask: o.store((*outer, row, c), value, lanes, mask),
        )  # fmt: skip
    arrays = [a, packed, init, np.full((batch, *out.shape[1:]), -77, "int32")]
    got = Compiled(built.func, isa, 4, len(dims)).run(arrays, [batch] * len(dims))[3]
    wanted = conv_reference(a.astype("int64"), w.astype("int64"), (1, 1), (1, 1), 1, out.shape[1:3])
    np.testing.assert_array_equal(got, wanted + (init if bias else 0))


def test_no_sum_leaves_32_bits() -> None:
    """The bound of the channels against the largest sums that extreme values can make."""
    rng, most = np.random.default_rng(0), contract_winograd.most_channels()
    forward, back = np.array(contract_winograd._INPUT), np.array(contract_winograd._OUTPUT)
    weight = np.array(contract_winograd._WEIGHT)
    for _ in range(50):
        d = rng.choice([0, 255], (4, 4))
        g = rng.choice([-128, 127], (3, 3))
        v, u = forward @ d @ forward.T, weight @ g @ weight.T
        assert max(abs(v).max(), abs(u).max()) < 2**15
        assert (abs(back) @ abs(v * u * most) @ abs(back).T).max() < 2**31
    assert most == 450


@pytest.mark.parametrize(
    "isa, shape, strides, kernel_size, text",
    [
        ("avx512_vnni", (1, 8, 8, 32), (1, 1), 3, "for s16 products, not for uint8 by int8 on avx512_vnni"),
        ("avx2", (1, 8, 8, 32), (2, 2), 3, "3x3 convolutions of stride 1"),
        ("avx2", (1, 8, 8, 32), (1, 1), 5, "3x3 convolutions of stride 1"),
        ("avx2", (1, 8, 8, 12), (1, 1), 3, "multiple of 8 channels up to 450, not 12"),
        ("avx2", (1, 8, 8, 512), (1, 1), 3, "multiple of 8 channels up to 450, not 512"),
        ("avx2", (1, 8, 8, 256), (1, 1), 3, "weights of 256 x 256 channels are too large for the stack"),
    ],
)
def test_declines(isa: str, shape: Any, strides: Any, kernel_size: int, text: str) -> None:
    problem, _ = problem_of(shape, 256, 1, strides, kernel_size)
    assert text in (contract_winograd.declines(problem, isa_by_name(isa)) or "")


def test_declines_what_is_no_convolution() -> None:
    rows = contract.matmul_contraction(Layout.dense((9, 64)), 16, dtypes=INTEGER)
    assert "3x3 convolutions" in (contract_winograd.declines(rows, isa_by_name("avx2")) or "")

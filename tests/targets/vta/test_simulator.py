"""The functional simulator: meanings against plain loops, and every rule of the architecture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.errors import DlcError
from dlc.ir import arithmetic
from dlc.targets.vta import alu, simulator
from dlc.targets.vta.config import Config, config_by_name
from dlc.targets.vta.isa import Alu, AluOp, Finish, Gemm, Instruction, Load, Memory, MicroOp, Store, encode_uops
from dlc.targets.vta.simulator import Simulator

Q31, ORIGINAL = config_by_name("q31"), config_by_name("original")
DRAM = 1 << 16
UOPS = 1 << 15  # where the tests put micro-ops, in bytes


def machine(uops: list[MicroOp], config: Config = Q31, seed: int = 0) -> Simulator:
    """A simulator over random memory with micro-ops at `UOPS`."""
    dram = np.random.default_rng(seed).integers(0, 256, DRAM).astype(np.uint8)
    words = encode_uops(uops, config).view(np.uint8)
    dram[UOPS : UOPS + words.size] = words
    return Simulator(config, dram)


def load(memory: Memory, sram: int, dram: int, count: int, **fields: Any) -> Load:
    return Load(memory=memory, sram_base=sram, dram_base=dram, x_size=count, x_stride=count, **fields)


def load_uops(count: int) -> Load:
    return load(Memory.UOP, 0, UOPS // 4, count)


# --- meanings --------------------------------------------------------------------------------------------------------


def test_load_pads_with_zeros_and_strides() -> None:
    sim = machine([])
    pads = {"y_pad_top": 1, "x_pad_left": 2, "x_pad_right": 1, "y_pad_bottom": 1}
    sim.run([Load(memory=Memory.INP, sram_base=7, dram_base=3, y_size=2, x_size=3, x_stride=5, **pads)])
    image = sim.inp[7 : 7 + 4 * 6].reshape(4, 6, 16)
    source = sim.dram.view(np.int8).reshape(-1, 16)
    expected = np.zeros((4, 6, 16))
    expected[1, 2:5], expected[2, 2:5] = source[3:6], source[8:11]
    np.testing.assert_array_equal(image, expected)


def test_a_load_of_nothing_changes_nothing_but_tokens() -> None:
    sim = machine([])
    sim.run([Load(memory=Memory.INP, push_next=True), Load(memory=Memory.UOP, pop_prev=True)])
    assert not sim.loaded["INP"].any() and not sim.loaded["UOP"].any()


def test_bytes_are_sign_extended_into_acc() -> None:
    sim = machine([])
    sim.run([load(Memory.ACC8, 2, 4, 3), load(Memory.ACC, 9, 1, 2)])
    np.testing.assert_array_equal(sim.acc[2:5], sim.dram.view(np.int8).reshape(-1, 16)[4:7])
    np.testing.assert_array_equal(sim.acc[9:11], sim.dram.view("<i4").reshape(-1, 16)[1:3])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gemm_equals_plain_loops(data: st.DataObject) -> None:
    draw = data.draw
    small, factor = st.integers(0, 7), st.integers(0, 5)
    uops = draw(st.lists(st.builds(MicroOp, small, small, small), min_size=1, max_size=5))
    gemm = Gemm(
        uop_end=len(uops), iter_out=draw(st.integers(1, 3)), iter_in=draw(st.integers(1, 4)),
        dst_factor_out=draw(factor), dst_factor_in=draw(factor), src_factor_out=draw(factor),
        src_factor_in=draw(factor), wgt_factor_out=draw(factor), wgt_factor_in=draw(factor),
    )  # fmt: skip
    dst, src, wgt = simulator.indices(gemm, np.asarray([[u.dst, u.src, u.wgt] for u in uops]))
    before = [load_uops(len(uops)), load(Memory.INP, 0, 0, 64), load(Memory.WGT, 0, 0, 64), load(Memory.ACC, 0, 0, 64)]
    sim = machine(uops)
    sim.run(before)
    if simulator.forwarding_hazard(dst) is not None:
        with pytest.raises(DlcError, match="one of the two steps before"):
            sim.run([gemm])
        return
    expected = sim.acc.astype(np.int64)
    for d, s, w in zip(dst, src, wgt, strict=True):
        expected[d] += sim.wgt[w].astype(np.int64) @ sim.inp[s].astype(np.int64)
    sim.run([gemm])
    np.testing.assert_array_equal(sim.acc, expected.astype(np.int32))


def test_long_sums_are_exact_and_wrap() -> None:
    uops = [MicroOp(dst, 0, 0) for dst in range(3)]
    sim = machine(uops)
    sim.inp[:100], sim.wgt[:] = -128, -128
    sim.loaded["INP"][:], sim.loaded["WGT"][:], sim.loaded["ACC"][:] = True, True, True
    sim.acc[:] = 2**31 - 1
    sim.run([load_uops(3), Gemm(uop_end=3, iter_out=100, iter_in=4, src_factor_out=1, wgt_factor_out=1)])
    total = 2**31 - 1 + 400 * 16 * 128 * 128
    np.testing.assert_array_equal(sim.acc[:3], np.int64(total).astype(np.int32))


def test_reset_writes_zero() -> None:
    sim = machine([MicroOp(4, 0, 0)])
    sim.run([load_uops(1), load(Memory.ACC, 0, 0, 10), Gemm(reset=True, uop_end=1, iter_in=3, dst_factor_in=2)])
    assert [i for i in range(10) if not sim.acc[i].any()] == [4, 6, 8]


_SCALAR = {
    AluOp.MIN: min,
    AluOp.MAX: max,
    AluOp.ADD: lambda a, b: a + b,
    AluOp.MUL: lambda a, b: a * b,
    AluOp.SHR: lambda a, b: a >> min(b, 31) if b >= 0 else (a << -b if b > -32 else 0),
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(_SCALAR)), st.booleans(), st.integers(-40, 40), st.integers(0, 4), st.integers(0, 2**31))
def test_alu_equals_python_in_order(operation: AluOp, use_imm: bool, imm: int, source: int, seed: int) -> None:
    # Sources may be destinations of earlier micro-ops: their results must be seen.
    uops = [MicroOp(0, source, 0)]
    sim = machine(uops, seed=seed)
    sim.run([load_uops(1), load(Memory.ACC, 0, 0, 32)])
    if operation == AluOp.SHR:
        sim.acc[8:] %= 50
    expected = [[int(v) for v in row] for row in sim.acc[:32]]
    for i in range(6):
        for lane in range(16):
            second = imm if use_imm else expected[source + 2 * i][lane]
            value = _SCALAR[operation](expected[i][lane], second) & 0xFFFFFFFF
            expected[i][lane] = value - (value >> 31 << 32)
    sim.run(
        [Alu(uop_end=1, iter_in=6, dst_factor_in=1, src_factor_in=2, alu_opcode=operation, use_imm=use_imm, imm=imm)]
    )
    np.testing.assert_array_equal(sim.acc[:32], expected)
    np.testing.assert_array_equal(sim.out[:6], sim.acc[:6].astype(np.int8))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_requantise_equals_the_arithmetic(seed: int, two: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**31), 2**31, (5, 16)) >> rng.integers(0, 30, (5, 16))
    codes = rng.integers(-128, 128, (5, 16))
    bias, shift = rng.integers(-1000, 1000, 16), rng.integers(0, 63, 16)
    first, second = (rng.integers(0, 2 ** (30 if two else 31), 16) for _ in range(2))
    zero, residual_zero, lo = (int(rng.integers(-128, 128)) for _ in range(3))
    hi = int(rng.integers(lo, 128))
    small = [np.full(16, v) for v in (residual_zero, zero, lo, hi)]
    registers = alu.Registers(bias, first, second, shift, *small)
    packed = alu.Registers.unpack(registers.pack())
    actual = alu.requantise(x.astype(np.int32), codes.astype(np.int32) if two else None, packed)
    terms = [alu.wrap(x + bias), (codes - residual_zero).astype(np.int32)]
    multipliers = [first.astype(np.int32), second.astype(np.int32)]
    fixed = arithmetic.FixedMultiplier(tuple(multipliers[: 1 + two]), shift.astype(np.int32))
    expected = arithmetic.requantize_fixed(terms[: 1 + two], fixed, zero, lo, hi, np.int8)
    np.testing.assert_array_equal(actual, expected)


def test_requantise_leaves_zero_where_asked() -> None:
    sim = machine([MicroOp(0, 4, 0), MicroOp(0, 8, 0)])
    setq, req = Alu(uop_end=1, alu_opcode=AluOp.SETQ), Alu(uop_begin=1, uop_end=2, alu_opcode=AluOp.REQ)
    before = [load_uops(2), load(Memory.ACC, 0, 0, 9), setq]
    sim.run([*before, req])
    assert sim.acc[0].any()
    np.testing.assert_array_equal(sim.acc[0].astype(np.int8), sim.out[0])
    expected = sim.out[0].copy()
    sim.run([*before, replace(req, imm=alu.DRAIN)])
    assert not sim.acc[0].any() and not sim.acc[8].any()
    np.testing.assert_array_equal(sim.out[0], expected)


def test_store_keeps_the_low_byte() -> None:
    sim = machine([MicroOp(3, 0, 0)])
    program = [
        load_uops(1),
        load(Memory.ACC, 0, 0, 8),
        Alu(uop_end=1, iter_in=4, dst_factor_in=1, alu_opcode=AluOp.ADD, use_imm=True, imm=300, push_next=True),
        Store(sram_base=3, dram_base=1000, y_size=2, x_size=2, x_stride=3, pop_prev=True),
    ]
    before = sim.dram.copy()
    sim.run(program)
    stored = sim.dram.view(np.int8).reshape(-1, 16)
    np.testing.assert_array_equal(stored[[1000, 1001, 1003, 1004]], sim.acc[3:7].astype(np.int8))
    changed = np.flatnonzero((before != sim.dram).reshape(-1, 16).any(axis=1))
    assert set(changed.tolist()) <= {1000, 1001, 1003, 1004}


# --- rules -----------------------------------------------------------------------------------------------------------

TWO = [load_uops(2), load(Memory.ACC, 0, 0, 8)]
ILLEGAL: dict[str, tuple[list[Instruction], str]] = {
    "sram": ([load(Memory.INP, 2040, 0, 9)], r"instruction 0 \(LOAD INP .*\): writes INP\[2040:2049\], of 2048"),
    "sram, by padding": ([load(Memory.INP, 2040, 0, 8, x_pad_right=1)], r"writes INP\[2040:2049\], of 2048"),
    "dram": ([load(Memory.WGT, 0, 255, 2)], r"reaches byte 65792 of a memory of 65536"),
    "padded weights": ([load(Memory.WGT, 0, 0, 1, y_pad_top=1)], "a LOAD of WGT takes no padding"),
    "rows of micro-ops": ([load(Memory.UOP, 0, 0, 1, y_size=2)], "a LOAD of UOP has one row, not 2"),
    "load of OUT": ([load(Memory.OUT, 0, 0, 1)], "OUT cannot be loaded"),
    "store of INP": ([Store(memory=Memory.INP, x_size=1)], "STORE writes OUT, not INP"),
    "padded store": ([Store(x_size=1, x_pad_left=1)], "a STORE takes no padding"),
    "overlapping store": ([Store(y_size=2, x_size=3, x_stride=2)], "rows of 3 elements overlap at a stride of 2"),
    "store of sums": (
        [*TWO, Gemm(reset=True, uop_end=1, push_next=True), Store(x_size=1, x_stride=1, pop_prev=True)],
        r"instruction 3 \(STORE OUT .*\): OUT\[0\] was not last written by an ALU instruction",
    ),
    "store of what was loaded": (
        [*TWO[:1], load(Memory.ACC, 0, 0, 8, push_next=True), Store(x_size=1, x_stride=1, pop_prev=True)],
        r"OUT\[0\] was not last written by an ALU",
    ),
    "micro-ops not loaded": ([Gemm(uop_begin=0, uop_end=1, reset=True)], "micro-op 0 was never loaded"),
    "micro-ops out of range": ([Gemm(uop_begin=0, uop_end=8193)], r"micro-ops \[0:8193\] of a buffer of 8192"),
    "no micro-ops": ([*TWO, Gemm(uop_begin=1, uop_end=1)], r"micro-ops \[1:1\]"),
    "no iterations": ([*TWO, Gemm(uop_end=1, iter_in=0)], "a loop of no iterations"),
    "input not loaded": ([*TWO, Gemm(uop_end=1)], r"reads INP\[0\], which nothing has written"),
    "accumulator not written": (
        [load_uops(1), Alu(uop_end=1, use_imm=True)], r"reads ACC\[0\], which nothing has written",
    ),
    "index out of range": (
        [*TWO, Gemm(reset=True, uop_end=1, iter_in=3, dst_factor_in=1024)], r"uses ACC\[2048\], of 2048 entries",
    ),
    "no forwarding, next": ([*TWO, Gemm(reset=True, uop_end=1, iter_in=2)], r"step 1 writes ACC\[0\]"),
    "no forwarding, second": (
        [*TWO, Gemm(reset=True, uop_end=2, iter_in=2)], r"step 2 writes ACC\[0\], which one of the two steps before it",
    ),
    "no forwarding in the ALU": ([*TWO, Alu(uop_end=1, iter_in=2, use_imm=True)], r"step 1 writes ACC\[0\]"),
    "request before registers": ([*TWO, Alu(uop_end=1, alu_opcode=AluOp.REQ)], "REQ before any SETQ"),
    "many registers": ([*TWO, Alu(uop_end=2, alu_opcode=AluOp.SETQ)], "SETQ is one micro-op with an operand in ACC"),
    "a queue that is not there": (
        [load(Memory.INP, 0, 0, 1, pop_prev=True)], r"instruction 0 .*: the load engine has no queue for pop_prev",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_streams_are_named(name: str) -> None:
    program, message = ILLEGAL[name]
    sim = machine([MicroOp(0, 0, 0), MicroOp(1, 1, 1)])
    with pytest.raises(DlcError, match=message):
        sim.run(program)


def test_three_accumulators_in_turn_are_allowed() -> None:
    sim = machine([MicroOp(i, 0, 0) for i in range(3)])
    sim.run([load_uops(3), Gemm(reset=True, uop_end=3, iter_in=5)])


def test_the_original_has_no_requantiser() -> None:
    sim = machine([MicroOp()], ORIGINAL)
    with pytest.raises(DlcError, match=r"instruction 2 .*: vta:original has no ALU operation REQ"):
        sim.run([load_uops(1), load(Memory.ACC, 0, 0, 1), Alu(uop_end=1, alu_opcode=AluOp.REQ), Finish()])

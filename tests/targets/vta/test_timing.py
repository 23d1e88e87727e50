"""The cycle model and the tokens: exact times of small programs, deadlocks, left-over tokens, any interleaving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlc.errors import DlcError
from dlc.targets.vta.config import config_by_name
from dlc.targets.vta.engines import COMPUTE, LOAD, STORE, engine_of, run_order
from dlc.targets.vta.isa import Alu, AluOp, Finish, Gemm, Instruction, Load, Memory, Store
from dlc.targets.vta.layers import Layer, Requantise
from dlc.targets.vta.program import Program, compile_layers
from dlc.targets.vta.simulator import Simulator
from dlc.targets.vta.timing import bursts, compute_cycles, simulate

Q31 = config_by_name("q31")


def inp(count: int = 1, rows: int = 1, stride: int = 0, **flags: bool) -> Load:
    return Load(memory=Memory.INP, y_size=rows, x_size=count, x_stride=stride or count, **flags)


# --- time ------------------------------------------------------------------------------------------------------------


def test_bursts() -> None:
    assert bursts(inp(128)) == (1, 128)
    assert bursts(inp(129)) == (2, 65)
    assert bursts(inp(64, rows=3)) == (2, 96)  # rows that follow each other are one
    assert bursts(inp(64, rows=3, stride=65)) == (3, 64)
    assert bursts(replace(inp(20), memory=Memory.WGT)) == (3, 7)


def test_cycles_of_compute() -> None:
    assert compute_cycles(Gemm(uop_end=4, iter_out=3, iter_in=5)) == 60 + 8
    assert compute_cycles(Alu(uop_end=4, iter_in=5, use_imm=True)) == 20 + 8
    assert compute_cycles(Alu(uop_end=4, iter_in=5)) == 40 + 8
    assert compute_cycles(Alu(uop_end=1, alu_opcode=AluOp.SETQ)) == 5 + 8


def test_engines_run_at_once_where_no_token_forbids_it() -> None:
    gemm = Gemm(uop_end=100)
    together = simulate([inp(100), gemm, Finish()])
    assert together.cycles == max(16 + 200, 108 + 1)
    apart = simulate([inp(100, push_next=True), replace(gemm, pop_prev=True), Finish()])
    assert apart.cycles == 16 + 200 + 108 + 1
    assert (apart.busy[LOAD], apart.busy[COMPUTE], apart.gemm) == (216, 109, 108)


def test_two_engines_share_the_read_channel() -> None:
    parameters = Load(memory=Memory.ACC, x_size=32, x_stride=32)  # one burst of 2 KiB
    alone = simulate([inp(512)]).cycles
    assert alone == 16 + 4 * 256
    both = simulate([inp(512), parameters])
    assert both.cycles == 16 + 5 * 256 and both.read == 5 * 256
    # The second engine waits for the burst under way, not for the whole of the first one's transfer.
    assert both.finished[1] == 16 + 2 * 256


def test_stores_and_padding() -> None:
    assert simulate([Store(y_size=2, x_size=7, x_stride=9)]).cycles == 2 * (3 * 7 + 16)
    assert simulate([inp(5, y_pad_top=1)]).cycles == 16 + 10 + 5  # type: ignore[arg-type]


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_missing_token_is_a_deadlock_that_names_instructions() -> None:
    program: list[Instruction] = [
        inp(),
        Gemm(uop_end=1, reset=True, pop_prev=True, push_next=True),
        Store(pop_prev=True),
    ]
    message = (
        r"deadlock: compute waits at instruction 1 \(GEMM reset .*\) for a token of load -> compute; "
        r"store waits at instruction 2 \(STORE .* pop_prev\) for a token of compute -> store"
    )
    with pytest.raises(DlcError, match=message):
        simulate(program)
    with pytest.raises(DlcError, match=message):
        list(run_order(program))


def test_a_token_too_many_is_named() -> None:
    program = [inp(push_next=True), inp(push_next=True), Load(memory=Memory.UOP, pop_prev=True), Finish()]
    message = r"token 1 left in the queue load -> compute at the end; instruction 1 \(LOAD INP .*\) put the last one"
    with pytest.raises(DlcError, match=message):
        simulate(program)
    with pytest.raises(DlcError, match=message):
        list(run_order(program))


def test_a_queue_holds_eight() -> None:
    take = Load(memory=Memory.UOP, pop_prev=True)
    assert simulate([*[inp(push_next=True)] * 12, *[take] * 12]).cycles > 0
    # Compute waits for the store's token, which comes only when all twelve loads have gone through.
    stuck = [*[inp(push_next=True)] * 12, Load(memory=Memory.WGT, push_next=True), Finish(pop_next=True)]
    with pytest.raises(DlcError, match=r"load waits at instruction 8 .* for room in the queue load -> compute"):
        simulate(stuck)
    with pytest.raises(DlcError, match=r"load waits at instruction 8 .* for room in the queue load -> compute"):
        list(run_order(stuck))


# --- a whole program -------------------------------------------------------------------------------------------------


def program() -> Program:
    """Two convolutions, the second with a residual and in several tiles."""
    rng = np.random.default_rng(0)

    def layer(x: str, output: str, residual: str = "") -> Layer:
        weight = rng.integers(-127, 128, (32, 32, 3, 3)).astype(np.int8)
        bias = rng.integers(-9999, 9999, 32).astype(np.int32)
        terms = 2 if residual else 1
        m = tuple(np.full(32, 2**29, np.int32) for _ in range(terms))
        q = Requantise(m, np.full(32, 41, np.int32), 100, 0, 255, 100)
        shape = (32, 40, 30)
        return Layer(
            "conv", x, output, shape, shape, kernel=(3, 3), pads=(1, 1, 1, 1), x_zero=100, weight=weight,
            bias=bias, requantise=q, residual=residual, macs=weight.size * 1200,
        )  # fmt: skip

    return compile_layers([layer("x", "y"), layer("y", "z", "x")], ["x"], Q31)


@pytest.fixture(scope="module")
def compiled() -> Program:
    return program()


def _run(compiled: Program, instructions: list[Instruction], preference: tuple[str, ...] | int) -> np.ndarray:
    arena = compiled.image()
    codes = np.random.default_rng(1).integers(0, 256, (32, 40, 30)).astype(np.uint8)
    compiled.tensors["x"].write(arena, codes)
    Simulator(Q31, arena).run(instructions, preference)
    return arena


def test_every_interleaving_gives_one_result(compiled: Program) -> None:
    orders = [(LOAD, COMPUTE, STORE), (STORE, COMPUTE, LOAD), (COMPUTE, LOAD, STORE), 1, 2, 3]
    results = [_run(compiled, compiled.instructions, order) for order in orders]
    assert np.unique(compiled.tensors["z"].read(results[0])).size > 50
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_every_token_is_needed(compiled: Program) -> None:
    """Without one push, and so one token, the program stops or its pops and pushes do not match."""
    pushing = [n for n, i in enumerate(compiled.instructions) if i.push_next or i.push_prev]
    assert len(pushing) > 20
    for index in pushing[:: len(pushing) // 10]:
        broken = list(compiled.instructions)
        broken[index] = replace(broken[index], push_next=False, push_prev=False)
        with pytest.raises(DlcError, match=r"deadlock: .* waits at instruction"):
            simulate(broken)


def test_what_is_loaded_ahead_overlaps_the_array(compiled: Program) -> None:
    timing = compiled.timing
    assert timing is not None
    assert timing.cycles == simulate(compiled.instructions).cycles
    loading = sum(i.x_size * i.y_size for i in compiled.instructions if engine_of(i) == LOAD)  # type: ignore[attr-defined]
    assert loading > 5000
    assert timing.cycles < timing.busy[COMPUTE] * 1.1
    assert sum(r.cycles for r in compiled.reports) in range(timing.cycles - 100, timing.cycles + 1)
    assert all(0.6 < r.utilisation < 1 for r in compiled.reports)


def test_the_same_layers_give_the_same_program(compiled: Program) -> None:
    again = program()
    assert again.code() == compiled.code() and again.constants == compiled.constants

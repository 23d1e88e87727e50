"""The tile generator: its instructions emulated (and for real where the machine has them) against plain numpy."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm.script.ir_builder import tirx as T

from dlc.hardware import Machine, this_machine
from dlc.targets.cpu.isa import AMX_EMULATED, Isa, isa_by_name, levels_of
from dlc.targets.cpu.kernels import amx, contract, contract_amx, contract_amx_plan
from dlc.targets.cpu.kernels.builder import kernel, symbolic
from dlc.targets.cpu.kernels.contract import Axis, Contraction, Run, Schedule
from dlc.targets.cpu.kernels.contract_amx_cost import SHAPES, amx_candidates, amx_predicted_seconds, amx_utilisation
from dlc.targets.cpu.kernels.testing import Compiled, llvm_target
from dlc.targets.layout import Layout
from dlc.tile_permission import request_amx

AMX = isa_by_name("amx")
MACHINE = this_machine()
# A machine that has tiles, for what only depends on cache sizes.
SAPPHIRE = Machine("x86_64", "Xeon", AMX.requires, 48 << 10, 2 << 20, 32 << 20, 1)
REAL = AMX in levels_of(MACHINE)
ISAS = [AMX] if REAL else []
ISAS += [AMX_EMULATED] if AMX_EMULATED.requires <= MACHINE.features else []
MARK = -77
needs_vnni = pytest.mark.skipif(not ISAS, reason="neither tiles nor AVX-512 VNNI")


def quickly(examples: int) -> Any:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


def numbers(rng: np.random.Generator, size: int, shape: Sequence[int], n: int) -> tuple[np.ndarray, ...]:
    """Random A, W and start values; extreme integers are frequent."""
    extreme = rng.random() < 0.3
    a = rng.choice([0, 255], size) if extreme else rng.integers(0, 256, size)
    w = rng.choice([-128, 127], shape) if extreme else rng.integers(-128, 128, shape)
    return a.astype("uint8"), w.astype("int8"), rng.integers(-(10**6), 10**6, n).astype("int32")


def wanted(problem: Contraction, a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The definition of a contraction, for known extents: (outer..., rows, groups * n)."""
    axes = [*problem.outer, problem.rows]
    index = np.array(problem.a_offset)
    for axis in axes:
        index = index[..., None] + np.arange(axis.extent) * axis.a_stride
    k = np.concatenate([run.offset + np.arange(run.length) for run in problem.runs])
    parts = [
        a[index[..., None] + g * problem.a_group_stride + k].astype("int64") @ w[g].astype("int64")
        for g in range(problem.groups)
    ]
    return np.concatenate(parts, axis=-1)


def gemm(m: Any, n: int, k: int) -> Contraction:
    return contract.matmul_contraction(Layout.dense((m, k)), n, dtypes=("uint8", "int8"))


def framed(extents: Sequence[Any], n: int) -> Layout:
    """The output (outer..., rows, n) in a frame on all sides, so that no stray store falls on another element."""
    return Layout.padded((*extents, n), [*[(1, 1)] * len(extents), (0, 3)])


def build(
    problem: Contraction, schedule: Schedule, isa: Isa, a_size: Any, dims: Sequence[Any] = (), bias: bool = True,
    scaled: bool = False,
) -> Any:  # fmt: skip
    """The kernel a, w[, b] -> o; `a_size` is the number of elements of a."""
    n = problem.groups * problem.n
    packed = contract.packed_size(problem, schedule, isa)
    operands = [("a", "uint8", Layout.dense((a_size,))), ("w", "int8", Layout.dense((packed,)))]
    operands += [("b", "int32", Layout.dense((n,)))] if bias else []
    operands += [("o", "int32", framed([axis.extent for axis in (*problem.outer, problem.rows)], n))]
    with kernel("contraction", operands, dims) as built:
        x, w, *rest = built.operands

        def store(outer: Any, row: Any, channel: Any, value: Any, lanes: int, mask: Any) -> None:
            value = value * T.broadcast(T.int32(3), lanes) if scaled else value
            rest[-1].store((*outer, row, channel), value, lanes, mask)

        contract.emit(problem, schedule, isa, x, w, rest[0] if bias else None, store)
    return built.func


def frame(known: Contraction) -> tuple[np.ndarray, Any]:
    """(an output filled with a mark, the slices of what is to be written)."""
    extents = [axis.extent for axis in (*known.outer, known.rows)]
    whole = np.full((*(e + 2 for e in extents), known.groups * known.n + 3), MARK, "int32")
    return whole, (*[slice(1, -1)] * len(extents), slice(0, -3))


def compare(got: np.ndarray, known: Contraction, a: np.ndarray, w: np.ndarray, b: np.ndarray | int, why: str) -> None:
    """`got`, frame included, against the definition."""
    right, inner = frame(known)
    right[inner] = wanted(known, a, w) + b
    np.testing.assert_array_equal(got.reshape(right.shape), right, err_msg=why)


def pick(problem: Contraction, isa: Isa, seed: int) -> Schedule:
    """The chosen schedule, or any other one for tiles, with k cut and prefetches where the model would not."""
    if seed == 0:
        return contract.choose(problem, isa, MACHINE)
    every = amx_candidates(problem)
    chosen = every[seed % len(every)]
    steps = len(contract_amx_plan.steps_of(problem))
    return replace(chosen, k_block=[0, 0, 1, 2, 3][seed % 5] % steps, prefetch=seed % 3)


def check(
    isa: Isa, problem: Contraction, known: Contraction, a_size: tuple[Any, int], dims: dict[Any, int], seed: int
) -> None:
    """Run `problem` (symbolic in `dims`) and compare with the definition of `known`, the same with known extents."""
    rng = np.random.default_rng(seed)
    k = sum(run.length for run in known.runs)
    n = known.groups * known.n
    a, w, b = numbers(rng, a_size[1], (known.groups, k, known.n), n)
    schedule = pick(problem, isa, seed % 64)
    packed = contract.pack(problem, schedule, isa, w)
    assert packed.size == contract.packed_size(problem, schedule, isa)
    bias = seed % 4 != 3
    compiled = Compiled(build(problem, schedule, isa, a_size[0], list(dims), bias), isa, 3 + bias, len(dims))
    got = compiled.run([a, packed, *([b] if bias else []), frame(known)[0]], list(dims.values()))[-1]
    compare(got, known, a, w, b if bias else 0, f"{problem} {schedule}")


@needs_vnni
@quickly(24)
@given(
    m=st.one_of(st.integers(1, 70), st.sampled_from([16, 32, 64, 96])),
    k=st.one_of(st.integers(4, 200), st.sampled_from([64, 128, 256])),
    n=st.one_of(st.integers(1, 130), st.sampled_from([16, 32, 64])),
    batch=st.integers(1, 2),
    dynamic=st.booleans(),
    level=st.integers(0, 1),
    seed=st.integers(0, 10**6),
)
def test_matmul(m: int, k: int, n: int, batch: int, dynamic: bool, level: int, seed: int) -> None:
    def problem(rows: Any, outer: Any) -> Contraction:
        return contract.matmul_contraction(
            Layout.padded((outer, rows, k), [(0, 0), (0, 0), (0, seed % 3)]), n, dtypes=("uint8", "int8"),
            flat_rows=seed % 2 == 0,
        )  # fmt: skip

    row_bytes = k + seed % 3
    known, size = problem(m, batch), batch * m * row_bytes
    if not dynamic:
        check(ISAS[level % len(ISAS)], known, known, (size, size), {}, seed)
        return
    rows, outer = symbolic("rows"), symbolic("batch")
    check(
        ISAS[level % len(ISAS)], problem(rows, outer), known, (outer * rows * row_bytes, size),
        {rows: m, outer: batch}, seed,
    )  # fmt: skip


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "kernel": st.sampled_from([(1, 1), (3, 3), (3, 3), (2, 3), (5, 1), (7,), (2, 2, 2)]),
        "out": st.lists(st.integers(1, 17), min_size=3, max_size=3),
        "strides": st.lists(st.sampled_from([1, 1, 2, 3]), min_size=3, max_size=3),
        "dilations": st.lists(st.sampled_from([1, 1, 2]), min_size=3, max_size=3),
        "pads": st.lists(st.integers(0, 2), min_size=3, max_size=3),
        "extra": st.integers(0, 1),
        "batch": st.integers(1, 2),
        "groups": st.sampled_from([1, 1, 2, 3]),
        "inner": st.one_of(st.integers(4, 20), st.sampled_from([16, 32, 64, 72])),
        "outer": st.one_of(st.integers(1, 40), st.sampled_from([16, 32])),
        "flat": st.booleans(),
        "dynamic": st.booleans(),
        "level": st.integers(0, 1),
        "seed": st.integers(0, 10**6),
    }
)


@needs_vnni
@quickly(32)
@given(case=CONVOLUTIONS)
def test_convolution(case: dict[str, Any]) -> None:
    """Strides, dilations, halos; the halo's contents are part of the sum, so that padding is tested by any value."""
    rank, groups = len(case["kernel"]), case["groups"]
    strides, dilations, pads = (case[name][:rank] for name in ("strides", "dilations", "pads"))
    channels = groups * case["inner"]
    reach = [(k - 1) * d + 1 for k, d in zip(case["kernel"], dilations, strict=True)]
    halo = [(p + case["extra"], p) for p in pads]
    out = [min(o, 8) for o in case["out"][: rank - 1]] + [case["out"][rank - 1]]
    spatial = [max(1, (o - 1) * s + r - 2 * p) for o, s, r, p in zip(out, strides, reach, pads, strict=True)]
    out = [(x + 2 * p - r) // s + 1 for x, p, r, s in zip(spatial, pads, reach, strides, strict=True)]

    def problem(batch: Any) -> tuple[Contraction, Layout]:
        layout = Layout.padded((batch, *spatial, channels), [(0, 0), *halo, (0, 0)])
        return contract.conv_contraction(
            layout, (groups * case["outer"], case["inner"], *case["kernel"]), out, strides=strides, pads_begin=pads,
            dilations=dilations, groups=groups, dtypes=("uint8", "int8"), flat_rows=case["flat"],
        ), layout  # fmt: skip

    known, layout = problem(case["batch"])
    isa = ISAS[case["level"] % len(ISAS)]
    if not case["dynamic"]:
        check(isa, known, known, (layout.size, layout.size), {}, case["seed"])
        return
    batch = symbolic("batch")
    unknown, symbolic_layout = problem(batch)
    check(isa, unknown, known, (symbolic_layout.size, layout.size), {batch: case["batch"]}, case["seed"])


@needs_vnni
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("hot", ["a", "w"])
def test_every_block_shape_with_remainders(shape: tuple[int, int], hot: str) -> None:
    """Rows and channels that leave each kind of remainder, with k cut so that many partial sums wait."""
    m, n, k = 16 * (2 * shape[0] + 1) + 5, 16 * (2 * shape[1] + 1) + 3, 64 * 5
    problem = gemm(m, n, k)
    a, w, b = numbers(np.random.default_rng(1), m * k, (1, k, n), n)
    schedule = Schedule(16 * shape[0], shape[1], hot=hot, unit="amx", k_block=2, prefetch=int(hot == "w"))
    packed = contract.pack(problem, schedule, ISAS[0], w)
    got = Compiled(build(problem, schedule, ISAS[0], m * k), ISAS[0], 4).run([a, packed, b, frame(problem)[0]])[-1]
    compare(got, problem, a, w, b, str(schedule))


@needs_vnni
def test_no_rows_at_all() -> None:
    rows = symbolic("rows")
    problem = contract.matmul_contraction(Layout.dense((rows, 64)), 32, dtypes=("uint8", "int8"))
    schedule = amx_candidates(problem)[0]
    compiled = Compiled(build(problem, schedule, ISAS[0], rows * 64, [rows], bias=False), ISAS[0], 3, 1)
    mark = np.full((2, 35), MARK, "int32")
    out = compiled.run([np.zeros(0, "uint8"), np.zeros(64 * 32, "int8"), mark], [0])[-1]
    np.testing.assert_array_equal(out, mark)


class Cliff:
    """A copy of an array that begins or ends where readable memory does."""

    def __init__(self, array: np.ndarray, before: bool) -> None:
        pages = -(-array.nbytes // mmap.PAGESIZE)
        self.map = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        whole = np.frombuffer(self.map, "uint8")
        begin = mmap.PAGESIZE if before else pages * mmap.PAGESIZE - array.nbytes
        whole[begin : begin + array.nbytes] = np.frombuffer(array.tobytes(), "uint8")
        self.address = whole.ctypes.data + begin
        forbidden = whole.ctypes.data + (0 if before else pages * mmap.PAGESIZE)
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), mmap.PAGESIZE, 0) == 0


@needs_vnni
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("m", "k"), [(4, 64), (20, 80), (36, 21 * 64)])
def test_reads_nothing_around_its_operands(m: int, k: int, dynamic: bool, before: bool) -> None:
    """A violation ends the process. Prefetches may reach behind the weights: they never fault."""
    n = 48
    rows = symbolic("rows") if dynamic else m
    known = gemm(m, n, k)
    problem = gemm(rows, n, k)
    a, w, b = numbers(np.random.default_rng(k), m * k, (1, k, n), n)
    schedule = Schedule(32, 2, hot="w", unit="amx", prefetch=8)
    packed = contract.pack(problem, schedule, ISAS[0], w)
    compiled = Compiled(build(problem, schedule, ISAS[0], rows * k, [rows] * dynamic), ISAS[0], 4, int(dynamic))
    cliffs = [Cliff(array, before) for array in (a, packed, b, frame(known)[0])]
    argument, table = compiled.raw([cliff.address for cliff in cliffs], [m] * dynamic)
    compiled.function(argument)
    del table
    right = frame(known)[0]
    got = np.frombuffer((ctypes.c_char * right.nbytes).from_address(cliffs[-1].address), "int32")
    compare(got, known, a, w, b, str(schedule))


# A wrong configuration ------------------------------------------------------------------------------------------------


@needs_vnni
@pytest.mark.parametrize("rows, width", [(15, 64), (16, 60), (8, 32)])
def test_a_wrong_configuration_gives_wrong_results(monkeypatch: pytest.MonkeyPatch, rows: int, width: int) -> None:
    """The configuration is legal, only too small: nothing but the sums can show it."""
    if AMX_EMULATED not in ISAS:
        pytest.skip("no AVX-512 VNNI")
    right = contract_amx.tile_shapes
    monkeypatch.setattr(contract_amx, "tile_shapes", lambda *_: right(rows, width))
    problem = contract.matmul_contraction(Layout.dense((32, 64)), 32, dtypes=("uint8", "int8"))
    with pytest.raises(AssertionError, match=r"Mismatch|depends on what"):
        check(AMX_EMULATED, problem, problem, (32 * 64, 32 * 64), {}, 65)


# The real instructions, compiled only ---------------------------------------------------------------------------------


def assembly(problem: Contraction, schedule: Schedule, isa: Isa, size: Any, dims: Sequence[Any] = ()) -> str:
    func = build(problem, schedule, isa, size, dims, scaled=True)
    library = tvm.compile(tvm.IRModule({"contraction": func}), target=llvm_target(isa)).mod
    text = library.inspect_source("s")
    return text[text.index("\ncontraction:") : text.index("-contraction\n")]


def test_compiles_to_tile_instructions_without_calls() -> None:
    layout = Layout.padded((2, 14, 14, 72), [(0, 0), (1, 1), (1, 1), (0, 0)])
    conv = contract.conv_contraction(
        layout, (40, 72, 3, 3), (14, 14), strides=(1, 1), pads_begin=(1, 1), dilations=(1, 1), dtypes=("uint8", "int8")
    )
    rows = symbolic("rows")
    matmul = contract.matmul_contraction(Layout.dense((rows, 320)), 200, dtypes=("uint8", "int8"))
    for problem, size, dims in ((conv, layout.size, []), (matmul, rows * 320, [rows])):
        schedules = {contract.choose(problem, AMX, SAPPHIRE), *amx_candidates(problem)[::7]}
        for schedule in schedules:
            assert schedule.unit == "amx"
            text = assembly(problem, schedule, AMX, size, dims)
            for instruction in (i.name for i in amx.INSTRUCTIONS if i is not amx.TILEZERO):
                assert instruction in text
            assert text.count("ldtilecfg") == text.count("tilerelease") == 1
            assert not re.search(r"\bcallq?\b", text)


def test_inner_loop_loads_four_tiles_for_four_products() -> None:
    problem = contract.matmul_contraction(Layout.dense((256, 1024)), 1024, dtypes=("uint8", "int8"))
    text = assembly(problem, Schedule(32, 2, hot="a", unit="amx"), AMX, 256 * 1024)
    loops = re.split(r"\n\.LBB", text)
    inner = [block for block in loops if block.count("tdpbusd") == 4]
    assert len(inner) == 1
    assert inner[0].count("tileloadd\t") == 2 and inner[0].count("tileloaddt1\t") == 2
    order = re.findall(r"\ttile\w+|\ttdp\w+", inner[0])
    assert [name.strip()[:5] for name in order] == ["tilel"] * 4 + ["tdpbu"] * 4
    assert "%tmm" in inner[0] and "(%rsp" not in "".join(line for line in inner[0].splitlines() if "tdp" in line)


# Choices --------------------------------------------------------------------------------------------------------------


def test_declined_problems_run_on_vectors_and_say_why() -> None:
    dtypes = ("uint8", "int8")
    short = Contraction(*dtypes, 0, (), Axis(8, 3), (Run(0, 3), Run(24, 3)), 16)
    chosen = contract.choose(short, AMX, SAPPHIRE)
    assert chosen.unit == "vector" and "3 neighbouring" in chosen.note
    floats = contract.matmul_contraction(Layout.dense((64, 64)), 64)
    chosen = contract.choose(floats, AMX, SAPPHIRE)
    assert chosen.unit == "vector" and "float32" in chosen.note
    activations = contract.matmul_contraction(Layout.dense((64, 64)), 64, w=Layout.dense((64, 64)), dtypes=dtypes)
    assert "constant weights" in (contract_amx_plan.declines(activations) or "")
    assert Schedule.from_json(chosen.to_json()) == chosen
    vnni = isa_by_name("avx512_vnni")
    assert all(s.unit == "vector" and not s.note for s in contract.candidates(short, vnni, MACHINE))


def test_the_cost_model_knows_the_recipes() -> None:
    big = contract.choose(gemm(256, 1024, 1024), AMX, SAPPHIRE)
    assert (big.unit, big.mr, big.nr) == ("amx", 32, 2)
    assert 0.6 < amx_utilisation(gemm(256, 1024, 1024), big, AMX, SAPPHIRE) < 0.95
    deep = contract.choose(gemm(512, 768, 3072), AMX, SAPPHIRE)
    assert deep.k_block, "the hot operand does not fit L1 unless k is cut"
    layout = Layout.padded((1, 7, 7, 512), [(0, 0), (1, 1), (1, 1), (0, 0)])
    image = contract.conv_contraction(
        layout, (512, 512, 3, 3), (7, 7), strides=(1, 1), pads_begin=(1, 1), dilations=(1, 1), dtypes=("uint8", "int8")
    )
    assert contract.choose(image, AMX, SAPPHIRE).flat, "short lines fill tiles only across the halo"
    few, many = (amx_predicted_seconds(gemm(m, 1024, 1024), big, AMX, SAPPHIRE) for m in (64, 512))
    assert 4 < many / few < 12
    vector = contract.choose(gemm(1, 1024, 1024), AMX, SAPPHIRE)
    assert vector.unit == "vector" and "faster" in vector.note, "one row reads the weights at the speed of L2 anyway"


def test_steps_stay_inside_their_run() -> None:
    for length in range(4, 300):
        problem = gemm(8, 16, length)
        width, steps = contract_amx_plan.step_bytes(problem), contract_amx_plan.steps_of(problem)
        assert width % 4 == 0 and width <= 64
        covered = [k for s in steps for k in range(s.begin + s.fresh, s.begin + width)]
        assert covered == list(range(length)), length
        assert all(s.begin >= 0 for s in steps)


def test_levels_offer_tiles_only_to_machines_that_have_them() -> None:
    assert AMX in levels_of(SAPPHIRE)
    assert AMX not in levels_of(replace(SAPPHIRE, features=SAPPHIRE.features - {"amx_int8"}))
    assert AMX_EMULATED not in levels_of(SAPPHIRE)
    assert isa_by_name("amx_emulated") is AMX_EMULATED
    assert isinstance(request_amx(), bool)

"""Contraction kernels against onnxruntime, one thread each: least times, and medians of ratios in interleaved blocks.

    python bench/contract_kernels.py [--only TEXT] [--sweep N] [--blocks N] [--isa NAME]

Layers whose input and output look alike run as a chain of four with weights of their own, in both systems, so that a
peer's layout conversions at the ends of a graph count as little as they do in a model. `--sweep N` also times the N
schedules that the cost model likes best, and says how far its choice is from the fastest of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tvm.script.ir_builder import tirx as T

from dlc.hardware import this_machine
from dlc.targets.cpu.isa import Isa, isa_by_name, levels_of
from dlc.targets.cpu.kernels.builder import Operand, kernel, load
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
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

FLOAT, INTEGER = ("float32", "float32"), ("uint8", "int8")
DEPTH = 4


@dataclass(frozen=True)
class Case:
    name: str
    spatial: tuple[int, ...]  # empty for a matmul
    c_in: int
    c_out: int
    kernel: int = 1
    stride: int = 1
    rows: int = 1

    @property
    def pad(self) -> int:
        return self.kernel // 2

    @property
    def out(self) -> tuple[int, ...]:
        return tuple((s + 2 * self.pad - self.kernel) // self.stride + 1 for s in self.spatial)

    @property
    def depth(self) -> int:
        return DEPTH if self.c_in == self.c_out and self.stride == 1 else 1

    @property
    def multiplies(self) -> int:
        outputs = int(np.prod(self.out)) if self.spatial else self.rows
        return outputs * self.c_in * self.c_out * self.kernel ** len(self.spatial)


CASES = (
    Case("GEMM 256x1024x1024", (), 1024, 1024, rows=256),
    Case("GEMM 32x1024x1024", (), 1024, 1024, rows=32),
    Case("GEMV 1024^2", (), 1024, 1024, rows=1),
    Case("conv 56x56 64->64 3x3", (56, 56), 64, 64, 3),
    Case("conv 28x28 32->32 3x3", (28, 28), 32, 32, 3),
    Case("conv 14x14 64->64 3x3", (14, 14), 64, 64, 3),
    Case("conv 7x7 128->128 3x3", (7, 7), 128, 128, 3),
    Case("conv 14x14 256->256 3x3", (14, 14), 256, 256, 3),
    Case("conv 14x14 1024->256 1x1", (14, 14), 1024, 256, 1),
    Case("conv 28x28 1->32 3x3", (28, 28), 1, 32, 3),
    Case("conv 224x224 3->64 7x7 s2", (224, 224), 3, 64, 7, 2),
)


def weights_of(case: Case, integer: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (case.c_out, case.c_in, case.kernel, case.kernel) if case.spatial else (case.c_in, case.c_out)
    if integer:
        return [rng.integers(-127, 128, shape).astype("int8") for _ in range(case.depth)]
    return [(rng.standard_normal(shape) * 0.02).astype("float32") for _ in range(case.depth)]


# onnxruntime ----------------------------------------------------------------------------------------------------------


def peer(case: Case, integer: bool) -> Callable[[], Any]:
    """A chain of layers in onnxruntime with one thread, its input and output bound once."""
    nodes, constants, name = [], [], "x"

    def constant(label: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, label))
        return label

    scale = constant("scale", np.float32(0.05))
    w_scale = constant("w_scale", np.float32(0.01))
    zero = constant("zero", np.uint8(128))
    w_zero = constant("w_zero", np.int8(0))
    for i, weight in enumerate(weights_of(case, integer)):
        w = constant(f"w{i}", weight)
        b = constant(f"b{i}", np.zeros(case.c_out, "int32" if integer else "float32"))
        conv = {"kernel_shape": [case.kernel] * 2, "pads": [case.pad] * 4, "strides": [case.stride] * 2}
        quantised = [name, scale, zero, w, w_scale, w_zero, scale, zero]
        if case.spatial and integer:
            nodes.append(helper.make_node("QLinearConv", [*quantised, b], [f"y{i}"], **conv))
        elif case.spatial:
            nodes.append(helper.make_node("Conv", [name, w, b], [f"y{i}"], **conv))
        elif integer:
            nodes.append(helper.make_node("QLinearMatMul", quantised, [f"y{i}"]))
        else:
            nodes.append(helper.make_node("Gemm", [name, w, b], [f"y{i}"]))
        name = f"y{i}"
    dtype = TensorProto.UINT8 if integer else TensorProto.FLOAT
    shape = [1, case.c_in, *case.spatial] if case.spatial else [case.rows, case.c_in]
    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, dtype, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    x = np.random.default_rng(1).integers(0, 255, shape).astype("uint8" if integer else "float32")
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output(name)
    return lambda: session.run_with_iobinding(binding)


# Ours -----------------------------------------------------------------------------------------------------------------


def requantise(value: Any, scale: Operand, channel: Any, lanes: int, mask: Any) -> Any:
    """s32 -> u8: round(value * scale[channel]) + 128, clamped."""
    factors = load(scale.buffer, "float32", channel, lanes, mask)
    scaled = T.cast(value, f"float32x{lanes}") * factors
    whole = T.cast(T.call_llvm_pure_intrin(f"float32x{lanes}", "llvm.rint", scaled), f"int32x{lanes}")
    shifted = whole + T.broadcast(T.int32(128), lanes)
    bounded = T.min(T.max(shifted, T.broadcast(T.int32(0), lanes)), T.broadcast(T.int32(255), lanes))
    return T.cast(bounded, f"uint8x{lanes}")


def layouts(case: Case) -> tuple[Layout, Layout]:
    """Input and output; a chain keeps the halo that its next layer needs."""
    if not case.spatial:
        return Layout.dense((case.rows, case.c_in)), Layout.dense((case.rows, case.c_out))
    halo = [(0, 0), (case.pad, case.pad), (case.pad, case.pad), (0, 0)]
    none = [(0, 0)] * 4
    return (
        Layout.padded((1, *case.spatial, case.c_in), halo),
        Layout.padded((1, *case.out, case.c_out), halo if case.depth > 1 else none),
    )


def problem_of(case: Case, integer: bool) -> Contraction:
    dtypes = INTEGER if integer else FLOAT
    x, y = layouts(case)
    if not case.spatial:
        return matmul_contraction(x, case.c_out, dtypes=dtypes)
    return conv_contraction(
        x,
        (case.c_out, case.c_in, case.kernel, case.kernel),
        case.out,
        strides=(case.stride,) * 2,
        pads_begin=(case.pad,) * 2,
        dilations=(1, 1),
        dtypes=dtypes,
        flat_rows=y.is_dense,
    )


def compiled(case: Case, integer: bool, schedule: Schedule, isa: Isa) -> Compiled:
    problem = problem_of(case, integer)
    x, y = layouts(case)
    a_dtype = (INTEGER if integer else FLOAT)[0]
    # A flat row is looked up in the dense output; without one, the outer loops are (n, oh).
    out = Layout.dense((problem.rows.extent, case.c_out)) if not problem.outer else y
    packed = pack(problem, schedule, isa, _matrix(case, weights_of(case, integer)[0]))
    operands = [
        ("a", a_dtype, x),
        ("w", str(packed.dtype), Layout.dense(packed.shape)),
        ("b", problem.acc_dtype, Layout.dense((case.c_out,))),
        ("s", "float32", Layout.dense((case.c_out,))),
        ("o", a_dtype, out),
    ]
    with kernel("contract", operands) as built:
        a, w, b, s, o = built.operands

        def write(outer: Any, row: Any, channel: Any, value: Any, lanes: int, mask: Any) -> None:
            if integer:
                value = requantise(value, s, channel, lanes, mask)
            o.store((*outer, row, channel), value, lanes, mask)

        emit(problem, schedule, isa, a, w, b, write)
    return Compiled(built.func, isa, 5)


def _matrix(case: Case, weight: np.ndarray) -> np.ndarray:
    return conv_weight(weight) if case.spatial else weight[None]


def ours(case: Case, integer: bool, schedule: Schedule, isa: Isa) -> Callable[[], Any]:
    """The same chain: one call per layer, two buffers in turn."""
    built, problem = compiled(case, integer, schedule, isa), problem_of(case, integer)
    x, y = layouts(case)
    dtype = "uint8" if integer else "float32"
    rng = np.random.default_rng(1)
    buffers = [aligned(rng.integers(0, 255, x.size).astype(dtype)), aligned(np.zeros(y.size, dtype))]
    bias, scale = aligned(np.zeros(case.c_out, problem.acc_dtype)), aligned(np.full(case.c_out, 1e-3, "float32"))
    arguments, keep = [], []
    for i, weight in enumerate(weights_of(case, integer)):
        packed = aligned(pack(problem, schedule, isa, _matrix(case, weight)))
        argument, table = built.raw([v.ctypes.data for v in (buffers[i % 2], packed, bias, scale, buffers[1 - i % 2])])
        arguments.append(argument)
        keep.append((packed, table))
    function = built.function

    def call() -> Any:
        for argument in arguments:
            function(argument)
        return keep, buffers, bias, scale

    return call


def aligned(array: np.ndarray) -> np.ndarray:
    memory = np.empty(array.nbytes + 64, "uint8")
    start = -memory.ctypes.data % 64
    view = memory[start : start + array.nbytes].view(array.dtype)
    view[:] = array.reshape(-1)
    return view


# Measuring ------------------------------------------------------------------------------------------------------------


def interleaved(calls: list[Callable[[], Any]], blocks: int, seconds: float = 0.004) -> list[list[float]]:
    """Seconds of the process per call of every contestant in every block, contestants in turn.

    CPU time: another process that takes the core for a while is not counted (what it does to the caches is).
    """
    repeats = []
    for call in calls:
        call()
        start = time.process_time()
        call()
        repeats.append(max(1, int(seconds / max(time.process_time() - start, 1e-7))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(blocks):
        for i, call in enumerate(calls):
            start = time.process_time()
            for _ in range(repeats[i]):
                call()
            times[i].append((time.process_time() - start) / repeats[i])
    return times


def report(case: Case, integer: bool, isa: Isa, sweep: int, blocks: int) -> None:
    machine, problem = this_machine(), problem_of(case, integer)
    chosen = choose(problem, isa, machine)
    calls = [peer(case, integer), ours(case, integer, chosen, isa)]
    theirs, mine = interleaved(calls, blocks)
    ratio = statistics.median(t / m for t, m in zip(theirs, mine, strict=True))
    per_layer, peer_layer = min(mine) / case.depth, min(theirs) / case.depth
    print(
        f"{case.name:26s} {'int8' if integer else 'fp32'} {per_layer * 1e6:9.1f} us"
        f" {2 * case.multiplies / per_layer / 1e9:7.0f} GOP/s  onnxruntime {peer_layer * 1e6:9.1f} us"
        f"  ratio {ratio:5.2f}"
        f"  {chosen.unit} {chosen.mr}x{chosen.nr}/{chosen.mo} b{chosen.block} {chosen.hot} u{chosen.unroll}",
        flush=True,
    )
    if sweep:
        compare(case, integer, isa, sweep, blocks)


def compare(case: Case, integer: bool, isa: Isa, count: int, blocks: int) -> None:
    """Time the `count` schedules that the model likes best; the least time of each, as noise only ever adds."""
    machine, problem = this_machine(), problem_of(case, integer)
    guesses = {s: predicted_seconds(problem, s, isa, machine) for s in candidates(problem, isa, machine)}
    ranked = sorted(guesses, key=lambda s: guesses[s])[:count]
    times = interleaved([ours(case, integer, s, isa) for s in ranked], blocks, 0.002)
    fastest = {s: min(t) / case.depth for s, t in zip(ranked, times, strict=True)}
    for s in sorted(fastest, key=lambda s: fastest[s])[:6]:
        label = f"{s.unit} {s.mr}x{s.nr}/{s.mo} b{s.block} {s.hot} u{s.unroll}"
        print(f"      {fastest[s] * 1e6:9.1f} us  predicted {guesses[s] * 1e6:9.1f}  {label}")
    behind = fastest[ranked[0]] / min(fastest.values()) - 1
    print(f"      the choice is {100 * behind:.0f} % behind the best of {len(ranked)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--sweep", type=int, default=0)
    parser.add_argument("--blocks", type=int, default=21)
    parser.add_argument("--isa", default="", help="an instruction set below the machine's best vector level")
    arguments = parser.parse_args()
    levels = [level for level in levels_of(this_machine()) if level.dot != "amx"]
    isa = isa_by_name(arguments.isa) if arguments.isa else levels[0]
    print(this_machine().model, isa.name)
    for integer in (False, True):
        for case in CASES:
            if arguments.only in f"{case.name} {'int8' if integer else 'fp32'}":
                report(case, integer, isa, arguments.sweep, arguments.blocks)


if __name__ == "__main__":
    main()

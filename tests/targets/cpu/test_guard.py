"""No kernel reads or writes outside its tensors: a model of each family, whole packages, every tensor guarded.

Kernels alone are held to the same by all tests that use `dlc.targets.cpu.kernels.testing`. Here each family runs on one
instruction set; with ``DLC_GUARD=1`` on all that the machine has, and so does every other test of the CPU target.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from tvm.script.ir_builder import tirx as T

import dlc
from dlc.targets.cpu.isa import GENERIC, isa_by_name
from dlc.targets.cpu.kernels.builder import kernel, positions, splat, stack, symbolic, tail_mask
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.cpu.kernels.testing_memory import FaultError, Room, apart, hold
from dlc.targets.layout import Layout
from dlc.zoo.ngram import hashed
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.smoothing import kneser_ney
from tests import experts
from tests.fuzz.generate import generate
from tests.guard import LEVELS, GuardedExecutable, guarded
from tests.property.graphs import inputs_of, quantizable_models
from tests.stack import held_to_the_stack, stack_held

EVERYWHERE = bool(os.environ.get("DLC_GUARD"))
HEAD = '<ir_version: 8, opset_import: ["" : 18]>\n'
INT8 = {"quantize": "int8", "calibration": "random"}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """A model in ONNX's text form, or what makes one; shapes of its weights and of its inputs, in one or more sizes."""

    text: str | Callable[[], Any]
    weights: Mapping[str, Shape] = field(default_factory=dict)
    feeds: tuple[Mapping[str, Shape], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    largest: int = 5  # of integers in inputs


def _ngrams() -> Any:
    words = np.random.default_rng(7).integers(0, 12, 2000).astype(np.int32)
    return hashed.build(kneser_ney(count([words], 12, 3)))


CONVOLUTIONS = """g (float[n, 5, 9, 11] x) => (float[n, 7, h, v] y, float[n, 5, i, u] d, float[n, 6, j, t] z) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, w, b)
    r = Relu (a)
    y = Conv <pads = [2, 0, 1, 3], dilations = [2, 1]> (r, w2)
    d = Conv <group = 5, pads = [1, 1, 1, 1]> (x, w3)
    p = Conv (x, w4)
    z = Conv <group = 3> (p, w5) }"""
CONVOLUTION_WEIGHTS = {
    "w": (7, 5, 3, 3), "b": (7,), "w2": (7, 7, 3, 2), "w3": (5, 1, 3, 3), "w4": (6, 5, 1, 1), "w5": (6, 2, 3, 3),
}  # fmt: skip
IMAGES = ({"x": (1, 5, 9, 11)}, {"x": (3, 5, 9, 11)})
MATMUL = "g (float[m, 67] x) => (float[m, 37] y) { p = MatMul (x, w)\n s = Add (p, b)\n y = Relu (s) }"
MATMUL_WEIGHTS: dict[str, Shape] = {"w": (67, 37), "b": (37,)}
ROWS = ({"x": (1, 67)}, {"x": (19, 67)})

FAMILIES: dict[str, Family] = {
    "matmul": Family(MATMUL, MATMUL_WEIGHTS, ROWS),
    "int8 matmul": Family(MATMUL, MATMUL_WEIGHTS, ROWS, INT8),
    "int8 matmul, scales at run time": Family(MATMUL, MATMUL_WEIGHTS, ROWS, {"quantize": "int8-dynamic"}),
    "bf16 matmul": Family(
        "g (float[m, 167] x) => (float[m, 53] y) { p = MatMul (x, w)\n s = Add (p, b)\n y = Relu (s) }",
        {"w": (167, 53), "b": (53,)}, ({"x": (1, 167)}, {"x": (19, 167)}), {"quantize": "bf16"},
    ),
    "bf16 convolutions": Family(
        """g (float[n, 25, 5, 9] x) => (float[n, 37, h, v] y, float[n, 38, i, u] z) {
            a = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, w)
            y = Relu (a)
            z = Conv <pads = [2, 0, 1, 3], dilations = [2, 1]> (y, w2) }""",
        {"w": (37, 25, 3, 3), "w2": (38, 37, 3, 2)}, ({"x": (1, 25, 5, 9)}, {"x": (3, 25, 5, 9)}),
        {"quantize": "bf16"},
    ),
    "int4 matmul": Family(
        "g (float[m, 64] x) => (float[m, 41] y) { y = MatMul (x, w) }", {"w": (64, 41)},
        ({"x": (1, 64)}, {"x": (5, 64)}), {"quantize": "int4"},
    ),
    "matmul of known extents": Family(
        "g (float[13, 45] x) => (float[13, 21] y) { y = MatMul (x, w) }", {"w": (45, 21)}, ({"x": (13, 45)},),
    ),
    "row times matrix": Family(
        "g (float[1, 129] x) => (float[1, 45] y) { y = MatMul (x, w) }", {"w": (129, 45)}, ({"x": (1, 129)},),
    ),
    "batched matmul": Family(
        "g (float[b, 3, m, k] x, float[b, 3, k, n] z) => (float[b, 3, m, n] y) { y = MatMul (x, z) }", {},
        ({"x": (2, 3, 5, 9), "z": (2, 3, 9, 13)}, {"x": (1, 3, 1, 33), "z": (1, 3, 33, 1)}),
    ),
    "experts": Family(
        lambda: experts.model(experts=5, inputs=19, hidden=23, outputs=13), {}, ({"x": (1, 19)}, {"x": (11, 19)}),
    ),
    "int8 experts": Family(
        lambda: experts.model(experts=5, inputs=19, hidden=23, outputs=13), {}, ({"x": (7, 19)},),
        {"quantize": "int8-dynamic"},
    ),
    "int4 experts": Family(
        lambda: experts.model(experts=5, inputs=32, hidden=64, outputs=13), {}, ({"x": (7, 32)},), {"quantize": "int4"},
    ),
    "convolutions": Family(CONVOLUTIONS, CONVOLUTION_WEIGHTS, IMAGES),
    "int8 convolutions": Family(CONVOLUTIONS, CONVOLUTION_WEIGHTS, IMAGES, INT8),
    "Winograd": Family(
        "g (float[n, 16, 7, 9] x) => (float[n, 21, 7, 9] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
        {"w": (21, 16, 3, 3)}, ({"x": (1, 16, 7, 9)}, {"x": (3, 16, 7, 9)}), INT8,
    ),
    "Winograd in floats": Family(
        """g (float[n, 16, 15, 17] x) => (float[n, 21, 15, 17] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            s = Sigmoid (c)
            y = Add (c, s) }""",
        {"w": (21, 16, 3, 3)}, ({"x": (1, 16, 15, 17)}, {"x": (3, 16, 15, 17)}),
    ),
    "convolutions in 1 and 3 dimensions": Family(
        """g (float[n, 3, t] x, float[2, 3, 4, 5, 6] v) => (float[n, 5, u] y, float[2, 9, a, b, c] z) {
            y = Conv <pads = [2, 0], dilations = [2]> (x, w)
            z = Conv <pads = [1, 0, 1, 0, 1, 0], strides = [1, 2, 1]> (v, k) }""",
        {"w": (5, 3, 2), "k": (9, 3, 2, 3, 2)},
        ({"x": (2, 3, 13), "v": (2, 3, 4, 5, 6)}, {"x": (1, 3, 1), "v": (2, 3, 4, 5, 6)}),
    ),
    "transposed convolutions": Family(
        """g (float[n, 4, 5, 3] x) => (float[n, 3, a, b] y, float[n, 6, c, d] z) {
            y = ConvTranspose <strides = [2, 3], pads = [1, 0, 0, 1]> (x, w)
            z = ConvTranspose <group = 2, dilations = [2, 1]> (x, v) }""",
        {"w": (4, 3, 3, 2), "v": (4, 3, 2, 3)}, ({"x": (1, 4, 5, 3)}, {"x": (3, 4, 5, 3)}),
    ),
    "attention": Family(
        """g (float[b, 2, q, 5] x, float[b, 2, k, 5] z, float[b, 2, k, 7] v, float[q, k] m) => (float[b, 2, q, 7] y) {
            t = Transpose <perm = [0, 1, 3, 2]> (z)
            s = MatMul (x, t)
            h = Add (s, m)
            p = Softmax <axis = -1> (h)
            y = MatMul (p, v) }""", {},
        ({"x": (2, 2, 9, 5), "z": (2, 2, 19, 5), "v": (2, 2, 19, 7), "m": (9, 19)},
         {"x": (1, 2, 1, 5), "z": (1, 2, 1, 5), "v": (1, 2, 1, 7), "m": (1, 1)}),
    ),
    "pools": Family(
        """g (float[n, 5, 9, 7] x) => (float[n, 5, a, b] m, float[n, 5, c, d] v, float[n, 5, 1, 1] g) {
            m = MaxPool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1]> (x)
            v = AveragePool <kernel_shape = [2, 3], pads = [1, 1, 0, 1], ceil_mode = 1, strides = [2, 2]> (x)
            g = GlobalAveragePool (x) }""", {}, ({"x": (1, 5, 9, 7)}, {"x": (2, 5, 9, 7)}),
    ),
    "reductions and normalisations": Family(
        """g (float[a, b, 19] x) => (float[a, b] s, float[b, 19] m, float[a, b, 19] p, float[a, b, 19] l,
                                     float[a, b, 19] q) {
            last = Constant <value_ints = [-1]> ()
            first = Constant <value_ints = [0]> ()
            s = ReduceSum <keepdims = 0> (x, last)
            m = ReduceMax <keepdims = 0> (x, first)
            p = Softmax <axis = 1> (x)
            q = Softmax <axis = -1> (x)
            l = LayerNormalization (x, w, c) }""",
        {"w": (19,), "c": (19,)}, ({"x": (3, 5, 19)}, {"x": (1, 1, 19)}),
    ),
    "gathers": Family(
        """g (int64[n, t] i, float[n, 7, 9] x) => (float[n, t, 13] e, float[n, t, 9] r, float[n, t, 9] f) {
            e = Gather (table, i)
            k = Unsqueeze (i, two)
            z = Expand (k, wide)
            r = GatherElements <axis = 1> (x, z)
            f = GatherND <batch_dims = 1> (x, k) }""",
        {"table": (6, 13)}, ({"i": (2, 3), "x": (2, 7, 9)}, {"i": (1, 1), "x": (1, 7, 9)}),
    ),
    "elementwise": Family(
        """g (float[a, 1, c] x, float[a, b, 1] z, int64[a] k) => (float[a, b, c] y, uint8[a] t, float16[a, b, 1] h) {
            s = Add (x, z)
            e = Erf (s)
            m = Mul (e, s)
            f = Floor (m)
            l = Less (m, f)
            y = Where (l, m, f)
            h = Cast <to = 10> (z)
            t = Cast <to = 2> (k) }""",
        {}, ({"x": (3, 1, 19), "z": (3, 5, 1), "k": (3,)}, {"x": (1, 1, 1), "z": (1, 1, 1), "k": (1,)}),
    ),
    "quantised values": Family(
        """g (float[n, 13] x) => (float[n, 13] y, uint8[n, 13] d, float u, uint8 v) {
            q = QuantizeLinear (x, scale, zero)
            y = DequantizeLinear (q, scale, zero)
            d, u, v = DynamicQuantizeLinear (x) }""", {}, ({"x": (3, 13)}, {"x": (1, 13)}),
    ),
    "movement": Family(
        """g (float[a, 7, c] x, float[a, 7, d] z) => (float[a, s, 9] y, float[c, 7, a] t, float[a, 7, r] w) {
            j = Concat <axis = -1> (x, z)
            t = Transpose <perm = [2, 1, 0]> (x)
            w = Slice (j, one, most, two, step)
            p = Pad <mode = "reflect"> (x, pads)
            f = Transpose <perm = [0, 2, 1]> (p)
            y = Pad (f, more) }""", {},
        ({"x": (3, 7, 5), "z": (3, 7, 11)}, {"x": (1, 7, 4), "z": (1, 7, 1)}),
    ),
    "sorts, scans and scatters": Family(
        """g (float[a, 11] x, int64[a, 3] i) => (float[a, 3] y, int64[a, 3] k, float[a, 11] c, float[a, 11] s,
                                                  int64[a] m) {
            three = Constant <value_ints = [3]> ()
            last = Constant <value_int = -1> ()
            y, k = TopK (x, three)
            c = CumSum (x, last)
            s = ScatterElements <axis = 1> (x, i, y)
            m = ArgMax <axis = 1, keepdims = 0> (x) }""", {},
        ({"x": (3, 11), "i": (3, 3)}, {"x": (1, 11), "i": (1, 3)}),
    ),
    "resampling": Family(
        """g (float[n, 3, 5, 7] x) => (float[n, 3, 10, 21] y, float[n, 3, 4, 9] z) {
            y = Resize <mode = "nearest"> (x, none, up)
            z = Resize <mode = "cubic"> (x, , , size) }""",
        {}, ({"x": (1, 3, 5, 7)}, {"x": (2, 3, 5, 7)}),
    ),
    "recurrences": Family(
        """g (float[t, n, 5] x) => (float[t, 2, n, 7] y, float[t, 1, n, 6] z) {
            y, h, c = LSTM <hidden_size = 7, direction = "bidirectional"> (x, w, r)
            z, g = GRU <hidden_size = 6> (x, v, s) }""",
        {"w": (2, 28, 5), "r": (2, 28, 7), "v": (1, 18, 5), "s": (1, 18, 6)}, ({"x": (4, 3, 5)}, {"x": (1, 1, 5)}),
    ),
    "n-grams": Family(_ngrams, {}, ({"tokens": (70, 3)}, {"tokens": (1, 3)}), largest=11),
}  # fmt: skip
CONSTANTS = {
    "quantised values": {"scale": np.float32(0.1), "zero": np.uint8(9)},
    "gathers": {"two": np.array([2]), "wide": np.array([1, 1, 9])},
    "movement": {
        "one": np.array([1]), "most": np.array([1 << 40]), "two": np.array([2]), "step": np.array([3]),
        "pads": np.array([0, 0, 2, 0, 0, 3]), "more": np.array([0, 1, 0, 0, 2, 2]),
    },
    "resampling": {
        "none": np.zeros(0, np.float32), "up": np.array([1, 1, 2, 3], np.float32), "size": np.array([1, 3, 4, 9]),
    },
}  # fmt: skip


def _model(name: str) -> Any:
    family = FAMILIES[name]
    if not isinstance(family.text, str):
        return family.text()
    model, rng = parser.parse_model(HEAD + family.text), np.random.default_rng(5)
    arrays: dict[str, Any] = {n: rng.normal(0, 0.4, s).astype(np.float32) for n, s in family.weights.items()}
    arrays |= CONSTANTS.get(name, {})
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    return model


def _feed(session: dlc.Session, shapes: Mapping[str, Shape], largest: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    made = {}
    for info in session.inputs:
        shape = shapes.get(info.name, next(iter(shapes.values())))
        whole = np.dtype(info.dtype).kind in "iu"
        made[info.name] = (rng.integers(0, largest + 1, shape) if whole else rng.standard_normal(shape)).astype(
            info.dtype
        )
    return made


def _levels(name: str) -> list[str]:
    chosen = {LEVELS[zlib.crc32(name.encode()) % len(LEVELS)]}
    if name.startswith("bf16"):  # where a level multiplies bfloat16, its kernels are others
        chosen |= {"avx512_bf16"} & set(LEVELS)
    return LEVELS if EVERYWHERE else sorted(chosen)


@pytest.mark.parametrize(("name", "level"), [(n, level) for n in FAMILIES for level in _levels(n)])
def test_family(name: str, level: str) -> None:
    family = FAMILIES[name]
    with guarded():
        session = dlc.load(dlc.compile(_model(name), f"cpu:{level}", **family.options))
    before = GuardedExecutable.runs
    for shapes in family.feeds:
        session.run(_feed(session, shapes, family.largest))
    assert GuardedExecutable.runs >= before + len(family.feeds)


@pytest.mark.parametrize("name", FAMILIES if EVERYWHERE else ["attention", "Winograd", "Winograd in floats"])
@pytest.mark.parametrize("level", LEVELS if EVERYWHERE else ["avx2"])
def test_family_stays_on_its_stack(name: str, level: str) -> None:
    family = FAMILIES[name]
    with guarded(), stack_held():
        session = dlc.load(dlc.compile(_model(name), f"cpu:{level}", **family.options))
    for shapes in family.feeds:
        session.run(_feed(session, shapes, family.largest))


@pytest.mark.parametrize("seed", range(60 if EVERYWHERE else 2))
def test_random_graph(seed: int) -> None:
    case = generate(seed)
    with guarded():
        session = dlc.load(dlc.compile(case.model, f"cpu:{LEVELS[seed % len(LEVELS)]}"))
    session.run(case.inputs)


@settings(
    max_examples=40 if EVERYWHERE else 3, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(drawn=quantizable_models(), level=st.sampled_from(LEVELS))
def test_random_integer_network(drawn: tuple[Any, int], level: str) -> None:
    model, seed = drawn
    x = inputs_of(model, seed)
    with guarded():
        session = dlc.load(dlc.compile(model, f"cpu:{level}", quantize="int8", calibration={"x": x[None]}))
    session.run({"x": x})


def test_a_stream_keeps_its_states() -> None:
    text = """g (float[n, t, 5] x) => (float[n, t, 7] y) {
        s = Transpose <perm = [1, 0, 2]> (x)
        h, l = GRU <hidden_size = 7> (s, w, r)
        q = Squeeze (h, one)
        y = Transpose <perm = [1, 0, 2]> (q) }"""
    model, rng = parser.parse_model(HEAD + text), np.random.default_rng(5)
    arrays = {"w": rng.random((1, 21, 5), np.float32), "r": rng.random((1, 21, 7), np.float32), "one": np.array([1])}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    x = rng.random((2, 11, 5), np.float32)
    with guarded():
        session = dlc.load(dlc.compile(model, f"cpu:{LEVELS[0]}", stream=True))
        stream = session.stream()
    parts = [stream.run({"x": piece})["y"] for piece in np.split(x, [1, 4], 1)]
    np.testing.assert_allclose(np.concatenate(parts, 1), session.run({"x": x})["y"], rtol=1e-5, atol=1e-6)


# --- the guard can find something -----------------------------------------------------------------------------------


def _moved(size: int, shift: int, lanes: int) -> Compiled:
    """A kernel that copies `size` floats, from `shift` elements on."""
    layout = Layout.dense((size,))
    with kernel("moved", [("a", "float32", layout), ("o", "float32", layout)]) as built:
        a, o = built.operands
        with T.serial(T.int64(0), T.int64(size // lanes)) as i:
            o.store((i * lanes,), a.load((i * lanes + shift,), lanes), lanes)
    return Compiled(built.func, GENERIC, 2)


def test_a_kernel_inside_its_operands_passes() -> None:
    x = np.arange(12, dtype=np.float32)
    np.testing.assert_array_equal(_moved(12, 0, 4).run([x, np.zeros_like(x)])[1], x)


@pytest.mark.parametrize(
    ("shift", "sizes", "text"),
    [
        (1, (12, 12), "it faults at byte 48 of operand 0, which has 48"),
        (-1, (12, 12), "it faults at byte -4 of operand 0, which has 48"),
        (0, (11, 12), "it faults at byte 44 of operand 0, which has 44"),
        (0, (12, 11), "it faults at byte 44 of operand 1, which has 44"),
        (0, (12, 0), r"it faults at byte \d+ of operand 1, which has 0"),
    ],
)
def test_an_access_outside_is_named(
    shift: int, sizes: tuple[int, int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Compiled, "alone", True)
    with pytest.raises(AssertionError, match=text):
        _moved(12, shift, 1).run([np.zeros(size, np.float32) for size in sizes])


def test_a_result_that_depends_on_what_is_around_is_found() -> None:
    layout = Layout.dense((3,))
    with kernel("partial", [("o", "float32", layout)]) as built:
        built.operands[0].store((T.int64(1),), T.float32(1))
    rooms = [Room(12, at_end, fill) for at_end, fill in ((True, 1), (False, 2))]
    compiled = Compiled(built.func, GENERIC, 1)
    for room in rooms:
        argument, table = compiled.raw([room.address])
        hold(lambda argument=argument: compiled.function(argument), {"o": room})  # type: ignore[misc]
        assert table.size
    assert rooms[0].bytes.tobytes() != rooms[1].bytes.tobytes()
    assert rooms[0].bytes[4:8].tobytes() == rooms[1].bytes[4:8].tobytes() == np.float32(1).tobytes()


@pytest.mark.parametrize("at_end", [True, False])
def test_bytes_around_a_buffer_are_looked_at(at_end: bool) -> None:
    room = Room(100, at_end, 7)
    place = room.address - 3 if at_end else room.address + 97
    with pytest.raises(AssertionError, match="3 bytes written outside of x, which has 100"):
        hold(lambda: ctypes.memset(place, 0, 6), {"x": room})


def test_what_may_not_be_written_is_read_only() -> None:
    room = Room(8, True, 7, np.arange(1), writable=False)
    with pytest.raises(AssertionError, match="it faults at byte 4 of x, which has 8"):
        hold(lambda: ctypes.memset(room.address + 4, 0, 1), {"x": room})


def test_other_ends_of_the_child_are_told() -> None:
    with pytest.raises(FaultError, match="it dies of SIGABRT"):
        apart(os.abort)
    with pytest.raises(FaultError, match="it raises an exception"):
        apart(lambda: 1 // 0)
    with pytest.raises(AssertionError, match="at address 0x10, which is in no buffer"):
        hold(lambda: ctypes.memset(16, 0, 1), {})


def test_a_value_that_is_planned_too_small_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import guard

    model = parser.parse_model(
        HEAD + "g (float[n, 9] x) => (float[n] y) { a = Softmax (x)\n y = ReduceMax <keepdims = 0> (a, l) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "l"))
    real = guard._scattered

    def shortened(program: Any) -> Any:
        program.buffers = {name: size - 1 for name, size in program.buffers.items()}
        return real(program)

    monkeypatch.setattr(guard, "_scattered", shortened)
    with guarded():
        session = dlc.load(dlc.compile(model, f"cpu:{LEVELS[0]}"))
    with pytest.raises(
        AssertionError, match=r"it faults at byte 107 of a, which has 107; call 0, reduction .*, node a"
    ):
        session.run({"x": np.zeros((3, 9), np.float32)})


@pytest.mark.parametrize(("begin", "lanes"), [(6, 1), (3, 4), (0, 1)])
def test_an_access_outside_of_the_stack_ends_the_process(
    begin: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Compiled, "alone", True)
    n = symbolic("n")
    with kernel("stacked", [("o", "float32", Layout.dense((1,)))], [n]) as built:
        place = stack("float32", 5)
        T.buffer_store(place, splat(T.float32(1), lanes), [positions(n - 1, lanes)])
        built.operands[0].store((T.int64(0),), T.float32(2))
    compiled = Compiled(held_to_the_stack(built.func), GENERIC, 1, 1)
    compiled.run([np.zeros(1, np.float32)], [6 - lanes])
    with pytest.raises(AssertionError, match="it dies of SIGABRT"):
        compiled.run([np.zeros(1, np.float32)], [begin])


def test_a_known_position_outside_of_the_stack_is_refused() -> None:
    with kernel("stacked", [("o", "float32", Layout.dense((1,)))]) as built:
        place = stack("float32", 5)
        built.operands[0].store((T.int64(0),), place[5])
    with pytest.raises(AssertionError, match="5 of 5 elements on the stack"):
        held_to_the_stack(built.func)


# --- what it found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1, 5, 15])
def test_a_masked_load_reads_no_lane_without_mask(level: str, size: int) -> None:
    n, isa = symbolic("n"), isa_by_name(level)
    layout = Layout.dense((n,))
    with kernel("ragged", [("a", "float32", layout), ("o", "float32", layout)], [n]) as built:
        a, o = built.operands
        mask = tail_mask(n, 16)
        o.store((T.int64(0),), a.load((T.int64(0),), 16, mask), 16, mask)
    x = np.arange(size, dtype=np.float32)
    np.testing.assert_array_equal(Compiled(built.func, isa, 2, 1).run([x, np.zeros_like(x)], [size])[1], x)

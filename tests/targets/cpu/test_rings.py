"""Large carried states: rows updated in place, shift registers as ring buffers; equal to onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.explain import read
from dlc.targets.cpu.target import best_level

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
ISA = best_level().name
ROW = (2, 3)  # what a state holds one of a step


def value(name: str, kind: int = FLOAT, shape: Sequence[int | str] = ()) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


class Body:
    """A loop's body under construction: nodes, constants, and states with their new values."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.states: dict[str, tuple[np.ndarray, str]] = {}
        self.results: dict[str, tuple[int, ...]] = {}

    def ints(self, *numbers: int) -> str:
        name = "n" + "_".join(str(n).replace("-", "m") for n in numbers)
        self.constants[name] = np.array(numbers, np.int64)
        return name

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"v{len(self.nodes)}"], **attrs))
        return self.nodes[-1].output[0]

    def slice(self, x: str, axis: int, begin: int, end: int, step: int = 1) -> str:
        return self.op("Slice", x, self.ints(begin), self.ints(end), self.ints(axis), self.ints(step))

    def at(self, period: int, shift: int = 0) -> str:
        """(iteration + shift) mod period, a vector of one."""
        moved = self.op("Add", "i", self.ints(shift)) if shift else "i"
        return self.op("Mod", moved, self.ints(period))

    def model(self, trips: int, steps: int = 16) -> Any:
        """Inputs: the states' first values, and `xs`, of which an iteration reads ``x``."""
        nodes = [
            helper.make_node("Gather", ["xs", "i"], ["x"]), *self.nodes,
            helper.make_node("Identity", ["going"], ["goes"]),
        ]  # fmt: skip
        kept = {name: start for name, (start, _) in self.states.items()}
        graph = helper.make_graph(
            nodes, "body",
            [value("i", INT64), value("going", BOOL), *(value(n, FLOAT, s.shape) for n, s in kept.items())],
            [value("goes", BOOL), *(value(new, FLOAT, start.shape) for start, new in self.states.values()),
             *(value(name, FLOAT, shape) for name, shape in self.results.items())],
        )  # fmt: skip
        outputs = [f"{n}_end" for n in kept] + [f"{n}_all" for n in self.results]
        loop = helper.make_node("Loop", ["trips", "", *(f"{n}_0" for n in kept)], outputs, "loop", body=graph)
        main = helper.make_graph(
            [loop], "g",
            [value("xs", FLOAT, [steps, *ROW]), *(value(f"{n}_0", FLOAT, s.shape) for n, s in kept.items())],
            [value(f"{n}_end", FLOAT, s.shape) for n, s in kept.items()]
            + [value(f"{n}_all", FLOAT, [trips, *s]) for n, s in self.results.items()],
            [numpy_helper.from_array(a, n) for n, a in {**self.constants, "trips": np.array(trips)}.items()],
        )  # fmt: skip
        return helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def feed(self, steps: int = 16) -> dict[str, np.ndarray]:
        xs = np.random.default_rng(1).standard_normal((steps, *ROW)).astype(np.float32)
        return {"xs": xs, **{f"{n}_0": start for n, (start, _) in self.states.items()}}


def check(body: Body, trips: int) -> dlc.Package:
    """Compile, run twice, compare with onnxruntime."""
    model, feed = body.model(trips), body.feed()
    package = dlc.compile(model, target="cpu")
    session = dlc.load(package)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    judge = onnxruntime.InferenceSession(model.SerializeToString(), options)
    wanted = dict(zip((o.name for o in judge.get_outputs()), judge.run(None, feed), strict=True))
    assert session.run(feed).keys() == wanted.keys()
    for _ in range(2):
        for name, got in session.run(feed).items():
            np.testing.assert_allclose(got, wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert package.manifest["runtime"] == "dlc.targets.cpu.runtime"
    return package


def kernels(package: dlc.Package) -> list[str]:
    return [row["kernel"] for row in read(package).nodes]


def updates(package: dlc.Package) -> list[str]:
    """The kernels that write rows, in order."""
    return [kernel for kernel in kernels(package) if "row" in kernel]


def declined(package: dlc.Package, name: str) -> list[str]:
    return [row["reason"] for row in read(package).declined if row["pass"] == name]


def start_of(shape: Sequence[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- shift registers -------------------------------------------------------------------------------------------------

REGISTERS = st.fixed_dictionaries(
    {
        "depth": st.integers(1, 6), "axis": st.integers(0, 2), "spelling": st.sampled_from(["slice", "concat"]),
        "taps": st.lists(
            st.tuples(st.sampled_from(["state", "window", "new"]), st.sampled_from(["slice", "take", "many"]),
                      st.integers(0, 9)),
            min_size=1, max_size=3,
        ),
        "feeds_back": st.booleans(),
    }
)  # fmt: skip


def add_register(body: Body, case: dict[str, Any], number: int, x: str) -> str:
    """A shift register with its taps; returns their sum, of a row's shape."""
    depth, axis, name = case["depth"], case["axis"], f"s{number}"
    shape = (*ROW[:axis], depth, *ROW[axis:])
    row = body.op("Unsqueeze", x, body.ints(axis))
    window = body.op("Concat", name, row, axis=axis)
    if case["spelling"] == "slice":
        new = body.slice(window, axis, 1, depth + 1)
    else:
        new = body.op("Concat", body.slice(name, axis, 1, depth), row, axis=axis)
    total = x
    for source, kind, position in case["taps"]:
        tensor = {"state": name, "window": window, "new": new}[source]
        extent = depth + (source == "window")
        at = position % extent
        if kind == "take":
            tap = body.op("Gather", tensor, body.ints(at), axis=axis)
        elif kind == "slice":
            tap = body.slice(tensor, axis, at, at + 1)
        else:
            tap = body.slice(tensor, axis, at, extent, 1 + position % 2)
        total = body.op("Add", total, body.op("ReduceSum", tap, body.ints(axis), keepdims=0))
    body.states[name] = (start_of(shape, number), new)
    return total


@settings(max_examples=14, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.lists(REGISTERS, min_size=1, max_size=3), st.integers(0, 14))
def test_shift_registers(cases: list[dict[str, Any]], trips: int) -> None:
    body, x = Body(), "x"
    for number, case in enumerate(cases):
        total = add_register(body, case, number, x)
        x = body.op("Tanh", total) if case["feeds_back"] else x
    y = body.op("Tanh", body.op("Add", x, total))
    body.results |= {y: ROW}
    check(body, trips)


def register(taps: Sequence[tuple[str, str, int]], depth: int = 5, axis: int = 1, spelling: str = "slice") -> Body:
    body = Body()
    case = {"depth": depth, "axis": axis, "spelling": spelling, "taps": taps}
    body.results[body.op("Tanh", add_register(body, case, 0, "x"))] = ROW
    return body


@pytest.mark.parametrize("spelling", ["slice", "concat"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_register_moves_one_row(axis: int, spelling: str) -> None:
    body = register([("state", "slice", 0), ("window", "take", 3), ("new", "slice", 4)], 5, axis, spelling)
    package = check(body, 7)
    assert updates(package) == ["copy of a row, in place"]
    assert not declined(package, "ring_buffers")


def test_a_register_that_is_read_as_a_whole_stays_one() -> None:
    body = register([("state", "slice", 0)])
    body.results[body.op("ReduceSum", "s0", body.ints(1), keepdims=0)] = ROW
    (reason,) = declined(check(body, 4), "ring_buffers")
    assert reason.startswith("carried value 0 is shifted as a whole: node ReduceSum")
    assert reason.endswith("reads all of it")


def test_a_register_that_is_a_result_of_every_iteration_stays_one() -> None:
    body = register([("state", "slice", 0)])
    body.results[body.op("Identity", body.states["s0"][1])] = (2, 5, 3)
    (reason,) = declined(check(body, 4), "ring_buffers")
    assert reason == "carried value 0 is shifted as a whole: the shifted value is a result too"


def test_a_register_shifted_by_two_stays_one() -> None:
    body = Body()
    pair = body.op("Concat", *[body.op("Unsqueeze", "x", body.ints(0))] * 2, axis=0)
    new = body.slice(body.op("Concat", "s", pair, axis=0), 0, 2, 7)
    body.results[body.op("Add", "x", body.op("Squeeze", body.slice("s", 0, 0, 1), body.ints(0)))] = ROW
    body.states["s"] = (start_of((5, *ROW), 1), new)
    check(body, 4)


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_causal_convolutions(kernel: int, dilation: int, over_new: bool, trips: int) -> None:
    """A dilated convolution over the window, or over the new state, that makes one position."""
    body, depth = Body(), (kernel - 1) * dilation + over_new
    depth = max(depth, 1)
    window = body.op("Concat", "s", body.op("Unsqueeze", "x", body.ints(2)), axis=2)
    new = body.slice(window, 2, 1, depth + 1)
    body.constants["w"] = start_of((3, 3, kernel), 5)
    body.constants["bias"] = start_of((3,), 6)
    source = new if over_new or depth > (kernel - 1) * dilation else window
    y = body.op("Conv", source, "w", "bias", dilations=[dilation])
    if kernel == 1 and not over_new:
        y = body.slice(y, 2, 0, 1)
    body.results[body.op("Relu", y)] = (2, 3, 1)
    body.states["s"] = (start_of((2, 3, depth), 7), new)
    package = check(body, trips)
    # Where every row is a tap, shifting all of them costs no more than reading them.
    assert dilation == 1 or not declined(package, "ring_buffers")


def test_a_grouped_window_says_why_it_stays_a_convolution() -> None:
    body = Body()
    window = body.op("Concat", "s", body.op("Unsqueeze", "x", body.ints(2)), axis=2)
    body.constants["w"] = start_of((3, 1, 2), 5)
    body.results[body.op("Conv", window, "w", group=3, dilations=[4])] = (2, 3, 1)
    body.states["s"] = (start_of((2, 3, 4), 7), body.slice(window, 2, 1, 5))
    package = check(body, 6)
    assert declined(package, "one_window") == ["its one window is in groups"]
    (reason,) = declined(package, "ring_buffers")
    assert reason.startswith("carried value 0 is shifted as a whole: node Conv")


# --- rows in place ---------------------------------------------------------------------------------------------------


def scattered(body: Body, state: str, at: str, row: str) -> str:
    return body.op("ScatterND", state, body.op("Unsqueeze", at, body.ints(1)), body.op("Unsqueeze", row, body.ints(0)))


def read_row(body: Body, state: str, at: str) -> str:
    return body.op("Squeeze", body.op("Gather", state, at), body.ints(0))


@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    st.integers(1, 5), st.integers(0, 12), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(["mod", "counted"]),
)  # fmt: skip
def test_rows_written_in_place(depth: int, trips: int, late: bool, twice: bool, whole: bool, kind: str) -> None:
    """The old value is read by row or as a whole, behind the update in the body's text or before it."""
    body = Body()
    if kind == "counted":  # a position that is carried itself
        body.states["p"] = (np.zeros(1, np.float32), body.op("Mod", body.op("Add", "p", "one"), "deep", fmod=1))
        body.constants |= {"one": np.float32(1), "deep": np.float32(depth)}
        at = body.op("Cast", "p", to=INT64)
    else:
        at = body.at(depth)

    def old() -> str:
        read = read_row(body, "s", at)
        return body.op("Add", read, body.op("ReduceMax", "s", axes=[0], keepdims=0)) if whole else read

    seen = "x" if late else old()
    new = scattered(body, "s", at, "x" if late else body.op("Tanh", seen))
    if twice:
        new = scattered(body, new, body.at(depth, 1), body.op("Neg", "x"))
    seen = old() if late else seen
    body.results |= {seen: ROW, body.op("ReduceSum", new, body.ints(0), keepdims=0): ROW}
    body.states["s"] = (start_of((depth, *ROW), 2), new)
    package = check(body, trips)
    by_number, by_memory = "copy of a row, in place", f"scatter_rows {ISA}, in place"
    first = by_number if kind == "mod" else by_memory
    assert updates(package) == ([first, by_number] if twice else [first])


def test_what_needs_the_new_value_and_the_old_one_makes_a_copy() -> None:
    body = Body()
    new = scattered(body, "s", body.at(4), "x")
    body.results[body.op("Sub", new, "s")] = (4, *ROW)
    body.states["s"] = (start_of((4, *ROW), 2), new)
    (row,) = (r for r in read(check(body, 6)).nodes if r["kernel"].startswith("scatter_rows"))
    assert row["why_not_better"] == "copies the carried value: the old value is read by what needs the new one"


def test_a_value_that_is_updated_twice_and_given_out_between_makes_a_copy() -> None:
    body = Body()
    first = scattered(body, "s", body.at(4), "x")
    body.states["s"] = (start_of((4, *ROW), 2), scattered(body, first, body.at(4, 2), "x"))
    body.results[body.op("Identity", first)] = (4, *ROW)
    notes = [r["why_not_better"] for r in read(check(body, 6)).nodes if r["kernel"].startswith("scatter_rows")]
    assert notes == ["copies the carried value: the value before the update is a result too"] * 2


def test_a_row_of_the_state_itself_makes_a_copy() -> None:
    body = Body()
    new = body.op("ScatterND", "s", body.op("Unsqueeze", body.at(1), body.ints(1)), "s")
    body.states["s"] = (start_of((1, *ROW), 2), new)
    check(body, 3)


@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.integers(0, 2), st.integers(0, 3), st.integers(1, 2), st.integers(0, 5))
def test_a_range_replaced_between_slices(axis: int, begin: int, count: int, trips: int) -> None:
    body, depth = Body(), 5
    row = body.op("Add", body.op("Unsqueeze", "x", body.ints(axis)), body.slice("s", axis, 4, 5))
    pieces = [body.slice("s", axis, 0, begin)] if begin else []
    pieces += [row] * count + [body.slice("s", axis, begin + count, depth)] * (begin + count < depth)
    body.states["s"] = (start_of((*ROW[:axis], depth, *ROW[axis:]), 3), body.op("Concat", *pieces, axis=axis))
    assert updates(check(body, trips)) == [f"scatter_rows {ISA}, in place"]


def masked(body: Body, at: str) -> None:
    body.constants["lines"] = np.arange(5).reshape(5, 1, 1)
    body.states["s"] = (start_of((5, *ROW), 3), body.op("Where", body.op("Equal", "lines", at), "x", "s"))


def test_a_row_chosen_by_a_mask() -> None:
    body = Body()
    masked(body, body.at(5))
    assert updates(check(body, 8)) == ["copy of a row, in place"]


def test_a_mask_that_may_choose_none_stays_one() -> None:
    body = Body()
    masked(body, body.at(6))
    (reason,) = declined(check(body, 8), "row_updates")
    assert reason == "where it writes may lie outside: a position that is no remainder"


# --- rows as addresses -----------------------------------------------------------------------------------------------


def test_rows_at_the_iteration_are_read_where_they_lie() -> None:
    body = Body()
    picked = [body.op("Gather", "xs", at) for at in (body.at(16, 5), body.at(3), body.op("Add", "i", body.ints(2)))]
    body.results[body.op("Sum", *picked, "x")] = (1, *ROW)
    assert kernels(check(body, 14)) == ["native loop, 1 calls an iteration", f"pointwise {ISA}"]


def test_rows_that_may_lie_outside_are_gathered() -> None:
    body = Body()
    body.results[body.op("Gather", "xs", body.op("Min", body.op("Add", "i", body.ints(2)), body.ints(15)))] = (1, *ROW)
    assert len(kernels(check(body, 16))) == 3


def test_a_row_of_the_old_state_is_read_before_it_is_overwritten() -> None:
    body = Body()
    old, new = read_row(body, "s", body.at(3)), scattered(body, "s", body.at(3), "x")
    for x in (old, read_row(body, new, body.at(3)), read_row(body, new, body.at(3, 1))):
        body.results[body.op("Tanh", x)] = ROW
    body.states["s"] = (start_of((3, *ROW), 2), new)
    assert updates(check(body, 8)) == ["copy of a row, in place"]


def test_a_row_moved_within_a_state_makes_a_copy_of_it() -> None:
    body = Body()
    new = scattered(body, "s", body.at(4), read_row(body, "s", body.at(4, 1)))
    body.states["s"] = (start_of((4, *ROW), 2), new)
    (row,) = (r for r in read(check(body, 6)).nodes if "rows" in r["kernel"])
    assert row["why_not_better"] == "copies the carried value: it is updated from itself"


def test_rows_of_a_value_that_replaces_a_state() -> None:
    """The new value is written straight to the state's place; its rows are read there."""
    body = Body()
    new = body.op("Add", "x", body.op("Mul", "s", "half"))
    body.constants["half"] = np.float32(0.5)
    body.results[body.op("Tanh", read_row(body, new, body.at(3, 1)))] = ROW
    body.states["s"] = (start_of((3, *ROW), 2), new)
    check(body, 5)

"""Attention as one kernel: the kernel within its bounds over all forms, and which graphs become one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from anchored_cases import LEVELS, Body
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import parser

import dlc
from dlc.hardware import this_machine
from dlc.targets.cpu import attention_region
from dlc.targets.cpu.attention_region import AttentionRegion, unfit
from dlc.targets.cpu.kernels.builder import symbolic
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

LOWEST = float(np.finfo("float32").min)
EPSILON = float(np.finfo("float32").eps)
MACHINE = this_machine()
CASES = st.fixed_dictionaries(
    {
        "batch": st.sampled_from([(), (1,), (3,), (2, 2), (1, 5)]), "one_key_head": st.booleans(),
        "queries": st.sampled_from([1, 2, 7, 16, 33]), "keys": st.sampled_from([1, 3, 16, 31, 70]),
        "depth": st.sampled_from([1, 5, 8, 16, 20]), "width": st.sampled_from([1, 4, 16, 21]),
        "q": st.sampled_from(["plain", "moved", "scaled"]), "k": st.sampled_from(["plain", "turned", "scaled"]),
        "v": st.sampled_from(["plain", "moved"]), "mask": st.sampled_from(["", "keys", "full", "hidden", "band"]),
        "cap": st.booleans(), "safe": st.booleans(), "end": st.sampled_from(["", "moved", "relu"]),
        "part": st.booleans(), "blocks": st.sampled_from([None, (1, 16, 16), (5, 16, 16), (8, 32, 16), (7, 48, 48)]),
        "band": st.tuples(*2 * [st.none() | st.integers(-40, 40)]), "low": st.sampled_from([-np.inf, -1e4, LOWEST]),
        "packed": st.booleans(), "l1": st.sampled_from([1 << 10, 32 << 10]), "l2": st.sampled_from([4 << 10, 1 << 20]),
        "level": st.sampled_from(LEVELS), "seed": st.integers(0, 2**16),
    }
)  # fmt: skip


class Case:
    """One attention: its body, arrays, and its result in float64 with a bound of the error.

    Operands that are "moved" lie as (rows, batch..., columns), so that the region holds a transpose.
    """

    def __init__(self, case: dict[str, Any]) -> None:
        self.case, self.rng, self.body = case, np.random.default_rng(case["seed"]), Body()
        self.batch, self.arrays = case["batch"], list[np.ndarray]()
        self.band = (*case["band"], case["low"]) if case["mask"] == "band" else (None, None, -np.inf)
        heads = tuple(1 for _ in self.batch) if case["one_key_head"] else self.batch
        queries, keys, depth, width = (case[n] for n in ("queries", "keys", "depth", "width"))
        (q, q_name), (v, v_name) = self.rows("q", self.batch, queries, depth), self.rows("v", heads, keys, width)
        k, k_name = self.keys(heads, keys, depth)
        shape = (*self.batch, queries, keys)
        scores, name = q @ k, self.body.node("dlc.matmul", [q_name, k_name], shape, "float32", out_dtype="float32")
        size = np.abs(q) @ np.abs(k)
        if case["cap"]:
            name = self.body.node("relax.tanh", [name], shape, "float32")
            scores, size = np.tanh(scores), size + 1
        scores, name = self.masked(scores, name, shape)
        name = self.body.node("relax.nn.softmax", [name], shape, "float32", axis=len(shape) - 1)
        with np.errstate(invalid="ignore"):
            power = np.exp(scores - scores.max(-1, keepdims=True))
            weights = power / power.sum(-1, keepdims=True)
        if case["safe"]:
            missing = self.body.node("relax.isnan", [name], shape, "bool")
            zero = self.body.constant(0.0, "float32")
            name = self.body.node("relax.where", [missing, zero, name], shape, "float32")
            weights = np.nan_to_num(weights)
        shape = (*self.batch, queries, width)
        name = self.body.node("dlc.matmul", [name, v_name], shape, "float32", out_dtype="float32")
        self.wanted = weights @ v
        # An error of a score is one of its exponential; all others are relative to the weights (see `normalise`).
        of_scores = (depth + 8) * (size + 4)
        relative = 2 * of_scores.max(-1, keepdims=True) + 2 * keys + 20
        self.bound = EPSILON * relative * (weights @ np.abs(v)) + 1e-30
        self.end(name, shape)

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.standard_normal(shape).astype("float32")

    def input(self, array: np.ndarray) -> str:
        self.arrays.append(array)
        return self.body.input(array.shape, str(array.dtype))

    def scaled(self, array: np.ndarray, name: str) -> tuple[np.ndarray, str]:
        half = self.body.constant(0.5, "float32")
        return array * 0.5, self.body.node("relax.multiply", [name, half], array.shape, "float32")

    def rows(self, operand: str, batch: tuple[int, ...], rows: int, columns: int) -> tuple[np.ndarray, str]:
        """Queries or values."""
        if self.case[operand] == "plain":
            array = self.array((*batch, rows, columns))
            return array.astype("float64"), self.input(array)
        axes, rank = (*range(1, len(batch) + 1), 0, len(batch) + 1), len(batch) + 2
        stored = self.array((rows, *batch, columns))
        array = stored.transpose(axes)
        moved = self.body.node("relax.permute_dims", [self.input(stored)], array.shape, "float32", axes=axes)
        assert len(array.shape) == rank
        return (
            self.scaled(array.astype("float64"), moved)
            if self.case[operand] == "scaled"
            else (array.astype("float64"), moved)
        )

    def keys(self, batch: tuple[int, ...], keys: int, depth: int) -> tuple[np.ndarray, str]:
        if self.case["k"] == "plain":
            array = self.array((*batch, depth, keys))
            return array.astype("float64"), self.input(array)
        stored = self.array((keys, *batch, depth))
        axes = (*range(1, len(batch) + 1), len(batch) + 1, 0)
        array = stored.transpose(axes)
        turned = self.body.node("relax.permute_dims", [self.input(stored)], array.shape, "float32", axes=axes)
        return (
            self.scaled(array.astype("float64"), turned)
            if self.case["k"] == "scaled"
            else (array.astype("float64"), turned)
        )

    def masked(self, scores: np.ndarray, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
        if self.case["mask"] == "hidden":  # some rows entirely
            hidden = self.rng.random(shape[-2:]) < 0.5
            hidden[self.rng.random(shape[-2]) < 0.3] = True
            infinity = self.body.constant(-np.inf, "float32")
            names = [self.input(hidden), infinity, name]
            return np.where(hidden, -np.inf, scores), self.body.node("relax.where", names, shape, "float32")
        if not self.case["mask"]:
            return scores, name
        if self.case["mask"] == "band":
            return self.banded(scores, name, shape)
        mask = self.array((1, shape[-1]) if self.case["mask"] == "keys" else shape)
        return scores + mask, self.body.node("relax.add", [name, self.input(mask)], shape, "float32")

    def banded(self, scores: np.ndarray, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
        """Rows may have no other score than the low one, or none far above it."""
        first, last, low = self.band
        diagonal = np.arange(shape[-1]) - np.arange(shape[-2])[:, None]
        inside = (diagonal >= (-99 if first is None else first)) & (diagonal <= (99 if last is None else last))
        if self.case["seed"] % 2:
            deep = np.where(np.arange(shape[-2])[:, None] % 3 == 0, np.float32(low), np.float32(0)) + np.zeros(shape)
            deep = deep.astype("float32")
            names = [self.input(inside & (deep == 0)), name, self.input(deep)]
            name = self.body.node("relax.where", names, shape, "float32")
            scores = np.where(inside & (deep == 0), scores, deep)
        names = [self.input(inside), name, self.body.constant(low, "float32")]
        return np.where(inside, scores, low), self.body.node("relax.where", names, shape, "float32")

    def end(self, name: str, shape: tuple[int, ...]) -> None:
        if self.case["end"] == "relu":
            self.body.node("relax.nn.relu", [name], shape, "float32")
            self.wanted = np.maximum(self.wanted, 0)
        elif self.case["end"] == "moved":
            rank = len(shape)
            axes = (rank - 2, *range(rank - 2), rank - 1)
            self.body.node("relax.permute_dims", [name], tuple(shape[a] for a in axes), "float32", axes=axes)
            self.wanted, self.bound = self.wanted.transpose(axes), self.bound.transpose(axes)

    def run(self) -> np.ndarray:
        level = self.case["level"]
        graph = replace(self.body.graph(), attrs={"dlc.band": list(self.band)})
        layouts = {name: Layout.dense(v.shape) for name, v in graph.values().items()}
        if self.case["part"]:  # of a larger tensor
            for value in graph.inputs:
                halo = [(0, 0)] * (len(value.shape) - 2) + [(1, 2), (0, 3)]
                layouts[value.name] = Layout.padded(value.shape, halo)
                array = self.arrays[int(value.name[1:])]
                junk = True if array.dtype == bool else np.nan
                self.arrays[int(value.name[1:])] = np.pad(array, halo, constant_values=junk)
        machine = replace(MACHINE, l1=self.case["l1"], l2=self.case["l2"])
        assert unfit(graph) is None
        region = AttentionRegion(graph, layouts, {}, level)
        schedule = region.choose(machine)
        schedule["predicted_us"] = 1e9 if self.case["seed"] % 2 else 0.0  # in parts, or at once
        if self.case["blocks"] is not None:
            rows, block, part = self.case["blocks"]
            ahead = self.case["seed"] % 3 == 0
            schedule |= {"rows": min(rows, self.case["queries"]), "block": block, "part": part, "ahead": ahead}
        if self.case["packed"]:
            for operand in ("keys", "values"):
                schedule[operand]["packed"] = True
        operands = region.operands(schedule)
        buffers = [self.arrays[int(name[1:])] for name, _ in operands]
        func = region.emit("k", schedule, operands, [], None)
        out = np.empty(self.wanted.shape, "float32")
        return Compiled(func, level, len(buffers) + 1).run([*buffers, out])[-1]


@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_the_kernel_is_within_its_bounds(drawn: dict[str, Any]) -> None:
    case = Case(drawn)
    got = case.run()
    missing = np.isnan(case.wanted)
    np.testing.assert_array_equal(np.isnan(got), missing)
    error = np.abs(np.where(missing, 0, got) - np.where(missing, 0, case.wanted))
    assert np.all(error <= np.where(missing, 0, case.bound)), float(np.max(error / np.where(missing, 1, case.bound)))


# --- which graphs become one kernel ----------------------------------------------------------------------------------

ATTENTION = """<ir_version: 10, opset_import: ["": 23]>
g (float[2,{s},32] q, float[2,{s},{kv}] k, float[2,{s},{kv}] v) => (float[2,{s},32] y)
{{ y = Attention <q_num_heads = 4, kv_num_heads = {heads}, {attrs}> (q, k, v) }}"""
PARTS = """<ir_version: 10, opset_import: ["": 17]>
g (float[2,4,24,8] q, float[2,4,8,24] k, float[2,4,24,8] v, bool[24,24] m) => ({outputs})
<float low = {{-inf}}, float scale = {{3.0}}, float zero = {{0.0}}>
{{
    products = MatMul (q, k)
    scores = Div (products, scale)
    masked = Where (m, scores, low)
    p = Softmax <axis = -1> (masked)
    {after}
    y = MatMul (w, v)
}}"""
SAFE = "none = IsNaN (p) w = Where (none, zero, p)"
Y = "float[2,4,24,8] y"


def parts(after: str = "w = Identity (p)", outputs: str = Y) -> onnx.ModelProto:
    return parser.parse_model(PARTS.format(after=after, outputs=outputs))


def feeds(model: onnx.ModelProto, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(seed), {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or sizes[d.dim_param] for d in kind.shape.dim]
        array = rng.standard_normal(shape)
        found[value.name] = array > 0 if kind.elem_type == onnx.TensorProto.BOOL else array.astype("float32")
    return found


def kernels(package: Any) -> list[str]:
    return [row["kernel"] for row in package.json("explain.json")["nodes"]]


def attentions(package: Any) -> int:
    return sum(kernel.startswith("attention") for kernel in kernels(package))


def agrees(model: onnx.ModelProto, feed: dict[str, np.ndarray], target: str = "cpu") -> Any:
    package = dlc.compile(model, target=target)
    wanted = dlc.load(dlc.compile(model, target="reference")).run(feed)
    for name, array in dlc.load(package).run(feed).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)
    return package


@pytest.mark.parametrize(
    ("heads", "attrs"),
    [(4, "scale = 0.3"), (4, "is_causal = 1"), (2, "softcap = 2.0"), (1, "is_causal = 1")],
)  # fmt: skip
def test_the_onnx_operator(heads: int, attrs: str) -> None:
    model = parser.parse_model(ATTENTION.format(s=19, kv=8 * heads, heads=heads, attrs=attrs))
    assert attentions(agrees(model, feeds(model))) == 1


@pytest.mark.parametrize("level", [isa.name for isa in LEVELS])
@pytest.mark.parametrize("after", ["w = Identity (p)", SAFE])
def test_rows_without_any_key(level: str, after: str) -> None:
    model = parts(after)
    feed = feeds(model)
    feed["m"][3] = feed["m"][20] = False
    package = agrees(model, feed, f"cpu:{level}")
    (row,) = (r for r in package.json("explain.json")["nodes"] if r["kernel"] == f"attention {level}")
    assert row["tile"] == "24 queries and 24 keys at a time"
    assert row["fused"][:4] == ["matmul", "divide", "where", "nn.softmax"] and row["fused"][-1] == "matmul"
    assert row["sources"].split(", ")[:4] == ["products", "scores", "masked", "p"] and row["sources"].endswith(", y")
    y = dlc.load(package).run(feed)["y"]
    assert np.all(np.isnan(y[:, :, [3, 20]])) == (after != SAFE) and not np.any(np.isnan(y[:, :, 4]))


@pytest.mark.parametrize("name", ["products", "scores", "masked", "p"])
def test_scores_that_are_an_output_are_written(name: str) -> None:
    model = parts(outputs=f"{Y}, float[2,4,24,24] {name}")
    assert attentions(agrees(model, {**feeds(model), "m": np.ones((24, 24), bool)})) == 0


def test_scores_that_somebody_else_reads_are_written() -> None:
    model = parts("w = Identity (p) t = ReduceSum (p)", f"{Y}, float[1,1,1,1] t")
    assert attentions(agrees(model, {**feeds(model), "m": np.ones((24, 24), bool)})) == 0


PLAIN = """<ir_version: 10, opset_import: ["": 17]>
g (float[{n},{s},8] q, float[{n},8,{t}] k, float[{n},{t},20] v, bool[{s},{t}] m) => (float[{n},{s},20] y)
<float low = {{-inf}}>
{{ a = MatMul (q, k) b = Where (m, a, low) p = Softmax <axis = -1> (b) y = MatMul (p, v) }}"""
STEP = """<ir_version: 10, opset_import: ["": 23]>
g (float[2,{s},32] q, float[2,{t},32] k, float[2,{t},32] v) => (float[2,{s},32] y)
{{ y = Attention <q_num_heads = 4, kv_num_heads = 4, is_causal = {causal}> (q, k, v) }}"""
SYMBOLIC = {
    "all": PLAIN.format(n="n", s="s", t="t"), "queries": PLAIN.format(n=2, s="s", t=33),
    "keys": PLAIN.format(n=2, s=21, t="t"), "a step": STEP.format(s=1, t="t", causal=0),
    "causal": STEP.format(s="s", t="s", causal=1),
}  # fmt: skip


@cache
def compiled(form: str, level: str) -> tuple[Any, Any, Any]:
    model = parser.parse_model(SYMBOLIC[form])
    return model, dlc.load(dlc.compile(model, target=level)), dlc.load(dlc.compile(model, target="reference"))


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(list(SYMBOLIC)), st.sampled_from(["cpu", "cpu:avx2"]), st.integers(1, 3),
    st.sampled_from([1, 2, 15, 64, 129, 300]), st.sampled_from([1, 3, 16, 17, 255, 256, 400]), st.integers(0, 99),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value")
def test_symbols(form: str, level: str, n: int, s: int, t: int, seed: int) -> None:
    """One kernel for any number of queries and keys, and no memory that grows with them."""
    model, ours, wanted = compiled(form, level)
    assert attentions(ours.package) == 1 and not ours.package.json("explain.json")["declined"]
    feed = feeds(model, seed, n=n, s=s, t=t)
    np.testing.assert_allclose(ours.run(feed)["y"], wanted.run(feed)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", list(SYMBOLIC))
def test_symbols_on_two_threads_give_the_same_bits(form: str) -> None:
    model, ours, _ = compiled(form, "cpu")
    feed = feeds(model, 5, n=2, s=300, t=520)
    together = dlc.load(ours.package, threads=2).run(feed)["y"]
    np.testing.assert_array_equal(together, ours.run(feed)["y"])


def test_memory_falls_by_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parser.parse_model(ATTENTION.format(s=256, kv=32, heads=4, attrs="scale = 0.3"))
    fused = dlc.compile(model, target="cpu")
    monkeypatch.setattr(attention_region, "unfit", lambda _: "switched off")
    plain = dlc.compile(model, target="cpu")
    assert (attentions(fused), attentions(plain)) == (1, 0)
    scores = 2 * 4 * 256 * 256 * 4
    workspace, before = (p.manifest["build"]["sizes"][0] for p in (fused, plain))
    assert before - workspace >= scores and workspace < scores
    feed = feeds(model)
    alone, together = dlc.load(fused).run(feed)["y"], dlc.load(fused, threads=2).run(feed)["y"]
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_allclose(alone, dlc.load(plain).run(feed)["y"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "keys", "reason"),
    [("float64", 8, "the kernel of attention is for float32, not float64"),
     ("float32", 0, "it is empty")],
)  # fmt: skip
def test_what_is_left_to_three_kernels_says_why(dtype: str, keys: Any, reason: str) -> None:
    body = Body()
    q, k, v = (body.input(shape, dtype) for shape in ((4, 8), (8, keys), (keys, 8)))
    scores = body.node("dlc.matmul", [q, k], (4, keys), dtype, out_dtype=dtype)
    weights = body.node("relax.nn.softmax", [scores], (4, keys), dtype, axis=1)
    body.node("dlc.matmul", [weights, v], (4, 8), dtype, out_dtype=dtype)
    assert unfit(body.graph()) == reason


@pytest.mark.parametrize(
    ("depth", "after", "reason"),
    [(symbolic("d"), "", "the size of a key or of a value is known only when running"),
     (1 << 16, "", "keys of 65536 and values of 8 numbers are more than the stack takes"),
     (8, "relax.tanh", "tanh changes single weights, which are known only behind all keys"),
     (8, "relax.nn.relu", "nn.relu changes single weights, which are known only behind all keys")],
)  # fmt: skip
def test_what_one_kernel_cannot_do_says_why(depth: Any, after: str, reason: str) -> None:
    body = Body()
    q, k, v = (body.input(shape, "float32") for shape in ((4, depth), (depth, 6), (6, 8)))
    scores = body.node("dlc.matmul", [q, k], (4, 6), "float32", out_dtype="float32")
    weights = body.node("relax.nn.softmax", [scores], (4, 6), "float32", axis=1)
    weights = body.node(after, [weights], (4, 6), "float32") if after else weights
    body.node("dlc.matmul", [weights, v], (4, 8), "float32", out_dtype="float32")
    assert unfit(body.graph()) == reason


@pytest.mark.parametrize("steps", [300, "s"])
def test_the_causal_operator_says_what_it_hides(steps: Any) -> None:
    model = parser.parse_model(STEP.format(s=steps, t=steps, causal=1))
    (row,) = (r for r in dlc.compile(model).json("explain.json")["nodes"] if r["kernel"].startswith("attention"))
    assert row["tile"].endswith(", none behind diagonal 0")


@pytest.mark.parametrize("steps", [600, "s"])
def test_hidden_keys_are_not_read(steps: Any) -> None:
    model = parser.parse_model(STEP.format(s=steps, t=steps, causal=1))
    feed = feeds(model, s=600)
    feed["v"][:, -1] = feed["k"][:, -1] = np.nan
    y = dlc.load(dlc.compile(model)).run(feed)["y"]
    assert np.all(np.isfinite(y[:, :300])) and np.all(np.isnan(y[:, -1]))


UNIDIRECTIONAL = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
g (float[2,300,32] q, float[2,300,32] k, float[2,300,32] v, float[2,4,300,300] more) => (float[2,300,32] y)
{ y = com.microsoft.MultiHeadAttention <num_heads = 4, unidirectional = 1> (q, k, v, , , more) }"""


@pytest.mark.parametrize("low", [0.0, -1e38, float(np.finfo("float32").min)])
def test_the_vendor_s_operator(low: float) -> None:
    """It hides with the lowest number: in rows that have nothing above it all keys count."""
    model = parser.parse_model(UNIDIRECTIONAL)
    feed = feeds(model)
    feed["more"][0, 1, ::3] = low
    package = agrees(model, feed)
    (row,) = (r for r in package.json("explain.json")["nodes"] if r["kernel"].startswith("attention"))
    assert row["tile"].endswith(", none behind diagonal 0")


def test_a_triangle_is_not_in_the_package() -> None:
    model = parser.parse_model(STEP.format(s=200, t=200, causal=1))
    members = agrees(model, feeds(model)).manifest["members"]
    assert sum(m["size"] for name, m in members.items() if name.startswith("constants")) < 200 * 200

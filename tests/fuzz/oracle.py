"""What a random graph should compute: onnxruntime, or onnx's own reference, with a bound measured for each element.

Two correct implementations round differently, and a graph can amplify that without limit (a difference of nearly equal
numbers, a floor, an argmax). So the bound of an output is measured: the oracle also runs copies of the model in which
every inexact float result is multiplied by ``1 + e``, with random e of a few units in the last place, and what that
changes in an output is what it may differ by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

Arrays = Mapping[str, np.ndarray]

# Relative size of the disturbance, and the relative bound that holds in any case.
_NOISE = {"float64": 2.0**-50, "float32": 2.0**-22, "float16": 2.0**-10}
_RELATIVE = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3}
_OF_LARGEST = {"float64": 1e-14, "float32": 4e-6, "float16": 1e-3}  # small elements inherit the rounding of large ones
_AMPLIFIED = 16.0  # times the largest change that was seen
_ROUGH = {
    "InstanceNormalization": 64.0,
    "GroupNormalization": 64.0,
    "MeanVarianceNormalization": 64.0,
}  # onnxruntime subtracts nearly equal numbers inside these
_ABSOLUTE = dict.fromkeys(
    ("Sigmoid", "HardSwish", "Mish", "Gelu", "LSTM", "GRU", "RNN", "Softsign", "Swish", "Resize"), 0.1
)  # of order 1; onnxruntime's Resize rounds its weights, so small results inherit the error of large neighbours
_TINY = {"float64": 1e-300, "float32": 1e-37, "float16": 6e-7}  # below that, subnormal numbers count steps

# Float results of these are copies, choices or exactly representable: they are not disturbed.
EXACT = set(
    [
        "Identity",
        "Transpose",
        "Reshape",
        "Slice",
        "Gather",
        "GatherElements",
        "GatherND",
        "Concat",
        "Split",
        "Pad",
        "Tile",
        "Expand",
        "Where",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Max",
        "Min",
        "Relu",
        "Abs",
        "Neg",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "ReduceMax",
        "ReduceMin",
        "MaxPool",
        "GlobalMaxPool",
        "TopK",
        "Trilu",
        "ScatterElements",
        "ScatterND",
        "DepthToSpace",
        "SpaceToDepth",
        "ReverseSequence",
        "Compress",
        "Constant",
        "ConstantOfShape",
        "Clip",
        "If",
        "Loop",
        "Scan",
        "Dropout",
        "QuantizeLinear",
        "Hardmax",
        "OneHot",
        "EyeLike",
        "Range",
        "Size",
        "Shape",
        "CastLike",
    ]
)


# onnx.reference is wrong for some attributes of these, such as uneven paddings; Erf it rounds to float32, and LRN it
# computes for as many channels as there are images.
_MISTRUSTED = set(
    [
        "Erf",
        "LpNormalization",
        "LRN",
        "Softmax",
        "LogSoftmax",
        "Hardmax",
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "Resize",
        "Upsample",
        "Pad",
        "LSTM",
        "GRU",
        "RNN",
        "Scan",
        "Loop",
        "CumSum",
        "GlobalMaxPool",
        "GlobalAveragePool",
    ]
)


class OracleError(Exception):
    """No oracle runs the model."""


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def run_onnxruntime(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    """The outputs of onnxruntime without its own optimisations."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), _options(), providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, dict(inputs))]


def run_reference(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    """The outputs of onnx.reference."""
    with np.errstate(all="ignore"):
        return [np.asarray(a) for a in ReferenceEvaluator(model).run(None, dict(inputs))]


def _operators(graph: onnx.GraphProto) -> set[str]:
    inner = (a.g for node in graph.node for a in node.attribute if a.type == AttributeProto.GRAPH)
    return {node.op_type for node in graph.node}.union(*map(_operators, inner))


def run_oracle(model: onnx.ModelProto, inputs: Arrays, only: str = "") -> tuple[str, list[np.ndarray]]:
    """(which, outputs) of onnxruntime if it can, else of onnx.reference; `only` names the one to use.

    Raises:
        OracleError: none runs the model.
    """
    reasons = []
    if only == "":
        only = "onnxruntime" if _operators(model.graph) & _MISTRUSTED else ""
    for name, run in (("onnxruntime", run_onnxruntime), ("onnx.reference", run_reference)):
        if only not in ("", name):
            continue
        try:
            return name, run(model, inputs)
        except Exception as error:  # whatever they raise
            reasons.append(f"{name}: {' '.join(str(error).split())[:200]}")
            if "NOT_IMPLEMENTED" not in reasons[-1] and name == "onnxruntime" and "FAIL" not in reasons[-1]:
                break
    raise OracleError("; ".join(reasons))


# --- disturbed copies ------------------------------------------------------------------------------------------------


def _disturb(name: str, made: str, dtype: str, seed: float, more: float, absolute: float) -> list[onnx.NodeProto]:
    """Nodes that give `name` from `made`: each element times ``1 + e``, plus ``e * absolute``."""
    noise, kind = _NOISE[dtype] * more, helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Cast", [made], [f"{made}.wide"], to=TensorProto.DOUBLE)]

    def step(op: str, *inputs: str | float) -> str:
        names = []
        for value in inputs:
            names.append(value if isinstance(value, str) else f"{made}.c{len(nodes)}")
            if not isinstance(value, str):
                held = helper.make_tensor("", TensorProto.DOUBLE, [], [value])
                nodes.append(helper.make_node("Constant", [], [names[-1]], value=held))
        nodes.append(helper.make_node(op, names, [f"{made}.s{len(nodes)}"]))
        return nodes[-1].output[0]

    # The sine of large multiples of the value stands in for a random number, which not every runtime draws.
    angle = step("Mul", step("Min", step("Max", f"{made}.wide", -1e5), 1e5), 1e4 + seed)
    wave = step("Sin", step("Add", angle, seed))
    factor = step("Add", step("Mul", wave, noise), 1.0)
    moved = step("Add", step("Mul", f"{made}.wide", factor), step("Mul", wave, noise * absolute))
    nodes.append(helper.make_node("Cast", [moved], [name], to=kind))
    return nodes


def _disturb_graph(graph: onnx.GraphProto, types: Mapping[str, str], rng: np.random.Generator) -> None:
    nodes = []
    for node in graph.node:
        extra = []
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _disturb_graph(attribute.g, types, rng)
        for index, name in enumerate(node.output):
            if name and types.get(name) in _NOISE and node.op_type not in EXACT:
                node.output[index] = f"{name}.exact"
                more = _ROUGH.get(node.op_type, 1.0)
                absolute = _ABSOLUTE.get(node.op_type, 0.0)
                seed = float(rng.uniform(1, 1000))
                extra += _disturb(name, node.output[index], types[name], seed, more, absolute)
        nodes += [node, *extra]
    del graph.node[:]
    graph.node.extend(nodes)


def disturbed(model: onnx.ModelProto, types: Mapping[str, str], seed: int) -> onnx.ModelProto:
    """A copy of `model` with every inexact float result disturbed; `types` are dtypes by the values' names."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    _disturb_graph(result.graph, types, np.random.default_rng(seed))
    return result


def value_types(model: onnx.ModelProto) -> dict[str, str]:
    """The dtypes of all values, those of subgraphs too, as far as ONNX infers them."""
    found: dict[str, str] = {}

    def note(infos: Sequence[onnx.ValueInfoProto]) -> None:
        for info in infos:
            kind = info.type.tensor_type.elem_type
            if kind:
                found[info.name] = str(helper.tensor_dtype_to_np_dtype(kind))

    def graph(proto: onnx.GraphProto) -> None:
        note([*proto.value_info, *proto.input, *proto.output])
        for node in proto.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    graph(attribute.g)

    graph(onnx.shape_inference.infer_shapes(model).graph)
    return found


# --- expectations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """One output: its array, and by how much each element may differ (infinite: anything goes)."""

    name: str
    array: np.ndarray
    bound: np.ndarray


def _bound(nominal: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    if any(o.shape != nominal.shape for o in others):
        return np.full(nominal.shape, np.inf)
    dtype = str(nominal.dtype)
    wide = nominal.astype(np.float64)
    spread = np.zeros(nominal.shape)
    with np.errstate(all="ignore"):
        for other in others:
            change = np.abs(other.astype(np.float64) - wide)
            same = (other == nominal) | ((other != other) & (nominal != nominal))
            spread = np.fmax(spread, np.where(same, 0, np.where(np.isfinite(change), change, np.inf)))
        if dtype not in _RELATIVE:
            return np.where(spread > 0, np.fmax(1, 2 * spread), 0)
        finite = np.where(np.isfinite(wide), np.abs(wide), 0)
        floor = _OF_LARGEST[dtype] * finite.max(initial=0.0) + _TINY[dtype]
        # A disturbance may round to nothing at an element: then its neighbours tell.
        floor += np.where(np.isfinite(spread), spread, 0).max(initial=0.0)
        return _AMPLIFIED * spread + _RELATIVE[dtype] * finite + floor


def expectations(model: onnx.ModelProto, inputs: Arrays, runs: int = 3, only: str = "") -> tuple[str, list[Expected]]:
    """(which oracle, what it expects of each output).

    Raises:
        OracleError: none runs the model, or its disturbed copies.
    """
    which, nominal = run_oracle(model, inputs, only)
    types = value_types(model)
    others = [run_oracle(disturbed(model, types, seed), inputs, which)[1] for seed in range(runs)]
    return which, [
        Expected(info.name, array, _bound(array, [other[index] for other in others]))
        for index, (info, array) in enumerate(zip(model.graph.output, nominal, strict=True))
    ]


def difference(expected: Expected, actual: np.ndarray) -> str:
    """What is wrong with an output; empty when nothing is."""
    wanted = expected.array
    if str(actual.dtype) != str(wanted.dtype):
        return f"{expected.name} is {actual.dtype}, not {wanted.dtype}"
    if not actual.size and not wanted.size and actual.ndim == wanted.ndim:
        return ""  # the other extents of a stack of nothing are open
    if actual.shape != wanted.shape:
        known = not np.isinf(expected.bound).any() if expected.bound.size else True
        return f"{expected.name} has shape {list(actual.shape)}, not {list(wanted.shape)}" if known else ""
    with np.errstate(all="ignore"):
        a, e = actual.astype(np.float64), wanted.astype(np.float64)
        same = (actual == wanted) | (np.isnan(a) & np.isnan(e)) | np.isinf(expected.bound)
        wrong = ~(same | (np.abs(a - e) <= expected.bound))
    if not wrong.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.ndim else ()
    place = f"{expected.name}{list(at)}"
    return (
        f"{int(wrong.sum())} of {wrong.size} elements differ: {place} is {actual[at]!r}, not {wanted[at]!r} "
        f"(may differ by {expected.bound[at]:.3g})"
    )

"""What runs a model in `bench/cpu.py`: ours and every peer that is installed, each in its best form for a precision."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime_int8 import quantized_forms

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.bench import onnxruntime_session, openvino_run

warnings.filterwarnings("ignore", module="torch|engines")  # its quantised tensors are deprecated
logging.getLogger("onnxruntime").setLevel(logging.ERROR)
Feed = Mapping[str, np.ndarray]
Run = Callable[[], Sequence[np.ndarray]]
PRECISIONS = ("fp32", "bf16", "int8", "int4")
BLOCK = 32  # k that share a scale of 4-bit weights


def files_of(model: Path, precision: str, feed: Feed) -> list[Path]:
    """The forms of a model that the peers run, made beside it unless they are there.

    Int8 holds Q/DQ nodes or QOperators of onnxruntime's quantiser; the first is what dlc and OpenVINO compile.
    """
    if precision == "int8" and not _holds(model, "DequantizeLinear"):
        made = [model.with_name(f"{model.stem}-ort-{form}.onnx") for form in ("qdq", "qoperator")]
        if not all(path.is_file() for path in made):
            (x,) = feed.values()
            others = np.random.default_rng(0).standard_normal((3, *x.shape)).astype(np.float32)
            quantized_forms(model, np.stack([x, *others]), model.parent)
        return made
    return [_nbits(model)] if precision == "int4" else [model]


def _holds(model: Path, operator: str) -> bool:
    return any(node.op_type == operator for node in onnx.load(model, load_external_data=False).graph.node)


def _nbits(model: Path) -> Path:
    """onnxruntime's own 4-bit form: MatMulNBits, which multiplies in int8 at accuracy level 4."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    path = model.with_name(f"{model.stem}-nbits.onnx")
    if not path.is_file():
        quantiser = MatMulNBitsQuantizer(onnx.load(model), 4, BLOCK, is_symmetric=True, accuracy_level=4)
        quantiser.process()
        quantiser.model.save_model_to_file(str(path))
    return path


def dlc_session(model: Path, precision: str, target: str, threads: int, cache: bool) -> dlc.Session:
    """Our session; an int8 model holds its scales already."""
    quantize: Any = precision if precision in ("bf16", "int4") else "none"
    return dlc.load(dlc.compile(str(model), target=target, quantize=quantize, cache=cache), threads=threads)


def peers(model: Path, precision: str, feed: Feed, threads: int, only: Sequence[str] = ()) -> dict[str, Run]:
    """The peers by name, those of `only` where it is given; what is not installed or cannot load it is left out."""
    found: dict[str, Run] = {}
    for file in files_of(model, precision, feed):
        form = {"qdq": " QDQ", "qoperator": " QOperator", "nbits": " MatMulNBits"}.get(file.stem.split("-")[-1], "")
        session = onnxruntime_session(str(file), threads)
        found[f"onnxruntime{form}"] = lambda session=session: session.run(None, dict(feed))  # type: ignore[misc]
    for name, make in (("openvino", _openvino), ("torch", _torch)):
        if not only or name in only:
            try:
                found |= make(model, precision, feed, threads)
            except ImportError as error:
                print(f"{error.name} is not installed", file=sys.stderr)
    return {name: run for name, run in found.items() if not only or name.split()[0] in only}


def _openvino(model: Path, precision: str, feed: Feed, threads: int) -> dict[str, Run]:
    run = openvino_run(files_of(model, precision, feed)[0], feed, threads, exact=precision != "bf16")[1]
    return {"openvino": lambda: list(run().values())}  # type: ignore[attr-defined]


def _torch(model: Path, precision: str, feed: Feed, threads: int) -> dict[str, Run]:
    """Of a lone product: in fp32, in bfloat16 from bfloat16 activations, in int8 by oneDNN's linear."""
    graph = onnx.load(model).graph
    products = [node for node in graph.node if node.op_type == "MatMul"]
    others = {node.op_type for node in graph.node} - {"MatMul", "Identity", "QuantizeLinear", "DequantizeLinear"}
    if len(products) != 1 or others or precision == "int4":
        return {}
    import torch

    torch.set_num_threads(threads)
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    (x,) = (torch.from_numpy(value) for value in feed.values())
    if precision == "int8":
        return {"torch": _torch_int8(files_of(model, "int8", feed)[0], x)}
    weight = torch.from_numpy(constants[products[0].input[1]].copy())
    if precision == "bf16":
        half, weight = x.bfloat16(), weight.bfloat16()
        return {"torch": lambda: [(half @ weight).float().numpy()]}
    return {"torch": lambda: [(x @ weight).numpy()]}


def _torch_int8(model: Path, x: Any) -> Run:
    """The product of codes with the scales of the Q/DQ form; floats become codes and come of codes on the way."""
    import torch

    graph = onnx.load(model).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    product = next(node for node in graph.node if node.op_type == "MatMul")
    result = next(node for node in graph.node if node.input[0] == product.output[0])
    given, weight = (makers[name].input for name in product.input)
    scale, zero = float(constants[given[1]]), int(constants[given[2]])
    parameters = (constants[weight[0]], constants[weight[1]], constants[result.input[1]], constants[result.input[2]])
    linear = onednn_linear(*parameters)
    return lambda: [linear(torch.quantize_per_tensor(x, scale, zero, torch.quint8)).dequantize().numpy()]


def onednn_linear(weight: np.ndarray, scales: np.ndarray, step: np.ndarray, zero: np.ndarray) -> Callable[[Any], Any]:
    """torch's int8 linear by oneDNN: codes (K, N) with scales a column, or one; results have `step` and `zero`."""
    import torch

    torch.backends.quantized.engine = "onednn"
    each = torch.from_numpy(np.broadcast_to(scales.reshape(-1), weight.shape[1]).astype(np.float64))
    turned = torch.from_numpy(weight.T.copy())
    codes = torch._make_per_channel_quantized_tensor(turned, each, torch.zeros(len(each), dtype=torch.int64), 0)
    packed = torch.ops.quantized.linear_prepack(codes, None)
    return lambda x: torch.ops.quantized.linear(x, packed, float(step), int(zero))

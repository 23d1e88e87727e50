"""What is compared on a real CUDA device: the embedded model, and small models of each kind of kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlc.zoo import model_path
from dlc.zoo.vision.data import load_inputs
from tests.targets.gpu.resnet import resnet18

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and how far its outputs may be from the reference's.

    Attributes:
        options: of `dlc.compile`.
        rtol, atol: as numpy's; both 0 for equal bits.
        batches: how much of the inputs' first dimension a call may take, for timing; () for all of it.
    """

    name: str
    model: Any
    inputs: Arrays
    options: dict[str, Any] = field(default_factory=dict)
    rtol: float = 0.0
    atol: float = 0.0
    batches: tuple[int, ...] = ()


def vision() -> list[Case]:
    """The embedded model on its 1,000 test images, in fp32 and in int8 with fixed-point arithmetic."""
    inputs, batches = {"image": load_inputs("test")[0][:1000]}, (1, 32, 1000)
    int8 = {"quantize": "int8", "arithmetic": "fixed", "calibration": {"image": load_inputs("calibration")[0][:32]}}
    return [
        Case("vision-fp32", model_path("vision"), inputs, {}, 1e-3, 1e-3, batches),
        Case("vision-int8-fixed", model_path("vision"), inputs, int8, batches=batches),
    ]


def _case(name: str, op: str, inputs: list[Any], bound: float, constants: tuple[int, ...] = (), **attrs: Any) -> Case:
    """A model of one operator with the first extent symbolic; some inputs are constants of the model."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=i).astype(np.float32) if isinstance(i, tuple) else np.asarray(i) for i in inputs]
    named = {f"x{i}": array for i, array in enumerate(arrays)}
    fixed = [numpy_helper.from_array(named.pop(f"x{i}"), f"x{i}") for i in constants]
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), ["N", *a.shape[1:]])
        for n, a in named.items()
    ]
    node = helper.make_node(op, [f"x{i}" for i in range(len(arrays))], ["y"], name=name, **attrs)
    output = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)
    graph = helper.make_graph([node], name, infos, [output], fixed)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Case(name, onnx.shape_inference.infer_shapes(model, data_prop=True), named, {}, bound, bound)


def kernels() -> list[Case]:
    """One operator each."""
    rng = np.random.default_rng(1)
    image, positions = (3, 20, 17, 19), rng.integers(-50, 50, (7, 9))
    divided = [rng.integers(-1000, 1000, (5, 333), np.int64), rng.integers(1, 40, (5, 333), np.int64)]
    return [
        _case("matmul", "MatMul", [(130, 257), (257, 70)], 1e-4, (1,)),
        _case("matmul-batched", "MatMul", [(5, 65, 33), (5, 33, 29)], 1e-4),
        _case("conv", "Conv", [image, (24, 20, 3, 3), (24,)], 1e-4, (1, 2), strides=[2, 1], pads=[1, 2, 0, 1]),
        _case("conv-grouped", "Conv", [image, (32, 5, 3, 3)], 1e-4, (1,), group=4, dilations=[2, 1]),
        _case("conv-depthwise", "Conv", [image, (20, 1, 3, 3)], 1e-4, (1,), group=20, pads=[1, 1, 1, 1]),
        _case("reduce-mean", "ReduceMean", [(6, 70, 51)], 1e-5, axes=[1], keepdims=0),
        _case("reduce-sum-last", "ReduceSum", [(9, 1000), np.array([1])], 1e-4, (1,)),
        _case("argmax", "ArgMax", [rng.integers(-4, 4, (300, 400)).astype(np.float32)], 0.0, axis=1),
        _case("softmax", "Softmax", [(40, 1000)], 1e-5, axis=1),
        _case("layer-norm", "LayerNormalization", [(6, 40, 96), (96,), (96,)], 1e-4, (1, 2)),
        _case("max-pool", "MaxPool", [image], 0.0, kernel_shape=[3, 2], strides=[2, 2]),
        _case("gather", "Gather", [(100, 31), positions], 0.0, (1,), axis=0),
        _case("transpose", "Transpose", [(5, 33, 65)], 0.0, perm=[0, 2, 1]),
        _case("cumsum", "CumSum", [rng.integers(-9, 9, (4, 65)), np.array(1)], 0.0, (1,)),
        _case("int64-divide", "Div", divided, 0.0),
        _case("float-divide", "Div", [(9, 333), (9, 333)], 0.0),
        _case("sqrt", "Sqrt", [np.abs(rng.normal(size=(9, 333))).astype(np.float32)], 0.0),
        *(_case(op.lower(), op, [(11, 333)], 1e-5) for op in ("Exp", "Tanh", "Sigmoid", "Erf", "Sin")),
    ]


def resnet(name: str, bound: float, **options: Any) -> list[Case]:
    """ResNet-18 on one random image of 224 x 224."""
    image = np.random.default_rng(3).standard_normal((1, 3, 224, 224)).astype(np.float32)
    calibration = {"calibration": {"x": image[None]}} if options else {}
    return [Case(name, resnet18(224), {"x": image}, {**options, **calibration}, bound, bound, (1,))]


PARTS: dict[str, Callable[[], list[Case]]] = {
    "vision": vision,
    "kernels": kernels,
    "resnet-fp32": lambda: resnet("resnet18-fp32", 1e-3),
    "resnet-int8": lambda: resnet("resnet18-int8-fixed", 0.0, quantize="int8", arithmetic="fixed"),
}

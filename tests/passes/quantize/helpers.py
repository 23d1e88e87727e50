"""Running the quantise passes in tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dlc.ir.convert import FunctionBuilder, shape_of, view
from dlc.ir.graph import Graph, Origin
from dlc.ir.interpret import interpret
from dlc.ir.verify import verify
from dlc.options import Options
from dlc.passes.quantize import quantize_passes
from dlc.passes.simplify import SIMPLIFY
from dlc.pipeline import Context, Pass, run_passes

Sample = Mapping[str, np.ndarray]


class Build(FunctionBuilder):
    """A function under construction, channels first; arrays among the operands become constants."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def op(self, op: str, *operands: Any, name: str = "", **attrs: Any) -> Any:
        inputs = [self.constant(o) if isinstance(o, np.ndarray | np.generic) else o for o in operands]
        return self.emit(op, inputs, attrs, Origin(op.split(".")[-1], f"node_{name}" if name else "", name))

    def conv(self, x: Any, weight: Any, bias: np.ndarray | None = None, name: str = "", **attrs: Any) -> Any:
        shape = weight.shape if isinstance(weight, np.ndarray) else shape_of(weight)
        kernel = tuple(int(k) for k in shape[2:])
        settings = {
            "strides": (1, 1), "dilations": (1, 1), "groups": 1, "layout": "channels_first", "out_dtype": "float32",
            "pads": tuple(k // 2 for k in kernel) * 2,
        }  # fmt: skip
        y = self.op("dlc.conv", x, weight, name=name if bias is None else f"{name}_c", **{**settings, **attrs})
        return y if bias is None else self.op("relax.add", y, bias.reshape(-1, 1, 1), name=name)

    def weight(self, out: int, channels: int, kernel: int = 3) -> np.ndarray:
        return self.normal(out, channels, kernel, kernel, scale=(2 / (channels * kernel**2)) ** 0.5)

    def pool(self, x: Any, mode: str, name: str = "", **attrs: Any) -> Any:
        settings = {
            "mode": mode, "kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0), "dilations": (1, 1),
            "ceil_mode": False, "count_include_pad": False, "layout": "channels_first", "out_dtype": "float32",
        }  # fmt: skip
        return self.op("dlc.pool", x, name=name, **{**settings, **attrs})

    def relu(self, x: Any, name: str = "") -> Any:
        return self.op("relax.nn.relu", x, name=name)

    def quantize(self, x: Any, scale: float, zero: int, dtype: str = "uint8") -> Any:
        return self.op("dlc.quantize", x, np.float32(scale), np.asarray(zero, dtype), axis=0, out_dtype=dtype)

    def dequantize(self, x: Any, scale: Any, zero: Any, axis: int = 0) -> Any:
        return self.op("dlc.dequantize", x, np.asarray(scale, np.float32), zero, axis=axis, out_dtype="float32")

    def pair(self, x: Any, scale: float, zero: int, dtype: str = "uint8") -> Any:
        """Quantise and dequantise."""
        return self.dequantize(self.quantize(x, scale, zero, dtype), scale, np.asarray(zero, dtype))


def samples_for(module: Any, count: int = 4, seed: int = 5) -> list[dict[str, np.ndarray]]:
    """Normal data for every input; a symbolic extent is 2."""
    rng = np.random.default_rng(seed)
    inputs = view(module).inputs
    return [
        {v.name: rng.standard_normal([d if isinstance(d, int) else 2 for d in v.shape]).astype(v.dtype) for v in inputs}
        for _ in range(count)
    ]


def run_checked(module: Any, passes: Iterable[Pass], context: Context) -> Any:
    """Run passes and verify after each."""
    for step in passes:
        module = run_passes(module, [step], context)
        verify(module, after=step.name)
    return module


def quantized(
    module: Any, arithmetic: Any = "float", method: Any = "minmax", samples: Iterable[Sample] | None = None
) -> tuple[Any, Context]:
    """Simplify and quantise a module."""
    options = Options(quantize="int8", arithmetic=arithmetic, calibration_method=method)
    context = Context(options, calibration=samples_for(module) if samples is None else samples)
    return run_checked(module, [*SIMPLIFY, *quantize_passes(options)], context), context


def ops(module: Any) -> list[str]:
    """Operator and, of integers, dtype of every node."""
    return [n.op.split(".", 1)[1] + _suffix(n.output.dtype) for n in view(module).nodes]


def _suffix(dtype: str) -> str:
    return "" if dtype == "float32" else f":{dtype}"


def run(module: Any, sample: Sample) -> list[np.ndarray]:
    """The outputs."""
    return interpret(view(module), sample)


def codes_by_name(graph: Graph, sample: Sample) -> dict[str, np.ndarray]:
    """Every uint8 value by its ONNX name."""
    found: dict[str, np.ndarray] = {}

    def see(node: Any, result: np.ndarray) -> None:
        if node.output.dtype == "uint8" and node.origin.value:
            found[node.origin.value] = result

    interpret(graph, sample, see)
    return found


def snr(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to noise in dB."""
    noise = np.sum((reference.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / max(noise, 1e-30)))

"""Write a model as standard QDQ ONNX: QuantizeLinear and DequantizeLinear at the values that `mark` marked.

What QDQ cannot say, or is left out of the file:

- the int32 accumulator of a residual addition: there is no pair between a convolution and the addition that takes
  its accumulator, which is right, but most runtimes then compute that convolution in floats;
- multiplications by one constant a channel (a batch normalisation behind a concatenation) stay float between pairs;
- values that exist only inside one ONNX operator (a GroupNormalization, an LSTM) have no name to put a pair at;
- the mode of the arithmetic: a runtime rounds as it does, here ``float``. With ``shift`` the scales are powers of two;
- nodes in subgraphs (If, Loop) stay as they are.

Batch normalisations are folded into convolutions first (`onnx_fold`). Weights become int8 initialisers with one scale
an output channel, biases of convolutions int32 ones with the scale of the accumulator.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, version_converter

from dlc.errors import DlcError
from dlc.ir import arithmetic
from dlc.ir.convert import view
from dlc.options import Options
from dlc.passes.quantize import calibrate, mark
from dlc.passes.quantize.onnx_fold import Constants, add_constant, constants_of, drop_unused, fold_batch_norms
from dlc.passes.quantize.weights import quantize_weight
from dlc.passes.simplify import SIMPLIFY
from dlc.pipeline import Context, run_passes

#: Below this, QuantizeLinear has no axis.
LEAST_OPSET = 13


def quantize_onnx(model: str | Path | onnx.ModelProto, calibration: Any, options: Options) -> onnx.ModelProto:
    """The model with Q/DQ nodes, for any ONNX runtime.

    Args:
        model: a path or a parsed model, without Q/DQ nodes.
        calibration: as of `dlc.compile`.
        options: the calibration method and the arithmetic (``shift`` makes the scales powers of two).

    Raises:
        DlcError: the model cannot be imported, is quantised already, or the data do not fit it.
    """
    from dlc.calibration import samples_of
    from dlc.frontends.onnx import import_model

    module = import_model(model, options.shapes)
    if calibrate.is_quantized(view(module)):
        raise DlcError("the model is quantised already: it holds Q/DQ nodes or integer operators")
    context = Context(options)
    context.calibration = samples_of(calibration, module) if calibration is not None else None
    run_passes(module, [*SIMPLIFY, calibrate.PASS, mark.PASS], context)
    proto = model if isinstance(model, onnx.ModelProto) else onnx.load(str(model))
    return insert_pairs(proto, context.notes["quantization"], options.arithmetic == "shift")


def insert_pairs(model: onnx.ModelProto, parameters: Mapping[str, Any], shift: bool = False) -> onnx.ModelProto:
    """A copy of the model with Q/DQ pairs; `parameters` are the notes of the mark pass."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    opset = next((o.version for o in result.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset < LEAST_OPSET:
        result = version_converter.convert_version(result, LEAST_OPSET)
    result.ir_version = max(result.ir_version, 8)
    result.producer_name = "dlc"
    drop_unused(result.graph)
    fold_batch_norms(result.graph)
    writer = _Writer(result.graph, parameters["values"], shift)
    writer.run()
    drop_unused(result.graph)
    onnx.checker.check_model(result)
    return result


class _Writer:
    """Rebuilds the node list of a graph with pairs and integer weights."""

    def __init__(self, graph: onnx.GraphProto, values: Mapping[str, Mapping[str, Any]], shift: bool) -> None:
        self.graph, self.shift = graph, shift
        known = {i.name for i in graph.input} | {name for node in graph.node for name in node.output}
        self.values = {name: v for name, v in values.items() if name in known}
        self.constants: Constants = constants_of(graph)
        self.nodes: list[onnx.NodeProto] = []
        self.parameters: dict[str, tuple[str, str]] = {}

    def run(self) -> None:
        """Write every node again, each pair behind the value's producer."""
        for value in self.graph.input:
            self.pair(value.name)
        for node in self.graph.node:
            self.nodes.append(self.rewired(node))
            for name in node.output:
                self.pair(name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self.outputs()

    def pair(self, name: str) -> None:
        """Quantise and dequantise a value, if it is marked."""
        if name not in self.values:
            return
        value = self.values[name]
        scale = add_constant(self.graph, f"{name}_scale", np.asarray(value["scale"], np.float32))
        zero = add_constant(self.graph, f"{name}_zero_point", np.asarray(value["zero_point"], value["dtype"]))
        self.nodes += [
            helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_quantized"], f"{name}_QuantizeLinear"),
            helper.make_node(
                "DequantizeLinear", [f"{name}_quantized", scale, zero], [_read(name)], f"{name}_DequantizeLinear"
            ),
        ]

    def reads_codes(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether the node reads the rounded value: all do, but those that stay float behind a float producer."""
        value = self.values.get(name)
        if value is None:
            return False
        labels = {node.name, node.doc_string, *node.output} - {""}
        return not value["exact"] or bool(labels & set(value.get("readers", ())))

    def rewired(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node reading dequantised values, its weight and bias integers where its input is one."""
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for index, name in enumerate(node.input):
            if self.reads_codes(node, name):
                made.input[index] = _read(name)
        if node.op_type in ("Conv", "Gemm", "MatMul") and made.input[0] != node.input[0]:
            self.weight(node, made)
        made.doc_string = ""
        return made

    def weight(self, node: onnx.NodeProto, made: onnx.NodeProto) -> None:
        """Store the weight and, of Conv and plain Gemm, the bias as integers."""
        weight = self.constants.get(node.input[1])
        if weight is None or weight.dtype != np.float32 or (node.op_type != "Conv" and weight.ndim != 2):
            return
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("transA", 0):
            return
        axis = 0 if node.op_type == "Conv" or attributes.get("transB", 0) else 1
        x_scale = float(self.values[node.input[0]]["scale"])
        bias = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
        if bias is None or not plain or bias.shape != (weight.shape[axis],):
            bias = None
        magnitude = None if bias is None else np.abs(bias)
        codes, scales = quantize_weight(weight, axis, x_scale, magnitude, self.shift)
        prefix = f"{node.input[1]}_{node.output[0]}"
        made.input[1] = self.dequantized(prefix, codes, scales, axis)
        if bias is not None:
            units = np.float32(x_scale) * scales
            integers = arithmetic.quantize_bias(bias, x_scale, scales)
            made.input[2] = self.dequantized(f"{node.input[2]}_{node.output[0]}_bias", integers, units, 0)

    def dequantized(self, prefix: str, codes: np.ndarray, scales: np.ndarray, axis: int) -> str:
        """Integer constants with a DequantizeLinear along an axis; the name of its result."""
        inputs = [
            add_constant(self.graph, f"{prefix}_quantized", codes),
            add_constant(self.graph, f"{prefix}_scale", scales),
            add_constant(self.graph, f"{prefix}_zero_point", np.zeros(scales.shape, codes.dtype)),
        ]
        name = f"{prefix}_dequantized"
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], f"{prefix}_DequantizeLinear", axis=axis))
        return name

    def outputs(self) -> None:
        """An output of the graph that is marked is the dequantised value, under the output's own name."""
        for value in self.graph.output:
            if value.name not in self.values or self.values[value.name]["exact"]:
                continue
            inner = f"{value.name}_real"
            for node in self.graph.node:
                for index, name in enumerate(node.output):
                    if name == value.name:
                        node.output[index] = inner
                    elif name == _read(value.name):
                        node.output[index] = value.name
                for index, name in enumerate(node.input):
                    if name == value.name:
                        node.input[index] = inner
                    elif name == _read(value.name):
                        node.input[index] = value.name


def _read(name: str) -> str:
    return f"{name}_dequantized"

"""The ONNX side of `dlc.passes.simplify.fold_scale`: batch normalisations move into the convolutions before them.

A QDQ file stores integer weights, so what scales a weight must be inside it before it is rounded.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import numpy_helper

Constants = dict[str, np.ndarray]


def constants_of(graph: onnx.GraphProto) -> Constants:
    """Every initialiser and Constant node, by name."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def readers_of(graph: onnx.GraphProto) -> Counter[str]:
    """How often each value is read, outputs of the graph included."""
    return Counter([*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)])


def add_constant(graph: onnx.GraphProto, name: str, array: np.ndarray) -> str:
    """A new initialiser."""
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def _factors(node: onnx.NodeProto, constants: Constants) -> tuple[np.ndarray, np.ndarray] | None:
    """The scale and shift of a batch normalisation; None where they are not constant."""
    parameters = [constants.get(name) for name in node.input[1:5]]
    known = [p.astype(np.float64) for p in parameters if p is not None]
    if len(known) != 4 or len(node.output) != 1:
        return None
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    gamma, beta, mean, variance = known
    factor = gamma / np.sqrt(variance + epsilon)
    return factor, beta - mean * factor


def fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Fold, in place, every batch normalisation that alone reads a convolution with constant weights.

    The convolution then gives the normalisation's value, and has its name.
    """
    constants, readers = constants_of(graph), readers_of(graph)
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    folded = []
    for node in graph.node:
        convolution = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        found = _factors(node, constants) if convolution is not None else None
        if convolution is None or found is None or readers[node.input[0]] != 1:
            continue
        names = list(convolution.input)
        weight = constants.get(names[1])
        bias = constants.get(names[2]) if len(names) > 2 else None
        if weight is None or (len(names) > 2 and bias is None):
            continue
        factor, shift = found
        scaled = weight.astype(np.float64) * factor.reshape(-1, *(1,) * (weight.ndim - 1))
        if bias is not None:
            shift = shift + bias.astype(np.float64) * factor
        output = node.output[0]
        del convolution.input[1:]
        convolution.input.append(add_constant(graph, f"{output}_folded_weight", scaled.astype(weight.dtype)))
        convolution.input.append(add_constant(graph, f"{output}_folded_bias", shift.astype(weight.dtype)))
        convolution.output[0] = output
        convolution.doc_string = node.name  # the IR may call the pair by either name
        folded.append(node)
    for node in folded:
        graph.node.remove(node)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initialisers that nothing reads, and inputs that repeat an initialiser."""
    read = readers_of(graph)
    kept = [tensor for tensor in graph.initializer if read[tensor.name]]
    names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in names]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(kept)
    graph.input.extend(inputs)

"""Scales, zero points and multipliers as operands of a kernel, so that layers that differ in them only share one.

They come from calibration and differ from layer to layer, where nothing else may. As part of the code they would
give each layer kernels of its own: more to compile and to load, and in a loop over the layers of a large network
more code than the first-level cache holds.
"""

from __future__ import annotations

from dataclasses import replace
from math import frexp

import numpy as np

from dlc.ir.graph import Graph, Node, Value
from dlc.targets.cpu.kernels.quantized import NUMBERS


def _parameters(node: Node) -> tuple[str, ...]:
    """What calibration found, of a quantisation operator's inputs."""
    if node.op in ("dlc.quantize", "dlc.dequantize"):
        return node.inputs[1:]
    return node.inputs[node.attrs["terms"] :] if node.op == "dlc.requantize" else ()


def _is_simple(array: np.ndarray) -> bool:
    """Whether code that knows the number is shorter: a zero point of 0, a scale by which nothing is divided."""
    number = float(array.reshape(-1)[0])
    return number == 0 or (array.dtype.kind not in "iu" and frexp(number)[0] == 0.5)


def _with_operands(node: Node, constants: dict[str, np.ndarray]) -> Node:
    """A requantisation with its attributes' numbers as operands more, which are added to `constants`."""
    if node.op != "dlc.requantize":
        return node
    numbers = [*node.attrs["term_zero_points"], *(node.attrs[key] for key in NUMBERS)]
    names = tuple(f"{node.output.name}_{position}" for position in range(len(numbers)))
    constants |= {name: np.array(number, np.int32) for name, number in zip(names, numbers, strict=True)}
    attrs = {k: v for k, v in node.attrs.items() if k not in (*NUMBERS, "term_zero_points")}
    return replace(node, inputs=(*node.inputs, *names), attrs=attrs)


def lift(body: Graph) -> tuple[Graph, dict[str, np.ndarray]]:
    """A region with such numbers as inputs more, behind its own, and what they are: arrays of no dimension."""
    constants = dict(body.constants)
    nodes = tuple(_with_operands(node, constants) for node in body.nodes)
    names = dict.fromkeys(name for node in nodes for name in _parameters(node) if name in constants)
    lifted = {
        name: constants.pop(name).reshape(())
        for name in names
        if constants[name].size == 1 and not _is_simple(constants[name])
    }
    inputs = [Value(name, (), str(array.dtype)) for name, array in lifted.items()]
    return replace(body, inputs=(*body.inputs, *inputs), nodes=nodes, constants=constants), lifted

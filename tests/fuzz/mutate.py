"""Damaged models: bytes flipped, cut and moved, and protobuf fields set to what nobody would write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.fuzz.generate import generate
from tests.fuzz.graph import RejectedError

_NUMBERS = [0, 1, -1, 2, -2, 3, 7, 100, -100, 2**31 - 1, -(2**31), 2**31, 2**40, 2**63 - 1, -(2**63), 2**62, 10**9]
_REALS = [0.0, -1.0, 1e-45, 1e38, -1e38, float("nan"), float("inf"), float("-inf"), 0.5]
_TEXTS = ["", "x", "NOTSET", "SAME_UPPER", "linear", "ij,jk->ik", "...", "a" * 3000, "\u00e9\u4e2d", "a b", "1+1", "0"]
_TEXTS += ["__import__('os')", "../up", "n" + "\n" + "m", "None", "int", "x\x00y"]
_OPS = [
    "Add",
    "Conv",
    "MatMul",
    "Reshape",
    "Slice",
    "Concat",
    "Gather",
    "Shape",
    "If",
    "Loop",
    "Scan",
    "LSTM",
    "Resize",
    "Pad",
    "Split",
    "Cast",
    "TopK",
    "Einsum",
]
_OPS += [
    "NoSuchOperator",
    "Constant",
    "Identity",
    "QuantizeLinear",
    "DequantizeLinear",
    "Range",
    "NonZero",
    "SequenceConstruct",
    "Where",
]


class _Mutator:
    """Damages a model in place, with random numbers of its own."""

    def __init__(self, model: onnx.ModelProto, rng: np.random.Generator) -> None:
        self.model, self.rng = model, rng

    def pick(self, choices: Sequence[Any]) -> Any:
        if not len(choices):
            raise RejectedError
        return choices[int(self.rng.integers(len(choices)))]

    def graph(self) -> onnx.GraphProto:
        """The graph, or one inside it."""
        graphs, found = [self.model.graph], []
        while graphs:
            found.append(graphs.pop())
            graphs += [a.g for n in found[-1].node for a in n.attribute if a.type == AttributeProto.GRAPH]
        return found[0] if self.rng.random() < 0.5 else self.pick(found)

    def names(self) -> list[str]:
        graph = self.graph()
        made = [name for node in graph.node for name in node.output]
        return [*made, *(v.name for v in graph.input), *(t.name for t in graph.initializer), "", "nowhere"]

    def type(self) -> int:
        return int(self.rng.integers(0, 27)) if self.rng.random() < 0.8 else int(self.pick([-1, 99, 2**30]))

    # --- nodes ---

    def node_inputs(self) -> None:
        node = self.pick(self.graph().node)
        way = self.pick(["drop", "rename", "rename", "add", "swap", "clear"])
        if way == "add":
            node.input.append(self.pick(self.names()))
        elif way == "clear":
            del node.input[:]
        elif node.input:
            at = int(self.rng.integers(len(node.input)))
            if way == "drop":
                del node.input[at]
            elif way == "rename":
                node.input[at] = self.pick([*self.names(), *node.output])
            else:
                node.input[at], node.input[0] = node.input[0], node.input[at]

    def node_outputs(self) -> None:
        node = self.pick(self.graph().node)
        way = self.pick(["drop", "rename", "add"])
        if way == "add":
            node.output.append(self.pick([*self.names(), "more"]))
        elif node.output and way == "drop":
            del node.output[int(self.rng.integers(len(node.output)))]
        elif node.output:
            node.output[int(self.rng.integers(len(node.output)))] = self.pick(self.names())

    def node_kind(self) -> None:
        node = self.pick(self.graph().node)
        node.op_type = self.pick([*_OPS, *(n.op_type for n in self.model.graph.node)])
        if self.rng.random() < 0.1:
            node.domain = self.pick(["com.microsoft", "ai.onnx", "ai.onnx.ml", "nowhere", "\u00e9"])

    def node_order(self) -> None:
        graph = self.graph()
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
        if self.rng.random() < 0.5:
            nodes = [nodes[int(i)] for i in self.rng.permutation(len(nodes))]
        else:
            nodes.append(self.pick(nodes))
        del graph.node[:]
        graph.node.extend(nodes)

    def node_dropped(self) -> None:
        graph = self.graph()
        del graph.node[int(self.rng.integers(len(graph.node)))]

    def node_name(self) -> None:
        self.pick(self.graph().node).name = self.pick(_TEXTS)

    # --- attributes ---

    def attribute(self) -> None:
        node = self.pick([n for n in self.graph().node if n.attribute])
        at = int(self.rng.integers(len(node.attribute)))
        chosen = node.attribute[at]
        way = self.pick(["value", "value", "value", "type", "drop", "name", "double"])
        if way == "drop":
            del node.attribute[at]
        elif way == "type":
            chosen.type = self.pick(list(range(16)))
        elif way == "name":
            chosen.name = self.pick([*_TEXTS, "axis", "axes", "perm", "to"])
        elif way == "double":
            node.attribute.append(chosen)
        elif chosen.type == AttributeProto.GRAPH and self.rng.random() < 0.3:
            chosen.g.Clear()
        else:
            chosen.i, chosen.f = self.pick(_NUMBERS), self.pick(_REALS)
            chosen.s = self.pick([t.encode() for t in _TEXTS] + [b"\xff\xfe"])
            for field, values in ((chosen.ints, _NUMBERS), (chosen.floats, _REALS)):
                if len(field) and self.rng.random() < 0.6:
                    field[int(self.rng.integers(len(field)))] = self.pick(values)
                elif self.rng.random() < 0.5:
                    field.extend([self.pick(values)])
                else:
                    del field[int(self.rng.integers(len(field) + 1)) :]

    def new_attribute(self) -> None:
        node = self.pick(self.graph().node)
        name = self.pick(
            [
                "axis",
                "axes",
                "keepdims",
                "to",
                "pads",
                "strides",
                "dilations",
                "group",
                "perm",
                "blocksize",
                "mode",
                "auto_pad",
                "k",
            ]
        )
        value = self.pick([self.pick(_NUMBERS), [self.pick(_NUMBERS)], self.pick(_REALS), self.pick(_TEXTS)])
        node.attribute.append(helper.make_attribute(name, value))

    # --- tensors ---

    def tensor(self) -> None:
        held = [t for t in self.graph().initializer]
        held += [a.t for n in self.graph().node for a in n.attribute if a.type == AttributeProto.TENSOR]
        chosen = self.pick(held)
        way = self.pick(["type", "dims", "data", "values", "values", "outside", "name"])
        if way == "type":
            chosen.data_type = self.type()
        elif way == "dims" and len(chosen.dims) and self.rng.random() < 0.7:
            chosen.dims[int(self.rng.integers(len(chosen.dims)))] = self.pick(_NUMBERS)
        elif way == "dims":
            chosen.dims.append(self.pick(_NUMBERS))
        elif way == "data":
            chosen.raw_data = chosen.raw_data[: int(self.rng.integers(len(chosen.raw_data) + 1))]
        elif way == "outside":
            self.outside(chosen)
        elif way == "name":
            chosen.name = self.pick(self.names())
        else:
            array = numpy_helper.to_array(chosen).copy()
            if array.size and array.dtype.kind in "iuf":
                with np.errstate(all="ignore"):
                    numbers = _REALS if array.dtype.kind == "f" else _NUMBERS
                    array.reshape(-1)[int(self.rng.integers(array.size))] = np.array(self.pick(numbers)).astype(
                        array.dtype
                    )
                chosen.CopyFrom(numpy_helper.from_array(array, chosen.name))

    def outside(self, tensor: onnx.TensorProto) -> None:
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        place = self.pick(["../outside.bin", "/etc/passwd", "missing.bin", "here.bin", ".", "", "a/../../b", "x\x00y"])
        for key, value in (("location", place), ("offset", self.pick(_NUMBERS)), ("length", self.pick(_NUMBERS))):
            if self.rng.random() < 0.8:
                tensor.external_data.add(key=key, value=str(value))

    # --- the graph's and the model's own fields ---

    def value(self) -> None:
        graph = self.graph()
        chosen = self.pick([*graph.input, *graph.output])
        way = self.pick(["type", "dim", "dim", "rank", "name", "kind"])
        tensor = chosen.type.tensor_type
        if way == "type":
            tensor.elem_type = self.type()
        elif way == "rank":
            tensor.shape.dim.add()
        elif way == "name":
            chosen.name = self.pick([*self.names(), *_TEXTS])
        elif way == "kind":
            self.pick([chosen.type.Clear, chosen.type.sequence_type.SetInParent, lambda: tensor.ClearField("shape")])()
        elif tensor.shape.dim:
            dim = self.pick(tensor.shape.dim)
            if self.rng.random() < 0.5:
                dim.dim_value = self.pick(_NUMBERS)
            else:
                dim.dim_param = self.pick(_TEXTS)

    def values_list(self) -> None:
        graph = self.graph()
        chosen = self.pick([graph.input, graph.output, graph.initializer])
        if self.rng.random() < 0.5 and len(chosen):
            chosen.append(self.pick(chosen))
        elif len(chosen):
            del chosen[int(self.rng.integers(len(chosen)))]

    def versions(self) -> None:
        way = self.pick(["ir", "opset", "more", "none"])
        if way == "ir":
            self.model.ir_version = int(self.pick([0, 1, 3, 4, 7, 12, 99, 2**40]))
        elif way == "opset":
            self.model.opset_import[0].version = int(self.pick([*range(30), -1, 2**40]))
        elif way == "more":
            self.model.opset_import.add(
                domain=self.pick(["", "ai.onnx", "com.microsoft", "x"]), version=self.pick([1, 9, 17])
            )
        else:
            del self.model.opset_import[:]

    def function(self) -> None:
        """A local function that is called, or that calls itself."""
        graph = self.graph()
        node = self.pick(graph.node)
        calls = self.rng.random() < 0.5
        inner = onnx.NodeProto.FromString(node.SerializeToString())
        if calls:
            inner.op_type, inner.domain = "F", "local"
        self.model.functions.append(
            helper.make_function(
                "local", "F", list(node.input), list(node.output), [inner], list(self.model.opset_import)
            )
        )
        self.model.opset_import.add(domain="local", version=1)
        node.op_type, node.domain = "F", "local"

    def nesting(self) -> None:
        """Branches inside branches."""
        graph = self.model.graph
        output = self.pick(graph.output)
        inner = helper.make_graph(
            [helper.make_node("Identity", [output.name], ["deep"])],
            "b",
            [],
            [helper.make_empty_tensor_value_info("deep")],
        )
        for level in range(int(self.pick([3, 40, 90]))):
            name = f"deep{level}"
            node = helper.make_node(
                "If", ["always"], [name], then_branch=inner, else_branch=inner if level < 3 else _copy()
            )
            inner = helper.make_graph([node], "b", [], [helper.make_empty_tensor_value_info(name)])
        graph.initializer.append(numpy_helper.from_array(np.asarray(True), "always"))
        graph.node.extend(inner.node)
        graph.output.append(onnx.ValueInfoProto(name=inner.node[0].output[0], type=output.type))

    def sparse(self) -> None:
        self.model.graph.sparse_initializer.add().dims.append(3)


def _copy() -> onnx.GraphProto:
    node = helper.make_node("Constant", [], ["other"], value_float=1.0)
    return helper.make_graph([node], "o", [], [helper.make_empty_tensor_value_info("other")])


_WAYS = {
    "node_inputs": 6, "node_outputs": 3, "node_kind": 4, "node_order": 2, "node_dropped": 2, "node_name": 1,
    "attribute": 8, "new_attribute": 3, "tensor": 8, "value": 6, "values_list": 2, "versions": 2, "function": 1,
    "nesting": 0.5, "sparse": 0.2,
}  # fmt: skip


def _fields(model: onnx.ModelProto, rng: np.random.Generator) -> bytes:
    mutator = _Mutator(model, rng)
    names, weights = list(_WAYS), np.array(list(_WAYS.values()))
    for _ in range(int(rng.integers(1, 4))):
        try:
            getattr(mutator, names[int(rng.choice(len(names), p=weights / weights.sum()))])()
        except Exception:  # protobuf and onnx refuse to write some of these, or to read what was damaged before
            continue
    return model.SerializeToString()


def _bytes(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        at, kind = int(rng.integers(len(out))), int(rng.integers(6))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.integers(256))
        elif kind == 2:
            del out[at : at + int(rng.integers(1, 20))]
        elif kind == 3:
            out[at:at] = bytes(rng.integers(0, 256, int(rng.integers(1, 6)), np.uint8))
        elif kind == 4:
            out[at:at] = out[at : at + int(rng.integers(1, 60))]
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def mutant(seed: int) -> bytes:
    """The damaged model of a seed."""
    rng = np.random.default_rng([seed, 1])
    model = generate(seed).model
    change: Callable[..., bytes] = _fields if rng.random() < 0.7 else _bytes
    return change(model if change is _fields else model.SerializeToString(), rng)

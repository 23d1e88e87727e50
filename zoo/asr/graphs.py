"""The network as ONNX: one LSTM node a layer, with open batch and time, and the length of each utterance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dlc.zoo.asr.data import INPUT, LENGTHS
from dlc.zoo.asr.features import WIDTH
from dlc.zoo.asr.inference import OUTPUT
from dlc.zoo.asr.text import ALPHABET
from dlc.zoo.exporting import add_notes

_OPSET = 17
#: torch's order of the gates is i, f, g, o; ONNX's i, o, f, c.
_GATES = (0, 3, 1, 2)


def recogniser(weights: Mapping[str, NDArray[np.float32]], notes: Mapping[str, Any]) -> ModelProto:
    """The ONNX model of a network's weights by their names in torch, with `notes` among its metadata."""
    tensors: dict[str, NDArray[Any]] = {
        "joined": np.array([0, 0, -1], np.int64),
        "out.weight": np.ascontiguousarray(weights["out.weight"].T),
        "out.bias": weights["out.bias"],
    }
    nodes = [helper.make_node("Transpose", [INPUT], ["x0"], perm=[1, 0, 2])]
    layers = sum(name.startswith("lstm.weight_hh") and not name.endswith("reverse") for name in weights)
    for n in range(layers):
        names = [f"layer{n}.{part}" for part in ("w", "r", "b")]
        tensors |= dict(zip(names, _layer(weights, n), strict=True))
        hidden = tensors[names[1]].shape[2]
        nodes += [
            helper.make_node(
                "LSTM", [f"x{n}", *names, LENGTHS], [f"y{n}"], direction="bidirectional", hidden_size=hidden
            ),
            # (time, direction, batch, hidden): both directions side by side
            helper.make_node("Transpose", [f"y{n}"], [f"t{n}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"t{n}", "joined"], [f"x{n + 1}"]),
        ]
    nodes += [
        helper.make_node("MatMul", [f"x{layers}", "out.weight"], ["product"]),
        helper.make_node("Add", ["product", "out.bias"], ["sum"]),
        helper.make_node("Transpose", ["sum"], [OUTPUT], perm=[1, 0, 2]),
    ]
    graph = helper.make_graph(
        nodes, "asr",
        [
            helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", "time", WIDTH]),
            helper.make_tensor_value_info(LENGTHS, TensorProto.INT32, ["batch"]),
        ],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", "time", len(ALPHABET)])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    add_notes(model, notes)
    return model


def _layer(weights: Mapping[str, NDArray[np.float32]], n: int) -> tuple[NDArray[np.float32], ...]:
    """W (2, 4 H, I), R (2, 4 H, H) and B (2, 8 H) of a layer, both directions."""

    def both(kind: str) -> NDArray[np.float32]:
        return np.stack([_gates(weights[f"lstm.{kind}_l{n}{way}"]) for way in ("", "_reverse")])

    return both("weight_ih"), both("weight_hh"), np.concatenate([both("bias_ih"), both("bias_hh")], 1)


def _gates(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows of the gates in ONNX's order."""
    blocks = np.split(rows, 4)
    return np.concatenate([blocks[gate] for gate in _GATES])

"""The whole translation as one ONNX graph: encoder, beam search as a Loop, the way back through its choices as a Scan.

Weights have their names from training, so an ONNX file of any beam width is all that is needed to make another; see
`read_translator`. K hypotheses are decoded side by side. What the search keeps of each step goes to row i of three
states, by ScatterND: the piece that each hypothesis got, which hypothesis it went on from, and where each looked in the
source. So no hypothesis is copied when the search leaves it for another; the Scan reads the best one backwards.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dlc.errors import DlcError
from dlc.zoo.graphs import Graph, Weights, info
from dlc.zoo.nmt.data import BOS, EOS, INPUT, LIMIT

BEAM = 4  # hypotheses of the committed model
TOKENS, ALIGNMENT, SCORE = "tokens", "alignment", "score"
#: The exponent of the length penalty ((5 + length) / 6) ** ALPHA (Wu et al. 2016, arXiv:1609.08144, equation 14).
ALPHA = 0.6
#: The value that a state begins with, its element type and its extents.
State = tuple[str, int, list[int | str]]
_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_NEVER = np.float32(-1e9)  # the log probability of what must not be chosen


def translator(weights: Weights, beam: int) -> ModelProto:
    """The graph that translates.

    Input ``source``, int64 (1, S): the pieces of a sentence and EOS. Outputs: ``tokens``, int64 (1, LIMIT), the pieces
    of the best translation, EOS behind them and in all places left; ``score``, float32 (1,), its log probability over
    the length penalty; with attention ``alignment``, float32 (1, LIMIT, S), the share of each source piece in each.

    Args:
        weights: by their names from training; without attention where ``keys.weight`` is missing.
        beam: hypotheses, 1 for the greedy search.
    """
    main = Graph(weights)
    annotations = _encode(main)
    summary = _ends(main, annotations)
    attends = "keys.weight" in weights
    states = _begin(main, summary, beam)
    if attends:
        main.op("Identity", [annotations], ["annotations"])
        _dense(main, annotations, "keys", output="projected")
        extents = main.op("Concat", [main.integers(LIMIT, beam), _extent(main, annotations)], axis=0)
        zero = main.constant("zero", np.zeros((1, 1, 1), np.float32))
        states["looks"] = main.op("Expand", [zero, extents]), _FLOAT, [LIMIT, beam, "S"]
    else:
        main.op("Expand", [summary, main.integers(beam, 1)], ["summary"])
    body = Graph(weights, "step_")
    _step(body, beam, attends)
    block = helper.make_graph(
        body.nodes,
        "step",
        [
            info("i", _INT64, []),
            info("going", _BOOL, []),
            *(info(name, kind, shape) for name, (_, kind, shape) in states.items()),
        ],
        [info("goes", _BOOL, []), *(info(f"{name}_new", kind, shape) for name, (_, kind, shape) in states.items())],
    )
    inputs = [main.constant("limit", np.array(LIMIT, np.int64)), "", *(start for start, *_ in states.values())]
    main.op("Loop", inputs, [f"{name}_end" for name in states], body=block)
    outputs = _trace(main, beam, attends)
    return main.model("nmt", [info(INPUT, _INT64, [1, "S"])], outputs, body.constants)


def _begin(graph: Graph, summary: str, beam: int) -> dict[str, State]:
    """The states of the search at its start: one hypothesis, and others that nothing will be chosen from."""
    arrays: dict[str, np.ndarray] = {
        "history": np.full((LIMIT, beam), EOS, np.int64),
        "parents": np.tile(np.arange(beam), (LIMIT, 1)),
        "token": np.full(beam, BOS, np.int64),
        "total": np.array([0] + [_NEVER] * (beam - 1), np.float32),
        "length": np.zeros(beam, np.float32),
    }
    found: dict[str, State] = {}
    for name, array in arrays.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        found[name] = graph.constant(f"{name}_start", array), kind, list(array.shape)
    size = graph.weights["cell.weight_hh"].shape[1]
    first = graph.op("Tanh", [_dense(graph, summary, "start")])
    found["state"] = graph.op("Expand", [first, graph.integers(beam, size)]), _FLOAT, [beam, size]
    return found


def from_training(tensors: Weights) -> dict[str, np.ndarray]:
    """The weights as `translator` takes them: both directions of the encoder in one tensor, gates in ONNX's order."""

    def both(name: str) -> np.ndarray:
        """torch has the gates r, z, n; ONNX z, r, h."""
        gates = [np.split(tensors[f"encoder.{name}_l0{direction}"], 3) for direction in ("", "_reverse")]
        return np.stack([np.concatenate([z, r, n]) for r, z, n in gates])

    found = {name: array for name, array in tensors.items() if not name.startswith("encoder.")}
    bias = np.concatenate([both("bias_ih"), both("bias_hh")], 1)
    return {**found, "encoder.input": both("weight_ih"), "encoder.recurrence": both("weight_hh"), "encoder.bias": bias}


def _encode(graph: Graph) -> str:
    """The annotations of the source, (S, 2 H): both directions' states at each piece."""
    size = _size(graph)
    embedded = graph.op("Gather", [graph.weight("embedding.weight"), INPUT])
    steps = graph.op("Transpose", [embedded], perm=[1, 0, 2])
    weights = [graph.weight(f"encoder.{name}") for name in ("input", "recurrence", "bias")]
    states = graph.op(
        "GRU", [steps, *weights], hidden_size=size, direction="bidirectional", linear_before_reset=1
    )  # (S, 2, 1, H)
    return graph.op("Reshape", [states, graph.integers(-1, 2 * size)])


def _size(graph: Graph) -> int:
    """H, the units of one direction of the encoder."""
    return int(graph.weights["encoder.recurrence"].shape[2])


def _ends(graph: Graph, annotations: str) -> str:
    """(1, 2 H): the last state of the forward direction and the first of the backward one."""
    size = _size(graph)
    forward = graph.op("Slice", [annotations, graph.integers(-1, 0), graph.integers(2**31, size), graph.integers(0, 1)])
    backward = graph.op(
        "Slice", [annotations, graph.integers(0, size), graph.integers(1, 2 * size), graph.integers(0, 1)]
    )
    return graph.op("Concat", [forward, backward], axis=1)


def _extent(graph: Graph, annotations: str) -> str:
    """(1,): the length of the source."""
    shape = graph.op("Shape", [annotations])
    return graph.op("Slice", [shape, graph.integers(0), graph.integers(1)])


def _dense(graph: Graph, x: str, name: str, output: str = "") -> str:
    weights = [graph.weight(f"{name}.{part}") for part in ("weight", "bias")]
    return graph.op("Gemm", [x, *weights], [output] if output else [], transB=1)


def _step(body: Graph, beam: int, attends: bool) -> None:
    """One iteration: a piece for each hypothesis."""
    logits, state = _decode(body, attends)
    totals, lengths, pieces = _continue(body, logits, beam)
    parent = _choose(body, totals, lengths, pieces, beam)
    body.op("Gather", [state, parent], ["state_new"])
    place = body.op("Reshape", ["i", body.integers(1, 1)])
    rows = {"history": "token_new", "parents": parent} | ({"looks": "looking"} if attends else {})
    for name, row in rows.items():
        body.op("ScatterND", [name, place, body.op("Unsqueeze", [row, body.integers(0)])], [f"{name}_new"])
    open_ = body.op("Not", [body.op("Equal", ["token_new", body.integers(EOS)])])
    some = body.op("ReduceMax", [body.op("Cast", [open_], to=_INT64)], axes=[0], keepdims=0)
    body.op("Cast", [some], ["goes"], to=_BOOL)


def _decode(body: Graph, attends: bool) -> tuple[str, str]:
    """The logits (K, vocabulary) of each hypothesis's next piece, and the states (K, D) that they come from."""
    embedded = body.op("Gather", [body.weight("embedding.weight"), "token"])
    context = _attend(body) if attends else "summary"
    state = _cell(body, body.op("Concat", [embedded, context], axis=1))
    hidden = body.op("Tanh", [_dense(body, body.op("Concat", [state, context, embedded], axis=1), "readout")])
    return body.op("Gemm", [hidden, body.weight("embedding.weight"), body.weight("bias")], transB=1), state


def _continue(body: Graph, logits: str, beam: int) -> tuple[str, str, str]:
    """The best K continuations of each hypothesis, among which are the best of all: (K, K) log probabilities and
    pieces, and their lengths (K, 1). One that has ended goes on with EOS alone, at no cost and no length."""
    values, best = f"{body.prefix}values", f"{body.prefix}best"
    body.op("TopK", [logits, body.integers(beam)], [values, best], axis=1)
    gains = body.op("Sub", [values, body.op("ReduceLogSumExp", [logits], axes=[1], keepdims=1)])
    column = body.integers(beam, 1)
    ended = body.op("Reshape", [body.op("Equal", ["token", body.integers(EOS)]), column])
    stays = body.constant("stays", np.array([[0] + [_NEVER] * (beam - 1)], np.float32))
    totals = body.op("Add", [body.op("Reshape", ["total", column]), body.op("Where", [ended, stays, gains])])
    one = body.constant("one", np.array(1, np.float32))
    grown = body.op("Sub", [one, body.op("Cast", [ended], to=_FLOAT)])
    lengths = body.op("Add", [body.op("Reshape", ["length", column]), grown])
    return totals, lengths, body.op("Where", [ended, body.integers(EOS), best])


def _choose(body: Graph, totals: str, lengths: str, pieces: str, beam: int) -> str:
    """The best K of all continuations become the hypotheses; returns which they go on from, (K,)."""
    flat = body.integers(-1)
    ranked = body.op("Reshape", [body.op("Div", [totals, _penalty(body, lengths)]), flat])
    ranks, chosen = f"{body.prefix}ranks", f"{body.prefix}chosen"
    body.op("TopK", [ranked, body.integers(beam)], [ranks, chosen])
    parent = body.op("Div", [chosen, body.constant("beam", np.array(beam, np.int64))])
    body.op("Gather", [body.op("Reshape", [pieces, flat]), chosen], ["token_new"])
    body.op("Gather", [body.op("Reshape", [totals, flat]), chosen], ["total_new"])
    body.op("Gather", [body.op("Reshape", [lengths, flat]), parent], ["length_new"])
    return parent


def _attend(body: Graph) -> str:
    """The annotations' mean (K, 2 H), weighted by ``looking`` (K, S): Bahdanau et al. 2015, arXiv:1409.0473, A.1.2."""
    query = body.op("Gemm", ["state", body.weight("query.weight")], transB=1)
    mixed = body.op("Tanh", [body.op("Add", ["projected", body.op("Unsqueeze", [query, body.integers(1)])])])
    energy = body.op("MatMul", [mixed, body.op("Squeeze", [body.weight("energy.weight"), body.integers(0)])])
    body.op("Softmax", [energy], ["looking"], axis=1)
    return body.op("MatMul", ["looking", "annotations"])


def _cell(body: Graph, x: str) -> str:
    """The decoder's next state (K, D)."""
    size = body.weights["cell.weight_hh"].shape[1]

    def product(value: str, part: str) -> str:
        return body.op("Gemm", [value, *(body.weight(f"cell.{kind}_{part}") for kind in ("weight", "bias"))], transB=1)

    given, kept = (body.split(product(v, part), 3, size) for v, part in ((x, "ih"), ("state", "hh")))
    reset, update = (body.op("Sigmoid", [body.op("Add", [given[n], kept[n]])]) for n in (0, 1))
    fresh = body.op("Tanh", [body.op("Add", [given[2], body.op("Mul", [reset, kept[2]])])])
    change = body.op("Mul", [update, body.op("Sub", ["state", fresh])])
    return body.op("Add", [fresh, change])


def _penalty(graph: Graph, length: str) -> str:
    """((5 + length) / 6) ** ALPHA."""
    longer = graph.op("Add", [length, graph.constant("five", np.array(5, np.float32))])
    share = graph.op("Div", [longer, graph.constant("six", np.array(6, np.float32))])
    return graph.op("Pow", [share, graph.constant("alpha", np.array(ALPHA, np.float32))])


def _trace(main: Graph, beam: int, attends: bool) -> list[onnx.ValueInfoProto]:
    """The best hypothesis, read from its end to its beginning; the outputs of the model."""
    ranks = main.op("Div", ["total_end", _penalty(main, "length_end")])
    best = main.op("ArgMax", [ranks], axis=0, keepdims=1)
    main.op("Gather", [ranks, best], [SCORE])
    body = Graph({}, "back_")
    body.op("Gather", ["pieces_then", "hypothesis"], ["piece"])
    body.op("Gather", ["parents_then", "hypothesis"], ["parent"])
    body.op("Identity", ["parent"], ["parent_out"])
    read = [info("pieces_then", _INT64, [beam]), info("parents_then", _INT64, [beam])]
    made = [info("piece", _INT64, [1])]
    rows = ["history_end", "parents_end"]
    if attends:
        body.op("Gather", ["looks_then", "parent"], ["look"])
        read.append(info("looks_then", _FLOAT, [beam, "S"]))
        made.append(info("look", _FLOAT, [1, "S"]))
        rows.append("looks_end")
    first = info("hypothesis", _INT64, [1])
    block = helper.make_graph(body.nodes, "back", [first, *read], [info("parent_out", _INT64, [1]), *made])
    main.op(
        "Scan", [best, *rows], ["first", *(f"{value.name}_all" for value in made)], body=block,
        num_scan_inputs=len(rows), scan_input_directions=[1] * len(rows), scan_output_directions=[1] * len(made),
    )  # fmt: skip
    main.op("Transpose", ["piece_all"], [TOKENS], perm=[1, 0])
    outputs = [info(TOKENS, _INT64, [1, LIMIT]), info(SCORE, _FLOAT, [1])]
    if attends:
        main.op("Transpose", ["look_all"], [ALIGNMENT], perm=[1, 0, 2])
        outputs.append(info(ALIGNMENT, _FLOAT, [1, LIMIT, "S"]))
    return outputs


def read_translator(path: Path) -> dict[str, np.ndarray]:
    """The weights of what `translator` made, by their names from training.

    Raises:
        DlcError: it is another model.
    """
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    if "readout.weight" not in weights or "encoder.input" not in weights:
        raise DlcError(f"{path} has no weights encoder.input and readout.weight: it is no translator of this family")
    return weights

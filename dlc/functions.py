"""Structures that ONNX has no operator for, as model-local functions of the domain ``dlc.functions``.

Each builder returns an ``onnx.FunctionProto`` for ``model.functions`` (the model imports the domain with version 1),
with a body of standard operators of opset 18: any ONNX runtime runs it. Nothing is recognised by name: when a model is
imported the body takes the call's place, and what is specialised is what the graph then says. So another body of the
same name is just a graph. Shapes: T rows, K features, E experts, H hidden units, N outputs, C classes, S words in the
largest class, V words, L the longest path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlc.errors import DlcError

if TYPE_CHECKING:
    import onnx

DOMAIN = "dlc.functions"
TRIE_STEP = "TrieStep"
_OPSETS = f'<domain: "{DOMAIN}", opset_import: ["" : 18]>'

#: Activations of experts: the lines that make ``h`` of ``s``.
ACTIVATIONS = {
    "relu": "h = Relu(s)",
    "sigmoid": "h = Sigmoid(s)",
    "silu": """t = Sigmoid(s)
               h = Mul(s, t)""",
    "gelu": """root = Constant<value_float = 0.70710678>()
               one = Constant<value_float = 1.0>()
               half = Constant<value_float = 0.5>()
               scaled = Mul(s, root)
               erf = Erf(scaled)
               raised = Add(erf, one)
               halved = Mul(raised, half)
               h = Mul(s, halved)""",
}


def _function(text: str) -> onnx.FunctionProto:
    from onnx import parser

    return parser.parse_function(_OPSETS + text)


def hard_experts(k: int = 1, activation: str = "relu", normalised: bool = False) -> onnx.FunctionProto:
    """``HardExperts(x, router, w1, b1, w2, b2)``: the k best of E experts with one hidden layer, for each row.

    x (T, K), router (K, E), w1 (E, K, H), b1 (E, 1, H), w2 (E, H, N), b2 (E, 1, N), all float32; the result is (T, N).
    An expert's weight is its softmax probability among all experts, or among the chosen ones where `normalised`.

    Raises:
        DlcError: there is no such activation.
    """
    if activation not in ACTIVATIONS:
        raise DlcError(f"no activation '{activation}'; known: {', '.join(ACTIVATIONS)}")
    weights = """total = ReduceSum<keepdims = 1>(best, rows)
                 weights = Div(best, total)""" if normalised else "weights = Identity(best)"  # fmt: skip
    return _function(f"""
        HardExperts(x, router, w1, b1, w2, b2) => (y) {{
            count = Constant<value_ints = [{k}]>()
            first = Constant<value_ints = [0]>()
            rows = Constant<value_ints = [1]>()
            last = Constant<value_ints = [2]>()
            logits = MatMul(x, router)
            probabilities = Softmax<axis = -1>(logits)
            best, chosen = TopK<axis = -1>(probabilities, count)
            {weights}
            shape = Shape(probabilities)
            zeros = ConstantOfShape(shape)
            gates = ScatterElements<axis = 1>(zeros, chosen, weights)
            each = Unsqueeze(x, first)
            s0 = MatMul(each, w1)
            s = Add(s0, b1)
            {ACTIVATIONS[activation]}
            z0 = MatMul(h, w2)
            z = Add(z0, b2)
            of_experts = Transpose<perm = [1, 0]>(gates)
            columns = Unsqueeze(of_experts, last)
            weighted = Mul(z, columns)
            y = ReduceSum<keepdims = 0>(weighted, first)
        }}""")


def class_softmax() -> onnx.FunctionProto:
    """``ClassSoftmax(x, class_weight, class_bias, word_weight, word_bias, class, word)``: log p of words in two levels.

    log p = log softmax(x @ class_weight + class_bias)[class]
          + log softmax(x @ word_weight[class] + word_bias[class])[word].
    x (T, K), class_weight (K, C), class_bias (C), word_weight (C, K, S), word_bias (C, S), class and word (T,) int64;
    the result is (T,). The places behind a smaller class's last word have a bias of -1e30.
    """
    return _function("""
        ClassSoftmax(x, class_weight, class_bias, word_weight, word_bias, class, word) => (log_p) {
            rows = Constant<value_ints = [1]>()
            class_place = Unsqueeze(class, rows)
            word_place = Unsqueeze(word, rows)
            class_sums = MatMul(x, class_weight)
            class_logits = Add(class_sums, class_bias)
            class_all = LogSoftmax<axis = -1>(class_logits)
            class_log = GatherElements<axis = 1>(class_all, class_place)
            weight = Gather<axis = 0>(word_weight, class)
            bias = Gather<axis = 0>(word_bias, class)
            row = Unsqueeze(x, rows)
            word_row = MatMul(row, weight)
            word_sums = Squeeze(word_row, rows)
            word_logits = Add(word_sums, bias)
            word_all = LogSoftmax<axis = -1>(word_logits)
            word_log = GatherElements<axis = 1>(word_all, word_place)
            both = Add(class_log, word_log)
            log_p = Squeeze(both, rows)
        }""")


def tree_softmax() -> onnx.FunctionProto:
    """``TreeSoftmax(x, weight, bias, paths, signs, word)``: log p of words that are leaves of a binary tree.

    log p = sum over the word's path of log sigmoid(sign * (x . weight[node] + bias[node])).
    x (T, K), weight (V - 1, K), bias (V - 1), paths (V, L) int64 (inner nodes from the root), signs (V, L) float32 (1
    or -1; 0 behind the path's end), word (T,) int64; the result is (T,).
    """
    return _function("""
        TreeSoftmax(x, weight, bias, paths, signs, word) => (log_p) {
            last = Constant<value_ints = [2]>()
            steps = Constant<value_ints = [1]>()
            path = Gather<axis = 0>(paths, word)
            sign = Gather<axis = 0>(signs, word)
            nodes = Gather<axis = 0>(weight, path)
            column = Unsqueeze(x, last)
            products = MatMul(nodes, column)
            sums = Squeeze(products, last)
            biases = Gather<axis = 0>(bias, path)
            logits = Add(sums, biases)
            signed = Mul(logits, sign)
            against = Neg(signed)
            surprise = Softplus(against)
            there = Abs(sign)
            counted = Mul(surprise, there)
            total = ReduceSum<keepdims = 0>(counted, steps)
            log_p = Neg(total)
        }""")


def trie_step(halvings: int) -> onnx.FunctionProto:
    """``TrieStep(parent, word, offsets, words)``: the numbers of the n-grams that continue others by a word.

    The function of `dlc.ir.ops.trie_step`, in standard operators: a binary search of ``[base, base + size)``, in which
    base moves to the middle where the word there is not greater. The importer makes that operator of it; a function of
    this name whose body differs is just a graph.

    Args:
        halvings: enough for the largest set of continuations: the bits of its size less one.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node

    def constant(name: str, value: int) -> onnx.NodeProto:
        held = numpy_helper.from_array(np.array(value, np.int32))
        return node("Constant", [], [name], value=held)

    nodes = [
        constant("one", 1),
        constant("two", 2),
        constant("zero", 0),
        node("Add", ["parent", "one"], ["next"]),
        node("Gather", ["offsets", "parent"], ["base_0"]),
        node("Gather", ["offsets", "next"], ["end"]),
        node("Sub", ["end", "base_0"], ["size_0"]),
    ]
    for k in range(halvings):
        nodes += [
            node("Div", [f"size_{k}", "two"], [f"half_{k}"]),
            node("Add", [f"base_{k}", f"half_{k}"], [f"middle_{k}"]),
            node("Gather", ["words", f"middle_{k}"], [f"stored_{k}"]),
            node("Cast", [f"stored_{k}"], [f"there_{k}"], to=TensorProto.INT32),
            node("LessOrEqual", [f"there_{k}", "word"], [f"right_{k}"]),
            node("Where", [f"right_{k}", f"middle_{k}", f"base_{k}"], [f"base_{k + 1}"]),
            node("Sub", [f"size_{k}", f"half_{k}"], [f"size_{k + 1}"]),
        ]
    nodes += [
        node("Gather", ["words", f"base_{halvings}"], ["stored"]),
        node("Cast", ["stored"], ["there"], to=TensorProto.INT32),
        node("Equal", ["there", "word"], ["equal"]),
        node("Greater", ["size_0", "zero"], ["some"]),
        node("And", ["equal", "some"], ["found"]),
        node("Size", ["words"], ["length"]),
        node("Cast", ["length"], ["length_32"], to=TensorProto.INT32),
        node("Sub", ["length_32", "one"], ["none"]),
        node("Where", ["found", f"base_{halvings}", "none"], ["entry"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_function(DOMAIN, TRIE_STEP, ["parent", "word", "offsets", "words"], ["entry"], nodes, opsets)

"""Structures that ONNX has no operator for, as model-local functions of the domain ``dlc.functions``.

Each builder returns an ``onnx.FunctionProto`` for ``model.functions`` (the model imports the domain with version 1),
with a body of standard operators of opset 18: any ONNX runtime runs it. Nothing is recognised by name: when a model is
imported the body takes the call's place, and what is specialised is what the graph then says. So another body of the
same name is just a graph. Shapes: T rows, K features, E experts, H hidden units, N outputs, C classes, S words in the
largest class, V words, L the longest path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dlc.errors import DlcError

if TYPE_CHECKING:
    import onnx

DOMAIN = "dlc.functions"
TRIE_STEP = "TrieStep"
BACKOFF_SCORE = "BackoffScore"
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


def class_best() -> onnx.FunctionProto:
    """``ClassBest(x, class_weight, class_bias, word_weight, word_bias)``: the most probable word in two levels.

    Exact: classes are tried in the order of their probability, and no further one as soon as no row's next class is as
    probable as the best word so far: a word is never more probable than its class (best first search). Inputs as of
    `class_softmax`; the results are class and word, (T,) int64, and log p, (T,).
    """
    return _function("""
        ClassBest(x, class_weight, class_bias, word_weight, word_bias) => (class, word, log_p) {
            columns = Constant<value_ints = [1]>()
            first = Constant<value_ints = [0]>()
            one = Constant<value_int = 1>()
            sums = MatMul(x, class_weight)
            logits = Add(sums, class_bias)
            class_log = LogSoftmax<axis = -1>(logits)
            shape = Shape(class_log)
            count = Gather(shape, one)
            counts = Unsqueeze(count, first)
            bounds, order = TopK<axis = -1>(class_log, counts)
            last = Sub(count, one)
            row = Unsqueeze(x, columns)
            lowest = Constant<value_float = -3.0e38>()
            rows = Shape<start = 0, end = 1>(x)
            best_0 = Expand(lowest, rows)
            zero = Constant<value_int = 0>()
            class_0 = Expand(zero, rows)
            yes = Constant<value = bool {1}>()
            log_p, class, word = Loop<body = try (int64 i, bool going, float[T] best, int64[T] best_class,
                    int64[T] best_word) => (bool goes, float[T] best_new, int64[T] class_new, int64[T] word_new) {
                number = Gather<axis = 1>(order, i)
                bound = Gather<axis = 1>(bounds, i)
                weight = Gather<axis = 0>(word_weight, number)
                bias = Gather<axis = 0>(word_bias, number)
                product = MatMul(row, weight)
                word_sums = Squeeze(product, columns)
                word_logits = Add(word_sums, bias)
                word_log = LogSoftmax<axis = -1>(word_logits)
                most = ReduceMax<keepdims = 0>(word_log, columns)
                place = ArgMax<axis = 1, keepdims = 0>(word_log)
                total = Add(bound, most)
                better = Greater(total, best)
                best_new = Where(better, total, best)
                class_new = Where(better, number, best_class)
                word_new = Where(better, place, best_word)
                after = Add(i, one)
                inside = Min(after, last)
                next = Gather<axis = 1>(bounds, inside)
                hope = Greater(next, best_new)
                hopes = Cast<to = 7>(hope)
                some = ReduceMax<keepdims = 0>(hopes)
                goes = Cast<to = 9>(some)
            }>(count, yes, best_0, class_0, class_0)
        }""")


def tree_best() -> onnx.FunctionProto:
    """``TreeBest(x, weight, bias, children)``: the most probable leaf of a binary tree.

    Exact, by best first search: of the nodes that have been reached the most probable is opened next, and the first
    leaf among them is the answer, for no path grows more probable. x (1, K), weight (V - 1, K), bias (V - 1), children
    (V - 1, 2) int64: inner nodes, and V - 1 + w for word w; the first child has probability sigmoid(x . weight + bias),
    the second the rest. The results are word, (1,) int64, and log p, (1,).
    """
    return _function("""
        TreeBest(x, weight, bias, children) => (word, log_p) {
            first = Constant<value_ints = [0]>()
            columns = Constant<value_ints = [1]>()
            one = Constant<value_int = 1>()
            pair = Constant<value_ints = [2, 1]>()
            inner = Shape<start = 0, end = 1>(weight)
            last = Sub(inner, columns)
            leaves = Add(inner, columns)
            lowest = Constant<value_float = -3.0e38>()
            nothing = Expand(lowest, leaves)
            certain = Constant<value_floats = [0.0]>()
            root = Constant<value_ints = [0]>()
            at_root = Unsqueeze(root, columns)
            scores_0 = ScatterND(nothing, at_root, certain)
            none = Constant<value_int = 0>()
            nodes_0 = Expand(none, leaves)
            trips = Squeeze(leaves, first)
            yes = Constant<value = bool {1}>()
            scores_end, nodes_end, word, log_p = Loop<body = open (int64 i, bool going, float[V] scores, int64[V] nodes,
                    int64[1] word_before, float[1] log_before)
                    => (bool goes, float[V] scores_new, int64[V] nodes_new, int64[1] word_new, float[1] log_new) {
                at = ArgMax<axis = 0, keepdims = 1>(scores)
                log_new = Gather(scores, at)
                node = Gather(nodes, at)
                word_new = Sub(node, inner)
                place = Min(node, last)
                row = Gather(weight, place)
                product = Mul(row, x)
                sum = ReduceSum<keepdims = 0>(product, columns)
                offset = Gather(bias, place)
                logit = Add(sum, offset)
                opposite = Neg(logit)
                against = Softplus(opposite)
                towards = Softplus(logit)
                left = Sub(log_new, against)
                right = Sub(log_new, towards)
                both = Concat<axis = 0>(left, right)
                kids_row = Gather(children, place)
                kids = Squeeze(kids_row, first)
                fresh = Add(i, one)
                fresh_row = Unsqueeze(fresh, first)
                inside = Min(fresh_row, inner)
                places_flat = Concat<axis = 0>(at, inside)
                places = Reshape(places_flat, pair)
                scores_new = ScatterND(scores, places, both)
                nodes_new = ScatterND(nodes, places, kids)
                open = Less(node, inner)
                goes = Squeeze(open, first)
            }>(trips, yes, scores_0, nodes_0, root, certain)
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


def backoff_score(order: int, probes: int) -> onnx.FunctionProto:
    """``BackoffScore(ngram, log10_1, backoff_1, slots, log10, backoff)``: log10 P of last words by back-off.

    The function of `dlc.ir.ops.backoff_score`, which tells the inputs, in standard operators. The importer makes that
    operator of it; a function of this name whose body differs is just a graph.

    Args:
        order: words of an n-gram, at least 1.
        probes: rows of slots in which an n-gram may be, at least 1.
    """
    from dlc.ir.ops.backoff_score import HASHES

    lines = [
        f"row_steps = Constant<value_ints = [{', '.join(map(str, range(probes)))}]>()",
        f"spare = Constant<value_int = {probes - 1}>()",
        *(f"prime_{i} = Constant<value_int = {prime}>()" for i, (prime, _) in enumerate(HASHES)),
        *(f"factor_{i} = Constant<value_int = {factor}>()" for i, (_, factor) in enumerate(HASHES)),
        "zero = Constant<value_int = 0>()",
        "one = Constant<value_int = 1>()",
        "nothing = Constant<value_int = -1>()",
        "nowhere = Constant<value_float = 0.0>()",
        "halved = Constant<value_int = 2147483648>()",
        "whole = Constant<value_int = 4294967296>()",
        "columns = Constant<value_ints = [1]>()",
        "inner = Constant<value_ints = [1, 2]>()",
        "deep = Constant<value_ints = [2]>()",
        "vocabulary = Size(log10_1)",
        "last_word = Sub(vocabulary, one)",
        "places = Size(log10)",
        "last_place = Sub(places, one)",
        "dims = Shape(slots)",
        "all_rows = Gather(dims, zero)",
        "rows = Sub(all_rows, spare)",
        "not_negative = Max(ngram, zero)",
        "words = Min(not_negative, last_word)",
    ]
    for j in range(order):
        lines += [
            f"column_{j} = Constant<value_int = {j}>()",
            f"word_{j} = Gather<axis = 1>(words, column_{j})",
            f"digit_{j} = Add(word_{j}, one)",
        ]
    # Of the n-grams that end with the last word, and of their histories, which end one word before.
    for end in (order - 1, order - 2):
        for i in range(len(HASHES)):
            for j in range(end, -1, -1):
                sum_ = f"digit_{j}"
                if j < end:
                    sum_ = f"sum_{i}_{j}_{end}"
                    lines.append(f"{sum_} = Add(hash_{i}_{j + 1}_{end}, digit_{j})")
                lines += [
                    f"times_{i}_{j}_{end} = Mul({sum_}, factor_{i})",
                    f"hash_{i}_{j}_{end} = Mod(times_{i}_{j}_{end}, prime_{i})",
                ]
        for j in range(end - 1, -1, -1):
            lines += _found_in_slots(f"{j}_{end}")
    lines.append(f"{'result_1' if order > 1 else 'log10_p'} = Gather(log10_1, word_{order - 1})")
    for k in range(2, order + 1):
        first = order - k
        gram, history = f"{first}_{order - 1}", f"{first}_{order - 2}"
        if k == 2:
            lines.append(f"weight_{k} = Gather(backoff_1, word_{first})")
        else:
            lines += [
                f"stored_{k} = Gather(backoff, at_{history})",
                f"weight_{k} = Where(there_{history}, stored_{k}, nowhere)",
            ]
        lines += [
            f"listed_{k} = Gather(log10, at_{gram})",
            f"backed_off_{k} = Add(weight_{k}, result_{k - 1})",
            f"{f'result_{k}' if k < order else 'log10_p'} = Where(there_{gram}, listed_{k}, backed_off_{k})",
        ]
    body = "\n".join(lines)
    return _function(f"BackoffScore(ngram, log10_1, backoff_1, slots, log10, backoff) => (log10_p) {{ {body} }}")


def _found_in_slots(gram: str) -> list[str]:
    """Lines that look an n-gram up: ``there_`` says whether it is listed, ``at_`` is its place, pulled in.

    Names get the n-gram's, but for those behind ``^``, which all n-grams share.
    """
    lines = """scaled = Mul(hash_0, ^rows)
               home = Div(scaled, ^halved)
               home_column = Unsqueeze(home, ^columns)
               row = Add(home_column, ^row_steps)
               raw = Gather<axis = 0>(^slots, row)
               read = Max(raw, ^nothing)
               low = Mul(hash_1, ^whole)
               low_row = Unsqueeze(low, ^inner)
               rest = Sub(read, low_row)
               above = GreaterOrEqual(rest, ^zero)
               below = Less(rest, ^whole)
               fits = And(above, below)
               candidates = Where(fits, rest, ^nothing)
               best = ReduceMax<keepdims = 0>(candidates, ^deep)
               has = GreaterOrEqual(best, ^zero)
               least = ReduceMin<keepdims = 0>(read, ^deep)
               empty = Less(least, ^zero)
               ended = Or(has, empty)
               ends = Cast<to = 6>(ended)
               chosen = ArgMax<axis = 1, keepdims = 1>(ends)
               place_column = GatherElements<axis = 1>(best, chosen)
               place = Squeeze(place_column, ^columns)
               there = GreaterOrEqual(place, ^zero)
               from_zero = Max(place, ^zero)
               at = Min(from_zero, ^last_place)"""
    named = re.sub(r"(?<![\w^<])(hash_[01]|[a-z][a-z_]*)(?= =|[,)])(?! = \d)", rf"\1_{gram}", lines)
    return [line.strip() for line in named.replace("^", "").splitlines()]

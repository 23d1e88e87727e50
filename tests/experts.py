"""Models with a mixture of experts, spelt as different tools spell them: for the tests of the pass and its kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

HEAD = """<ir_version: 8, opset_import: ["" : 18]>
g (float[T, {inputs}] x) => (float[T, {outputs}] y)
<int64[1] choices = {{{k}}}, int64[1] ax0 = {{0}}, int64[1] ax1 = {{1}}, int64[1] ax2 = {{2}}, int64[1] last = {{-1}},
 int64[1] depth = {{{experts}}}, float[2] off_on = {{0, 1}}, float[1] half = {{0.5}}>
{{ logits = MatMul(x, router)
   probs = Softmax<axis = -1>(logits)
"""

#: What the weights of the chosen experts are; each makes ``weights`` and ``chosen`` (T, k).
WEIGHTS = {
    "probabilities": "weights, chosen = TopK<axis = -1>(probs, choices)\n",
    "normalised": """best, chosen = TopK<axis = -1>(probs, choices)
        total = ReduceSum<keepdims = 1>(best, ax1)
        weights = Div(best, total)\n""",
    "of logits": """best, chosen = TopK<axis = -1>(logits, choices)
        weights = Softmax<axis = -1>(best)\n""",
    "ones": """best, chosen = TopK<axis = -1>(logits, choices)
        size = Shape(best)
        weights = ConstantOfShape<value = float[1] {1.0}>(size)\n""",
    "greedy": """chosen = ArgMax<axis = -1, keepdims = 1>(probs)
        weights = GatherElements<axis = 1>(probs, chosen)\n""",
}

#: How they become ``gates`` (T, experts).
GATES = {
    "scatter": """shape = Shape(probs)
        zeros = ConstantOfShape(shape)
        gates = ScatterElements<axis = 1>(zeros, chosen, weights)\n""",
    "one-hot": """hot = OneHot<axis = -1>(chosen, depth, off_on)
        column = Unsqueeze(weights, ax2)
        weighted = Mul(hot, column)
        gates = ReduceSum<keepdims = 0>(weighted, ax1)\n""",
    "mask": """hot = OneHot<axis = -1>(chosen, depth, off_on)
        mask = ReduceSum<keepdims = 0>(hot, ax1)
        gates = Mul(mask, probs)\n""",
    "halved": """hot = OneHot<axis = -1>(chosen, depth, off_on)
        mask = ReduceSum<keepdims = 0>(hot, ax1)
        product = Mul(probs, mask)
        gates = Mul(product, half)\n""",
}

#: How all experts are computed and summed.
EXPERTS = {
    "batched": """xe = Unsqueeze(x, ax0)
        h0 = MatMul(xe, w1)
        h1 = Add(h0, b1)
        h = {act}(h1)
        z0 = MatMul(h, w2)
        z = Add(z0, b2)
        gt = Transpose<perm = [1, 0]>(gates)
        ge = Unsqueeze(gt, ax2)
        zg = Mul(z, ge)
        y = ReduceSum<keepdims = 0>(zg, ax0)\n""",
    "rows first": """xe = Unsqueeze(x, ax0)
        h0 = MatMul(xe, w1)
        h1 = Add(h0, b1)
        h = {act}(h1)
        z0 = MatMul(h, w2)
        z1 = Add(z0, b2)
        z = Transpose<perm = [1, 0, 2]>(z1)
        ge = Unsqueeze(gates, ax1)
        y3 = MatMul(ge, z)
        y = Squeeze(y3, ax1)\n""",
    "einsum": """h0 = Einsum<equation = "td,edh->teh">(x, w1)
        b1s = Squeeze(b1, ax1)
        h1 = Add(h0, b1s)
        h = {act}(h1)
        z0 = Einsum<equation = "teh,ehn->ten">(h, w2)
        b2s = Squeeze(b2, ax1)
        z = Add(z0, b2s)
        y = Einsum<equation = "te,ten->tn">(gates, z)\n""",
}


def branches(experts: int, act: str) -> str:
    """Experts that are subgraphs of their own; weights are ``w1_0``, ``b1_0``, ..."""
    text = ""
    for e in range(experts):
        text += f"""h0_{e} = MatMul(x, w1_{e})
        h1_{e} = Add(h0_{e}, b1_{e})
        h_{e} = {act}(h1_{e})
        z0_{e} = MatMul(h_{e}, w2_{e})
        z_{e} = Add(z0_{e}, b2_{e})
        from_{e} = Constant<value_ints = [{e}]> ()
        to_{e} = Constant<value_ints = [{e + 1}]> ()
        gate_{e} = Slice(gates, from_{e}, to_{e}, ax1)
        term_{e} = Mul(gate_{e}, z_{e})\n"""
        text += f"sum_{e} = Add(sum_{e - 1}, term_{e})\n" if e > 1 else ""
        text += "sum_1 = Add(term_0, term_1)\n" if e == 1 else ""
    return text + f"y = Identity(sum_{experts - 1})\n"


def gathered(act: str) -> str:
    """Each row's own copy of the chosen experts' weights."""
    return f"""xr = Unsqueeze(x, ax1)
        xk = Unsqueeze(xr, ax1)
        w1c = Gather<axis = 0>(w1, chosen)
        b1c = Gather<axis = 0>(b1, chosen)
        w2c = Gather<axis = 0>(w2, chosen)
        b2c = Gather<axis = 0>(b2, chosen)
        h0 = MatMul(xk, w1c)
        h1 = Add(h0, b1c)
        h = {act}(h1)
        z0 = MatMul(h, w2c)
        z1 = Add(z0, b2c)
        z = Squeeze(z1, ax2)
        column = Unsqueeze(weights, ax2)
        zw = Mul(z, column)
        y = ReduceSum<keepdims = 0>(zw, ax1)\n"""


def sizes(experts: int, inputs: int, hidden: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights."""
    return {
        "w1": (experts, inputs, hidden), "b1": (experts, 1, hidden), "w2": (experts, hidden, outputs),
        "b2": (experts, 1, outputs),
    }  # fmt: skip


def model(
    weights: str = "probabilities", gates: str = "scatter", form: str = "batched", *, experts: int = 4, k: int = 2,
    inputs: int = 16, hidden: int = 24, outputs: int = 12, act: str = "Relu", rows: Any = "T", seed: int = 0,
) -> Any:  # fmt: skip
    """An ONNX model x (T, inputs) -> y (T, outputs); the names are the keys of the tables above."""
    text = HEAD.format(inputs=inputs, outputs=outputs, experts=experts, k=k) + WEIGHTS[weights]
    if form == "gathered":
        text += gathered(act)
    else:
        text += GATES[gates] + (branches(experts, act) if form == "branches" else EXPERTS[form].format(act=act))
    proto = parser.parse_model(text + "}")
    rng = np.random.default_rng(seed)
    arrays = {n: rng.standard_normal(s) / s[-2] ** 0.5 for n, s in sizes(experts, inputs, hidden, outputs).items()}
    arrays["router"] = rng.standard_normal((inputs, experts))
    if form == "branches":
        names = [name for name in arrays if name != "router"]
        parts = {f"{name}_{e}": arrays[name][e] for name in names for e in range(experts)}
        arrays = {"router": arrays["router"], **parts}
        arrays = {n: a.reshape(-1) if n.startswith("b") else a for n, a in arrays.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    del proto.graph.value_info[:]
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [rows, inputs]))
    return proto

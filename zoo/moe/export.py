"""Export to ONNX, opset 18; the experts are one call of the model-local function ``HardExperts`` of `dlc.functions`.

The graph has the input ``ngram``, int64 (N, 9), eight words of context and the word asked for, and the output
``log10``, float32 (N,), log10 of the word's probability, as in the n-gram family.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper, parser

from dlc import functions
from dlc.zoo.exporting import run_exported, write_model
from dlc.zoo.moe import data
from dlc.zoo.moe.model import Dense, Experts, LanguageModel
from dlc.zoo.moe.train import load_weights

OUTPUT = "log10"
_TOLERANCE = 1e-4
_LAYERS = {
    Experts: f"features = {functions.DOMAIN}.HardExperts(x, router, w1, b1, w2, b2)\n",
    Dense: """sums = Gemm<transB = 1>(x, hidden_weight, hidden_bias)
              units = Relu(sums)
              features = Gemm<transB = 1>(units, result_weight, result_bias)\n""",
}
_GRAPH = """<ir_version: 8, opset_import: ["" : 18, "{domain}" : 1]>
moe (int64[N, {length}] ngram) => (float[N] log10)
<int64[{context}] places = {{{places}}}, int64 last = {{{context}}}, int64[1] one = {{1}},
 float log10_e = {{{log10_e}}}>
{{
    before = Gather<axis = 1>(ngram, places)
    word = Gather<axis = 1>(ngram, last)
    vectors = Gather(embedding, before)
    x = Flatten(vectors)
    {layer}
    logits = Gemm<transB = 1>(features, output_weight, output_bias)
    nats = LogSoftmax<axis = 1>(logits)
    column = Unsqueeze(word, one)
    entry = GatherElements<axis = 1>(nats, column)
    log_p = Squeeze(entry, one)
    log10 = Mul(log_p, log10_e)
}}"""


def export(weights: Path, out: Path) -> str:
    """Write trained weights as ONNX; return one line on how far torch and ONNX agree.

    Raises:
        DlcError: the weights are not this family's, or torch and ONNX differ; nothing is written.
    """
    return f"torch and ONNX agree to {export_model(load_weights(weights), out):.1e} in log10 P"


def export_model(model: LanguageModel, out: Path) -> float:
    """Write `model` as ONNX and return the largest difference of a log10 probability on seeded rows.

    Raises:
        DlcError: torch and ONNX differ by more than 1e-4; nothing is written.
    """
    proto = build(model)
    content = proto.SerializeToString(deterministic=True)
    return write_model(content, out, _difference(model, proto), _TOLERANCE, "log10 P", "from torch")


def build(model: LanguageModel) -> ModelProto:
    """The ONNX model. Equal weights give equal bytes."""
    proto = parser.parse_model(
        _GRAPH.format(
            domain=functions.DOMAIN, length=data.CONTEXT + 1, context=data.CONTEXT,
            places=", ".join(map(str, range(data.CONTEXT))), log10_e=np.log10(np.e), layer=_LAYERS[type(model.layer)],
        )
    )  # fmt: skip
    if isinstance(model.layer, Experts):
        proto.functions.append(functions.hard_experts(model.layer.chosen, normalised=True))
    weights = dict(model.layer.named_parameters()) | {"embedding": model.embedding.weight}
    weights |= {f"output.{key}": value for key, value in model.output.named_parameters()}
    for name, weight in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(weight.detach().numpy(), name.replace(".", "_")))
    proto.producer_name = "dlc"
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _difference(model: LanguageModel, proto: ModelProto) -> float:
    """The largest difference of a log10 probability on seeded rows."""
    rows = np.random.default_rng(0).integers(0, model.embedding.num_embeddings, (64, data.CONTEXT + 1))
    with torch.no_grad():
        expected = model(torch.from_numpy(rows)).numpy() * np.log10(np.e)
    actual = run_exported(proto.SerializeToString(), OUTPUT, {data.INPUT: rows})
    return float(np.abs(expected - actual).max())

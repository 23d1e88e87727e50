"""Cascades: the small model answers where it is sure, the large one elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.errors import DlcError
from dlc.explain import read
from dlc.runtime.cascade import CascadeExecutable

RNG = np.random.default_rng(51)
CENTRES = RNG.standard_normal((5, 6)).astype(np.float32) * 2


def classifier(scale: float, batch: int | str = "n", softmax: bool = False, noise: float = 0.0, width: int = 6) -> Any:
    """Scores by distance from the classes' centres; with `noise` it is a worse model."""
    weight = (CENTRES + RNG.standard_normal(CENTRES.shape) * noise).T.astype(np.float32)[:width] * scale
    nodes = [helper.make_node("MatMul", ["x", "w"], ["s" if softmax else "y"], "scores")]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["s"], ["y"], "softmax"))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data(count: int) -> np.ndarray:
    labels = RNG.integers(0, 5, count)
    return (CENTRES[labels] + RNG.standard_normal((count, 6)) * 1.5).astype(np.float32)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_each_sample_has_the_answer_of_its_model(softmax: bool, target: str) -> None:
    small, large = classifier(0.3, softmax=softmax, noise=0.8), classifier(0.5)
    package = dlc.compile(small, target, cascade=large, threshold=0.7)
    session = dlc.load(package)
    for count in (1, 7, 40):
        x = data(count)
        ours = dlc.load(dlc.compile(small, target)).run({"x": x})["y"]
        theirs = dlc.load(dlc.compile(large, target)).run({"x": x})["y"]
        probabilities = ours if softmax else np.exp(ours) / np.exp(ours).sum(-1, keepdims=True)
        sure = probabilities.max(-1) >= 0.7
        np.testing.assert_allclose(session.run({"x": x})["y"], np.where(sure[:, None], ours, theirs), rtol=1e-5)
    executable = session.executable
    assert isinstance(executable, CascadeExecutable) and executable.samples == 48 and 0 < executable.asked < 48


def test_the_threshold_is_chosen_for_an_agreement() -> None:
    small, large = classifier(0.3, noise=1.5), classifier(0.5)
    samples = data(400)
    shares = []
    for agreement in (0.9, 0.97, 1.0):
        package = dlc.compile(small, cascade=large, agreement=agreement, calibration={"x": samples})
        build = package.manifest["build"]
        assert build["agreement"] >= agreement
        shares.append(build["asked"])
        answers = dlc.load(package).run({"x": samples})["y"].argmax(-1)
        wanted = dlc.load(dlc.compile(large)).run({"x": samples})["y"].argmax(-1)
        assert (answers == wanted).mean() == pytest.approx(build["agreement"])
    assert 0 < shares[0] < shares[1] < shares[2]
    first = read(package).nodes[0]
    assert first["kernel"].startswith("asks the large model where the largest probability is below 0.")
    assert f"{shares[2]:.1%} of the calibration samples; 100.0% are answered as it answers" in first["kernel"]
    assert {row.get("part") for row in read(package).nodes} == {None, "small", "large"}


def test_a_large_model_of_a_fixed_batch_is_given_the_whole_batch() -> None:
    package = dlc.compile(classifier(0.3, noise=0.8), cascade=classifier(0.5, batch=4), threshold=1.0)
    x = data(4)
    wanted = dlc.load(dlc.compile(classifier(0.5))).run({"x": x})["y"]
    np.testing.assert_allclose(dlc.load(package).run({"x": x})["y"], wanted, rtol=1e-5)


REFUSED = {
    "threshold": ({"threshold": 1.5}, "the cascade's threshold must be between 0 and 1, got 1.5"),
    "neither": ({}, "a cascade needs a threshold or an agreement: --threshold or --agreement"),
    "no data": ({"agreement": 0.9}, "choosing the cascade's threshold by agreement needs calibration data"),
    "another input": (
        {"threshold": 0.5, "cascade": classifier(1.0, width=5)},
        "the cascade's models differ in inputs: x: float32[n, 6] and x: float32[n, 5]",
    ),
    "no cascade": ({"threshold": 0.5, "cascade": None}, "a threshold or an agreement is of a cascade: name the larger "
                   "model"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_does_not_fit_is_refused(name: str) -> None:
    options, text = REFUSED[name]
    with pytest.raises(DlcError) as error:
        dlc.compile(classifier(0.3), "reference", **{"cascade": classifier(0.5), **options})  # type: ignore[arg-type]
    assert str(error.value) == text

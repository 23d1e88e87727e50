"""Hard experts, spelt as different tools spell them: the chosen ones alone are computed, with the graph's own gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dlc
from dlc.explain import read
from tests import experts

CASES = st.fixed_dictionaries(
    {
        "weights": st.sampled_from([w for w in experts.WEIGHTS if w != "greedy"]),
        "gates": st.sampled_from(list(experts.GATES)),
        "form": st.sampled_from([*experts.EXPERTS, "branches", "gathered"]),
        "experts": st.integers(2, 5), "k": st.integers(1, 3), "act": st.sampled_from(["Relu", "Sigmoid", "Tanh"]),
        "rows": st.sampled_from(["T", 1, 3, 20]), "outputs": st.sampled_from([1, 7, 16]), "seed": st.integers(0, 99),
    }
)  # fmt: skip


def expected(model: Any, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def compute(package: Any, x: np.ndarray) -> np.ndarray:
    (y,) = dlc.load(package).run({"x": x}).values()
    return np.asarray(y)


def grouped(package: Any) -> list[dict[str, Any]]:
    return [row for row in read(package).nodes if "grouped_matmul" in row["fused"]]


def inputs_of(rows: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((9 if rows == "T" else rows, 16)).astype(np.float32)


@settings(max_examples=16, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_only_the_chosen_experts_are_computed(case: dict[str, Any]) -> None:
    case = {**case, "k": min(case["k"], case["experts"])}
    model, x = experts.model(**case), inputs_of(case["rows"], case["seed"])
    package = dlc.compile(model)
    assert len(grouped(package)) == 2 and not read(package).declined
    assert not [row for row in read(package).nodes if "matmul" in row["fused"] and row["value"] != "logits"]
    np.testing.assert_allclose(compute(package, x), expected(model, x), rtol=1e-5, atol=1e-5)

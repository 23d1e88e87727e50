"""Steps through a trie: the kernel, the interpreter, the function's body in ONNX, and a dictionary agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from anchored_cases import LEVELS, Body, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.errors import DlcError
from dlc.explain import read
from dlc.functions import DOMAIN, trie_step
from dlc.targets.cpu.kernels import trie


def _tables(rng: np.random.Generator, parents: int, most: int, words: int, dtype: str) -> tuple[Any, ...]:
    """Continuations of each parent, ascending; (offsets, words, the same as a dictionary)."""
    lists = [np.sort(rng.choice(words, rng.integers(0, min(most, words) + 1), replace=False)) for _ in range(parents)]
    sizes = [len(found) for found in lists]
    offsets = np.concatenate([[0], np.cumsum([*sizes, 0])]).astype(np.int32)  # the last parent is "none"
    flat = np.append(np.concatenate([*lists, np.zeros(0)]), -1).astype(dtype)
    known = {(p, int(w)): int(offsets[p]) + i for p, found in enumerate(lists) for i, w in enumerate(found)}
    return offsets, flat, known


CASES = st.fixed_dictionaries(
    {
        "queries": st.sampled_from([1, 5, 16, 33, 70]), "parents": st.integers(1, 9),
        "most": st.sampled_from([0, 1, 2, 7, 40]),
        "dtype": st.sampled_from(["int16", "int32"]), "level": st.sampled_from(LEVELS), "seed": st.integers(0, 2**16),
    }
)  # fmt: skip


def _halvings(offsets: np.ndarray) -> int:
    return int(max(int(np.diff(offsets).max()) - 1, 0)).bit_length()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_every_word_is_found_and_no_other(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    offsets, words, known = _tables(rng, case["parents"], case["most"], 50, case["dtype"])
    none = len(words) - 1
    parent = rng.integers(0, case["parents"] + 1, case["queries"]).astype(np.int32)
    word = rng.integers(0, 50, case["queries"]).astype(np.int32)
    wanted = [known.get((int(p), int(w)), none) for p, w in zip(parent, word, strict=True)]
    body = Body()
    names = [body.input(a.shape, str(a.dtype)) for a in (parent, word, offsets, words)]
    body.node("dlc.trie_step", names, parent.shape, "int32", halvings=_halvings(offsets))
    got, meaning = run_region(trie, body.graph(), [parent, word, offsets, words], case["level"])
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(meaning, wanted)


@pytest.mark.parametrize("halvings", [0, 2, 6])
def test_tables_that_lie_are_read_inside(halvings: int) -> None:
    rng = np.random.default_rng(halvings)
    arrays = [rng.integers(-70, 70, n).astype(np.int32) for n in (40, 40, 9, 20)]
    body = Body()
    names = [body.input(a.shape, "int32") for a in arrays]
    body.node("dlc.trie_step", names, (40,), "int32", halvings=halvings)
    got, meaning = run_region(trie, body.graph(), arrays, LEVELS[0])
    np.testing.assert_array_equal(got, meaning)


def _model(halvings: int, offsets: np.ndarray, words: np.ndarray, spoil: bool = False) -> Any:
    function = trie_step(halvings)
    if spoil:
        next(n for n in function.node if n.op_type == "LessOrEqual").op_type = "Less"
    graph = helper.make_graph(
        [helper.make_node("TrieStep", ["parent", "word", "offsets", "words"], ["entry"], "step", domain=DOMAIN)], "g",
        [helper.make_tensor_value_info(n, TensorProto.INT32, ["N"]) for n in ("parent", "word")],
        [helper.make_tensor_value_info("entry", TensorProto.INT32, ["N"])],
        [numpy_helper.from_array(offsets, "offsets"), numpy_helper.from_array(words, "words")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)


def test_the_function_is_one_kernel_and_agrees_with_onnxruntime() -> None:
    rng = np.random.default_rng(3)
    offsets, words, _ = _tables(rng, 30, 40, 100, "int16")
    model = _model(_halvings(offsets), offsets, words)
    feed = {"parent": rng.integers(0, 31, 500).astype(np.int32), "word": rng.integers(0, 100, 500).astype(np.int32)}
    package = dlc.compile(model)
    (row,) = read(package).nodes
    assert row["kernel"].startswith("trie_step")
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)
    np.testing.assert_array_equal(dlc.load(package).run(feed)["entry"], wanted)
    assert (wanted < len(words) - 1).any()


def test_another_body_of_the_name_is_just_a_graph() -> None:
    rng = np.random.default_rng(4)
    offsets, words, _ = _tables(rng, 30, 40, 100, "int16")
    model = _model(_halvings(offsets), offsets, words, spoil=True)
    package = dlc.compile(model)
    assert not any("trie_step" in row.get("fused", ()) for row in read(package).nodes)
    feed = {"parent": rng.integers(0, 31, 500).astype(np.int32), "word": rng.integers(0, 100, 500).astype(np.int32)}
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)
    np.testing.assert_array_equal(dlc.load(package).run(feed)["entry"], wanted)


def test_tables_of_more_dimensions_are_just_a_graph() -> None:
    model = _model(1, np.zeros(3, np.int32), np.zeros((2, 2), np.int32))
    assert not any("trie_step" in row.get("fused", ()) for row in read(dlc.compile(model)).nodes)


def test_lengths_that_do_not_fit_are_refused() -> None:
    model = _model(1, np.zeros(3, np.int32), np.zeros(2, np.int32))
    for value, extent in zip(model.graph.input, (3, 4), strict=True):
        value.type.tensor_type.shape.dim[0].dim_value = extent
    with pytest.raises(DlcError, match=r"node 'step' .*a trie step of \[3\] and \[4\]"):
        dlc.compile(model, target="reference")

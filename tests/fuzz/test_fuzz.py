"""The fuzzers' own regression tests: cases that were found and fixed, and a short run of fixed seeds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.fuzz import differential, importer, store
from tests.fuzz.generate import Case, check, generate, resized
from tests.fuzz.mutate import mutant
from tests.fuzz.oracle import expectations
from tests.fuzz.shrink import shrink
from tests.fuzz.watch import Watch

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.onnx")), ids=lambda p: p.stem)
def test_graph_that_was_wrong(path: Path) -> None:
    case = store.load(path)
    other = resized(case, 1)
    found, oracle = differential.check(case, [other] if other is not None else [])
    assert oracle, "no oracle runs it any more"
    assert found is None, found.text


@pytest.mark.parametrize("path", sorted((CORPUS / "damaged").glob("*.onnx")), ids=lambda p: p.stem)
def test_model_that_broke_the_compiler(path: Path, tmp_path: Path) -> None:
    found = importer.check(path.read_bytes(), tmp_path, 0)
    assert found is None, found.text


@pytest.mark.parametrize("seed", range(24))
def test_random_graph(seed: int) -> None:
    case = generate(seed)
    check(case)
    found, _ = differential.check(case)
    assert found is None, found.text


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_damaged_models(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 20):
        found = importer.check(mutant(seed), tmp_path, seed)
        assert found is None, f"seed {seed}: {found.text}"


def test_seeds_are_reproducible() -> None:
    first, second = generate(5), generate(5)
    assert first.model == second.model
    assert all(np.array_equal(first.inputs[n], second.inputs[n], equal_nan=True) for n in first.inputs)
    assert mutant(9) == mutant(9)


# --- the fuzzers can find something ----------------------------------------------------------------------------------


def _case(*nodes: onnx.NodeProto, **inputs: np.ndarray) -> Case:
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in inputs.items()
    ]
    output = helper.make_tensor_value_info(
        nodes[-1].output[0], TensorProto.FLOAT, [None] * next(iter(inputs.values())).ndim
    )
    graph = helper.make_graph(list(nodes), "g", infos, [output])
    return Case(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), inputs, {})


def test_a_wrong_result_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlc.ir.ops import OPS

    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    case = _case(
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Sin", ["a"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"]),
        x=x,
    )
    assert differential.check(case)[0] is None
    monkeypatch.setitem(OPS, "relax.sin", replace(OPS["relax.sin"], meaning=lambda inputs, _: np.cos(inputs[0])))
    found, _ = differential.check(case)
    assert found is not None and found.kind == "reference differs"

    def fails(candidate: Case) -> bool:
        again = differential.check(candidate)[0]
        return again is not None and again.kind == found.kind

    assert [n.op_type for n in shrink(case, fails).model.graph.node] == ["Sin"]


def test_bounds_follow_the_conditioning() -> None:
    # (x + 1000) - 1000 loses three digits, which its bound has to allow; a copy may lose nothing.
    x = np.array([[0.123456, 0.7]], np.float32)
    case = _case(helper.make_node("Add", ["x", "k"], ["a"]), helper.make_node("Sub", ["a", "k"], ["y"]), x=x)
    case.model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1000).reshape(()), "k"))
    (lost,) = expectations(case.model, case.inputs)[1]
    (kept,) = expectations(_case(helper.make_node("Neg", ["x"], ["y"]), x=x).model, case.inputs)[1]
    assert lost.bound.min() > 1e-4 > 1e-5 > kept.bound.max()


@pytest.mark.parametrize(
    ("code", "kind"), [("import os; os.abort()", "crash"), ("import time; time.sleep(60)", "hang")]
)
def test_crashes_and_hangs_are_findings(code: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = 'import sys; print(\'{"begins": 3, "path": "%s"}\', flush=True); ' % (tmp_path / "current.onnx")
    (tmp_path / "current.onnx").write_bytes(b"the case")
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        return real([sys.executable, "-c", start + code], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", popen)
    watch = Watch("model", 3, 60, 1.5, tmp_path / "store")
    monkeypatch.setattr(watch, "_keep", lambda *a: (Watch._keep(watch, *a), setattr(watch, "end", time.monotonic())))
    result = watch.run()
    assert len(result.findings) == 1 and f"model-3: {kind}" in result.findings[0]
    assert (tmp_path / "store" / "model-3.onnx").read_bytes() == b"the case"


def test_the_command() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "0", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "graph: 0 cases, 0 findings" in done.stdout

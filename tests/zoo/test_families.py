"""What holds for every family, and the verbs of ``dlc zoo`` that are the same for all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from dlc import zoo as models
from dlc.cli.main import main
from dlc.cli.zoo import zoo
from dlc.errors import DlcError
from dlc.zoo import cards, family
from dlc.zoo.models import run_in_batches


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(zoo, arguments)


# --- every family


@pytest.mark.parametrize("name", models.FAMILIES)
def test_card_describes_the_committed_model(name: str) -> None:
    head = models.read_card(name)
    content = models.model_path(name).read_bytes()
    assert set(cards.REQUIRED) <= set(head)
    assert head["name"] == name
    assert head["onnx_sha256"] == hashlib.sha256(content).hexdigest()
    assert head["onnx_bytes"] == len(content) <= 10_000_000
    assert head["claims"] and all({"claim", "met", "evidence"} == set(claim) for claim in head["claims"])
    assert "seconds" in head["training"] and "seed" in head["training"]


def test_committed_models_are_small_together() -> None:
    assert sum(models.model_path(name).stat().st_size for name in models.FAMILIES) <= 60_000_000


@pytest.mark.parametrize("name", models.FAMILIES)
@pytest.mark.parametrize("part", ["calibration", "test"])
def test_samples_fit_the_committed_model(name: str, part: str) -> None:
    graph = onnx.load(models.model_path(name)).graph
    samples = models.samples(name, part)
    assert set(samples) == {value.name for value in graph.input}
    for value in graph.input:
        tensor = value.type.tensor_type
        array = samples[value.name]
        assert array.dtype == onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        assert array.ndim == len(tensor.shape.dim)
    assert len({len(array) for array in samples.values()}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "snr"), [("wavenet", 25.0), ("vision", 30.0)])
def test_int8_by_the_command_line_needs_no_more_words(name: str, snr: float, tmp_path: Path) -> None:
    """The calibration inputs of the zoo are the default; ``zoo:NAME`` as inputs is cut into batches of the model's."""
    pytest.importorskip("onnxruntime")
    package = str(tmp_path / "m.dlc")
    compiled = CliRunner().invoke(main, ["compile", f"zoo:{name}", "-o", package, "--quantize", "int8"])
    assert compiled.exit_code == 0, compiled.output
    checking = ["check", package, "--against", f"zoo:{name}", "--inputs", f"zoo:{name}", "--snr"]
    checked = CliRunner().invoke(main, [*checking, str(snr)])
    assert checked.exit_code == 0, checked.output
    sets = sum(line.startswith("output ") for line in checked.output.splitlines())
    assert sets == (24 if name == "wavenet" else 1)
    assert CliRunner().invoke(main, [*checking, "90"]).exit_code == 1
    ran = CliRunner().invoke(main, ["run", package, "--inputs", f"zoo:{name}", "-o", str(tmp_path / "out.npz")])
    if name == "wavenet":
        assert ran.exit_code == 2 and "there are several inputs" in ran.output
    else:
        assert ran.exit_code == 0, ran.output


def test_list_imports_no_torch() -> None:
    code = "import sys; from dlc.cli.zoo import zoo; zoo(['list'], standalone_mode=False)"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in models.FAMILIES)


# --- verbs


def test_list_gives_the_cards_heads() -> None:
    heads = json.loads(invoke("list", "--json").output)
    assert [head["name"] for head in heads] == list(models.FAMILIES)
    text = invoke("list").output
    for head in heads:
        assert head["text"] in text and head["baseline"]["text"] in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "nonsense"], f"no model 'nonsense' in the zoo (known: {', '.join(models.FAMILIES)})"),
        (["fetch", "nonsense"], "no model 'nonsense' in the zoo"),
        (["eval", "nonsense"], "no model 'nonsense' in the zoo"),
        (["sample", "nonsense"], "no model 'nonsense' in the zoo"),
        (["export", "nonsense", "-o", "x.onnx"], "no model 'nonsense' in the zoo"),
        (["train", "vision", "--size", "huge"], "'vision' has no size 'huge' (known: small, teacher, "),
        (["eval", "vision", "--package", "missing.dlc"], "missing.dlc does not exist"),
        (["eval", "vision", "--package", "a.dlc", "--onnx", "b.onnx"], "--package and --onnx exclude each other"),
        (["eval", "vision", "--package", "a.dlc", "--write-card"], "--write-card is about the committed model"),
        (["export", "vision", "-o", "x.onnx", "--weights", "missing"], "missing does not exist"),
    ],
)
def test_errors_are_for_users(arguments: list[str], text: str) -> None:
    error = invoke(*arguments).exception
    assert isinstance(error, DlcError)
    assert text in str(error)


def test_missing_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = invoke("eval", "vision").exception
    assert isinstance(error, DlcError)
    assert "evaluating an ONNX file needs onnxruntime: pip install 'dlc[bench]'" in str(error)


def test_interrupted_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        SIZES = ("small",)
        WEIGHTS = ".w"

        def train(self, *arguments: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(family, "training", lambda name: Interrupted())
    result = invoke("train", "vision", "--out", str(tmp_path / "m.onnx"))
    assert result.exit_code == 1
    assert "the same command goes on" in result.stderr


def test_a_missing_part_says_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "_has", lambda name, part: False)
    error = invoke("sample", "vision").exception
    assert isinstance(error, DlcError)
    assert str(error) == "the zoo's 'vision' has no sample.py (families that have one: none)"


# --- running models


class FakeModel:
    """Doubles its input, and refuses any batch but the one that it declares."""

    path = Path("fake.onnx")

    def __init__(self, batch: int | str) -> None:
        self.inputs = {"x": (batch, 3)}
        self.seen: list[int] = []

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.seen.append(len(feed["x"]))
        return {"y": feed["x"] * 2}


@pytest.mark.parametrize(("batch", "seen"), [(3, [3, 3, 3]), (1, [1] * 7), (32, [32]), ("N", [5, 5])])
def test_batches_are_filled_up_and_the_filling_dropped(batch: int | str, seen: list[int]) -> None:
    model = FakeModel(batch)
    x = np.arange(21.0).reshape(7, 3)
    np.testing.assert_array_equal(run_in_batches(model, {"x": x}, 5)["y"], 2 * x)
    assert model.seen == seen


# --- cards


def card(**changes: Any) -> cards.Card:
    given: dict[str, Any] = {
        "name": "vision", "title": "A model", "task": "t", "metric": "m", "value": 0.5, "text": "50 %",
        "baseline": ("b", "40 %"), "claims": [cards.Claim("better", False, "0.5 < 0.6")],
        "training": {"seed": 1, "seconds": 2.0}, "sections": [("Data", "\n    indented\n")],
    }  # fmt: skip
    return cards.Card(**{**given, **changes})


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "vision.onnx"
    path.write_bytes(b"model")
    monkeypatch.setattr(cards, "model_path", lambda name: path)
    return path


def test_card_is_read_as_it_was_written(model: Path) -> None:
    path = cards.write_card(card(figures={"more": [1, 2]}))
    head = cards.read_head(path)
    assert set(cards.REQUIRED) <= set(head)
    assert head["claims"] == [{"claim": "better", "met": False, "evidence": "0.5 < 0.6"}]
    assert (head["more"], head["onnx_bytes"]) == ([1, 2], 5)
    text = path.read_text()
    assert "| better | **no** | 0.5 < 0.6 |" in text and "## Data\n\n    indented\n" in text


def test_notes_belong_to_one_model(model: Path) -> None:
    cards.write_card(card())
    assert cards.training_notes("vision") == {"seed": 1, "seconds": 2.0}
    model.write_bytes(b"another")
    with pytest.raises(DlcError, match="describes another model: give --weights"):
        cards.training_notes("vision")


def test_what_is_no_card_is_named(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("no head")
    with pytest.raises(DlcError, match=r"card\.md is not a model card"):
        cards.read_head(tmp_path / "card.md")

"""Vision's teachers, students and cascade: their losses, trainings and comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import dlc
from dlc import zoo as models
from dlc.errors import DlcError
from dlc.zoo import measured
from dlc.zoo.family import TrainOptions
from dlc.zoo.measured import Measured
from dlc.zoo.models import OnnxModel
from dlc.zoo.statistics import Interval
from dlc.zoo.vision import compare, data, evaluate

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")

from dlc.zoo import training  # noqa: E402
from dlc.zoo.vision import distill, export, model, train, trainings  # noqa: E402

Arrays = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def noise() -> Arrays:
    """Images whose brightness tells their class, so that a few steps learn something."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 600).astype(np.uint8)
    return (rng.integers(0, 30, (600, 1, 28, 28)) + 20 * labels[:, None, None, None]).astype(np.uint8), labels


# --- the networks


def test_depth_and_dropout_change_the_network_as_asked() -> None:
    plain, deep = model.VisionNet(), model.VisionNet(model.Shape(depth=2, dropout=0.5))
    assert len(plain.blocks) == 3 and len(deep.blocks) == 6
    image = torch.zeros(2, 1, 28, 28)
    assert deep.blocks(torch.relu(deep.norm(deep.stem(image)))).shape == (2, 96, 7, 7)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(plain.train()(x), plain(x)) and not torch.equal(deep.train()(x), deep(x))


def test_teachers_differ_in_dropout_and_augmentation_alone() -> None:
    on, off = (train.configure(TrainOptions(size)) for size in ("teacher", "plain-teacher"))
    assert (on.augment, off.augment) == (True, False)
    assert replace(on, size=off.size, augment=False) == off
    with_dropout, without = train._SHAPES["teacher"], train._SHAPES["plain-teacher"]
    assert with_dropout.dropout > 0 and replace(with_dropout, dropout=0.0) == without


def test_students_differ_in_their_loss_alone() -> None:
    options = TrainOptions("student", seed=3)
    direct, distilled = train.configure(options), distill.configure(options)
    assert {key: getattr(distilled, key) for key in vars(direct)} == vars(direct)


# --- distillation


def test_softened_loss_is_the_documented_one() -> None:
    teacher, student = (lambda x: 3 * x), (lambda x: x - x**2)
    logits, classes = torch.randn(5, 10, dtype=torch.float64), torch.arange(5)
    config = distill.DistillConfig(temperature=2.0, softened=0.75)
    actual = distill.softened_loss(teacher, config)(student, logits, classes)
    p = np.exp(3 * logits.numpy() / 2)
    p /= p.sum(1, keepdims=True)
    s = (logits - logits**2).numpy()

    def log_softmax(x: np.ndarray) -> Any:
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    soft = -(p * log_softmax(s / 2)).sum(1).mean() * 4
    hard = -log_softmax(s)[np.arange(5), np.arange(5)].mean()
    assert float(actual) == pytest.approx(0.75 * soft + 0.25 * hard)


def test_the_teacher_learns_nothing_from_its_student() -> None:
    teacher = torch.nn.Linear(4, 10)
    loss = distill.softened_loss(teacher, distill.DistillConfig())
    loss(torch.nn.Linear(4, 10), torch.randn(3, 4), torch.arange(3)).backward()
    assert teacher.weight.grad is None


@pytest.fixture
def small_run(noise: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trainings of two short epochs on `noise`, not trials; returns the cache."""
    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "load_full", lambda split, directory=None: noise)
    whole = train.apply

    def short(config: Any, options: TrainOptions) -> Any:
        return replace(whole(config, options), epochs=1, images=400, held_out=100, batch=50, threads=1)

    monkeypatch.setattr(train, "apply", short)
    return tmp_path


def test_distill_trains_the_teacher_once(small_run: Path) -> None:
    lines: list[str] = []
    for seed in (0, 1):
        options = TrainOptions("student", seed=seed)
        distill.distill(options, small_run / "s.safetensors", lines.append)
    assert [line for line in lines if line.startswith("training")] == [
        "training the teacher", "training the student", "training the student",
    ]  # fmt: skip
    kept = sorted(path.name for path in measured.kept("vision").iterdir())
    assert kept == ["distilled-0.safetensors", "distilled-1.safetensors", "teacher-0.safetensors"]
    network = train.load_weights(small_run / "s.safetensors")
    assert sum(p.numel() for p in network.parameters()) < 25_000
    assert export.export_model(network, small_run / "s.onnx") <= 1e-4


def test_a_trial_keeps_nothing(small_run: Path) -> None:
    distill.distill(TrainOptions("student", quick=True), small_run / "s.safetensors", lambda line: None)
    assert (small_run / "s-teacher.safetensors").is_file() and not measured.kept("vision").exists()


def test_unknown_sizes_are_refused(tmp_path: Path) -> None:
    config = train.TrainConfig(size="huge")
    training.save_weights(model.VisionNet(), config, training.History([1.0], [0.1]), tmp_path / "w")
    with pytest.raises(DlcError, match="its size is 'huge'"):
        train.load_weights(tmp_path / "w")


# --- what was measured, and what it shows


def test_kept_trainings_are_measured_once(small_run: Path, noise: Arrays) -> None:
    for seed in (0, 1):
        train.train(TrainOptions("teacher", seed=seed), small_run / "t.safetensors", lambda line: None)
    lines: list[str] = []
    found = trainings.measure(noise[0], {}, lines.append)
    assert set(found) == {"teacher-0", "teacher-1", "ensemble"} and len(lines) == 3
    network = train.load_weights(train.kept("teacher", 1))
    with torch.no_grad():
        expected = network(torch.from_numpy(data.normalise(noise[0]))).argmax(1).numpy()
    assert (found["teacher-1"].arrays["answers"] == expected).mean() > 0.99
    assert trainings.measure(noise[0], found, lines.append).keys() == found.keys() and len(lines) == 3
    train.kept("teacher", 0).unlink()
    again = trainings.measure(noise[0], {name: found[name] for name in ("teacher-0", "ensemble")}, lines.append)
    assert again["ensemble"] is found["ensemble"]  # a member is missing here: it cannot be measured anew


def hits(**of: list[float]) -> compare.Hits:
    """Trainings of these accuracies on 1,000 images, each wrong on the first ones."""
    rows = {
        name.replace("_", "-"): {seed: (np.arange(1000) >= 1000 * (1 - a)) * 1.0 for seed, a in enumerate(accuracies)}
        for name, accuracies in of.items()
    }
    return compare.Hits(rows)


def met(given: compare.Hits, cascade: compare.Cascade | None = None) -> list[bool]:
    return [claim.met for claim in compare.claims(given, cascade)]


def test_claims_are_met_by_differences_that_are_sure() -> None:
    better = [0.91, 0.92, 0.93, 0.92, 0.91]
    worse = [a - 0.01 for a in better]
    given = hits(teacher=[0.94, 0.93], plain_teacher=[0.9, 0.9], ensemble=[0.95], student=worse, distilled=better)
    assert met(given) == [True, True, True, False]
    turned = hits(teacher=[0.9, 0.9], plain_teacher=[0.94, 0.93], ensemble=[0.9], student=better, distilled=worse)
    assert met(turned) == [False, False, False, False]
    assert met(hits(student=worse[:4], distilled=better[:4]))[2] is False  # too few seeds
    assert met(hits(student=[0.9] * 5, distilled=[0.93, 0.87, 0.91, 0.88, 0.91]))[2] is False
    assert met(hits()) == [False] * 4


@pytest.mark.parametrize(("accuracy", "cost", "fits"), [(0.938, 0.3, True), (0.937, 0.3, False), (0.94, 0.41, False)])
def test_a_cascade_must_be_exact_and_cheap(accuracy: float, cost: float, fits: bool) -> None:
    cascade = compare.Cascade(0.9, 0.2, cost, accuracy, 0.92, 0.9399, Interval(0, 0, 0))
    assert met(hits(), cascade)[3] is fits


def test_answers_are_compared_with_labels() -> None:
    labels = np.array([1, 2, 3], np.uint8)
    found = compare.Hits.read(
        {
            "plain-teacher-2": Measured({}, {"answers": np.array([1, 2, 0], np.uint8)}),
            "ensemble": Measured({}, {"answers": labels}),
        },
        labels,
    )
    assert found.accuracies("plain-teacher") == [pytest.approx(2 / 3)] and found.accuracies("ensemble") == [1]
    assert "| teacher without both | 1 | 66.67% |" in compare.table(found, {})


# --- the committed models


@pytest.mark.parametrize("name", [compare.STUDENT, compare.TEACHER])
def test_further_models_are_plain_and_small(name: str) -> None:
    onnx.checker.check_model(onnx.load(compare.model_file(name)), full_check=True)
    folder = models.model_path("vision").parent
    assert sum(path.stat().st_size for path in folder.glob("*.onnx")) <= 4_000_000
    ours, theirs = onnx.load(compare.model_file(name)).graph, onnx.load(models.model_path("vision")).graph
    assert [v.name for v in (*ours.input, *ours.output)] == [v.name for v in (*theirs.input, *theirs.output)]


def test_trainings_on_record_are_those_of_the_card() -> None:
    found = measured.read(models.model_path("vision").with_name("trainings.npz"))
    claims = [claim["met"] for claim in models.read_card("vision")["claims"]]
    assert len(claims) == 5 and {"teacher-0", "distilled-0", "ensemble"} <= set(found)
    assert all(m.arrays["answers"].shape == (10_000,) and m.arrays["answers"].max() == 9 for m in found.values())


def test_the_committed_cascade_is_as_good_as_its_teacher_and_cheaper() -> None:
    pytest.importorskip("onnxruntime")
    images, labels = data.load_excerpt("test")
    student, teacher = (compare.model_file(name) for name in (compare.STUDENT, compare.TEACHER))
    package = dlc.compile(str(student), cascade=str(teacher), agreement=0.99, calibration=data.samples("calibration"))
    session = dlc.load(package)
    answers = session.run({"image": data.normalise(images)})["logits"].argmax(1)
    alone = evaluate.accuracy(OnnxModel(teacher), images, labels).value
    assert alone - (answers == labels).mean() <= 0.01
    assert 0 < session.executable.asked < 0.5 * session.executable.samples
